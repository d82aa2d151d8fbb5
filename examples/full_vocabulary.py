"""Full-vocabulary distillation and a policy gradient from hidden states, without a [T, V] tensor that outlives a chunk.

For trainers that have both models' last hidden states and heads. Heads that are split along the vocabulary are not handled: gather them
first.
"""

from __future__ import annotations

import math

import torch

from arkfast.kernels import linear_kl, linear_logprob, row_log_softmax


def distillation_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    *,
    beta: float = 0.5,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """Mean generalised JSD over the tokens of ``mask`` [T]; each model is (hidden [T, H], head [V, H])."""
    rows = linear_kl(*student, *teacher, divergence="jsd", beta=beta, row_weight=mask.float(), reduction="sum", chunk_rows=chunk_rows)
    return rows / mask.sum().clamp_min(1)


def policy_loss(
    student: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor, advantages: torch.Tensor, *, entropy_bonus: float = 0.01
) -> torch.Tensor:
    """REINFORCE with an entropy bonus over tokens [T]."""
    logp, entropy = linear_logprob(*student, tokens, entropy=True)
    return -(logp * advantages + entropy_bonus * entropy).mean()


def confidences(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Probability of each produced token from a decode step's logits [T, V]."""
    return row_log_softmax(logits, tokens[:, None])[:, 0].exp()


def main() -> None:
    """Full logits on one side, the chunked op on the other."""
    from peak_memory import report

    device = "cuda" if torch.cuda.is_available() else "cpu"
    positions, vocabulary = (4096, 151_936) if device == "cuda" else (512, 4000)
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 64, generator=generator).to(device).requires_grad_() for n in (positions, vocabulary))
    teacher = tuple(torch.randn(n, 128, generator=generator).to(device) / 8 for n in (positions, vocabulary))
    mask = torch.ones(positions, dtype=torch.bool, device=device)

    def dense() -> torch.Tensor:
        log_q, log_p = (hidden @ head.t()).log_softmax(-1), (teacher[0] @ teacher[1].t()).log_softmax(-1)
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean()

    report("before: full logits", dense, head)
    report("after: linear_kl", lambda: distillation_loss((hidden, head), teacher, mask, chunk_rows=positions // 8), head)
    tokens = torch.randint(0, vocabulary, (positions,), generator=generator).to(device)
    advantages = torch.randn(positions, generator=generator).to(device)
    report("linear_logprob", lambda: policy_loss((hidden, head), tokens, advantages), head)
    chosen = confidences(hidden.detach()[:4] @ head.detach().t(), tokens[:4])
    print("confidences of four tokens:", ", ".join(f"{p:.1e}" for p in chosen.tolist()))


if __name__ == "__main__":
    main()
