"""Prompts that wait for a slot: encoded and prefilled in groups of similar length, and the faulty ones found out.

Encoding looks further ahead than admission: clips of similar length are
encoded together wherever they stand in the queue, and yet go on in the order in which they came, a slotful at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch

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
    entries: list[Entry]


class Admitted(NamedTuple):
    """Rows that may take their slots, all of one prefill."""

    prompts: Prefilled
    source: list[int]
    """Each row's prompt among them."""
    entries: list[Entry]


class Queue:
    """What waits, first come first served but for the order within a slotful.

    Args:
        model: encodes and prefills.

    Attributes:
        broken: requests that could not be encoded or prefilled, for the engine to give back.
    """

    def __init__(self, model: SpeechModel) -> None:
        self._model, self._device = model, model.lm_head.weight.device
        self._waiting: deque[Waiting] = deque()
        self._ready: deque[tuple[Prefilled, int, Entry]] = deque()
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
        self._ready = deque(ready for ready in self._ready if ready[2].id != id)
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
            self._encode(slotful, isolate)
            self._prefill(rows, isolate)
        prompts = self._ready[0][0]
        taken = Admitted(prompts, [], [])
        while self._ready and self._ready[0][0] is prompts and len(taken.entries) < rows:
            _, source, entry = self._ready.popleft()
            taken.source.append(source)
            taken.entries.append(entry)
        return taken

    def _prefill(self, rows: int, isolate: bool) -> None:
        """Make ready what fills ``rows`` slots, of what is encoded."""
        taken: list[Waiting] = []
        held = 0
        while self._waiting and self._waiting[0].audio is not None and held < rows:
            taken.append(self._waiting.popleft())
            held += len(taken[-1].entries)
        for group in groups_of_similar_length([len(w.prompt) for w in taken], suited(PREFILL_TOKENS, self._device)):
            members = [taken[i] for i in group]
            for prompts, own in self._tried(
                lambda m: prefill_each(self._model, [w.prompt for w in m], [w.audio for w in m if w.audio is not None]), members, isolate
            ):
                self._ready.extend((prompts, i, entry) for i, w in enumerate(own) for entry in w.entries)

    def _encode(self, slotful: int, isolate: bool) -> None:
        """Encode the front of the queue, unless that is done: at least a slotful, and more where groups of similar length need more."""
        taken: list[Waiting] = []
        rows, frames, enough = 0, 0, LOOKED_AT.get(self._device.type, LOOKED_AT["cuda"])
        while self._waiting and (mel := self._waiting[0].mel) is not None and (rows < slotful or frames < enough):
            taken.append(self._waiting.popleft())
            rows += len(taken[-1].entries)
            frames += mel.shape[1]
        encoded: list[Waiting] = []
        for found, own in self._tried(lambda m: encode(self._model, [w.mel for w in m if w.mel is not None]), taken, isolate):
            encoded += [replace(w, mel=None, audio=audio) for w, audio in zip(own, found, strict=True)]
        for w in encoded:
            if w.encoded is not None and w.audio is not None:
                w.encoded(w.audio)
        # The longest of a slotful first: what is admitted together should end together, and the last to be admitted should be short.
        # Slotfuls keep their order, so that no prompt waits for those that came after it.
        for part in reversed(list(_slotfuls(encoded, slotful))):
            self._waiting.extendleft(sorted(part, key=lambda w: len(w.prompt)))

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


def _rows(waiting: Sequence[Waiting] | deque[Waiting]) -> int:
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
