"""Synthetic speech: one call turns text into a waveform through espeak-ng.

espeak-ng keeps its state in global variables of the process. Left alone, a clip depends on every clip before it (oscillator phase,
flutter, echo buffer) and on the clock (noise is seeded with the time). So each call of ``speak`` or ``speak_lines`` loads the library
afresh, seeds it, speaks and unloads it, which makes what it returns a function of its arguments: the same in any order and any process
of one machine. A fresh library takes 4 ms until it speaks, mostly to read its list of voices, so many lines are best spoken in one
call. Where the loader refuses to unload a library (musl; another package holding the same file), clips still sound right but depend on
their order.

It is not thread-safe either: a lock lets one call in at a time. For parallel speech use processes.
"""

from __future__ import annotations

import _ctypes
import ctypes
import difflib
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr

from arkfast.installation import install_hint
from arkfast.records import InputError

SAMPLE_RATE = 16_000
"""Samples a second of everything that ``Synthesizer`` returns."""
RATE_LIMITS = (80, 450)
"""Speaking rates in words a minute that espeak-ng honours; it clips others silently."""
PITCH_LIMITS = (0, 99)
"""espeak-ng's pitch scale; 50 is a voice's own pitch."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2  # no playback: samples go to the callback, and espeak_Synth returns when they are all there
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_POSITION_CHARACTER, _CHARACTERS_UTF8 = 1, 1
_SILENCE = 0.003 * 2**15  # 0.3 % of full scale, in int16 steps
_MARGIN_SECONDS = 0.05  # kept on both sides of the speech, so that a soft onset survives the trim

_NAMES_LISTED = 40  # of the names in an error message, when none is near

_lock = threading.Lock()
_SamplesCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Voice(ctypes.Structure):
    """The head of espeak-ng's voice record; only ``identifier`` (language file and variant) is read."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p))


class Line(NamedTuple):
    """What to say and how."""

    text: str
    """The words; not empty."""
    voice: str = "en-us+m1"
    """Accent or ``accent+variant``."""
    rate: int = 175
    """Words a minute, 80 to 450."""
    pitch: int = 50
    """0 to 99; 50 is the voice's own."""


class Synthesizer:
    """Speech from the library and the voices that the package ``espeakng-loader`` carries.

    A voice is ``accent`` or ``accent+variant``, for example ``en-us+m1``. Names are checked against the data folder, exactly as spelt:
    espeak-ng itself reports success for a variant that does not exist, and keeps the previous voice for an accent that it does not know.

    Raises:
        InputError: the package is missing.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise InputError(
                f"synthetic speech needs the package espeakng-loader, which is missing: {install_hint('quickstart')}"
            ) from error
        self._library = str(espeakng_loader.get_library_path())
        self._data = str(espeakng_loader.get_data_path())
        data = Path(self._data)
        self._accents = _read_accents(data)
        self._variants = frozenset(path.name for path in (data / "voices" / "!v").iterdir())

    @property
    def accents(self) -> tuple[str, ...]:
        """Every accent (language code) that can be spoken, sorted."""
        return tuple(sorted(self._accents))

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that may follow an accent's ``+``, sorted."""
        return tuple(sorted(self._variants))

    def check_voice(self, voice: str) -> None:
        """Raise InputError, listing near names, unless ``voice`` is an accent, or an accent, ``+`` and a variant, of the data folder."""
        self._resolve(voice)

    def speak(self, text: str, voice: str = "en-us+m1", rate: int = 175, pitch: int = 50) -> np.ndarray:
        """Speak one line: ``speak_lines([Line(text, voice, rate, pitch)])[0]``."""
        return self.speak_lines([Line(text, voice, rate, pitch)])[0]

    def speak_lines(self, lines: Sequence[Line]) -> list[np.ndarray]:
        """Speak ``lines``, in order.

        Returns:
            One float32 array [n] at 16 kHz in [−1, 1] for each line, silence beyond 50 ms around the speech cut off. The list is the
            same for the same lines; an array in it depends, inaudibly, on the lines before it.

        Raises:
            InputError: an unknown voice, a rate or pitch out of range, or text that makes no sound.
        """
        names = [self._resolve(line.voice) for line in lines]
        for line in lines:
            for label, value, (low, high) in (("rate", line.rate, RATE_LIMITS), ("pitch", line.pitch, PITCH_LIMITS)):
                if not low <= value <= high:
                    raise InputError(f"{label} {value}: espeak-ng speaks at {low} to {high}")
        spoken, sample_rate = self._synthesize(lines, names)
        return [_finish(samples, sample_rate, line) for samples, line in zip(spoken, lines, strict=True)]

    def _resolve(self, voice: str) -> str:
        """``en-gb+m1`` → ``gmw/en+m1``: the language file and the variant, which is also how espeak-ng identifies the voice it uses."""
        accent, plus, variant = voice.partition("+")
        if accent not in self._accents:
            raise InputError(f"voice {voice!r}: no accent {accent!r}; {_near(accent, self._accents)}")
        if plus and variant not in self._variants:
            raise InputError(f"voice {voice!r}: no variant {variant!r}; {_near(variant, self._variants)}")
        return self._accents[accent] + plus + variant

    def _synthesize(self, lines: Sequence[Line], names: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """int16 samples of each line as espeak-ng makes them, and their sample rate."""
        chunks: list[bytes] = []

        @_SamplesCallback
        def collect(samples: int | None, count: int, _events: int | None) -> int:
            if samples and count > 0:
                chunks.append(ctypes.string_at(samples, 2 * count))
            return 0  # go on

        spoken = []
        with _lock:
            library = _load(self._library)
            try:
                sample_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, self._data.encode(), 0)
                if sample_rate <= 0:
                    raise InputError(f"espeak-ng cannot read its data in {self._data}; reinstall espeakng-loader")
                library.espeak_SetSynthCallback(collect)
                library.espeak_ng_SetRandSeed(1)
                _seed_c_rand()
                for line, name in zip(lines, names, strict=True):
                    chunks.clear()
                    _speak(library, line, name)
                    spoken.append(np.frombuffer(b"".join(chunks), dtype=np.int16))
                library.espeak_Terminate()
            finally:
                _unload(library)
        return spoken, sample_rate


def _speak(library: ctypes.CDLL, line: Line, name: str) -> None:
    """Set the voice and say the line; its samples go to the library's callback."""
    failed = library.espeak_SetVoiceByName(name.encode())
    current = library.espeak_GetCurrentVoice().contents.identifier
    assert (failed, current) == (0, name.encode()), f"espeak-ng took {current!r} for {name!r}"
    library.espeak_SetParameter(_PARAMETER_RATE, int(line.rate), 0)
    library.espeak_SetParameter(_PARAMETER_PITCH, int(line.pitch), 0)
    text = line.text.encode()
    failed = (
        library.espeak_Synth(text, len(text) + 1, 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None) or library.espeak_Synchronize()
    )
    if failed:
        raise RuntimeError(f"espeak-ng failed with code {failed} on {line.text!r}")


def _finish(samples: np.ndarray, sample_rate: int, line: Line) -> np.ndarray:
    """int16 at espeak-ng's rate → trimmed float32 at 16 kHz."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _SILENCE)
    if not len(loud):
        raise InputError(f"text {line.text!r} with voice {line.voice!r} makes no sound; give words that can be spoken")
    margin = round(_MARGIN_SECONDS * sample_rate)
    trimmed = samples[max(0, loud[0] - margin) : loud[-1] + 1 + margin].astype(np.float32) / 2**15
    # A resampler's ripple can pass full scale by a hair where the synthesiser reached it.
    return np.clip(soxr.resample(trimmed, sample_rate, SAMPLE_RATE, "HQ"), -1.0, 1.0)


def _read_accents(data: Path) -> dict[str, str]:
    """Language code → path of its file below ``lang``, for the languages that have a dictionary.

    A file's first ``language`` line is its own code, and its name may differ: ``gmw/en`` speaks en-gb.
    """
    accents = {}
    folder = data / "lang"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fields = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
            first = {line[0]: line[1] for line in reversed(fields) if len(line) > 1}
            code = first.get("language", path.name).lower()
            if (data / f"{first.get('dictionary', code.split('-')[0])}_dict").exists():
                accents[code] = path.relative_to(folder).as_posix()
    return accents


def _near(name: str, known: Iterable[str]) -> str:
    folded = {candidate.casefold(): candidate for candidate in sorted(known)}
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=5, cutoff=0.5)]
    if near:
        return f"near names: {', '.join(near)}"
    return f"known names: {', '.join(list(folded.values())[:_NAMES_LISTED])}{', …' if len(folded) > _NAMES_LISTED else ''}"


def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.espeak_Initialize.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    library.espeak_SetSynthCallback.argtypes = (_SamplesCallback,)
    library.espeak_SetSynthCallback.restype = None
    library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
    library.espeak_SetVoiceByName.argtypes = (ctypes.c_char_p,)
    library.espeak_GetCurrentVoice.restype = ctypes.POINTER(_Voice)
    library.espeak_SetParameter.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
    library.espeak_Synth.argtypes = (
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
        *(ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p),
    )
    return library


def _unload(library: ctypes.CDLL) -> None:
    """Drop the library with its global state; ctypes has no public call for it."""
    module: Any = _ctypes
    (module.FreeLibrary if sys.platform == "win32" else module.dlclose)(library._handle)


def _seed_c_rand() -> None:
    """Formant ("klatt") voices draw their noise from the C library's rand, which has no other way in."""
    if sys.platform != "win32":
        ctypes.CDLL(None).srand(1)
