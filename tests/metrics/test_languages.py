"""Languages by code and name, the unit of each, and what a unit is."""

import pytest

from arkfast.metrics import ARK_LANGUAGES, canonical, tokenize, unit_of, unit_of_script


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("zh", "zh"), ("zh-CN", "zh"), ("zh_TW", "zh"), ("cmn-Hans-CN", "zh"), ("Mandarin", "zh"), ("Chinese", "zh"), ("zh-yue", "yue"),
        ("Cantonese", "yue"), ("EN", "en"), ("en-US", "en"), ("English (US)", "en"), ("eng", "en"), ("de-AT", "de"), ("German", "de"),
        ("zh-en", "mixed"), ("en_zh", "mixed"), ("zh+en", "mixed"), ("code-switching", "mixed"), ("cs", "cs"), ("cs-CZ", "cs"),
        ("swe", "swe"), ("Swahili", "swahili"), (" ", None), ("", None), (None, None), ("und", None), ("auto", None),
    ],
)  # fmt: skip
def test_canonical(given: str | None, code: str | None) -> None:
    assert canonical(given) == code


def test_units_by_convention() -> None:
    assert {code: unit_of(code) for code in ("zh", "yue", "ja", "th")} == dict.fromkeys(("zh", "yue", "ja", "th"), "char")
    assert unit_of("zh-en") == "mixed"
    words = [code for code in ARK_LANGUAGES if code not in ("zh", "ja")]
    assert {unit_of(code) for code in words} == {"word"}
    assert len(ARK_LANGUAGES) == 19


@pytest.mark.parametrize(
    ("text", "unit", "tokens"),
    [
        ("我用 iphone 打电话", "mixed", ["我", "用", "iphone", "打", "电", "话"]),
        ("我用 iphone", "char", ["我", "用", "i", "p", "h", "o", "n", "e"]),
        ("我用 iphone", "word", ["我用", "iphone"]),
        ("3.5個のリンゴ don't", "mixed", ["3.5", "個", "の", "リ", "ン", "ゴ", "don't"]),
        ("コーヒー 時々", "mixed", list("コーヒー時々")),
        ("한국어 좋아요", "mixed", ["한국어", "좋아요"]),
        ("สวัสดี krub", "mixed", [*"สวัสดี", "krub"]),
        ("𠮷野家", "mixed", ["𠮷", "野", "家"]),
        ("  ", "mixed", []),
        ("", "char", []),
    ],
)
def test_tokens(text: str, unit: str, tokens: list[str]) -> None:
    assert tokenize(text, unit) == tokens


def test_script_decides_where_no_language_is_given() -> None:
    assert unit_of_script(["hello", "3.5"]) == "word"
    assert unit_of_script(["你好", "2024 年"]) == "char"  # digits are no letters
    assert unit_of_script(["你好", "hello"]) == "mixed"
    assert unit_of_script(["한국어"]) == "word"
    assert unit_of_script([]) == "word"
