"""A loss with the arguments of a TRL-style distillation trainer: replace the trainer's own loss by one of these two functions.

``generalized_jsd_loss`` takes logits, as such trainers do, and renormalises over the union of both models' top-k instead of the whole
vocabulary. ``generalized_jsd_loss_from_hidden`` takes the last hidden states and the heads, so that no [batch, length, vocabulary] tensor
exists; a trainer calls the models' backbones in place of the models. Run this file to see what each needs.
"""

from __future__ import annotations

import argparse
from typing import Literal

import torch
from torch.nn import functional as F

from arkfast.kernels import linear_kl, linear_topk_lse, opd_union_kl, topk_lse, union_kl, union_support, union_topk_kl

Reduction = Literal["batchmean", "sum", "none"]


def settings_of(beta: float, temperature: float) -> dict[str, object]:
    """The trainers' ``beta``: 0 is KL(teacher‖student), 1 is KL(student‖teacher), anything between is the generalised JSD."""
    divergence = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    return {"divergence": divergence, "tau": temperature, **({"beta": beta} if divergence == "jsd" else {})}


def reduce(rows: torch.Tensor, kept: torch.Tensor, temperature: float, reduction: Reduction) -> torch.Tensor:
    """Rows [N] of τ² · D → what such trainers return, which has no factor τ²; "batchmean" is over the positions that labels keep."""
    rows = rows / temperature**2
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / kept.sum().clamp_min(1)


def generalized_jsd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    top_k: int = 32,
) -> torch.Tensor:
    """Generalised JSD on the union of both top-k.

    Args:
        student_logits: [B, L, V] with gradient.
        teacher_logits: [B, L, V] on the same vocabulary; no gradient.
        labels: [B, L]; positions with −100 do not count. None keeps all.
        beta: weight of the teacher in the mixture; 0 and 1 are the two KL.
        temperature: divides both logits.
        reduction: "none" gives [B · L] values, 0 where labels do not count.
        top_k: ids of each model.
    """
    student, teacher = student_logits.flatten(0, 1), teacher_logits.flatten(0, 1).detach()
    kept = student.new_ones(len(student), dtype=torch.bool) if labels is None else labels.flatten() != -100
    if beta == 0.0:
        rows = union_topk_kl(student, teacher, top_k, tau=temperature, reduction="none").masked_fill(~kept, 0.0)
        return reduce(rows, kept, temperature, reduction)
    student_ids = topk_lse(student.detach(), top_k).ids
    top = topk_lse(teacher, top_k)
    ids = union_support(student_ids, top.ids).ids.masked_fill(~kept[:, None], -1)
    columns = ids.clamp_min(0).long()
    rows = union_kl(teacher.gather(1, columns), student.gather(1, columns), ids, **settings_of(beta, temperature)).rows
    return reduce(rows, kept, temperature, reduction)


def generalized_jsd_loss_from_hidden(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    labels: torch.Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    top_k: int | None = 32,
) -> torch.Tensor:
    """The same without logits; gradients go to ``student_hidden`` and ``student_head``.

    Args:
        student_hidden: [B, L, Hs] what the student's head is applied to.
        student_head: [V, Hs] its weight.
        teacher_hidden, teacher_head: [B, L, Ht], [V, Ht] the teacher's, on the same vocabulary.
        top_k: ids of each model; None takes the whole vocabulary, in chunks.
        labels, beta, temperature, reduction: as above.
    """
    student, teacher = student_hidden.flatten(0, 1), teacher_hidden.flatten(0, 1).detach()
    kept = student.new_ones(len(student), dtype=torch.bool) if labels is None else labels.flatten() != -100
    settings = settings_of(beta, temperature)
    if top_k is None:
        weight = kept.float()
        rows = linear_kl(student, student_head, teacher, teacher_head.detach(), row_weight=weight, reduction="none", **settings)
        return reduce(rows, kept, temperature, reduction)
    # A rollout that keeps its top-k saves this product: the student then needs none over the vocabulary at all.
    student_ids = linear_topk_lse(student.detach(), student_head.detach(), top_k).ids.masked_fill(~kept[:, None], -1)
    top = linear_topk_lse(teacher, teacher_head.detach(), top_k, gather_ids=student_ids)
    assert top.gathered is not None
    teacher_ids = top.ids.masked_fill(~kept[:, None], -1)
    scores = torch.cat([top.gathered, top.values], dim=1)
    rows = opd_union_kl(student, student_head, student_ids, teacher_ids, scores, reduction="none", **settings).loss
    return reduce(rows, kept, temperature, reduction)


def eager_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float) -> torch.Tensor:
    """What is being replaced: the JSD over the whole vocabulary, written out."""
    log_q, log_p = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    to_middle = beta * F.kl_div(log_m, log_p, log_target=True, reduction="sum")
    return (to_middle + (1 - beta) * F.kl_div(log_m, log_q, log_target=True, reduction="sum")) / log_q[..., 0].numel()


def main() -> None:
    from peak_memory import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--positions", type=int, default=4096 if on_gpu else 1024)
    parser.add_argument("--vocabulary", type=int, default=151_936 if on_gpu else 20_000)
    parser.add_argument("--features", type=int, default=896 if on_gpu else 64)
    args = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    torch.manual_seed(0)
    # Heads that agree in part, scores of standard deviation 3: peaked distributions, as of trained models.
    shared = torch.randn(args.vocabulary, args.features, device=device)
    head, teacher_head = (
        (3 * (shared + 0.3 * torch.randn_like(shared)) / args.features**0.5).to(dtype).requires_grad_(trained) for trained in (True, False)
    )
    teacher_hidden = torch.randn(1, args.positions, args.features, device=device).to(dtype)
    hidden = teacher_hidden.clone().requires_grad_()
    print(f"{args.positions} positions, vocabulary {args.vocabulary}, {args.features} features, {dtype}, on {device}")
    report("before: eager, all logits", lambda: eager_loss(hidden @ head.t(), teacher_hidden @ teacher_head.t(), 0.5), head)
    report("after: logits, union", lambda: generalized_jsd_loss(hidden @ head.t(), teacher_hidden @ teacher_head.t()), head)
    report("after: hidden, union", lambda: generalized_jsd_loss_from_hidden(hidden, head, teacher_hidden, teacher_head), head)
    report("after: hidden, all ids", lambda: generalized_jsd_loss_from_hidden(hidden, head, teacher_hidden, teacher_head, top_k=None), head)


if __name__ == "__main__":
    main()
