"""What holds for every op: checks that name the argument, backends, no wait for a device, no [T, V] tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arkfast import kernels
from arkfast.kernels import (
    add_rms_norm,
    audio_embed_merge,
    decode_attention,
    gather_linear,
    linear_kl,
    linear_log_softmax,
    linear_logprob,
    linear_topk_lse,
    opd_union_kl,
    rope_cache,
    rotary,
    row_log_softmax,
    sparse_weight_grad,
    swiglu,
    topk_lse,
    union_kl,
    union_support,
    union_topk_kl,
)

H, W = torch.zeros(3, 4), torch.zeros(9, 4)
IDS = torch.zeros(3, 2, dtype=torch.int32)
S = torch.zeros(3, 2)
CACHE, ROWS = torch.zeros(3, 1, 5, 4), torch.zeros(3, dtype=torch.int64)
"""Keys or values of three rows and five positions with one head of four features; three positions or lengths."""

CALLS = {
    "topk_lse": lambda **k: topk_lse(W, 2, **k),
    "linear_topk_lse": lambda **k: linear_topk_lse(H, W, 2, **k),
    "linear_log_softmax": lambda **k: linear_log_softmax(H, W, IDS, **k),
    "row_log_softmax": lambda **k: row_log_softmax(W, IDS.repeat(3, 1), **k),
    "linear_logprob": lambda **k: linear_logprob(H, W, IDS[:, 0], **k),
    "linear_kl": lambda **k: linear_kl(H, W, H, W, **k),
    "gather_linear": lambda **k: gather_linear(H, W, IDS, **k),
    "sparse_weight_grad": lambda **k: sparse_weight_grad(S, IDS, H, 9, **k),
    "union_support": lambda **k: union_support(IDS, IDS, **k),
    "union_kl": lambda **k: union_kl(S, S, IDS, **k),
    "opd_union_kl": lambda **k: opd_union_kl(H, W, IDS, IDS, torch.zeros(3, 4), **k),
    "union_topk_kl": lambda **k: union_topk_kl(W, W, 2, **k),
    "audio_embed_merge": lambda **k: audio_embed_merge(IDS, W, torch.zeros(3, 1, 4), torch.zeros(3).long(), 5, **k),
    "add_rms_norm": lambda **k: add_rms_norm(H, H, W[0], 1e-6, **k),
    "rope_cache": lambda **k: rope_cache(H, H, H, H, H, CACHE.clone(), CACHE.clone(), ROWS, **k),
    "rotary": lambda **k: rotary(H[:, None], H[:, None], S, S, **k),
    "decode_attention": lambda **k: decode_attention(H[:, None], CACHE, CACHE, ROWS, **k),
    "swiglu": lambda **k: swiglu(H, H, **k),
}
"""A call of every op, by its public name."""
NO_OPS = {"available_backends", "fallbacks", "reset_usage", "usage"}
"""Public functions that say something of the ops and compute nothing themselves."""


def public_functions(package: Any) -> set[str]:
    """The names that a package exports and that can be called, but for its types."""
    return {name for name in package.__all__ if callable(value := getattr(package, name)) and not isinstance(value, type)}


@pytest.mark.parametrize("name", CALLS)
def test_backends(name):
    for backend in ("auto", "torch"):  # the tensors here lie on the CPU, where Triton runs in its interpreter alone
        CALLS[name](backend=backend)
    with pytest.raises(ValueError, match=f"{name}: backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        CALLS[name](backend="cuda")
    if "triton" not in kernels.available_backends():
        with pytest.raises(ValueError, match=f"{name}: this version has no Triton kernel .* use backend='auto' or backend='torch'"):
            CALLS[name](backend="triton")


def test_every_public_name_is_there():
    assert all(hasattr(kernels, name) for name in kernels.__all__)
    assert set(CALLS) | NO_OPS == public_functions(kernels), "give a new op a call in CALLS"
    assert all(callable(getattr(kernels, name)) for name in CALLS)  # union_kl and gather_linear are functions, not their folders


def test_an_op_without_a_call_is_noticed(monkeypatch):
    monkeypatch.setattr(kernels, "new_op", lambda: None, raising=False)
    monkeypatch.setattr(kernels, "__all__", [*kernels.__all__, "new_op"])
    assert public_functions(kernels) - set(CALLS) - NO_OPS == {"new_op"}


@pytest.mark.parametrize("name", CALLS)
def test_every_op_stands_in_the_table_of_kernels(name):
    table = (Path(__file__).resolve().parents[2] / "kernels" / "README.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[2])
    assert row.split("|")[1].strip(" `") == getattr(kernels, name).__module__.split(".")[2], "the op's folder"


def test_importing_needs_torch_alone():
    """Others' trainers import this package: nothing that only our own doors need may come along."""
    code = "import sys, arkfast.kernels; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"transformers", "tokenizers", "safetensors", "soundfile", "jiwer"} & set(loaded)


BAD: list[tuple[Any, str]] = [
    (lambda: topk_lse([[1.0]], 1), r"topk_lse: logits must be a torch.Tensor of shape \[T V\], got list"),
    (lambda: topk_lse(torch.zeros(3), 1), r"topk_lse: logits must have shape \[T, V\], got \[3\]"),
    (lambda: topk_lse(torch.zeros(3, 2).long(), 1), "topk_lse: logits must be bfloat16, float16, float32 or float64, got torch.int64"),
    (lambda: topk_lse(torch.zeros(3, 0), 1), r"topk_lse: logits must have at least one column, got shape \[3, 0\]"),
    (lambda: topk_lse(W, 0), "topk_lse: k must be a whole number of at least 1, got 0"),
    (lambda: topk_lse(W, 2.0), "topk_lse: k must be a whole number of at least 1, got 2.0"),
    (lambda: topk_lse(W, 2, blocked=torch.zeros(9).bool()), "topk_lse: blocked must hold ids as int32 or int64, got torch.bool"),
    (lambda: topk_lse(W, 2, gather_ids=IDS), r"topk_lse: gather_ids must have shape \[T=9, g\], got \[3, 2\]"),
    (lambda: linear_topk_lse(H, torch.zeros(9, 5), 2), r"linear_topk_lse: weight must have shape \[V, H=4\], got \[9, 5\]"),
    (lambda: linear_topk_lse(H, W, 2, vocab_map=torch.zeros(8).int()), r"vocab_map must have shape \[V=9\], got \[8\]"),
    (lambda: linear_topk_lse(H, W, 2, rescore="bf16"), "rescore must be one of 'fp32', 'none', got 'bf16'"),
    (lambda: linear_topk_lse(H, W, 2, workspace_mb=0), "workspace_mb must be a whole number of at least 1, got 0"),
    (lambda: linear_topk_lse(H, W[:0], 2), "weight must have at least one row"),
    (lambda: linear_log_softmax(H, W, IDS, tau=0.0), "linear_log_softmax: tau must be a finite temperature above 0, got 0.0"),
    (lambda: linear_log_softmax(H, W, IDS, chunk_rows=0), "chunk_rows must be a whole number of at least 1"),
    (lambda: gather_linear(H, W, S), "gather_linear: ids must hold ids as int32 or int64, got torch.float32; convert it"),
    (lambda: gather_linear(H, W, IDS.to("meta")), "gather_linear: ids must be on cpu as hidden is, got meta; move one of them"),
    (lambda: sparse_weight_grad(S, IDS, H, 9, out=H), r"out must be float32 or float64 with num_rows=9 rows, got .* \[3, 4\]"),
    (lambda: sparse_weight_grad(S, IDS, H, 9, out=W.bfloat16()), "out must be float32 or float64 .* got torch.bfloat16"),
    (lambda: union_support(IDS, IDS[:2]), r"union_support: teacher_ids must have shape \[T=3, Kt\], got \[2, 2\]"),
    (lambda: union_kl(S, S, IDS, divergence="kl"), "union_kl: divergence must be one of 'forward_kl', 'reverse_kl', 'jsd', got 'kl'"),
    (lambda: union_kl(S, S, IDS, divergence="jsd", beta=1.0), "union_kl: beta must lie between 0 and 1 for divergence='jsd', got 1.0"),
    (lambda: union_kl(S, S, IDS, tail=True), "union_kl: tail=True needs teacher_lse and student_lse"),
    (lambda: union_kl(S, S, IDS, teacher_lse=S[:, 0]), "tail=False takes neither"),
    (lambda: opd_union_kl(H, W, IDS, IDS, S), r"teacher_scores must have a column for each slot, Ks \+ Kt = 2 \+ 2, got \[3, 2\]"),
    (lambda: CALLS["opd_union_kl"](support="both"), "opd_union_kl: support must be one of 'union', .* got 'both'"),
    (lambda: CALLS["opd_union_kl"](reduction="avg"), "opd_union_kl: reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    (lambda: CALLS["opd_union_kl"](tau=float("nan")), "opd_union_kl: tau must be a finite temperature above 0, got nan"),
    (lambda: CALLS["opd_union_kl"](min_support=0), "opd_union_kl: min_support must be a whole number of at least 1, got 0"),
    (lambda: CALLS["opd_union_kl"](teacher_score="original"), "teacher_score='original' needs teacher_lse"),
    (lambda: CALLS["opd_union_kl"](row_weight=torch.zeros(4)), r"row_weight must have shape \[T=3\], got \[4\]"),
    (lambda: union_topk_kl(W, H), r"teacher_logits must have the shape of student_logits, \[9, 4\], got \[3, 4\]; .* opd_union_kl"),
    (lambda: union_topk_kl(torch.tensor(1.0), torch.tensor(1.0)), r"student_logits must be a torch.Tensor of shape \[..., V\] .* got \[\]"),
    (lambda: union_topk_kl(W, None), "teacher_logits must be a torch.Tensor .* got NoneType"),
    (lambda: audio_embed_merge(IDS, W, torch.zeros(2, 1, 4), torch.zeros(3).long(), 5), r"audio must have shape \[B=3, Ta, H=4\], got"),
    (lambda: add_rms_norm(H, W, W[0], 1e-6), r"add_rms_norm: residual must have shape \[T=3, H=4\], got \[9, 4\]"),
    (lambda: add_rms_norm(H, None, W[0].bfloat16(), 1e-6), "weight must be torch.float32 as x is, got torch.bfloat16; convert one of them"),
    (lambda: add_rms_norm(H, None, W[0], 0.0), "add_rms_norm: eps must be a finite number above 0, got 0.0"),
    (lambda: add_rms_norm(H[:, :0], None, W[0, :0], 1e-6), r"x must have at least one feature, got shape \[3, 0\]"),
    (lambda: swiglu(H, W), r"swiglu: up must have shape \[T=3, I=4\], got \[9, 4\]"),
    (lambda: swiglu(H, H.half()), "swiglu: up must be torch.float32 as gate is, got torch.float16"),
    (lambda: swiglu(IDS, IDS), "swiglu: gate must be bfloat16, float16, float32 or float64, got torch.int32"),
    (lambda: rope_cache(H, H, H, H[:, :3], H[:, :3], *[CACHE[..., :3]] * 2, ROWS), "cos must have an even number of features, .* got 3"),
    (lambda: rope_cache(S, H, H, H, H, CACHE, CACHE, ROWS), "rope_cache: q must have a multiple of D=4 features, got 2"),
    (lambda: rope_cache(H, S, S, H, H, CACHE, CACHE, ROWS), r"k must have Hkv · D = 1 · 4 features as the caches do, got 2"),
    (lambda: rope_cache(H, H, H, H, H, CACHE, CACHE.half(), ROWS), "rope_cache: values must be torch.float32 as q is, got torch.float16"),
    (lambda: rope_cache(H, H, H, H, H, CACHE, CACHE, ROWS.float()), "positions must hold ids as int32 or int64, got torch.float32"),
    (lambda: rope_cache(H, H, H, H, H, CACHE[:2], CACHE[:2], ROWS), "keys must have a row for each of the T=3 tokens, got 2"),
    (lambda: CALLS["rope_cache"](q_norm=W[0], k_norm=W[0]), "rope_cache: q_norm, k_norm and eps come together; give all three, or none"),
    (lambda: CALLS["rope_cache"](q_norm=W[0], k_norm=W[0], eps=0.0), "rope_cache: eps must be a finite number above 0, got 0.0"),
    (lambda: CALLS["rope_cache"](q_norm=S[0], k_norm=W[0], eps=1e-6), r"rope_cache: q_norm must have shape \[D=4\], got \[2\]"),
    (lambda: CALLS["rope_cache"](q_norm=W[0], k_norm=W[0].half(), eps=1e-6), "k_norm must be torch.float32 as q is, got torch.float16"),
    (lambda: decode_attention(H, CACHE, CACHE, ROWS), r"decode_attention: q must have shape \[T, Hq, D\], got \[3, 4\]"),
    (lambda: decode_attention(H[:, None], *[CACHE.expand(3, 2, 5, 4)] * 2, ROWS), "q must have a multiple of Hkv=2 heads of at least one"),
    (lambda: decode_attention(H[:, None], CACHE[:2], CACHE[:2], ROWS), "keys must have a row for each of the T=3 queries, got 2"),
    (lambda: CALLS["decode_attention"](limit=6), "decode_attention: limit must be at most the caches' L=5 positions, got 6"),
    (lambda: CALLS["decode_attention"](limit=0), "decode_attention: limit must be a whole number of at least 1, got 0"),
    (lambda: rotary(H[:, None], H[:2, None], S, S), r"rotary: k must have shape \[T=3, Hk, D=4\], got \[2, 1, 4\]"),
    (lambda: rotary(H[:, None], H[:, None], H, H), "rotary: cos must have from 1 to D / 2 = 2 angles a position, got 4"),
    (lambda: rotary(H[:, None], H[:, None], S, S.half()), "rotary: sin must be torch.float32 as q is, got torch.float16"),
    (lambda: rotary(H[:, None], H[:, None], S.clone().requires_grad_(), S), "rotary: cos requires a gradient, which this op does not"),
    (lambda: CALLS["decode_attention"](scale=float("inf")), "decode_attention: scale must be a finite number above 0, got inf"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("number", [len(W), 2**32 + 1])  # the second is 1 in 32 bits
def test_an_id_past_the_table_is_an_error_of_the_torch_backend(number):
    """On the CPU at once; a kernel gives NaN, or leaves the entry out of a sum."""
    past = IDS.clone().long()
    past[1, 1] = number
    for call in (
        lambda: gather_linear(H, W, past),
        lambda: opd_union_kl(H, W, past, IDS, torch.zeros(3, 4), min_support=1),
        lambda: sparse_weight_grad(S, past, H, len(W)),
        lambda: audio_embed_merge(past, W, torch.zeros(3, 1, 4), torch.zeros(3).long(), 5),
    ):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            call()


WANTS_GRADIENT = torch.zeros(3, 4, requires_grad=True)
INFERENCE: list[tuple[str, Any]] = [
    ("x", lambda: add_rms_norm(WANTS_GRADIENT, None, W[0], 1e-6)),
    ("weight", lambda: add_rms_norm(H, H, WANTS_GRADIENT[0], 1e-6)),
    ("k", lambda: rope_cache(H, WANTS_GRADIENT, H, H, H, CACHE.clone(), CACHE.clone(), ROWS)),
    ("k_norm", lambda: CALLS["rope_cache"](q_norm=W[0], k_norm=WANTS_GRADIENT[0], eps=1e-6)),
    ("q", lambda: decode_attention(WANTS_GRADIENT[:, None], CACHE, CACHE, ROWS)),
    ("up", lambda: swiglu(H, WANTS_GRADIENT)),
]


@pytest.mark.parametrize(("name", "call"), INFERENCE)
def test_ops_for_inference_refuse_to_lose_a_gradient(name, call):
    with pytest.raises(ValueError, match=f": {name} requires a gradient, which this op does not give; call it under torch.no_grad()"):
        call()
    with torch.no_grad():
        call()


def test_nothing_waits_for_the_device():
    """Fake tensors have no values: an op that asks for one (item, nonzero) raises. The twin of a CUDA sync check on the CPU."""
    with FakeTensorMode():
        hidden, weight = torch.zeros(70, 4, requires_grad=True), torch.zeros(9, 4, requires_grad=True)
        ids, blocked = torch.zeros(70, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
        top = linear_topk_lse(
            hidden.bfloat16(), weight.bfloat16(), 3, vocab_map=torch.zeros(9).int(), blocked=blocked, gather_ids=ids, need_lse=True
        )
        scores = torch.cat([top.gathered, top.values], dim=1)
        for support in ("union", "teacher", "student", "intersection"):
            loss = opd_union_kl(hidden, weight, ids, top.ids, scores, support=support, row_weight=top.lse).loss
            loss.backward()
        logp, lse = linear_log_softmax(hidden, weight, ids, blocked=blocked, return_lse=True)
        union_kl(scores[:, :3], logp, ids, tail=True, teacher_lse=top.lse, student_lse=lse, divergence="jsd").rows.sum().backward()
        union_topk_kl(hidden, top.values.new_zeros(70, 4), 3, blocked=blocked).backward()
        topk_lse(hidden, 3, blocked=blocked, gather_ids=ids, need_lse=True)
        own = torch.zeros(70, 2, 2, dtype=torch.int32)
        topk_lse(hidden, 3, ranges=own, gather_ids=ids, need_lse=True)
        linear_topk_lse(hidden, weight, 3, vocab_map=torch.zeros(9).int(), ranges=own, gather_ids=ids)
        linear_log_softmax(hidden, weight, ids, blocked=blocked, ranges=own).sum().backward()
        union_topk_kl(hidden, top.values.new_zeros(70, 4), 3, ranges=own).backward()
        row_log_softmax(hidden, ids, blocked=blocked).sum().backward()
        logprob, entropy = linear_logprob(hidden, weight, ids[:, 0], entropy=True, blocked=blocked)
        (logprob.sum() + entropy.sum()).backward()
        for reduction in ("mean", "none"):
            linear_kl(hidden, weight, hidden, weight, blocked=blocked, row_weight=top.lse, reduction=reduction).sum().backward()
        audio = torch.zeros(70, 2, 4, requires_grad=True)
        audio_embed_merge(ids, weight, audio, blocked.new_zeros(70), 5).sum().backward()
        rows, keys, values = torch.zeros(70, 4), torch.zeros(70, 1, 6, 4), torch.zeros(70, 1, 6, 4)
        normed, _ = add_rms_norm(rows, rows, rows[0], 1e-6)
        query = rope_cache(normed, rows, swiglu(rows, rows), rows, rows, keys, values, ids.new_zeros(70).long())
        rope_cache(normed, rows, rows, rows, rows, keys, values, ids[:, 0], q_norm=rows[0], k_norm=rows[0], eps=1e-6)
        decode_attention(query, keys, values, ids.new_zeros(70).long(), limit=5)
        turned = rotary(hidden[:, None], hidden[:, None], rows[:, :2], rows[:, :2])
        (turned[0] + turned[1]).sum().backward()
        with pytest.raises(DataDependentOutputException):  # the trap does close
            top.lse.sum().item()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)), 0)
        return result


def test_no_op_makes_a_tensor_of_all_positions_by_the_vocabulary():
    positions, vocabulary = 600, 5000
    hidden, weight = torch.randn(positions, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    ids = torch.randint(0, vocabulary, (positions, 4))
    with LargestTensor() as teacher:
        top = linear_topk_lse(hidden, weight, 4, gather_ids=ids, need_lse=True)
    with LargestTensor() as student:
        opd_union_kl(hidden, weight, ids, top.ids, torch.cat([top.gathered, top.values], 1)).loss.backward()
    with LargestTensor() as log_softmax:
        linear_log_softmax(hidden, weight, ids, chunk_rows=64).sum().backward()
    own = torch.tensor([[0, 3000], [4000, vocabulary]], dtype=torch.int32).expand(positions, 2, 2)
    with LargestTensor() as ranged:
        linear_topk_lse(hidden, weight, 4, gather_ids=ids, need_lse=True, ranges=own)
        linear_log_softmax(hidden, weight, ids, chunk_rows=64, ranges=own).sum().backward()
    assert teacher.elements <= 64 * vocabulary
    assert ranged.elements <= 64 * vocabulary
    assert student.elements <= max(weight.numel(), positions * 8 * 8)  # the dense gradient, or the gathered rows
    assert log_softmax.elements <= 64 * vocabulary
