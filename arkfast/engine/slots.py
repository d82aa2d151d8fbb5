"""The rows being decoded and their keys and values: taken, advanced, read and given up.

The rows in use are always the first ones: where one ends, the last takes its slot. A step then works on whole leading parts of its
tensors, and a graph captured for 64 rows serves any 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from arkfast.engine.cache import SlotCache
from arkfast.engine.decoder import decode_step
from arkfast.engine.graphs import StepGraphs, bucket
from arkfast.engine.guards import loop_ends
from arkfast.engine.phrases import PhraseSets
from arkfast.engine.prefill import Prefilled
from arkfast.engine.products import side_by_side
from arkfast.engine.readback import Readback
from arkfast.engine.request import Entry
from arkfast.engine.rows import DONE, FAILED, LOOPED, Choosing, Mode, Rows
from arkfast.models.family import SpeechModel


class _Reading(NamedTuple):
    """How far rows were at one moment, on its way to the host."""

    entries: list[Entry]
    values: Readback
    """What ``Rows.reading`` gives of each."""
    last: int
    at: int
    """Decode steps that had been run."""


class Slots:
    """State of up to ``rows`` sequences of up to ``length`` positions, of which ``new`` are produced.

    Args:
        model: whose decoder takes the steps.
        choosing: how ids are chosen.
        rows, length, new: as above.
        graphs: capture steps as CUDA graphs.
    """

    def __init__(self, model: SpeechModel, choosing: Choosing, *, rows: int, length: int, new: int, graphs: bool) -> None:
        self._model, self._choosing = model, choosing
        weight = model.lm_head.weight
        self._device = weight.device
        self.cache = SlotCache(model.model.config, rows, length, dtype=weight.dtype, device=weight.device)
        self.state = Rows.empty(rows, new, topk=choosing.topk, logprobs=choosing.logprobs, silent=choosing.silent, device=weight.device)
        self.entries: list[Entry] = []
        """The rows in use, in their order."""
        self.most = rows
        """How many rows may be in use at once; no more than there are."""
        self.told: dict[int, list[int]] = {}
        """The ids that each watched row in use had produced when the host last looked, by ``Entry.id``."""
        self._unread = 0  # steps since a reading was taken
        self._reading: _Reading | None = None
        self._phrases = PhraseSets(weight.device)
        self.products = side_by_side(model.model)
        """The decoder's products; to be made anew where weights have moved."""
        self.steps = 0
        """Decode steps run so far."""
        self._use_graphs = graphs
        self._graphs = StepGraphs(self.state, self._device)

    @property
    def free(self) -> int:
        """Rows that may be taken."""
        return self.most - len(self.entries)

    def fits(self, *, rows: int, length: int, new: int) -> bool:
        """Whether so much can be decoded here."""
        same = self.cache.keys[0].dtype == self._model.lm_head.weight.dtype
        return same and rows <= self.cache.rows and length <= self.cache.length and new <= self.state.length

    def grown(self, *, rows: int, length: int, new: int) -> tuple[int, int, int]:
        """Room for this and for what there is room for now."""
        return max(rows, self.cache.rows), max(length, self.cache.length), max(new, self.state.length)

    def admit(self, prompts: Prefilled, source: Sequence[int], entries: Sequence[Entry]) -> None:
        """Give each of ``entries`` a row that goes on after the prompt ``source`` of a prefill, and choose its first id."""
        rows = slice(len(self.entries), len(self.entries) + len(entries))
        index = self._on_device(source)
        self.cache.admit(prompts.cache, index, rows)
        mode = self._mode(entries)
        self._hold_phrases(entries)
        if mode.penalises and self.state.seen is None:
            seen = torch.zeros(self.cache.rows, self._model.lm_head.weight.shape[0], dtype=torch.bool, device=self._device)
            self.state = replace(self.state, seen=seen)
            self._graphs = StepGraphs(self.state, self._device)
        own = self.state[rows]
        for field, values in (
            (own.position, [entry.prompt - 1 for entry in entries]),
            (own.limit, [entry.limit for entry in entries]),
            (own.key, [entry.key for entry in entries]),
            (own.number, [entry.number for entry in entries]),
            (own.seed, [entry.sampling.seed for entry in entries]),
            (own.top_k, [entry.sampling.top_k for entry in entries]),
            (own.phrase, [self._phrases.place(entry.phrases) for entry in entries]),
        ):
            field.copy_(self._on_device(values))
        for field, numbers in (
            (own.temperature, [entry.sampling.temperature for entry in entries]),
            (own.top_p, [entry.sampling.top_p for entry in entries]),
            (own.penalty, [entry.sampling.repetition_penalty for entry in entries]),
        ):
            field.copy_(torch.tensor(numbers).to(self._device, non_blocking=True))
        own.produced.zero_()
        own.state.zero_()
        if own.seen is not None:
            own.seen.zero_()
            own.seen.scatter_(1, prompts.ids[index], True)
        scores = self._scores(prompts.last[index])
        own.hear(scores, self._choosing)
        own.choose(scores, mode, self._choosing, self._phrases.tables)
        self.entries.extend(replace(entry, at=self.steps) for entry in entries)

    @staticmethod
    def _mode(entries: Sequence[Entry]) -> Mode:
        return Mode.of([entry.sampling for entry in entries], phrases=any(entry.phrases is not None for entry in entries))

    def _hold_phrases(self, entries: Sequence[Entry]) -> None:
        """Make room for the phrases of rows that come. Where tables are written anew, rows under way keep what has begun in them."""
        wanted = [entry.phrases for entry in entries if entry.phrases is not None]
        if not wanted:
            return
        before = [self._phrases.place(entry.phrases) for entry in self.entries]
        if self._phrases.hold(wanted, [entry.phrases for entry in self.entries]):
            self._graphs = StepGraphs(self.state, self._device)  # captured steps read the tables where they were
        moved = [self._phrases.place(entry.phrases) - place for entry, place in zip(self.entries, before, strict=True)]
        if any(moved):
            self.state.phrase[: len(moved)].add_(self._on_device(moved))

    def advance(self, steps: int) -> None:
        """Up to ``steps`` more ids for every row; nothing waits for the device."""
        if not self.entries:
            return
        steps = min(steps, max(entry.limit - self._produced(entry) for entry in self.entries))
        mode, reach = self._mode(self.entries), self._reach(steps)
        self._unread += steps
        for _ in range(steps):
            self.steps += 1
            if self._use_graphs:
                self._graphs.run(self._step, bucket(len(self.entries), self.cache.rows), mode)
            else:
                self._step(len(self.entries), mode, reach)

    def _step(self, rows: int, mode: Mode, limit: int | None = None) -> None:
        own = self.state[:rows]
        limit = self.cache.length if limit is None else limit
        hidden = decode_step(self._model.model, self.cache, own.token, own.position, limit, self.products)
        own.choose(self._scores(hidden), mode, self._choosing, self._phrases.tables)

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, W] of the ids that may be chosen, and of none behind them."""
        return torch.nn.functional.linear(hidden, self._model.lm_head.weight[: self._choosing.width])

    def _produced(self, entry: Entry) -> int:
        """The most ids that a row can have produced by now."""
        return min(max(entry.produced, 1) + self.steps - entry.at, entry.limit)

    def _reach(self, steps: int) -> int:
        """No row's position comes to it within so many further steps."""
        return min(max(entry.prompt + min(self._produced(entry) + steps, entry.limit) for entry in self.entries) + 1, self.cache.length)

    def look(self, *, loops_since: int, late: bool = False) -> list[tuple[int, Entry, int]]:
        """How far every row is; waits for the device once.

        Args:
            loops_since: ids that a row may have produced since the last look, among which a loop's end is looked for; 0: loops are let be.
            late: give what the look before would have given, and begin to read what the next one gives: the wait is then for what the
                device has long done, and it has work while the host sees to it.

        Returns:
            Of each row that was looked at and is still in use its place, its entry with how many ids it had produced, and its state's bits.
        """
        reading = self._read(loops_since) if self.entries else None
        if late:
            reading, self._reading = self._reading, reading
        if reading is None:
            return []
        places = {entry.id: place for place, entry in enumerate(self.entries)}
        looked = []
        rows: list[list[int]] = reading.values.host().tolist()
        for taken, (produced, state, *ids) in zip(reading.entries, rows, strict=True):
            if (place := places.get(taken.id)) is None:
                continue  # given up since the reading
            entry = self.entries[place]
            if entry.watched:
                self.told.setdefault(entry.id, []).extend(ids[reading.last - (produced - entry.produced) :])
            self.entries[place] = replace(entry, produced=produced, at=reading.at)
            looked.append((place, self.entries[place], state))
        return looked

    def _read(self, loops_since: int) -> _Reading:
        own = self.state[: len(self.entries)]
        if loops_since:
            self._cut_loops(own, loops_since)
        # an admitted row has one id before its first step
        last = self._unread + 1 if any(entry.watched for entry in self.entries) else 0
        self._unread = 0
        return _Reading(list(self.entries), Readback(own.reading(last=last)), last, self.steps)

    @staticmethod
    def _cut_loops(own: Rows, new: int) -> None:
        # the last id of a row that failed does not count: it was taken from scores that are not numbers
        end = loop_ends(own.tokens, own.produced - (own.state & FAILED).bool().long(), new)
        cut = end > 0
        own.produced.copy_(torch.where(cut, end, own.produced))
        own.state.copy_(torch.where(cut, DONE | LOOPED, own.state))

    def release(self, places: Sequence[int], *, wipe: Sequence[int] = ()) -> None:
        """Give up the rows at ``places`` of ``entries``; ``wipe`` names those whose keys may be NaN."""
        if not places:
            return
        if wipe:
            self.cache.clear(self._on_device(wipe))
        gone = set(places)
        for place in gone:
            self.told.pop(self.entries[place].id, None)
        kept = len(self.entries) - len(gone)
        targets = sorted(place for place in gone if place < kept)
        sources = [place for place in range(kept, len(self.entries)) if place not in gone]
        if targets:
            source, target = self._on_device(sources), self._on_device(targets)
            self.cache.move(source, target, self._reach(0))
            self.state.move(source, target)
            for a, b in zip(sources, targets, strict=True):
                self.entries[b] = self.entries[a]
        del self.entries[kept:]
        self.state.state[kept:] = DONE
        if not self.entries:
            self._reading = None  # whose rows are gone

    def _on_device(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64).to(self._device, non_blocking=True)
