"""``LogMelStream``: features of a clip while it arrives."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.backend import Plan
from arkfast.audio.waveform import as_samples, new_features, nonfinite, too_long
from arkfast.records import InputError

if TYPE_CHECKING:
    import torch


class LogMelStream:
    """Features of one clip whose samples come in chunks of any size; made by ``LogMel.stream``.

    Frame t is computed once, as soon as sample 160t + 199 is there (12.5 ms after its centre; frame 0 mirrors one more), and 4 · n_mels
    bytes are kept of it. The clamp to within 8 decades of the maximum is applied when reading, so ``finish`` equals what ``LogMel`` gives
    for the whole clip bit for bit. A partial view is clamped by the maximum so far: as louder samples come, its quiet parts can rise.
    May be fed and read by several threads.

    Attributes:
        n_mels: mel filters.
        raw_frames: frames computed so far, the columns of ``view()``.
        samples: samples pushed so far.
    """

    def __init__(self, plan: Plan, n_mels: int, dtype: Literal["float32", "bfloat16"], max_samples: int | None) -> None:
        self.n_mels = n_mels
        self._plan = plan
        self._stream = plan.stream()
        self._dtype = dtype
        self._max_samples = max_samples
        self._lock = threading.Lock()
        self._finished = False

    @property
    def raw_frames(self) -> int:
        with self._lock:
            return self._stream.frames(False)

    @property
    def samples(self) -> int:
        with self._lock:
            return self._stream.samples

    def push(self, samples: NDArray[Any] | torch.Tensor | Sequence[float]) -> None:
        """Appends a chunk and computes the frames that it completes.

        Args:
            samples: [n], n ≥ 0, of a type that ``LogMel`` takes.

        Raises:
            InputError: the chunk is not one-dimensional, holds NaN or infinity, or makes the clip too long; nothing of it is taken then.
            TypeError: its samples have another type.
            ValueError: the stream is finished.
        """
        with self._lock:
            if self._finished:
                raise ValueError("LogMel stream: finished; start another with LogMel.stream()")
            before = self._stream.samples
            label = f"stream chunk at sample {before}"
            if not len(samples):
                return
            chunk = as_samples(label, samples)
            if self._max_samples is not None and before + len(chunk) > self._max_samples:
                raise too_long("stream", before + len(chunk), self._max_samples, "finish it earlier, or raise max_samples")
            if found := self._plan.find_nonfinite([chunk]):
                raise nonfinite("stream", before + found[1], chunk[found[1]])
            self._stream.push(chunk)

    def view(self, final: bool = False) -> NDArray[np.float32] | torch.Tensor:
        """Features of what has been pushed; the stream goes on.

        Args:
            final: False gives the ``raw_frames`` columns that no later sample can change but for the clamp; True gives all columns of the
                clip if it ended here, the last of which see its mirrored end: exactly what ``LogMel`` gives for the samples so far.

        Returns:
            [n_mels, frames], a new float32 NumPy array or bfloat16 CPU tensor.

        Raises:
            InputError: ``final``, and nothing has been pushed.
        """
        with self._lock:
            if final and not self._stream.samples:
                raise InputError("LogMel stream: no samples were pushed")
            features, memory = new_features((self.n_mels, self._stream.frames(final)), self._dtype)
            self._stream.write(memory, final)
            return features

    def finish(self) -> NDArray[np.float32] | torch.Tensor:
        """``view(final=True)``; after it, the stream takes no more samples."""
        features = self.view(final=True)
        self._finished = True
        return features
