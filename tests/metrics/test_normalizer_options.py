"""Normaliser options: what each takes out, what it leaves alone, and that results say which were on."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkfast.metrics import get_normalizer, label, normalize
from arkfast.metrics.normalizers import OPTIONS
from arkfast.metrics.normalizers.options import FILLERS
from arkfast.records import InputError


def clean(text: str, *options: str, language: str | None = "en", words: tuple[str, ...] = (), name: str = "basic") -> str:
    return get_normalizer(name, options=options, filler_words=words).apply([text], [language])[0]


@pytest.mark.parametrize(
    ("option", "language", "text", "expected"),
    [
        ("tags", "en", "so [noise] I (laughter) said <unk> yes [[inner] outer]", "so i said yes"),
        ("tags", "zh", "你好（笑）【掌声】世界［噪音］", "你好 世界"),
        ("tags", "en", "2 < 3 and 5 > 4, a (b", "2 3 and 5 4 a b"),  # no brackets: signs, and one that is never closed
        ("fillers", "en", "Um, well, uh-huh, I er... think Uhm. The umbrella hummed", "well huh i think the umbrella hummed"),
        ("fillers", "en", "İuh e\u0301uh uh\u0301 uh", "i\u0307uh éuh uh́"),
        ("fillers", "zh", "嗯，我呃呃想去", "我 想去"),
        ("fillers", "ja", "えーと今日はあのー晴れ", "今日は 晴れ"),
        ("fillers", "de", "Ähm, ich äh gehe", "ich gehe"),
        ("fillers", "zh-en", "嗯 我 uh 想 check一下 好um", "我 想 check一下 好"),
        ("vowel_marks", "ar", "مُحَمَّـــدٌ أَكَلَ آيَة", "محمد أكل آية"),
        ("vowel_marks", "he", "שָׁלוֹם עֲלֵיכֶם", "שלום עליכם"),
        ("vowel_marks", "hi", "हिन्दी café", "हिन्दी café"),
        ("dotted_i", "tr", "İSTANBUL ISPARTA ılık iyi", "istanbul ısparta ılık iyi"),
        ("dotted_i", None, "İSTANBUL ISPARTA", "istanbul ısparta"),
        ("dotted_i", "en", "ISPARTA", "isparta"),
        ("prefix", "en", "language English<asr_text>Hello language", "hello language"),
        ("prefix", "en", "<|startoftranscript|><|en|><|transcribe|> Hello", "hello"),
        ("prefix", "en", "The language English is", "the language english is"),
        ("prefix", "zh", "language Chinese<asr_text>你好", "你好"),
    ],
)  # fmt: skip
def test_what_each_option_does(option: str, language: str | None, text: str, expected: str) -> None:
    assert clean(text, option, language=language) == unicodedata.normalize("NFC", expected)


def test_nothing_is_taken_out_that_was_not_asked_for() -> None:
    assert normalize("uh [noise] مُحَمَّـ <|en|>", language="en") == "uh noise مُحَمَّـ en"


def test_marks_that_make_another_letter_stay_in_either_form() -> None:
    for form in ("NFC", "NFD"):
        assert clean(unicodedata.normalize(form, "أَكَلَ آيَة"), "vowel_marks", language="ar") == unicodedata.normalize("NFC", "أكل آية")


def test_turkish_letters_are_right_without_an_option_where_the_language_is_known() -> None:
    assert normalize("İSTANBUL ISPARTA", language="tr") == normalize("istanbul ısparta", language="Türkçe") == "istanbul ısparta"
    assert normalize("İSTANBUL ISPARTA", language="az") == "istanbul ısparta"
    assert normalize("ISPARTA", language="en") == "isparta"


def test_options_go_together_and_with_every_normaliser() -> None:
    text = "language English<asr_text>[noise] Uh, hello <unk>"
    assert clean(text, *reversed(OPTIONS)) == clean(text, *OPTIONS) == "hello"
    assert clean(text, *OPTIONS, name="none").strip(" ,") == "hello"


def test_a_hyphen_makes_no_difference() -> None:
    for text in ("uh-huh, mm-hmm yes", "uh huh mm hmm yes", "Uh huh. Mm-hmm! Yes."):
        assert clean(text, "fillers") == "huh yes"


def test_own_filler_words_replace_the_lists_in_every_language() -> None:
    assert clean("Uh, na ja, so was", "fillers", language="de", words=("na ja", "so")) == "uh was"
    assert clean("mhm genau", "fillers", language="klingon", words=("mhm",)) == "genau"
    assert clean("我 那个 去", "fillers", language=None, words=("那个",)) == "我 去"


def test_faults_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown normalizer option 'tag': choose from prefix, tags"):
        get_normalizer(options=("tag",))
    with pytest.raises(InputError, match="--filler_words is of use with --normalizer_options fillers only"):
        get_normalizer(filler_words=("uh",))
    for language, said in ((None, "no language"), ("klingon", "language 'klingon'")):
        with pytest.raises(InputError, match=rf"'fillers' has words for .*and a row has {said}.*--filler_words"):
            clean("uh", "fillers", language=language)


def test_results_say_which_options_were_on() -> None:
    plain, tags, own = get_normalizer(), get_normalizer(options=("tags",)), get_normalizer(options=("fillers",), filler_words=("uh", "um"))
    assert plain.identity()["options"] == []
    assert tags.identity()["options"] == ["tags"]
    assert own.identity()["options"] == ["fillers: uh um"]
    assert len({n.sha256 for n in (plain, tags, own, get_normalizer(options=("fillers",)))}) == 4
    assert get_normalizer(options=("tags", "fillers")).identity() == get_normalizer(options=("fillers", "tags")).identity()
    assert label(tags.identity()) == tags.label() == f"basic {plain.version} ({tags.sha256[:12]}), options tags"
    assert label({"name": "basic", "version": "1", "sha256": "0" * 64}) == f"basic 1 ({'0' * 12})"  # of an earlier version


@given(st.text(alphabet="aI İ[](<>uh|嗯ـَé-'", max_size=30))
def test_options_are_their_own_normal_form_and_leave_nothing_of_theirs(text: str) -> None:
    once = clean(text, *OPTIONS, language="zh-en")
    assert clean(once, *OPTIONS, language="zh-en") == once
    assert not {"嗯", "uh", "\u0640", "\u064e"} & {*once.split(), *once}


def test_every_list_has_words() -> None:
    assert all(words.split() for words in FILLERS.values())
    assert {"en", "zh", "ja", "ko", "de", "fr", "es"} <= set(FILLERS)
