"""Which words a text has, and which units they are spelt with."""

import pytest

from arkfast.align import Units, spelling, word_spans
from arkfast.align.units import OTHER


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" …!  ", []),
        ("Hello, world!", ["Hello", "world"]),
        ("don’t can't 'quoted' well-known—yes", ["don’t", "can't", "quoted", "well", "known", "yes"]),
        ("3.14 1,000,000 e.g. v2.", ["3.14", "1,000,000", "e.g", "v2"]),
        ("今天天气,OK了。", ["今", "天", "天", "气", "OK", "了"]),
        ("コーヒーを2杯", ["コ", "ー", "ヒ", "ー", "を", "2", "杯"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        ("Cafe\u0301 au lait", ["Cafe\u0301", "au", "lait"]),
        ("L’été à l'école", ["L’été", "à", "l'école"]),
        ("a'", ["a"]),
        ("tst.今", ["tst", "今"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [text[begin:end] for begin, end in word_spans(text)] == words


def test_spelling_folds_case_width_and_compatibility() -> None:
    assert spelling("Aß, Ｂ½") == [("a", 0), ("s", 1), ("s", 1), ("b", 4), ("1", 5), ("2", 5)]


def test_every_word_is_spelt() -> None:
    for text in ("İstanbul ﬁn ½ Ⅷ", "Łódź 东京 ﷺ"):
        places = {place for _, place in spelling(text)}
        assert all(places & set(range(begin, end)) for begin, end in word_spans(text))


def test_units_are_the_most_frequent_characters() -> None:
    units = Units.of_texts(["aab", "Bb c。"], most=2)
    assert units.characters == ("b", "a")
    assert len(units) == 4
    assert units.ids("A b, x") == [3, 2, OTHER]
    assert units.ids("é") == Units.of_texts([]).ids("e\u0301") == [OTHER]
