"""Recordings without a header, known by their suffix, and codecs and containers that libsndfile refuses and PyAV reads."""

import io
import struct
import sys

import numpy as np
import pytest
import soundfile

from arkfast.audio import duration, load, read
from arkfast.records import InputError

av = pytest.importorskip("av", reason="PyAV is not installed: the extra containers brings it")


def raw(samples, subtype):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 8000, format="RAW", subtype=subtype, endian="LITTLE")
    return stream.getvalue()


def correlation(a, b):
    count = min(len(a), len(b))
    return float(np.dot(a[:count], b[:count]) / np.sqrt(np.dot(a[:count], a[:count]) * np.dot(b[:count], b[:count])))


def g711_ulaw(code):
    """A µ-law byte as a sample, from ITU-T G.711's segments: a sign, three bits of exponent, four of mantissa, all inverted."""
    code = ~code & 0xFF
    size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return (-size if code & 128 else size) / 32768


def g711_alaw(code):
    """An A-law byte as a sample, from ITU-T G.711's segments: even bits are inverted, a set sign is positive."""
    code ^= 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    size = (mantissa << 4) + 8 if exponent == 0 else (mantissa << 4) + 264 << exponent - 1
    return (size if code & 128 else -size) / 32768


@pytest.mark.parametrize(
    ("suffixes", "decode", "name"),
    [((".ul", ".ulaw", ".ULAW", ".mu", ".pcmu"), g711_ulaw, "µ-law"), ((".al", ".alaw", ".pcma"), g711_alaw, "A-law")],
)
def test_g711_by_its_suffix(tmp_path, suffixes, decode, name):
    codes = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    for suffix in suffixes:
        path = tmp_path / f"clip{suffix}"
        path.write_bytes(codes.tobytes())
        loaded, warnings, _ = read(path, sampling_rate=8000)
        np.testing.assert_allclose(loaded, [decode(int(code)) for code in codes], rtol=0, atol=1e-7)
        assert f"without a header, taken for {name} at 8000 Hz by its suffix" in warnings
        assert duration(path) == 0.5
        np.testing.assert_array_equal(load(path, begin=0.1, end=0.2, sampling_rate=8000), loaded[800:1600])


@pytest.mark.parametrize(("suffix", "rate"), [(".sln", 8000), (".sln16", 16000), (".sln44", 44100), (".sln192", 192000)])
def test_signed_linear_says_its_rate_in_its_suffix(tmp_path, speech, suffix, rate):
    samples = np.round(20000 * speech(rate // 2, rate)).astype("<i2")
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(samples.tobytes())
    np.testing.assert_array_equal(load(path, sampling_rate=rate), samples / np.float32(32768))
    assert duration(path) == 0.5
    path.write_bytes(samples.tobytes()[:-1])
    with pytest.raises(InputError, match=r"truncated: signed linear comes in frames of 2 bytes, and its \d+ bytes end within one"):
        load(path)


def test_gsm(tmp_path, speech):
    samples = speech(16000, 8000)
    path = tmp_path / "clip.gsm"
    path.write_bytes(raw(samples, "GSM610"))
    loaded = load(path, sampling_rate=8000)
    assert len(loaded) == 16000
    assert correlation(loaded, samples) > 0.9
    path.write_bytes(raw(samples, "GSM610")[:-7])
    with pytest.raises(InputError, match=r"clip\.gsm: truncated: GSM 06\.10 comes in frames of 33 bytes"):
        load(path)
    path.write_bytes(b"\x8d" * 330)
    with pytest.raises(InputError, match=r"not audio: its suffix stands for GSM 06\.10 and its frames do not begin as that has it"):
        load(path)


def test_g722(tmp_path, speech):
    samples = speech(32000)
    path = tmp_path / "clip.g722"
    path.write_bytes(encode(samples, 16000, "g722", "g722", tmp_path))
    loaded, warnings, _ = read(path)
    assert abs(len(loaded) - 32000) <= 32
    assert max(correlation(loaded[lag:], samples) for lag in range(40)) > 0.95
    assert warnings == ("without a header, taken for G.722 at 16000 Hz by its suffix",)
    assert duration(path) == pytest.approx(len(loaded) / 16000)
    np.testing.assert_array_equal(load(path, begin=0.5, end=1), loaded[8000:16000])


def test_what_a_suffix_does_not_decide(tmp_path, speech):
    """Known first bytes say more; text, pages and zeros are no audio whatever they are called; silence in µ-law is no MP3."""
    stream = io.BytesIO()
    soundfile.write(stream, speech(8000, 8000), 8000, format="WAV", subtype="PCM_16")
    path = tmp_path / "clip.ulaw"
    path.write_bytes(stream.getvalue())
    assert read(path).warnings == ()
    for data, message in (
        (b"hello " * 50, "it is text that begins with 'hello"),
        (b"\n<html>" + b" " * 90, "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (bytes(800), "it begins with zeros"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"not audio: {message}"):
            load(path)
    silence = raw(np.concatenate([np.zeros(2000), speech(8000, 8000)]), "ULAW")
    assert silence.startswith(b"\xff\xff\xff")
    path.write_bytes(silence)
    assert duration(path) == 1.25
    assert len(load(silence, name="shard.tar::clip.ulaw")) == 20000
    with pytest.raises(InputError):
        load(silence, name="shard.tar::clip.bin")


def encode(samples, rate, form, codec, folder, layout="mono"):
    """The bytes of a file that PyAV writes."""
    path = folder / "encoded"
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", format=form) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.format = track.codec_context.codec.audio_formats[0].name
        if codec in ("g726", "ac3", "aac", "mp2"):
            track.bit_rate = 32000 if codec == "g726" else 192000
        to_format = av.AudioResampler(format=track.format.name, layout=layout, rate=rate)
        channels = samples.reshape(len(samples), -1).T.astype(np.float32)
        for at in range(0, len(samples), 4096):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels[:, at : at + 4096]), "fltp", layout)
            frame.rate, frame.pts = rate, at
            for converted in to_format.resample(frame):
                container.mux(track.encode(converted))
        for converted in to_format.resample(None):
            container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return path.read_bytes()


# Codec delay in samples that the container does not cut off, and how alike the decoded samples are.
OTHERS = {
    "ogg-flac": ("ogg", "flac", 16000, 0, 0.99999),
    "caf-alac": ("caf", "alac", 16000, 0, 0.99999),
    "wav-g722": ("wav", "g722", 16000, 40, 0.95),
    "wav-g726": ("wav", "g726", 8000, 10, 0.95),
    "wav-ac3": ("wav", "ac3", 44100, 300, 0.95),
    "flv": ("flv", "aac", 44100, 1100, 0.95),
    "ts": ("mpegts", "aac", 44100, 1100, 0.95),
    "avi": ("avi", "pcm_s16le", 16000, 0, 0.99999),
    "avi-mp2": ("avi", "mp2", 44100, 600, 0.95),
    "wv": ("wv", "wavpack", 16000, 0, 0.999),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_libsndfile_refuses_goes_to_pyav(tmp_path, speech, name):
    form, codec, rate, delay, alike = OTHERS[name]
    samples = speech(2 * rate + 100, rate)
    data = encode(samples, rate, form, codec, tmp_path)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(io.BytesIO(data))
    loaded = load(data, sampling_rate=rate)
    assert len(samples) - 10 <= len(loaded) <= len(samples) + 3000
    found = {lag: correlation(loaded[lag:], samples[: len(samples) - lag]) for lag in range(0, max(1, 2 * delay), 1 + delay // 150)}
    assert max(found.values()) > alike
    assert duration(data) == pytest.approx(len(loaded) / rate, abs=0.1)
    np.testing.assert_array_equal(load(data, begin=0.5, end=1, sampling_rate=rate), loaded[rate // 2 : rate])


@pytest.mark.parametrize("name", ["ogg-flac", "wav-g726", "avi", "wv", "flv", "ts"])
def test_damage_is_found_there_too(tmp_path, speech, name):
    form, codec, rate, _, _ = OTHERS[name]
    data = encode(speech(2 * rate, rate), rate, form, codec, tmp_path)
    with pytest.raises(InputError, match=r"truncated|damaged|holds no samples"):
        load(data[: len(data) * 6 // 10 // 188 * 188 + 90])
    with pytest.raises(InputError, match=r"joined to it|chained on|damaged"):
        load(data + data)


def test_a_bad_peak_chunk(speech):
    """libsndfile refuses a WAV whose PEAK chunk is not as long as its channels ask for; the samples are sound."""
    stream = io.BytesIO()
    soundfile.write(stream, speech(8000), 16000, format="WAV", subtype="FLOAT")
    data = stream.getvalue()
    at = data.index(b"PEAK")
    bad = data[: at + 4] + struct.pack("<I", 24) + data[at + 8 : at + 24] + bytes(8) + data[at + 24 :]
    bad = bad[:4] + struct.pack("<I", len(bad) - 8) + bad[8:]
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(io.BytesIO(bad))
    np.testing.assert_array_equal(load(bad), load(data))


def test_without_pyav_the_error_says_what_would_help(tmp_path, speech, monkeypatch):
    data = encode(speech(16000), 16000, "ogg", "flac", tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        InputError, match=r"kind of ogg that libsndfile cannot read \(.*\): PyAV may read it, pip install -e '\.\[containers\]'"
    ):
        load(data)
