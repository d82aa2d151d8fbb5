"""The benchmark modules by their own names: they are scripts beside each other, not a package."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

GROUPS = (
    *("row_topk", "linear_topk", "loss_block", "union_kl", "embed_merge", "sparse_grad", "log_softmax", "linear_kl"),
    *("rotary", "decode_step", "engine", "step"),
)


@pytest.fixture
def cpu(monkeypatch):
    """The CPU, also where there is a GPU: toy sizes are what these tests are about."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_group_is_left():
    """The published step opens a process group of one, which would stand in the way of later tests' own."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
