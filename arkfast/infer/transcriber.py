"""Transcription with a checkpoint: utterances in, rows out.

Manifests and output files are ``command``'s.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from arkfast.audio import SAMPLING_RATE
from arkfast.device import use_device
from arkfast.infer.gain import Gain, with_gain
from arkfast.infer.long import Splitter, Vad, transcribe_long
from arkfast.infer.result import Result
from arkfast.infer.speech import NoSpeech
from arkfast.infer.stream import FRAMES_PER_SECOND, Gate, Memory, Outcome, transcribe_stream
from arkfast.records import InputError, JsonObject, Utterance

if TYPE_CHECKING:
    import numpy as np
    import torch

    from arkfast.audio import LogMel
    from arkfast.engine import Sampling
    from arkfast.infer.device_features import DeviceFeatures
    from arkfast.infer.words import WordTimes
    from arkfast.models.family import AudioInput

DType = Literal["auto", "float16", "bfloat16", "float32"]
Timestamps = Literal["segment", "word", "character"]
FeaturesFrom = Literal["host", "device"]
"""Where log-mel features are made."""
Attention = Literal["auto", "flash_attention_2", "eager", "sdpa"]

WINDOW_BATCHES, WINDOW_CLIPS = 8, 640  # see ``clips_under_way``
MOST_WORKERS = 8


class Transcriber:
    """A loaded checkpoint that turns utterances into transcripts.

    A transcript depends on its clip alone, and where tokens are drawn on the utterance's id and the seed; not on the other clips, the batch
    size or the order.

    Args:
        model_path: folder of a Transformers checkpoint with its tokenizer, or a repository of the Hugging Face Hub that holds one, as
            ``organisation/name``; a folder wins.
        revision: branch, tag or commit of the repository; None is its default branch.
        device: as torch spells it; None takes the GPU where there is one.
        dtype: type of the weights; ``auto`` is bfloat16 on a GPU and float32 elsewhere.
        attn_implementation: how the prompt's attention is computed; ``auto`` is sdpa, and so is ``flash_attention_2``, because sdpa has
            flash kernels of PyTorch's own.
        processor_path: folder or repository of the tokenizer; None takes the checkpoint's own. Another revision of a repository is
            ``organisation/name@revision``.
        batch_size: most clips decoded together; None: as many as the device's free memory holds, up to 256, and 40 on a CPU.
        max_new_tokens: where a transcript is cut (``finish_reason`` says so).
        max_audio_seconds: a longer clip is cut as ``vad`` says, or is a failed row, and never a shortened one.
        max_tokens_per_second: a transcript is also cut at so many tokens for each second of its audio, plus 32; 0 sets no such limit.
        cut_loops: cut a transcript that repeats one phrase over and over (``finish_reason`` says so).
        sampling: how tokens are chosen; None takes the best one.
        audio_gain: samples are multiplied by it before features are made.
        features: where log-mel features are made: ``host`` by the C++ front end, ``device`` by PyTorch beside the model, for machines whose
            cores cannot keep up with their GPU. They differ by rounding.
        num_workers: processes that read audio and make features; 0 does that in this one, None takes half the cores, at most 8, for a GPU
            and none for a CPU, which is busy decoding.
        vad: what chooses the places where a recording over ``max_audio_seconds`` is cut (``infer.long``); ``none`` cuts nothing.
        confidence: give ``avg_logprob``, ``compression_ratio``, ``repetition``, ``confidence`` and ``word_confidence``.
        calibration: file of ``arkfast.infer.calibration``, by which confidences become shares of right words.
        no_speech: what becomes of the transcript of a clip without speech: ``mark`` says ``no_speech``, ``skip`` leaves it out too,
            ``keep`` judges nothing.
        hotwords: phrases that are preferred, with what each adds to the scores of its ids; a row's own field ``hotwords`` adds to them.
        language: of utterances that do not say theirs, as a code or a name. Prompts of models that know languages are told it; where they
            are not, a ``RuntimeWarning`` says so.
        timestamps: ``word`` gives the times of words, by a CTC head or a forced aligner; ``character`` those of their letters and numbers
            too, which a head alone gives.
        aligner: folder of the head, or folder or repository of Qwen3's forced aligner; None takes the head beside the checkpoint's weights.

    Raises:
        InputError: an argument out of range, no whole checkpoint at ``model_path`` or none that can be fetched, a tokenizer that is not the
            model's, a device that is not there, or more audio and tokens than the model has positions.

    Attributes:
        checkpoint: the folder that the model was loaded from.
        tokenizer: the folder that the tokenizer was loaded from.
        dtype: the type of the weights that ``dtype`` came to.
        model_commit: the commit of the repository that the model came from; None for a folder.
        head_folder: the folder of the head or aligner that gives the times of words; None where none were asked for.
        interface: the model's ids and features.
        audio_input: what it hears.
        vocab_size: how many ids the model scores.
        session: what decodes. A service gives it clips one by one, in no order.
        processing_seconds: this process' time in log-mel, encoding, prefill, decoding and turning ids into text so far. Reading,
            decoding and resampling of audio are left out, and so are features that workers made meanwhile.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: DType = "auto",
        attn_implementation: Attention = "auto",
        processor_path: str | Path | None = None,
        batch_size: int | None = None,
        max_new_tokens: int = 256,
        max_audio_seconds: float = 30.0,
        max_tokens_per_second: float = 20.0,
        cut_loops: bool = True,
        sampling: Sampling | None = None,
        audio_gain: float = 1.0,
        features: FeaturesFrom = "host",
        num_workers: int | None = None,
        vad: Vad = "none",
        confidence: bool = False,
        calibration: Path | None = None,
        no_speech: NoSpeech = "mark",
        hotwords: Mapping[str, float] | None = None,
        language: str | None = None,
        timestamps: Timestamps = "segment",
        aligner: Path | None = None,
    ) -> None:
        check_limits(
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_audio_seconds=max_audio_seconds,
            max_tokens_per_second=max_tokens_per_second,
            num_workers=num_workers,
            audio_gain=audio_gain,
        )
        self._splitter = Splitter(vad, max_audio_seconds)
        import torch

        from arkfast.infer.calibration import Calibration
        from arkfast.infer.device_features import DeviceFeatures
        from arkfast.infer.session import EngineSession
        from arkfast.infer.words import WordTimes, head_folder
        from arkfast.models.family import SpeechModel, find_decodable
        from arkfast.models.hub import checkpoint_folder, commit_of

        self.device = use_device(device, flag="device")
        folder = checkpoint_folder(model_path, revision=revision, flag="model_path")
        self.model_commit = commit_of(folder)
        tokenizer = folder
        if processor_path is not None and Path(processor_path) != Path(model_path):
            tokenizer = checkpoint_folder(processor_path, flag="processor_path", contents="processor")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        family = find_decodable(folder)
        model: SpeechModel = family.load(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="eager" if attn_implementation == "eager" else "sdpa",
            device=self.device,
        )
        interface = family.interface(family.tokenizer(tokenizer), model, where=str(tokenizer))
        if model.audio_input is None:
            raise InputError(f"{folder}: the model hears nothing; give a checkpoint that transcribes")
        self.interface, self.audio_input, self.vocab_size = interface, model.audio_input, model.config.vocab_size
        self._gain = audio_gain
        if features not in get_args(FeaturesFrom):
            raise InputError(f"features must be {' or '.join(get_args(FeaturesFrom))}, got {features!r}")
        self._log_mel = _timed_log_mel(model.audio_input, self._spend)
        # Before the session, which takes as many slots as the memory holds that is left.
        self._words: WordTimes | None = None
        self.head_folder: Path | None = None
        if timestamps != "segment":
            self.head_folder = head_folder(folder, aligner)
            self._words = WordTimes(model, checkpoint=folder, folder=self.head_folder, characters=timestamps == "character")
        elif aligner is not None:
            raise InputError(f"--aligner {aligner}: has no effect without --timestamps word or --timestamps character; give one of them")
        self.session = EngineSession(
            model,
            interface,
            slots=batch_size,
            max_new_tokens=max_new_tokens,
            max_audio_seconds=max_audio_seconds,
            max_tokens_per_second=max_tokens_per_second,
            cut_loops=cut_loops,
            sampling=sampling,
            confidence=confidence,
            no_speech=no_speech,
            calibrated=None if calibration is None else Calibration.read(calibration),
            hotwords=hotwords,
            language=language,
        )
        self._on_device: DeviceFeatures | None = None
        if features == "device":
            self._on_device = DeviceFeatures(
                self.session, model.audio_input, device=self.device, gain=audio_gain, keep=self._keep if self._words is not None else None
            )
        self.checkpoint, self.tokenizer, self.dtype, self._language = folder, tokenizer, dtype, language
        self._max_audio_seconds = max_audio_seconds
        half = min(MOST_WORKERS, (os.cpu_count() or 1) // 2)
        self._workers = num_workers if num_workers is not None else half if self.device.type == "cuda" else 0
        self.processing_seconds = 0.0
        self._iterators = 0

    def __call__(self, utterances: Iterable[Utterance]) -> Iterator[JsonObject]:
        """One row (``Result.row``) for each utterance, in order.

        A clip that cannot be loaded or decoded is a row with ``status`` ``error``, ``error`` and a ``pred_text`` of None; the others are
        not affected. Utterances are read a window at a time, so the input may be longer than memory. One iterator is served at a time:
        a further call ends the one before it, which gives no row any more.

        Raises:
            DeviceLost: the device failed in a way that ends the process's use of it.
            RuntimeError: a further call ended this iterator.
        """
        return (result.row() for result in self.results(utterances))

    def results(
        self, items: Iterable[Utterance | Result], *, memory: Memory | None = None, ready: Callable[[], bool] | None = None
    ) -> Iterator[Result]:
        """``__call__`` with results instead of rows; a ``Result`` among the items passes through in its place.

        Args:
            items: utterances and results.
            memory: what is known of clips, and where new results are kept.
            ready: says whether the next item can be had without waiting; None where it always can.
        """
        from arkfast.data.pipeline import FeaturePipeline

        gate, plain = Gate(ready), self._gain == 1 or self._on_device is not None
        pipeline = FeaturePipeline(
            self._log_mel,
            workers=self._workers,
            max_seconds=self._max_audio_seconds,
            prepare=None if plain else Gain(self._log_mel, self._gain),
            samples=self._on_device is not None,
            on_bad_audio="skip:1",
            isolate=True,
            ready=gate,
        )
        self.session.close()  # what an abandoned iterator may have left
        if self._on_device is not None:
            self._on_device.clear()
        if self._words is not None:
            self._words.clear()
        self._iterators += 1
        transcribe = partial(
            transcribe_stream,
            features=pipeline.features if plain else lambda items: with_gain(pipeline.features(items)),
            decoder=self,
            window=clips_under_way(self.batch_size),
            frames_per_second=FRAMES_PER_SECOND if self._on_device is None else SAMPLING_RATE,
            memory=memory,
            ready=pipeline.ready,
        )
        results = transcribe_long(items, transcribe=transcribe, splitter=self._splitter, gate=gate, unheard=self._unheard)
        return self._served(results, self._iterators)

    def _served(self, results: Generator[Result, None, None], which: int) -> Iterator[Result]:
        """``results`` for as long as no iterator was made after the ``which``-th: they share one engine."""
        with closing(results):
            while True:
                if which != self._iterators:
                    raise RuntimeError(
                        "Transcriber: this iterator was ended by a further call; take all its rows before the next call, or make a "
                        "Transcriber for each"
                    )
                result = next(results, None)
                if result is None:
                    return
                yield result

    @property
    def word_times(self) -> WordTimes | None:
        """What adds times of words to outcomes of ``session``; None where none were asked for."""
        return self._words

    @property
    def batch_size(self) -> int:
        """Most clips decoded together: what was asked for or what memory holds, and fewer once it ran out."""
        return self.session.slots

    def _unheard(self, utterance: Utterance) -> Outcome:
        """What is said of a recording in which nothing is heard, so that no clip of it is decoded."""
        outcome = self.session.unheard(utterance)
        return outcome if self._words is None else outcome._replace(words=[])

    def _spend(self, seconds: float) -> None:
        self.processing_seconds += seconds

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        """See ``stream.Decoder.submit``."""
        if self._on_device is not None:
            return self._on_device.submit(utterance, features)
        ticket = self.session.submit(utterance, features)
        self._keep(ticket, utterance, features)
        return ticket

    def _keep(self, ticket: int, utterance: Utterance, features: np.ndarray) -> None:
        """Keep what was heard until the times of its words are asked for, where they will be."""
        if self._words is not None:
            self._words.keep(ticket, features, utterance.language or self._language)

    def step(self) -> list[Outcome]:
        """See ``stream.Decoder.step``."""
        started = time.perf_counter()
        outcomes = self.session.step() if self._on_device is None else self._on_device.step()
        if self._words is not None:
            outcomes = self._words.add(outcomes)
        self._spend(time.perf_counter() - started)
        return outcomes


def _timed_log_mel(heard: AudioInput, spend: Callable[[float], None]) -> LogMel:
    """The model's ``LogMel``, which tells how long its calls take; workers get a plain one, since what they do takes none of this process's
    time."""
    from arkfast.audio import LogMel

    class Timed(LogMel):
        def __call__(self, *args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return super().__call__(*args, **options)
            finally:
                spend(time.perf_counter() - started)

    return Timed(heard.n_mels, least_samples=heard.least_samples)


def clips_under_way(slots: int) -> int:
    """Clips whose features are held at once: eight for each slot while those are no more than 640, and two slotfuls at least.

    Features of a clip of 30 s take 1.5 MB.
    """
    return max(2 * slots, min(WINDOW_BATCHES * slots, WINDOW_CLIPS))


def check_limits(
    *,
    batch_size: int | None,
    max_new_tokens: int,
    max_audio_seconds: float,
    max_tokens_per_second: float = 0.0,
    num_workers: int | None = None,
    audio_gain: float = 1.0,
) -> None:
    """Raise ``InputError`` for a limit under which nothing could be transcribed."""
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 < max_audio_seconds * FRAMES_PER_SECOND < math.inf:
        raise InputError(f"max_audio_seconds must be above 0 and finite, got {max_audio_seconds}")
    if not 0 <= max_tokens_per_second < math.inf:
        raise InputError(f"max_tokens_per_second must be at least 0 (0 sets no limit) and finite, got {max_tokens_per_second}")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers must be at least 0, got {num_workers}")
    if not 0 < audio_gain < math.inf:
        raise InputError(f"audio_gain must be above 0 and finite, got {audio_gain}")
