"""What an op does not do is refused in a sentence that names the op and the argument: no argument, whatever it is, fails elsewhere.

Gradients of gradients, forward-mode differentiation, sharded weights and heads with a bias would otherwise give a wrong number in silence.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

from arkfast import kernels
from arkfast.kernels import (
    audio_embed_merge,
    gather_linear,
    linear_kl,
    linear_log_softmax,
    linear_logprob,
    opd_union_kl,
    row_log_softmax,
    union_kl,
    union_topk_kl,
)

T, V, F, U = 3, 9, 4, 2


def arguments() -> dict[str, dict[str, Any]]:
    """Of every op, arguments that it takes: its required ones, and of the others those that are tensors."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    hidden, weight, scores = normal(T, F), normal(V, F), normal(T, U)
    ids, others = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([[1, 6], [7, 3], [8, 0]])
    blocked, own = torch.tensor([8]), torch.tensor([[[0, 6], [7, V]]]).expand(T, 2, 2).contiguous()
    cache, rows, logits = normal(T, 1, 5, F), torch.tensor([1, 2, 3]), normal(T, V)
    return {
        "topk_lse": {"logits": logits, "k": 2, "blocked": blocked, "ranges": own, "gather_ids": ids, "need_lse": True},
        "linear_topk_lse": {
            "hidden": hidden, "weight": weight, "k": 2, "vocab_map": torch.arange(V), "blocked": blocked, "ranges": own, "gather_ids": ids,
            "need_lse": True, "rescore": "fp32", "workspace_mb": 1,
        },
        "linear_log_softmax": {"hidden": hidden, "weight": weight, "ids": ids, "tau": 1.5, "blocked": blocked, "ranges": own,
                               "return_lse": False, "chunk_rows": 2},
        "row_log_softmax": {"logits": logits, "ids": ids, "tau": 1.5, "blocked": blocked, "ranges": own, "return_lse": False},
        "linear_logprob": {"hidden": hidden, "weight": weight, "target": rows, "entropy": False, "tau": 1.5, "blocked": blocked,
                           "ranges": own, "chunk_rows": 2},
        "linear_kl": {"hidden_s": hidden, "weight_s": weight, "hidden_t": normal(T, F), "weight_t": normal(V, F), "tau": 1.5,
                      "divergence": "jsd", "beta": 0.5, "blocked": blocked, "ranges": own, "row_weight": torch.ones(T),
                      "reduction": "mean", "chunk_rows": 2},
        "gather_linear": {"hidden": hidden, "weight": weight, "ids": ids},
        "sparse_weight_grad": {"grad": scores, "ids": ids, "hidden": hidden, "num_rows": V, "extra_ids": rows, "extra_rows": normal(T, F),
                               "out": torch.zeros(V, F), "dtype": None, "mode": "sorted"},
        "union_support": {"student_ids": ids, "teacher_ids": others},
        "union_kl": {"teacher_scores": normal(T, U), "student_scores": scores, "ids": ids, "tau": 1.5, "divergence": "jsd", "beta": 0.5,
                     "tail": True, "teacher_lse": torch.full((T,), 5.0), "student_lse": torch.full((T,), 5.0), "min_support": 2},
        "opd_union_kl": {"hidden": hidden, "weight": weight, "student_ids": ids, "teacher_ids": others, "teacher_scores": normal(T, 2 * U),
                         "tau": 1.5, "divergence": "jsd", "beta": 0.5, "support": "union", "min_support": 2, "row_weight": torch.ones(T),
                         "reduction": "mean", "teacher_score": "original", "teacher_lse": torch.ones(T)},
        "union_topk_kl": {"student_logits": logits, "teacher_logits": normal(T, V), "k": 3, "tau": 1.5, "blocked": blocked, "ranges": own,
                          "reduction": "mean"},
        "audio_embed_merge": {"input_ids": ids, "table": weight, "audio": normal(T, 1, F), "audio_lens": torch.ones(T).long(),
                              "audio_id": 5, "validate": False, "mismatch": torch.zeros(T, dtype=torch.bool)},
        "add_rms_norm": {"x": hidden, "residual": normal(T, F), "weight": weight[0], "eps": 1e-6},
        "rope_cache": {"q": hidden, "k": normal(T, F), "v": normal(T, F), "cos": normal(T, F), "sin": normal(T, F), "keys": cache,
                       "values": cache.clone(), "positions": rows, "q_norm": weight[0], "k_norm": weight[1], "eps": 1e-6},
        "rotary": {"q": hidden[:, None], "k": normal(T, 2, F), "cos": normal(T, 1), "sin": normal(T, 1)},
        "decode_attention": {"q": hidden[:, None], "keys": cache, "values": cache.clone(), "lens": rows, "limit": 5, "scale": 0.5},
        "swiglu": {"gate": hidden, "up": normal(T, F)},
    }  # fmt: skip


OPS = sorted(arguments())
PLACES = [(op, name) for op in OPS for name in (*arguments()[op], "backend")]
"""Every argument of every op."""


def call(op: str, changed: dict[str, Any]) -> Any:
    return getattr(kernels, op)(**{**arguments()[op], **changed})


def test_every_argument_of_every_op_is_tried() -> None:
    functions = {name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))}
    assert set(OPS) == functions - {"available_backends", "fallbacks", "reset_usage", "usage"}
    for op in OPS:
        assert set(inspect.signature(getattr(kernels, op)).parameters) == {*arguments()[op], "backend"}, op
        call(op, {})


def strangers(good: Any) -> Iterator[Any]:
    """What a caller may hand over by mistake in the place of ``good``."""
    yield from ("1", "no", [1], [[1.0, 2.0]], {"a": 1}, np.ones((T, U)), object(), math.nan, -1, 1.5, torch.float32, torch.nn.Linear(F, V))
    yield torch.tensor(1.5)
    if isinstance(good, torch.Tensor):
        yield from (good[None], good[..., :0], good.to("meta"), good.bool() if good.dtype != torch.bool else good.float())
        yield from (good.to(torch.complex64), good.to_sparse(), good.double().requires_grad_() if good.dtype == torch.int64 else good.int())


@pytest.mark.parametrize(("op", "name"), PLACES)
def test_whatever_is_given_is_taken_or_refused_by_the_arguments_name(op: str, name: str) -> None:
    """A refusal is a ValueError that opens with the op's name and names the argument; nothing else is ever raised."""
    good, refused = arguments()[op].get(name, "auto"), 0
    for stranger in strangers(good):
        try:
            call(op, {name: stranger})
        except ValueError as error:
            refused += 1
            words = str(error)
            assert words.startswith(f"{op}: "), f"{stranger!r}: {words}"
            # Of two arguments whose sizes differ either is named.
            resized = isinstance(stranger, torch.Tensor) and stranger.numel() == 0
            assert name in words or (resized and any(f": {other} must have" in words for other in arguments()[op])), (
                f"{stranger!r}: {words}"
            )
    assert refused >= 8, "most of these are nonsense whatever the argument is"


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()


LOSSES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "opd_union_kl": ("hidden", lambda x: opd_union_kl(**{**arguments()["opd_union_kl"], "hidden": x}).loss),
    "union_kl": ("student_scores", lambda x: union_kl(**{**arguments()["union_kl"], "student_scores": x}).rows.sum()),
    "union_topk_kl": ("student_logits", lambda x: union_topk_kl(**{**arguments()["union_topk_kl"], "student_logits": x})),
    "linear_kl": ("hidden_s", lambda x: linear_kl(**{**arguments()["linear_kl"], "hidden_s": x})),
    "linear_kl rows": ("hidden_s", lambda x: linear_kl(**{**arguments()["linear_kl"], "hidden_s": x, "reduction": "none"}).sum()),
    "linear_logprob": ("hidden", lambda x: linear_logprob(**{**arguments()["linear_logprob"], "hidden": x, "blocked": None}).sum()),
    "linear_log_softmax": ("hidden", lambda x: linear_log_softmax(**{**arguments()["linear_log_softmax"], "hidden": x}).sum()),
    "row_log_softmax": ("logits", lambda x: row_log_softmax(**{**arguments()["row_log_softmax"], "logits": x}).sum()),
    "gather_linear": ("hidden", lambda x: gather_linear(**{**arguments()["gather_linear"], "hidden": x}).sum()),
}
"""A scalar of every op that gives a gradient, of one of its arguments."""


def first_argument(name: str) -> torch.Tensor:
    op, argument = name.split()[0], LOSSES[name][0]
    return arguments()[op][argument]


@pytest.mark.parametrize("name", LOSSES)
def test_a_penalty_on_the_gradient_is_refused(name: str) -> None:
    loss, x = LOSSES[name][1], leaf(first_argument(name))
    (grad,) = torch.autograd.grad(loss(x), x)
    assert not grad.requires_grad
    assert grad.abs().max() > 0
    for again in (
        lambda: torch.autograd.grad(loss(x), x, create_graph=True),
        lambda: loss(x).backward(create_graph=True),
        lambda: torch.autograd.grad(loss(x) ** 2, x, create_graph=True),  # what comes upstream has a gradient
    ):
        with pytest.raises(
            RuntimeError, match=r"^\w+: gradients of gradients are not available, and create_graph=True asks for them; leave"
        ):
            again()


def test_recomputed_activations_are_no_second_gradient() -> None:
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        x = leaf(first_argument("opd_union_kl"))
        checkpoint(LOSSES["opd_union_kl"][1], x, use_reentrant=reentrant).backward()
        (grad,) = torch.autograd.grad(LOSSES["opd_union_kl"][1](y := leaf(x)), y)
        assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("op", OPS)
def test_a_tangent_is_refused_in_every_argument(op: str) -> None:
    floating = {name: value for name, value in arguments()[op].items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
    for name, value in floating.items():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(value, torch.ones_like(value))
            with pytest.raises(
                ValueError, match=f"^{op}: {name} carries a tangent of forward-mode differentiation, which the op would lose"
            ):
                call(op, {name: dual})
    assert floating or op == "union_support"


def test_functional_transforms_are_refused_too() -> None:
    x = first_argument("gather_linear")
    for transform in (
        lambda: torch.func.jvp(LOSSES["gather_linear"][1], (x,), (x,)),
        lambda: torch.func.grad(LOSSES["gather_linear"][1])(x),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            transform()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    if dist.is_initialized():
        yield init_device_mesh("cpu", (1,))
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(("op", "name"), [("opd_union_kl", "weight"), ("linear_kl", "weight_s"), ("union_topk_kl", "student_logits"),
                                          ("linear_topk_lse", "weight"), ("topk_lse", "logits"), ("gather_linear", "hidden")])  # fmt: skip
def test_a_sharded_tensor_is_refused(op: str, name: str, mesh: Any) -> None:
    for placement in (Shard(0), Replicate()):
        part = distribute_tensor(arguments()[op][name], mesh, [placement])
        assert isinstance(part, DTensor)
        with pytest.raises(ValueError, match=rf"^{op}: {name} is a DTensor, .* FSDP2 shards, or give it as .full_tensor\(\)"):
            call(op, {name: part})
        call(op, {name: part.full_tensor()})


def test_a_head_with_a_bias_is_refused_by_name_and_what_is_advised_is_right() -> None:
    generator = torch.Generator().manual_seed(1)
    head, hidden = torch.nn.Linear(F, V), torch.randn(T, F, generator=generator)
    advice = r"weight must be a torch.Tensor .* it has a bias, which no op adds: give torch.cat\(\[weight, bias\[:, None\]\], 1\) and"
    ids = torch.arange(V).expand(T, V)
    with pytest.raises(ValueError, match=advice):
        linear_log_softmax(hidden, head, ids)
    with pytest.raises(ValueError, match=r"got the module Linear; give its .weight$"):
        linear_log_softmax(hidden, torch.nn.Linear(F, V, bias=False), ids)
    weight = torch.cat([head.weight, head.bias[:, None]], 1)
    found = linear_log_softmax(torch.cat([hidden, torch.ones(T, 1)], 1), weight, ids)
    assert (found - head(hidden).log_softmax(1)).abs().max() < 1e-6


def test_a_sparse_or_distributed_tensor_is_not_looked_for_where_there_is_none() -> None:
    """Importing the kernels does not import torch's distributed tensors for the check."""
    import subprocess
    import sys

    code = (
        "import sys, torch; from arkfast.kernels import swiglu; swiglu(torch.ones(1, 1), torch.ones(1, 1)); "
        "print('torch.distributed.tensor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]


def test_a_merge_is_still_differentiated_once() -> None:
    table = leaf(arguments()["audio_embed_merge"]["table"])
    (grad,) = torch.autograd.grad(audio_embed_merge(**{**arguments()["audio_embed_merge"], "table": table}).sum(), table)
    assert grad.abs().max() > 0
