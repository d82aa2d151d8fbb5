"""``LogMel``: waveforms in, Whisper's log-mel features out.

Knows what a user may pass, how clips share a batch and what the result holds; the arithmetic is ``arkfast._C``'s, or that of the
NumPy reference where the extension was not built. Knows no files, no resampling and no model.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.reference import HOP_LENGTH, SAMPLING_RATE, WINDOW_LENGTH, log_mel_reference, mel_filters
from arkfast.records import InputError

if TYPE_CHECKING:
    import torch

_INT16_SCALE = np.float32(1 / 32768)  # a power of two: exact


class _Plan(Protocol):
    """What both backends do."""

    def compute(
        self, waveforms: list[NDArray[np.float32]], padded: NDArray[np.int64], out: NDArray[np.float32], fill: float | None = None
    ) -> None:
        """Writes the features of each clip, framed as if zero-padded to ``padded[i]`` samples, and ``fill`` (None: its floor) behind."""


class _NumpyPlan:
    """The reference behind the extension's interface."""

    def __init__(self, n_mels: int) -> None:
        mel_filters(n_mels)
        self._n_mels = n_mels

    def compute(
        self, waveforms: list[NDArray[np.float32]], padded: NDArray[np.int64], out: NDArray[np.float32], fill: float | None = None
    ) -> None:
        for row, waveform, length in zip(out, waveforms, padded.tolist(), strict=True):
            features, floor = log_mel_reference(waveform, length, self._n_mels)
            row[:, : features.shape[1]] = features
            row[:, features.shape[1] :] = floor if fill is None else fill


@functools.cache
def _extension() -> Any | None:
    """``arkfast._C``, or None after saying once why it is missing."""
    try:
        return importlib.import_module("arkfast._C")
    except ImportError as error:
        warnings.warn(
            f"arkfast: the C++ extension is not available ({error}); LogMel runs on its NumPy reference, several times slower. "
            "Install a C++17 compiler and reinstall arkfast with ARKFAST_REQUIRE_EXT=1 to see what fails.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


class LogMel:
    """Whisper's log-mel features of 16 kHz waveforms, each clip independent of its batch mates.

    Window, twiddle factors and filters are computed once here; an object is immutable, can be called from several threads at once
    (the GIL is released during the work) and can be pickled. The caller's thread does all the work.

    Args:
        n_mels: mel filters; 80 or 128 in Whisper's models.

    Raises:
        ValueError: n_mels is outside 1..149: from 150 on, a filter would cover no frequency bin.

    Attributes:
        n_mels: as given.
        sampling_rate: 16000 Hz.
        hop_length: 160 samples, 10 ms per frame.
        backend: "c++", or "numpy" where the extension was not built.
    """

    sampling_rate = SAMPLING_RATE
    hop_length = HOP_LENGTH

    def __init__(self, n_mels: int = 128) -> None:
        extension = _extension()
        self.n_mels = n_mels
        self.backend: Literal["c++", "numpy"] = "numpy" if extension is None else "c++"
        self._plan: _Plan = _NumpyPlan(n_mels) if extension is None else extension.LogMelPlan(n_mels)

    def __reduce__(self) -> tuple[type[LogMel], tuple[int]]:
        return LogMel, (self.n_mels,)

    def __repr__(self) -> str:
        return f"LogMel(n_mels={self.n_mels}, backend={self.backend!r})"

    def __call__(
        self,
        waveforms: Sequence[NDArray[Any] | torch.Tensor | Sequence[float]],
        *,
        pad: Literal["single", "hf_batch"] = "single",
        dtype: Literal["float32"] = "float32",
        out: NDArray[np.float32] | torch.Tensor | None = None,
        max_samples: int | None = 480000,
        overlong: Literal["raise", "truncate"] = "raise",
        fill: Literal["floor"] | float = "floor",
        pad_to_multiple_of: int | None = None,
    ) -> tuple[NDArray[np.float32] | torch.Tensor, NDArray[np.int64]]:
        """Features of a batch of clips.

        A clip has frames = ⌊L / 160⌋ columns, L being its samples after truncation; a clip under 400 samples counts as zero-padded to
        400, which gives 2. T is the most frames of any clip, rounded up to ``pad_to_multiple_of``.

        Args:
            waveforms: B clips of 16 kHz samples, each [n], n ≥ 1: float32 (not copied when contiguous), float64 (rounded to float32) or
                int16 (divided by 32768; Transformers does not scale it). NumPy arrays, CPU tensors or lists of floats.
            pad: "single": each clip's columns are exactly what Transformers' ``WhisperFeatureExtractor`` gives for it alone, so they do
                not depend on the batch; "hf_batch": all ⌊Lmax / 160⌋ columns are what Transformers gives for the zero-padded row in this
                batch. The two differ in a clip's last frame and, where its loudest moment is its end, in its clamp.
            dtype: "float32".
            out: where to write: a C-contiguous float32 array or CPU tensor (pinned or not) [B, n_mels, at least T]; every column is
                written, and it is what comes back.
            max_samples: the longest clip allowed, 30 s unless told otherwise; None allows any.
            overlong: what to do with a longer one: "raise", or "truncate" to ``max_samples``.
            fill: what stands in the columns past the computed ones: "floor" (what silence after the clip would give) or a number.
            pad_to_multiple_of: frames; T becomes a multiple of it.

        Returns:
            features: [B, n_mels, T] float32, a new NumPy array, or ``out``.
            frames: [B] int64 NumPy array, the columns that belong to each clip.

        Raises:
            InputError: a clip is empty, too long, or holds NaN or infinity, or is not one-dimensional; the message names its index.
                Nothing has been written to ``out`` then.
            TypeError: a clip's samples have another type, or ``waveforms`` is a single array.
            ValueError: an option has no such value, ``waveforms`` is empty, or ``out`` does not fit.
        """
        _check_options(pad, dtype, max_samples, overlong, pad_to_multiple_of)
        if not isinstance(waveforms, (list, tuple)):
            raise TypeError(
                f"LogMel: expected a list of one-dimensional waveforms, got {type(waveforms).__name__}: pass one clip as [clip]"
            )
        if not waveforms:
            raise ValueError("LogMel: the list of waveforms is empty")
        clips = [_samples(i, item, max_samples, overlong) for i, item in enumerate(waveforms)]
        _check_finite(clips)

        padded = np.array([max(len(clip), WINDOW_LENGTH) for clip in clips], dtype=np.int64)
        frames = padded // HOP_LENGTH
        columns = int(frames.max())
        if pad_to_multiple_of is not None:
            columns = -(-columns // pad_to_multiple_of) * pad_to_multiple_of
        if pad == "hf_batch":
            padded[:] = padded.max()
        features = _buffer(out, (len(clips), self.n_mels, columns))
        self._plan.compute(clips, padded, features, None if fill == "floor" else float(fill))
        return (features if out is None else out), frames


def _check_options(pad: str, dtype: str, max_samples: int | None, overlong: str, pad_to_multiple_of: int | None) -> None:
    for name, value, known in (
        ("pad", pad, ("single", "hf_batch")),
        ("dtype", dtype, ("float32",)),
        ("overlong", overlong, ("raise", "truncate")),
    ):
        if value not in known:
            raise ValueError(f"LogMel: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
    for name, limit in (("max_samples", max_samples), ("pad_to_multiple_of", pad_to_multiple_of)):
        if limit is not None and limit < 1:
            raise ValueError(f"LogMel: {name} must be positive or None, got {limit}")


def _samples(index: int, item: Any, max_samples: int | None, overlong: str) -> NDArray[np.float32]:
    """One clip as contiguous float32, checked but for its values."""
    array = np.asarray(item)
    if array.ndim != 1:
        raise InputError(
            f"waveform {index}: expected one dimension, got shape {list(array.shape)}: mix channels down to mono, pass a batch as a list"
        )
    if not len(array):
        raise InputError(f"waveform {index} is empty")
    if max_samples is not None and len(array) > max_samples:
        if overlong == "raise":
            raise InputError(
                f"waveform {index} has {len(array)} samples ({len(array) / SAMPLING_RATE:.2f} s), over the limit of {max_samples}: "
                "split it, raise max_samples, or pass overlong='truncate'"
            )
        array = array[:max_samples]
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if array.dtype == np.int16:
        return array.astype(np.float32) * _INT16_SCALE
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):  # a value past float32 becomes infinite, and is reported as such
            return array.astype(np.float32)
    raise TypeError(f"waveform {index}: samples must be float32, float64 or int16, got {array.dtype}: convert and scale them to -1..1")


def _check_finite(clips: list[NDArray[np.float32]]) -> None:
    extension = _extension()
    if extension is None:
        found = next(((i, int(np.argmin(ok))) for i, clip in enumerate(clips) if not (ok := np.isfinite(clip)).all()), None)
    else:
        found = extension.find_nonfinite(clips)
    if found is not None:
        item, sample = found
        raise InputError(f"waveform {item}: sample {sample} ({sample / SAMPLING_RATE:.3f} s) is {clips[item][sample]}: only finite samples")


def _buffer(out: NDArray[np.float32] | torch.Tensor | None, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """A float32 array of this shape, new or over the memory of ``out``, whose last dimension may be longer."""
    if out is None:
        return np.empty(shape, dtype=np.float32)
    torch = sys.modules.get("torch")  # a tensor can only come from a process that has loaded torch
    if torch is not None and isinstance(out, torch.Tensor):
        if out.device.type != "cpu" or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"LogMel: out must be a contiguous float32 tensor on the CPU, got {out.dtype} on {out.device}")
        out = out.detach().numpy()
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("LogMel: out must be a writable C-contiguous float32 array or CPU tensor")
    if out.ndim != 3 or out.shape[:2] != shape[:2] or out.shape[2] < shape[2]:
        raise ValueError(f"LogMel: out must have the shape [{shape[0]}, {shape[1]}, {shape[2]} or more], got {list(out.shape)}")
    return out
