"""What goes into the engine and what comes out of it, one utterance at a time, with the limits of each number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import index
from typing import Literal

import torch

from arkfast.engine.phrases import Phrases
from arkfast.models.family import AudioInput, SpeechModel
from arkfast.records import InputError

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # of int64, which keys and seeds have on the device
_SMALL, _LARGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # the scores' own type

FinishReason = Literal["stop", "length", "repetition", "error"]
"""Why a transcript ends: an end token; its limit; a loop that was cut; scores that are not numbers, or a fault of the device."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are chosen. Temperature 0 takes the best id, the lowest on a tie; otherwise ids are drawn from softmax(scores / temperature).

    Raises:
        ValueError: a number out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw from the smallest set of ids whose probability reaches it; 1.0 does not restrict."""
    top_k: int = 0
    """Draw from so many best ids; 0 does not restrict."""
    repetition_penalty: float = 1.0
    """Scores of ids that stand in the prompt or were produced are divided by it, negative ones multiplied (Keskar et al. 2019, "CTRL")."""
    seed: int = 0
    """Of the noise, within int64; with the utterance's key, the rollout's number and the position it fixes every draw."""

    def __post_init__(self) -> None:
        for name, sound in (
            ("temperature", self.temperature == 0 or _SMALL <= self.temperature <= _LARGE),
            ("top_p", _SMALL <= self.top_p <= 1.0),
            ("top_k", 0 <= self.top_k <= _MOST),
            ("repetition_penalty", _SMALL <= self.repetition_penalty <= _LARGE),
            ("seed", _LEAST <= self.seed <= _MOST),
        ):
            if not sound:
                raise ValueError(f"{name} is out of range: {getattr(self, name)}")

    @property
    def draws(self) -> bool:
        """Whether noise is needed."""
        return self.temperature > 0

    @property
    def restricts(self) -> bool:
        """Whether ids are left out of the draw."""
        return self.draws and (self.top_p < 1.0 or self.top_k > 0)

    @property
    def penalises(self) -> bool:
        """Whether produced ids have to be remembered."""
        return self.repetition_penalty != 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One utterance to transcribe."""

    mel: torch.Tensor | None
    """[n_mels, T] float32 log-mel; None: there is nothing to hear."""
    input_ids: torch.Tensor
    """[P] int64 prompt with one placeholder per audio embedding."""
    max_new_tokens: int
    """Length limit, the end token included."""
    key: int = 0
    """``Utterance.key``, within int64, from which sampling noise is drawn."""
    sampling: Sampling = Sampling()
    phrases: Phrases | None = None
    """What gets a bonus while it is produced; None: nothing."""
    audio: torch.Tensor | None = None
    """[N, H] audio embeddings, on the model's device and of its type, where they are known; ``mel`` is None then."""
    encoded: Callable[[torch.Tensor], None] | None = None
    """Is given the audio embeddings [N, H] when ``mel`` has been encoded. They share memory with those of other clips, so who keeps them
    copies them, at once: on a GPU the stream that computes them is the current one then."""
    watched: bool = False
    """Whether ``Engine.progress`` tells its ids before it has ended."""

    def check(self, model: SpeechModel, *, max_len: int, max_new_tokens: int, width: int) -> None:
        """Raise ``InputError`` for what would be decoded wrongly, or would cost the requests beside it their transcripts.

        Args:
            model: the engine's.
            max_len: positions of a slot, for prompt and produced ids.
            max_new_tokens: the most ids that may be asked for.
            width: ids below it are scored.
        """
        heard = model.audio_input
        if self.input_ids.dtype != torch.int64:
            raise InputError(f"Engine: a prompt's ids must be int64, got {self.input_ids.dtype}; convert them")
        ids = self.input_ids.cpu()  # one wait where they lie on a device, however much is asked of them
        if ids.ndim != 1 or not len(ids):
            raise InputError(f"Engine: a prompt must be one-dimensional and hold at least one id, got shape {list(ids.shape)}")
        if self.audio is not None:
            self._check_embeddings(self.audio, ids, model)
        elif self.mel is not None:
            self._check_audio(self.mel, ids, heard)
        elif heard is not None and bool((ids == heard.placeholder_id).any()):
            raise InputError("Engine: a prompt with audio placeholders needs features; give the request's mel")
        vocab_size = model.config.vocab_size
        for id_ in (int(ids.min()), int(ids.max())):
            if not 0 <= id_ < vocab_size:
                raise InputError(
                    f"Engine: a prompt's ids must be 0 to {vocab_size - 1}, got {id_}; make the prompt with the model's tokenizer"
                )
        if self.phrases is not None and self.phrases.highest >= width:
            raise InputError(f"Engine: hotwords hold the id {self.phrases.highest}, and only ids below {width} can be produced")
        if not _LEAST <= self.key <= _MOST:
            raise InputError(f"Engine: a request's key must be within int64, got {self.key}; take Utterance.key")
        if not isinstance(self.max_new_tokens, int) or not 1 <= self.max_new_tokens <= max_new_tokens:
            raise InputError(f"Engine: max_new_tokens must be 1 to {max_new_tokens}, got {self.max_new_tokens}")
        if (total := len(ids) + self.max_new_tokens) > max_len:
            raise InputError(f"Engine: prompt and new tokens take {total} positions, a slot has {max_len}; shorten the audio")

    def _check_embeddings(self, audio: torch.Tensor, ids: torch.Tensor, model: SpeechModel) -> None:
        heard, weight = model.audio_input, model.lm_head.weight
        if heard is None or self.mel is not None:
            raise InputError("Engine: a request has either features or audio embeddings, and its model hears; give one of the two")
        wanted = (int((ids == heard.placeholder_id).sum()), model.config.hidden_size)
        if tuple(audio.shape) != wanted or audio.dtype != weight.dtype or audio.device != weight.device:
            raise InputError(
                f"Engine: a prompt with {wanted[0]} audio placeholders needs embeddings {list(wanted)} of {weight.dtype} on "
                f"{weight.device}, got {list(audio.shape)} of {audio.dtype} on {audio.device}"
            )

    @staticmethod
    def _check_audio(mel: torch.Tensor, ids: torch.Tensor, heard: AudioInput | None) -> None:
        if heard is None:
            raise InputError("Engine: the model hears nothing; give requests without features")
        if mel.ndim != 2 or mel.shape[0] != heard.n_mels or not mel.shape[1]:
            raise InputError(f"Engine: a request's features must be [{heard.n_mels}, frames], got {list(mel.shape)}")
        if mel.dtype != torch.float32:
            raise InputError(f"Engine: a request's features must be float32, got {mel.dtype}; convert them")
        placeholders, wanted = int((ids == heard.placeholder_id).sum()), heard.token_count(mel.shape[1])
        if placeholders != wanted:
            raise InputError(
                f"Engine: a prompt for {mel.shape[1]} frames must be one-dimensional with {wanted} audio placeholders, "
                f"got shape {list(ids.shape)} with {placeholders}"
            )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the host knows of a row."""

    id: int
    """Whose row it is."""
    prompt: int
    """Length of its prompt."""
    limit: int
    """Ids that it may produce."""
    key: int
    number: int
    sampling: Sampling
    phrases: Phrases | None = None
    watched: bool = False
    produced: int = 0
    """Ids produced when the host last looked."""
    at: int = 0
    """Decode steps that the slots had run then."""


def rollout_limits(max_new_tokens: int | Iterable[int], *, utterances: int, n: int) -> list[int]:
    """The limit of each utterance of a rollout.

    Raises:
        ValueError: no utterance, no rollout of each, a limit below 1, or not one limit an utterance.
    """
    for name, value in (("n", n), ("the number of utterances", utterances)):
        if value < 1:
            raise ValueError(f"Engine.rollout: {name} must be at least 1, got {value}")
    limits = [index(limit) for limit in max_new_tokens] if isinstance(max_new_tokens, Iterable) else [index(max_new_tokens)] * utterances
    if len(limits) != utterances:
        raise ValueError(
            f"Engine.rollout: max_new_tokens has {len(limits)} limits for {utterances} utterances; give one for each or one for all"
        )
    if min(limits) < 1:
        raise ValueError(f"Engine.rollout: max_new_tokens must be at least 1, got {min(limits)}")
    return limits


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What became of a request."""

    id: int
    """What ``Engine.submit`` returned."""
    tokens: list[int]
    """Produced ids, without the end token."""
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    """Each id's log-probability, the end token's last when it was produced; None unless the engine keeps them."""
    silent: float | None = None
    """The model's log-probability of ending before the first id; None unless the engine keeps it."""
    error: str | None = None
    """What went wrong, for the reason ``error``."""
