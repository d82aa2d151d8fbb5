"""Scores over rows: what is scored, what is not, and that neither can pass for the other."""

import json
import math
from typing import Any

import pytest

from arkfast.evaluate import Fields, evaluate_rows, score_rows
from arkfast.evaluate.text_table import text_table
from arkfast.metrics import Normalizer
from arkfast.records import InputError


def ok(text: str | None, pred: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "pred_text": pred, "status": "ok", "finish_reason": "stop"} | more


def failed(text: str | None) -> dict[str, Any]:
    return {"text": text, "pred_text": None, "status": "error", "error": "m.jsonl:1: gone"}


def test_both_rates_and_the_unit() -> None:
    rows = [ok("Hello, world.", "hello word"), ok("one two", "one two three")]
    scores = evaluate_rows(rows)
    assert scores.wer == 2 / 4
    assert scores.cer == (1 + 5) / (10 + 6)
    assert scores.rate == scores.wer
    by_char = evaluate_rows(rows, unit="char")
    assert by_char.rate == by_char.cer == scores.cer
    assert by_char.wer == scores.wer
    assert evaluate_rows(rows, normalizer="none").wer == 3 / 4


@pytest.mark.parametrize("language", ["cn", "jp", "中文", "Simplified Chinese", "zn", "日本語", "wu", "minnan", "klingon", "ch", None])
def test_no_name_of_a_language_makes_one_word_of_a_chinese_sentence(language: str | None) -> None:
    scores = evaluate_rows([ok("今天天气怎么样啊", "今天天气怎么样呀", language=language)])
    assert (scores.name, scores.rate) == ("CER", 1 / 8)
    assert scores.wer == 1 / 8
    known = language not in ("klingon", "ch", None)
    assert ("script of the references" in scores.unit_rule) != known
    assert "language klingon is not known" in text_table(evaluate_rows([ok("a b", "a b", language="Klingon")]))


def test_names_of_one_language_are_one_group() -> None:
    names = ("zh", "cn", "中文", "Mandarin", "zh-Hans-CN")
    scores = evaluate_rows([ok("你好", "你好", language=name) for name in names])
    assert [(group.language, group.utterances) for group in scores.groups] == [("zh", len(names))]


def test_a_failed_row_is_coverage_not_errors() -> None:
    rows = [ok("a b c d", "a b c d") for _ in range(399)] + [failed("a b c d")]
    scores = evaluate_rows(rows)
    assert scores.wer == 0.0
    assert (scores.utterances, scores.scored, scores.failed) == (400, 399, 1)
    assert scores.coverage == 399 / 400
    assert scores.rate_with_failures == 4 / 1600
    assert "399 of 400" in text_table(scores)
    assert "1 row; WER counting them as deletions 0.25 %" in text_table(scores)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a b", "pred_text": None},
        {"text": "a b", "pred_text": "", "error": "CUDA out of memory"},  # as open-audio-opd writes a failed batch
        {"text": "a b"},
        {"text": "a b", "pred_text": "a b", "status": "error"},  # a stale transcript beside an error
    ],
)
def test_every_way_to_have_no_transcript(row: dict[str, Any]) -> None:
    scores = evaluate_rows([row, ok("c", "c")])
    assert (scores.failed, scores.scored, scores.wer) == (1, 1, 0.0)
    assert scores.rate_with_failures == 2 / 3


def test_an_empty_transcript_of_the_model_is_deletions() -> None:
    scores = evaluate_rows([ok("a b", "")])
    assert (scores.failed, scores.wer) == (0, 1.0)
    assert scores.counts.deletions.tolist() == [2]


def test_words_on_silence_are_counted_and_shown() -> None:
    scores = evaluate_rows([ok("", "thank you"), ok("...", "bye"), ok("a b c d", "a b c d")])
    assert scores.wer == 3 / 4
    assert (scores.empty_references, scores.hallucinated, scores.insertions_on_empty) == (2, 2, 3)
    assert "2 rows; 3 words inserted in 2" in text_table(scores)
    assert evaluate_rows([ok("", ""), ok("", "x"), ok("a", "a")]).hallucinated == 1
    alone = evaluate_rows([ok("", "thank you")])
    assert math.isnan(alone.wer)
    assert alone.to_dict()["wer"] is None
    assert alone.to_dict()["insertions_on_empty_references"] == 2


def test_rows_without_reference_lower_the_coverage() -> None:
    scores = evaluate_rows([ok(None, "x"), {"pred_text": "y"}, ok("a", "a"), failed(None)])
    assert (scores.without_reference, scores.failed, scores.scored) == (2, 1, 1)
    assert scores.coverage == 1 / 4
    assert scores.rate_with_failures == 0.0


def test_truncated_transcripts_are_counted() -> None:
    rows = [ok("a", "a", finish_reason=reason) for reason in ("length", "stop", "repetition", None)] + [ok("a", "a")]
    scores = evaluate_rows(rows)
    assert scores.truncated == 2
    assert "cut short   2 transcripts" in text_table(scores)


def test_interval_surrounds_the_rate_and_the_dict_is_json() -> None:
    scores = evaluate_rows([ok("a b c d", "a b c d"), ok("a b c d", "a x c d"), ok("a b c d", "a")] * 20)
    summary = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert 0 < summary["rate_low"] < summary["rate"] == summary["wer"] == 20 * 4 / 240 < summary["rate_high"]
    assert summary["counts"] == [[0, 4, 20], [1, 4, 20], [3, 4, 20]]
    assert (summary["substitutions"], summary["deletions"], summary["insertions"]) == (20, 60, 0)
    assert summary["coverage"] == 1.0
    assert json.dumps(evaluate_rows([]).to_dict(), allow_nan=False)


def test_scored_rows_keep_order_and_fields() -> None:
    rows = [ok("Well-known.", "well known", id="x", speaker=7), failed("Two words"), ok("a b", "b")]
    scores, out = score_rows(rows)
    assert [row["ref_text"] for row in out] == ["Well-known.", "Two words", "a b"]
    assert out[0] == rows[0] | {
        "preset": None,
        "language": None,
        "outcome": "scored",
        "ref_text": "Well-known.",
        "ref_text_clean": "well known",
        "pred_text_clean": "well known",
        "wer_errors": 0,
        "cer_errors": 0,
        "ref_words": 2,
        "ref_chars": 9,
        "mer_errors": 0,
        "ref_mixed": 2,
        "unit": "word",
        "errors": 0,
        "ref_units": 2,
        "substitutions": 0,
        "deletions": 0,
        "insertions": 0,
        "hits": 2,
    }
    assert (out[1]["outcome"], out[1]["errors"], out[1]["hits"], out[1]["ref_units"]) == ("failed", None, None, 2)
    assert (out[1]["wer_errors"], out[1]["pred_text_clean"], out[1]["ref_words"]) == (None, None, 2)
    assert (out[2]["wer_errors"], out[2]["cer_errors"]) == (1, 1)
    assert sum(row["wer_errors"] or 0 for row in out) == scores.words.errors.sum()
    assert "ref_text" not in rows[0]


def test_the_rows_language_reaches_the_normaliser() -> None:
    pytest.importorskip("whisper_normalizer", reason="whisper-normalizer is not installed")
    assert evaluate_rows([ok("你好", "你号", language="zh")], normalizer="whisper").wer == 1 / 2
    assert evaluate_rows([ok("colour", "color", language="en")], normalizer="whisper").wer == 0.0


def test_bad_arguments_are_named_even_without_rows() -> None:
    with pytest.raises(InputError, match="unknown normalizer"):
        evaluate_rows([], normalizer="best")
    with pytest.raises(InputError, match="unknown unit"):
        evaluate_rows([], unit="phone")
    with pytest.raises(InputError, match="row clip-3: field 'text' must be text, got int"):
        evaluate_rows([{"id": "clip-3", "text": 3, "pred_text": "x"}])
    with pytest.raises(InputError, match="row 2: field 'pred_text' must be text, got int"):
        evaluate_rows([ok("a", "a"), {"text": "3", "pred_text": 3}])
    with pytest.raises(InputError, match="row 1: field 'language' must be text, got list"):
        evaluate_rows([ok("a", "a", language=["en"])])
    with pytest.raises(InputError, match="row 2: field 'speaker', by which --group_by resamples"):
        evaluate_rows([ok("a", "a", speaker="s"), ok("a", "a")], group_by="speaker")


# (language, reference, transcript, unit, errors, reference units), each counted by hand
BY_HAND = [
    ("en", "The U.S. well-known 3.5% rise, isn't it?", "the US well known 3.5 percent rose isn't", "word", 2, 9),  # rose; it
    ("zh", "今天是２０２４年，天气好。", "今天是2024天汽好", "char", 2, 11),  # 年 missing; 汽 for 气
    ("zh", "你好 世界", "你好世界", "char", 0, 4),
    ("zh-en", "我用 iPhone-15 打电话", "我用 iPhone 14 打话", "mixed", 2, 7),  # 14 for 15; 电 missing
    ("ja", "コーヒーを２杯、飲む。", "コーヒを2杯飲む", "char", 1, 9),  # the second ー
    ("yue", "我哋去食飯", "我地去食飯", "char", 1, 5),
    ("th", "สวัสดี", "สวัสด", "char", 1, 6),
    ("ko", "나는 3시에 밥을-먹었다.", "나는 3시에 밥을 먹었어", "word", 1, 4),
    ("de", "Straßen-Bahn: 1.000 Größen", "strassen Bahn 1.000 Größe", "word", 1, 4),
    ("fr", "L’été, 25 vingt-cinq", "l'été 25 vingt cinq", "word", 0, 4),
    ("es", "¿Qué pasó, niño?", "que pasó niño", "word", 1, 3),  # an accent is a letter's
    ("pl", "12-letnia łódź", "12 letnia lódź", "word", 1, 3),
    ("it", "Un po’ di università", "un po di universita", "word", 1, 4),
    ("ro", "Aceşti 3 ţărani", "acești trei țărani", "word", 1, 3),  # the cedilla is the comma; 3 is not rewritten
    ("hu", "Tükör-fúró 5", "tükör furó 5", "word", 1, 3),
    ("cs", "Příliš žluťoučký kůň", "příliš žluťoučký kun", "word", 1, 3),
    ("nl", "’s Ochtends 2 foto’s", "s ochtends 2 foto's", "word", 0, 4),
    ("fi", "EU:n päätös", "EU n paatos", "word", 1, 3),
    ("hr", "Čovjek i 7 džepova", "čovjek i džepova", "word", 1, 4),
    ("sk", "Kôň má 8 dní", "kôň má 8 8 dni", "word", 2, 4),
    ("sl", "Žival čez šest-deset", "žival čez šestdeset", "word", 2, 4),  # one replaced, one missing
    ("et", "Õhtuöö on 4-aastane", "õhtuöö on 4 aastane", "word", 0, 4),
    ("lt", "Ąžuolas ir 9 ūkiai", "ąžuolas ir devyni ukiai", "word", 2, 4),
]


@pytest.mark.parametrize(("language", "reference", "transcript", "unit", "errors", "units"), BY_HAND)
def test_examples_counted_by_hand(language: str, reference: str, transcript: str, unit: str, errors: int, units: int) -> None:
    scores, (row,) = score_rows([ok(reference, transcript, language=language)])
    assert (row["unit"], row["errors"], row["ref_units"]) == (unit, errors, units)
    assert scores.unit == unit
    assert scores.rate == errors / units
    empty, (nothing,) = score_rows([ok("", transcript, language=language)])
    assert empty.insertions_on_empty == nothing["errors"] == row["hits"] + row["substitutions"] + row["insertions"]
    assert score_rows([ok(reference, "", language=language)])[1][0]["deletions"] == units


def test_korean_has_both_rates() -> None:
    scores = evaluate_rows([ok("나는 밥을 먹었다", "나는 밥을 먹었어", language="Korean")])
    assert scores.name == "WER"
    assert (scores.wer, scores.cer) == (1 / 3, 1 / 7)


def test_latin_words_in_chinese_count_as_words_in_mer_and_as_letters_in_cer() -> None:
    scores, (row,) = score_rows([ok("我用 iphone", "我用 iphon", language="zh")])
    assert (scores.mer, scores.cer) == (1 / 3, 1 / 8)
    assert (row["wer_errors"], row["ref_words"]) == (1, 3), "where words have no spaces between them, words are mixed units"


def test_each_language_is_a_group_and_counts_in_its_own_unit() -> None:
    rows = [
        ok("你好", "你号", language="zh-CN"),
        ok("hello world", "hello word", language="English"),
        ok("你好", "你好", language="Mandarin"),
        failed("hello") | {"language": "en"},
    ]
    scores = evaluate_rows(rows)
    assert [(g.language, g.unit, g.unit_rule, g.rate, g.utterances) for g in scores.groups] == [
        ("zh", "char", "language zh", 1 / 4, 2),
        ("en", "word", "language en", 1 / 2, 2),
    ]
    assert (scores.unit, scores.name, scores.rate) == ("joint", "J/WER", 2 / 6)
    assert scores.rate_with_failures == 3 / 7
    table = text_table(scores)
    assert "zh" in table
    assert "CER 25.00 %" in table
    assert "1 of 2 rows, unit word (language en)" in table


def test_without_a_language_the_script_decides_for_the_whole_set_and_the_rule_is_said() -> None:
    chinese, english = evaluate_rows([ok("你好", "你号"), ok("2024", "2024")]), evaluate_rows([ok("hello you", "你好")])
    assert (chinese.unit, chinese.rate) == ("char", 1 / 6)
    assert (english.unit, english.rate) == ("word", 1.0), "the transcript's script does not matter"
    assert chinese.unit_rule == english.unit_rule == "no language given: script of the references"
    both = evaluate_rows([ok("你好 ok", "你好 ok"), ok("hello you", "hello")])
    assert (both.unit, both.rate) == ("mixed", 1 / 5)
    assert evaluate_rows([ok("你好 ok", "你好")], unit="word").unit_rule == "--unit"
    told = evaluate_rows([ok("你好 ok", "你好 okay")], language="zh")
    assert (told.unit, told.unit_rule) == ("char", "language zh")


def test_presets_are_groups_too() -> None:
    rows = [ok("a", "a", preset="clean"), ok("a b", "a", preset="other"), ok("c", "c")]
    scores, out = score_rows(rows, fields=Fields(preset="rest", language="en"))
    assert [(g.preset, g.language, g.rate) for g in scores.groups] == [("clean", "en", 0.0), ("other", "en", 0.5), ("rest", "en", 0.0)]
    assert [(row["preset"], row["language"]) for row in out] == [("clean", "en"), ("other", "en"), ("rest", "en")]


def test_resampling_by_speaker_widens_the_interval() -> None:
    rows = [ok("a", "a" if i % 2 else "b", speaker=i % 10) for i in range(200)]
    by_utterance, by_speaker = evaluate_rows(rows), evaluate_rows(rows, group_by="speaker")
    assert by_utterance.rate == by_speaker.rate == 0.5
    width = by_utterance.interval[1] - by_utterance.interval[0]
    assert by_speaker.interval == pytest.approx((0.2, 0.8))
    assert width < 0.2
    assert by_speaker.to_dict()["counts"] == [[0, 20, 5], [20, 20, 5]]
    assert "10 groups of utterances" in text_table(by_speaker)


def test_a_normaliser_that_loses_a_text_is_an_error() -> None:
    lossy = Normalizer(name="lossy", version="1", sha256="", apply=lambda texts, languages: list(texts)[1:])
    with pytest.raises(InputError, match="normalizer 'lossy' gave 1 texts for 2"):
        evaluate_rows([ok("a", "a"), ok("b", "b")], normalizer=lossy)


def test_scored_rows_give_the_same_scores_again() -> None:
    rows = [ok("你好", "你号", language="zh"), ok("a b", "a", language="en"), failed("x")]
    scores, out = score_rows(rows, fields=Fields(preset="p"))
    again, twice = score_rows(out)
    assert again.to_dict() == scores.to_dict()
    assert twice == out
    del out[0]["text"]  # open-audio-opd's readers know ref_text
    assert score_rows(out)[0].rate == scores.rate
