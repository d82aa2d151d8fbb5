"""Transcription with a checkpoint: utterances in, rows out.

Knows how audio, prompt, model and engine are joined; does not know manifests, output files or scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arkfast.infer.result import FinishReason, Result
from arkfast.infer.stream import DeviceLost, transcribe_stream
from arkfast.records import AllowedTokens, InputError, Utterance

if TYPE_CHECKING:
    import numpy as np
    import torch

DType = Literal["auto", "float16", "bfloat16", "float32"]
Attention = Literal["auto", "eager", "sdpa"]

WINDOW_BATCHES = 8  # batches sorted by length together; at 16 clips of 30 s a window's features take 128 · 1.5 MB


class Transcriber:
    """A loaded checkpoint that turns utterances into transcripts, greedily.

    A transcript depends on its clip alone, not on the other clips, the batch size or the order.

    Args:
        model_path: folder of a Transformers checkpoint with its tokenizer.
        device: as torch spells it; None takes the GPU where there is one.
        dtype: of the weights; ``auto`` is bfloat16 on a GPU and float32 elsewhere.
        attn_implementation: of the decoder's attention; ``auto`` is sdpa.
        batch_size: most clips decoded together.
        max_new_tokens: where a transcript is cut (``finish_reason`` says so).
        max_audio_seconds: a longer clip is a failed row, never a shortened one.

    Raises:
        InputError: an argument out of range, no whole checkpoint at ``model_path``, or a device that is not there.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: DType = "auto",
        attn_implementation: Attention = "auto",
        batch_size: int = 16,
        max_new_tokens: int = 256,
        max_audio_seconds: float = 30.0,
    ) -> None:
        check_limits(batch_size=batch_size, max_new_tokens=max_new_tokens, max_audio_seconds=max_audio_seconds)
        import torch

        from arkfast.audio import LogMel
        from arkfast.data import Prompt
        from arkfast.engine import Engine
        from arkfast.models import load_model

        self.device = _device(device)
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self._model: Any = load_model(
            model_path,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa" if attn_implementation == "auto" else attn_implementation,
            device=self.device,
        )
        self._tokenizer: Any = _load_tokenizer(model_path)
        self._prompt = Prompt.asr(self._tokenizer, merge_factor=self._model.config.merge_factor)
        self._log_mel = LogMel(self._model.config.whisper_config.num_mel_bins)
        self._engine = Engine(self._model, allowed=AllowedTokens.asr(self._tokenizer, self._model.config))
        self._batch_size, self._max_new_tokens, self._max_audio_seconds = batch_size, max_new_tokens, max_audio_seconds

    def __call__(self, utterances: Iterable[Utterance]) -> Iterator[dict[str, Any]]:
        """One row (``Result.row``) for each utterance, in order.

        A clip that cannot be loaded or decoded is a row with ``status`` ``error``, ``error`` and a ``pred_text`` of None; the others are
        not affected. Utterances are read a window at a time, so the input may be longer than memory.

        Raises:
            DeviceLost: the device failed in a way that ends the process's use of it.
        """
        return (result.row() for result in self.results(utterances))

    def results(self, items: Iterable[Utterance | Result]) -> Iterator[Result]:
        """``__call__`` with results instead of rows; a ``Result`` among the items passes through in its place."""
        from arkfast.audio import HOP_LENGTH, SAMPLING_RATE
        from arkfast.data import extract

        return transcribe_stream(
            items,
            features=lambda utterance: extract(utterance, self._log_mel, max_seconds=self._max_audio_seconds),
            decode=self._decode,
            batch_size=self._batch_size,
            window=self._batch_size * WINDOW_BATCHES,
            frames_per_second=SAMPLING_RATE / HOP_LENGTH,
        )

    def _decode(self, utterances: Sequence[Utterance], features: Sequence[np.ndarray]) -> list[tuple[str, FinishReason]]:
        import torch

        from arkfast.data import collate

        try:
            batch = collate(utterances, features, self._prompt).to(self.device)
            rollout = self._engine.rollout(batch, max_new_tokens=self._max_new_tokens).to("cpu", non_blocking=False)
        except torch.AcceleratorError as error:  # after a CUDA fault every later call fails too
            raise DeviceLost(f"the device {self.device} failed and cannot go on in this process: {error}") from error
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # the halves that are tried next shall find the memory in one piece
            raise
        if bool(rollout.failed.any()):
            raise FloatingPointError("the model's scores are not numbers; its weights or its precision (--dtype) are at fault")
        outcomes: list[tuple[str, FinishReason]] = []
        for tokens, length, stopped in zip(rollout.tokens, rollout.lens.tolist(), rollout.stopped.tolist(), strict=True):
            ids = tokens[: length - 1 if stopped else length]  # the end token is not text
            outcomes.append((self._tokenizer.decode(ids, skip_special_tokens=True), "stop" if stopped else "length"))
        return outcomes


def check_limits(*, batch_size: int, max_new_tokens: int, max_audio_seconds: float) -> None:
    """Raise ``InputError`` for a limit under which nothing could be transcribed."""
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not max_audio_seconds > 0:
        raise InputError(f"max_audio_seconds must be above 0, got {max_audio_seconds}")


def _load_tokenizer(path: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); give a complete checkpoint") from error


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device '{device}': not a device that torch knows ({str(error).splitlines()[0]})") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{device}': torch sees {torch.cuda.device_count()} GPU(s); choose another device, or leave it out")
    return chosen
