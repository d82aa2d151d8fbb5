"""The kernel of each instruction set that this machine supports: values, ties between sets, rounding to bfloat16, choice and codelets."""

import hashlib
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arkfast.audio import LogMel, load
from arkfast.audio.reference import log_mel_reference
from arkfast.records import InputError

_C = pytest.importorskip("arkfast._C")
CODELETS = Path(__file__).parents[2] / "csrc" / "codelets"

# See test_log_mel.py.
REFERENCE_TOLERANCE = 1e-6

# One frame more or less than one, two and three blocks of 4, 8 and 16 lanes, and the ends of clips.
LENGTHS = [1, 400, 401, 639, 640, 679, 680, 1279, 1280, 1440, 2559, 2560, 2599, 2600, 2720, 5280, 7999]


@pytest.fixture(params=_C.instruction_sets())
def instruction_set(request):
    return request.param


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_float64_reference(signal, instruction_set, n_mels):
    log_mel = LogMel(n_mels, instruction_set=instruction_set)
    assert log_mel.instruction_set == instruction_set
    for length in LENGTHS:
        clip = signal(length)
        for padded in (max(length, 400), max(length, 400) + 150, max(length, 400) + 900):
            longer = np.zeros(padded, np.float32)
            features, _ = log_mel([clip, longer], pad="hf_batch")
            expected, _ = log_mel_reference(clip, padded, n_mels)
            np.testing.assert_allclose(features[0], expected, rtol=0, atol=REFERENCE_TOLERANCE, err_msg=f"{length} of {padded}")


@pytest.mark.parametrize("n_mels", [1, 2, 3, 40, 149])
def test_other_n_mels(speech, instruction_set, n_mels):
    clip = speech(4000)
    features, _ = LogMel(n_mels, instruction_set=instruction_set)([clip])
    np.testing.assert_allclose(features[0], log_mel_reference(clip, n_mels=n_mels)[0], rtol=0, atol=REFERENCE_TOLERANCE)


# 1e-12: all of it under the floor; 3e16 to 1e18: frames whose float32 power overflows beside others; 1e38: near float32's end.
@pytest.mark.parametrize("amplitude", [1e-12, 1e-6, 32768.0, 3e16, 2e17, 1e18, 1e38])
def test_amplitudes(speech, instruction_set, amplitude):
    clip = speech(9000) * np.float32(amplitude)
    features, _ = LogMel(instruction_set=instruction_set)([clip])
    # log10 reaches 78, whose float32 half step is 3.8e-6, a quarter of it in the feature of below 21, whose own is 9.5e-7
    tolerance = REFERENCE_TOLERANCE if amplitude < 1e10 else 2e-6
    np.testing.assert_allclose(features[0], log_mel_reference(clip)[0], rtol=0, atol=tolerance)


def test_one_loud_frame_among_quiet_ones(speech, instruction_set):
    """Only the frames that overflow float32 take the float64 way; their neighbours in the same vector do not notice."""
    clip = speech(8000)
    clip[4000] = 1e25
    features, _ = LogMel(instruction_set=instruction_set)([clip])
    np.testing.assert_allclose(features[0], log_mel_reference(clip)[0], rtol=0, atol=2e-6)


def test_silence_is_exactly_the_floor(instruction_set):
    features, _ = LogMel(instruction_set=instruction_set)([np.zeros(16000, np.float32)])
    assert (features == -1.5).all()


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(_C.instruction_sets()), reason="this machine lacks AVX2 or AVX-512")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_avx2_equals_avx512_bitwise(signal, pad, dtype):
    clips = [signal(length) for length in (*LENGTHS, 48000)]
    clips.append(clips[-1] * np.float32(1e20))
    for n_mels in (1, 80, 128):
        narrow, wide = (LogMel(n_mels, instruction_set=name)(clips, pad=pad, dtype=dtype)[0] for name in ("avx2", "avx512"))
        if dtype == "bfloat16":
            narrow, wide = narrow.view(torch.int16).numpy(), wide.view(torch.int16).numpy()
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_bfloat16_is_float32_rounded_to_nearest_even(speech, noisy_clip, instruction_set, pad):
    log_mel = LogMel(instruction_set=instruction_set)
    clips = [speech(3333), noisy_clip, speech(16000)]
    for options in ({}, {"fill": 0.3, "pad_to_multiple_of": 32}):
        exact, frames = log_mel(clips, pad=pad, **options)
        halves, same_frames = log_mel(clips, pad=pad, dtype="bfloat16", **options)
        assert halves.dtype == torch.bfloat16
        assert frames.tolist() == same_frames.tolist()
        assert torch.equal(halves, torch.from_numpy(exact).to(torch.bfloat16))


@pytest.fixture
def noisy_clip():
    return (0.1 * np.random.default_rng(3).standard_normal(7777)).astype(np.float32)


def test_ties_round_to_even(instruction_set):
    """Fills are rounded by the same rule: halfway between two bfloat16 neighbours, the even one; infinity and NaN stay themselves."""
    log_mel = LogMel(80, instruction_set=instruction_set)
    for fill in (1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4028e38, math.inf, math.nan):
        halves, _ = log_mel([np.zeros(800, np.float32)], dtype="bfloat16", fill=fill, pad_to_multiple_of=8)
        expected = torch.tensor(fill, dtype=torch.float32).to(torch.bfloat16)
        torch.testing.assert_close(halves[0, 0, 5:], expected.expand(3), rtol=0, atol=0, equal_nan=True)


# Around vectors, chunks of the check and rows of 160; 7839 to 7999 lie under no window of the last frame.
@pytest.mark.parametrize("at", [0, 1, 15, 16, 159, 160, 4095, 4096, 7838, 7839, 7840, 7998, 7999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_samples_are_found(speech, instruction_set, value, at):
    log_mel = LogMel(instruction_set=instruction_set)
    clip = speech(7999 + 1)
    clip[at] = value
    for options in ({}, {"pad": "hf_batch"}, {"out": np.empty((3, 128, 100), np.float32)}):
        with pytest.raises(InputError, match=rf"waveform 1: sample {at} \({at / 16000:.3f} s\) is {value}"):
            log_mel([speech(800), clip, speech(16000)], **options)


def test_the_environment_chooses(speech, instruction_set, tmp_path):
    code = """if True:
        import hashlib, sys
        import numpy as np
        from arkfast.audio import LogMel
        log_mel = LogMel()
        print(log_mel.instruction_set, hashlib.sha256(log_mel([np.load(sys.argv[1])])[0].tobytes()).hexdigest())
    """
    clip = speech(5000)
    np.save(tmp_path / "clip.npy", clip)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip.npy")],
        env=os.environ | {"ARKFAST_ISA": instruction_set},
        capture_output=True,
        text=True,
        check=True,
    )
    features, _ = LogMel(instruction_set=instruction_set)([clip])
    assert run.stdout.split() == [instruction_set, hashlib.sha256(features.tobytes()).hexdigest()]


@pytest.mark.parametrize("value", ["sse9", "AVX2", " "])
def test_unknown_instruction_sets_are_refused(monkeypatch, value):
    supported = ", ".join(_C.instruction_sets())
    message = f"'{value}': not an instruction set that this machine supports; choose one of {supported}"
    with pytest.raises(ValueError) as caught:
        LogMel(instruction_set=value)
    assert str(caught.value) == f"instruction_set = {message}"
    monkeypatch.setenv("ARKFAST_ISA", value)
    for make in (LogMel, _C.instruction_set):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == f"environment variable ARKFAST_ISA = {message}"
    assert LogMel(instruction_set="generic").instruction_set == "generic", "an argument needs no variable"


def test_generic_and_fastest():
    names = _C.instruction_sets()
    assert names[-1] == "generic"
    assert set(names) <= {"avx512", "avx2", "baseline", "generic"}
    assert os.environ.get("ARKFAST_ISA") or _C.instruction_set() == names[0]


@pytest.fixture(scope="module")
def generator():
    if not CODELETS.is_dir():
        pytest.skip("the sources of the extension are not beside the tests")
    spec = importlib.util.spec_from_file_location("arkfast_codelets", CODELETS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and annotations look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_committed_codelets_are_what_the_generator_gives(generator):
    assert generator.HEADER.read_text(encoding="utf-8") == generator.generate()


def test_logarithm_coefficients(generator):
    f = np.linspace(0, 1, 10001)
    for degree in (5, generator.LOG10_DEGREE, 12):
        t = (math.sqrt(2) - 1) / (math.sqrt(2) + 1)
        bound = math.log10(math.e) * 2 / (degree + 1) * t ** (degree + 1) / (1 - t)
        values = np.polynomial.polynomial.polyval(f, generator.log10_coefficients(degree))
        assert np.abs(values - np.log10(1 + f)).max() <= bound


def test_real_recordings(recordings, instruction_set):
    for path in recordings:
        clip = load(path)[:480000]
        features, _ = LogMel(instruction_set=instruction_set)([clip])
        np.testing.assert_allclose(features[0], log_mel_reference(clip)[0], rtol=0, atol=REFERENCE_TOLERANCE, err_msg=str(path))
