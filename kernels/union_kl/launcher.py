"""Launches of this op's kernels: allocation, grids, configurations.

Letters: T positions, U slots a position, H features, V ids. Everything returned is float32 or int32 unless said.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.strides import block_of, unit_rows

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
"""In the order of the kernels' constants, as are the supports."""
SUPPORTS = ("union", "teacher", "student", "intersection")
MOST_SLOTS = 1024
"""Slots of scores that one program holds."""
MOST_UNION = 128
"""Slots among which one program finds repeats, by comparing each with each."""

# Width is the number of slots. A row of up to 64 is 256 bytes: one warp has it in registers and needs no barrier.
ROW_TABLE = (
    Rule(config=Config(num_warps=1, num_stages=1), max_width=64),
    Rule(config=Config(num_warps=4, num_stages=1)),
)
# Width is the number of slots. TILE is the number of gathered weight elements in flight: 16 KB over 8 warps and 64 registers a thread leave
# room for four programs on a multiprocessor, which cover each other's waits. The assembler's own choice on 9.0 is 75 registers; on other
# GPUs, and with more slots, a limit of 64 would spill. The rows come from the L2 cache.
SPARSE_TABLE = (
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"TILE": 8192}), itemsize=2, min_arch=100),
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"TILE": 8192}, most_registers=64), itemsize=2, min_arch=90, max_width=64),
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"TILE": 8192}), itemsize=2),
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"TILE": 4096})),
)


def unfit_slots(slots: int, most: int) -> str | None:
    """Why a kernel that holds ``most`` slots does not take so many; None when it does."""
    return f"more than {most} slots a position" if slots > most else None


@on_its_device
def launch_union(student_ids: torch.Tensor, teacher_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.unique_ids`` of both lists [T, Ks], [T, Kt] side by side: (ids [T, Ks + Kt], their number [T])."""
    from arkfast.kernels.union_kl import kernel

    positions, slots = student_ids.shape[0], student_ids.shape[1] + teacher_ids.shape[1]
    ids = torch.empty(positions, slots, dtype=torch.int32, device=student_ids.device)
    support = torch.empty(positions, dtype=torch.int32, device=student_ids.device)
    if positions:
        student_ids, teacher_ids = unit_rows(student_ids), unit_rows(teacher_ids)
        kernel.union_ids[(positions,)](
            student_ids,
            teacher_ids,
            ids,
            support,
            student_ids.stride(0),
            teacher_ids.stride(0),
            student_ids.shape[1],
            teacher_ids.shape[1],
            UB=block_of(slots),
            **pick(ROW_TABLE, device=ids.device, width=slots).kwargs(),
        )
    return ids, support


@on_its_device
def launch_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    *,
    tail: bool,
    min_support: int,
    tau: float,
    divergence: str,
    beta: float,
    grad: bool,
    gather: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Scores [T, U] (with ``tail`` one column more) and ids [T, U] → rows [T], support [T] and, with ``grad``, the scores' gradient.

    With ``gather`` the student's scores are logits [T, V], of which the columns at ``ids`` are read.
    """
    from arkfast.kernels.union_kl import kernel

    positions, device = student.shape[0], student.device
    rows = torch.empty(positions, dtype=torch.float32, device=device)
    support = torch.empty(positions, dtype=torch.int32, device=device)
    d_student = torch.empty(teacher.shape, dtype=torch.float32, device=device) if grad else None
    if positions:
        student, teacher, ids = unit_rows(student), unit_rows(teacher), unit_rows(ids)
        kernel.union_kl_rows[(positions,)](
            teacher,
            student,
            ids,
            rows,
            support,
            d_student,
            teacher.stride(0),
            student.stride(0),
            ids.stride(0),
            ids.shape[1],
            min_support,
            float(tau),
            float(beta),
            KIND=DIVERGENCES.index(divergence),
            TAIL=int(tail),
            GATHER=gather,
            NEED_GRAD=grad,
            UB=block_of(teacher.shape[1]),
            **pick(ROW_TABLE, device=device, width=teacher.shape[1]).kwargs(),
        )
    return rows, support, d_student


class SparseRows(NamedTuple):
    """What one pass over the positions leaves."""

    rows: torch.Tensor
    """[T] τ² · D."""
    support: torch.Tensor
    """[T] int32."""
    ids: torch.Tensor | None
    """[T, U] int32 the ids that count, in slots, −1 elsewhere; None without gradient."""
    grad: torch.Tensor | None
    """[T, U] gradient to the student's scores; None without gradient."""


@on_its_device
def launch_sparse(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_scores: torch.Tensor,
    teacher_lse: torch.Tensor | None,
    *,
    support: str,
    min_support: int,
    tau: float,
    divergence: str,
    beta: float,
    need_grad: bool,
) -> SparseRows:
    """hidden [T, H], weight [V, H], ids [T, Ks] and [T, Kt], teacher_scores [T, Ks + Kt] → the loss of each position and, with
    ``need_grad``, its gradient to the scores.

    ``teacher_lse`` [T] is taken from the scores of ids that only the student's list holds; None takes nothing.
    """
    import triton

    from arkfast.kernels.union_kl import kernel

    (positions, features), slots, device = hidden.shape, teacher_scores.shape[1], hidden.device
    out = SparseRows(
        rows=torch.empty(positions, dtype=torch.float32, device=device),
        support=torch.empty(positions, dtype=torch.int32, device=device),
        ids=torch.empty(positions, slots, dtype=torch.int32, device=device) if need_grad else None,
        grad=torch.empty(positions, slots, dtype=torch.float32, device=device) if need_grad else None,
    )
    if not positions:
        return out
    slot_block = block_of(slots)
    config = pick(SPARSE_TABLE, device=device, width=slot_block, dtype=weight.dtype).kwargs()
    feature_block = block_of(features, most=min(256, config.pop("TILE") // slot_block))
    hidden, weight, teacher_scores = unit_rows(hidden), unit_rows(weight), unit_rows(teacher_scores)
    student_ids, teacher_ids = unit_rows(student_ids), unit_rows(teacher_ids)
    kernel.union_kl_sparse[(positions,)](
        hidden,
        weight,
        student_ids,
        teacher_ids,
        teacher_scores,
        None if teacher_lse is None else teacher_lse.contiguous(),
        out.rows,
        out.support,
        out.ids,
        out.grad,
        hidden.stride(0),
        weight.stride(0),
        student_ids.stride(0),
        teacher_ids.stride(0),
        teacher_scores.stride(0),
        student_ids.shape[1],
        teacher_ids.shape[1],
        weight.shape[0],
        features,
        min_support,
        float(tau),
        float(beta),
        KIND=DIVERGENCES.index(divergence),
        SUPPORT=SUPPORTS.index(support),
        ORIGINAL=teacher_lse is not None,
        NEED_GRAD=need_grad,
        UB=slot_block,
        BH=feature_block,
        NH=triton.cdiv(features, feature_block),
        **config,
    )
    return out


@on_its_device
def launch_scatter(grad: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[T, width] in ``dtype``: scale [T] · grad [T, U] at ids [T, U] that differ within a row, 0 elsewhere."""
    from arkfast.kernels.union_kl import kernel

    out = torch.zeros(grad.shape[0], width, dtype=dtype, device=grad.device)
    if grad.numel():
        slots = grad.shape[1]
        config = pick(ROW_TABLE, device=grad.device, width=slots).kwargs()
        kernel.scatter_rows[(len(grad),)](
            grad.contiguous(), scale.contiguous(), ids.contiguous(), out, width, slots, UB=block_of(slots), **config
        )
    return out
