"""Sentences: where they end in several languages, what is none, and that nothing is lost."""

import random

import pytest

from actqkv_cli.retrieval.sentences import LONGEST, columns, sentences, sentences_at


def split(text: str) -> list[str]:
    return [text[sentence.start : sentence.end] for sentence in sentences(text)]


@pytest.mark.parametrize(
    "parts",
    [
        ["It rained.", "Nobody came!", "Why?", "He knew…", "She did not."],
        ["Dr. Lowe met St. John Fry at 3.5 miles, e.g. on foot.", "He won."],
        ["Mr. J. R. Smith of No. 5 left with U.S. aid, i.e. with money.", "No."],
        ["See fig. 3 and p. 12 of vol. 2 in room 101.", "The rest is lost."],
        ["“Why?” he asked.", "“Because.”", "She left (at last).", "He stayed."],
        ["Version 2.10.3 costs 1.000,50 € or $3.50.", "It is old."],
        ["Am 3. Oktober kam er, z.B. zu Fuß.", "Er ging 1903.", "Dann nicht!"],
        ["¿Quién vino?", "¡Nadie!", "L’eau monta.", "C’est tout."],
        ["Кто пришёл?", "Никто.", "Он знал."],
        ["यह एक घर है।", "वह बड़ा है।"],
    ],
)
def test_a_sentence_ends_with_its_mark_and_not_with_a_dot_within_it(parts: list[str]) -> None:
    assert split(" ".join(parts)) == parts
    assert split("  " + "\n\n".join(parts) + "\n") == parts


def test_chinese_and_japanese_have_no_spaces() -> None:
    assert split("灯台は建てられた。「本当？」と聞いた。終わり") == [
        "灯台は建てられた。", "「本当？」", "と聞いた。", "終わり",
    ]  # fmt: skip
    assert split("灯塔建于1903年。谁建的？没人知道！") == ["灯塔建于1903年。", "谁建的？", "没人知道！"]


def test_headings_and_items_are_sentences_of_their_own() -> None:
    full = "The lamp of the lighthouse was changed to electricity by three men from"
    text = f"4. The Lighthouse\n{full}\nDunmarrow in 1937.\n- oil for the lamp\n- Bread\n\n2) Fish\n# Notes\nNone yet"
    assert split(text) == [
        "4. The Lighthouse", f"{full}\nDunmarrow in 1937.", "- oil for the lamp", "- Bread", "2) Fish", "# Notes",
        "None yet",
    ]  # fmt: skip
    assert split("Opening hours\nMonday 9-5\nTuesday 9-6") == ["Opening hours", "Monday 9-5", "Tuesday 9-6"]


def test_a_sentence_goes_on_over_the_end_of_a_page() -> None:
    assert split("The keeper went to\n\nthe light. He lit it.") == ["The keeper went to\n\nthe light.", "He lit it."]


@pytest.mark.parametrize("word", ["word ", "clause, ", "語", "語、", "x"])
def test_a_very_long_sentence_comes_in_parts(word: str) -> None:
    text = "Short. So " + (word * 1000).strip() + ". Short."
    first, *parts, last = sentences(text)
    assert (text[first.start : first.end], text[last.start : last.end]) == ("Short.", "Short.")
    assert [part.begins for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    for part in parts:
        assert columns(text[part.start : part.end]) <= LONGEST
        if " " in word and not part.ends:
            assert text[part.start : part.end].split()[-1] == word.strip()  # cut between words


@pytest.mark.parametrize("seed", range(30))
def test_nothing_but_white_space_is_between_sentences(seed: int) -> None:
    draw = random.Random(seed)
    pieces = [
        "word",
        "Word",
        "3.5",
        "Dr.",
        "end.",
        "why?",
        "語。",
        "語",
        "\n",
        "\n\n",
        " ",
        "  ",
        "- ",
        "“",
        "”",
        "…",
        "# ",
    ]
    text = "".join(draw.choice([*pieces, " "]) for _ in range(draw.randint(0, 400)))
    found, at = sentences(text), 0
    for sentence in found:
        assert text[at : sentence.start].strip() == ""
        assert text[sentence.start : sentence.end].strip() == text[sentence.start : sentence.end] != ""
        at = sentence.end
    assert text[at:].strip() == ""
    if found:
        start = draw.randrange(len(text))
        near = sentences_at(text, start, start + draw.randint(1, 50))
        assert set(near) <= set(found)  # all of a text this short is looked at


def test_of_a_long_text_only_the_surroundings_are_looked_at() -> None:
    book = "".join(f"This is sentence number {number} of many. " for number in range(200_000))
    place = book.index("number 100000 ")
    (sentence,) = sentences_at(book, place, place + 5)
    assert book[sentence.start : sentence.end] == "This is sentence number 100000 of many."
    assert sentence.begins
    assert sentence.ends
    middle = sentences_at("word " * 2000, 5000, 5010)
    assert not any(part.begins or part.ends for part in middle)
