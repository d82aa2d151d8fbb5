"""Training hears the channel that a row or ``--channel`` names, and a run that hears another one is another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from arkfast.audio import LogMel
from arkfast.data.collate import read_clip
from arkfast.records import InputError
from arkfast.testing import synthetic_speech
from arkfast.train.checkpoints.identity import contents_of_rows
from arkfast.train.config import TrainConfig
from arkfast.train.feed import DOUBTS_NAMED, Feed, read_rows
from arkfast.train.parallel import Parallel

LEFT, RIGHT = synthetic_speech(1.0, seed=1), synthetic_speech(1.0, seed=2)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "call.wav", np.stack([LEFT, RIGHT], axis=1), 16000, subtype="FLOAT")
    rows = [{"audio": "call.wav", "text": "one"}, {"audio": "call.wav", "text": "two", "channel": 0}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "train.jsonl"


def config(manifest: Path, **flags: Any) -> TrainConfig:
    return TrainConfig(
        stage="sft", student_model=Path("student"), train_data=manifest, eval_data=manifest, output_dir=Path("run"), device="cpu", **flags
    )


def test_a_flag_holds_for_rows_that_do_not_say(manifest: Path) -> None:
    rows = read_rows(config(manifest, channel="1"), Parallel("cpu"))
    for read in (rows.train, sorted(rows.dev, key=lambda row: row.where)):
        first, second = (read_clip(row).samples for row in read)
        np.testing.assert_array_equal(first, RIGHT)
        np.testing.assert_array_equal(second, LEFT)


def test_another_channel_is_another_run(manifest: Path) -> None:
    plain, chosen = (read_rows(config(manifest, channel=channel), Parallel("cpu")) for channel in (None, "1"))
    before, after = (contents_of_rows(rows.train, rows.seconds) for rows in (plain, chosen))
    assert {name for name in before if before[name] != after[name]} == {"audio paths"}


def test_doubtful_recordings_are_named_once_and_the_first_few_only(tmp_path: Path) -> None:
    rows = []
    for i in range(DOUBTS_NAMED + 5):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(16000) if i else LEFT, 16000)
        rows.append({"audio": f"{i}.wav", "text": "x"})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(path, total_epochs=2, shuffle_train=False, dataloader_num_workers=0)
    parallel, said = Parallel("cpu"), list[str]()

    feed = Feed(read_rows(settings, parallel), settings, parallel, LogMel(), None, lambda items: items, lambda *_: None, said.append)
    heard = sum(len(items) for _, batches in feed.windows(0) for items in batches)
    assert heard == 2 * len(rows)
    assert said[:2] == [f"{path}:2: digital silence: every sample is 0", f"{path}:3: digital silence: every sample is 0"]
    assert len(said) == DOUBTS_NAMED + 1
    assert "arkfast manifest check --decode true lists all of them" in said[-1]


def test_a_channel_that_is_none(manifest: Path) -> None:
    with pytest.raises(InputError, match="--channel: expected a channel's number from 0"):
        config(manifest, channel="left")
    with pytest.raises(InputError, match=r"call\.wav: there is no channel 7: the recording has 2 channels"):
        read_rows(config(manifest, channel="7"), Parallel("cpu"))
