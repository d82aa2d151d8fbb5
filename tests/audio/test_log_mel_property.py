"""Random clips, chunks, batches, sample types and bad samples: the properties that hold for all of them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from arkfast.audio import LogMel
from arkfast.audio.reference import log_mel_reference
from arkfast.records import InputError

# See test_log_mel.py.
REFERENCE_TOLERANCE = 1e-6
TRANSFORMERS_TOLERANCE = 1e-4

LOG_MEL = LogMel()
THREADED = LogMel(threads=2)
EXTRACTOR = WhisperFeatureExtractor(feature_size=128)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
few = settings(quick, max_examples=6)

# Mostly where the rules change, else anywhere up to half a second; `long` ones up to 31 s.
short = st.one_of(st.integers(0, 420), st.integers(0, 8000), st.builds(lambda t, r: 160 * t + r, st.integers(2, 40), st.integers(0, 159)))
long = st.integers(8000, 31 * 16000)


@st.composite
def waveforms(draw, lengths):
    """(what the caller passes, its float32 samples): any type and stride that LogMel takes."""
    n = draw(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
    loudness = 10.0 ** draw(st.integers(-5, 0))
    samples = np.clip(
        loudness * rng.standard_normal(n * abs(step)) * np.repeat(rng.random(n // 50 + 1), 50 * abs(step))[: n * abs(step)], -1, 1
    )
    dtype = draw(st.sampled_from(["float32", "float32", "float64", "int16", "unaligned", "tensor"]))
    if dtype == "int16":
        given_as = np.round(samples * 32767).astype(np.int16)[::step]
        return given_as, given_as.astype(np.float32) / 32768
    exact = samples.astype(np.float32)[::step]
    if dtype == "float64":
        return samples[::step], exact
    if dtype == "tensor":
        return torch.from_numpy(exact.copy()), exact
    if dtype == "unaligned":
        memory = np.zeros(4 * len(exact) + 1, np.uint8)
        memory[1:] = np.frombuffer(exact.tobytes(), np.uint8)
        return memory[1:].view(np.float32), exact
    return exact, exact


def check_alone(item, samples):
    if not len(samples):
        with pytest.raises(InputError, match="waveform 0 is empty"):
            LOG_MEL([item])
        return
    if len(samples) > 480000:
        with pytest.raises(InputError, match="over the limit of 480000"):
            LOG_MEL([item])
    features, frames = LOG_MEL([item], max_samples=None)
    assert frames.tolist() == [max(len(samples), 400) // 160]
    np.testing.assert_allclose(features[0], log_mel_reference(samples)[0], rtol=0, atol=REFERENCE_TOLERANCE)
    truncated, _ = LOG_MEL([item], overlong="truncate")
    assert truncated.shape[2] == min(frames[0], 3000)


@quick
@given(waveforms(short))
def test_a_clip_alone(waveform):
    check_alone(*waveform)


@few
@given(waveforms(long))
def test_a_long_clip_alone(waveform):
    check_alone(*waveform)


@quick
@given(st.lists(waveforms(short.filter(bool)), min_size=1, max_size=5), st.sampled_from(["single", "hf_batch"]))
def test_a_batch(batch, pad):
    items, samples = [item for item, _ in batch], [clip for _, clip in batch]
    features, frames = LOG_MEL(items, pad=pad)
    np.testing.assert_array_equal(THREADED(items, pad=pad)[0], features)
    longest = max(400, *(len(clip) for clip in samples))
    for i, clip in enumerate(samples):
        expected, floor = log_mel_reference(clip, longest if pad == "hf_batch" else None)
        np.testing.assert_allclose(features[i, :, : expected.shape[1]], expected, rtol=0, atol=REFERENCE_TOLERANCE)
        np.testing.assert_allclose(features[i, :, expected.shape[1] :], floor, rtol=0, atol=REFERENCE_TOLERANCE)
        if pad == "single":
            np.testing.assert_array_equal(features[i, :, : frames[i]], LOG_MEL([clip])[0][0])


@quick
@given(st.lists(waveforms(short.filter(lambda n: n >= 1)), min_size=1, max_size=3))
def test_a_batch_against_transformers(batch):
    clips = [clip for _, clip in batch]
    # Transformers cannot mirror 200 samples or fewer; ours counts anything under 400 as padded to 400.
    clips[0] = np.pad(clips[0], (0, max(0, 400 - len(clips[0]))))
    expected = EXTRACTOR(clips, sampling_rate=16000, padding="longest", truncation=False, return_tensors="np")["input_features"]
    np.testing.assert_allclose(LOG_MEL(clips, pad="hf_batch")[0], expected, rtol=0, atol=TRANSFORMERS_TOLERANCE)
    alone = EXTRACTOR(clips[0], sampling_rate=16000, padding="longest", truncation=False, return_tensors="np")["input_features"]
    np.testing.assert_allclose(LOG_MEL(clips[:1])[0], alone, rtol=0, atol=TRANSFORMERS_TOLERANCE)


def check_stream(samples, cuts):
    stream = LOG_MEL.stream(max_samples=None)
    edges = sorted({0, len(samples), *(cut % (len(samples) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        stream.push(samples[begin:end])
    np.testing.assert_array_equal(stream.finish(), LOG_MEL([samples], max_samples=None)[0][0])


@quick
@given(waveforms(short.filter(bool)), st.lists(st.integers(0, 2**31), max_size=40))
def test_streaming_equals_offline(waveform, cuts):
    check_stream(waveform[1], cuts)


@few
@given(waveforms(long), st.lists(st.integers(0, 2**31), max_size=300))
def test_streaming_a_long_clip_equals_offline(waveform, cuts):
    check_stream(waveform[1], cuts)


@quick
@given(waveforms(short.filter(bool)), st.integers(0, 2**31), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 3))
def test_a_bad_sample_is_named(waveform, at, value, before):
    samples = waveform[1].copy()
    samples[at % len(samples)] = value
    with pytest.raises(InputError, match=rf"waveform {before}: sample {at % len(samples)} \(.* s\) is {value}"):
        THREADED([np.zeros(800, np.float32)] * before + [samples, samples])
