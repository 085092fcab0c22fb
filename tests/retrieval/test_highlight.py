"""Highlights: the sentence that carries an answer, and whether any of the answer stands in the sources."""

import random

import pytest

from actqkv_cli.retrieval.highlight import highlights, terms
from actqkv_cli.retrieval.sentences import sentences

LIGHT = (
    "3. The Lighthouse\n"
    "The lighthouse at Carrow Point was built by Edda Morrow in 1874. "
    "Edda Morrow was the first woman to be trusted with such a work. "
    "The tower is 31.5 metres high, and 2,140 people paid for it. "
    "Dr. Harriet Lowe lived there for ninety-three days. "
    "The keepers’ planks were made of larch.\n"
)
FERRY = "The present ferry is the Lady Ottoline. She leaves at 7.30, and carries 146 sheep. A red flag is flown in fog."
SOURCES = [LIGHT, FERRY]


def marked(answer: str, question: str, sources: list[str] = SOURCES) -> tuple[list[list[str]], float | None]:
    split = [[text[s.start : s.end] for s in sentences(text)] for text in sources]
    found = highlights(answer, question, split)
    return [[split[n][at] for at in numbers] for n, numbers in enumerate(found.sentences)], found.support


@pytest.mark.parametrize(
    ("question", "answer", "beginning"),
    [
        ("Who built the lighthouse at Carrow Point?", "Edda Morrow", "The lighthouse at"),
        ("Who was first?", "It was Edda Morrow.", "Edda Morrow was"),
        ("Who built it?", "The lighthouse at Carrow Point was built by Edda Morrow in 1874.", "The lighthouse at"),
        ("When was the lighthouse built?", "1874", "The lighthouse at"),
        ("How high is the tower?", "31.5", "The tower"),
        ("How high is the tower?", "31.5m", "The tower"),
        ("How many paid for the tower?", "2140", "The tower"),
        ("How many days did Harriet Lowe live there?", "93", "Dr. Harriet Lowe"),
        ("What wood was used for the plank?", "Larches", "The keepers’ planks"),
        ("Who lived there?", "Doctor Harriét LOWE", "Dr. Harriet Lowe"),
        ("What is the ferry called?", "Lady Ottoline", "The present ferry"),
        ("How many sheep?", "It carries 146.", "She leaves"),
        ("Which is the present one, the Lady Ottoline or the Lady Anne?", "the Lady Ottoline", "The present ferry"),
    ],
)
def test_the_sentence_that_carries_the_answer_is_found(question: str, answer: str, beginning: str) -> None:
    found, support = marked(answer, question)
    assert [text.startswith(beginning) for texts in found for text in texts] == [True]
    assert support is None or support > 0


NOTHING = ["", " ", "Yes.", "No, it was not.", "…", "True", "The document does not say.", "There is no information."]


@pytest.mark.parametrize("answer", [*NOTHING, "The text does not mention the lighthouse."])
def test_an_answer_without_content_of_its_own_is_neither_supported_nor_not(answer: str) -> None:
    found, support = marked(answer, "Is the lighthouse tall?")
    assert support is None
    assert found == [[], []] or answer.endswith("lighthouse.")


def test_what_stands_in_no_source_is_told() -> None:
    assert marked("Winifred Askell", "Who built the lighthouse?") == ([[], []], 0)
    assert marked("1875", "When?") == ([[], []], 0)
    assert marked("Winifred Askell", "Who?", []) == ([], None)
    _, support = marked("Edda Askell", "Who built the lighthouse?")
    assert support == 0.5


def test_a_part_of_an_answer_is_not_found_where_the_talk_is_of_something_else() -> None:
    assert marked("seven red boats", "How large is the fishing fleet?")[0] == [[], []]


def test_each_sentence_of_an_answer_has_its_own() -> None:
    found, _ = marked("Edda Morrow built the lighthouse. The planks are of larch.", "What do you know?")
    assert [text[:12] for text in found[0]] == ["The lighthou", "The keepers’"]


def test_another_source_is_marked_only_where_it_says_as_much() -> None:
    again = "In 1874 the lighthouse was built, by Edda Morrow."
    found, _ = marked("Edda Morrow", "Who built the lighthouse?", [LIGHT, FERRY, again, "Edda is a name."])
    assert [len(texts) for texts in found] == [1, 0, 1, 0]


def test_languages_without_spaces() -> None:
    sources = ["灯台は一九〇三年に建てられた。設計者は田中太郎です。", "灯塔建于1903年。灯塔的看守人是王小明。"]
    assert marked("田中太郎です", "設計者は誰ですか？", sources)[0] == [["設計者は田中太郎です。"], []]
    assert marked("王小明", "看守人是谁？", sources)[0] == [[], ["灯塔的看守人是王小明。"]]
    assert marked("1903", "灯塔建于哪一年？", sources)[0] == [[], ["灯塔建于1903年。"]]
    assert marked("山田花子", "設計者は誰ですか？", sources) == ([[], []], 0)


def test_other_languages_and_scripts() -> None:
    sources = ["Der Leuchtturm wurde von Jörg Weiß gebaut. Er ist grün.", "Маяк построил Иван Петров. Он красный."]
    assert marked("Jörg Weiss", "Wer hat den Leuchtturm gebaut?", sources)[0][0] == [sources[0].split(" Er ")[0]]
    assert marked("ИВАН ПЕТРОВ", "Кто построил маяк?", sources)[0][1] == [sources[1].split(" Он ")[0]]


def test_terms() -> None:
    assert terms("The keepers’ 2,140 boats, 3.5 or 3,5; the 14th of May 1,000,000") == {
        "keeper", "2140", "boat", "3.5", "14", "may", "1000000",
    }  # fmt: skip
    assert terms("ninety-three Twenty one eleven") == {"93", "21", "11"}
    assert terms("Cafés") == terms("cafe\u0301") == terms("CAFE")
    assert terms("") == terms("?! — …") == set()


@pytest.mark.parametrize("seed", range(20))
def test_a_sentence_is_found_by_its_own_words(seed: int) -> None:
    """Whatever the sources are: of the sentences that are the answer, one is marked."""
    draw = random.Random(seed)
    words = [f"{draw.choice('bcdfgklmnprt')}{draw.choice('aeiou')}{draw.choice('kmntx')}{n}" for n in range(40)]
    sources = [[" ".join(draw.sample(words, 8)) for _ in range(draw.randint(1, 9))] for _ in range(3)]
    answer = draw.choice(draw.choice(sources))
    found = highlights(answer, "Which?", sources)
    assert found.support == 1
    assert answer in {sources[at][n] for at, numbers in enumerate(found.sentences) for n in numbers}
