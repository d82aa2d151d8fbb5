"""What the kernel tests share: the backends, poisoned memory, and the loss written out in Python loops and float64.

The oracle shares no code with the package. A test that takes the ``backend`` fixture runs once for each backend that the process can have:
torch; Triton on CUDA tensors where there is a GPU; Triton's interpreter, and it alone, in a process started with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from arkfast.kernels.common.backend import UnfitError

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRET:
    spec = importlib.util.spec_from_file_location("interpreter_shim", Path(__file__).parent / "interpret" / "shim.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    BACKENDS = ["triton"]
    # Hundreds of rows: minutes in the interpreter, where ``interpret`` has a small twin of each.
    LONG = {
        "test_a_smaller_workspace_gives_the_same_answer",
        "test_rows_do_not_depend_on_each_other_and_none_is_fine",
        "test_the_number_of_rows_changes_no_bit",
    }
    collect_ignore = ["aot", "gpu", "test_triton_interpreter.py"]
else:
    BACKENDS = ["torch", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["torch"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend. For Triton on a GPU, tensors are made there unless a test says where."""
    if request.param != "cuda":
        yield request.param
        return
    torch.set_default_device("cuda")
    yield "triton"
    torch.set_default_device(None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the interpreter's process, tests that have no backend to choose have nothing to say, and long ones are slow."""
    if not INTERPRET:
        return
    here, folder = Path(__file__).parent, Path(__file__).parent / "interpret"
    other = [
        item
        for item in items
        if item.path.is_relative_to(here) and not item.path.is_relative_to(folder) and "backend" not in getattr(item, "fixturenames", ())
    ]
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if item not in set(other)]
    for item in items:
        if getattr(item, "originalname", None) in LONG:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Arguments that a kernel says it does not take are no failure of the kernel: the torch backend's run of the test covers them."""
    try:
        return (yield)
    except UnfitError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    """One seed for each test, and memory from torch.empty is NaN (−1 for whole numbers), so that an element left unwritten shows."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


class OracleLoss(NamedTuple):
    mean: torch.Tensor
    rows: torch.Tensor
    valid: list[bool]
    support: list[int]


def loss_oracle(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_scores: torch.Tensor,
    tau: float = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    support: str = "union",
    min_support: int = 2,
) -> OracleLoss:
    """The loss from its definition: sets and loops over positions. float64 in, float64 out, differentiable."""
    rows, valid, counts = [], [], []
    for t, (mine, theirs) in enumerate(zip(student_ids.tolist(), teacher_ids.tolist(), strict=True)):
        wanted = {
            "union": set(mine) | set(theirs),
            "teacher": set(theirs),
            "student": set(mine),
            "intersection": set(mine) & set(theirs),
        }[support]
        seen: dict[int, torch.Tensor] = {}
        for token, score in zip(mine + theirs, teacher_scores[t], strict=True):
            if token >= 0 and token in wanted and torch.isfinite(score):
                seen.setdefault(token, score)
        counts.append(len(seen))
        valid.append(len(seen) >= min_support)
        if not valid[-1]:
            rows.append(hidden.new_zeros(()))
            continue
        log_p = torch.log_softmax(torch.stack(list(seen.values())) / tau, 0)
        log_q = torch.log_softmax(weight[list(seen)] @ hidden[t] / tau, 0)
        log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
        forward, reverse = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
        to_middle = beta * (log_p.exp() * (log_p - log_m)).sum() + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum()
        rows.append(tau**2 * {"forward_kl": forward, "reverse_kl": reverse, "jsd": to_middle}[divergence])
    stacked = torch.stack(rows) if rows else hidden.new_zeros(0)
    return OracleLoss(stacked.sum() / max(1, sum(valid)), stacked, valid, counts)


@pytest.fixture
def oracle() -> Callable[..., OracleLoss]:
    return loss_oracle


class LossCase(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    student_ids: torch.Tensor
    teacher_ids: torch.Tensor
    teacher_scores: torch.Tensor


def make_loss_case(dtype: torch.dtype = torch.float32) -> LossCase:
    """Nine positions, one for each thing that can go wrong. Scores have standard deviation 1: hidden is N(0, 1), weight is N(0, 1/H)."""
    positions, features, vocabulary, k = 9, 16, 40, 5
    hidden = torch.randn(positions, features).to(dtype)
    weight = (torch.randn(vocabulary, features) / features**0.5).to(dtype)
    student_ids = torch.stack([torch.randperm(vocabulary - 4)[:k] for _ in range(positions)]).int()
    teacher_ids = torch.stack([torch.randperm(vocabulary - 4)[:k] for _ in range(positions)]).int()
    table = torch.randn(positions, vocabulary)
    teacher_ids[0] = student_ids[0]  # the same set
    teacher_ids[1, :3] = student_ids[1, 2:]  # an overlap
    student_ids[2, 3] = student_ids[2, 1]  # a repeat within one list
    student_ids[3], teacher_ids[3] = -1, -1  # nothing at all
    student_ids[4], teacher_ids[4, 1:] = -1, -1  # one id
    student_ids[5] = -1  # the teacher's alone
    scores = torch.cat([table.gather(1, ids.clamp_min(0).long()) for ids in (student_ids, teacher_ids)], dim=1)
    scores[6] = float("-inf")  # all masked
    scores[7, :9] = float("-inf")  # one finite score
    scores[8, 2], scores[8, 4], scores[8, 6] = float("nan"), float("inf"), float("-inf")
    teacher_ids[8, 0], scores[8, 5] = student_ids[8, 2], 0.25  # unseen in the student's slot, seen in the teacher's
    return LossCase(hidden, weight, student_ids, teacher_ids, scores)


@pytest.fixture
def loss_case() -> Callable[..., LossCase]:
    return make_loss_case
