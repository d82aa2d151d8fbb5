"""One feature worker: slot numbers come in through a pipe, features go out through shared memory.

A worker imports NumPy and the audio code only: torch would cost seconds of start-up and hundreds of megabytes each. ``pool`` starts it as a
plain process of its own, so the user's main module is not imported a second time. It has one utterance at a time and no say in their order.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arkfast.audio import LogMel
from arkfast.audio.load import Used
from arkfast.data.collate import clip_name, features_of, read_clip
from arkfast.records import InputError, Utterance

Prepare = Callable[[np.ndarray], object]
"""A second extractor: a clip's waveform, float32 [samples] at 16 kHz, to whatever a teacher needs of it. It and its result are pickled."""

REQUEST = struct.Struct("<I")  # slot
REPLY = struct.Struct("<IIQ")  # kind, slot, bytes of the value that follow in the pipe (0: it stands in the slot)
READY, VALUE, BROKEN = range(3)  # kinds of reply: the worker has started; an item is done; it cannot start, for the reason that follows
OUT_OF_MEMORY = 77  # exit status
PARENT_POLL_SECONDS = 0.5
_ALIGN = 64  # a cache line, and enough for any vector load


class Features:
    """An utterance's features, and with ``prepare`` what a second extractor makes of the same waveform.

    Pickled, it keeps the instruction set, on which the last bit depends, and leaves the threads behind: workers are parallel over clips.

    Args:
        log_mel: the student's extractor.
        max_seconds: longer audio is an error.
        prepare: the second extractor, or None.
        samples: give a clip's samples, float32 [1, n] at 16 kHz, in place of features.
    """

    def __init__(self, log_mel: LogMel, max_seconds: float, prepare: Prepare | None, *, samples: bool = False) -> None:
        self.log_mel, self.max_seconds, self.prepare, self.samples = log_mel, max_seconds, prepare, samples

    def __reduce__(self) -> tuple[object, ...]:
        instruction_set = self.log_mel.instruction_set if self.log_mel.backend == "c++" else None
        log_mel = self.log_mel
        return _restored, (log_mel.n_mels, log_mel.least_samples, instruction_set, self.max_seconds, self.prepare, self.samples)

    def __call__(self, utterance: Utterance) -> tuple[NDArray[np.float32], object, tuple[str, ...], Used]:
        """Features, float32 [n_mels, T], the prepared value (None without ``prepare``), and ``warnings`` and ``used`` as in ``Loaded``.

        Both extractors see the same samples, and the file is decoded once.

        Raises:
            InputError, TypeError: as ``extract``.
        """
        clip = read_clip(utterance, max_seconds=self.max_seconds)
        features = clip.samples[None] if self.samples else features_of(clip.samples, self.log_mel, clip_name(utterance))
        return features, None if self.prepare is None else self.prepare(clip.samples), clip.warnings, clip.used


def _restored(
    n_mels: int, least_samples: int, instruction_set: str | None, max_seconds: float, prepare: Prepare | None, samples: bool
) -> Features:
    return Features(LogMel(n_mels, least_samples=least_samples, instruction_set=instruction_set), max_seconds, prepare, samples=samples)


def dump(value: object, room: memoryview) -> bytes:
    """Writes a value into shared memory, arrays as they are and the rest pickled.

    Returns:
        b"", or the bytes of the whole where it does not fit into ``room``.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    table = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(len(part) for part in parts))
    size = at = _aligned(len(table))
    size += sum(_aligned(len(part)) for part in parts)
    overflow = bytearray(size) if size > len(room) else None
    target = room if overflow is None else memoryview(overflow)
    target[: len(table)] = table
    for part in parts:
        target[at : at + len(part)] = part
        at += _aligned(len(part))
    return b"" if overflow is None else bytes(overflow)


def load(room: memoryview) -> Any:
    """The value that ``dump`` wrote; its arrays are writable copies, so the memory may be written anew."""
    (count,) = struct.unpack_from("<Q", room)
    sizes = struct.unpack_from(f"<{count}Q", room, 8)
    at, parts = _aligned(8 * (1 + count)), []
    for size in sizes:
        parts.append(bytearray(room[at : at + size]))
        at += _aligned(size)
    return pickle.loads(parts[0], buffers=parts[1:])


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def outcome(features: Features, utterance: Utterance) -> tuple[object, ...]:
    """What is said of an utterance.

    Returns:
        ("ok", features, prepared value, warnings, what was used), ("bad", message), or ("raise", exception or its text, traceback).
    """
    try:
        return ("ok", *features(utterance))
    except InputError as error:
        return "bad", str(error)
    except MemoryError:
        raise
    except Exception as error:  # this is not the clip's fault; it stops the consumer, who must know where it comes from
        return _raised(error)


def dump_outcome(features: Features, utterance: Utterance, room: memoryview) -> bytes:
    """Writes the ``outcome`` of an utterance as ``dump`` does; a prepared value that cannot be pickled is an exception of ``prepare``'s."""
    result = outcome(features, utterance)
    try:
        return dump(result, room)
    except MemoryError:
        raise
    except Exception as error:  # pickle raises whatever an object's own methods raise
        reason = TypeError(f"prepare's result cannot be sent from a worker ({type(error).__name__}: {error}); return data, not code")
        return dump(_raised(reason.with_traceback(error.__traceback__)), room)


def _raised(error: Exception) -> tuple[object, ...]:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception that does not survive the journey travels as text
        return "raise", f"{type(error).__name__}: {error}", text
    return "raise", error, text


def main(requests: int, replies: int, memory: int, settings_bytes: int, slots_at: int, slot_bytes: int, parent: int) -> None:
    """The worker's life; returns when the parent closes the request pipe.

    Args:
        requests: descriptor that slot numbers come from.
        replies: descriptor that replies go to.
        memory: descriptor of the shared memory: pickled ``Features`` at 0, slots from ``slots_at`` on.
        settings_bytes: length of that pickle.
        slots_at: where slot 0 begins.
        slot_bytes: size of a slot.
        parent: the process that must stay alive.
    """
    faulthandler.enable()
    for descriptor in (requests, replies, memory):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    view = memoryview(mmap.mmap(memory, 0))
    try:
        features: Features = pickle.loads(view[:settings_bytes])
    except Exception:
        _reply(replies, BROKEN, 0, traceback.format_exc().encode())
        return
    _reply(replies, READY, 0, b"")
    while request := os.read(requests, REQUEST.size):
        (slot,) = REQUEST.unpack(request)
        room = view[slots_at + slot * slot_bytes : slots_at + (slot + 1) * slot_bytes]
        try:
            _reply(replies, VALUE, slot, dump_outcome(features, load(room), room))
        except MemoryError:  # a process that has run out is replaced by a fresh one
            os._exit(OUT_OF_MEMORY)


def _reply(descriptor: int, kind: int, slot: int, inline: bytes) -> None:
    try:
        left = memoryview(REPLY.pack(kind, slot, len(inline)) + inline)
        while left:
            left = left[os.write(descriptor, left) :]
    except BrokenPipeError:  # the consumer is gone
        sys.exit(0)


def _leave_with(parent: int) -> None:
    """End the process when its parent has died, whatever the main thread is doing."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(0)
