"""Rollouts put together from rows that end at different times. Nothing here waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from arkfast.engine.request import Entry
from arkfast.engine.rows import FAILED, STOPPED, Choosing, Rows
from arkfast.records import Rollout


class RolloutBuffers:
    """Room for ``rows`` rollouts of up to ``length`` ids, filled as they end."""

    def __init__(self, rows: int, length: int, choosing: Choosing, device: torch.device) -> None:
        self._device = device
        self._tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self._topk_ids = torch.zeros(rows, length, choosing.topk, dtype=torch.int32, device=device) if choosing.topk else None
        self._logprob = torch.zeros(rows, length, dtype=torch.float32, device=device) if choosing.logprobs else None
        self._lens, self._states = [0] * rows, [0] * rows

    def take(self, state: Rows, ended: Sequence[tuple[int, Entry, int]]) -> None:
        """Copy the ended rows' ids from their slots; ``Entry.id`` is the rollout's row."""
        if not ended:
            return
        source = torch.tensor([place for place, _, _ in ended]).to(self._device, non_blocking=True)
        target = torch.tensor([entry.id for _, entry, _ in ended]).to(self._device, non_blocking=True)
        width = self._tokens.shape[1]
        self._tokens[target] = state.tokens[source, :width]
        if self._topk_ids is not None and state.topk_ids is not None:
            self._topk_ids[target] = state.topk_ids[source, :width]
        if self._logprob is not None and state.logprob is not None:
            self._logprob[target] = state.logprob[source, :width]
        for _, entry, bits in ended:
            self._lens[entry.id], self._states[entry.id] = entry.produced, bits

    def rollout(self, n: int) -> Rollout:
        """Everything, packed; ``n`` rollouts belong to each row of the batch."""
        owner = torch.arange(len(self._lens) // n, device=self._device).repeat_interleave(n)
        lens, states = (torch.tensor(values).to(self._device, non_blocking=True) for values in (self._lens, self._states))
        longest = max(self._lens)
        inside = torch.arange(longest, device=self._device)[None] < lens[:, None]
        # a slot keeps what its row before produced, and ids past a row's length are 0
        tokens = torch.where(inside, self._tokens[:, :longest], 0)
        rollout = Rollout(
            tokens=tokens,
            lens=lens,
            stopped=(states & STOPPED).bool(),
            owner=owner,
            failed=(states & FAILED).bool(),
            total=sum(self._lens),
            sizes=tuple((row // n, count) for row, count in enumerate(self._lens)),
        )
        row, place = rollout.packed_index()
        return dataclasses.replace(
            rollout,
            topk_ids=None if self._topk_ids is None else self._topk_ids[row, place],
            logprob=None if self._logprob is None else self._logprob[row, place],
        )
