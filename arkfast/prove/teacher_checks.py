"""The teacher's side of the comparisons: its vocabulary, its scores, and the loss that is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from arkfast.distill.teachers import Teacher
from arkfast.distill.teachers.direct import DirectTeacher
from arkfast.distill.teachers.vocabulary import differing_ids
from arkfast.kernels import opd_union_kl
from arkfast.models.outside import Outside
from arkfast.prove.clips import Clip
from arkfast.prove.original_loss import union_loss
from arkfast.prove.ours import Heard, Ids, Scored
from arkfast.prove.outcome import Outcome, not_compared, within
from arkfast.records import InputError, TokenizerLike

VOCABULARY = "vocabularies of student and teacher"
CHECKPOINT = "the teacher's checkpoint"
SCORES = "teacher scores beside a dense forward in Transformers"
LOSS, MIXED, CHAIN = "loss beside the original's", "loss beside the original's mixture", "loss beside Transformers' scores of both models"
DEEP, EXACT = 1e-4, 1e-6


def refused(own: Ids, folder: Path, error: InputError) -> Outcome:
    """What it means that a teacher could not be loaded beside the student."""
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # its annotations allow classes that are no tokenizers
    except (OSError, ValueError):
        return Outcome(name=CHECKPOINT, verdict="FAIL", detail=str(error))
    theirs: TokenizerLike = loaded
    differing = differing_ids(own.interface.tokenizer, theirs, own.allowed)
    if not differing:
        return Outcome(name=CHECKPOINT, verdict="FAIL", detail=str(error))
    return within(VOCABULARY, float(len(differing)), 0.0, reason="ids are the same tokens or they are not", detail=str(error))


def vocabulary(own: Ids, teacher: Teacher) -> Outcome:
    """Whether ids mean the same to both, of a teacher that was loaded."""
    if not isinstance(teacher, DirectTeacher):
        return not_compared(VOCABULARY, "this backend has a vocabulary of its own and aligns the texts")
    detail = f"{own.allowed.count} ids may be produced, and each is the same token to both"
    return within(VOCABULARY, 0.0, 0.0, reason="ids are the same tokens or they are not", detail=detail)


@dataclass(frozen=True)
class Dense:
    """What one dense forward in Transformers says of the student's answers, packed over their positions. N positions, S slots."""

    at: Tensor
    """[N, S] logits at the slots of ``lists``; −inf where a slot is empty."""
    best: Tensor
    """[N, K] the largest logits of allowed ids, descending."""
    lse: Tensor
    """[N] log-sum-exp over the allowed ids."""
    seen: Tensor
    """[N] bool: False at the positions of a clip that Transformers' own cannot be asked about, where the numbers above mean nothing."""
    largest: float
    """The largest size of a finite logit of an allowed id."""
    left_out: str
    """Why there are such clips; empty where there are none."""


def lists(heard: Heard, scored: Scored) -> Tensor:
    """[N, Ks + Kt] the ids of the student's list, then of the teacher's, −1 where empty."""
    assert heard.rollout.topk_ids is not None
    return torch.cat([heard.rollout.topk_ids.cpu(), scored.scores.ids], 1).to(torch.int64)


def dense(other: Outside, own: Ids, heard: Heard, scored: Scored, clips: Sequence[Clip]) -> Dense:
    """One clip after the other, so that a vocabulary times all positions never lies in memory at once."""
    slots, count = lists(heard, scored), scored.scores.ids.shape[1]
    at, best, lse, seen, largest, first, left_out = [], [], [], [], 0.0, 0, ""
    for answer, clip in zip(heard.answers, clips, strict=True):
        listed = slots[first : first + len(answer)]
        first += len(answer)
        refused = other.refuses(clip.row)
        seen.append(torch.full((len(answer),), refused is None))
        if refused is not None:
            left_out = left_out or refused
            at.append(torch.full(listed.shape, math.nan))
            best.append(torch.full((len(answer), count), math.nan))
            lse.append(torch.full((len(answer),), math.nan, dtype=torch.float64))
            continue
        logits = other.scores(clip.samples, clip.row, answer)
        logits = logits.masked_fill(~own.allowed.mask(logits.shape[1]), -math.inf)
        at.append(logits.gather(1, listed.clamp_min(0)).masked_fill(listed < 0, -math.inf))
        best.append(logits.topk(count, dim=1).values)
        lse.append(logits.double().logsumexp(1))
        finite = logits[logits.isfinite()]
        largest = max(largest, float(finite.abs().max())) if len(finite) else largest
    return Dense(torch.cat(at), torch.cat(best), torch.cat(lse), torch.cat(seen), largest, left_out)


def scores(heard: Heard, scored: Scored, found: Dense, made_of: str, tokenizer: TokenizerLike) -> Outcome:
    """The teacher's scores of the student's list and of its own, and whether its own list is the best there is."""
    own, looked = scored.scores, found.seen
    if not looked.any():
        return not_compared(SCORES, found.left_out)
    if unscored := int((looked & ~own.valid).sum()):
        return Outcome(name=SCORES, verdict="FAIL", detail=f"the teacher has no scores at {unscored} of {int(looked.sum())} positions")
    mine = torch.cat([own.student_scores, own.scores], 1)
    apart = torch.where((lists(heard, scored) >= 0) & looked[:, None], (mine - found.at).abs(), 0.0)
    ranked = torch.where((own.ids >= 0) & looked[:, None], (own.scores.sort(1, descending=True).values - found.best).abs(), 0.0)
    worst = max(float(apart.max()), float(ranked.max())) / max(found.largest, 1e-30)
    row, place = divmod(int(apart.nan_to_num(math.inf).argmax()), apart.shape[1])
    token = int(lists(heard, scored)[row, place])
    said = (
        f"{made_of}; {int(looked.sum())} of {len(looked)} positions, largest logit {found.largest:.4g}; furthest apart at position {row}, "
        f"id {token} ({tokenizer.convert_ids_to_tokens([token])[0]!r}): ours {float(mine[row, place]):.6g}, dense "
        f"{float(found.at[row, place]):.6g}"
        f"{f'; left out, the first of them because {found.left_out}' if found.left_out else ''}"
    )
    return within(
        SCORES,
        worst,
        DEEP,
        reason="as a share of the largest logit: float32 sums in another order in every layer; a wrong prompt moves whole digits",
        detail=said,
    )


def losses(heard: Heard, scored: Scored, teacher: Dense | None, student: Dense | None) -> list[Outcome]:
    """Our loss beside the original's, on the very scores that a step had, and beside what Transformers' scores of both models give."""
    found = [_formula(heard, scored, teacher, mixed=False), _formula(heard, scored, teacher, mixed=True)]
    both = torch.zeros_like(scored.counts) if teacher is None or student is None else teacher.seen & student.seen
    if teacher is None or student is None or not both.any():
        return [*found, not_compared(CHAIN, "there are no scores of Transformers' own for both models")]
    counted = scored.counts & both
    rows = _original_rows(heard, scored, teacher.at, student.at.double(), teacher.lse, valid=both & scored.scores.valid, mixed=False)
    worst, mine, theirs = _apart(scored.rows, rows, counted)
    largest = max(teacher.largest, student.largest, 1.0)
    return [
        *found,
        within(
            CHAIN,
            worst / largest,
            DEEP,
            reason="as a share of the largest logit, whose digits are what float32 loses; nothing is shared with our side but the ids",
            detail=f"{int(counted.sum())} positions; mean loss of a step {mine:.6g}, from Transformers' scores {theirs:.6g}",
        ),
    ]


def _formula(heard: Heard, scored: Scored, teacher: Dense | None, *, mixed: bool) -> Outcome:
    """Both losses in float64 from the same scores, so that nothing but the formula is compared."""
    own = scored.scores
    taught = torch.cat([own.student_scores, own.scores], 1).double().masked_fill(~own.valid[:, None], -math.inf)
    # Without a dense pass the log-sum-exp is that of the ids at hand: the formula is compared all the same.
    lse = taught.logsumexp(1)
    lse = lse if teacher is None else torch.where(teacher.seen, teacher.lse, lse)
    assert heard.rollout.topk_ids is not None
    student_ids = _within_head(heard.rollout.topk_ids.cpu(), scored.ids)
    teacher_ids = _within_head(own.ids, scored.ids)
    if mixed:
        norm = torch.where(lse.isfinite(), lse, 0.0)  # of a position that does not count
        union = opd_union_kl(
            scored.hidden,
            scored.head,
            student_ids,
            teacher_ids,
            taught,
            reduction="none",
            teacher_score="original",
            teacher_lse=norm,
        )
    else:
        union = opd_union_kl(scored.hidden, scored.head, student_ids, teacher_ids, taught, reduction="none")
    written = scored.hidden @ scored.head.T
    slots = torch.cat([student_ids, teacher_ids], 1).to(torch.int64)
    rows = _original_rows(heard, scored, taught, written.gather(1, slots.clamp_min(0)), lse, valid=own.valid, mixed=mixed)
    worst, mine, theirs = _apart(union.loss.detach(), rows, scored.counts)
    sides = "the teacher's logits mixed with log-probabilities, as its code has them" if mixed else "log-probabilities on both sides"
    return within(
        MIXED if mixed else LOSS,
        worst,
        EXACT,
        reason="the same float64 scores on both sides, so that nothing but the formula differs",
        detail=f"{sides}; {int(scored.counts.sum())} positions; mean {mine:.6g}, the original's {theirs:.6g}",
    )


def _within_head(ids: Tensor, known: Tensor) -> Tensor:
    """Ids as places in the ascending list ``known``; −1 stays."""
    places = torch.searchsorted(known, ids.to(torch.int64).clamp_min(0))
    return torch.where(ids >= 0, places, -1).to(torch.int32)


def _original_rows(
    heard: Heard, scored: Scored, taught: Tensor, written: Tensor, lse: Tensor, *, valid: Tensor, mixed: bool
) -> list[float | None]:
    """The original's loss of each position that is valid; the slots of ``taught`` and ``written`` are those of ``lists``."""
    slots, count = lists(heard, scored).tolist(), scored.scores.ids.shape[1]
    rows: list[float | None] = []
    for ids, values, student, norm, counts in zip(slots, taught.tolist(), written.tolist(), lse.tolist(), valid.tolist(), strict=True):
        pairs = list(zip(ids, values, strict=True))
        first = len(ids) - count
        sides = [{i: value for i, value in part if i >= 0} for part in (pairs[first:], pairs[:first])]
        own = {i: value for i, value in zip(ids, student, strict=True) if i >= 0}
        rows.append(union_loss(sides[0], sides[1], own, lse=norm, mixed=mixed) if counts else None)
    return rows


def _apart(ours: Tensor, original: Sequence[float | None], counts: Tensor) -> tuple[float, float, float]:
    """The largest difference of a position as a share of its size or of 1, and both means; infinite where other positions count."""
    if [row is not None for row in original] != counts.tolist():
        return math.inf, math.nan, math.nan
    pairs = [(float(a), b) for a, b in zip(ours.tolist(), original, strict=True) if b is not None]
    if not pairs:
        return math.nan, math.nan, math.nan
    differences = [abs(a - b) / max(1.0, abs(b)) for a, b in pairs]
    worst = max(differences) if all(map(math.isfinite, differences)) else math.inf
    return worst, math.fsum(a for a, _ in pairs) / len(pairs), math.fsum(b for _, b in pairs) / len(pairs)
