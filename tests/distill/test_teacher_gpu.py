"""The teacher on a GPU, where it begins on a stream of its own; on a CPU the tests beside this file prove what it computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.testing import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is seen")]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in float32 proper, as on the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_scores_begun_beside_a_rollout_are_those_of_the_cpu():
    """Batch after batch, so that memory which a stream gave back is taken again while the other may still be at work."""
    student = tiny_model(seed=1).cuda()
    engine = Engine(student, allowed=ALLOWED, topk=8)
    here, there = (ArkasrTeacher(tiny_model(seed=2).to(device), allowed=ALLOWED, top_k=8) for device in ("cpu", "cuda"))
    for frames in [(37, 96, 61), (160, 8, 44), (20, 21, 150)] * 3:
        batch = make_batch(frames)
        moved = batch.to("cuda")
        begun = there.begin(moved)
        rollout = engine.rollout(moved, n=3, temperature=1.0, seed=len(frames), max_new_tokens=12)
        got = there.score(moved, rollout, begun)
        del begun
        torch.full((1 << 20,), float("nan"), device="cuda")  # what was let go too early is overwritten
        want = here.score(batch, rollout.to("cpu"))
        torch.testing.assert_close(got.scores.cpu(), want.scores, atol=1e-3, rtol=0)
        torch.testing.assert_close(got.student_scores.cpu(), want.student_scores, atol=1e-3, rtol=0)
