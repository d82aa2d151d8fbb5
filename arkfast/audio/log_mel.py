"""``LogMel``: waveforms in, Whisper's log-mel features out.

How clips share a batch, how long they may be and what the result holds is decided here; the arithmetic is the backend's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.backend import NumpyPlan, Plan, extension
from arkfast.audio.reference import HOP_LENGTH, SAMPLING_RATE, WINDOW_LENGTH
from arkfast.audio.stream import LogMelStream
from arkfast.audio.waveform import as_samples, memory_of, new_features, nonfinite, too_long
from arkfast.records import InputError

if TYPE_CHECKING:
    import torch


class LogMel:
    """Whisper's log-mel features of 16 kHz waveforms, each clip independent of its batch mates.

    Window and filters are computed once here; an object is immutable, can be called from several threads at once (the GIL is released
    during the work) and can be pickled. A clip's features depend on its samples and, in the last float32 digit, on whether the instruction
    set joins products and sums (AVX2 and AVX-512 do, and agree bit for bit); not on the batch, on threads or on chunks.

    Args:
        n_mels: mel filters; 80 or 128 in Whisper's models.
        threads: how many threads share the clips of a call, the caller's among them; 0 leaves all work to the caller's thread, as is
            right in a worker process. In a child of ``fork``, the caller's thread works alone.
        least_samples: a shorter clip counts as zero-padded to so many.
        instruction_set: one of ``arkfast._C.instruction_sets()``; None takes that of the environment variable ARKFAST_ISA, or else the
            fastest that this machine has.

    Raises:
        ValueError: n_mels is outside 1..149 (from 150 on, a filter would cover no frequency bin), threads is outside 0..1024,
            least_samples is below 400, or this machine does not support the instruction set.

    Attributes:
        n_mels, threads, least_samples: as given.
        sampling_rate: 16000 Hz.
        hop_length: 160 samples, 10 ms per frame.
        backend: "c++", or "numpy" where the extension was not built.
        instruction_set: the one in use; "numpy" where the extension was not built.
    """

    sampling_rate = SAMPLING_RATE
    hop_length = HOP_LENGTH

    def __init__(
        self, n_mels: int = 128, threads: int = 0, *, least_samples: int = WINDOW_LENGTH, instruction_set: str | None = None
    ) -> None:
        if least_samples < WINDOW_LENGTH:
            raise ValueError(f"LogMel: least_samples must be at least {WINDOW_LENGTH}, got {least_samples}")
        compiled = extension()
        self.n_mels = n_mels
        self.threads = threads
        self.least_samples = least_samples
        self.backend: Literal["c++", "numpy"]
        self.instruction_set: str
        self._plan: Plan
        if compiled is None:
            if instruction_set is not None:
                raise ValueError(f"LogMel: instruction_set = {instruction_set!r} needs the C++ extension, which was not built")
            self.backend, self.instruction_set, self._plan = "numpy", "numpy", NumpyPlan(n_mels, threads)
        else:
            plan = compiled.LogMelPlan(n_mels, threads, instruction_set or "")
            self.backend, self.instruction_set, self._plan = "c++", plan.instruction_set, plan

    def __reduce__(self) -> tuple[object, ...]:
        # the instruction set is chosen anew: the other machine may have another
        return partial(LogMel, least_samples=self.least_samples), (self.n_mels, self.threads)

    def __repr__(self) -> str:
        return f"LogMel(n_mels={self.n_mels}, threads={self.threads}, backend={self.backend!r}, instruction_set={self.instruction_set!r})"

    def __call__(
        self,
        waveforms: Sequence[NDArray[Any] | torch.Tensor | Sequence[float]],
        *,
        pad: Literal["single", "hf_batch"] = "single",
        dtype: Literal["float32", "bfloat16"] = "float32",
        out: NDArray[np.float32] | torch.Tensor | None = None,
        max_samples: int | None = 480000,
        overlong: Literal["raise", "truncate"] = "raise",
        fill: Literal["floor"] | float = "floor",
        pad_to_multiple_of: int | None = None,
    ) -> tuple[NDArray[np.float32] | torch.Tensor, NDArray[np.int64]]:
        """Features of a batch of clips.

        A clip has frames = ⌊L / 160⌋ columns, L being its samples after truncation; a clip under ``least_samples`` counts as zero-padded
        to them, and 400 samples give 2. T is the most frames of any clip, rounded up to ``pad_to_multiple_of``.

        Args:
            waveforms: B clips of 16 kHz samples, each [n], n ≥ 1: float32 (not copied when contiguous), float64 (rounded to float32) or
                int16 (divided by 32768; Transformers does not scale it). NumPy arrays, CPU tensors or lists of floats.
            pad: "single": each clip's columns are exactly what Transformers' ``WhisperFeatureExtractor`` gives for it alone, so they do
                not depend on the batch; "hf_batch": all ⌊Lmax / 160⌋ columns are what Transformers gives for the zero-padded row in this
                batch. The two differ in a clip's last frame and, where its loudest moment is its end, in its clamp.
            dtype: of the features; bfloat16 is rounded to nearest even from float32.
            out: where to write: a C-contiguous array or CPU tensor (pinned or not) of ``dtype`` (bfloat16: a tensor),
                [B, n_mels, at least T]; every column is written, and it is what comes back.
            max_samples: the longest clip allowed, 30 s unless told otherwise; None allows any.
            overlong: what to do with a longer one: "raise", or "truncate" to ``max_samples``.
            fill: what stands in the columns past the computed ones: "floor" (what silence after the clip would give) or a number.
            pad_to_multiple_of: frames; T becomes a multiple of it.

        Returns:
            features: [B, n_mels, T], ``out``, or else a new float32 NumPy array or bfloat16 CPU tensor.
            frames: [B] int64 NumPy array, the columns that belong to each clip.

        Raises:
            InputError: a clip is empty, too long, or holds NaN or infinity, or is not one-dimensional; the message names its index.
                Nothing has been written to ``out`` then.
            TypeError: a clip's samples have another type, or ``waveforms`` is a single array.
            ValueError: an option has no such value, ``waveforms`` is empty, or ``out`` does not fit.
        """
        _check_options(pad, dtype, max_samples, overlong, pad_to_multiple_of)
        column = _fill(fill)
        if not isinstance(waveforms, (list, tuple)):
            raise TypeError(
                f"LogMel: expected a list of one-dimensional waveforms, got {type(waveforms).__name__}: pass one clip as [clip]"
            )
        if not waveforms:
            raise ValueError("LogMel: the list of waveforms is empty")
        clips = [_clip(f"waveform {i}", item, max_samples, overlong) for i, item in enumerate(waveforms)]
        lengths = [max(len(clip), self.least_samples) for clip in clips]
        longest = max(lengths)
        padded = np.array(lengths, dtype=np.int64)
        frames = padded // HOP_LENGTH
        if pad == "hf_batch":
            padded[:] = longest
        columns = longest // HOP_LENGTH
        if pad_to_multiple_of is not None:
            columns = -(-columns // pad_to_multiple_of) * pad_to_multiple_of
        shape = (len(clips), self.n_mels, columns)
        bad = None
        if out is None:
            features, memory = new_features(shape, dtype)
        else:
            features, memory = out, memory_of(out, dtype)
            if memory.ndim != 3 or memory.shape[:2] != shape[:2] or memory.shape[2] < shape[2]:
                raise ValueError(f"LogMel: out must have the shape [{shape[0]}, {shape[1]}, {shape[2]} or more], got {list(memory.shape)}")
            bad = self._plan.find_nonfinite(clips)  # computing finds them at no cost, but only after having written
        bad = bad or self._plan.compute(clips, padded, memory, column)
        if bad is not None:
            item, sample = bad
            raise nonfinite(f"waveform {item}", sample, clips[item][sample])
        return features, frames

    def stream(self, *, dtype: Literal["float32", "bfloat16"] = "float32", max_samples: int | None = 480000) -> LogMelStream:
        """A clip that arrives in chunks: ``push`` them, ``view`` what is there, ``finish``.

        Args:
            dtype: of the features.
            max_samples: the longest clip allowed, 30 s unless told otherwise; None allows any.

        Raises:
            ValueError: an option has no such value, or clips have at least more than 400 samples, to which a stream pads none.
        """
        _check_options("single", dtype, max_samples, "raise", None)
        if self.least_samples > WINDOW_LENGTH:
            raise ValueError(f"LogMel: a stream pads no clip to least_samples = {self.least_samples}")
        return LogMelStream(self._plan, self.n_mels, dtype, max_samples)


def _check_options(pad: str, dtype: str, max_samples: int | None, overlong: str, pad_to_multiple_of: int | None) -> None:
    for name, value, known in (
        ("pad", pad, ("single", "hf_batch")),
        ("dtype", dtype, ("float32", "bfloat16")),
        ("overlong", overlong, ("raise", "truncate")),
    ):
        if value not in known:
            raise ValueError(f"LogMel: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
    for name, limit in (("max_samples", max_samples), ("pad_to_multiple_of", pad_to_multiple_of)):
        if limit is not None and limit < 1:
            raise ValueError(f"LogMel: {name} must be positive or None, got {limit}")


def _fill(fill: Any) -> float | None:
    """The number for the columns past the computed ones, None for the floor."""
    if fill == "floor":
        return None
    try:
        return float(fill)
    except (TypeError, ValueError):
        raise ValueError(f"LogMel: fill must be 'floor' or a number, got {fill!r}") from None


def _clip(label: str, item: object, max_samples: int | None, policy: str) -> NDArray[np.float32]:
    """One clip as contiguous float32, within the limit, checked but for its values."""
    samples = as_samples(label, item)
    if not len(samples):
        raise InputError(f"{label} is empty")
    if max_samples is not None and len(samples) > max_samples:
        if policy == "raise":
            raise too_long(label, len(samples), max_samples, "split it, raise max_samples, or pass overlong='truncate'")
        samples = samples[:max_samples]
    return samples
