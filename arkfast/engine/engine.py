"""Decoding: prompts in, ids out.

One cache, one token mask, one stop rule for training's rollouts, transcription and the service. Requests wait in a queue, take a slot
each, and leave it when they end, so that short ones do not wait for long ones. A row's tokens do not depend on its batch mates, its slot or
the order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch

from arkfast.engine.collect import RolloutBuffers
from arkfast.engine.decoder import check_decoder
from arkfast.engine.graphs import BUCKETS, bucket
from arkfast.engine.leaving import Leaving
from arkfast.engine.memory import default_slots, footprint, free_memory, slots_within
from arkfast.engine.products import side_by_side
from arkfast.engine.request import Entry, Finished, Request, Sampling, rollout_limits
from arkfast.engine.rows import DONE, FAILED, LOOPED, Choosing
from arkfast.engine.slots import Slots
from arkfast.engine.waiting import Queue, Waiting
from arkfast.models.family import Audio, SpeechModel
from arkfast.records import AllowedTokens, Batch, Rollout

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

LOOK_EVERY = {"cuda": 4, "cpu": 2}
"""Decode steps between two looks at which rows have ended; until that is seen, ended rows are computed in vain. On a GPU it is seen a look
late, after 4 to 8 steps, so that the device never waits for the host."""
LENGTHS = 128
"""What the length of slots is a multiple of: a batch that is a little longer than those before it finds room, as do its captured steps."""


class RolloutOptions(TypedDict, total=False):
    """The choices of ``Engine.rollout``, which says what they are, for those who hand them on."""

    max_new_tokens: Required[int | Sequence[int]]
    n: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


class Decodes(Protocol):
    """What a training step asks of an engine."""

    blocked: torch.Tensor
    """Int32 ids that are never produced, as the kernels take them."""
    allowed: AllowedTokens
    """Which ids may be produced and which end a row."""
    stop_ids: torch.Tensor
    """[n] int64 ids that end a row, on the device."""

    def rollout(self, batch: Batch, *, audio: Audio | None = None, **options: Unpack[RolloutOptions]) -> Rollout:
        """See ``Engine.rollout``."""
        ...


class Engine:
    """Decodes with one model.

    Args:
        model: whose decoder is Llama, Qwen2 or Qwen3; its weights are read at each step, so a trained model needs no new engine. They may
            change at any time, but move to other memory only while no row is being decoded.
        allowed: which ids may be produced and which end a row.
        slots: rows decoded at once by ``submit`` and ``step``, and the most at once in ``rollout``. None: as many as ``memory`` finds room
            for; in ``rollout`` that is everything where it fits, and on a CPU.
        max_len: prompt and produced ids of a request together; of ``submit`` and ``step`` only.
        max_new_tokens: the most ids that a request may ask for; of ``submit`` and ``step`` only.
        topk: how many of the model's best ids to keep at each produced position (0: none).
        logprobs: keep each produced id's log-probability.
        silent: keep each request's log-probability of ending before the first id.
        look_every: decode steps between two looks at which rows have ended; None: 4 on a GPU, 2 on a CPU.
        cut_loops: end a row that repeats one phrase over and over (``guards``); rollouts of training leave loops be, so that the
            model is judged on what it does.
        graphs: capture decode steps as CUDA graphs; None: on a GPU, where weights are not sharded.
        overlap: keep the device busy while the host works and while prompts are made ready: rows are looked at a look late, and clips are
            encoded and prompts prefilled on streams of their own while others are decoded. Rows meet other batch mates then, on which
            no id depends but by rounding. None: on a GPU.

    Raises:
        ValueError: a decoder that is not a plain Llama, Qwen2 or Qwen3, or a number out of range.
    """

    def __init__(
        self,
        model: SpeechModel,
        *,
        allowed: AllowedTokens,
        slots: int | None = None,
        max_len: int = 1024,
        max_new_tokens: int = 448,
        topk: int = 0,
        logprobs: bool = False,
        silent: bool = False,
        look_every: int | None = None,
        cut_loops: bool = False,
        graphs: bool | None = None,
        overlap: bool | None = None,
    ) -> None:
        check_decoder(model.model)
        for name, value, least in (
            ("slots", slots, 1),
            ("max_len", max_len, 1),
            ("max_new_tokens", max_new_tokens, 1),
            ("topk", topk, 0),
            ("look_every", look_every, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"Engine: {name} must be at least {least}, got {value}")
        for start, stop in allowed.period or ():
            if stop > model.lm_head.weight.shape[0]:
                raise ValueError(f"Engine: allowed has the range [{start}, {stop}); the model's ids end at {model.lm_head.weight.shape[0]}")
        self.model, self.allowed, self.topk, self.logprobs = model, allowed, topk, logprobs
        weight = model.lm_head.weight
        self._device = weight.device
        self._slots_wanted, self._max_len, self._max_new_tokens = slots, max_len, max_new_tokens
        self._step_slots = slots
        self._look_every = look_every or LOOK_EVERY.get(self._device.type, 8)
        self._cut_loops = cut_loops
        sharded = hasattr(weight, "device_mesh")  # a DTensor, whose memory moves whenever it is gathered
        self._graphs = (self._device.type == "cuda" and not sharded) if graphs is None else graphs
        self.blocked = allowed.blocked(weight.shape[0], self._device)
        """Int32 ids that are never produced, as the kernels take them."""
        self.stop_ids = torch.tensor(allowed.stop_ids, dtype=torch.int64, device=self._device)
        """[n] int64 ids that end a row, on the device."""
        width = allowed.width(weight.shape[0])
        self._choosing = Choosing(
            width=width,
            blocked=allowed.blocked(width, self._device),
            stop_ids=self.stop_ids,
            topk=topk,
            logprobs=logprobs,
            silent=silent,
            turns=allowed.turns(self._device),
        )
        self._slots: Slots | None = None
        self._weights: tuple[int, ...] = ()
        self._overlap = self._device.type == "cuda" if overlap is None else overlap
        self._queue = Queue(model, beside=self._overlap)
        self._leaving: list[Leaving] = []
        self._next_id = 0

    # -- one request at a time -------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Queue a request.

        Returns:
            Its id, which ``step`` gives back with its tokens.

        Raises:
            InputError: features or prompt have the wrong shape or type, a number of the request is out of range, or it is longer than the
                engine's slots.
        """
        request.check(self.model, max_len=self._max_len, max_new_tokens=self._max_new_tokens, width=self._choosing.width)
        self._next_id += 1
        entry = Entry(
            id=self._next_id,
            prompt=len(request.input_ids),
            limit=request.max_new_tokens,
            key=request.key,
            number=0,
            sampling=request.sampling,
            phrases=request.phrases,
            watched=request.watched,
        )
        self._queue.add(Waiting(prompt=request.input_ids, mel=request.mel, audio=request.audio, encoded=request.encoded, entries=[entry]))
        return self._next_id

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """Admit what fits, decode until the next look, and give back what has ended; [] and nothing done when nothing is queued."""
        if self._step_slots is None:
            self._step_slots = default_slots(self.model, length=self._max_len)
        slots = self._reserve(rows=self._step_slots, length=self._max_len, new=self._max_new_tokens)
        ended = self._go_on(slots, isolate=True)
        arrived, self._leaving = self._leaving, []
        if ended:
            (self._leaving if self._overlap else arrived).append(Leaving(slots.state, ended))
            self._release(slots, ended)
        finished, self._queue.broken = self._queue.broken, []
        return finished + [done for left in arrived for done in left.finished()]

    @property
    def pending(self) -> int:
        """Requests that have not been given back."""
        decoded = len(self._slots.entries) if self._slots else 0
        return len(self._queue.broken) + len(self._queue) + decoded + sum(len(left) for left in self._leaving)

    def progress(self) -> Mapping[int, Sequence[int]]:
        """The ids that watched requests (``Request.watched``) had produced when the last ``step`` looked, by the requests' ids.

        None of them changes any more: loops were cut before. They came with what that step read anyway, so nothing waits for the device.
        """
        return self._slots.told if self._slots else {}

    @property
    def decode_steps(self) -> int:
        """Decode steps run since the slots were made."""
        return self._slots.steps if self._slots else 0

    def cancel(self, id: int) -> bool:
        """Forget a request and free its slot; whether there was one. Nothing of it is given back."""
        if self._queue.cancel(id) or any(left.cancel(id) for left in self._leaving):
            return True
        places = [place for place, entry in enumerate(self._slots.entries) if entry.id == id] if self._slots else []
        if places and self._slots:
            self._slots.release(places, wipe=places)
        return bool(places)

    def close(self) -> None:
        """Forget every request and give the slots' memory back; the engine can be used again."""
        self._slots = None
        self._queue.clear()
        self._leaving.clear()

    # -- a whole batch -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(
        self,
        batch: Batch,
        *,
        max_new_tokens: int | Sequence[int],
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        audio: Audio | None = None,
    ) -> Rollout:
        """Produce up to ``max_new_tokens`` ids for every utterance, ``n`` times.

        Args:
            batch: B utterances on the model's device, with audio or without.
            max_new_tokens: length limit, the end token included; a row cut here has ``stopped`` False. One for all, or one an utterance.
            n: rollouts of each utterance, which share its encoding and its prefill; row ``b * n + i`` is the i-th of utterance b.
            temperature, top_p, top_k, repetition_penalty, seed: see ``Sampling``.
            audio: what ``model.get_audio_features`` gave for the batch, where it is at hand already.

        Whatever it raises, the engine can be used again.

        Raises:
            RuntimeError: requests of ``submit`` are still under way.
            ValueError: a number out of range, or not one limit an utterance.
        """
        if self.pending:
            raise RuntimeError(f"Engine.rollout: {self.pending} submitted requests are under way; finish or cancel them first")
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty, seed=seed)
        limits = rollout_limits(max_new_tokens, utterances=batch.size, n=n)
        rows, new, heard = batch.size * n, max(limits), self.model.audio_input
        lens = torch.zeros_like(batch.keys) if batch.mel_lens is None else batch.mel_lens
        prompts, frames, keys = torch.stack((batch.prompt_lens, lens, batch.keys)).tolist()
        try:
            for b in range(batch.size):
                entries = [
                    Entry(id=b * n + i, prompt=prompts[b], limit=limits[b], key=keys[b], number=i, sampling=sampling) for i in range(n)
                ]
                known = None if audio is None or heard is None else audio[0][b, : heard.token_count(frames[b])]
                mel = None if batch.mel is None else batch.mel[b, :, : frames[b]]
                self._queue.add(Waiting(prompt=batch.input_ids[b, : prompts[b]], audio=known, mel=mel, entries=entries))
            at_once = min(self._slots_wanted or self._room(rows, length=max(prompts) + new, new=new), rows)
            slots = self._reserve(rows=at_once, length=max(prompts) + new, new=new)
            found = RolloutBuffers(rows, new, self._choosing, self._device)
            while self.pending:
                ended = self._go_on(slots, isolate=False)
                found.take(slots.state, ended)
                self._release(slots, ended)
        except BaseException:
            self.close()
            raise
        return found.rollout(n)

    # -- inside ------------------------------------------------------------------------------------------------------------------------

    def _room(self, rows: int, *, length: int, new: int) -> int:
        """How many of ``rows`` of a rollout are decoded at once."""
        if self._slots is not None and self._slots.fits(rows=rows, length=length, new=new):
            return rows
        free = free_memory(self._device)
        if free is None:
            return rows
        held = 0 if self._slots is None else self._slots.cache.bytes  # which go before new ones come
        length = -(-length // LENGTHS) * LENGTHS
        return slots_within(free + held, footprint(self.model, self._device), length=length, most=rows)

    def _reserve(self, *, rows: int, length: int, new: int) -> Slots:
        """Slots that hold so much: those at hand where they do and no weight that a captured step reads has moved."""
        if self._slots is not None and self._slots.entries:
            return self._slots  # slots in use stay; a walk over all weights would hold up every step
        length = -(-length // LENGTHS) * LENGTHS
        products = side_by_side(self.model.model)  # before the walk, for it may move weights
        parts = (self.model.model, self.model.lm_head) if self._graphs else ()
        weights = tuple(p.data_ptr() for part in parts for p in part.parameters())
        if self._slots is None or weights != self._weights or not self._slots.fits(rows=rows, length=length, new=new):
            if self._slots is not None:
                most, length, new = self._slots.grown(rows=rows, length=length, new=new)
                self._slots = None  # the old memory goes before the new comes
            else:
                most = rows
            if torch.are_deterministic_algorithms_enabled():
                # A captured step then has as many rows whatever batches came before, and its products add up alike.
                most = bucket(most, most + BUCKETS[-1])
            self._slots = Slots(self.model, self._choosing, rows=most, length=length, new=new, graphs=self._graphs)
            self._weights = weights
        self._slots.most, self._slots.products = rows, products
        return self._slots

    def _go_on(self, slots: Slots, *, isolate: bool) -> list[tuple[int, Entry, int]]:
        """Admit what fits and decode until the next look; (place, entry, state) of every row that is then known to have ended."""
        self._admit(slots, isolate=isolate)
        moment = self._queue.moment()
        slots.advance(self._look_every)
        # After the steps are queued, so that the device has them while the host is at it.
        self._queue.prepare(slotful=slots.most, isolate=isolate, after=moment)
        loops = self._look_every + 1 if self._cut_loops else 0  # an admitted row has one id before its first step
        return [looked for looked in slots.look(loops_since=loops, late=self._overlap) if looked[2] & DONE]

    def _admit(self, slots: Slots, *, isolate: bool = True) -> None:
        """Fill free slots from the queue. A few free ones wait for company, since a prefill holds up every row that is decoding."""
        if slots.entries and slots.free < max(1, slots.most // 8):
            return
        while slots.free and (taken := self._queue.take(slots.free, slotful=slots.most, isolate=isolate)):
            slots.admit(taken.prompts, taken.source, taken.entries)

    @staticmethod
    def _release(slots: Slots, ended: list[tuple[int, Entry, int]]) -> None:
        # a row whose loop was cut went on until it was looked at, and may have failed meanwhile
        slots.release([place for place, _, _ in ended], wipe=[place for place, _, state in ended if state & (FAILED | LOOPED)])
