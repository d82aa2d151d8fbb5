"""The process that holds the model: clips in, texts out, over one connection to the service.

It decodes as long as clips are under way and takes new ones between two steps, so that a clip waits for a slot and never for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from arkfast.records import InputError, JsonObject, Utterance
from arkfast.serve.hearing import end_with_parent
from arkfast.serve.options import ServeConfig

if TYPE_CHECKING:
    from arkfast.infer.session import EngineSession
    from arkfast.infer.transcriber import Transcriber

NAMED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>", "<|user|>", "<|assistant|>", "<|system|>")
"""Tokens that ``GET /token-mask`` tells of, where the tokenizer has them."""


class Submit(NamedTuple):
    """To the child: a clip to transcribe."""

    ticket: int
    key: str
    """Decides what is drawn for it."""
    features: Path
    language: str | None
    max_new_tokens: int | None
    sampling: JsonObject
    """Arguments of ``Sampling``."""


class Cancel(NamedTuple):
    """To the child: forget a clip."""

    ticket: int


class Stop(NamedTuple):
    """To the child: end."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From the child, once: the model is loaded and has decoded something."""

    n_mels: int
    slots: int
    """Most clips decoded together."""
    device: str
    dtype: str
    commit: str | None
    token_mask: JsonObject
    """What ``GET /token-mask`` answers."""


class Refused(NamedTuple):
    """From the child: it cannot load the model, and why. It ends after that."""

    message: str


class Done(NamedTuple):
    """From the child: a clip's transcript."""

    ticket: int
    text: str | None
    finish_reason: str | None
    prompt_tokens: int
    error: str | None
    """Why there is none."""


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
            n_mels=transcriber.interface.n_mels or 0,
            slots=transcriber.batch_size,
            device=str(transcriber.device),
            dtype=transcriber.dtype,
            commit=transcriber.model_commit,
            token_mask=token_mask(transcriber),
        )
    )
    try:
        serve(connection, transcriber)
    except (EOFError, BrokenPipeError, DeviceLost):  # the service sees that the process has ended
        return


def load(config: ServeConfig) -> Transcriber:
    """The checkpoint, as the flags ask.

    Raises:
        InputError: as ``Transcriber``.
    """
    from arkfast.infer.transcriber import Transcriber

    return Transcriber(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        attn_implementation=config.attn_impl,
        processor_path=config.processor_path,
        batch_size=config.slots,
        max_new_tokens=config.max_new_tokens,
        max_audio_seconds=config.max_audio_seconds,
        max_tokens_per_second=config.max_tokens_per_second,
        num_workers=0,
    )


def warm_up(transcriber: Transcriber) -> None:
    """Decode a second of silence, so that the first client does not wait for kernels, and a model that cannot decode never becomes ready.

    Raises:
        InputError: it cannot.
    """
    import numpy as np

    features = np.zeros((transcriber.interface.n_mels or 0, 100), dtype=np.float32)
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


def serve(connection: Connection, transcriber: Transcriber) -> None:
    """Take clips and give transcripts back until ``Stop`` comes.

    Raises:
        EOFError, BrokenPipeError: the service is gone.
        DeviceLost: the device failed in a way that ends the process's use of it.
    """
    desk = _Desk(connection, transcriber.session)
    while True:
        while connection.poll(None if not desk.session.pending else 0):
            message = connection.recv()
            if isinstance(message, Stop):
                return
            desk.take(message)
        for outcome in desk.session.step():
            ticket, tokens = desk.asked.pop(outcome.ticket)
            connection.send(Done(ticket, outcome.text, outcome.finish_reason, tokens, outcome.error))


class _Desk:
    """Which clip of the session is which of the service's."""

    def __init__(self, connection: Connection, session: EngineSession) -> None:
        self._connection, self.session = connection, session
        self.asked: dict[int, tuple[int, int]] = {}
        """The session's id → (the service's ticket, tokens of the prompt)."""

    def take(self, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            for id_, (ticket, _) in list(self.asked.items()):
                if ticket == message.ticket:
                    self.session.cancel(id_)
                    del self.asked[id_]
            return
        import numpy as np

        from arkfast.engine import Sampling

        try:
            features = np.load(message.features, allow_pickle=False)
            utterance = Utterance(id=message.key, audio=None, language=message.language)
            id_ = self.session.submit(utterance, features, sampling=Sampling(**message.sampling), max_new_tokens=message.max_new_tokens)
            self.asked[id_] = message.ticket, self.session.prompt_tokens(id_)
        except (InputError, ValueError, OSError) as error:  # one clip's fault must not cost the others
            self._connection.send(Done(message.ticket, None, None, 0, " ".join(str(error).split())))
