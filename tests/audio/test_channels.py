"""Channels and audio tracks: which of several are heard, said in what comes back, and refused where they are not there."""

import io

import numpy as np
import pytest
import soundfile

from arkfast.audio import duration, extent, load, read
from arkfast.audio.channels import ALL, parse_channel
from arkfast.records import InputError


def encoded(samples: np.ndarray, form: str = "WAV", subtype: str = "FLOAT", rate: int = 16000) -> bytes:
    """A file's bytes, of samples [n] or [n, channels]."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return stream.getvalue()


@pytest.fixture(scope="module")
def talkers(speech) -> np.ndarray:
    """[n, 3]: a talker on each channel, the second one after the first."""
    n = 32000
    both = np.stack([speech(n, seed=seed) for seed in (1, 2, 3)], axis=1)
    both[n // 2 :, 0] = 0
    both[: n // 2, 1] = 0
    return both


def test_each_channel_is_its_talker(talkers):
    data = encoded(talkers)
    for channel in range(3):
        np.testing.assert_array_equal(load(data, channel=channel), talkers[:, channel])
    np.testing.assert_array_equal(load(data, channel=1, begin=0.25, end=1.5), talkers[4000:24000, 1])
    np.testing.assert_allclose(load(data, channel=(2, 0)), (talkers[:, 2] + talkers[:, 0]) / 2, atol=1e-7)
    for all_of_them in (None, ALL):
        np.testing.assert_allclose(load(data, channel=all_of_them), talkers.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_in_compressed_formats_too(talkers, form, subtype):
    data = encoded(talkers[:, :2], form, subtype)
    for channel in range(2):
        heard, spoken = load(data, channel=channel), talkers[:, channel]
        assert np.corrcoef(heard, spoken)[0, 1] > 0.98


def test_what_was_heard_of_several_is_said(talkers):
    data = encoded(talkers)
    assert read(data, channel=1).used == {"channel": 1, "channels": 3}
    assert read(data, channel=[2, 0]).used == {"channel": [2, 0], "channels": 3}
    assert read(data).used == {"channel": "average", "channels": 3}
    assert read(encoded(talkers[:, 0])).used == {}
    assert read(encoded(talkers[:, 0]), channel=0).used == {}


@pytest.mark.parametrize("channel", [3, -1, (0, 7)])
def test_a_channel_that_is_not_there(talkers, channel):
    number = channel if isinstance(channel, int) else channel[1]
    for find in (load, duration, extent):
        with pytest.raises(InputError, match=f"^row 4: there is no channel {number}: the recording has 3 channels, numbers 0 to 2$"):
            find(encoded(talkers), channel=channel, name="row 4")
    with pytest.raises(InputError, match="there is no channel 1: the recording has one channel, number 0"):
        load(encoded(talkers[:, 0]), channel=1)


def test_one_channel_of_a_multitrack_session(talkers):
    session = np.repeat(talkers[:, :1], 16, axis=1) * np.linspace(0.1, 1, 16, dtype=np.float32)
    data = encoded(session)
    with pytest.raises(InputError, match="16 channels, at most 8"):
        load(data)
    np.testing.assert_array_equal(load(data, channel=15), session[:, 15])


def test_a_damaged_channel_spoils_only_what_hears_it(talkers):
    broken = talkers.copy()
    broken[100, 2] = np.nan
    assert len(load(encoded(broken), channel=[0, 1])) == len(talkers)
    with pytest.raises(InputError, match=r"NaN or infinite sample at 0\.006 s"):
        load(encoded(broken))


@pytest.fixture(scope="module")
def film(tmp_path_factory, talkers) -> bytes:
    """A Matroska file with three audio tracks: a talker each, the third in stereo."""
    av = pytest.importorskip("av", reason="PyAV is not installed: the extra containers brings it")
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    with av.open(str(path), "w") as container:
        layouts = ("mono", "mono", "stereo")
        tracks = [container.add_stream("pcm_f32le", rate=16000, layout=layout) for layout in layouts]
        for number, (track, layout) in enumerate(zip(tracks, layouts, strict=True)):
            packed = talkers[:, number : number + 1] if layout == "mono" else talkers[:, :2]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed.reshape(1, -1)), "flt", layout)
            frame.rate = 16000
            for packet in [*track.encode(frame), *track.encode(None)]:
                container.mux(packet)
    return path.read_bytes()


def test_audio_tracks(film, talkers):
    for track in (0, 1):
        heard = read(film, audio_track=track)
        np.testing.assert_array_equal(heard.samples, talkers[:, track])
        assert heard.used == {"audio_track": track, "audio_tracks": 3}
    assert read(film).used == {"audio_track": 0, "audio_tracks": 3}, "the first without a choice, and it is said"
    heard = read(film, audio_track=2, channel=1)
    np.testing.assert_array_equal(heard.samples, talkers[:, 1])
    assert heard.used == {"channel": 1, "channels": 2, "audio_track": 2, "audio_tracks": 3}
    assert extent(film, audio_track=2).channels == 2
    assert extent(film).channels == 1


def test_an_audio_track_that_is_not_there(film, talkers):
    for find in (load, duration):
        with pytest.raises(InputError, match="there is no audio track 3: the file has 3 audio tracks, numbers 0 to 2"):
            find(film, audio_track=3)
        with pytest.raises(InputError, match="there is no audio track 1: the file has one audio track, number 0"):
            find(encoded(talkers), audio_track=1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0, (0,)),
        (3.0, (3,)),
        ("1", (1,)),
        ("0, 2", (0, 2)),
        ([1], (1,)),
        ((2, 1), (2, 1)),
        ("average", ALL),
        (" Average ", ALL),
        (None, None),
    ],
)
def test_how_channels_are_written(written, meant):
    assert parse_channel(written) == meant


@pytest.mark.parametrize("written", [-1, 1.5, float("nan"), True, "", "left", "0,", "-1", "²", [], [0, 0], [0, "x"], {}, 1 << 40])
def test_what_names_no_channel(written):
    with pytest.raises(ValueError, match="expected a channel's number from 0"):
        parse_channel(written)
