"""The process that holds the model: clips in, texts out, over one connection to the service.

It decodes as long as clips are under way and takes new ones between two steps, so that a clip waits for a slot and never for a batch. What
the model heard in a clip is kept for a while, so that the same recording needs neither features nor the encoder when it comes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from arkfast.infer.hotwords import FIELD, read_hotwords
from arkfast.records import InputError, JsonObject, JsonRow, NamesLanguages, Utterance
from arkfast.serve.growing import Growing
from arkfast.serve.hearing import end_with_parent
from arkfast.serve.lru import Lru
from arkfast.serve.options import ServeConfig

if TYPE_CHECKING:
    import numpy as np

    from arkfast.infer.session import Encoded
    from arkfast.infer.stream import Outcome
    from arkfast.infer.transcriber import Transcriber

NAMED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>", "<|user|>", "<|assistant|>", "<|system|>")
"""Tokens that ``GET /token-mask`` tells of, where the tokenizer has them."""
NO_HEAD = "the model that is served now has no head for them"
NO_MEMORY = "the device had no memory to align them"

Fault = Literal["decoding", "hotwords", "forgotten"]
"""Why a clip has no transcript: its decoding failed; no transcript can hold one of its hotwords; it came without features, and what was
heard in it is not known any more."""


class Submit(NamedTuple):
    """To the child: a clip to transcribe."""

    ticket: int
    key: str
    """Decides what is drawn for it."""
    features: Path | None
    """File of its float32 [n_mels, T] log-mel features; None where what was heard in it should be known by ``name``."""
    name: str | None
    """By which what is heard in it is kept; None: it is not."""
    language: str | None
    max_new_tokens: int | None
    sampling: JsonObject
    """Arguments of ``Sampling``."""
    hotwords: tuple[str, ...]
    """Phrases that are preferred in it, beside the service's own."""
    words: bool
    """Whether its words get times; features are there then."""
    watched: bool
    """Whether ``Grown`` tells its transcript before it is complete."""


class Cancel(NamedTuple):
    """To the child: forget a clip."""

    ticket: int


class Stop(NamedTuple):
    """To the child: end."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From the child, once: the model is loaded and has decoded something."""

    n_mels: int
    least_samples: int
    """A shorter clip counts as padded with zeros to so many."""
    slots: int
    """Most clips decoded together."""
    device: str
    dtype: str
    commit: str | None
    words: bool
    """Whether it can tell when words were said."""
    told: bool
    """Whether its prompts are told the language of the speech."""
    token_mask: JsonObject
    """What ``GET /token-mask`` answers."""

    @property
    def features(self) -> tuple[int, int]:
        """What recordings must be made into: ``n_mels`` and ``least_samples``."""
        return self.n_mels, self.least_samples


class Refused(NamedTuple):
    """From the child: it cannot load the model, and why. It ends after that."""

    message: str


class Grown(NamedTuple):
    """From the child: a part of a clip's transcript that is certain, behind those before it."""

    ticket: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """From the child: a clip's transcript, or why there is none."""

    ticket: int
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: tuple[int, ...] = ()
    """The ids that wrote the text, without the end token."""
    scores: JsonRow | None = None
    """``Result.scores``."""
    words: list[JsonObject] | None = None
    """``Result.words``, in seconds from the clip's start; None where they were not asked for or have no times."""
    words_error: str | None = None
    """Why they have none."""
    warnings: tuple[str, ...] = ()
    known: bool | None = None
    """Whether what is heard in it was known, so that it was not encoded; None where nothing is kept of it."""
    fault: Fault | None = None
    error: str = ""
    """What went wrong, for the log."""


def main(connection: Connection, config: ServeConfig) -> None:
    """The child's life. It ends when it is told to, when the connection closes and when the service has died."""
    end_with_parent()
    from arkfast.infer.stream import DeviceLost
    from arkfast.models.bars import without_loading_bars

    without_loading_bars()
    try:
        transcriber = load(config)
        warm_up(transcriber)
    except (InputError, ImportError) as error:
        connection.send(Refused(str(error)))
        return
    connection.send(
        Ready(
            n_mels=transcriber.audio_input.n_mels,
            least_samples=transcriber.audio_input.least_samples,
            slots=transcriber.batch_size,
            device=str(transcriber.device),
            dtype=transcriber.dtype,
            commit=transcriber.model_commit,
            words=transcriber.word_times is not None,
            told=isinstance(transcriber.interface, NamesLanguages),
            token_mask=token_mask(transcriber),
        )
    )
    try:
        serve(connection, transcriber, config.encoder_cache_bytes)
    except (EOFError, BrokenPipeError, DeviceLost):  # the service sees that the process has ended
        return


def load(config: ServeConfig) -> Transcriber:
    """The checkpoint, as the flags ask.

    Raises:
        InputError: as ``Transcriber``.
    """
    import torch

    from arkfast.align import find_head
    from arkfast.device import use_device
    from arkfast.infer.transcriber import Transcriber
    from arkfast.models.hub import checkpoint_folder

    folder = checkpoint_folder(config.model, revision=config.revision, flag="--model")
    device = use_device(config.device, flag="--device")
    # Slots take what memory is free, so the room of what is kept of clips is held while they are counted.
    room = torch.empty(config.encoder_cache_bytes if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
    transcriber = Transcriber(
        config.model,
        revision=config.revision,
        device=device,
        dtype=config.dtype,
        attn_implementation=config.attn_impl,
        processor_path=config.processor_path,
        batch_size=config.slots,
        max_new_tokens=config.max_new_tokens,
        max_audio_seconds=config.max_audio_seconds,
        max_tokens_per_second=config.max_tokens_per_second,
        confidence=config.confidence,
        no_speech=config.no_speech,
        hotwords=None if config.hotwords is None else read_hotwords(config.hotwords),
        timestamps="word" if config.aligner is not None or find_head(folder) is not None else "segment",
        aligner=config.aligner,
        num_workers=0,
    )
    del room
    return transcriber


def warm_up(transcriber: Transcriber) -> None:
    """Decode a second of silence, so that the first client does not wait for kernels, and a model that cannot decode never becomes ready.

    Raises:
        InputError: it cannot.
    """
    import numpy as np

    features = np.zeros((transcriber.audio_input.n_mels, 100), dtype=np.float32)
    session = transcriber.session
    session.submit(Utterance(id="warm-up", audio=None), features, max_new_tokens=4)
    while session.pending:
        for outcome in session.step():
            if outcome.text is None:
                raise InputError(f"the model cannot decode: {outcome.error}")


def token_mask(transcriber: Transcriber) -> JsonObject:
    """Which tokens a transcript may hold, as open-audio-opd tells it."""
    tokenizer, allowed = transcriber.interface.tokenizer, transcriber.interface.allowed("asr")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in NAMED_TOKENS}
    known = {token: id_ for token, id_ in ids.items() if id_ is not None and tokenizer.convert_ids_to_tokens([id_]) == [token]}
    return {
        "allowed_count": allowed.count,
        "blocked_count": transcriber.vocab_size - allowed.count,
        "eos_token_ids": list(allowed.stop_ids),
        "tokens": {token: {"id": id_, "blocked": id_ not in allowed, "allowed": id_ in allowed} for token, id_ in known.items()},
    }


def serve(connection: Connection, transcriber: Transcriber, cache_bytes: int) -> None:
    """Take clips and give transcripts back until ``Stop`` comes.

    Raises:
        EOFError, BrokenPipeError: the service is gone.
        DeviceLost: the device failed in a way that ends the process's use of it.
    """
    desk = _Desk(connection, transcriber, cache_bytes)
    while True:
        while connection.poll(None if not transcriber.session.pending else 0):
            message = connection.recv()
            if isinstance(message, Stop):
                return
            desk.take(message)
        desk.step()


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A clip that is under way."""

    ticket: int
    """The service's."""
    prompt_tokens: int
    known: bool | None
    """``Done.known``."""
    words: bool
    """Whether times of its words were asked for."""
    growing: Growing | None
    """What has been told of its transcript; None where nobody asked."""


class _Desk:
    """Which clip of the session is which of the service's."""

    def __init__(self, connection: Connection, transcriber: Transcriber, cache_bytes: int) -> None:
        self._connection, self._session, self._times = connection, transcriber.session, transcriber.word_times
        self._tokenizer = transcriber.interface.tokenizer
        self._heard: Lru[Encoded] = Lru(cache_bytes, _bytes)
        self._clips: dict[int, _Clip] = {}  # by the session's ids

    def take(self, message: Submit | Cancel) -> None:
        """Begin a clip, or forget one."""
        if isinstance(message, Cancel):
            for id_ in [id_ for id_, clip in self._clips.items() if clip.ticket == message.ticket]:
                self._session.cancel(id_)
                del self._clips[id_]
                if self._times is not None:
                    self._times.forget(id_)
            return
        fault: Fault = "decoding"
        utterance = Utterance(id=message.key, audio=None, language=message.language, extra={FIELD: list(message.hotwords)})
        try:
            known = None if message.name is None else self._heard.find(message.name)
            needed = known is None or message.words
            features = _loaded(message.features) if message.features is not None and needed else None
            given = features if known is None else known
            if given is None:
                self._connection.send(Done(ticket=message.ticket, fault="forgotten"))
                return
            fault = "hotwords"
            self._session.check_hotwords(utterance)
            fault = "decoding"
            self._begin(message, utterance, given, features, known=None if message.name is None else known is not None)
        except (InputError, ValueError, OSError) as error:  # one clip's fault must not cost the others
            self._connection.send(Done(ticket=message.ticket, fault=fault, error=" ".join(str(error).split())))

    def _begin(
        self, message: Submit, utterance: Utterance, given: np.ndarray | Encoded, features: np.ndarray | None, *, known: bool | None
    ) -> None:
        from arkfast.engine import Sampling

        name = message.name
        id_ = self._session.submit(
            utterance,
            given,
            sampling=Sampling(**message.sampling),
            max_new_tokens=message.max_new_tokens,
            watched=message.watched,
            keep=None if name is None or known else lambda heard: self._heard.keep(name, heard),
        )
        if message.words and self._times is not None and features is not None:
            self._times.keep(id_, features, utterance.language)
        self._clips[id_] = _Clip(
            ticket=message.ticket,
            prompt_tokens=self._session.prompt_tokens(id_),
            known=known,
            words=message.words,
            growing=Growing(self._tokenizer) if message.watched else None,
        )

    def step(self) -> None:
        """Decode on, and tell what has ended and what is certain of the rest."""
        outcomes = self._session.step()
        timed = {outcome.ticket: outcome for outcome in self._timed([each for each in outcomes if self._clips[each.ticket].words])}
        for outcome in (timed.get(each.ticket, each) for each in outcomes):
            self._connection.send(_done(self._clips.pop(outcome.ticket), outcome))
        for id_, tokens in self._session.progress().items():
            clip = self._clips[id_]
            if clip.growing is not None and (text := clip.growing.add(tokens)):
                self._connection.send(Grown(clip.ticket, text))

    def _timed(self, outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes with times of words, or why they have none."""
        import torch

        if self._times is None:  # another model took over since they were asked for
            return [outcome._replace(words_error=NO_HEAD) for outcome in outcomes]
        try:
            return self._times.add(outcomes)
        except torch.OutOfMemoryError:  # which must not cost the other clips anything
            return [outcome._replace(words_error=NO_MEMORY) for outcome in outcomes]


def _loaded(path: Path) -> np.ndarray:
    import numpy as np

    features: np.ndarray = np.load(path, allow_pickle=False)
    return features


def _bytes(heard: Encoded) -> int:
    return heard.audio.numel() * heard.audio.element_size()


def _done(clip: _Clip, outcome: Outcome) -> Done:
    if outcome.text is None:
        return Done(ticket=clip.ticket, known=clip.known, fault="decoding", error=outcome.error or "")
    return Done(
        ticket=clip.ticket,
        text=outcome.text,
        finish_reason=outcome.finish_reason,
        prompt_tokens=clip.prompt_tokens,
        tokens=tuple(outcome.tokens),
        scores=outcome.scores,
        words=None if outcome.words is None else list(outcome.words),
        words_error=outcome.words_error,
        warnings=outcome.warnings,
        known=clip.known,
    )
