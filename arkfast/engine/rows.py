"""What the device knows of the rows that are being decoded, and how the next id of each is chosen.

Every tensor has a slot a row and stays where it is, so that a step can be captured in a graph; a step reads nothing on the host. A row
that has ended stays as it is until its slot is taken again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from arkfast.engine.phrases import PhraseTables
from arkfast.engine.request import Sampling
from arkfast.engine.sampling import confine, gumbel_noise, noisiest, penalise, restrict
from arkfast.kernels import FLAG_NAN, row_log_softmax, topk_lse

DONE, STOPPED, FAILED, LOOPED = 1, 2, 4, 8
"""Bits of a row's state as ``Rows.reading`` gives it."""


class Mode(NamedTuple):
    """What any of the rows asks for; the rest of a step is left out."""

    draws: bool
    restricts: bool
    penalises: bool
    phrases: bool = False

    @classmethod
    def of(cls, samplings: Sequence[Sampling], *, phrases: bool = False) -> Mode:
        """What these rows together ask for; ``phrases`` says whether some have a bonus for phrases."""
        return cls(
            draws=any(s.draws for s in samplings),
            restricts=any(s.restricts for s in samplings),
            penalises=any(s.penalises for s in samplings),
            phrases=phrases,
        )


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """What every row shares.

    Attributes:
        width: leading ids of the vocabulary that are scored, all allowed ones among them.
        blocked: int32 ids below it that are never produced, ascending.
        stop_ids: [n] int64 ids that end a row.
        topk: how many of the best ids to keep.
        logprobs: whether to keep each produced id's log-probability.
        silent: whether to keep the log-probability of ending before the first id.
        turns: [P, R, 2] int32 id ranges: a row's t-th id comes from those of t % P (``AllowedTokens.turns``); None: from all that are not
            blocked.
    """

    width: int
    blocked: torch.Tensor
    stop_ids: torch.Tensor
    topk: int
    logprobs: bool
    silent: bool = False
    turns: torch.Tensor | None = None

    def permits(self, ids: torch.Tensor, ranges: torch.Tensor | None) -> torch.Tensor:
        """[R, K] bool: which of ``ids`` [R, K] int64, below ``width``, may be produced within each row's ``ranges``."""
        permitted = torch.ones_like(ids, dtype=torch.bool)
        if len(self.blocked):
            place = torch.searchsorted(self.blocked, ids.int()).clamp_max(len(self.blocked) - 1)
            permitted = self.blocked[place] != ids
        if ranges is not None:
            permitted &= ((ids[..., None] >= ranges[:, None, :, 0]) & (ids[..., None] < ranges[:, None, :, 1])).any(-1)
        return permitted

    def ranges(self, positions: torch.Tensor) -> torch.Tensor | None:
        """[R, ranges, 2] int32: where the ids at ``positions`` [R] int64 of the rows' answers may come from."""
        return None if self.turns is None else self.turns[positions % len(self.turns)]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows' state: every field has a slot a row first."""

    token: torch.Tensor
    """[R] int64 the id produced last, which the next step reads."""
    position: torch.Tensor
    """[R] int64 where it stands in the cache."""
    produced: torch.Tensor
    """[R] int64 how many ids the row has produced."""
    limit: torch.Tensor
    """[R] int64 how many it may produce."""
    state: torch.Tensor
    """[R] int64 bits: DONE, STOPPED, FAILED, LOOPED."""
    key: torch.Tensor
    """[R] int64 of the utterance."""
    number: torch.Tensor
    """[R] int64 which of its utterance's rollouts the row is."""
    seed: torch.Tensor
    """[R] int64 of the noise."""
    temperature: torch.Tensor
    """[R] float32; 0 takes the best id."""
    top_p: torch.Tensor
    """[R] float32."""
    top_k: torch.Tensor
    """[R] int64."""
    penalty: torch.Tensor
    """[R] float32."""
    phrase: torch.Tensor
    """[R] int64 which phrase has begun, as ``PhraseTables`` numbers it; 0 in rows without phrases."""
    tokens: torch.Tensor
    """[R, L + 1] int64 produced ids; the last column takes what ended rows would write."""
    topk_ids: torch.Tensor | None
    """[R, L + 1, K] int32 the best ids at each position."""
    logprob: torch.Tensor | None
    """[R, L + 1] float32 log-probability of each produced id."""
    silent: torch.Tensor | None
    """[R] float32 log-probability of ending before the first id."""
    seen: torch.Tensor | None
    """[R, V] bool ids of the prompt and produced ones; None until a row asks for a penalty."""

    @classmethod
    def empty(cls, rows: int, length: int, *, topk: int, logprobs: bool, device: torch.device, silent: bool = False) -> Rows:
        """``rows`` ended rows that can hold ``length`` ids each."""

        def whole(value: int = 0) -> torch.Tensor:
            return torch.full((rows,), value, dtype=torch.int64, device=device)

        def real(value: float) -> torch.Tensor:
            return torch.full((rows,), value, dtype=torch.float32, device=device)

        return cls(
            token=whole(), position=whole(), produced=whole(), limit=whole(), state=whole(DONE), key=whole(), number=whole(), seed=whole(),
            temperature=real(0.0), top_p=real(1.0), top_k=whole(), penalty=real(1.0),
            phrase=whole(),
            tokens=torch.zeros(rows, length + 1, dtype=torch.int64, device=device),
            topk_ids=torch.zeros(rows, length + 1, topk, dtype=torch.int32, device=device) if topk else None,
            logprob=torch.zeros(rows, length + 1, dtype=torch.float32, device=device) if logprobs else None,
            silent=real(0.0) if silent else None,
            seen=None,
        )  # fmt: skip

    @property
    def length(self) -> int:
        """L, how many ids a row can hold."""
        return self.tokens.shape[1] - 1

    def __getitem__(self, rows: slice) -> Rows:
        """A view of some rows."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the rows ``source`` [n] int64 over ``target`` [n]; the two are disjoint."""
        for value in self._tensors().values():
            value[target] = value[source]

    def copy_(self, other: Rows) -> None:
        """Overwrite everything with ``other``'s."""
        given = other._tensors()
        for name, own in self._tensors().items():
            if name in given:
                own.copy_(given[name])

    def clone(self) -> Rows:
        """A copy with memory of its own."""
        return replace(self, **{name: value.clone() for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Those that there are, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def reading(self, *, last: int = 0) -> torch.Tensor:
        """What the host must know of every row, for the one copy that it waits for.

        Args:
            last: how many of the ids that each row produced last are read with it.

        Returns:
            [R, 2 + last] int64: of each row ``produced``, ``state`` and the last ids; where it has fewer, those before its first mean
            nothing.
        """
        columns = [self.produced[:, None], self.state[:, None]]
        if last:
            place = self.produced[:, None] - last + torch.arange(last, device=self.produced.device)
            columns.append(self.tokens.gather(1, place.clamp_min(0)))
        return torch.cat(columns, 1)

    def choose(self, logits: torch.Tensor, mode: Mode, choosing: Choosing, tables: PhraseTables | None = None) -> None:
        """Take the next id of every row that has not ended.

        Args:
            logits: [R, W] the model's scores of the ids that ``choosing`` says.
            mode: what is asked for.
            choosing: what the rows share.
            tables: of the rows' phrases, where there are any.
        """
        ranges = choosing.ranges(self.produced)
        best = topk_lse(logits, max(choosing.topk, 1), blocked=choosing.blocked, ranges=ranges)
        token = best.ids[:, 0]
        scores = logits
        if mode.penalises:
            assert self.seen is not None
            scores = penalise(logits.float(), self.seen[:, : choosing.width], self.penalty)
            token = topk_lse(scores, 1, blocked=choosing.blocked, ranges=ranges).ids[:, 0]
        token = token.long().clamp_min(0)  # −1 where every score is NaN; such a row has failed anyway
        if mode.phrases:
            assert tables is not None
            token = tables.best(scores, token, self.phrase, lambda ids: choosing.permits(ids, ranges))
            if mode.draws:
                scores = tables.add(scores, self.phrase)
        if mode.draws:
            token = torch.where(self.temperature > 0, self._draw(scores, mode, choosing, ranges), token)
        going = (self.state & DONE) == 0
        column = torch.where(going, self.produced, self.length)[:, None]
        self.tokens.scatter_(1, column, token[:, None])
        if self.topk_ids is not None:
            self.topk_ids.scatter_(1, column[:, :, None].expand(-1, -1, choosing.topk), best.ids[:, None])
        if self.logprob is not None:
            self.logprob.scatter_(1, column, row_log_softmax(logits, token[:, None], blocked=choosing.blocked, ranges=ranges))
        if mode.penalises and self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        if mode.phrases and tables is not None:
            self.phrase.copy_(torch.where(going, tables.next(self.phrase, token), self.phrase))
        self.produced.add_(going)
        self.position.add_(going)
        self.token.copy_(torch.where(going, token, self.token))
        stopped = (token[:, None] == choosing.stop_ids).any(1)
        failed = (best.flags & FLAG_NAN).bool()
        ended = DONE * (stopped | failed | (self.produced >= self.limit)) + STOPPED * stopped + FAILED * failed
        self.state.copy_(torch.where(going, ended, self.state))

    def hear(self, logits: torch.Tensor, choosing: Choosing) -> None:
        """Keep how likely the model thinks it that rows end before their first id, where that is wanted.

        Args:
            logits: [R, W] the scores of each row's first id.
            choosing: what the rows share.
        """
        if self.silent is not None:
            ids = choosing.stop_ids[choosing.stop_ids < choosing.width].expand(len(logits), -1)
            ranges = choosing.ranges(torch.zeros_like(self.produced))
            self.silent.copy_(row_log_softmax(logits, ids, blocked=choosing.blocked, ranges=ranges).logsumexp(-1))

    def _draw(self, scores: torch.Tensor, mode: Mode, choosing: Choosing, ranges: torch.Tensor | None) -> torch.Tensor:
        """An id for every row, drawn by adding noise (Gumbel-max)."""
        warm = torch.where(self.temperature > 0, self.temperature, 1.0)[:, None]
        scores = (scores.float() / warm).index_fill(-1, choosing.blocked.long(), float("-inf"))
        if ranges is not None:
            scores = confine(scores, ranges)
        if mode.restricts:
            scores = restrict(scores, self.top_k, self.top_p)
        return noisiest(scores, gumbel_noise(self.key, self.number, self.produced, scores.shape[1], self.seed))
