"""A checkpoint loaded as the flags ask, and what whoever runs a transcription asks of what was loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from arkfast.infer.hotwords import read_hotwords
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import Result
from arkfast.infer.stream import Memory
from arkfast.infer.transcriber import Transcriber
from arkfast.records import Utterance


class Device(Protocol):
    """A device, as ``torch.device`` is one."""

    @property
    def type(self) -> str:
        """Its kind, such as cuda."""


class Transcribes(Protocol):
    """What runs of a manifest ask of a ``Transcriber``, or of what stands in its place; the attributes are ``Transcriber``'s."""

    processing_seconds: float

    @property
    def checkpoint(self) -> Path: ...

    @property
    def tokenizer(self) -> Path: ...

    @property
    def head_folder(self) -> Path | None: ...

    @property
    def device(self) -> Device: ...

    @property
    def dtype(self) -> str: ...

    @property
    def model_commit(self) -> str | None: ...

    @property
    def batch_size(self) -> int | None: ...

    def results(
        self, items: Iterable[Utterance | Result], *, memory: Memory | None = None, ready: Callable[[], bool] | None = None
    ) -> Iterator[Result]:
        """See ``Transcriber.results``."""


def load_transcriber(model_path: Path, options: TranscribeOptions) -> Transcriber:
    """The checkpoint, loaded as the flags ask.

    Raises:
        InputError: as ``Transcriber``.
    """
    return Transcriber(
        model_path,
        revision=options.revision,
        device=options.device,
        dtype=options.dtype,
        attn_implementation=options.attn_impl,
        processor_path=options.processor_path,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        max_audio_seconds=options.max_audio_seconds,
        max_tokens_per_second=options.max_tokens_per_second,
        cut_loops=options.cut_loops,
        sampling=options.sampling(),
        audio_gain=options.audio_gain,
        features=options.features,
        num_workers=options.num_workers,
        vad=options.vad,
        confidence=options.confidence,
        calibration=options.calibration,
        no_speech=options.no_speech,
        hotwords=None if options.hotwords is None else read_hotwords(options.hotwords),
        language=options.language,
        timestamps=options.timestamps,
        aligner=options.aligner,
    )


Load = Callable[[Path, TranscribeOptions], Transcriber]
"""As ``load_transcriber``; what serves several manifests gives one that is loaded already."""
