"""The normaliser's rules, one example each, and what holds for any text."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.metrics import ARK_LANGUAGES, get_normalizer, normalize
from arkfast.metrics.normalizers import _plain, basic
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
        ("I love you \u2764\ufe0f", "i love you"),  # an emoji is a symbol, whatever chooses its drawing
        ("I \u2764 you \U0001f469\u200d\U0001f467\U0001f3fd", "i you"),
        ("葛\U000e0100飾区", "葛飾区"),
        ("press 1\ufe0f\u20e3", "press 1"),
        ("ᠬ\u180bᠦ\u180f a\u034f\u0301", "ᠬᠦ á"),
        ("goedŉ", "goed'n"),  # NFKC makes an apostrophe of it
        ("2½ cups", "2 1 2 cups"),  # and not 21/2
        ("  tabs\tand\nlines  ", "tabs and lines"),
        ("...?!", ""),
        ("", ""),
    ],
)
def test_basic(text: str, expected: str) -> None:
    assert normalize(text) == unicodedata.normalize("NFC", expected)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "U.S. GDP rose 3.5% — to $1,234,567!", "us gdp rose 3.5 percent to 1234567"),
        ("en", "At 5 p.m., the U.S.'s J.R.R. Tolkien fans paid 10 per cent.", "at 5 pm the us's jrr tolkien fans paid 10 percent"),
        ("en", "Don't stop: R&D, well-known since 1,00 and 12,345,67.", "don't stop r and d well known since 1 00 and 12 345 67"),
        ("English", "It's the boys' e.g.", "it's the boys eg"),
        ("zh", "二〇二四年，ＧＤＰ增长 5.2％；共1,234个。", "二零二四年 gdp增长 百分之5.2 共1234个"),
        ("zh", "“你好”——他说：10，200！", "你好 他说 10 200"),
        ("mixed", "我用iPhone-15打电话，OK？", "我用iphone 15打电话 ok"),
        ("ja", "「ｺｰﾋｰ」は２杯・３５０円です。", "コーヒー は2杯 350円です"),
        ("ko", "안녕하세요! 2024년 3-4월, 50%…", "안녕하세요 2024년 3 4월 50"),
        ("de", "Die Größe: 1.234,5 km – „Straßenbahn-Fahrer“", "die grösse 1.234 5 km strassenbahn fahrer"),
        ("fr", "L’été, c’est-à-dire « déjà » 25 °C ?", "l'été c'est à dire déjà 25 c"),
        ("es", "¿Qué pasó? ¡El niño tiene 3 años!", "qué pasó el niño tiene 3 años"),
        ("pl", "Zażółć gęślą jaźń – 12-letni!", "zażółć gęślą jaźń 12 letni"),
        ("it", "L’università costò 20 euro; un po’ più.", "l'università costò 20 euro un po più"),
        ("ro", "Aceşti ţărani şi-au vândut 3 oi.", "acești țărani și au vândut 3 oi"),
        ("hu", "Árvíztűrő tükörfúrógép, 5-ös!", "árvíztűrő tükörfúrógép 5 ös"),
        ("cs", "Příliš žluťoučký kůň: 3,5 km.", "příliš žluťoučký kůň 3 5 km"),
        ("nl", "’s Ochtends kocht ĳsbeer 2 foto’s.", "s ochtends kocht ijsbeer 2 foto's"),
        ("fi", "EU:n päätös – 10 vuotta, hyvä!", "eu n päätös 10 vuotta hyvä"),
        ("hr", "Čovjek, ǆep i žđrijelo: 7-ero.", "čovjek džep i žđrijelo 7 ero"),
        ("sk", "Kôň, ľúbosť a vŕba – 8 dní.", "kôň ľúbosť a vŕba 8 dní"),
        ("sl", "Žival čez šest-deset (60) let.", "žival čez šest deset 60 let"),
        ("et", "Õhtuöö äär: 4-aastane.", "õhtuöö äär 4 aastane"),
        ("lt", "Ąžuolas, „ėglė“ ir šių 9 ūkių.", "ąžuolas ėglė ir šių 9 ūkių"),
    ],
)
def test_basic_in_each_language_of_ark_asr(language: str, text: str, expected: str) -> None:
    assert normalize(text, language=language) == unicodedata.normalize("NFC", expected)
    assert normalize(expected, language=language) == unicodedata.normalize("NFC", expected)
    assert normalize(unicodedata.normalize("NFD", text), language=language) == normalize(text, language=language)


def test_the_table_above_has_every_language() -> None:
    table = next(mark for mark in test_basic_in_each_language_of_ark_asr.pytestmark if mark.name == "parametrize")
    assert {row[0] for row in table.args[1]} >= set(ARK_LANGUAGES)


@pytest.mark.parametrize("language", [None, "en", "zh", "ro"])
@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text("aAs.,'%&10〇％ş ½-（"),
        st.lists(st.sampled_from(["per", "cent", "U.S", "1,000", ".", "'", " ", "%"])).map("".join),
    )
)
def test_basic_is_idempotent_and_leaves_only_words(language: str | None, text: str) -> None:
    once = normalize(text, language=language)
    assert normalize(once, language=language) == once
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


def test_wetext_reads_numbers_out_in_the_languages_it_has() -> None:
    pytest.importorskip("wetext", reason="wetext is not installed")
    assert normalize("我有123个苹果，3.5%。", normalizer="wetext", language="zh") == "我有一百二十三个苹果 百分之三点五"
    assert normalize("I have 123 apples.", normalizer="wetext", language="en-US") == "i have one hundred and twenty three apples"
    assert normalize("", normalizer="wetext", language="zh") == ""
    with pytest.raises(InputError, match=r"a row has language 'German'.*--language"):
        normalize("drei", normalizer="wetext", language="German")
    with pytest.raises(InputError, match="a row has no language"):
        normalize("三", normalizer="wetext")


@pytest.mark.parametrize(("name", "module", "package"), [("whisper", "whisper_normalizer.basic", "whisper-normalizer"), ("wetext",) * 3])
def test_missing_package_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str) -> None:
    monkeypatch.setattr("arkfast.metrics.normalizers._plain", _plain.__wrapped__)  # no cached normaliser answers
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install -e '\.\[eval\]'"):
        get_normalizer(name)


def test_every_normaliser_has_a_name_a_version_and_a_hash_of_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = get_normalizer("basic").identity()
    assert (identity["name"], len(identity["sha256"])) == ("basic", 64)
    assert identity["version"]
    assert get_normalizer("none").identity()["sha256"] != identity["sha256"]
    monkeypatch.setattr(unicodedata, "unidata_version", "99.0")
    assert basic.sha256.__wrapped__() != identity["sha256"], "other Unicode tables are other rules"


@pytest.mark.parametrize(
    ("name", "options", "flag"), [("external", {}, "--text_normalize_python"), ("leaderboard", {}, "--leaderboard_path")]
)
def test_a_missing_option_is_named(name: str, options: dict[str, str], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        get_normalizer(name, **options)


def test_unknown_normalizer_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown normalizer 'wisper'.*basic"):
        normalize("x", normalizer="wisper")
