"""The normaliser's rules, one example each, and what holds for any text."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.metrics import get_normalizer, normalize
from arkfast.records import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("well-known", "well known"),  # punctuation separates, it is not deleted
        ("U.S. 3.5%", "u s 3.5"),
        ("don't", "don't"),
        ("don’t DON‘T don＇t don`t", "don't don't don't don't"),
        ("'quoted' rock 'n' roll, boys'", "quoted rock n roll boys"),
        ("3.5. End.5 .5 5. 1.2.3", "3.5 end 5 5 5 1.2.3"),
        ("1,000 3:30 3–4 20° $5", "1 000 3 30 3 4 20 5"),
        ("Ｈｅｌｌｏ，　Ｗｏｒｌｄ！ ３．５", "hello world 3.5"),
        ("你好，世界。", "你好 世界"),
        ("「カタカナ」と ﾊﾝｶｸ・ひらがな、", "カタカナ と ハンカク ひらがな"),
        ("한국어, 좋아요.", "한국어 좋아요"),
        ("Straße CAFÉ café", "strasse café café"),
        ("हिन्दी", "हिन्दी"),  # combining marks are part of words
        ("soft\u00adhyphen \ufeffbom zero\u200bwidth", "softhyphen bom zero width"),
        ("goedŉ", "goed'n"),  # NFKC makes an apostrophe of it
        ("  tabs\tand\nlines  ", "tabs and lines"),
        ("...?!", ""),
        ("", ""),
    ],
)
def test_basic(text: str, expected: str) -> None:
    assert normalize(text) == unicodedata.normalize("NFC", expected)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_basic_is_idempotent_and_leaves_only_words(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert once == " ".join(once.split())
    assert {unicodedata.category(c)[0] for c in once if c not in " .'"} <= set("LMN")


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_none_changes_nothing(text: str) -> None:
    assert normalize(text, normalizer="none") == text


def test_whisper_follows_the_language() -> None:
    pytest.importorskip("whisper_normalizer", reason="whisper-normalizer is not installed")
    assert normalize("Mr. Smith's colour isn't 20%", normalizer="whisper") == "mister smith is color is not 20%"
    assert normalize("Mr. Smith", normalizer="whisper", language="en-GB") == "mister smith"
    assert normalize("Mr. Schmidt ruft an!", normalizer="whisper", language="German") == "mr schmidt ruft an"
    assert normalize("你好，世界", normalizer="whisper", language="zh_CN") == "你 好 世 界"


def test_missing_package_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # a language that no other test asks for, so that no cached normaliser answers
    monkeypatch.setitem(sys.modules, "whisper_normalizer.basic", None)
    with pytest.raises(InputError, match=r"whisper-normalizer.*pip install 'arkfast\[eval\]'"):
        get_normalizer("whisper", "Finnish")


def test_unknown_normalizer_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown normalizer 'wisper'.*basic"):
        normalize("x", normalizer="wisper")
