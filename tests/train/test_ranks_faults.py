"""Several processes of which one meets a fault, or that were given settings that make no sense: all end, and one of them says why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from rank_runs import fields, make_world

from arkfast.records import InputError
from arkfast.train.config import TrainConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


RANK_WITH_A_CHECKPOINT_OF_ITS_OWN = """
import sys
from pathlib import Path
from arkfast.cli import main
root, rank = Path(sys.argv[1]), sys.argv[2]
flags = {"stage": "sft", "student_model": root / f"rank{rank}", "train_data": root / "train.jsonl", "output_dir": root / "run",
         "max_steps": 1, "device": "cpu", "dataloader_num_workers": 0, "distributed_timeout": 60}
sys.exit(main(["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]))
"""


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_whose_checkpoint_does_not_load_ends_all_before_a_collective(world, tmp_path, broken):
    """Both ranks load on their own; the one that has loaded must not wait in a collective of the sharded model for the one that failed."""
    for rank in range(2):
        shutil.copytree(world / "student", tmp_path / f"rank{rank}")
    weights = tmp_path / f"rank{broken}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for path in (*world.glob("*.wav"), world / "train.jsonl"):
        shutil.copy(path, tmp_path)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_WITH_A_CHECKPOINT_OF_ITS_OWN, str(tmp_path), str(rank)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=180)[0] for rank in ranks]
    where = "" if broken == 0 else " (seen by rank 1 of 2)"
    assert "Traceback" not in "".join(said)
    assert f"{weights}: not a complete safetensors file" in said[0]
    assert said[0].strip().endswith(f"copy the checkpoint again{where}")
    assert "safetensors" not in said[1], "one rank speaks for all"
    assert ranks[1].returncode == 2


def test_settings_of_several_processes_that_make_no_sense_are_named(world, tmp_path, monkeypatch):
    from arkfast.train.models import is_sharded
    from arkfast.train.parallel import Parallel

    class Eight(Parallel):
        def open(self):
            pass

    place = {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    eight = Eight("cpu", environment=place)
    assert (eight.rank, eight.is_first, eight.backend) == (3, False, "gloo")
    with pytest.raises(InputError, match="--sharding none: there are 8 processes"):
        is_sharded(TrainConfig(**fields(world, tmp_path, sharding="none")), eight)
    with pytest.raises(InputError, match="--shard_group_size 3: 8 processes are no multiple of it"):
        eight.groups(3)
    assert eight.groups(4) == (2, 4)
    assert eight.groups() == (1, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("full", "limit"), [(0, 1000), (0, 60_000), (1, 60_000)])
def test_a_disk_that_is_full_on_one_rank_is_one_sentence(world, tmp_path, full, limit):
    """With 1,000 bytes the run's description does not fit, with 60,000 a checkpoint's tensors do not."""
    out = tmp_path / "run"
    options = fields(world, out, max_steps=12, save_freq=6, gates="off", log_freq=1)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    command = [sys.executable, Path(__file__).with_name("full_rank.py")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(full), str(limit), *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2], said
    (sentence,) = (line for line in "".join(said).splitlines() if "error" in line.lower())
    assert sentence.startswith("arkfast train: error: ")
    assert "File too large" in sentence
    assert "Traceback" not in "".join(said)
    assert not any((out / "checkpoints").glob("*")), "nothing of the save is left"
