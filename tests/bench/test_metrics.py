"""Every metric against cases worked by hand, the quirks of its benchmark's scorer included."""

import sys
from typing import Any

import pytest

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.metrics import score
from actqkv_cli.errors import UsageError


def judged(metric: str, prediction: str, *answers: str, **more: Any) -> float:
    return score(metric, prediction, Example("1", "task", "context", "question", answers, metric, 8, **more))


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)


class TestF1:
    def test_words_are_counted_without_case_punctuation_and_articles(self) -> None:
        # "red old barn" and "old barn here": 2 common words of 3 and 3.
        assert judged("qa_f1", "The red, OLD barn!", "an old barn here") == near(2 / 3)

    def test_a_word_counts_as_often_as_both_have_it(self) -> None:
        assert judged("qa_f1", "no no no", "no no") == near(2 * 2 / (3 + 2))

    def test_the_best_answer_counts(self) -> None:
        assert judged("qa_f1", "seven", "eight", "seven") == 1

    @pytest.mark.parametrize("prediction", ["", "the", "..."])
    def test_nothing_said_is_nothing_right(self, prediction: str) -> None:
        assert judged("qa_f1", prediction, "barn") == 0

    def test_only_the_first_line_where_models_run_on(self) -> None:
        assert judged("qa_f1_first_line", "\n\nParis\nQuestion: what next", "Paris") == 1
        assert judged("qa_f1", "\n\nParis\nQuestion: what next", "Paris") == near(2 * 1 / (4 + 1))


class TestChinese:
    def test_f1_of_words(self) -> None:
        # 我 / 来到 / 北京 and 北京: 1 common word of 3 and 1; full stops of both scripts do not count.
        assert judged("qa_f1_zh", "我来到北京。", "北京.") == near(2 * 1 / (3 + 1))

    def test_f1_of_characters(self) -> None:
        # 北京市 and 北京: 2 common characters of 3 and 2.
        assert judged("qa_f1_characters", "“北京 市”。", "北京") == near(2 * 2 / (3 + 2))

    def test_an_opening_book_title_mark_stays(self) -> None:
        # The benchmarks' list of punctuation has 》 but not 《.
        assert judged("qa_f1_characters", "《论语》", "论语") == near(2 * 2 / (3 + 2))

    def test_rouge_of_words(self) -> None:
        # 我 / 来到 / 北京 against 我 / 来到 / 上海: two in order of three and three.
        assert judged("rouge_zh", "我来到北京", "我来到上海") == near(2 / 3)

    def test_the_dictionary_is_loaded_in_silence(self, capfd: pytest.CaptureFixture[str]) -> None:
        judged("qa_f1_zh", "北京", "北京")
        assert capfd.readouterr() == ("", "")


class TestRouge:
    def test_longbench_counts_sets_of_words(self) -> None:
        # The longest common run of "a b c d" and "a c d e" is a c d: precision 3/4, recall 3/4.
        assert judged("rouge", "a b c d", "a c d e") == near(3 / 4)
        # As sets "a a a b" is {a, b}: precision 2/2, recall 2/2.
        assert judged("rouge", "a a a b", "a b") == near(1)

    @pytest.mark.parametrize("prediction", ["", ".", "..."])
    def test_longbench_gives_an_empty_text_nothing(self, prediction: str) -> None:
        assert judged("rouge", prediction, "a b") == 0

    def test_only_the_first_line_where_models_run_on(self) -> None:
        assert judged("rouge_first_line", "\na b\nc d", "a b") == near(1)
        assert judged("rouge_first_line", ".\na b", "a b") == 0

    def test_google_counts_words_as_often_as_they_stand(self) -> None:
        # a b in order, of 4 and 2 words: precision 2/4, recall 2/2.
        assert judged("rougeL", "A a a b.", "a b") == near(2 * (1 / 2) / (3 / 2))

    def test_google_summaries_count_by_line(self) -> None:
        # Lines swapped: as one text only one of the two lines is in order, by lines both are.
        assert judged("rougeL", "c d\na b", "a b\nc d") == near(1 / 2)
        assert judged("rougeLsum", "c d\na b", "a b\nc d") == near(1)

    def test_google_gives_an_empty_text_nothing(self) -> None:
        assert judged("rougeLsum", "", "a b") == judged("rougeL", "", "a b") == 0


class TestLongBench:
    def test_a_class_is_right_alone_and_shared_among_those_named(self) -> None:
        classes = ("Food", "Sport", "Music")
        assert judged("classification", "Sport", "Sport", classes=classes) == 1
        assert judged("classification", "Sport or Music", "Sport", classes=classes) == 1 / 2
        assert judged("classification", "Music", "Sport", classes=classes) == 0
        assert judged("classification", "Music\nSport", "Sport", classes=classes) == 0

    def test_a_part_of_the_right_name_does_not_count_as_a_class(self) -> None:
        assert judged("classification", "Other number", "Other number", classes=("number", "Other number")) == 1

    def test_the_class_behind_a_dropped_one_is_stepped_over(self) -> None:
        # "Other" is dropped, "number" behind it is not looked at: two are left.
        classes = ("Other", "number", "Other number")
        assert judged("classification", "Other number", "Other number", classes=classes) == 1 / 2

    def test_numbers_are_a_share(self) -> None:
        assert judged("retrieval", "Paragraph 7", "Paragraph 7") == 1
        assert judged("retrieval", "7, or 12, or 7?", "Paragraph 7") == near(2 / 3)
        assert judged("retrieval", "段落7", "段落7") == 1
        assert judged("count", "17", "7") == judged("count", "many", "7") == 0

    def test_code_is_the_first_line_that_is_no_comment(self) -> None:
        assert judged("code_sim", "\n# next\n```python\nreturn x\nreturn y", "return x") == 1
        # 2 * 3 equal characters of 4 + 4: 75 percent.
        assert judged("code_sim", "abcd", "abce") == 0.75
        # 2 * 2 of 3 + 3 is 66.7, and percents are whole.
        assert judged("code_sim", "abc", "abd") == 0.67
        assert judged("code_sim", "// only a comment", "return x") == 0


class TestInfiniteBench:
    def test_the_first_integer_counts(self) -> None:
        assert judged("first_integer", " 71432. Remember it", "71432") == 1
        assert judged("first_integer", "1 of 2: 71432", "71432") == judged("first_integer", "none", "71432") == 0

    def test_a_whole_word_counts(self) -> None:
        assert judged("word", '{"key": "0a-1b"}', "0a-1b") == 1
        assert judged("word", "0a-1bc", "0a-1b") == 0

    def test_a_name_counts_in_any_case_if_it_is_one_word(self) -> None:
        assert judged("name", "It is Ada.", "ADA") == 1
        assert judged("name", "Ada King", "ADA KING") == 0
        assert judged("name", "Bo", "ADA", "BO") == 0  # the first answer only

    @pytest.mark.parametrize(
        ("prediction", "right"),
        [
            ("B", 1),
            (" B. The barn", 1),
            ("C. The barn", 0),
            ("The barn", 1),  # the option's text
            ("Because of the barn", 1),  # B of Because: the first letter decides
            ("A barn", 0),
            ("I say the answer is: B", 1),
            ("I say the answer is C, not B", 0),
            ("It must be option B", 1),
            ("the answer is", 0),
            ("", 0),
        ],
    )
    def test_a_choice_is_a_letter_or_its_text(self, prediction: str, right: int) -> None:
        assert judged("choice", prediction, "The barn", "B") == right

    @pytest.mark.parametrize(
        ("prediction", "right"),
        [
            ("B. load", 1),
            ("B: load", 1),
            ("B", 0),
            ("The answer is: B", 1),
            ("The correct option is: load", 1),
            ("The answer is: C", 0),
            ("The answer is:", 0),
            ("load", 0),
        ],
    )
    def test_a_function_with_an_error_is_named_with_its_letter(self, prediction: str, right: int) -> None:
        assert judged("code_debug", prediction, "load", "B") == right

    def test_the_last_word_is_what_code_returns(self) -> None:
        assert judged("code_run", "It returns -4.", "-4") == 1
        assert judged("code_run", "-4 is it", "-4") == judged("code_run", "", "-4") == 0

    def test_the_first_number_is_the_one_found(self) -> None:
        assert judged("math_find", "8.5 and 3", "8.5") == judged("math_find", "It is 8", "8") == 1
        assert judged("math_find", "3 and 8.5", "8.5") == judged("math_find", "8.5", "8") == 0

    def test_values_count_up_to_the_first_wrong_one(self) -> None:
        assert judged("math_calc", "[4, 8, 9, 5]", "4", "8", "1", "5") == 2 / 4
        assert judged("math_calc", "4, 8", "4", "8", "1", "5") == 2 / 4
        assert judged("math_calc", "", "4") == 0
        assert judged("math_calc", "-3", "-3") == 0  # signs are not read


class TestRulerAndLostInTheMiddle:
    def test_all_answers_are_wanted_or_any(self) -> None:
        assert judged("string_match_all", "VAR one, two", "one", "TWO", "three", "four") == 2 / 4
        assert judged("string_match_part", "it was TWO", "one", "two") == 1
        assert judged("string_match_part", "it was", "one", "two") == 0

    def test_an_answer_within_the_first_line_counts(self) -> None:
        assert judged("best_subspan_em", "It was the Beatles, in 1963.", "Beatles", "Kinks") == 1
        assert judged("best_subspan_em", "I think:\nBeatles", "Beatles") == 0


class TestLEval:
    @pytest.mark.parametrize(
        ("prediction", "expected"),
        [("B", 1), ("B. barn", 1), ("(B)", 1), ("D", 0), ("Clearly B", 0), ("none", 0), ("", 0.25)],
    )
    def test_one_option_is_the_first_letter_of_any_word(self, prediction: str, expected: float) -> None:
        assert judged("exam_choice", prediction, "B. barn") == expected

    def test_without_a_letter_a_is_guessed(self) -> None:
        assert judged("exam_choice", "none", "A") == judged("exam_choices", "none", "A") == 1

    @pytest.mark.parametrize(
        ("prediction", "expected"),
        [
            ("AC", 1),
            ("CA", 1),
            ("A and C.", 1),
            ("A) first C) third", 1),
            ("C", 0.25),  # a part of it
            ("A, C", 0.25),  # nothing stands behind C
            ("ABC", 0),
            ("A. Question: C. third", 0.25),
        ],
    )
    def test_several_options_are_right_together(self, prediction: str, expected: float) -> None:
        assert judged("exam_choices", prediction, "AC") == expected

    def test_the_number_behind_the_last_sentence(self) -> None:
        assert judged("exam_math", "3 + 4 = 7. The answer is $1,200.50", "So it is. The answer is 1200") == 1
        assert judged("exam_math", "They have 3 and then 7 apples\n\nQuestion: 9", "The answer is 7") == 1
        assert judged("exam_math", "I do not know", "The answer is 7") == 0

    def test_the_output_of_code_stands_at_the_end_or_behind_its_announcement(self) -> None:
        assert judged("exam_code", "Running it, the final output will be [1, 2]. And so on.", "[1, 2]") == 1
        assert judged("exam_code", "it prints 3.0 and then 4", "4") == 1
        # Of six words only the last 1 + 3 are looked at.
        assert judged("exam_code", "12 comes first and then more", "12") == 0

    def test_a_verdict_by_the_document(self) -> None:
        assert judged("exam_judge", "That is TRUE.", "True") == judged("exam_judge", "false", "False [fact: True]") == 1
        assert judged("exam_judge", "False, not true", "True") == judged("exam_judge", "maybe", "True") == 0

    def test_other_answers_are_contained_or_equal_numbers(self) -> None:
        assert judged("exam", "The topic was The  Art of Tea", "the art of tea") == 1
        assert judged("exam", "4.0", "4") == 1
        assert judged("exam", "44", "4") == 0
        assert judged("exam", "-\nnothing here\ntea", "tea") == 0  # the first line of two characters counts


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="'f2'"):
        judged("f2", "a", "a")


@pytest.mark.parametrize(
    ("metric", "library"),
    [
        ("rouge", "rouge"),
        ("rouge_zh", "jieba"),
        ("qa_f1_zh", "jieba"),
        ("rougeL", "rouge_score.rouge_scorer"),
        ("code_sim", "rapidfuzz.fuzz"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, metric: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=library) as error:
        judged(metric, "a", "a")
    assert "actqkv[bench]" in error.value.hint
