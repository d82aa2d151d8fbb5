"""Recordings that PyAV decodes: start, length and values, segments, timelines, and damage."""

import io
import math
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

from arkfast.audio import duration, load
from arkfast.records import InputError

av = pytest.importorskip("av", reason="PyAV is not installed: the extra containers brings it")

NOISE = np.random.default_rng(5).bytes(200000)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}


def encode(path: Path, samples, rate, form, codec, *, delay=0, pause=0, layout="mono", **options):
    """The bytes of a container with [n] or [n, 2] samples that begin ``delay`` samples late and pause for ``pause`` in the middle."""
    channels = samples.reshape(len(samples), -1).T.astype(np.float32)
    with av.open(str(path), "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.format = track.codec_context.codec.audio_formats[0].name
        track.bit_rate = 96000 if codec != "libopencore_amrnb" else 12200
        to_format = av.AudioResampler(format=track.format.name, layout=layout, rate=rate)
        for at in range(0, len(samples), 1024):
            piece = np.ascontiguousarray(channels[:, at : at + 1024].T).reshape(1, -1)  # packed: PyAV cannot fill eight planes
            frame = av.AudioFrame.from_ndarray(piece, "flt", layout)
            frame.rate, frame.pts = rate, delay + at + (pause if at >= len(samples) // 2 else 0)
            for converted in to_format.resample(frame):
                container.mux(track.encode(converted))
        for converted in to_format.resample(None):
            container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def make(tmp_path_factory, speech):
    """make(form, codec, rate, seconds=3.3, **) → (bytes of the container, the samples in it), each made once."""
    made = {}

    def make(form, codec, rate, seconds=3.3, **options):
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no encoder {codec}")
        key = (form, codec, rate, seconds, *options.items())
        if key not in made:
            samples = speech(round(seconds * rate), rate)
            made[key] = encode(tmp_path_factory.mktemp("made") / "clip", samples, rate, form, codec, **options), samples
        return made[key]

    return make


def correlation(a, b):
    assert len(a) == len(b)
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


# What the encoder adds: an mp4's edit list and a webm's padding cut it off; other containers keep the last frame's filling.
LOSSY = [
    ("ipod", "aac", 44100, 0),
    ("mp4", "aac", 16000, 0),
    ("mov", "aac", 48000, 0),
    ("mp4", "libopus", 48000, 0),
    ("mp4", "libmp3lame", 16000, 0),
    ("webm", "libopus", 48000, 0),
    ("matroska", "aac", 16000, 1024),
]


@pytest.mark.parametrize(("form", "codec", "rate", "filling"), LOSSY)
def test_starts_and_ends_where_the_container_says(make, form, codec, rate, filling):
    """The encoder's priming (1024 samples of AAC, 312 of Opus) is gone: shifted by a sample, the result correlates less."""
    data, samples = make(form, codec, rate)
    loaded = load(data, sampling_rate=rate)
    assert len(samples) <= len(loaded) <= len(samples) + filling
    aligned = correlation(loaded[: len(samples)], samples)
    assert aligned > 0.97
    for shift in (1, 2, 5):
        assert correlation(loaded[shift : len(samples)], samples[:-shift]) < aligned
        assert correlation(loaded[: len(samples) - shift], samples[shift:]) < aligned
    assert duration(data) == pytest.approx(len(samples) / rate, abs=0.1)
    assert len(load(data)) == math.ceil(len(loaded) * 16000 / rate)


@pytest.mark.parametrize(
    ("form", "codec"),
    [("ipod", "alac"), ("mov", "pcm_u8"), ("mov", "pcm_s16le"), ("mov", "pcm_f32le"), ("mp4", "flac"), ("matroska", "flac")],
)
def test_lossless_tracks(make, form, codec):
    data, samples = make(form, codec, 16000)
    loaded = load(data)
    assert loaded.dtype == np.float32
    # the encoder's rounding to 16 bits, or 8
    np.testing.assert_allclose(loaded, samples, rtol=0, atol=1 / 128 if codec == "pcm_u8" else 1 / 32768)
    assert duration(data) == pytest.approx(3.3, abs=0.001)


@pytest.mark.parametrize(
    ("form", "codec", "rate", "priming"), [("adts", "aac", 16000, range(1024, 1025)), ("amr", "libopencore_amrnb", 8000, range(1, 161))]
)
def test_raw_streams_keep_their_priming(make, form, codec, rate, priming):
    """Nothing in them says what to leave out, nor how long they are: the length is that of all frames."""
    data, samples = make(form, codec, rate)
    loaded = load(data, sampling_rate=rate)
    assert len(samples) <= len(loaded) <= len(samples) + 2 * 1024
    assert duration(data) == pytest.approx(len(loaded) / rate, abs=0.001)
    assert max(range(1200), key=lambda lag: np.dot(loaded[lag : lag + 20000], samples[:20000])) in priming
    np.testing.assert_array_equal(load(data, sampling_rate=rate, begin=1, end=2), loaded[rate : 2 * rate])
    with pytest.raises(InputError, match=r"end_time 9 is past the recording's end at 3\.[34]"):
        load(data, end=9)
    with pytest.raises(InputError, match="no samples from 5 s on: begin_time is past the recording's end"):
        load(data, begin=5)


def test_wma(make):
    data, samples = make("asf", "wmav2", 44100)
    loaded = load(data, sampling_rate=44100)
    assert len(samples) <= len(loaded) <= len(samples) + 3 * 2048
    assert duration(data) == pytest.approx(len(loaded) / 44100, abs=0.1)
    # nothing in it says what of the start is the encoder's
    lag = max(range(3 * 2048), key=lambda lag: np.dot(loaded[lag : lag + 40000], samples[:40000]))
    assert correlation(loaded[lag : lag + 100000], samples[:100000]) > 0.9


def test_stereo_is_averaged(tmp_path, speech):
    samples = np.stack([speech(32000), speech(32000, seed=1)], axis=1)
    data = encode(tmp_path / "clip", samples, 16000, "ipod", "alac", layout="stereo")
    np.testing.assert_allclose(load(data), samples.mean(axis=1), rtol=0, atol=1 / 32768)


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8)])
def test_surround(tmp_path, speech, layout, channels):
    """Of eight planes PyAV would read a ninth, and the process would end."""
    samples = np.stack([speech(32000, seed=seed) for seed in range(channels)], axis=1)
    data = encode(tmp_path / "clip", samples, 16000, "matroska", "flac", layout=layout)
    np.testing.assert_allclose(load(data), samples.mean(axis=1), rtol=0, atol=1 / 32768)
    data = encode(tmp_path / "clip", samples, 48000, "ipod", "aac", layout=layout)
    loaded = load(data, sampling_rate=48000)
    assert correlation(loaded[:31000], samples.mean(axis=1)[:31000]) > 0.9


@pytest.mark.parametrize(("form", "codec", "rate"), [("ipod", "aac", 44100), ("webm", "libopus", 48000), ("ipod", "alac", 16000)])
@pytest.mark.parametrize(("begin", "end"), [(0, 0.5), (1.1, 2.2), (2.999, None), (0.0001, 3.3), (-1, 0.02)])
def test_a_segment_is_a_slice(make, form, codec, rate, begin, end):
    """Decoded from the start, so nothing depends on where it begins."""
    data, _ = make(form, codec, rate)
    whole = load(data, sampling_rate=rate)
    start, stop = round(max(begin, 0) * rate), None if end is None else round(end * rate)
    np.testing.assert_array_equal(load(data, sampling_rate=rate, begin=begin, end=end), whole[start:stop])


@pytest.mark.parametrize("extension", ["m4a", "wav", "bin"])
def test_paths_and_bytes(tmp_path, make, extension):
    data, _ = make("ipod", "aac", 16000)
    path = tmp_path / f"clip.{extension}"
    path.write_bytes(data)
    np.testing.assert_array_equal(load(path), load(data))
    np.testing.assert_array_equal(load(bytearray(data)), load(data))


def test_a_path_is_never_a_protocol(tmp_path, make, monkeypatch):
    """FFmpeg would read ``concat:a|b`` and addresses; here a path names a file."""
    data, _ = make("ipod", "aac", 16000)
    monkeypatch.chdir(tmp_path)
    Path("concat:clip").write_bytes(data)
    assert len(load("concat:clip")) == 52800
    with pytest.raises(InputError, match="no such file"):
        load("file:clip")


def test_a_track_that_starts_late_starts_late(make):
    """An mp4's movie time has a zero; times in a webm count from its first track, so that a piece of a stream begins at once."""
    data, samples = make("mp4", "aac", 16000, delay=8000)
    loaded = load(data)
    assert len(loaded) == 8000 + len(samples)
    assert (loaded[: 8000 - 1024] == 0).all()  # then the encoder's priming, which the file counts as audio here
    assert correlation(loaded[8000:], samples) > 0.97
    np.testing.assert_array_equal(load(data, begin=0.25, end=1.5), loaded[4000:24000])
    np.testing.assert_array_equal(load(data, begin=0.1, end=0.2), np.zeros(1600))
    assert duration(data) == pytest.approx(len(loaded) / 16000, abs=0.001)
    data, samples = make("webm", "libopus", 48000, delay=48000 * 100)
    assert correlation(load(data, sampling_rate=48000)[48:], samples[48:]) > 0.95
    assert duration(data) == pytest.approx(3.3, abs=0.05)


@pytest.mark.parametrize(("form", "codec", "rate"), [("mp4", "aac", 16000), ("webm", "libopus", 48000)])
def test_a_jump_in_the_timestamps_is_refused(make, form, codec, rate):
    data, _ = make(form, codec, rate, pause=rate // 2)
    with pytest.raises(
        InputError, match=r"damaged or recorded with pauses: after 1\.\d+ s its timestamps jump by 0\.50 s; export it again"
    ):
        load(data)
    assert len(load(data, end=1.5)) == 24000


@pytest.mark.parametrize(
    ("form", "codec", "rate", "options"), [("mp4", "aac", 16000, FRAGMENTS), ("webm", "libopus", 48000, {"live": "1"})]
)
def test_streams_without_a_length(make, form, codec, rate, options):
    data, samples = make(form, codec, rate, **options)
    loaded = load(data, sampling_rate=rate)
    assert len(samples) <= len(loaded) <= len(samples) + 2 * 1024
    assert duration(data) == pytest.approx(len(loaded) / rate, abs=0.1)
    with pytest.raises(InputError, match="more s of audio, over the limit of 2 s: split it"):
        load(data, max_seconds=2)
    assert len(load(data, end=2, max_seconds=2)) == 32000


def test_a_flac_from_a_pipe(speech):
    """Its header does not count the samples."""
    stream = io.BytesIO()
    soundfile.write(stream, speech(150001), 16000, format="FLAC", subtype="PCM_16")
    data = stream.getvalue()
    piped = data[:18] + (int.from_bytes(data[18:26], "big") >> 36 << 36).to_bytes(8, "big") + data[26:]
    np.testing.assert_array_equal(load(piped), load(data))
    np.testing.assert_array_equal(load(piped + b"TAG" + bytes(125)), load(data))
    np.testing.assert_array_equal(load(piped, begin=1, end=9.3), load(data, begin=1, end=9.3))
    assert duration(piped) == pytest.approx(150001 / 16000)
    for at in range(200, len(piped) - 3000, len(piped) // 7):
        for damaged in (piped[:at], piped[:at] + NOISE[:10] + piped[at + 10 :], piped[:at] + NOISE[: len(piped) - at]):
            with pytest.raises(InputError, match="truncated or damaged"):
                load(damaged)


def test_limits(make):
    data, _ = make("ipod", "aac", 16000)
    assert len(load(data, max_seconds=3.3)) == 52800
    with pytest.raises(InputError, match=r"3\.3 s of audio, over the limit of 3\.29 s: split it"):
        load(data, max_seconds=3.29)
    webm, samples = make("webm", "libopus", 48000, seconds=3)
    # its header counts the priming too, and what fits is not refused for that
    assert len(load(webm, max_seconds=3.0, sampling_rate=48000)) == len(samples)
    with pytest.raises(InputError, match=r"over the limit of 2\.9 s"):
        load(webm, max_seconds=2.9)


@pytest.mark.parametrize(("form", "codec", "rate"), [("ipod", "aac", 16000), ("webm", "libopus", 48000)])
def test_a_header_that_lies_about_ten_hours(make, form, codec, rate):
    honest, _ = make(form, codec, rate)
    if form == "webm":
        at = honest.index(b"\x44\x89\x88") + 3  # Duration, a float64 in ms
        lying = honest[:at] + np.array([36e6], ">f8").tobytes() + honest[at + 8 :]
    else:
        lying = bytearray(honest)
        for box, offset, scale in (
            (b"mvhd", 20, 1000),
            (b"tkhd", 24, 1000),
            (b"mdhd", 20, rate),
            (b"elst", 12, 1000),
            (b"stts", 12, rate / 1024),
        ):
            at = honest.index(box) + offset
            lying[at : at + 4] = np.array([36000 * scale], ">u4").tobytes()
        lying = bytes(lying)
    assert duration(lying) == pytest.approx(36000, abs=1)
    with pytest.raises(InputError, match="over the limit of 21600 s"):
        load(lying)
    with pytest.raises(InputError, match=r"truncated: the decoder stopped at 3\.\d+ s of the 3600\d?(\.\d+)? s that the header announces"):
        load(lying, max_seconds=None)
    np.testing.assert_array_equal(load(lying, begin=1, end=2), load(honest, begin=1, end=2))


DAMAGED = [
    ("ipod", "aac", 44100, {}),
    ("mp4", "aac", 16000, {"movflags": "faststart"}),
    ("mp4", "aac", 16000, FRAGMENTS),
    ("webm", "libopus", 48000, {}),
    ("matroska", "aac", 16000, {}),
    ("asf", "wmav2", 44100, {}),
    ("adts", "aac", 16000, {}),
    ("amr", "libopencore_amrnb", 8000, {}),
]


@pytest.mark.parametrize(("form", "codec", "rate", "options"), DAMAGED)
def test_cut_files(make, form, codec, rate, options):
    data, _ = make(form, codec, rate, seconds=6, **options)
    for fraction in (0.3, 0.5, 0.9):
        # within a frame: a raw stream that ends between two is whole for all that it says
        with pytest.raises(InputError, match=r"^audio bytes: truncated"):
            load(data[: int(fraction * len(data)) // 32 * 32 + 17])


@pytest.mark.parametrize(("form", "codec", "rate", "options"), DAMAGED)
def test_noise_behind_a_good_header(make, form, codec, rate, options):
    data, _ = make(form, codec, rate, seconds=6, **options)
    for at in (200, len(data) // 4, len(data) // 2):
        for length in (2000, len(data) - at):
            with pytest.raises(InputError, match=r"^audio bytes: (truncated|damaged|no audio track)"):
                load(data[:at] + NOISE[:length] + data[at + length :])


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["noise", "cut", "insert", "drop"]), st.floats(0, 1), st.integers(1, 2000)), min_size=1, max_size=3
)


@hypothesis.given(file=st.sampled_from(DAMAGED), mutations=MUTATIONS)
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_no_damage_gives_another_kind_of_error(make, file, mutations):
    """Whatever happens to the bytes: finite samples within the limit, or an InputError."""
    form, codec, rate, options = file
    data, _ = make(form, codec, rate, seconds=2, **options)
    for kind, where, count in mutations:
        at = int(where * where * len(data))  # rather in the header
        keep = at + count if kind in ("noise", "drop") else len(data) if kind == "cut" else at
        data = data[:at] + (NOISE[:count] if kind in ("noise", "insert") else b"") + data[keep:]
    try:
        samples = load(data, max_seconds=60)
    except InputError:
        return
    assert np.isfinite(samples).all()
    assert 1 <= len(samples) <= 60 * 16000


@pytest.mark.parametrize("length", [8, 12, 30, 60, 300])
@pytest.mark.parametrize(("form", "codec", "rate"), [("mp4", "aac", 16000), ("webm", "libopus", 48000), ("adts", "aac", 16000)])
def test_hardly_more_than_a_magic_number(make, form, codec, rate, length):
    data, _ = make(form, codec, rate)
    for read in (load, duration):
        with pytest.raises(InputError, match=r"^audio bytes: "):
            read(data[:length])


def test_a_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "clip"), "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width = track.height = 64
        track.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(track.encode(None))
    with pytest.raises(InputError, match=r"clip: no audio track in it"):
        load(tmp_path / "clip")


def test_tags_in_old_code_pages(make):
    data, _ = make("ipod", "aac", 16000)
    with av.open(io.BytesIO(data)) as source:
        stream = io.BytesIO()
        with av.open(stream, "w", format="matroska") as target:
            target.metadata["title"] = "XXXX"
            copy = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
    tagged = stream.getvalue()
    assert b"XXXX" in tagged
    assert len(load(tagged.replace(b"XXXX", b"\xff\xfe\xe9\xe8"))) == len(load(tagged))
