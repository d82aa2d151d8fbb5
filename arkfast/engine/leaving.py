"""Requests that have ended, while their ids are on the way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from arkfast.engine.readback import Readback
from arkfast.engine.request import Entry, Finished, FinishReason
from arkfast.engine.rows import FAILED, LOOPED, STOPPED, Rows


class Leaving:
    """Rows that ended together; their slots may be given up at once.

    Args:
        state: of all rows.
        ended: place, entry and state bits of those that have ended.
    """

    def __init__(self, state: Rows, ended: Sequence[tuple[int, Entry, int]]) -> None:
        index = torch.tensor([place for place, _, _ in ended]).to(state.tokens.device, non_blocking=True)
        self._ended: list[tuple[Entry, int] | None] = [(entry, bits) for _, entry, bits in ended]
        self._tokens = Readback(state.tokens[index])
        self._logprob = None if state.logprob is None else Readback(state.logprob[index])
        self._silent = None if state.silent is None else Readback(state.silent[index])

    def __len__(self) -> int:
        """Requests that will be given back."""
        return sum(row is not None for row in self._ended)

    def cancel(self, id: int) -> bool:
        """Forget a request; whether there was one."""
        for i, row in enumerate(self._ended):
            if row is not None and row[0].id == id:
                self._ended[i] = None
                return True
        return False

    def finished(self) -> list[Finished]:
        """What became of them; waits for their ids."""
        tokens = self._tokens.host().tolist()
        logprob = None if self._logprob is None else self._logprob.host().tolist()
        silent = None if self._silent is None else self._silent.tolist()
        found = []
        for i, row in enumerate(self._ended):
            if row is not None:
                done = _finished(*row, tokens[i], None if logprob is None else logprob[i])
                found.append(done if silent is None else replace(done, silent=silent[i]))
        return found


def _finished(entry: Entry, state: int, tokens: list[int], logprob: list[float] | None) -> Finished:
    reason: FinishReason = "length"
    for bit, name in ((LOOPED, "repetition"), (STOPPED, "stop"), (FAILED, "error")):
        if state & bit:
            reason = name  # type: ignore[assignment]
    if reason == "error":
        message = "the model's scores are not numbers; its weights, its precision or the features are at fault"
        return Finished(id=entry.id, tokens=[], finish_reason=reason, error=message)
    count = entry.produced - (reason == "stop")
    return Finished(
        id=entry.id, tokens=tokens[:count], finish_reason=reason, logprobs=None if logprob is None else logprob[: entry.produced]
    )
