"""The losses of the three stages, each as a sum and a count.

A loss is never averaged here: the trainer divides the sums of a whole accumulation window, over all ranks, by the number of counting
positions, so that every token weighs the same wherever it fell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from arkfast.distill.objective import Divergences, Objective, divergences, overlap
from arkfast.distill.policy_gradient import policy_gradient
from arkfast.distill.references import joined, references
from arkfast.distill.sequence import at_predicting_positions
from arkfast.distill.weights import Weights
from arkfast.kernels import linear_log_softmax
from arkfast.models.family import Audio, SpeechModel
from arkfast.records import AllowedTokens, Batch, Rollout, TeacherScores

ALIKE = Weights()
PAPER = Objective()
"""The ARK-ASR paper's: KL(p‖q) on the union of both top-k."""


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """A differentiable sum over counting positions, and what to log with it."""

    total: torch.Tensor
    """Scalar float32, the sum that is differentiated."""
    count: torch.Tensor
    """Scalar float32, what the sum is divided by: how many positions it counts, or what they weigh together."""
    positions: torch.Tensor
    """Scalar float32, how many positions it counts, whatever they weigh."""
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """What to log, by name: (sum, count) scalars on the device, each divided after the whole window and all ranks are added up; a count of
    0 leaves the sum."""
    languages: tuple[str, ...] = ()
    """What the teacher was told of each utterance's language; see ``TeacherScores.languages``."""


class CTCHead(torch.nn.Linear):
    """A linear head on the adapter's output for connectionist temporal classification (Graves et al. 2006), training only.

    It makes the audio embeddings of a model trained from scratch align with the text; plain cross-entropy alone does not get there.
    The blank is the padding id, which no transcript contains. The head is never part of an exported model.
    """

    def __init__(self, hidden_size: int, vocab_size: int, blank: int, *, seed: int) -> None:
        super().__init__(hidden_size, vocab_size)
        self.blank = blank
        generator = torch.Generator().manual_seed(seed)
        bound = hidden_size**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            self.bias.zero_()

    @torch.no_grad()
    def transcribe(self, audio: Audio) -> list[list[int]]:
        """The best id of each embedding, repeats as one and blanks left out: ids of each clip of embeddings [B, A, H] and lengths [B]."""
        best = super().forward(audio[0].to(self.weight.dtype)).argmax(-1)
        rows = [row[:n] for row, n in zip(best.tolist(), audio[1].tolist(), strict=True)]
        return [[token for i, token in enumerate(row) if token != self.blank and row[i - 1 : i] != [token]] for row in rows]

    def nll(self, audio: Audio, targets: torch.Tensor, target_lens: torch.Tensor) -> torch.Tensor:
        """Σ −log p(transcript | audio) over the batch, float32. Rows whose transcript cannot fit their audio contribute 0.

        Args:
            audio: embeddings [B, A, H] and lengths [B].
            targets: [B, L] int64 transcripts, the end token last.
            target_lens: [B] int64, the end token included (it is no part of the alignment).
        """
        log_probs = torch.log_softmax(super().forward(audio[0].to(self.weight.dtype)).float(), -1).transpose(0, 1)
        return torch.nn.functional.ctc_loss(
            log_probs, targets, audio[1], target_lens - 1, blank=self.blank, reduction="sum", zero_infinity=True
        )


def cross_entropy_loss(
    model: SpeechModel,
    batch: Batch,
    audio: Audio | None,
    target: Rollout,
    blocked: torch.Tensor,
    *,
    allowed: AllowedTokens | None = None,
    ctc_head: CTCHead | None = None,
    ctc_weight: float = 0.0,
) -> LossSum:
    """−Σ log q(token) over the target's tokens, plus ``ctc_weight`` times the CTC term.

    Args:
        model: the student.
        batch: its inputs.
        audio: what ``encoded`` gave for them, with its graph.
        target: the tokens to be learnt, as a rollout (a transcript, or what a teacher produced); one row an utterance.
        blocked: int32 ids that the model never produces; they have no probability here either.
        allowed: gives what each position of an answer may have, where that differs; None: ``blocked`` says everything.
        ctc_head: the head of the CTC term, or None.
        ctc_weight: its weight.
    """
    row, place = target.packed_index()
    ids = target.tokens[row, place][:, None]
    ranges = None if allowed is None else allowed.row_ranges(place)
    log_probs = at_predicting_positions(
        model, batch, audio, target, lambda hidden, weight: linear_log_softmax(hidden, weight, ids, blocked=blocked, ranges=ranges)
    )
    total = cross_entropy = -log_probs.sum()
    count = target.lens.sum().float()
    metrics = {"asr_loss": (cross_entropy.detach(), count)}
    if ctc_head is not None and ctc_weight:
        assert audio is not None, "a CTC head aligns audio"
        ctc = ctc_head.nll(audio, target.tokens, target.lens)
        total = total + ctc_weight * ctc
        metrics["ctc_loss"] = (ctc.detach(), count)
    return LossSum(total=total, count=count, positions=count, metrics=metrics)


def opd_loss(
    model: SpeechModel,
    batch: Batch,
    audio: Audio | None,
    rollout: Rollout,
    scores: TeacherScores,
    *,
    tau: float,
    objective: Objective = PAPER,
    weights: Weights = ALIKE,
    blocked: torch.Tensor | None = None,
    allowed: AllowedTokens | None = None,
) -> LossSum:
    """Στ²·D(p, q) over every produced position that the teacher could score; by default D is KL(p‖q) on the union of both top-k.

    Rows that are to be learnt by their references go through the decoder in the same pass, and −Σ log q(token) over their references is
    added.

    Args:
        model: the student.
        batch: its inputs.
        audio: what ``encoded`` gave for them, with its graph.
        rollout: what it produced, with its top-k ids.
        scores: the teacher's view of those tokens.
        tau: τ, the temperature of both distributions.
        objective: which divergence, and on which ids; or that it is estimated from the produced tokens.
        weights: of the positions, in the sum and in the count that divides it; an id of a reference weighs 1.
        blocked, allowed: as for ``cross_entropy_loss``; read where rows are learnt by their references, and where the objective compares
            more than the ids that both list.
    """
    assert rollout.topk_ids is not None, "a rollout for distillation keeps its top-k ids"
    produced, learnt = len(rollout.topk_ids), references(batch, scores.by_reference)
    rows = rollout if learnt is None else joined(rollout, learnt)
    factors = weights.of(rollout)

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[Divergences, torch.Tensor]:
        if objective.kind == "divergence":
            found = divergences(
                objective, hidden[:produced], weight, rollout, scores, tau=tau, weights=factors, blocked=blocked, allowed=allowed
            )
        else:
            found = policy_gradient(
                objective, hidden[:produced], weight, rollout, scores, weights=factors, blocked=blocked, allowed=allowed
            )
        if learnt is None:
            return found, hidden.new_zeros(0)
        row, place = learnt.packed_index()
        ranges = None if allowed is None else allowed.row_ranges(place)
        return found, linear_log_softmax(hidden[produced:], weight, learnt.tokens[row, place][:, None], blocked=blocked, ranges=ranges)

    found, log_probs = at_predicting_positions(model, batch, audio, rows, head)
    count = found.valid.sum().float()
    weight = count if factors is None else factors.masked_fill(~found.valid, 0.0).sum()
    cross_entropy, words = -log_probs.float().sum(), torch.full_like(count, float(len(log_probs)))
    # What the teacher cannot see is on no support, and so in no overlap either.
    shared = overlap(rollout.topk_ids, scores.ids) & torch.isfinite(scores.student_scores) & found.valid[:, None]
    return LossSum(
        total=found.total if learnt is None else found.total + cross_entropy,
        count=weight + words,
        positions=count + words,
        metrics={
            "asr_loss": (cross_entropy.detach(), words),
            "opd_loss": (found.total.detach(), weight),
            "opd_valid_topk_mean": (torch.where(found.valid, found.support, 0).sum().float(), count),
            "opd_overlap_mean": (shared.sum().float(), count),
            "opd_aligned_share": (scores.valid.sum().float(), torch.full_like(count, float(len(scores.valid)))),
        },
    )
