"""The text that calibration reads: plain filler with two dozen facts planted in it."""

import random

FACTS = (
    ("The night watchman of the salt store was called Ansel Birk.", "What was the night watchman's name?"),
    ("Visitors must leave their umbrellas in the green chest.", "Where do visitors leave their umbrellas?"),
    ("The comet was first seen from the orchard in 1743.", "In which year was the comet first seen?"),
    ("Doctor Ilse Varga discovered that the moss glows.", "Who found out that the moss gives light?"),
    ("The spare key hangs behind the portrait of the admiral.", "Where is the spare key kept?"),
    ("A ticket for the cable car costs seventeen crowns.", "How much does a cable car ticket cost?"),
    ("The emperor's favourite horse bore the name Thistle.", "What was the horse of the emperor called?"),
    ("The bell was cast from copper and silver.", "Which metals was the bell made of?"),
    ("Trout may be fished only from the northern bank.", "From where is it allowed to catch trout?"),
    ("The archive closes its doors at half past four.", "When does the archive close?"),
    ("Professor Hugo Lindqvist lost the map in Trieste.", "In which city was the map lost?"),
    ("The tower has two hundred and eleven steps.", "How many steps lead up the tower?"),
    ("Cutlery is counted by the youngest apprentice every Friday.", "Who checks the spoons and forks?"),
    ("The ferry to the island leaves when the third lamp is lit.", "What is the signal for the boat to depart?"),
    ("Old Brannagh kept his savings inside a hollow clock.", "Where did Brannagh hide his money?"),
    ("The recipe calls for nine quinces and a pinch of mace.", "How many quinces does one need?"),
    ("Lieutenant Sorrel was dismissed because he slept on watch.", "Why did Sorrel lose his post?"),
    ("The library's oldest volume is bound in eel skin.", "What covers the most ancient book?"),
    ("Snow closed the pass for forty days in the year of the treaty.", "How long was the mountain road shut?"),
    ("The choir rehearses in the former brewery.", "In what building do the singers practise?"),
    ("Marta Quill designed the iron gate of the botanical garden.", "Who drew the plans for the way into the garden?"),
    ("The prize for the heaviest pumpkin is a silver thimble.", "What does the grower of the largest pumpkin receive?"),
    ("Pigeons brought the news of the verdict to Salzau.", "How did Salzau learn of the judgement?"),
    ("The well in the courtyard is thirty-eight metres deep.", "How far down does the well reach?"),
)

_SENTENCES = 320  # of filler, some 4,400 tokens
_PARTS = (
    """the old carter, a neighbour, the weaver's son, the committee, one of the clerks, the gardener,
    a travelling singer, the second cook, the surveyor, her cousin, the miller, a young recruit, the printer,
    the innkeeper, a quiet guest""",
    """walked along, spoke about, swept, remembered, painted, looked over, complained of, paid for, drew, measured,
    wrote a letter about, waited beside, repaired, argued over, cleared""",
    """the long road, the wooden fence, a row of poplars, the market stalls, the broken cart, a field of barley,
    the cold kitchen, the lower meadow, a pile of bricks, the small bridge, the empty barn, the stone wall,
    a basket of pears, the narrow lane, the wet hay""",
    """before the rain came, while the others slept, as on every other day, without saying much, until it grew dark,
    because there was time, and went home again, in the mild weather, after a short rest, for no particular reason,
    with great patience, as the custom was, to pass the hours, though nobody had asked, and thought no more of it""",
)


def planted_document(seed: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """The facts spread evenly through filler, and the range of characters of each."""
    draw = random.Random(seed)
    parts = [[" ".join(phrase.split()) for phrase in part.split(",")] for part in _PARTS]
    # The first and the last eighth stay plain: they hold the sink and the local window.
    margin = _SENTENCES // 8
    every = (_SENTENCES - 2 * margin) // len(FACTS)
    text, places = "", []
    for number in range(_SENTENCES):
        fact, rest = divmod(number - margin, every)
        if rest == 0 and 0 <= fact < len(FACTS):
            places.append((len(text), len(text) + len(FACTS[fact][0])))
            text += FACTS[fact][0] + " "
        sentence = " ".join(draw.choice(part) for part in parts)
        text += sentence[0].upper() + sentence[1:] + ". "
    return text.rstrip(), places
