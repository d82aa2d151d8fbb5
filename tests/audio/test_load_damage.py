"""Damaged recordings of libsndfile's formats: each gives an InputError, none gives shortened or shifted samples."""

import functools
import io

import hypothesis
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

from arkfast.audio import duration, extent, load
from arkfast.audio.flac import _frame_span, flac_disagreement
from arkfast.audio.ogg import walk_pages
from arkfast.records import InputError

RATE = 16000
NOISE = np.random.default_rng(3).bytes(200000)


def encoded(samples, form, subtype, endian="FILE"):
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format=form, subtype=subtype, endian=endian)
    return stream.getvalue()


@pytest.fixture(scope="module")
def files(speech):
    """Format → (bytes, seconds) of 8 s of speech."""
    kinds = {
        "wav": ("WAV", "PCM_16"),
        "rifx": ("WAV", "PCM_16", "BIG"),
        "rf64": ("RF64", "PCM_16"),
        "w64": ("W64", "PCM_16"),
        "aiff": ("AIFF", "PCM_16"),
        "au": ("AU", "PCM_16"),
        "caf": ("CAF", "PCM_16"),
        "nist": ("NIST", "PCM_16"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "vorbis": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
    }
    return {name: encoded(speech(8 * RATE), *kind) for name, kind in kinds.items()}


def try_load(data, **options):
    """The samples, or None where an InputError that names the recording refuses them."""
    try:
        return load(data, **options)
    except InputError as error:
        message = str(error)
    assert message.startswith("audio bytes: ")
    return None


SIZED = ["wav", "rifx", "rf64", "w64", "aiff", "au", "caf", "nist"]
CODED = ["flac", "mp3", "vorbis", "opus"]


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.97])
def test_cut_files_that_announce_their_size(files, name, fraction):
    data = files[name]
    with pytest.raises(InputError, match=rf"^audio bytes: truncated: its header announces {len(data)} bytes and it has \d+: get the whole"):
        load(data[: int(fraction * len(data))])


@pytest.mark.parametrize("name", [*SIZED, *CODED])
@pytest.mark.parametrize("length", [16, 30, 60, 100, 300])
def test_hardly_more_than_a_magic_number(files, name, length):
    with pytest.raises(InputError, match=r"^audio bytes: (truncated|damaged|the recording holds no samples)"):
        load(files[name][:length])
    try:
        seconds = duration(files[name][:length])
    except InputError:
        return
    assert 0 < seconds <= 8  # the header is whole and tells


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flac", r"truncated or damaged: the decoder failed between 0\.00 and 4\.10 s \(.*lost sync\): get the whole file"),
        (
            "mp3",
            r"truncated: its length tag announces 8\.00 s and its frames end at [34]\.\d+ s: get the whole file; or give an end_time",
        ),
        ("vorbis", "truncated: its last Ogg page is not whole: get the whole file; or give an end_time before"),
        ("opus", "truncated: its last Ogg page is not whole: get the whole file; or give an end_time before"),
    ],
)
def test_cut_files_of_coded_audio(files, name, message):
    with pytest.raises(InputError, match=f"^audio bytes: {message}"):
        load(files[name][: len(files[name]) // 2])


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("begin", [0.05, 0.4, 0.8])
@pytest.mark.parametrize("length", [200, 3000, None])
def test_noise_behind_a_good_header(files, name, begin, length):
    """libsndfile passes over a hole in an Ogg file in silence; the page's checksum tells."""
    data = files[name]
    at = int(begin * len(data))
    length = len(data) - at if length is None else length
    if name == "mp3" and length == 200:
        # An MP3 has no checksums: its decoder goes on behind a lost frame or two, and up to 0.1 s may be lost.
        assert 7.9 * RATE <= len(load(data[:at] + NOISE[:length] + data[at + length :])) <= 8 * RATE
        return
    with pytest.raises(InputError, match=r"^audio bytes: (truncated|damaged)") as caught:
        load(data[:at] + NOISE[:length] + data[at + length :])
    if name in ("vorbis", "opus"):
        assert "Ogg page" in str(caught.value)


@pytest.mark.parametrize("name", ["vorbis", "opus"])
def test_ogg_pages(files, name, tmp_path):
    data = files[name]
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(pages) >= 4, "a file of fewer pages tests nothing"
    assert walk_pages(io.BytesIO(data))[:3] == (None, True, True)
    assert walk_pages(io.BytesIO(data + b"TAG" + bytes(125)))[:3] == (None, True, True)
    for end in (pages[-1] + 10, pages[-1] + 27, len(data) - 1):
        assert walk_pages(io.BytesIO(data[:end]))[:3] == (None, False, False)
    missing = data[: pages[2]] + data[pages[3] :]
    flipped = data[: pages[2] + 100] + bytes([data[pages[2] + 100] ^ 1]) + data[pages[2] + 101 :]
    for changed, message in (
        (missing, f"an Ogg page is missing before byte {pages[2]}"),
        (flipped, f"the Ogg page at byte {pages[2]} fails its checksum"),
        (data[: pages[2]] + b"noise" + data[pages[2] :], f"no Ogg page stands at byte {pages[2]}, where one is due"),
        (data + data, f"at byte {len(data)} another recording is chained on"),
    ):
        with pytest.raises(InputError, match=f"^audio bytes: damaged: {message}.*: get the file again, or re-encode it$"):
            load(changed)
        # a segment behind the hole would be shifted, and one before it is not worth the risk
        with pytest.raises(InputError, match=message):
            load(changed, begin=0.1, end=0.2)
    path = tmp_path / "clip.ogg"
    path.write_bytes(data)
    load(path)
    path.write_bytes(flipped[:-1] + data[-1:] + b"\0")
    with pytest.raises(InputError, match="fails its checksum"):
        load(path)


def test_a_wav_that_ends_within_its_header(files):
    with pytest.raises(InputError, match="truncated: its header announces"):
        load(files["wav"][:30])


def test_odd_numbers_in_a_header(files):
    """Fields at their extremes: refused by name, or read as what is there."""
    data = files["wav"]
    for at, width in ((22, 2), (24, 4), (28, 4), (32, 2), (34, 2)):  # channels, rate, bytes a second, bytes a frame, bits
        for value in (0, 1, 2 ** (8 * width) - 1):
            changed = data[:at] + value.to_bytes(width, "little") + data[at + width :]
            samples = try_load(changed)
            assert samples is None or np.isfinite(samples).all()


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "drop", "zero"]), st.floats(0, 1), st.integers(1, 3000)), min_size=1, max_size=3
)


@hypothesis.given(name=st.sampled_from([*SIZED, *CODED]), mutations=MUTATIONS)
@hypothesis.settings(max_examples=120, deadline=None, derandomize=True)
def test_no_damage_gives_another_kind_of_error(files, name, mutations):
    """Whatever happens to the bytes: finite samples within the limit, or an InputError."""
    data = files[name]
    for kind, where, count in mutations:
        at = int(where * len(data))
        if kind == "flip":
            data = data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + 1]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + NOISE[:count] + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + count :]
        else:
            data = data[:at] + bytes(min(count, len(data) - at)) + data[at + count :]
    samples = try_load(data, max_seconds=60)
    if samples is not None:
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert 1 <= len(samples) <= 60 * RATE


ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)


@pytest.mark.parametrize("between", [b"", ID3V1, ID3V2, ID3V1 + ID3V2])
@pytest.mark.parametrize("bitrate", ["CONSTANT", "VARIABLE"])
def test_joined_mp3s_are_not_cut_at_the_first_ones_end(speech, between, bitrate):
    """The first one's length tag rules, and the rest would be lost in silence; tags at the end are legal."""
    stream = io.BytesIO()
    soundfile.write(stream, speech(3 * RATE), RATE, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=bitrate)
    data = stream.getvalue()
    assert len(load(data + between)) == 3 * RATE
    assert extent(data + between)[:2] == (3.0, None)
    with pytest.raises(InputError, match=r"its length tag ends it at 3\.00 s and its frames go on to 6\.\d+ s: split what was joined"):
        load(data + between + data)
    assert len(load(data + between + data, end=2.0)) == 2 * RATE
    seconds, cut, *_ = extent(data + between + data)
    assert seconds == 3.0
    assert cut is not None


def flac_of(data, samples):
    """A flac whose header announces another number of samples (RFC 9639 §8.2: the last 36 bits before the MD5)."""
    fields = int.from_bytes(data[18:26], "big")
    return data[:18] + (fields >> 36 << 36 | samples).to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize("tag", [b"", ID3V1])
def test_a_flac_that_ends_not_where_its_header_says(files, speech, tag):
    data = files["flac"]
    assert len(load(data + tag)) == 8 * RATE
    other = encoded(speech(2 * RATE), "FLAC", "PCM_16")
    another = f"at byte {len(data)} another recording is joined to it"
    for lying, message in (
        (flac_of(data, RATE), "its header announces 1 s and its last frame ends at 8 s"),
        (flac_of(data, 9 * RATE), "its header announces 9 s and its last frame ends at 8 s"),
        (data + other, another),
        (data + data, another),
        (data + tag + data, f"at byte {len(data + tag)} another"),
    ):
        for read in (load, duration, functools.partial(load, begin=0.1, end=0.2)):
            with pytest.raises(InputError, match=f"damaged: {message}"):
                read(lying + tag)


def test_a_flac_copied_out_of_a_longer_one_keeps_its_numbers(files):
    """Frames of a stream copy count on from where they stood; only their span must be the header's."""
    data = files["flac"]
    frames = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xf8" and _frame_span(data[at : at + 16], 4096)]
    begin = frames[4]
    head = flac_of(data, 8 * RATE - 4 * 4096)[: frames[0]]
    assert flac_disagreement(io.BytesIO(head + data[begin:])) is None
    assert flac_disagreement(io.BytesIO(flac_of(head, RATE) + data[begin:])) is not None


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_sound_flacs_pass(speech, rate, subtype):
    for count in (1, 200, 4096, 4097, 3 * rate + 7):
        stream = io.BytesIO()
        soundfile.write(stream, speech(count), rate, format="FLAC", subtype=subtype)
        assert flac_disagreement(stream) is None
