"""Scores over rows: what is scored, what is not, and that neither can pass for the other."""

import json
import math
from typing import Any

import pytest

from arkfast.evaluate import evaluate_rows, score_rows
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


def test_a_failed_row_is_coverage_not_errors() -> None:
    rows = [ok("a b c d", "a b c d") for _ in range(399)] + [failed("a b c d")]
    scores = evaluate_rows(rows)
    assert scores.wer == 0.0
    assert (scores.utterances, scores.scored, scores.failed) == (400, 399, 1)
    assert scores.coverage == 399 / 400
    assert scores.rate_with_failures == 4 / 1600
    assert "399 of 400" in scores.table()
    assert "1 row; WER counting them as deletions 0.25 %" in scores.table()


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a b", "pred_text": None},
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
    assert (scores.empty_references, scores.insertions_on_empty) == (2, 3)
    assert "2 rows; 3 words inserted there" in scores.table()
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
    assert evaluate_rows([ok("a", "a", finish_reason="length"), ok("a", "a")]).truncated == 1


def test_interval_surrounds_the_rate_and_the_dict_is_json() -> None:
    scores = evaluate_rows([ok("a b c d", "a b c d"), ok("a b c d", "a x c d"), ok("a b c d", "a")] * 20)
    summary = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert 0 < summary["wer_low"] < summary["wer"] == 20 * 4 / 240 < summary["wer_high"]
    assert (summary["substitutions"], summary["deletions"], summary["insertions"]) == (20, 60, 0)
    assert summary["coverage"] == 1.0
    assert json.dumps(evaluate_rows([]).to_dict(), allow_nan=False)


def test_scored_rows_keep_order_and_fields() -> None:
    rows = [ok("Well-known.", "well known", id="x", speaker=7), failed("Two words"), ok("a b", "b")]
    scores, out = score_rows(rows)
    assert [row["ref_text"] for row in out] == ["Well-known.", "Two words", "a b"]
    assert out[0] == rows[0] | {
        "ref_text": "Well-known.",
        "ref_text_clean": "well known",
        "pred_text_clean": "well known",
        "wer_errors": 0,
        "cer_errors": 0,
        "ref_words": 2,
        "ref_chars": 9,
    }
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
