"""Straight from tar shards: the same transcripts and the same training as from the files."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from arkfast.infer.command import main as transcribe
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

CLIPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(JSONL manifest, shard) of the same clips."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for i in range(CLIPS):
            write_wav(folder / f"{i}.wav", synthetic_speech(0.5 + 0.2 * i, seed=i))
            row = {"id": f"clip{i}", "text": "one two", "language": "en"}
            rows.append({"audio": f"{i}.wav", **row})
            archive.add(folder / f"{i}.wav", arcname=f"{i}.wav")
            text = json.dumps(row).encode()
            info = tarfile.TarInfo(f"{i}.json")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    (folder / "files.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "files.jsonl", folder / "shard.tar"


def test_transcripts_from_a_shard_equal_those_of_the_files(data, model, tmp_path):
    outputs = []
    for i, path in enumerate(data):
        output = tmp_path / f"{i}.jsonl"
        flags = ["--model_path", str(model), "--device", "cpu", "--max_new_tokens", "16"]
        assert transcribe(["--input", str(path), "--output", str(output), *flags]) == 0
        outputs.append([json.loads(line) for line in output.read_text().splitlines()])
    files, shard = outputs
    assert [row["audio"] for row in shard] == [row["audio"] for row in shard if row["audio"].startswith(f"{data[1]}::")]
    assert [{**row, "audio": ""} for row in shard] == [{**row, "audio": ""} for row in files]
    assert len({row["pred_text_raw"] for row in shard}) > 1


def test_training_reads_shards(data, model, tmp_path):
    from arkfast.train.command import main as train

    losses = []
    for path in data:
        folder = tmp_path / path.stem
        flags = {
            "stage": "sft", "student_model": model, "train_data": path, "output_dir": folder, "max_steps": 2, "device": "cpu",
            "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "learning_rate": 1e-3,
        }  # fmt: skip
        assert train([word for name, value in flags.items() for word in (f"--{name}", str(value))]) == 0
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in log if "loss" in row])
    assert len(losses[0]) >= 2
    assert losses[0] == losses[1]
