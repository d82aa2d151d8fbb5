"""Levels that no recording of speech has: told in a warning, or an error where nothing is left to be heard."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from arkfast.audio import read
from arkfast.audio.levels import CANCELLED_MIX, FAINT_MIX, LOUD_PEAK, QUIET_PEAK, SHORT_SECONDS, UNSCALED_PEAK, doubts
from arkfast.records import InputError


def heard(samples: np.ndarray, form: str = "WAV", subtype: str = "FLOAT", rate: int = 16000, **options):
    """Samples [n] or [n, channels] written to a file and read again."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return read(stream.getvalue(), **options)


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_channel_upside_down_beside_the_other(speech, form, subtype, rate):
    left = speech(2 * rate, rate)
    stereo = np.stack([left, -left], axis=1)
    with pytest.raises(InputError, match="the channels cancel one another and their average is silent: choose one"):
        heard(stereo, form, subtype, rate)
    for channel in (0, 1):
        assert heard(stereo, form, subtype, rate, channel=channel).warnings == ()


def test_channels_that_nearly_cancel(speech):
    left = speech(32000)
    (warning,) = heard(np.stack([left, -0.9 * left], axis=1)).warnings  # the average is a twentieth of the left, 400 times fainter
    assert warning.startswith("the average of the channels has 0.28 % of their energy")
    assert heard(np.stack([left, -0.5 * left], axis=1)).warnings == ()


def test_recordings_of_several_channels_that_are_as_they_should_be(speech):
    left, right = speech(32000, seed=1), speech(32000, seed=2)
    assert heard(np.stack([left, right], axis=1)).warnings == ()
    assert heard(np.stack([left] + [np.zeros_like(left)] * 7, axis=1)).warnings == (), "one talker beside seven silent channels"
    rng = np.random.default_rng(0)
    assert heard(0.1 * rng.standard_normal((32000, 8))).warnings == (), "eight microphones that have nothing in common"


@pytest.mark.parametrize("scale", [32767, 8388607, 300 / 0.9])
def test_integers_stored_as_floats(speech, scale):
    samples = speech(16000)
    samples *= 0.9 / np.abs(samples).max()
    with pytest.raises(InputError, match=r"^clip: samples reach .* and full scale is 1: these are integers stored as floats; divide them"):
        heard(scale * samples, name="clip")
    with pytest.raises(InputError, match=r"^row 7: samples reach .* integers stored as floats"):
        doubts("row 7", np.float32(scale) * samples, 16000)


def test_floats_far_over_full_scale(speech):
    samples = speech(16000)
    samples /= np.abs(samples).max()
    (warning,) = heard(4.1 * samples).warnings
    assert warning == "samples reach 4.1 and full scale is 1: are they scaled?"
    assert doubts("row", 4.1 * samples, 16000) == (warning,)
    assert heard(3.9 * samples).warnings == (), "mixes and decoders of lossy formats come so far"
    assert doubts("row", 3.9 * samples, 16000) == ()


def test_silence(speech):
    samples = np.zeros(16000, dtype=np.float32)
    for found in (heard(samples).warnings, heard(np.zeros((16000, 2))).warnings, doubts("row", samples, 16000)):
        assert found == ("digital silence: every sample is 0",)
    dither = np.random.default_rng(0).integers(-1, 2, 16000).astype(np.int16)
    (warning,) = heard(dither, subtype="PCM_16").warnings
    assert warning == "next to silence: samples reach 3e-05 and full scale is 1"
    assert heard(0.003 * speech(16000)).warnings == (), "faint speech is speech"


def test_clips_too_short_for_a_word(speech):
    for rate in (8000, 16000, 44100):
        (warning,) = heard(speech(round(0.05 * rate) + 4000, rate)[4000:], rate=rate).warnings
        assert warning == "a clip of 0.050 s is too short for a word"
        assert heard(speech(round(0.1 * rate) + 4000, rate)[4000:], rate=rate).warnings == ()
    whole = speech(16000)
    assert len(heard(whole, begin=0.2, end=0.25).warnings) == 1, "the segment counts, not the recording"
    assert doubts("row", whole[3000:3800], 16000) == ("a clip of 0.050 s is too short for a word",)


def test_what_is_not_finite_is_left_to_those_who_name_the_sample():
    for bad in (np.nan, np.inf, -np.inf):
        samples = np.full(16000, 0.1, dtype=np.float32)
        samples[5] = bad
        with pytest.raises(InputError, match=r"NaN or infinite sample at 0\.000 s"):
            heard(samples)
        assert doubts("row", samples, 16000) == ()


def test_the_documents_state_the_thresholds():
    text = (Path(__file__).resolve().parents[2] / "docs" / "manifests.md").read_text(encoding="utf-8")
    for said, value in (
        (f"samples of {UNSCALED_PEAK:g} and more", UNSCALED_PEAK),
        (f"samples over {LOUD_PEAK:g} ", LOUD_PEAK),
        (f"none reaches {QUIET_PEAK:.4f} ", QUIET_PEAK),
        (f"a clip under {SHORT_SECONDS:g} s", SHORT_SECONDS),
        ("less than a millionth of their energy", CANCELLED_MIX * 1e6),
        ("less than a hundredth", FAINT_MIX * 100),
    ):
        assert said in text, value
    assert (CANCELLED_MIX, FAINT_MIX) == (1e-6, 1e-2)


def test_recorded_speech_raises_no_doubt(recordings):
    for file in recordings:
        assert read(file).warnings == (), file
