"""Lets the tests of distillation share ``distill_batches`` and ``qwen3_asr_world``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from qwen3_asr_world import World


@pytest.fixture(scope="session")
def qwen3_asr_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The Qwen3-ASR teacher and its student. No test changes their weights."""
    from qwen3_asr_world import World

    return World(tmp_path_factory.mktemp("qwen3_asr"))
