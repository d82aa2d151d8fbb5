"""One engine with all that stands between an utterance's features and its text. Every door decodes with it.

A session takes one utterance at a time and gives answers back as they end, in no order. Transcription feeds it a window of a manifest, a
service whatever its clients send.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from arkfast.engine import Engine, Request, Sampling, token_limit
from arkfast.engine.memory import default_slots
from arkfast.infer.hotwords import Hotwords
from arkfast.infer.scored import Scored
from arkfast.infer.speech import NoSpeech
from arkfast.infer.stream import FRAMES_PER_SECOND, DeviceLost, Outcome
from arkfast.models.family import SpeechModel, check_positions
from arkfast.records import InputError, Interface, Utterance

if TYPE_CHECKING:
    from arkfast.engine import Finished


class EngineSession:
    """A model that turns utterances into text.

    Args:
        model: the model, on its device.
        interface: the model's ids and features.
        task: what the model is to do.
        slots: most utterances decoded together; None: as many as the device's free memory holds, up to 256, and 40 on a CPU.
        max_new_tokens: where an answer is cut (``finish_reason`` says so).
        max_audio_seconds: length of the longest clip, which decides how long a slot is.
        max_tokens_per_second: an answer is also cut at so many tokens for each second of its audio, plus 32; 0 sets no such limit.
        cut_loops: cut an answer that repeats one phrase over and over (``finish_reason`` says so).
        sampling: how tokens are chosen where a request does not say; None takes the best one.
        confidence, no_speech, calibrated: see ``Scored``.
        hotwords: of every utterance, with their weights (``Hotwords``).

    Raises:
        InputError: more audio and tokens than the model has positions, or as ``Scored`` and ``Hotwords``.
    """

    def __init__(
        self,
        model: SpeechModel,
        interface: Interface,
        *,
        task: str = "asr",
        slots: int | None,
        max_new_tokens: int,
        max_audio_seconds: float,
        max_tokens_per_second: float = 0.0,
        cut_loops: bool = True,
        sampling: Sampling | None = None,
        confidence: bool = False,
        no_speech: NoSpeech = "keep",
        calibrated: Callable[[float], float] | None = None,
        hotwords: Mapping[str, float] | None = None,
    ) -> None:
        self._scored = Scored(interface.tokenizer, confidence=confidence, no_speech=no_speech, calibrated=calibrated)
        self._hotwords = Hotwords(hotwords or {}, tokenizer=interface.tokenizer, allowed=interface.allowed(task))
        self._interface, self._prompt, self._device = interface, interface.prompt(task), model.lm_head.weight.device
        self._max_new_tokens, self._tokens_per_second = max_new_tokens, max_tokens_per_second or None
        self._sampling = sampling or Sampling()
        positions = check_positions(
            model,
            self._prompt,
            frames=round(max_audio_seconds * FRAMES_PER_SECOND),
            new_tokens=max_new_tokens,
            asked=f"max_audio_seconds {max_audio_seconds:g} and max_new_tokens {max_new_tokens}",
        )
        self._make_engine = partial(
            Engine,
            model,
            allowed=interface.allowed(task),
            max_len=positions,
            max_new_tokens=max_new_tokens,
            cut_loops=cut_loops,
            logprobs=confidence,
            silent=self._scored.judges,
        )
        self.slots: int = slots if slots is not None else default_slots(model, length=positions)
        """Most utterances decoded together; fewer once memory ran out."""
        self._engine = self._make_engine(slots=self.slots)
        # A request is kept until it is given back: where memory runs out, all that are under way begin again in fewer slots.
        self._requests: dict[int, Request] = {}
        self._front: dict[int, float | None] = {}  # what features say, by our ids
        self._tickets: dict[int, int] = {}  # the engine's id → ours
        self._submitted = 0

    def submit(
        self, utterance: Utterance, features: np.ndarray | None, *, sampling: Sampling | None = None, max_new_tokens: int | None = None
    ) -> int:
        """Queue an utterance.

        Args:
            utterance: what the request is for. Its key fixes what is drawn for it.
            features: float32 [n_mels, T] log-mel; None where the task hears nothing.
            sampling: how its tokens are chosen; None takes the session's.
            max_new_tokens: where its answer is cut; None takes the session's.

        Returns:
            An id, which ``step`` gives back with the answer.

        Raises:
            InputError: features of a wrong shape, a number out of range, or a prompt that is longer than a slot.
        """
        frames = 0 if features is None else features.shape[1]
        most = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        limit = most if features is None else token_limit(frames / FRAMES_PER_SECOND, most, self._tokens_per_second)
        request = Request(
            mel=None if features is None else torch.from_numpy(features),
            input_ids=torch.tensor(self._prompt.ids(frames, utterance)),
            max_new_tokens=limit,
            key=utterance.key,
            sampling=self._sampling if sampling is None else sampling,
            phrases=self._hotwords.phrases(utterance),
        )
        number = self._engine.submit(request)
        self._submitted += 1
        self._tickets[number] = self._submitted
        self._requests[self._submitted] = request
        self._front[self._submitted] = self._scored.front(features)
        return self._submitted

    def step(self) -> list[Outcome]:
        """Decode on until some request may have ended, and give back those that have. Returns [] when nothing is under way.

        Where the device's memory runs out, what is under way begins again in half the slots, with a warning. No answer depends on that.

        Raises:
            DeviceLost: the device failed in a way that ends the process's use of it.
            InputError: the device has no memory for a single utterance.
        """
        while True:
            try:
                finished = self._engine.step()
            except torch.AcceleratorError as error:  # after a CUDA fault every later call fails too
                raise DeviceLost(f"the device {self._device} failed and cannot go on in this process; run again ({error})") from error
            except torch.OutOfMemoryError as error:
                if self.slots == 1:
                    message = f"the device {self._device} has no memory for one clip; give a smaller max_audio_seconds ({error})"
                    raise InputError(message) from error
            else:
                return [self._outcome(done) for done in finished]
            self._halve()  # when the error is gone, since its frames hold memory

    def _halve(self) -> None:
        """Begin all that is under way again in half the slots."""
        before, self.slots = self.slots, self.slots // 2
        warnings.warn(
            f"the device {self._device} has no memory for {before} clips at once; goes on with {self.slots}", RuntimeWarning, stacklevel=3
        )
        self._engine.close()
        torch.cuda.empty_cache()
        self._engine = self._make_engine(slots=self.slots)
        self._tickets = {self._engine.submit(request): ticket for ticket, request in self._requests.items()}

    def _outcome(self, done: Finished) -> Outcome:
        ticket = self._tickets.pop(done.id)
        del self._requests[ticket]
        front = self._front.pop(ticket)
        if done.finish_reason == "error":
            return Outcome(ticket, None, None, done.error)
        text = self._interface.tokenizer.decode(done.tokens, skip_special_tokens=True)
        return self._scored.outcome(Outcome(ticket, text, done.finish_reason, None), done, front)

    def prompt_tokens(self, id: int) -> int:
        """How many ids the prompt of a request that is under way has, those in the place of its audio included."""
        return len(self._requests[id].input_ids)

    @property
    def pending(self) -> int:
        """Requests that have not been given back."""
        return self._engine.pending

    def cancel(self, id: int) -> bool:
        """Forget a request and say whether there was one. Nothing of it is given back."""
        number = next((number for number, ticket in self._tickets.items() if ticket == id), None)
        if number is None:
            return False
        del self._tickets[number], self._requests[id], self._front[id]
        return self._engine.cancel(number)

    def close(self) -> None:
        """Forget every request and give the memory of the slots back. The session can be used again."""
        self._engine.close()
        self._tickets.clear()
        self._requests.clear()
        self._front.clear()
