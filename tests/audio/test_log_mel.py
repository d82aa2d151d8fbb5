"""LogMel against the float64 reference and against Transformers' extractor; its rules for input, padding, ``out`` and the fallback."""

import importlib
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from arkfast.audio import LogMel, load
from arkfast.audio.reference import log_mel_reference, mel_filters
from arkfast.records import InputError

backend = importlib.import_module("arkfast.audio.backend")

# The reference is exact to 1e-12. Ours rounds power and mel energies to float32 (a few 6e-8 relative, a tenth of that in the feature) and
# log10 values below 16 twice (raw, scaled): at most 4.8e-7 / 4 + 1.2e-7.
REFERENCE_TOLERANCE = 1e-6
# Transformers runs its FFT in float32: bins far below a frame's peak carry errors up to a few 1e-5 of the scaled feature.
TRANSFORMERS_TOLERANCE = 1e-4

# 1: shortest; 39, 40: the last frame's right edge; 199..201, 319..321, 399..401: around half a window, two hops, one window;
# 1600 + r with r ≤ 39 and beyond: whether the last window reaches past the end; 16·160·k: whole tiles of frames.
LENGTHS = [1, 39, 40, 199, 200, 201, 250, 319, 320, 321, 399, 400, 401, 559, 560, 1600, 1601, 1639, 1640, 1759, 5120, 7680, 16001, 48000]


@pytest.fixture(scope="module", params=[80, 128])
def n_mels(request):
    return request.param


@pytest.fixture(scope="module")
def extractor(n_mels):
    return WhisperFeatureExtractor(feature_size=n_mels)


@pytest.fixture
def numpy_backend(monkeypatch):
    """The state of an installation without the extension."""
    monkeypatch.setitem(sys.modules, "arkfast._C", None)
    backend.extension.cache_clear()
    yield
    monkeypatch.undo()
    backend.extension.cache_clear()


def transformers_features(extractor, clips):
    output = extractor(clips, sampling_rate=16000, padding="longest", truncation=False, return_tensors="np")
    return output["input_features"]


def zero_padded(clip):
    return np.pad(clip, (0, max(0, 400 - len(clip))))


def test_extension_is_what_is_tested():
    extension = importlib.import_module("arkfast._C")
    log_mel = LogMel()
    assert log_mel.backend == "c++"
    assert log_mel.instruction_set == extension.instruction_set()
    assert log_mel.instruction_set in extension.instruction_sets()


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_float64_reference(signal, length, n_mels):
    clip = signal(length)
    features, frames = LogMel(n_mels)([clip])
    expected, _ = log_mel_reference(clip, n_mels=n_mels)
    assert features.dtype == np.float32
    assert features.shape == (1, n_mels, max(length, 400) // 160) == (1, *expected.shape)
    assert frames.tolist() == [expected.shape[1]]
    np.testing.assert_allclose(features[0], expected, rtol=0, atol=REFERENCE_TOLERANCE)


@pytest.mark.parametrize("amplitude", [1e-6, 32768.0, 1e30])
def test_reference_at_extreme_amplitudes(speech, amplitude):
    # 1e30 squares past float32, so powers must stay in float64 until the logarithm; log10 reaches 62, whose float32 half step is 1.9e-6.
    clip = speech(8000) * np.float32(amplitude)
    features, _ = LogMel()([clip])
    expected, _ = log_mel_reference(clip)
    np.testing.assert_allclose(features[0], expected, rtol=0, atol=REFERENCE_TOLERANCE if amplitude < 1e30 else 2e-6)


def test_reference_dynamics():
    """Silence sits at the absolute floor, and nothing lies more than 2.0 (8 decades / 4) below the maximum."""
    features, _ = LogMel()([np.zeros(3200, np.float32), np.r_[np.zeros(1600), np.ones(1600)].astype(np.float32)])
    assert (features[0] == -1.5).all()
    # max − 8 rounds once and (x + 4) / 4 once on either side: two float32 half steps below 2
    assert features[1].max() - features[1].min() == pytest.approx(2.0, abs=2.4e-7)


def test_filters_equal_transformers(extractor, n_mels):
    np.testing.assert_allclose(mel_filters(n_mels).T, extractor.mel_filters, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_single_equals_transformers_alone(signal, length, n_mels, extractor):
    clip = signal(length)
    features, _ = LogMel(n_mels)([clip])
    # Transformers cannot mirror 200 samples or fewer; our rule pads such clips, and all under 400 samples, with zeros to 400.
    expected = transformers_features(extractor, [zero_padded(clip)])
    np.testing.assert_allclose(features, expected, rtol=0, atol=TRANSFORMERS_TOLERANCE)


@pytest.mark.parametrize("gap", [1, 39, 40, 160, 199, 200, 201, 360, 1000])
@pytest.mark.parametrize("length", [1, 250, 399, 1600, 1639, 1640, 1725, 16000])
def test_hf_batch_equals_transformers_rows(signal, speech, length, gap, n_mels, extractor):
    """A clip beside one that is ``gap`` samples longer; under 200, the mirrored end of the padded row brings signal back."""
    clips = [signal(length), speech(max(length, 400) + gap)]
    features, frames = LogMel(n_mels)(clips, pad="hf_batch")
    expected = transformers_features(extractor, clips)
    assert frames.tolist() == [max(len(clip), 400) // 160 for clip in clips]
    np.testing.assert_allclose(features, expected, rtol=0, atol=TRANSFORMERS_TOLERANCE)
    for row, clip in zip(features, clips, strict=True):
        np.testing.assert_allclose(row, log_mel_reference(clip, len(clips[1]), n_mels)[0], rtol=0, atol=REFERENCE_TOLERANCE)


def test_modes_differ_where_they_should(signal):
    """Equality with both kinds of Transformers result would be vacuous if they were one: a loud end tells them apart."""
    clips = [signal(1639), np.ones(4000, np.float32)]
    single, _ = LogMel()(clips)
    batch, _ = LogMel()(clips, pad="hf_batch")
    np.testing.assert_array_equal(single[1], batch[1])
    assert np.array_equal(single[0], batch[0]) == (signal.__name__ == "silence")


@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_alone_equals_in_batch_bitwise(speech, pad):
    clips = [speech(n, seed=n) for n in (1, 4321, 400, 16000, 15999, 4480)]
    features, frames = LogMel()(clips, pad=pad)
    for i, clip in enumerate(clips):
        companions = [clip] if pad == "single" else [clips[3], clip]
        alone, alone_frames = LogMel()(companions, pad=pad)
        assert frames[i] == alone_frames[-1]
        np.testing.assert_array_equal(features[i, :, : frames[i]], alone[-1, :, : frames[i]])


def test_threads_share_one_plan(speech):
    log_mel = LogMel()
    clips = [speech(16000 + 161 * i, seed=i) for i in range(8)]
    expected = [log_mel([clip])[0] for clip in clips]
    results = [[] for _ in clips]
    threads = [
        threading.Thread(target=lambda clip=clip, to=to: to.extend(log_mel([clip])[0] for _ in range(5)))
        for clip, to in zip(clips, results, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alone, several in zip(expected, results, strict=True):
        assert len(several) == 5
        for features in several:
            np.testing.assert_array_equal(features, alone)


@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_fill_and_rounding_up(speech, pad):
    clips = [speech(3000), speech(8000)]
    plain, frames = LogMel()(clips, pad=pad)
    padded, same_frames = LogMel()(clips, pad=pad, fill=7.5, pad_to_multiple_of=16)
    assert frames.tolist() == same_frames.tolist() == [18, 50]
    assert padded.shape == (2, 128, 64)
    computed = [18, 50] if pad == "single" else [50, 50]
    for i, n in enumerate(computed):
        np.testing.assert_array_equal(padded[i, :, :n], plain[i, :, :n])
        assert (padded[i, :, n:] == 7.5).all()
    _, floor = log_mel_reference(clips[0])
    np.testing.assert_allclose(plain[0, :, 30:], floor, rtol=0, atol=REFERENCE_TOLERANCE)


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
@pytest.mark.parametrize("extra", [0, 13])
def test_out_is_written_whole(speech, make, extra):
    clips = [speech(3000), speech(8000)]
    plain, frames = LogMel()(clips)
    out = make((2, 128, 50 + extra), dtype=np.float32 if make is np.zeros else torch.float32)
    out[:] = float("nan")
    features, out_frames = LogMel()(clips, out=out)
    assert features is out
    assert out_frames.tolist() == frames.tolist()
    written = np.asarray(out)
    np.testing.assert_array_equal(written[:, :, :50], plain)
    for row, clip in zip(written, clips, strict=True):
        np.testing.assert_allclose(row[:, 50:], log_mel_reference(clip)[1], rtol=0, atol=REFERENCE_TOLERANCE)
    assert np.isfinite(written).all()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((2, 128, 50), np.float32), "shape"),
        (np.zeros((1, 80, 50), np.float32), "shape"),
        (np.zeros((1, 128, 49), np.float32), r"\[1, 128, 50 or more\], got \[1, 128, 49\]"),
        (np.zeros((128, 50), np.float32), "shape"),
        (np.zeros((1, 128, 50), np.float64), "float32"),
        (np.zeros((1, 50, 128), np.float32).transpose(0, 2, 1), "C-contiguous"),
        (np.broadcast_to(np.float32(0), (1, 128, 50)), "writable"),
        (torch.zeros(1, 128, 50, dtype=torch.bfloat16), "float32 tensor"),
        (torch.zeros(1, 50, 128).transpose(1, 2), "contiguous"),
        (torch.zeros(1, 128, 50, device="meta"), "CPU"),
        ([[0.0]], "array"),
    ],
)
def test_out_that_does_not_fit(speech, out, message):
    with pytest.raises(ValueError, match=message):
        LogMel()([speech(8000)], out=out)


def test_input_types(speech):
    clip = speech(8000)
    integers = np.round(clip * 32767).astype(np.int16)
    base, _ = LogMel()([clip])
    strided = np.stack([clip, -clip], axis=1)[:, 0]
    for same in (clip.astype(np.float64), torch.from_numpy(clip), clip.tolist(), strided, clip[::-1].copy()[::-1], clip.astype(">f4")):
        np.testing.assert_array_equal(LogMel()([same])[0], base)
    np.testing.assert_array_equal(LogMel()((clip,))[0], base)
    np.testing.assert_array_equal(LogMel()([integers])[0], LogMel()([integers / 32768])[0])
    tensor = torch.from_numpy(clip)
    coarse, _ = LogMel()([tensor.bfloat16().float()])
    for same in (tensor.bfloat16(), tensor.bfloat16().requires_grad_()):
        np.testing.assert_array_equal(LogMel()([same])[0], coarse)
    np.testing.assert_array_equal(LogMel()([clip.astype(np.float16)])[0], LogMel()([clip.astype(np.float16).astype(np.float32)])[0])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(LogMel()([integers])[0], LogMel()([integers.astype(np.float32)])[0], atol=1)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8", "complex64", "bool"])
def test_other_sample_types_are_refused(dtype):
    with pytest.raises(TypeError, match="waveform 1: samples must be floats or int16"):
        LogMel()([np.zeros(800, np.float32), np.zeros(800, dtype)])


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(0, np.float32), "waveform 1 is empty"),
        (np.zeros((2, 800), np.float32), r"waveform 1: expected one dimension, got shape \[2, 800\]"),
        (np.zeros((800, 1), np.float32), "waveform 1: expected one dimension"),
        (np.float32(0), r"waveform 1: expected one dimension, got shape \[\]"),
        (np.zeros(480001, np.float32), r"waveform 1 has 480001 samples \(30.00 s\), over the limit of 480000"),
    ],
)
def test_bad_clips_are_named(clip, message):
    with pytest.raises(InputError, match=message):
        LogMel()([np.zeros(800, np.float32), clip])


# 4095 and 4096 lie on either side of the extension's chunks; 7999 is the last sample.
@pytest.mark.parametrize("at", [0, 4095, 4096, 7999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_samples_are_named_and_out_is_untouched(speech, value, at):
    clip = speech(8000)
    clip[at] = value
    out = np.full((2, 128, 50), 3.0, np.float32)
    with pytest.raises(InputError, match=rf"waveform 1: sample {at} \({at / 16000:.3f} s\) is {value}"):
        LogMel()([speech(800), clip], out=out)
    assert (out == 3.0).all()


def test_float64_beyond_float32_is_not_finite(speech):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"waveform 0: sample 0 .* is inf"):
            LogMel()([np.array([1e300, 0.0])])


def test_overlong_clips(speech):
    clip = speech(20000)
    truncated, frames = LogMel()([clip], max_samples=16000, overlong="truncate")
    np.testing.assert_array_equal(truncated, LogMel()([clip[:16000]])[0])
    assert frames.tolist() == [100]
    long = np.zeros(500000, np.float32)
    assert LogMel()([long], max_samples=None)[1].tolist() == [3125]
    assert LogMel()([long], overlong="truncate")[1].tolist() == [3000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad": "longest"}, "pad must be 'single' or 'hf_batch', got 'longest'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"overlong": "cut"}, "overlong"),
        ({"max_samples": 0}, "max_samples must be positive"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LogMel()([np.zeros(800, np.float32)], **options)


def test_bad_batches():
    with pytest.raises(ValueError, match="empty"):
        LogMel()([])
    with pytest.raises(TypeError, match=r"pass one clip as \[clip\]"):
        LogMel()(np.zeros(800, np.float32))
    with pytest.raises(TypeError, match="list of one-dimensional waveforms"):
        LogMel()(np.zeros((2, 800), np.float32))


@pytest.mark.parametrize("n", [-1, 0, 150, 202, 100000])
def test_impossible_n_mels(n):
    with pytest.raises(ValueError, match="n_mels"):
        LogMel(n)
    with pytest.raises(ValueError, match="n_mels"):
        mel_filters(n)


@pytest.mark.parametrize("n", [1, 2, 40, 149])
def test_other_n_mels(speech, n):
    clip = speech(3000)
    np.testing.assert_allclose(LogMel(n)([clip])[0][0], log_mel_reference(clip, n_mels=n)[0], rtol=0, atol=REFERENCE_TOLERANCE)


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_threads(threads):
    with pytest.raises(ValueError, match=f"threads must be 0 to 1024, got {threads}"):
        LogMel(threads=threads)


def test_pickle(speech):
    copy = pickle.loads(pickle.dumps(LogMel(80, threads=2)))
    assert (copy.n_mels, copy.threads) == (80, 2)
    np.testing.assert_array_equal(copy([speech(800)])[0], LogMel(80)([speech(800)])[0])


@pytest.mark.parametrize("pad", ["single", "hf_batch"])
def test_numpy_fallback_gives_the_same(speech, pad, numpy_backend):
    clips = [speech(250), speech(8000), speech(3000)]
    with pytest.warns(RuntimeWarning, match=r"C\+\+ extension is not available .*arkfast._C"):
        fallback = LogMel()
    assert fallback.backend == "numpy"
    assert fallback.instruction_set == "numpy"
    features, frames = fallback(clips, pad=pad, fill=2.0, pad_to_multiple_of=8)
    halves, _ = fallback(clips, pad=pad, dtype="bfloat16", fill=float("nan"), pad_to_multiple_of=8)
    backend.extension.cache_clear()
    sys.modules.pop("arkfast._C")
    compiled = LogMel()
    assert compiled.backend == "c++"
    expected, expected_frames = compiled(clips, pad=pad, fill=2.0, pad_to_multiple_of=8)
    np.testing.assert_allclose(features, expected, rtol=0, atol=REFERENCE_TOLERANCE)
    assert frames.tolist() == expected_frames.tolist()
    expected, _ = compiled(clips, pad=pad, fill=float("nan"), pad_to_multiple_of=8)
    # bfloat16 rounds the fallback's own float32, which may lie on the other side of a midpoint: one step of 2^-8 of values below 2
    torch.testing.assert_close(halves.float(), torch.from_numpy(expected), rtol=2**-8, atol=1e-6, equal_nan=True)


def test_numpy_fallback_says_so_once_and_checks_alike(speech, numpy_backend):
    with pytest.warns(RuntimeWarning, match="NumPy reference") as caught:
        LogMel()
    assert [warning.filename for warning in caught] == [__file__], "the warning points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_mel = LogMel(80)
        clip = speech(800)
        clip[500] = np.nan
        with pytest.raises(InputError, match=r"waveform 1: sample 500 \(0.031 s\) is nan"):
            log_mel([speech(800), clip])
    with pytest.raises(ValueError, match="n_mels"):
        LogMel(150)
    with pytest.raises(ValueError, match="threads must be 0 to 1024"):
        LogMel(threads=-1)
    with pytest.raises(ValueError, match="needs the C\\+\\+ extension"):
        LogMel(instruction_set="baseline")


def test_extension_checks_what_it_is_given():
    extension = importlib.import_module("arkfast._C")
    plan = extension.LogMelPlan(80)
    clip, out = np.zeros(800, np.float32), np.zeros((1, 80, 5), np.float32)
    unaligned = np.frombuffer(bytes(3201), np.uint8)[1:].view(np.float32)
    for bad in (clip.astype(np.float64), clip[::2], unaligned):
        with pytest.raises(TypeError, match="contiguous aligned float32"):
            plan.compute([bad], np.array([800]), out)
        with pytest.raises(TypeError, match="contiguous aligned float32"):
            plan.stream().push(bad)
    with pytest.raises(TypeError):
        plan.compute([clip], np.array([800]), out.astype(np.float64))
    for padded, buffer in (([799], out), ([800, 800], out), ([800], out[:, :, :4].copy()), ([800], np.zeros((1, 128, 5), np.float32))):
        with pytest.raises(ValueError):
            plan.compute([clip], np.array(padded), buffer)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="writeable"):
        plan.compute([clip], np.array([800]), out)
    stream = plan.stream()
    stream.push(clip)
    for shape in ((80, 2), (80, 6), (128, 4)):
        with pytest.raises(ValueError):
            stream.write(np.zeros(shape, np.float32), False)


def test_import_costs_neither_torch_nor_decoders():
    code = """if True:
        import sys, arkfast.audio
        arkfast.audio.LogMel()
        print(sorted({"torch", "transformers", "soundfile", "soxr"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_real_recordings(recordings, extractor, n_mels):
    clips = [load(path)[:128000] for path in recordings]
    features, frames = LogMel(n_mels)(clips)
    for i, clip in enumerate(clips):
        own = features[i, :, : frames[i]]
        np.testing.assert_allclose(own, log_mel_reference(clip, n_mels=n_mels)[0], rtol=0, atol=REFERENCE_TOLERANCE)
        np.testing.assert_allclose(own, transformers_features(extractor, [clip])[0], rtol=0, atol=TRANSFORMERS_TOLERANCE)


@pytest.mark.parametrize("fill", ["abc", None, [1]])
def test_a_fill_that_is_no_number_is_named(fill):
    with pytest.raises(ValueError, match=r"^LogMel: fill must be 'floor' or a number, got "):
        LogMel(8)([np.zeros(800, np.float32)], fill=fill)
