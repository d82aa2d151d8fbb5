"""LogMelStream: any chunking gives the whole clip's features bit for bit; what a partial view holds; refusals; the NumPy fallback."""

import importlib
import sys
import threading

import numpy as np
import pytest
import torch

from arkfast.audio import LogMel
from arkfast.audio.reference import raw_log_mel_reference, scale_reference
from arkfast.records import InputError

backend = importlib.import_module("arkfast.audio.backend")

# See test_log_mel.py.
REFERENCE_TOLERANCE = 1e-6

# Short clips that count as padded, the settling of frames 0 and 1, ends with 39 and 40 samples past the last hop, several blocks.
LENGTHS = [1, 159, 160, 200, 201, 359, 360, 399, 400, 519, 520, 1639, 1640, 4000, 16001]


@pytest.fixture(params=["c++", "numpy"])
def log_mel(request, monkeypatch):
    """LogMel on either backend."""
    if request.param == "c++":
        yield LogMel()
        return
    monkeypatch.setitem(sys.modules, "arkfast._C", None)
    backend.extension.cache_clear()
    with pytest.warns(RuntimeWarning, match="NumPy reference"):
        fallback = LogMel()
    monkeypatch.undo()
    backend.extension.cache_clear()
    yield fallback


def pieces(clip, rng, most):
    """The clip in chunks of 0 to `most` samples."""
    at = 0
    while at < len(clip):
        size = int(rng.integers(0, most + 1))
        yield clip[at : at + size]
        at += size


@pytest.mark.parametrize("most", [1, 100, 161, 1600, 20000])
@pytest.mark.parametrize("length", LENGTHS)
def test_finish_equals_offline_bitwise(signal, length, most):
    if most == 1 and length > 2000:
        length = 2000
    clip, rng = signal(length), np.random.default_rng(length)
    log_mel = LogMel()
    stream = log_mel.stream()
    for chunk in pieces(clip, rng, most):
        stream.push(chunk)
    assert stream.samples == length
    np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0])


@pytest.mark.parametrize("length", LENGTHS)
def test_finish_equals_offline_on_either_backend(log_mel, speech, length):
    clip = speech(length)
    for dtype in ("float32", "bfloat16"):
        stream = log_mel.stream(dtype=dtype)
        for chunk in pieces(clip, np.random.default_rng(0), 800):
            stream.push(chunk)
        offline = log_mel([clip], dtype=dtype)[0][0]
        finished = stream.finish()
        if dtype == "bfloat16":
            assert finished.dtype == torch.bfloat16
            assert torch.equal(finished, offline)
        else:
            np.testing.assert_array_equal(finished, offline)


def test_each_instruction_set_streams_like_itself(speech):
    clip = speech(9999)
    for name in importlib.import_module("arkfast._C").instruction_sets():
        log_mel = LogMel(80, instruction_set=name)
        stream = log_mel.stream()
        for chunk in pieces(clip, np.random.default_rng(1), 700):
            stream.push(chunk)
        np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0], err_msg=name)


def test_overflowing_frames_stream_alike(speech):
    clip = speech(8000)
    clip[3000:3100] *= np.float32(1e20)
    log_mel = LogMel()
    stream = log_mel.stream()
    for chunk in pieces(clip, np.random.default_rng(2), 300):
        stream.push(chunk)
    np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0])


def test_frames_settle_as_soon_as_they_can(log_mel, speech):
    """Frame t sees samples up to 160t + 199, frame 0 also sample 200, its left end mirrored."""
    stream = log_mel.stream()
    for count, sample in enumerate(speech(800), start=1):
        stream.push([sample])
        assert stream.raw_frames == sum(count >= max(160 * t + 200, 201) for t in range(6))


def test_partial_view_is_clamped_by_the_maximum_so_far(log_mel, speech):
    """Loudness arrives late: what was quiet rises to the later clamp, and nothing else changes."""
    clip = np.concatenate([1e-3 * speech(4000), speech(4000)]).astype(np.float32)
    stream = log_mel.stream()
    stream.push(clip[:4000])
    raw = raw_log_mel_reference(clip)
    settled = stream.raw_frames
    early = stream.view()
    assert early.shape == (128, settled)
    np.testing.assert_allclose(early, scale_reference(raw[:, :settled])[0], rtol=0, atol=REFERENCE_TOLERANCE)
    stream.push(clip[4000:])
    late = stream.view()
    np.testing.assert_allclose(late, scale_reference(raw[:, : stream.raw_frames])[0], rtol=0, atol=REFERENCE_TOLERANCE)
    risen = late[:, :settled] > early
    assert risen.any()
    assert (late[:, :settled][risen] == late.min()).all()
    np.testing.assert_array_equal(late[:, :settled][~risen], early[~risen])


def test_views_do_not_disturb_the_stream(log_mel, speech):
    clip = speech(3000)
    stream = log_mel.stream()
    for at in range(0, 3000, 250):
        stream.push(clip[at : at + 250])
        np.testing.assert_array_equal(stream.view(final=True), log_mel([clip[: at + 250]])[0][0])
        assert stream.view().shape == (128, stream.raw_frames)
    np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0])


def test_chunks_may_be_reused_by_the_caller(log_mel, speech):
    """The stream keeps no reference to a chunk: a recorder may fill the same buffer again."""
    clip, buffer = speech(3000), np.empty(300, np.float32)
    stream = log_mel.stream()
    for at in range(0, 3000, 300):
        buffer[:] = clip[at : at + 300]
        stream.push(buffer)
    np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0])


@pytest.mark.parametrize("convert", [lambda x: (x * 32768).astype(np.int16), lambda x: x.astype(np.float64), torch.from_numpy, list])
def test_kinds_of_chunks(speech, convert):
    clip = np.round(speech(2000) * 32768).astype(np.float32) / 32768
    stream = LogMel().stream()
    stream.push(convert(clip[:700]))
    stream.push(convert(clip[700:]))
    np.testing.assert_array_equal(stream.finish(), LogMel()([clip])[0][0])


def test_bad_chunks_are_refused_whole(log_mel, speech):
    stream = log_mel.stream(max_samples=1000)
    stream.push(speech(600))
    bad = speech(300)
    bad[100] = np.nan
    with pytest.raises(InputError, match=r"stream: sample 700 \(0\.044 s\) is nan"):
        stream.push(bad)
    with pytest.raises(InputError, match=r"stream has 1001 samples \(0\.06 s\), over the limit of 1000"):
        stream.push(speech(401))
    with pytest.raises(InputError, match=r"stream chunk at sample 600: expected one dimension, got shape \[2, 50\]"):
        stream.push(np.zeros((2, 50), np.float32))
    with pytest.raises(TypeError, match="stream chunk at sample 600: samples must be floats or int16"):
        stream.push(np.zeros(50, np.int32))
    assert stream.samples == 600
    np.testing.assert_array_equal(stream.finish(), log_mel([speech(600)])[0][0])


def test_states(log_mel, speech):
    stream = log_mel.stream()
    assert (stream.samples, stream.raw_frames, stream.n_mels) == (0, 0, 128)
    assert stream.view().shape == (128, 0)
    stream.push([])
    for read in (stream.finish, lambda: stream.view(final=True)):
        with pytest.raises(InputError, match="no samples were pushed"):
            read()
    stream.push(speech(500))
    features = stream.finish()
    with pytest.raises(ValueError, match="finished; start another"):
        stream.push(speech(500))
    np.testing.assert_array_equal(stream.view(final=True), features)


@pytest.mark.parametrize(("options", "message"), [({"dtype": "float16"}, "dtype"), ({"max_samples": 0}, "max_samples")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LogMel().stream(**options)


def test_no_limit(speech):
    stream = LogMel(80).stream(max_samples=None)
    for _ in range(6):
        stream.push(np.zeros(100000, np.float32))
    assert stream.finish().shape == (80, 3750)


def test_a_stream_outlives_its_log_mel(speech):
    clip = speech(2000)
    stream = LogMel(80).stream()
    stream.push(clip)
    np.testing.assert_array_equal(stream.finish(), LogMel(80)([clip])[0][0])


def test_reading_while_feeding(speech):
    """A reader beside the feeder sees whole states only."""
    clip, log_mel = speech(48000), LogMel(80)
    stream, shapes, stop = log_mel.stream(), [], threading.Event()

    def read():
        while not stop.is_set():
            shapes.append(stream.view().shape[1])

    reader = threading.Thread(target=read)
    reader.start()
    for at in range(0, len(clip), 160):
        stream.push(clip[at : at + 160])
    stop.set()
    reader.join()
    assert shapes == sorted(shapes)
    np.testing.assert_array_equal(stream.finish(), log_mel([clip])[0][0])
