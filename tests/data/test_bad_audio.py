"""The limit of bad audio is one rule, whoever counts: the pipeline its own clips, the recorder those of all ranks."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arkfast.data import BadAudioPolicy, FeatureItem
from arkfast.data.bad_audio import VERDICT_ROWS, BadAudioLimit
from arkfast.records import InputError, Utterance
from arkfast.testing import tiny_model
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phases import Phases
from arkfast.train.logging.recorder import Recorder


def by_pipeline(rule: str, rows: int, bad: list[bool]) -> int | None:
    """The row at which a policy gives up."""
    policy = BadAudioPolicy(rule, rows=rows)
    for i, is_bad in enumerate(bad):
        try:
            policy.judge(FeatureItem(Utterance(id=str(i), audio="a.wav"), InputError("broken") if is_bad else np.zeros((1, 1))))
        except InputError:
            return i
    return None


def by_recorder(rule: str, rows: int, bad: list[bool], model: Any) -> int | None:
    """The row at which a run of one rank gives up that judges after every row."""
    config = TrainConfig(stage="sft", student_model="s", train_data="t", output_dir="o", on_bad_audio=rule)
    alone: Any = SimpleNamespace(world=1, rank=0, device=torch.device("cpu"), gather=lambda own: [own])
    recorder = Recorder(config, alone, rows=rows, student=model, teacher=None, phases=Phases(alone.device))
    for i, is_bad in enumerate(bad):
        try:
            recorder.bad_rows += len(recorder.judge(["broken"] if is_bad else [], i + 1))
        except InputError:
            return i
    return None


def test_both_give_up_at_the_same_row():
    drawn, model, verdicts = random.Random(0), tiny_model(), []
    for _ in range(300):
        rows, ratio = drawn.randint(1, 30), drawn.choice([0, 0.05, 0.1, 0.3, 1])
        bad = [drawn.random() < drawn.choice([0.02, 0.1, 0.4]) for _ in range(drawn.randint(1, 90))]
        verdicts.append(by_pipeline(f"skip:{ratio}", rows, bad))
        assert by_recorder(f"skip:{ratio}", rows, bad, model) == verdicts[-1]
    assert 50 < sum(verdict is None for verdict in verdicts) < 250, "both outcomes are among them"


@pytest.mark.parametrize("answer", [False, True])
def test_both_ask_the_one_rule(monkeypatch, answer):
    monkeypatch.setattr(BadAudioLimit, "passed", lambda *_: answer)
    bad = [False, False, True, False]
    expected = 2 if answer else None
    assert by_pipeline("skip:0", 4, bad) == expected
    assert by_recorder("skip:0", 4, bad, tiny_model()) == expected


def test_where_the_limit_lies():
    limit = BadAudioLimit("skip:0.1", rows=20)
    assert [limit.passed(bad, seen=1) for bad in (1, 2, 3)] == [False, False, True], "an epoch that has begun counts whole"
    assert [limit.passed(bad, seen=20) for bad in (2, 3)] == [False, True]
    assert [limit.passed(bad, seen=21) for bad in (4, 5)] == [False, True], "the second has begun"
    stream = BadAudioLimit("skip:0.1")
    assert [stream.passed(bad, seen=5) for bad in (VERDICT_ROWS // 10, VERDICT_ROWS // 10 + 1)] == [False, True]
    assert [stream.passed(bad, seen=2000) for bad in (200, 201)] == [False, True]
    none = BadAudioLimit("fail", rows=20)
    assert not none.skips
    assert [none.passed(bad, seen=20) for bad in (0, 1)] == [False, True]
    assert not BadAudioLimit("skip:1", rows=20).passed(20, seen=20)
