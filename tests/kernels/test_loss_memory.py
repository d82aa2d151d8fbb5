"""What the loss holds for each position at its peak on a GPU, counted from what it allocates.

The operations run as on a GPU of capability 9.0, on CPU tensors whose kernels are not started and whose products are not computed: what is
allocated, and when it is given back, depends on shapes alone. What a GPU's sort allocates beyond what it returns is added by arithmetic.
"""

from __future__ import annotations

import importlib.util
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arkfast.kernels import linear_topk_lse, opd_union_kl
from arkfast.kernels.common import launch
from arkfast.kernels.linear_topk import launcher

GOAL = 5_500
"""Bytes a position: goal G7 of docs/kernels.md."""
SORT_SCRATCH = 8 + 4 + 8
"""Bytes an entry that torch's stable sort of int32 keys takes on a GPU while it runs: the int64 places before they are sorted, and CUB's
radix sort, which goes back and forth between two copies of both."""
K, V = 32, 151_936


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._seen = weakref.WeakSet[Any]()

    def _free(self, size: int) -> None:
        self.live -= size

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
            self.most = max(self.most, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.mm.out:
            return kwargs["out"]
        given = {t.untyped_storage() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)}
        made = func(*args, **kwargs)
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in given:
                self._hold(tensor)
        if func is torch.ops.aten.sort.stable:
            self.most = max(self.most, self.live + SORT_SCRATCH * args[0].numel())
        return made


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops choose their kernels as for capability 9.0, and do not start them."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: this process interprets kernels")
    from triton.runtime.jit import JITFunction

    # Poison would be written to every page of buffers that nothing here reads.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(launch, "compile_for", 90)
    monkeypatch.setattr(JITFunction, "run", lambda *args, **kwargs: None)


def peak(call: Callable[[], object]) -> int:
    with Peak() as held:
        call()
    return held.most


def student(positions: int, features: int) -> Callable[[], object]:
    """The loss and both gradients, from a teacher's ids and scores."""
    hidden = torch.empty(positions, features, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(V, features, dtype=torch.bfloat16, requires_grad=True)
    mine = torch.zeros(positions, K, dtype=torch.int32)

    def run() -> object:
        values, ids, gathered = torch.empty(positions, K), torch.empty(positions, K, dtype=torch.int32), torch.empty(positions, K)
        scores = torch.cat([gathered, values], dim=1)
        loss = opd_union_kl(hidden, weight, mine, ids, scores, backend="triton").loss
        return torch.autograd.grad(loss, (hidden, weight)), values

    return run


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("features", [896, 1024, 2048])
def test_a_position_of_the_whole_loss(features: int) -> None:
    """With the teacher's ids and scores, the gradients' own 2 H bytes included; the weight's gradient is no matter of positions."""
    few, many = 1024, 3072
    slope = (peak(student(many, features)) - peak(student(few, features))) / (many - few)
    assert 2 * features < slope <= GOAL


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("features", [1024, 2048])
def test_what_waits_for_the_backward(features: int) -> None:
    """Ids and a gradient of 64 slots, and a few numbers: nothing as wide as the hidden states is kept."""
    positions = 1024
    hidden = torch.zeros(positions, features, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(V, features, dtype=torch.bfloat16, requires_grad=True)
    ids, scores = torch.zeros(positions, K, dtype=torch.int32), torch.zeros(positions, 2 * K)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        opd_union_kl(hidden, weight, ids, ids, scores, backend="triton")
    inputs = {x.data_ptr() for x in (hidden, weight, ids, scores)}
    own = {x.data_ptr(): x.untyped_storage().nbytes() for x in kept if x.data_ptr() not in inputs}
    assert sum(own.values()) <= positions * (2 * K * (4 + 4) + 4 * 4)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_teachers_workspace_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks' logits, with their groups' maxima, whatever the number of positions."""
    monkeypatch.setattr(launcher, "CHUNK_ROWS_INTERPRETED", launcher.CHUNK_ROWS)  # tensors of a CPU stand for a GPU's
    weight = torch.empty(V, 64, dtype=torch.bfloat16)
    held = {}
    for positions in (2048, 6144):
        hidden, mine = torch.empty(positions, 64, dtype=torch.bfloat16), torch.zeros(positions, K, dtype=torch.int32)
        held[positions] = peak(lambda hidden=hidden, mine=mine: linear_topk_lse(hidden, weight, K, gather_ids=mine, backend="triton"))
    assert 2 * 512 * V * 2 <= held[2048] <= 512 << 20
    # Ids, values and gathered values of each position, once as chunks and once joined, its flags, and its ids' places in int64.
    assert (held[6144] - held[2048]) / 4096 <= 2 * (3 * 4 * K + 1) + 8 * K


def test_the_count_sees_what_is_held_and_what_was_given_back() -> None:
    def two_at_once() -> None:
        a = torch.empty(100, dtype=torch.uint8)
        b = a.view(10, 10)
        del a
        c = torch.empty(50, dtype=torch.uint8)
        del b, c
        torch.empty(120, dtype=torch.uint8)

    assert peak(two_at_once) == 150
    assert peak(lambda: torch.zeros(8, dtype=torch.int32).sort(stable=True)) == 8 * (4 + 4 + 8) + 8 * SORT_SCRATCH
