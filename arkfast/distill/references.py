"""References as answers to be learnt: rows of a rollout that were written by people and not by a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import pad

from arkfast.records import Batch, Rollout


def references(batch: Batch, rows: Sequence[int]) -> Rollout | None:
    """The transcripts of some rows of a batch, as if they had been produced; None of no rows.

    Args:
        batch: carries targets.
        rows: which of its rows.
    """
    if not rows:
        return None
    assert batch.target_ids is not None, "references are learnt from a batch that carries targets"
    assert batch.target_lens is not None
    device = batch.target_ids.device
    owner = torch.tensor(rows).to(device, non_blocking=True)
    return Rollout(
        tokens=batch.target_ids[owner],
        lens=batch.target_lens[owner],
        stopped=torch.ones(len(rows), dtype=torch.bool, device=device),
        owner=owner,
        total=None if batch.target_sizes is None else sum(batch.target_sizes[row] for row in rows),
        sizes=None if batch.target_sizes is None else tuple((row, batch.target_sizes[row]) for row in rows),
    )


def joined(first: Rollout, second: Rollout) -> Rollout:
    """The rows of both, those of ``second`` behind, for a decoder to run over."""
    first_tokens, second_tokens = _as_wide(first.tokens, second.tokens)
    return Rollout(
        tokens=torch.cat([first_tokens, second_tokens]),
        lens=torch.cat([first.lens, second.lens]),
        stopped=torch.cat([first.stopped, second.stopped]),
        owner=torch.cat([first.owner, second.owner]),
        total=None if first.total is None or second.total is None else first.total + second.total,
        sizes=None if first.sizes is None or second.sizes is None else first.sizes + second.sizes,
    )


def put_in(answers: Rollout, learnt: Rollout) -> Rollout:
    """``answers``, one row an utterance in their order, with the rows that ``learnt`` owns replaced by its own."""
    tokens, others = _as_wide(answers.tokens, learnt.tokens)
    return replace(
        answers,
        tokens=tokens.index_copy(0, learnt.owner, others),
        lens=answers.lens.index_copy(0, learnt.owner, learnt.lens),
        stopped=answers.stopped.index_copy(0, learnt.owner, learnt.stopped),
        total=None,
        sizes=None,
    )


def _as_wide(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both [R, L] with as many columns, zeros to the right."""
    width = max(first.shape[1], second.shape[1])
    return pad(first, (0, width - first.shape[1])), pad(second, (0, width - second.shape[1]))
