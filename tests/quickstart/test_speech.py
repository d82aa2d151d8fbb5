"""Synthetic speech: voices are real, and a clip is a function of its arguments."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from arkfast.quickstart.recipe import CorpusRecipe
from arkfast.quickstart.speech import SAMPLE_RATE, Line, Synthesizer
from arkfast.records import InputError

pytest.importorskip("espeakng_loader", reason="synthetic speech needs the package espeakng-loader")

# "f3" breathes (seeded noise), "klatt" draws from the C library, "en-gb" is stored under another name: each is a way to differ.
LINES = [Line("nine two three", "en-us+f3", 180, 50), Line("one", "en-gb+klatt", 150, 25), Line("seven nine", "en-us-nyc+m1", 230, 75)]


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


def _digest(arrays: list[np.ndarray]) -> str:
    import hashlib

    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_speech_has_rate_range_length_and_no_long_silence(synthesizer: Synthesizer) -> None:
    samples = synthesizer.speak("one two three four", "en-us+m1", rate=170, pitch=50)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0.6 < len(samples) / SAMPLE_RATE < 3.0
    assert 0.05 < np.abs(samples).max() <= 1.0
    loud = np.flatnonzero(np.abs(samples) > 0.003)
    # 50 ms are kept at each end; the resampler's ripple may move the first loud sample by a millisecond.
    assert loud[0] <= 0.051 * SAMPLE_RATE
    assert len(samples) - loud[-1] <= 0.052 * SAMPLE_RATE


def test_speech_is_made_of_the_given_words_rate_pitch_and_voice(synthesizer: Synthesizer) -> None:
    plain = synthesizer.speak("one two three four five", "en-us+m1", 160, 50)
    assert len(synthesizer.speak("one two", "en-us+m1", 160, 50)) < 0.7 * len(plain)
    assert len(synthesizer.speak("one two three four five", "en-us+m1", 230, 50)) < 0.9 * len(plain)

    def fundamental_hz(samples: np.ndarray) -> float:
        """Mean over the loud frames of the strongest autocorrelation peak between 60 and 400 Hz."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512]
        frames = frames[np.sqrt((frames**2).mean(1)) > 0.05]
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, SAMPLE_RATE // 400 : SAMPLE_RATE // 60]
        return float(SAMPLE_RATE / (SAMPLE_RATE // 400 + correlation.argmax(1)).mean())

    assert fundamental_hz(synthesizer.speak("one two three four five", "en-us+m1", 160, 90)) > 1.2 * fundamental_hz(plain)
    assert fundamental_hz(synthesizer.speak("one two three four five", "en-us+f2", 160, 50)) > 1.2 * fundamental_hz(plain)


def test_lines_do_not_depend_on_what_was_spoken_before(synthesizer: Synthesizer) -> None:
    first = _digest(synthesizer.speak_lines(LINES))
    synthesizer.speak("something else altogether", "en-gb-scotland+whisper", 300, 80)
    assert _digest(synthesizer.speak_lines(LINES)) == first
    assert _digest(Synthesizer().speak_lines(LINES[:2])) == _digest(synthesizer.speak_lines(LINES)[:2])
    assert _digest([synthesizer.speak(*LINES[0])]) == _digest(synthesizer.speak_lines(LINES)[:1])


def test_another_process_speaks_the_same(synthesizer: Synthesizer) -> None:
    code = (
        "import hashlib\nfrom arkfast.quickstart.speech import Line, Synthesizer\n"
        f"lines = {[tuple(line) for line in LINES]!r}\n"
        "arrays = Synthesizer().speak_lines([Line(*line) for line in lines])\n"
        "print(hashlib.sha256(b''.join(array.tobytes() for array in arrays)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _digest(synthesizer.speak_lines(LINES))


def test_threads_take_turns(synthesizer: Synthesizer) -> None:
    expected = _digest(synthesizer.speak_lines(LINES))
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(_digest(Synthesizer().speak_lines(LINES)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [expected] * 4


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("en-us+gene", r"no variant 'gene'; near names: Gene"),  # espeak-ng would silently speak with no variant at all
        ("en-us+", r"no variant ''; known names"),
        ("en-uss+m1", r"no accent 'en-uss'; near names: en-us"),  # espeak-ng would silently keep the voice it spoke with last
        ("EN-US+m1", r"no accent 'EN-US'; near names: en-us"),
        ("", r"no accent ''"),
    ],
)
def test_a_misspelt_voice_is_refused_with_near_names(synthesizer: Synthesizer, voice: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        synthesizer.speak("one", voice)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (Line("one", rate=20), "rate 20: espeak-ng speaks at 80 to 450"),
        (Line("one", pitch=100), "pitch 100: espeak-ng speaks at 0 to 99"),
        (Line("..."), "makes no sound"),
        (Line(""), "makes no sound"),
    ],
)
def test_what_cannot_be_spoken_is_refused(synthesizer: Synthesizer, line: Line, message: str) -> None:
    with pytest.raises(InputError, match=message):
        synthesizer.speak_lines([line])
    assert len(synthesizer.speak("one")) > 0


def test_every_voice_of_the_default_recipe_exists_and_variants_differ(synthesizer: Synthesizer) -> None:
    recipe = CorpusRecipe()
    for split in ("train", "test"):
        for accent in recipe.voices(split)[0]:
            synthesizer.check_voice(accent)
    variants = recipe.train_variants + recipe.test_variants
    digests = {_digest([synthesizer.speak("nine", f"en-us+{variant}")]) for variant in (*variants, "m1")}
    assert len(digests) == len(variants)  # m1 is among them, so it adds nothing


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[quickstart\]'"):
        Synthesizer()
