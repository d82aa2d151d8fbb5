"""The Qwen3-ASR teacher on a GPU, where it begins on a stream of its own; ``test_qwen3_asr`` proves on a CPU what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from qwen3_asr_world import LANGUAGES, World

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is seen")]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in float32 proper, as on the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("languages", [LANGUAGES, (None, "hr", "en", None)], ids=["told", "some detected"])
@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole clips"])
def test_scores_are_those_of_the_cpu(tmp_path: Path, languages: tuple[str | None, ...], whole: bool) -> None:
    """Several times, so that memory which a stream gave back is taken again while the other may still be at work."""
    world = World(tmp_path)
    here = world.teacher(full_attention=whole)
    there = world.teacher(full_attention=whole, device=torch.device("cuda"))
    batch, rollout = world.batch(here, languages=languages), world.rollout()
    want = here.score(batch, rollout)
    moved, produced = batch.to("cuda"), rollout.to("cuda")
    for _ in range(3):
        begun = there.begin(moved)
        torch.full((1 << 20,), float("nan"), device="cuda")  # what was let go too early is overwritten
        got = there.score(moved, produced, begun)
        del begun
        torch.testing.assert_close(got.scores.cpu(), want.scores, atol=1e-3, rtol=0)
        torch.testing.assert_close(got.student_scores.cpu(), want.student_scores, atol=1e-3, rtol=0)
        assert torch.equal(got.valid.cpu(), want.valid)
        assert got.languages == want.languages
