"""Prompts that wait for a slot: encoded and prefilled in groups of similar length, and the faulty ones found out.

Encoding looks further ahead than admission: clips of similar length are
encoded together wherever they stand in the queue, and yet go on in the order in which they came, a slotful at a time. Both may be begun
before there is a free slot (``Queue.prepare``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch

from arkfast.engine.beside import Beside, wait_for
from arkfast.engine.prefill import LOOKED_AT, PREFILL_TOKENS, Prefilled, encode, groups_of_similar_length, prefill_each, suited
from arkfast.engine.request import Entry, Finished
from arkfast.models.family import SpeechModel

Done = TypeVar("Done")


@dataclass(frozen=True, kw_only=True, eq=False)
class Waiting:
    """A prompt, and the rows that will go on after it."""

    prompt: torch.Tensor
    """[P] int64 ids."""
    mel: torch.Tensor | None
    """[n_mels, T] log-mel; None where there is nothing to hear, and once they are encoded, so that their memory goes."""
    audio: torch.Tensor | None = None
    """[N, H] embeddings where they are known."""
    encoded: Callable[[torch.Tensor], None] | None = None
    """``Request.encoded``."""
    done: torch.cuda.Event | None = None
    """When another stream has computed ``audio``; None where nothing has to be waited for."""
    entries: list[Entry]


class Admitted(NamedTuple):
    """Rows that may take their slots, all of one prefill."""

    prompts: Prefilled
    source: list[int]
    """Each row's prompt among them."""
    entries: list[Entry]


class _Ready(NamedTuple):
    """A row that may take its slot."""

    prompts: Prefilled
    source: int
    """Its prompt among them."""
    entry: Entry
    done: torch.cuda.Event | None
    """When another stream has computed ``prompts``."""


class Queue:
    """What waits, first come first served but for the order within a slotful.

    Args:
        model: encodes and prefills.
        beside: whether ``prepare`` does both ahead of time, each on a stream of its own.

    Attributes:
        broken: requests that could not be encoded or prefilled, for the engine to give back.
    """

    def __init__(self, model: SpeechModel, *, beside: bool = False) -> None:
        self._model, self._device = model, model.lm_head.weight.device
        self._waiting: deque[Waiting] = deque()
        self._ready: deque[_Ready] = deque()
        # Two, so that the prompts of what is encoded do not stand behind the next clips.
        self._beside = (Beside(self._device), Beside(self._device)) if beside else None
        weight = model.lm_head.weight
        self._silence = torch.empty(0, model.config.hidden_size, dtype=weight.dtype, device=weight.device)
        self.broken: list[Finished] = []

    def __len__(self) -> int:
        """Rows that wait for a slot."""
        return len(self._ready) + _rows(self._waiting)

    def add(self, waiting: Waiting) -> None:
        """Put a prompt at the end."""
        if waiting.mel is None and waiting.audio is None:
            waiting = replace(waiting, audio=self._silence)
        elif waiting.audio is not None:
            waiting = replace(waiting, mel=None)
        self._waiting.append(waiting)

    def cancel(self, id: int) -> bool:
        """Forget a request; whether there was one."""
        before = len(self) + len(self.broken)
        self._waiting = deque(w for w in self._waiting if all(entry.id != id for entry in w.entries))
        self._ready = deque(ready for ready in self._ready if ready.entry.id != id)
        self.broken = [finished for finished in self.broken if finished.id != id]
        return len(self) + len(self.broken) < before

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._ready.clear()
        self.broken.clear()

    def take(self, rows: int, *, slotful: int, isolate: bool) -> Admitted | None:
        """The next rows, at least one and at most ``rows``; None when nothing waits.

        Args:
            rows: slots that are free.
            slotful: slots that there are.
            isolate: give what cannot be encoded back in ``broken`` instead of raising.
        """
        while not self._ready:
            if not self._waiting:
                return None
            if self._waiting[0].audio is None:
                self._waiting.extendleft(reversed(self._encoded(self._taken(slotful), slotful, isolate)))
            next_ = self._next(rows)
            wait_for(self._computed(next_), self._device)
            self._prefill(next_, isolate)
        prompts, done = self._ready[0].prompts, self._ready[0].done
        wait_for([done], self._device)
        taken = Admitted(prompts, [], [])
        while self._ready and self._ready[0].prompts is prompts and len(taken.entries) < rows:
            ready = self._ready.popleft()
            taken.source.append(ready.source)
            taken.entries.append(ready.entry)
        return taken

    def moment(self) -> torch.cuda.Event | None:
        """For ``prepare``: recorded when everything that ``take`` gave has been read."""
        return self._beside[0].moment() if self._beside else None

    def prepare(self, *, slotful: int, isolate: bool, after: torch.cuda.Event | None) -> None:
        """Begin what ``take`` will be asked for, beside the rows that are decoded, where that is the choice.

        A quarter of the slots' prompts are kept ready, and a slotful of clips encoded.

        Args:
            slotful, isolate: as for ``take``.
            after: a ``moment``.
        """
        if not self._beside or not self._waiting:
            return
        encoding, prefilling = self._beside
        quarter = max(1, slotful // 4)
        if len(self._ready) < quarter and (next_ := self._next(quarter)):
            before = len(self._ready)
            reads = (tensor for w in next_ for tensor in (w.prompt, w.audio))
            with prefilling.work(after=[after, *self._computed(next_)], reads=reads):
                self._prefill(next_, isolate)
            done = prefilling.done()
            for i in range(before, len(self._ready)):
                self._ready[i] = self._ready[i]._replace(done=done)
        known: list[Waiting] = []
        while self._waiting and self._waiting[0].audio is not None:
            known.append(self._waiting.popleft())
        if len(self._ready) + _rows(known) < slotful:
            next_ = self._taken(slotful)
            with encoding.work(after=[after], reads=(w.mel for w in next_)):
                found = self._encoded(next_, slotful, isolate)
            done = encoding.done()
            known += [replace(w, done=done) for w in found]
        self._waiting.extendleft(reversed(known))

    def _computed(self, waiting: Sequence[Waiting]) -> list[torch.cuda.Event | None]:
        """When embeddings are there. Those that came with their request may be copies of what was encoded here (``Request.encoded``)."""
        found = [w.done for w in waiting]
        if self._beside and None in found:
            found.append(self._beside[0].done())
        return found

    def _next(self, rows: int) -> list[Waiting]:
        """What is encoded at the front of the queue, taken from it, for ``rows`` slots."""
        taken: list[Waiting] = []
        held = 0
        while self._waiting and self._waiting[0].audio is not None and held < rows:
            taken.append(self._waiting.popleft())
            held += len(taken[-1].entries)
        return taken

    def _prefill(self, taken: list[Waiting], isolate: bool) -> None:
        """Make ready what is encoded."""
        for group in groups_of_similar_length([len(w.prompt) for w in taken], suited(PREFILL_TOKENS, self._device)):
            members = [taken[i] for i in group]
            for prompts, own in self._tried(
                lambda m: prefill_each(self._model, [w.prompt for w in m], [w.audio for w in m if w.audio is not None]), members, isolate
            ):
                self._ready.extend(_Ready(prompts, i, entry, None) for i, w in enumerate(own) for entry in w.entries)

    def _taken(self, slotful: int) -> list[Waiting]:
        """What is encoded next, taken from the queue: at least a slotful, and more where groups of similar length need more."""
        taken: list[Waiting] = []
        rows, frames, enough = 0, 0, LOOKED_AT.get(self._device.type, LOOKED_AT["cuda"])
        while self._waiting and (mel := self._waiting[0].mel) is not None and (rows < slotful or frames < enough):
            taken.append(self._waiting.popleft())
            rows += len(taken[-1].entries)
            frames += mel.shape[1]
        return taken

    def _encoded(self, taken: list[Waiting], slotful: int, isolate: bool) -> list[Waiting]:
        """What was taken, encoded, in the order in which it goes on."""
        encoded: list[Waiting] = []
        for found, own in self._tried(lambda m: encode(self._model, [w.mel for w in m if w.mel is not None]), taken, isolate):
            encoded += [replace(w, mel=None, audio=audio) for w, audio in zip(own, found, strict=True)]
        for w in encoded:
            if w.encoded is not None and w.audio is not None:
                w.encoded(w.audio)
        # The longest of a slotful first: what is admitted together should end together, and the last to be admitted should be short.
        # Slotfuls keep their order, so that no prompt waits for those that came after it.
        return [w for part in _slotfuls(encoded, slotful) for w in sorted(part, key=lambda w: len(w.prompt))[::-1]]

    def _tried(self, work: Callable[[list[Waiting]], Done], members: list[Waiting], isolate: bool) -> Iterator[tuple[Done, list[Waiting]]]:
        """``work`` of the members, halved wherever it raises; those it cannot be done for alone are given back as errors."""
        if not members:
            return
        try:
            result = work(members)
        except torch.AcceleratorError:
            raise  # nothing works any more
        except Exception as error:
            if not isolate:
                raise
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(members) == 1:
                message = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self.broken += [Finished(id=e.id, tokens=[], finish_reason="error", error=message) for e in members[0].entries]
                return
        else:
            yield result, members
            return
        half = len(members) // 2
        yield from self._tried(work, members[:half], isolate)
        yield from self._tried(work, members[half:], isolate)


def _rows(waiting: Iterable[Waiting]) -> int:
    return sum(len(w.entries) for w in waiting)


def _slotfuls(waiting: Sequence[Waiting], rows: int) -> Iterator[list[Waiting]]:
    """``waiting`` cut into parts of ``rows`` rows, the last prompt of each whole."""
    part: list[Waiting] = []
    held = 0
    for w in waiting:
        part.append(w)
        held += len(w.entries)
        if held >= rows:
            yield part
            part, held = [], 0
    if part:
        yield part
