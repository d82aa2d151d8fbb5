"""load and duration: formats, segments, downmix, resampled length, and every way in which a recording can be bad."""

import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from arkfast.audio import LogMel, duration, load
from arkfast.audio.reference import log_mel_reference
from arkfast.records import InputError

LOSSLESS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("aiff", "PCM_24")]
LOSSY = [("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS"), ("ogg", "OPUS")]


@pytest.fixture
def write(tmp_path):
    """write(samples, rate, extension, subtype) → path of the file."""

    def write(samples, rate=16000, extension="wav", subtype="FLOAT", **options):
        path = tmp_path / f"clip-{len(list(tmp_path.iterdir()))}.{extension}"
        soundfile.write(path, samples, rate, subtype=subtype, **options)
        return path

    return write


def cut(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def correlation(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


@pytest.mark.parametrize(("extension", "subtype"), LOSSLESS)
def test_lossless_formats(write, speech, extension, subtype):
    integers = np.round(20000 * speech(20000)).astype(np.int16)
    path = write(integers / 32768 if subtype == "FLOAT" else integers, extension=extension, subtype=subtype)
    loaded = load(path)
    assert loaded.dtype == np.float32
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, integers / 32768)
    assert duration(path) == 1.25


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize(("extension", "subtype"), LOSSY)
def test_lossy_formats(write, speech, extension, subtype, rate):
    samples = speech(2 * rate, rate)
    path = write(samples, rate, extension, subtype)
    loaded = load(path)
    assert loaded.shape == (32000,)
    assert duration(path) == 2.0
    # a misplaced start would show at once: at 16 kHz speech one sample of delay already costs more than this
    assert correlation(loaded, load(write(samples, rate))) > 0.98


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("count", [1, 2, 3, 441, 12345])
def test_resampled_length_and_values(write, speech, rate, count):
    samples = speech(count, rate)
    loaded = load(write(samples, rate))
    assert len(loaded) == math.ceil(count * 16000 / rate)
    expected = soxr.resample(samples, rate, 16000, quality="HQ")
    shared = min(len(expected), len(loaded))
    np.testing.assert_array_equal(loaded[:shared], expected[:shared])
    assert (loaded[shared:] == 0).all()


def test_resampling_keeps_a_tone(write):
    t = np.arange(48000) / 48000
    loaded = load(write(0.5 * np.sin(2 * np.pi * 1000 * t), 48000))
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    # soxr's HQ pass band is flat to far below this; the ends ring
    np.testing.assert_allclose(loaded[500:-500], expected[500:-500], rtol=0, atol=1e-4)


def test_other_target_rate(write, speech):
    path = write(speech(16000))
    assert len(load(path, sampling_rate=24000)) == 24000
    with pytest.raises(ValueError, match="sampling_rate"):
        load(path, sampling_rate=0)


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_downmix_is_the_average_before_resampling(write, speech, channels):
    rate = 44100
    samples = np.stack([speech(20000, rate, seed=c) for c in range(channels)], axis=1)
    path = write(samples, rate)
    mono = samples.astype(np.float64).mean(axis=1).astype(np.float32)
    # float32 sums of 8 terms below 1 differ from the float64 mean by a few 6e-8
    np.testing.assert_allclose(load(path), load(write(mono, rate)), rtol=0, atol=5e-7)


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")])
@pytest.mark.parametrize(
    ("begin", "end"), [(0.0, 1.0), (0.5, 1.5), (0.29, 0.58), (7.3, None), (None, 0.01), (7.9999, 8.0), (-1, -1), (-1, 2.5)]
)
def test_segment_equals_slice_of_the_whole(write, speech, extension, subtype, begin, end):
    # 0.29 · 16000 is 4639.999… in floating point; the segment must begin at sample 4640
    path = write(speech(128000), extension=extension, subtype=subtype)
    whole = load(path)
    start = 0 if begin in (None, -1) else round(begin * 16000)
    stop = 128000 if end in (None, -1) else round(end * 16000)
    np.testing.assert_array_equal(load(path, begin=begin, end=end), whole[start:stop])


@pytest.mark.parametrize(("extension", "subtype"), LOSSY)
def test_segment_of_lossy_formats(write, speech, extension, subtype):
    path = write(speech(128000), extension=extension, subtype=subtype)
    segment = load(path, begin=3.1, end=5.6)
    assert segment.shape == (40000,)
    # decoders restart with slightly other state after a seek
    np.testing.assert_allclose(segment, load(path)[49600:89600], rtol=0, atol=5e-3)


def test_segment_at_another_rate(write, speech):
    path = write(speech(44100 * 3, 44100), 44100)
    segment = load(path, begin=1.0, end=2.0)
    assert segment.shape == (16000,)
    # resampled alone, so only the filter's ends see other neighbours
    np.testing.assert_allclose(segment[200:-200], load(path)[16200:31800], rtol=0, atol=1e-4)


def test_blocks_join(write, speech):
    """More than one block of 65536 frames, the last one short."""
    samples = speech(150001)
    np.testing.assert_array_equal(load(write(samples)), samples)


@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview, os.fspath])
def test_kinds_of_source(write, speech, kind):
    samples = speech(4000)
    path = write(samples)
    source = kind(path) if kind in (str, os.fspath) else kind(path.read_bytes())
    np.testing.assert_array_equal(load(source), samples)
    assert duration(source) == 0.25


@pytest.mark.parametrize("source", [None, 3, np.zeros(800, np.float32), io.BytesIO(b"RIFF")])
def test_other_sources_are_refused(source):
    with pytest.raises(TypeError, match="expected a path or the bytes of a file"):
        load(source)


def test_end_may_pass_the_recording_by_a_hair(write, speech):
    samples = speech(16000)
    path = write(samples)
    np.testing.assert_array_equal(load(path, begin=0.5, end=1.05), samples[8000:])
    with pytest.raises(InputError, match=r"end_time 1\.051 is past the recording's end at 1 s"):
        load(path, end=1.051)


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [
        (7.2, 3.1, "begin_time 7.2 is past end_time 3.1"),
        (3.1, 3.1, "begin_time 3.1 is end_time 3.1"),
        (0, 0, "begin_time 0 is end_time 0"),
        (0.5, 9.0, "end_time 9 is past the recording's end at 1 s"),
        (1.0, None, "begin_time 1 is past the recording's end at 1 s"),
        (5.0, 6.0, "begin_time 5 is past the recording's end at 1 s"),
        (0.5, 0.500001, "the segment from 0.5 to 0.5 s holds no samples"),
        (math.nan, None, "begin_time must be a finite number of seconds or null, got nan"),
        (None, math.inf, "end_time must be a finite number of seconds or null, got inf"),
        (-math.inf, None, "begin_time must be a finite number"),
        ("0.5", None, "begin_time must be a finite number of seconds or null, got '0.5'"),
    ],
)
def test_bad_segments(write, speech, begin, end, message):
    path = write(speech(16000))
    with pytest.raises(InputError) as caught:
        load(path, begin=begin, end=end)
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(InputError) as caught:
        load(path, begin=begin, end=end, name="train.jsonl:7")
    assert str(caught.value).startswith(f"train.jsonl:7: {path}: {message}")
    with pytest.raises(InputError) as caught:
        load(path.read_bytes(), begin=begin, end=end)
    assert str(caught.value).startswith(f"audio bytes: {message}")


@pytest.mark.parametrize("read", [load, duration])
def test_missing_unreadable_and_empty_files(tmp_path, write, read):
    garbage, nothing, text = tmp_path / "garbage.wav", tmp_path / "nothing.wav", tmp_path / "text.raw"
    garbage.write_bytes(np.random.default_rng(0).bytes(5000))
    nothing.write_bytes(b"")
    text.write_text("hello")
    for path, message in (
        (tmp_path / "absent.wav", "no such file"),
        (tmp_path, "not a regular file but a folder"),
        (garbage, "not audio: its first bytes are"),
        (text, "not audio: it is text that begins with 'hello'"),
        (nothing, "the file is empty"),
        (write(np.zeros(0, np.float32)), "the recording holds no samples"),
    ):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: {message}")
        with pytest.raises(InputError) as caught:
            read(path, name="dev.jsonl:3")
        assert str(caught.value).startswith(f"dev.jsonl:3: {path}: {message}")
    with pytest.raises(InputError, match=r"^audio bytes: the file is empty"):
        read(b"")
    with pytest.raises(InputError, match=r"^upload: not audio"):
        read(b"hello world", name="upload")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_no_permission(write, speech):
    path = write(speech(800))
    path.chmod(0)
    with pytest.raises(InputError, match="no permission"):
        load(path)


# 0.5: half of it gone; 0.97: the end of a sentence, the cut that does the most harm unseen
@pytest.mark.parametrize("fraction", [0.5, 0.97])
@pytest.mark.parametrize(
    ("extension", "subtype"),
    [
        ("wav", "PCM_16"),
        ("wav", "FLOAT"),
        ("aiff", "PCM_16"),
        ("au", "PCM_16"),
        ("w64", "PCM_16"),
        ("rf64", "PCM_16"),
        ("flac", "PCM_16"),
        *LOSSY,
    ],
)
def test_truncated_files(write, speech, extension, subtype, fraction):
    path = cut(write(speech(128000), extension=extension, subtype=subtype), fraction)
    with pytest.raises(InputError, match="truncated") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match=r"truncated|past the recording's end"):
        load(path, begin=1.0, end=7.99)
    # what is asked for and still there is given
    assert load(path, begin=0.25, end=1.0).shape == (12000,)


def test_a_wav_from_a_pipe_is_whole(write, speech):
    """A writer that could not seek back leaves 0xFFFFFFFF or 0 as sizes."""
    samples = speech(16000)
    data = write(samples, subtype="PCM_16").read_bytes()
    at = data.index(b"data") + 4
    for riff, chunk in ((b"\xff" * 4, b"\xff" * 4), (b"\x08\0\0\0", b"\0" * 4)):
        streamed = data[:4] + riff + data[8:at] + chunk + data[at + 4 :]
        np.testing.assert_array_equal(load(streamed), load(data))


def untagged(data):
    """The MP3 without its first frame, which holds the length tag."""
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    assert tag > 0
    return data[data.index(data[:2], tag) :]


def test_an_mp3_without_a_length_tag(write, speech):
    """The decoder extrapolates from the first frames, which would cut a variable bit rate in silence: its frames are counted first."""
    samples = speech(128000) * np.repeat([0.0, 1.0], 64000).astype(np.float32)
    for kind, level in (("CONSTANT", 0.5), ("VARIABLE", 0.3)):
        path = write(samples[::-1].copy(), extension="mp3", subtype="MPEG_LAYER_III", bitrate_mode=kind, compression_level=level)
        data = untagged(path.read_bytes())
        if kind == "VARIABLE":
            with soundfile.SoundFile(io.BytesIO(data)) as recording:
                assert recording.frames < 120000, "the decoder's estimate is no longer wrong: counting frames can go"
        loaded = load(data)
        # without the tag the encoder's delay of up to three frames of 576 samples stays in
        assert 128000 <= len(loaded) <= 128000 + 3 * 576
        tagged = load(path)
        lag = max(range(3 * 576), key=lambda lag: np.dot(loaded[lag : lag + 60000], tagged[:60000]))
        np.testing.assert_allclose(loaded[lag : lag + len(tagged)], tagged[: len(loaded) - lag], rtol=0, atol=1e-4)
        assert duration(data) == pytest.approx(len(loaded) / 16000, abs=0.001)
        assert load(data, end=1.0).shape == (16000,)
        assert load(data, begin=7.5).shape == (len(loaded) - 120000,)


def test_id3_tags_do_not_disturb(write, speech):
    path = write(speech(128000), extension="mp3", subtype="MPEG_LAYER_III")
    tagged = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257) + path.read_bytes() + b"TAG" + bytes(125)
    np.testing.assert_array_equal(load(tagged), load(path))
    with pytest.raises(InputError, match="truncated"):
        load(tagged[: len(tagged) // 2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_nonfinite_samples(write, speech, value, channels):
    samples = np.stack([speech(32000)] * channels, axis=1)
    samples[24000, -1] = value
    path = write(samples)
    with pytest.raises(InputError, match=r"NaN or infinite sample at 1.500 s"):
        load(path)
    with pytest.raises(InputError, match=r"at 1.500 s"):
        load(path, begin=1.25)
    assert len(load(path, end=1.25)) == 20000


def test_opposite_infinities_are_seen(write):
    samples = np.zeros((1000, 2), np.float32)
    samples[10] = np.inf, -np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        load(write(samples))


def test_too_many_channels(write):
    with pytest.raises(InputError, match="9 channels, at most 8"):
        load(write(np.zeros((1000, 9), np.float32)))


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_absurd_sampling_rate(write, rate):
    with pytest.raises(InputError, match=f"a sampling rate of {rate} Hz is outside 1000 to 1000000 Hz"):
        load(write(np.zeros(1000, np.float32), rate))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_max_seconds(write, speech, rate):
    path = write(speech(2 * rate, rate), rate)
    assert len(load(path, max_seconds=2.0)) == 32000
    assert len(load(path, end=0.7, max_seconds=0.7)) == 11200
    with pytest.raises(InputError, match=r"2 s of audio, over the limit of 1.99 s: split it"):
        load(path, max_seconds=1.99)
    longer = write(speech(2 * rate + 1, rate), rate)
    with pytest.raises(InputError, match="over the limit of 2 s"):
        load(longer, max_seconds=2.0)


def test_missing_packages_are_named(write, speech, monkeypatch):
    path = write(speech(800), 8000)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match=r"needs soxr: pip install -e '\.\[asr\]'"):
        load(path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"needs soundfile: pip install -e '\.\[asr\]'"):
        load(path)


def test_log_mel_works_without_decoders():
    code = """if True:
        import sys
        sys.modules["soundfile"] = sys.modules["soxr"] = None
        import numpy, arkfast.audio
        print(arkfast.audio.LogMel()([numpy.zeros(800, "float32")])[0].shape)
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "(1, 128, 5)"


def test_real_recordings(recordings):
    for path in recordings:
        whole = load(path)
        seconds = duration(path)
        assert len(whole) == pytest.approx(seconds * 16000, abs=1)
        assert 0.01 < np.abs(whole).max() <= 1.1
        middle = load(path, begin=1.0, end=2.0)
        assert middle.shape == (16000,)
        assert correlation(middle[500:-500], whole[16500:31500]) > 0.999
        features, frames = LogMel()([middle])
        assert frames.tolist() == [100]
        np.testing.assert_allclose(features[0], log_mel_reference(middle)[0], rtol=0, atol=1e-6)
