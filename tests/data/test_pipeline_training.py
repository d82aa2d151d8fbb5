"""Training on the pipeline: workers change nothing, rows passed over are listed, and a resumed run equals an uninterrupted one."""

import json
import os
from pathlib import Path

import pytest

from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

CLIPS = 9
BAD = {2, 6}  # a file that is no audio, and one that is not there


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint, a manifest of nine clips two of which are bad, and the same without them."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    rows = []
    for i in range(CLIPS):
        if i not in BAD:
            write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.1 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two three"[: 3 + i], "id": f"clip{i}"}) + "\n")
    (root / "2.wav").write_text("not audio")
    (root / "all.jsonl").write_text("".join(rows))
    (root / "good.jsonl").write_text("".join(row for i, row in enumerate(rows) if i not in BAD))
    return root


def config(world, out, **overrides):
    values = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "all.jsonl", "output_dir": out,
        "per_device_train_batch_size": 2, "max_steps": 12, "learning_rate": 1e-3, "dataloader_num_workers": 0, "seed": 3,
        "model_dtype": "float32", "num_threads": 1, "on_bad_audio": "skip:0.25",
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [(row["step"], row["loss"], row["epoch"], row.get("bad_audio")) for row in log(out)]


@pytest.mark.parametrize("budget", [{}, {"batch_seconds": 2.5, "per_device_train_batch_size": 4}], ids=["rows", "seconds"])
def test_workers_and_a_resume_change_nothing_and_bad_rows_are_listed(world, tmp_path, budget, capsys):
    Trainer(config(world, tmp_path / "whole", **budget)).run()
    Trainer(config(world, tmp_path / "processes", dataloader_num_workers=2, **budget)).run()
    assert losses(tmp_path / "processes") == losses(tmp_path / "whole")
    part = config(world, tmp_path / "part", save_freq=3, dataloader_num_workers=2, **budget)
    trainer = Trainer(part)
    step, calls = trainer._step, []

    def stop_after_eight(*args):
        if len(calls) == 8:
            raise KeyboardInterrupt
        calls.append(step(*args))

    trainer._step = stop_after_eight
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    Trainer(TrainConfig(**{**vars(part), "resume_from_checkpoint": "latest"})).run()
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    listed = [message for row in log(tmp_path / "whole") for message in row.get("bad_audio", [])]
    for i in BAD:
        assert any(f"all.jsonl:{i + 1}: " in message and f"{i}.wav: " in message for message in listed)
    assert "--on_bad_audio skip:0.25: passed over " in capsys.readouterr().err


def test_one_epoch_of_a_budget_ends_with_the_data(world, tmp_path):
    options = {"train_data": world / "good.jsonl", "max_steps": 0, "total_epochs": 2}
    Trainer(config(world, tmp_path / "run", batch_seconds=2.5, per_device_train_batch_size=4, **options)).run()
    rows = log(tmp_path / "run")
    assert rows[-1]["epoch"] == 2.0
    assert max(row["audio_seconds"] for row in rows) <= 2.5
    assert len(rows) < 14, "batches of more than one row"


def test_without_the_flag_a_bad_row_stops_the_run_and_too_many_do_with_it(world, tmp_path):
    with pytest.raises(InputError, match=r"all\.jsonl:3: .*2\.wav: "):
        Trainer(config(world, tmp_path / "a", on_bad_audio="fail"))
    with pytest.raises(InputError, match=r"over the limit of skip:0\.1; the last: .*\.wav: "):
        Trainer(config(world, tmp_path / "b", on_bad_audio="skip:0.1", shuffle_train=False)).run()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers through /proc")
def test_a_killed_worker_changes_no_number(world, tmp_path):
    Trainer(config(world, tmp_path / "whole", max_steps=6)).run()
    trainer = Trainer(config(world, tmp_path / "killed", max_steps=6, dataloader_num_workers=1))
    step, killed = trainer._step, []

    def kill_then_step(*args):
        for child in children() if len(killed) < 2 else []:  # a clip that is hit twice would be given up
            os.kill(child, 9)
            killed.append(child)
        step(*args)

    trainer._step = kill_then_step
    trainer.run()
    assert len(killed) == 2
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def children():
    """Feature workers of this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        if b"arkfast.data.worker" in command and int(status.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"on_bad_audio": "ignore"}, "on_bad_audio: expected fail or skip:<max ratio>"),
        ({"batch_seconds": 60.0, "per_device_train_batch_size": 1}, "--batch_seconds: .* which is 1; raise that too"),
        ({"batch_seconds": -1.0}, "--batch_seconds: must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config(Path("w"), Path("o"), **overrides)
