"""Headers that promise less than the file holds, or nothing: read whole, or refused by name; never half of it in silence."""

import io
import struct

import numpy as np
import pytest
import soundfile

from arkfast.audio import duration, extent, load, mp3, read
from arkfast.audio.ogg import _checksum
from arkfast.records import InputError

RATE = 16000
ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
PICTURE = b"ID3\x04\0\0\0\1\0\0" + np.random.default_rng(0).bytes(1 << 14)
APE = b"APETAGEX" + struct.pack("<4I", 2000, 64, 1, 0xA0000000) + bytes(8) + b"x" * 32
APE += b"APETAGEX" + struct.pack("<4I", 2000, 64, 1, 0x80000000) + bytes(8)
ICY = bytes([4]) + b"StreamTitle='a title';".ljust(64, b"\0")
JOINED = "another recording is joined to it, which the decoder would leave out: split what was joined"


def encoded(samples, form, subtype, **options):
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format=form, subtype=subtype, **options)
    return stream.getvalue()


def put(data, at, replacement):
    return data[:at] + replacement + data[at + len(replacement) :]


@pytest.fixture(scope="module")
def tagged(speech):
    """3 s with a length tag."""
    return encoded(speech(3 * RATE), "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE")


@pytest.fixture(scope="module")
def bare(tagged):
    """The same frames without the tag's."""
    at = max(tagged.find(b"Xing"), tagged.find(b"Info"))
    return tagged[tagged.index(tagged[:2], at) :]


def halved(tagged, *, size):
    at = max(tagged.find(b"Xing"), tagged.find(b"Info"))
    flags, frames, length = struct.unpack_from(">3I", tagged, at + 4)
    assert flags & 3 == 3
    return put(tagged, at + 8, struct.pack(">2I", frames // 2, length // 2 if size else length))


@pytest.mark.parametrize("size", [False, True])
def test_a_length_tag_that_counts_half_the_frames(tagged, size):
    data = halved(tagged, size=size)
    with pytest.raises(InputError, match=r"its length tag ends it at 1\.4\d s and its frames go on to 3\.\d+ s"):
        load(data)
    assert extent(data).cut is not None
    assert len(load(data, end=1.0)) == RATE


def test_a_length_tag_that_counts_too_many_frames(tagged):
    data = tagged[: len(tagged) // 2]
    seconds, cut, *_ = extent(data)
    assert seconds < 2
    assert "its length tag announces 3.00 s and its frames end at 1." in cut


@pytest.mark.parametrize(
    "between", [b"", ID3V1, ID3V2, PICTURE, APE, ICY, ID3V1 + ID3V2, APE + ID3V1 + PICTURE], ids=lambda tags: f"{len(tags)}"
)
def test_tags_between_untagged_mp3s_are_stepped_over(bare, between):
    """The decoder takes the first frames' bit rate for the whole and stops early, or meets the tag and decodes its bytes."""
    once = load(bare)
    data = bare + between + bare
    loaded, warnings, _ = read(data)
    assert warnings == ()
    np.testing.assert_array_equal(loaded[: len(once)], once)
    assert len(loaded) == pytest.approx(2 * len(once), abs=600)
    # The second one's first frame is decoded with the overlap of the last one before it.
    lag = max(range(1200), key=lambda lag: np.dot(loaded[len(once) + lag :][:20000], once[:20000]))
    np.testing.assert_allclose(loaded[len(once) + lag :][1200:20000], once[1200:20000], rtol=0, atol=1e-4)
    assert duration(data) == pytest.approx(len(loaded) / RATE, abs=0.001)
    assert len(load(data, begin=4, end=5)) == RATE


def test_the_decoder_alone_would_stop_early(bare):
    with soundfile.SoundFile(io.BytesIO(bare + ID3V2 + bare)) as recording:
        assert recording.frames < 5 * RATE, "it no longer does: stepping over tags can go"


def test_other_bytes_between_frames_are_passed_over_and_said(bare):
    noise = np.random.default_rng(1).bytes(3000)
    assert mp3._frame(noise, 0) is not None, "noise that begins like a frame of another kind is the case that hurts"
    loaded, warnings, _ = read(bare + noise + bare)
    assert len(loaded) == pytest.approx(2 * len(load(bare)), abs=600)
    assert warnings == ("3000 bytes between its MP3 frames are neither frames nor tags and are passed over",)


def test_icy_blocks_within_the_frames(bare):
    """A recorded stream has one every so many bytes, wherever the frames stand: a frame is lost each time, and no second."""
    data = b"".join(bare[i : i + 8000] + ICY for i in range(0, len(bare), 8000))
    assert len(load(data)) == pytest.approx(len(load(bare)), abs=576 * (1 + len(bare) // 8000))


def test_joined_mp3s_of_different_rates_are_refused(bare, speech):
    stream = io.BytesIO()
    soundfile.write(stream, speech(44100, 44100), 44100, format="MP3", subtype="MPEG_LAYER_III")
    for between in (b"", ID3V1):
        with pytest.raises(InputError, match=r"the number of channels changes after 3\.\d\d s, as in files joined"):
            load(bare + between + stream.getvalue())


def test_mpeg_frames_are_measured_as_the_standard_has_it():
    """Layer, version, bit rate and rate of headers and what they come to, by hand from the tables of ISO/IEC 11172-3 and 13818-3."""
    for header, size, samples, hz in (
        ("fffb9064", 417, 1152, 44100),  # MPEG 1 layer III, 128 kbit/s
        ("fff384c4", 192, 576, 24000),  # MPEG 2 layer III, 64 kbit/s: 72 · 64000 / 24000
        ("fffd8004", 417, 1152, 44100),  # MPEG 1 layer II, 128 kbit/s: 144 · 128000 / 44100
        ("ffff9004", 312, 384, 44100),  # MPEG 1 layer I, 288 kbit/s: 4 · ⌊12 · 288000 / 44100⌋
    ):
        frame = mp3._frame(bytes.fromhex(header), 0)
        assert (frame.size, frame.samples, frame.hz) == (size, samples, hz)
    for bad in ("fffb0064", "fffbf064", "fffb9c64", "ffe9f064", "fff99064", "ff1b9064", "fffb90"):
        assert mp3._frame(bytes.fromhex(bad), 0) is None


SIZED = {
    "wav": ("WAV", "PCM_16"),
    "rifx": ("WAV", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
}


@pytest.fixture(scope="module", params=SIZED)
def sized(request, speech):
    """(name, 2 s of a format whose header has sizes)."""
    endian = {"endian": "BIG"} if request.param == "rifx" else {}
    return request.param, encoded(np.round(20000 * speech(2 * RATE)) / 32768, *SIZED[request.param], **endian)


def test_joined_files_are_refused(sized, speech):
    _, data = sized
    other = encoded(speech(RATE), "WAV", "PCM_16")
    for second in (data, other):
        for tag in (b"", ID3V1, bytes(1000)):
            with pytest.raises(InputError, match=rf"at byte {len(data + tag)} {JOINED}"):
                load(data + tag + second)


def test_what_stands_behind_a_whole_file_is_no_audio(sized):
    name, data = sized
    whole = load(data)
    for tag in (ID3V1, bytes(4000), APE, b"LIST" + struct.pack(">I" if name in ("aiff", "rifx") else "<I", 4) + b"INFO"):
        if name in ("w64", "nist"):  # libsndfile takes whatever stands behind the header for samples
            np.testing.assert_array_equal(load(data + tag)[: len(whole)], whole)
        else:
            np.testing.assert_array_equal(load(data + tag), whole)


SIZES = {
    "wav": (b"data", 4, "<I"),
    "rifx": (b"data", 4, ">I"),
    "rf64": (b"ds64", 16, "<Q"),
    "aiff": (b"SSND", 4, ">I"),
    "caf": (b"data", 4, ">q"),
}


def sizes(name, data):
    """Where the size of the audio stands, how, and the bytes that are no samples in it."""
    if name == "au":
        return 8, ">I", 0
    mark, behind, form = SIZES[name]
    return data.index(mark) + behind, form, {"aiff": 8, "caf": 4}.get(name, 0)


@pytest.mark.parametrize("outer", [False, True])
def test_a_header_that_says_half_its_size(sized, outer):
    name, data = sized
    if name in ("w64", "nist"):
        pytest.skip("libsndfile reads these to their end whatever the header says")
    at, form, extra = sizes(name, data)
    lying = put(data, at, struct.pack(form, RATE * 2 + extra))
    if outer and name in ("wav", "rifx", "aiff"):
        lying = put(lying, 4, struct.pack(form, len(data) // 2))
    with pytest.raises(InputError, match=rf"its header ends it at byte \d+ \(1 s\), and {RATE * 2} bytes follow that are no chunk"):
        load(lying)
    assert len(load(lying, end=0.9)) == 0.9 * RATE
    seconds, cut, *_ = extent(lying)
    assert seconds == 1
    assert cut is not None


@pytest.mark.parametrize("outer", [None, 0, 36])
def test_a_header_that_was_never_finished(sized, outer, tmp_path):
    """A recorder that was killed leaves sizes of 0: the file is read to its end, and the row says so."""
    name, data = sized
    if name in ("w64", "nist"):
        pytest.skip("libsndfile reads these to their end whatever the header says")
    at, form, _ = sizes(name, data)
    unfinished = put(data, at, bytes(struct.calcsize(form)))
    if outer is not None and name in ("wav", "rifx", "aiff"):
        unfinished = put(unfinished, 4, struct.pack(form, outer))
    if name == "rf64" and outer == 0:
        unfinished = put(unfinished, 20, bytes(24))
    path = tmp_path / "clip.bin"
    path.write_bytes(unfinished)
    for source in (unfinished, path):
        loaded, warnings, _ = read(source)
        np.testing.assert_array_equal(loaded, load(data))
        assert duration(source) == 2
        np.testing.assert_array_equal(load(source, begin=1.2, end=1.7), load(data, begin=1.2, end=1.7))
        if name != "aiff":  # its frames are counted in another chunk too, and libsndfile goes by the file
            assert warnings == ("its header was never finished: it is read to the file's end",)


def test_a_wav_without_samples_has_none(speech):
    data = encoded(speech(RATE), "WAV", "PCM_16")
    for tail in (b"", b"LIST\4\0\0\0INFO", ID3V1, bytes(400)):
        with pytest.raises(InputError, match="the recording holds no samples"):
            load(put(put(data[:44], 4, struct.pack("<I", 36)), 40, bytes(4)) + tail)


def without_end_mark(data):
    """The Ogg file with the flag of its last page cleared, and the page's checksum made anew."""
    at = data.rindex(b"OggS")
    page = bytearray(data[at:])
    assert page[5] & 4
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = _checksum(bytes(page)).to_bytes(4, "little")
    return data[:at] + bytes(page)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_the_mark_of_its_end_is_read_with_a_warning(speech, subtype):
    whole = encoded(speech(8 * RATE), "OGG", subtype)
    data = without_end_mark(whole)
    loaded, warnings, _ = read(data)
    np.testing.assert_array_equal(loaded, load(whole))
    assert warnings == ("its last Ogg page does not mark the end of the stream: pages may be missing",)
    assert read(whole).warnings == ()
    with pytest.raises(InputError, match="truncated: its last Ogg page does not mark the end of the stream: get the whole file"):
        load(data, on_truncated="fail")
    assert len(load(data, end=2, on_truncated="fail")) == 2 * RATE
    assert len(load(whole, on_truncated="fail")) == len(loaded)
    assert extent(data).cut is None
    assert extent(data).strict_cut.startswith("truncated: ")
    last = data.rindex(b"OggS")
    assert len(load(data[:last])) < len(loaded), "a file cut on a page's boundary looks the same"
    page = bytearray(data[last:])
    packets = page[26]
    page += bytes(255 - page[26 + packets])
    page[26 + packets] = 255  # the last packet goes on on a page that is not there, as some encoders leave it
    page[22:26] = bytes(4)
    page[22:26] = _checksum(bytes(page)).to_bytes(4, "little")
    goes_on = read(data[:last] + bytes(page))
    assert goes_on.warnings == warnings
    assert len(goes_on.samples) == pytest.approx(len(loaded), abs=0.1 * RATE)
    for end in (last + 10, len(data) - 1):
        with pytest.raises(InputError, match="truncated: its last Ogg page is not whole"):
            load(data[:end])
    with pytest.raises(InputError, match=rf"damaged: at byte {len(data)} another recording is chained on"):
        load(data + whole)
