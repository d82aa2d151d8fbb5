"""Distillation losses as others compute them: eager dense, full-vocabulary in chunks, and the published trainer's. None of them
calls an op of ours.

Every function takes ``LossInputs`` and returns (loss, gradient to hidden, gradient to weight).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from shapes import ORIGINAL_RHO, Shape

from harness.common import linear_input, normal, zipf_ids
from harness.oracles import LossOracle, forward_kl_rows, further, logits64, rounding, spans

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
CHUNK_ROWS = 1_024
"""Rows of logits of the chunked head: the size that published heads take."""
SHARED = 12
"""Ids of 32 that both models' top-k hold: a union of 52, the mean that the recipe's authors report."""


@dataclass(frozen=True)
class LossInputs:
    """Everything that any of the losses needs."""

    hidden: torch.Tensor
    """[T, H] bfloat16, with gradient."""
    weight: torch.Tensor
    """[V, H] bfloat16, with gradient."""
    hidden_t: torch.Tensor
    """[T, HT]"""
    weight_t: torch.Tensor
    """[V, HT]"""
    student_ids: torch.Tensor
    """[T, K] int32 from the rollout, no repeats within a row."""
    teacher_ids: torch.Tensor
    """[T, K] int32"""
    teacher_scores: torch.Tensor
    """[T, 2K] float32, exact at both lists."""
    prompts: torch.Tensor | None = None
    """[B, P, H], with gradient: hidden states of prompt and answer, of which ``hidden`` are the last of each row."""
    prompts_t: torch.Tensor | None = None
    """[B, P, HT]"""


def products(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """weight[ids[t, u]] · hidden[t] in float64, [T, U]."""
    rows = [torch.einsum("th,tuh->tu", hidden[s].double(), weight[ids[s].long()].double()) for s in spans(ids.shape[0])]
    return torch.cat(rows)


def exact_scores(x: LossInputs, ids: torch.Tensor) -> torch.Tensor:
    """The teacher's scores at ids [T, U] in float64."""
    return products(x.hidden_t, x.weight_t, ids)


def loss_inputs(shape: Shape, device: torch.device, seed: int) -> LossInputs:
    """Random models, the teacher's own top-k, and rollout ids that share ``SHARED`` of 32 with it; the rest are frequent words."""
    T, V, K = shape.T, shape.V, shape.K
    hidden, weight = linear_input(T, V, shape.H, device, seed)
    hidden_t, weight_t = linear_input(T, V, shape.HT, device, seed + 10)
    teacher_ids = torch.cat([(hidden_t[s] @ weight_t.t()).topk(K, dim=1).indices for s in spans(T, CHUNK_ROWS)]).to(torch.int32)
    others = zipf_ids(T, K, V, device, seed)
    # A step of its own for each slot makes a row's ids differ: at most K in a row, spread over the vocabulary.
    stride = V // (2 * K)
    others = (others % stride) + stride * torch.arange(K, device=device, dtype=torch.int32)
    shared = max(1, K * SHARED // 32)
    taken = (others[:, :, None] == teacher_ids[:, None, :shared]).any(-1)
    student_ids = torch.cat([teacher_ids[:, :shared], torch.where(taken, others + stride * K, others)[:, shared:]], dim=1)
    scores = products(hidden_t, weight_t, torch.cat([student_ids, teacher_ids], dim=1)).float()
    prompts = prompts_t = None
    if shape.mode == "original":
        before = (ORIGINAL_RHO - 1) * T // shape.B
        prompts, prompts_t = (
            torch.cat([normal(shape.B, before, h.shape[1], device=device, seed=seed + 20), h.view(shape.B, -1, h.shape[1])], dim=1)
            for h in (hidden, hidden_t)
        )
        prompts.requires_grad_()
    return LossInputs(
        hidden.requires_grad_(), weight.requires_grad_(), hidden_t, weight_t, student_ids, teacher_ids, scores, prompts, prompts_t
    )


def gradients(loss: torch.Tensor, x: LossInputs) -> Result:
    """A loss and its gradients, without leaving any in the inputs."""
    return (loss.detach(), *torch.autograd.grad(loss, (x.hidden, x.weight)))


def dense_union_kl(
    hidden: torch.Tensor, weight: torch.Tensor, student_ids: torch.Tensor, teacher_ids: torch.Tensor, teacher_scores: torch.Tensor
) -> torch.Tensor:
    """The union loss from full student logits, in eager PyTorch: what a careful trainer without kernels runs."""
    logits = hidden @ weight.t()
    repeated = (teacher_ids[:, :, None] == student_ids[:, None, :]).any(-1)
    outside = torch.cat([torch.zeros_like(student_ids, dtype=torch.bool), repeated], dim=1)
    student = logits.gather(1, torch.cat([student_ids, teacher_ids], dim=1).long()).float().masked_fill(outside, float("-inf"))
    log_p, log_q = teacher_scores.masked_fill(outside, float("-inf")).log_softmax(1), student.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).masked_fill(outside, 0.0).sum(1).mean()


def dense_block(
    hidden: torch.Tensor, weight: torch.Tensor, hidden_t: torch.Tensor, weight_t: torch.Tensor, student_ids: torch.Tensor, k: int
) -> torch.Tensor:
    """Teacher top-k and union loss from both models' full logits of the answer's positions, in eager PyTorch."""
    with torch.no_grad():
        logits_t = hidden_t @ weight_t.t()
        values, teacher_ids = logits_t.topk(k, dim=1)
        scores = torch.cat([logits_t.gather(1, student_ids.long()), values], dim=1).float()
    return dense_union_kl(hidden, weight, student_ids, teacher_ids.to(torch.int32), scores)


def full_kl(hidden: torch.Tensor, weight: torch.Tensor, hidden_t: torch.Tensor, weight_t: torch.Tensor) -> torch.Tensor:
    """Mean KL over the whole vocabulary from both models' full logits, in eager PyTorch."""
    with torch.no_grad():
        log_p = (hidden_t @ weight_t.t()).float().log_softmax(1)
    log_q = (hidden @ weight.t()).float().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


@torch.no_grad()
def chunked_full_head(x: LossInputs) -> Result:
    """Mean KL over the whole vocabulary in row chunks, gradients made with the loss: how published fused heads bound their memory.

    Four products a chunk; the weight's gradient is summed in float32.
    """
    T = x.hidden.shape[0]
    loss = torch.zeros((), device=x.hidden.device)
    d_hidden, d_weight = torch.empty_like(x.hidden), torch.zeros(x.weight.shape, dtype=torch.float32, device=x.weight.device)
    for s in spans(T, CHUNK_ROWS):
        log_p = (x.hidden_t[s] @ x.weight_t.t()).float().log_softmax(1)
        log_q = (x.hidden[s] @ x.weight.t()).float().log_softmax(1)
        p = log_p.exp()
        loss += (p * (log_p - log_q)).sum() / T
        g = (log_q.exp_().sub_(p).div_(T)).to(x.hidden.dtype)
        d_hidden[s] = g @ x.weight
        d_weight += g.t() @ x.hidden[s]
    return loss, d_hidden, d_weight.to(x.weight.dtype)


def original(x: LossInputs) -> Result:
    """The published trainer's loss section as its steps are described: full logits of prompt and answer, lists, elements written singly.

    It takes the teacher's raw logits at the teacher's ids and log-probabilities at ids that only the student has, and the student's
    softmax in bfloat16. The order of work is its own too: one gather and one copy to the host for each position, one dictionary for each
    union, and two element writes for each id.
    """
    assert x.prompts is not None
    assert x.prompts_t is not None
    device, (T, K) = x.hidden.device, x.student_ids.shape
    B, P = x.prompts.shape[:2]
    where = [(b, P - T // B + i) for b in range(B) for i in range(T // B)]
    batch, place = (torch.tensor(part, device=device) for part in zip(*where, strict=True))
    with torch.no_grad():
        chosen = (x.prompts_t @ x.weight_t.t())[batch, place].clone()
        values, ids = chosen.topk(K, dim=-1)
        log_probabilities = torch.log_softmax(chosen.float(), dim=-1)
        of_teacher = [list(zip(row.tolist(), row_values.tolist(), strict=True)) for row, row_values in zip(ids, values, strict=True)]
        of_student: list[list[tuple[int, float]]] = []
        for t in range(T):
            wanted = x.student_ids[t].tolist()
            index = torch.tensor(wanted, dtype=torch.long, device=device)
            of_student.append(list(zip(wanted, log_probabilities[t].gather(0, index).cpu().tolist(), strict=True)))
    unions: list[dict[int, float]] = []
    for mine, theirs in zip(of_student, of_teacher, strict=True):
        union = dict(mine)
        union.update(theirs)
        unions.append(union)
    width = max(len(union) for union in unions)
    support = torch.zeros(T, width, dtype=torch.long, device=device)
    teacher = torch.full((T, width), float("-inf"), device=device)
    inside = torch.zeros(T, width, dtype=torch.bool, device=device)
    for t, union in enumerate(unions):
        support[t, : len(union)] = torch.tensor(list(union), device=device)
        for u, score in enumerate(union.values()):
            teacher[t, u] = score
            inside[t, u] = True
    logits = (x.prompts @ x.weight.t())[batch, place]
    student = logits.gather(1, support).masked_fill(~inside, float("-inf"))
    log_q, log_p = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
    loss = torch.where(inside, log_p.exp() * (log_p - log_q), 0.0).sum(-1).mean()
    d_prompts, d_weight = torch.autograd.grad(loss, (x.prompts, x.weight))
    return loss.detach(), d_prompts[:, P - T // B :].reshape(T, -1), d_weight


def original_complaint(x: LossInputs, result: Result, oracle: Any) -> str | None:
    """The original's loss against its own definition in float64: scores of student-only ids are lowered by the row's log-sum-exp."""
    rows, largest = [], 0.0
    for s in spans(x.hidden.shape[0]):
        logits_t = logits64(x.hidden_t[s], x.weight_t)
        lse = logits_t.logsumexp(1, keepdim=True)
        sets = x.student_ids[s].long(), x.teacher_ids[s].long()
        teacher = torch.full_like(logits_t, float("-inf"))
        teacher.scatter_(1, sets[0], logits_t.gather(1, sets[0]) - lse)
        teacher.scatter_(1, sets[1], logits_t.gather(1, sets[1]))
        student = logits64(x.hidden.detach()[s], x.weight.detach()).masked_fill(teacher.isinf(), float("-inf"))
        rows.append(forward_kl_rows(teacher, student))
        seen = torch.cat([teacher[~teacher.isinf()], student[~student.isinf()]])
        largest = max(largest, seen.abs().max().item())
    # The student's log-softmax is rounded too, from scores at most twice as far apart as they are large.
    return further("the loss", result[0], torch.cat(rows).mean(), 3 * rounding(largest))


def same_direction(x: LossInputs, result: Result, oracle: LossOracle) -> str | None:
    """For losses whose reduction is their own: the hidden gradient must point where the oracle's does."""
    got, wanted = result[1].double().flatten(), oracle.d_hidden.flatten()
    cosine = (got @ wanted / (got.norm() * wanted.norm()).clamp_min(1e-300)).item()
    return None if cosine > 0.98 else f"the hidden gradient's cosine with the right one is {cosine:.3f}"


def liger_heads() -> dict[str, Callable[[LossInputs], Result]]:
    """Liger's two fused distillation heads at their forward-KL end; only to be called where the package is installed."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    from liger_kernel.transformers import LigerFusedLinearJSD

    def run_chunked(x: LossInputs) -> Result:
        head = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
        labels = torch.zeros(x.hidden.shape[0], dtype=torch.long, device=x.hidden.device)
        return gradients(head(x.hidden, x.weight, x.hidden_t, x.weight_t, labels), x)

    def run_fused(x: LossInputs) -> Result:
        return gradients(LigerFusedLinearJSD(jsd_beta=0.0)(x.hidden, x.weight, x.hidden_t, x.weight_t), x)

    return {"Liger chunked JSD": run_chunked, "Liger fused_linear_jsd": run_fused}
