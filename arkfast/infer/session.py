"""One engine with all that stands between an utterance's features and its text. Every door decodes with it.

A session takes one utterance at a time and gives answers back as they end, in no order. Transcription feeds it a window of a manifest, a
service whatever its clients send.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from arkfast.engine import Engine, Request, Sampling, token_limit
from arkfast.engine.memory import default_slots
from arkfast.infer.hotwords import Hotwords
from arkfast.infer.result import DETECTED
from arkfast.infer.scored import Scored
from arkfast.infer.speech import NoSpeech
from arkfast.infer.stream import FRAMES_PER_SECOND, DeviceLost, Outcome
from arkfast.models.family import SpeechModel, check_positions
from arkfast.records import InputError, Interface, JsonObject, NamesLanguages, Utterance

if TYPE_CHECKING:
    from arkfast.engine import Finished


class Encoded(NamedTuple):
    """What a model heard in a clip, kept so that the clip needs no features when it comes again."""

    audio: torch.Tensor
    """[N, H] audio embeddings, on the model's device and of its type."""
    frames: int
    """Of the features."""
    front: float | None
    """What the features said of silence (``Scored.front``)."""


class OnDevice(NamedTuple):
    """Features of a clip that were made on the model's device."""

    mel: torch.Tensor
    """[n_mels, T] float32."""
    front: float
    """What they say of silence (``speech.silence_at``)."""


class _Asked(NamedTuple):
    """A request that is under way."""

    request: Request
    """Kept until it is given back: where memory runs out, all that are under way begin again in fewer slots."""
    front: float | None
    """What the features say (``Scored.front``)."""
    untold: bool
    """Whether the model names the language before the transcript, since its prompt says none."""
    warnings: tuple[str, ...]


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
        language: that prompts are told of utterances that do not say theirs; a ``RuntimeWarning`` says so where the model is told none, or
            not this one.

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
        language: str | None = None,
    ) -> None:
        self._scored = Scored(interface.tokenizer, confidence=confidence, no_speech=no_speech, calibrated=calibrated)
        self._hotwords = Hotwords(hotwords or {}, tokenizer=interface.tokenizer, allowed=interface.allowed(task))
        self._interface, self._prompt, self._device = interface, interface.prompt(task), model.lm_head.weight.device
        self._max_new_tokens, self._tokens_per_second = max_new_tokens, max_tokens_per_second or None
        self._sampling = sampling or Sampling()
        self._names = interface if isinstance(interface, NamesLanguages) else None
        self._language = language
        if language is not None:
            self._warn_of(language)
        positions = check_positions(
            model,
            self._prompt,
            frames=round(max_audio_seconds * FRAMES_PER_SECOND),
            new_tokens=max_new_tokens,
            asked=f"max_audio_seconds {max_audio_seconds:g} and max_new_tokens {max_new_tokens}",
            languages=() if self._names is None else self._names.languages,
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
        self._asked: dict[int, _Asked] = {}  # by our ids
        self._tickets: dict[int, int] = {}  # the engine's id → ours
        self._submitted = 0

    def _warn_of(self, language: str) -> None:
        if self._names is None:
            why = "has no effect on transcripts, because the prompt of this model is told no language"
        elif self._names.told(language) is None:
            why = f"is none that the model can be told, so it finds out by itself; it can be told {', '.join(self._names.languages)}"
        else:
            return
        warnings.warn(f"language '{language}' {why}", RuntimeWarning, stacklevel=4)

    def submit(
        self,
        utterance: Utterance,
        features: np.ndarray | OnDevice | Encoded | None,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        watched: bool = False,
        keep: Callable[[Encoded], None] | None = None,
    ) -> int:
        """Queue an utterance.

        Args:
            utterance: what the request is for. Its key fixes what is drawn for it.
            features: float32 [n_mels, T] log-mel of the host, or of the device, or what ``keep`` was given of the same clip; None where the
                task hears nothing.
            sampling: how its tokens are chosen; None takes the session's.
            max_new_tokens: where its answer is cut; None takes the session's.
            watched: whether ``progress`` tells its ids before it has ended.
            keep: is given what the model heard, in memory of its own, once features have been encoded.

        Returns:
            An id, which ``step`` gives back with the answer.

        Raises:
            InputError: features of a wrong shape, a number out of range, or a prompt that is longer than a slot.
        """
        names = self._names
        doubts: tuple[str, ...] = ()
        if utterance.language is None and self._language is not None:
            utterance = replace(utterance, language=self._language)
        elif names is not None and utterance.language and names.told(utterance.language) is None:
            doubts = (f"language '{utterance.language}' is none that the model can be told, so it found out by itself",)
        known = features if isinstance(features, Encoded) else None
        mel = torch.from_numpy(features) if isinstance(features, np.ndarray) else features.mel if isinstance(features, OnDevice) else None
        frames = known.frames if known is not None else 0 if mel is None else mel.shape[1]
        front = features.front if isinstance(features, (OnDevice, Encoded)) else self._scored.front(features)
        front = front if self._scored.judges else None
        most = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        limit = most if features is None else token_limit(frames / FRAMES_PER_SECOND, most, self._tokens_per_second)
        request = Request(
            mel=mel,
            audio=None if known is None else known.audio,
            encoded=None if keep is None else partial(_keep, keep, frames=frames, front=front),
            watched=watched,
            input_ids=torch.tensor(self._prompt.ids(frames, utterance)),
            max_new_tokens=limit,
            key=utterance.key,
            sampling=self._sampling if sampling is None else sampling,
            phrases=self._hotwords.phrases(utterance),
        )
        number = self._engine.submit(request)
        self._submitted += 1
        self._tickets[number] = self._submitted
        untold = names is not None and names.told(utterance.language) is None
        self._asked[self._submitted] = _Asked(request, front, untold, doubts)
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
        self._tickets = {self._engine.submit(asked.request): ticket for ticket, asked in self._asked.items()}

    def _outcome(self, done: Finished) -> Outcome:
        ticket = self._tickets.pop(done.id)
        asked = self._asked.pop(ticket)
        reason = done.finish_reason
        if reason == "error":
            return Outcome(ticket, None, None, done.error)
        language: JsonObject = {}
        if asked.untold and self._names is not None:
            heard = self._names.heard(done.tokens)
            language = {DETECTED: heard.language}
            logprobs = None if done.logprobs is None else done.logprobs[heard.begin :]
            done = replace(done, tokens=done.tokens[heard.begin :], logprobs=logprobs)
        text = self._interface.tokenizer.decode(done.tokens, skip_special_tokens=True)
        outcome = self._scored.outcome(Outcome(ticket, text, reason, None, warnings=asked.warnings, tokens=done.tokens), done, asked.front)
        return outcome._replace(scores={**(outcome.scores or {}), **language}) if language else outcome

    def unheard(self, utterance: Utterance) -> Outcome:
        """What is said of an utterance in which nothing is heard, without decoding it. No ticket has its number."""
        names, told = self._names, utterance.language or self._language
        language: JsonObject = {DETECTED: None} if names is not None and names.told(told) is None else {}
        outcome = self._scored.unheard()
        return outcome._replace(scores={**(outcome.scores or {}), **language}) if language else outcome

    def progress(self) -> dict[int, Sequence[int]]:
        """The ids of their transcripts that watched requests had produced at the end of the last ``step``, by the requests' ids.

        None of them changes any more. Where what was under way began again since, they are fewer for a while.
        """
        found: dict[int, Sequence[int]] = {}
        for number, tokens in self._engine.progress().items():
            ticket = self._tickets[number]
            begin = self._names.heard(tokens).begin if self._asked[ticket].untold and self._names is not None else 0
            if begin or not self._asked[ticket].untold:  # before the mark behind the language, nobody knows what will be the transcript
                found[ticket] = tokens[begin:]
        return found

    def check_hotwords(self, utterance: Utterance) -> None:
        """Raise ``InputError`` where no transcript can hold one of the utterance's own hotwords."""
        self._hotwords.phrases(utterance)

    def prompt_tokens(self, id: int) -> int:
        """How many ids the prompt of a request that is under way has, those in the place of its audio included."""
        return len(self._asked[id].request.input_ids)

    @property
    def pending(self) -> int:
        """Requests that have not been given back."""
        return self._engine.pending

    def cancel(self, id: int) -> bool:
        """Forget a request and say whether there was one. Nothing of it is given back."""
        number = next((number for number, ticket in self._tickets.items() if ticket == id), None)
        if number is None:
            return False
        del self._tickets[number], self._asked[id]
        return self._engine.cancel(number)

    def close(self) -> None:
        """Forget every request and give the memory of the slots back. The session can be used again."""
        self._engine.close()
        self._tickets.clear()
        self._asked.clear()


def _keep(keep: Callable[[Encoded], None], audio: torch.Tensor, *, frames: int, front: float | None) -> None:
    try:
        copy = audio.clone()
    except torch.OutOfMemoryError:  # the clip is encoded once more when it comes again
        return
    keep(Encoded(copy, frames, front))
