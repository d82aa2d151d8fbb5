"""A distillation loss from what a scoring server gives: the teacher's top-k ids and their log-probabilities for each response token.

This is the form in which verl-style trainers receive a teacher. The mass that the server did not send goes into one more outcome, the tail
bucket, so that the student is told how much it may keep outside the list; without it both models are renormalised over the list. The
student's logits never exist for more than a chunk of positions. Run this file to see what that saves.
"""

from __future__ import annotations

import argparse
import functools
from typing import Literal

import torch

from arkfast.kernels import gather_linear, linear_log_softmax, linear_logprob, union_kl


def topk_distillation_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    teacher_topk_ids: torch.Tensor,
    teacher_topk_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    responses: torch.Tensor | None = None,
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
    tail: bool = True,
    chunk_rows: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean divergence over response tokens, and metrics as tensors on the device.

    Args:
        hidden: [B, L, H] last hidden states of the student at the positions that predict the response tokens.
        lm_head_weight: [V, H] its head, whole: a head cut along its vocabulary (tensor parallel) is not supported.
        teacher_topk_ids: [B, L, K] int; negative where the server sent fewer than K.
        teacher_topk_logprobs: [B, L, K] at temperature 1 over the whole vocabulary; −inf where there is none.
        response_mask: [B, L] True or 1 at response tokens.
        responses: [B, L] the sampled tokens; given, their mean log-probability and the mean entropy are among the metrics, which costs one
            more product without gradient.
        divergence: KL(teacher‖student), KL(student‖teacher) or the JSD of the two.
        tail: with the tail bucket, which needs the student's probabilities and so products over the vocabulary; without it the student is
            evaluated at K ids per position and at nothing else.
        chunk_rows: positions whose logits exist at once; None takes what suits the device.
    """
    mask = response_mask.flatten().bool()
    rows_hidden = hidden.flatten(0, 1)
    ids = teacher_topk_ids.flatten(0, 1).to(torch.int32).masked_fill(~mask[:, None], -1)
    teacher = teacher_topk_logprobs.flatten(0, 1).float()
    if tail:
        # Log-probabilities are logits whose log-sum-exp is 0, on either side.
        log_q = linear_log_softmax(rows_hidden, lm_head_weight, ids, chunk_rows=chunk_rows)
        zero = torch.zeros_like(teacher[:, 0])
        union = union_kl(teacher, log_q, ids, divergence=divergence, tail=True, teacher_lse=zero, student_lse=zero, min_support=1)
    else:
        scores = gather_linear(rows_hidden, lm_head_weight, ids)
        union = union_kl(teacher, scores, ids, divergence=divergence)
    count = union.valid.sum().clamp_min(1)
    loss = union.rows.sum() / count
    seen = teacher.exp().masked_fill(ids < 0, 0.0).sum(1)
    metrics = {"tokens": union.valid.sum(), "teacher_mass": (seen * union.valid).sum() / count}
    if responses is not None:
        with torch.no_grad():
            tokens = responses.flatten().to(torch.int32).masked_fill(~mask, -1)
            logp, entropy = linear_logprob(rows_hidden, lm_head_weight, tokens, entropy=True, chunk_rows=chunk_rows)
            metrics["logprob"] = logp.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
            metrics["entropy"] = entropy.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
    return loss, metrics


def eager_loss(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """What is being replaced: all logits, their log-softmax, a gather, and the tail bucket written out."""
    log_q = (hidden @ weight.t()).float().log_softmax(-1).gather(-1, ids.long())
    tails = (torch.log((1 - x.exp().sum(-1, keepdim=True)).clamp_min(2.0**-17)) for x in (logprobs, log_q))
    p, q = (torch.cat([x, tail], -1) for x, tail in zip((logprobs, log_q), tails, strict=True))
    return (p.exp() * (p - q)).sum(-1).mean()


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
    head = (3 * torch.randn(args.vocabulary, args.features, device=device) / args.features**0.5).to(dtype).requires_grad_()
    hidden = torch.randn(1, args.positions, args.features, device=device).to(dtype).requires_grad_()
    with torch.no_grad():
        # A teacher that is the student, unsure of itself.
        logits = hidden @ head.t()
        top = (logits.float() + 0.5 * torch.randn_like(logits.float())).log_softmax(-1).topk(32)
        del logits
    mask = torch.ones(1, args.positions, dtype=torch.bool, device=device)
    print(f"{args.positions} positions, vocabulary {args.vocabulary}, {args.features} features, {dtype}, on {device}")
    after = functools.partial(topk_distillation_loss, hidden, head, top.indices, top.values, mask, chunk_rows=256)
    report("before: eager, all logits", lambda: eager_loss(hidden, head, top.indices, top.values), head)
    report("after: tail bucket, chunks", lambda: after()[0], head)
    report("after: no tail, K ids", lambda: after(tail=False)[0], head)


if __name__ == "__main__":
    main()
