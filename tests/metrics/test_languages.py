"""Languages by code and name, the unit of each, and what a unit is."""

import pytest

from arkfast.metrics import ARK_LANGUAGES, canonical, is_known, near, tokenize, unit_of, unit_of_script, unit_of_texts
from arkfast.metrics.language_names import CODES, KNOWN, MISTAKEN, SLIPS, key


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("zh", "zh"), ("zh-CN", "zh"), ("zh_TW", "zh"), ("cmn-Hans-CN", "zh"), ("Mandarin", "zh"), ("Chinese", "zh"), ("zh-yue", "yue"),
        ("Cantonese", "yue"), ("EN", "en"), ("en-US", "en"), ("English (US)", "en"), ("eng", "en"), ("de-AT", "de"), ("German", "de"),
        ("zh-en", "mixed"), ("en_zh", "mixed"), ("zh+en", "mixed"), ("code-switching", "mixed"), ("cs", "cs"), ("cs-CZ", "cs"),
        ("swe", "sv"), ("Swahili", "sw"), (" ", None), ("", None), (None, None), ("und", None), ("auto", None),
    ],
)  # fmt: skip
def test_canonical(given: str | None, code: str | None) -> None:
    assert canonical(given) == code


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("zh", "cn chn zn chs 中文 汉语 普通话 國語 简体中文 中文（简体）"),
        ("zh", "zho cmn Simplified_Chinese Chinese_(Simplified) Mandarin_Chinese zh-Hant-HK zh_CN.UTF-8"),
        ("ja", "jp jpn jap 日本語 日语 Japanese ja-JP ｊａ"), ("wuu", "wu wuu 吴语 zh-wuu Shanghainese"),
        ("nan", "minnan min_nan nan zh-min-nan 闽南语 Hokkien Taiwanese"), ("yue", "粤语 廣東話 yue-Hant-HK zh-yue hk"),
        ("ko", "한국어 kor Korean ko_KR"), ("de", "Deutsch deu ger 德语 de-CH"), ("es", "español Espanol es-419 Castilian"),
        ("cs", "cz čeština CESTINA ces"), ("el", "gr ελληνικά ell"), ("he", "iw עברית"), ("hi", "हिन्दी hin Hindi"),
        ("th", "ไทย ภาษาไทย tha"),
        ("pt", "pt-BR Brazilian_Portuguese português por"), ("en", "en-JP en-GB-oed American_English us en_US.UTF-8"),
        ("ar", "ara العربية arb"),
        ("fil", "tl tgl Tagalog fil-PH"), ("no", "nb Bokmål nob no"), ("sr", "sr-Latn srpski српски"), ("tr", "Türkçe TURKCE tur"),
    ],
)  # fmt: skip
def test_names_native_names_codes_tags_and_slips(code: str, given: str) -> None:
    for name in given.split():
        assert canonical(name.replace("_", " ") if name[0].isupper() else name) == code, name
        assert is_known(code)


def test_every_code_and_name_of_the_table_means_one_language() -> None:
    from arkfast.metrics.language_names import _TABLE

    for line in _TABLE.strip().split("\n"):
        code, *names = line.split()
        assert {canonical(name.replace("_", " ")) for name in (code, *names)} == {code}, line
    assert not set(SLIPS) & set(CODES), "a slip that is a code of its own would hide the language"
    assert set(SLIPS.values()) | set(MISTAKEN.values()) <= KNOWN
    assert set(ARK_LANGUAGES) <= KNOWN
    assert all(canonical(code) == code for code in KNOWN)
    assert key("ŌLELO  Hawaiʻi") == "olelo hawaii"


def test_what_is_not_known_is_told_apart_and_similar_names_are_offered() -> None:
    for name in ("klingon", "xyz", "no speech", "chinse"):
        assert canonical(name) is not None
        assert not is_known(canonical(name) or ""), name
    assert "chinese" in near("chinse")
    assert near("klingon") == []


@pytest.mark.parametrize(
    ("language", "references", "unit", "rule"),
    [
        ("zh", ["你好"], "char", "language zh"),
        ("en", ["hello", "你好"], "word", "language en"),
        ("klingon", ["你好"], "char", "language klingon is not known: script of the references"),
        ("klingon", ["hello"], "word", "language klingon is not known: script of the references"),
        ("ch", ["你好"], "char", "language ch, but the references are in a script without spaces between words: script of the references"),
        ("nan", ["chit ê lâng"], "word", "language nan in letters with spaces between words: script of the references"),
        ("nan", ["這个人"], "char", "language nan"),
        ("zh-en", ["你好"], "mixed", "language mixed"),
        (None, ["你好 hello"], "mixed", "no language given: script of the references"),
    ],
)
def test_the_script_decides_where_the_language_cannot(language: str | None, references: list[str], unit: str, rule: str) -> None:
    assert unit_of_texts(language, references) == (unit, rule)


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
