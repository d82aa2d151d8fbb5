"""What training measures on a dev set is what ``arkfast evaluate`` calls WER."""

from __future__ import annotations

import pytest

from arkfast.data.tasks import find_task
from arkfast.evaluate import evaluate_rows
from arkfast.records import Utterance

PAIRS = {
    "en": ("a well-known word", "a well known world"),
    "cn": ("今天天气怎么样啊", "今天天气怎么样呀"),
    "日本語": ("今日は晴れです。", "今日は雨です"),
    "ko": ("안녕 하세요", "안녕 하시요"),
    "klingon": ("你好吗", "你好嘛"),
    "zh-en": ("我用 iPhone 打", "我用 phone 打"),
    None: ("今天 是 monday", "今天 是 sunday"),
}


@pytest.mark.parametrize("language", PAIRS)
def test_dev_sets_are_counted_as_evaluate_counts_them(language: str | None) -> None:
    reference, heard = PAIRS[language]
    row = Utterance(id="x", audio=None, text=reference, language=language)
    errors = find_task("asr").errors([row], [heard])
    scores = evaluate_rows([{"text": reference, "pred_text": heard, "language": language}])
    assert (errors.errors, errors.units) == (int(scores.words.errors.sum()), int(scores.words.reference.sum()))
    assert 0 < errors.errors < errors.units


def test_a_dev_set_of_several_languages_adds_up() -> None:
    rows = [Utterance(id=str(i), audio=None, text=PAIRS[name][0], language=name) for i, name in enumerate(PAIRS)]
    task = find_task("asr")
    alone = [task.errors([row], [PAIRS[row.language][1]]) for row in rows]
    together = task.errors(rows, [PAIRS[row.language][1] for row in rows])
    assert (together.errors, together.units) == (sum(e.errors for e in alone), sum(e.units for e in alone))
