"""What every Triton kernel costs on a GPU, of capability 9.0 above all, so that a regression is seen without one.

A bound is what was counted with the pinned Triton, and a tenth more, or what lets so many blocks share a multiprocessor. Instructions are a
thread's: those of the longest loop, and those of the whole kernel with its loops counted once, divided by the values that the thread takes
in one pass; branches count whether they are taken or not. The calls have the sizes of real models.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import arkfast.kernels
from arkfast.kernels import (
    add_rms_norm,
    audio_embed_merge,
    decode_attention,
    gather_linear,
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
from arkfast.kernels.decode_attention.op import SPLIT
from arkfast.kernels.linear_kl.op import DIVERGENCES, Settings, row_pass

ARCHITECTURES = (80, 89, 90, 100, 120)
"""In the order of ``Bound.registers``."""
V, ALLOWED, H, K = 151_936, 151_680, 1024, 32
"""Ids of the teacher, those that may be produced, features, and ids of a list."""


def topk_of_logits() -> None:
    topk_lse(torch.empty(2, ALLOWED, dtype=torch.bfloat16), K, backend="triton")


def topk_of_logits_but_blocked_ids() -> None:
    topk_lse(torch.empty(2, ALLOWED, dtype=torch.bfloat16), K, blocked=torch.zeros(300, dtype=torch.int32), backend="triton")


def topk_of_logits_with_lse() -> None:
    topk_lse(torch.empty(2, ALLOWED, dtype=torch.bfloat16), K, need_lse=True, backend="triton")


def topk_of_logits_with_everything() -> None:
    logits, ids = torch.empty(2, V, dtype=torch.bfloat16), torch.zeros(2, 64, dtype=torch.int32)
    blocked = torch.zeros(300, dtype=torch.int32)
    topk_lse(logits, K, blocked=blocked, gather_ids=ids, need_lse=True, backend="triton")


def topk_of_wide_logits() -> None:
    topk_lse(torch.empty(2, V), 64, need_lse=True, backend="triton")


def scores_in_float32() -> None:
    hidden, weight = (torch.empty(rows, H, dtype=torch.bfloat16) for rows in (2, V))
    ids = torch.zeros(2, K, dtype=torch.int32)
    linear_topk_lse(hidden, weight, K, gather_ids=ids, backend="triton")


def loss_of_a_position() -> None:
    ids, scores = torch.zeros(4096, K, dtype=torch.int32), torch.zeros(4096, 2 * K)
    hidden, weight = (torch.zeros(rows, H, dtype=torch.bfloat16, requires_grad=True) for rows in (4096, V))
    opd_union_kl(hidden, weight, ids, ids, scores, backend="triton").loss.backward()


def loss_of_logits() -> None:
    logits = torch.zeros(2, V, dtype=torch.bfloat16, requires_grad=True)
    union_topk_kl(logits, logits.detach(), K, backend="triton").backward()


def loss_of_scores() -> None:
    ids, scores, lse = torch.zeros(2, 2 * K, dtype=torch.int32), torch.zeros(2, 2 * K, requires_grad=True), torch.zeros(2)
    union_support(ids[:, :K], ids[:, K:], backend="triton")
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        union_kl(scores, scores, ids, divergence=divergence, backend="triton")
    union_kl(scores, scores, ids, tail=True, teacher_lse=lse, student_lse=lse, backend="triton")


def gathered_scores() -> None:
    hidden, weight = torch.zeros(2, H, dtype=torch.bfloat16, requires_grad=True), torch.zeros(8, H, dtype=torch.bfloat16)
    gather_linear(hidden, weight, torch.zeros(2, 2 * K, dtype=torch.int32), backend="triton").sum().backward()


def sums_without_order() -> None:
    grad, ids, hidden = torch.zeros(8, 2 * K), torch.zeros(8, 2 * K, dtype=torch.int32), torch.zeros(8, H, dtype=torch.bfloat16)
    sparse_weight_grad(grad, ids, hidden, V, mode="atomic", backend="triton")


def log_softmax(dtype: torch.dtype = torch.bfloat16) -> None:
    logits, ids = torch.zeros(2, ALLOWED, dtype=dtype, requires_grad=True), torch.zeros(2, 64, dtype=torch.int64)
    row_log_softmax(logits, ids, backend="triton").sum().backward()


def log_softmax_of_float32() -> None:
    log_softmax(torch.float32)


def divergence_of_rows() -> None:
    student, teacher, one = torch.zeros(1, V), torch.zeros(1, V), torch.ones(1)
    for divergence in DIVERGENCES:
        settings = Settings(tau=1.0, divergence=divergence, beta=0.5, reduction="mean", rows=1, chosen="triton")
        row_pass(student, teacher, None, one, one, torch.zeros(1, V, dtype=torch.bfloat16), settings)


def merged_rows() -> None:
    ids, lens = torch.zeros(2, 400, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    table, audio = torch.zeros(9, H, dtype=torch.bfloat16), torch.zeros(2, 250, H, dtype=torch.bfloat16, requires_grad=True)
    audio_embed_merge(ids, table, audio, lens, 5, backend="triton").sum().backward()


def layer_of_a_decode_step() -> None:
    x, gate = torch.zeros(64, H, dtype=torch.bfloat16), torch.zeros(64, 3072, dtype=torch.bfloat16)
    add_rms_norm(x, x, x[0], 1e-6, backend="triton")
    swiglu(gate, gate, backend="triton")
    q, k, angle = (torch.zeros(64, width, dtype=torch.bfloat16) for width in (16 * 128, 8 * 128, 128))
    cache, lens = torch.zeros(64, 8, SPLIT + 8, 128, dtype=torch.bfloat16), torch.ones(64, dtype=torch.int64)
    rope_cache(q, k, k, angle, angle, cache, cache, lens, q_norm=angle[0], k_norm=angle[0], eps=1e-6, backend="triton")
    for limit in (SPLIT, None):
        decode_attention(q.view(64, 16, 128), cache, cache, lens, limit=limit, backend="triton")


def turned_queries_and_keys() -> None:
    q, k = (torch.zeros(500, 20, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    angle = torch.zeros(500, 16, dtype=torch.bfloat16)
    turned = rotary(q, k, angle, angle, backend="triton")
    (turned[0].sum() + turned[1].sum()).backward()


def first_store() -> None:
    from arkfast.kernels.common import probe

    probe.store_one[(1,)](torch.empty(1, dtype=torch.int32))


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most that a kernel may need."""

    loop: float = 0
    """Instructions for a value in the longest loop; 0 for a kernel that has none."""
    whole: float
    """Instructions for a value in the whole kernel, its loops counted once."""
    values: int = 1
    """What a thread takes in one pass, by which both are divided; 1 where that is no figure of use."""
    registers: tuple[int, int, int, int, int]
    """A thread's on sm_80, sm_89, sm_90, sm_100 and sm_120."""
    shared: int = 0
    """Bytes a block."""
    load: int = 128
    """Bits that the widest load has at least."""
    aside: int = 0
    """Stores to local memory, which nothing but a lack of registers makes."""


BOUNDS: dict[Callable[[], None], dict[str, Bound]] = {
    # 128 threads have 4,096 columns of a row in a pass. 9.7 instructions before NaN was looked for by a maximum that lets it through.
    topk_of_logits: {
        "row_stats": Bound(values=32, loop=8.1, whole=12.4, registers=(53, 44, 44, 44, 44), shared=288),
        # One warp looks at 512 supergroups, 512 groups and 1,024 values. 2,630 instructions in each of four warps while they were sorted.
        "row_select": Bound(values=64, loop=2.1, whole=57.2, registers=(141, 140, 140, 141, 141), shared=4608),
    },
    # 12.8 before; a quarter are of the blocked ids' branch. Six blocks a multiprocessor.
    topk_of_logits_but_blocked_ids: {"row_stats": Bound(values=32, loop=10.9, whole=16.8, registers=(71, 71, 80, 80, 80), shared=576)},
    topk_of_logits_with_lse: {"row_stats": Bound(values=32, loop=15.9, whole=20.7, registers=(80, 80, 96, 71, 62), shared=288)},
    topk_of_logits_with_everything: {
        "mark_dead": Bound(values=2, whole=81, registers=(33, 36, 33, 33, 30), shared=2304, load=32),
        "row_stats": Bound(values=32, loop=19.3, whole=25.7, registers=(80, 80, 80, 102, 100), shared=576),
        "row_select": Bound(values=64, loop=2.1, whole=64.2, registers=(141, 139, 140, 140, 140), shared=4608),
        "row_gather": Bound(whole=94, registers=(16, 16, 20, 20, 18), load=32),
    },
    topk_of_wide_logits: {
        "row_stats": Bound(values=16, loop=21.6, whole=32, registers=(66, 68, 64, 68, 69), shared=576),
        "row_select": Bound(values=28, loop=3, whole=80.4, registers=(71, 71, 72, 71, 71), shared=9216),
    },
    scores_in_float32: {"rescore": Bound(values=32, loop=4.3, whole=34.6, registers=(98, 88, 88, 88, 88), shared=576)},
    # The loss: 5.6 instructions a value for the scores and 6.7 for a hidden gradient, each position's threads meeting for each block of
    # features, and 80 registers. Four programs of 256 threads a multiprocessor. A run of a gradient: 695 instructions while eight rows were
    # asked for together and places were divided in 64 bits.
    loss_of_a_position: {
        "union_kl_sparse": Bound(values=32, loop=5.1, whole=42.1, registers=(84, 85, 64, 88, 82), shared=576, aside=1),
        "weight_grad_runs": Bound(loop=385, whole=416, registers=(53, 44, 48, 49, 44), shared=32),
        "weight_grad_pieces": Bound(values=32, loop=8.6, whole=14.7, registers=(53, 44, 44, 44, 44), shared=4608),
        "weight_grad_long_runs": Bound(values=32, loop=3.8, whole=6.4, registers=(58, 47, 48, 44, 44), shared=2304),
        "gather_linear_hidden_grad": Bound(values=64, whole=9.1, registers=(61, 53, 53, 62, 53), shared=1152),
    },
    loss_of_logits: {
        "union_kl_rows": Bound(values=2, whole=178, registers=(30, 29, 31, 35, 31), load=32),
        "scatter_rows": Bound(values=2, whole=37, registers=(15, 15, 15, 15, 20), load=32),
    },
    loss_of_scores: {
        "union_ids": Bound(values=2, whole=524, registers=(47, 53, 80, 84, 98), shared=144, load=32),
        "union_kl_rows": Bound(values=2, whole=340, registers=(42, 42, 43, 42, 40), shared=32, load=32),
    },
    gathered_scores: {
        "gather_linear_scores": Bound(values=64, loop=5.7, whole=10.7, registers=(122, 124, 119, 126, 106), shared=576),
        "gather_linear_hidden_grad": Bound(values=64, whole=8.7, registers=(62, 53, 53, 62, 53), shared=1152),
    },
    sums_without_order: {"weight_grad_atomic": Bound(values=32, whole=19.9, registers=(84, 84, 60, 53, 51), shared=4608)},
    # No barrier stands in the loop: each lane has a maximum of its own. 48 and 52 registers while the threads met for each block of
    # columns; now twelve blocks of 128 threads a multiprocessor.
    log_softmax: {
        "row_log_softmax_fwd": Bound(values=16, loop=13.6, whole=52.8, registers=(35, 43, 40, 38, 41), shared=32),
        "row_log_softmax_bwd": Bound(values=16, loop=14.6, whole=35.1, registers=(35, 44, 40, 36, 44)),
        "row_log_softmax_bwd_ids": Bound(whole=848, registers=(86, 84, 84, 86, 88), shared=288, load=64),
    },
    log_softmax_of_float32: {
        "row_log_softmax_fwd": Bound(values=16, loop=13.5, whole=54.4, registers=(36, 44, 40, 42, 44), shared=32),
        "row_log_softmax_bwd": Bound(values=16, loop=11.6, whole=29.3, registers=(32, 43, 40, 32, 43)),
    },
    divergence_of_rows: {"linear_kl_rows": Bound(values=8, loop=133, whole=576, registers=(80, 80, 80, 79, 88), shared=32, aside=1)},
    merged_rows: {
        "merge_slots": Bound(values=8, loop=69.5, whole=90.4, registers=(71, 62, 71, 80, 80), shared=144, load=64),
        "merge_rows": Bound(values=8, loop=14.3, whole=49.5, registers=(36, 38, 36, 36, 40)),
        "merge_audio_grad": Bound(values=8, loop=5.5, whole=19.8, registers=(36, 38, 36, 36, 40)),
    },
    layer_of_a_decode_step: {
        "add_rms_norm_row": Bound(values=8, whole=20, registers=(32, 32, 32, 32, 32), shared=32),
        "swiglu_rows": Bound(values=8, whole=21.9, registers=(32, 29, 32, 32, 29)),
        "rope_cache_rows": Bound(whole=541, registers=(36, 44, 36, 38, 44)),
        # Keys and values of 64 places and 128 features.
        "decode_attention_parts": Bound(values=128, loop=3.3, whole=7.3, registers=(97, 88, 88, 88, 88), shared=42_816),
        "decode_attention_merge": Bound(values=4, loop=22.9, whole=82.8, registers=(56, 56, 55, 53, 53)),
    },
    # No loop: a program turns one tile, whose rows are loaded 16 bytes a thread.
    turned_queries_and_keys: {"rotary_rows": Bound(values=16, whole=18.6, registers=(36, 43, 48, 36, 43), shared=4096)},
    first_store: {"store_one": Bound(whole=11, registers=(9, 9, 9, 9, 9), load=0)},
}
"""Call → kernel → bound; what a call launches besides has its bound at another."""
SPILLS = {(topk_of_logits_but_blocked_ids, 89): {"row_stats": 4}}
"""(Call, architecture) → kernel → bytes that it spills: one word is put aside so that 64 registers do and eight blocks share a
multiprocessor."""


def launched_kernels(folder: Path) -> set[str]:
    """The names of the Triton functions in a folder's folders that no other of them calls: those that the host launches."""
    functions: dict[str, ast.FunctionDef] = {}
    for path in folder.glob("*/*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(mark) for mark in node.decorator_list):
                functions[node.name] = node
    called = {name.id for function in functions.values() for name in ast.walk(function) if isinstance(name, ast.Name)}
    return functions.keys() - called


def test_a_kernel_is_what_no_other_calls(tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "kernel.py").write_text(
        "@triton.jit\ndef part(x):\n    return x\n\n"
        "@triton.jit(do_not_specialize=['n'])\ndef rows(x, n):\n    part(x)\n\n"
        "def launch(x):\n    rows[(1,)](x, 1)\n"
    )
    assert launched_kernels(tmp_path) == {"rows"}


def test_every_kernel_has_a_bound() -> None:
    """A kernel that is added gets a call and a bound here."""
    bounded = {kernel for bounds in BOUNDS.values() for kernel in bounds}
    assert len(bounded) > 25
    assert bounded == launched_kernels(Path(arkfast.kernels.__file__).parent)


@pytest.mark.slow
@pytest.mark.parametrize("call", BOUNDS, ids=lambda call: call.__name__)
def test_instructions_registers_memory_and_loads(compile_launches, arch, call):
    """Registers on every architecture, the rest on 9.0."""
    bounds, counted = BOUNDS[call], arch == 90
    found = [kernel for kernel in compile_launches(call, spills=SPILLS.get((call, arch)), listed=counted) if kernel.kernel in bounds]
    assert {kernel.kernel for kernel in found} == bounds.keys()
    over = []
    for kernel in found:
        bound, listing = bounds[kernel.kernel], kernel.listing
        figures = [("registers", kernel.registers, bound.registers[ARCHITECTURES.index(arch)])]
        if counted:
            figures += [
                ("instructions a value in the loop", listing.loop / bound.values, bound.loop),
                ("instructions a value", listing.whole / bound.values, bound.whole),
                ("stores to local memory", listing.aside, bound.aside),
                ("bytes of shared memory", kernel.shared, bound.shared),
                ("bits of the widest load, too few", bound.load - listing.load, 0),
            ]
        over += [f"{kernel.kernel}: {got:.1f} {what}, bound {most} ({kernel.constants})" for what, got, most in figures if got > most]
    assert over == []
