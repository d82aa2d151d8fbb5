"""What load accepts as a source: kinds of files, formats told from bytes, limits."""

import io
import os
import socket
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from arkfast.audio import duration, load
from arkfast.audio.resample import Resampler
from arkfast.audio.sniff import sniff
from arkfast.records import InputError


@pytest.fixture
def encode(speech):
    """encode(format, subtype, seconds=1) → the bytes of a file."""

    def encode(form, subtype=None, seconds=1.0, rate=16000):
        stream = io.BytesIO()
        soundfile.write(stream, speech(round(seconds * rate), rate), rate, format=form, subtype=subtype)
        return stream.getvalue()

    return encode


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")),
        *((form, "PCM_16") for form in ("RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC")),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("extension", ["", ".wav", ".mp3", ".raw", ".txt"])
def test_the_bytes_say_what_a_file_is(tmp_path, encode, form, subtype, extension):
    data = encode(form, subtype)
    path = tmp_path / f"clip{extension}"
    path.write_bytes(data)
    # ADPCM comes in blocks, of which the last one is filled up
    assert 16000 <= len(load(path)) < 17000
    np.testing.assert_array_equal(load(path), load(data))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypM4A ", "m4a/mp4"),
        (b"\0\0\0\x14ftyp3gp4", "m4a/mp4"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "m4a/mp4"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "webm/mkv"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wma"),
        (b"\xff\xf1\x60\x40", "aac"),
        (b"\xff\xf9\x60\x40", "aac"),
        (b"ID3\x04\0\0\0\0\0\x05hello\xff\xf1\x60\x40", "aac"),
        (b"#!AMR\n\x3c", "amr"),
        (b"#!AMR-WB\n\x3c", "amr"),
        (b"fLaC\0\0\0\x22" + bytes(34), "flac without a length"),
    ],
)
def test_containers_need_the_extra(tmp_path, monkeypatch, head, name):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "clip.wav"
    path.write_bytes(head + bytes(1000))
    for read in (load, duration):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: reading {name} needs PyAV: pip install -e '.[containers]'")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"he did not know\n", "it is text that begins with 'he did not know\\n'"),
        ("彩虹\n".encode(), "it is text that begins with '彩虹\\n'"),
        ("ü".encode() * 200, "it is text that begins with 'üüü"),
        (("x" + "ü" * 200).encode(), "it is text that begins with 'xüü"),
        (b"\xef\xbb\xbf{}", "it is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer: fetch the recording with git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (bytes(1000), "it begins with zeros"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "its first bytes are 89 50 4e 47 0d 0a 1a 0a 00 00 00 0d"),
        (b"RIFF\x10\0\0\0CDXAfmt ", "its first bytes are 52 49 46 46"),
        (b"\xff\xe8\0\0", "its first bytes are ff e8"),
        (b"\xff", "its first bytes are ff;"),
        (b"ID3", "it is text that begins with 'ID3'"),
    ],
)
def test_not_audio(tmp_path, data, message):
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    for read in (load, duration):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: not audio: {message}")
        assert "ffmpeg -i" in str(caught.value)


def test_many_tags_end():
    """Each tag moves on by at least its header, so a file made of tags cannot hold the reader."""
    assert sniff(io.BytesIO(b"ID3\x04\0\0\0\0\0\0" * 1000)).name == "mp3"
    assert sniff(io.BytesIO(b"ID3\x04\0\x10\0\0\0\0" * 1000)).name == "mp3"


@pytest.mark.parametrize("read", [load, duration])
def test_only_regular_files_are_opened(tmp_path, read):
    """A pipe without a writer would block an open for ever."""
    pipe, link, loop, end = tmp_path / "pipe.wav", tmp_path / "link.wav", tmp_path / "loop.wav", tmp_path / "end.wav"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "gone.wav")
    loop.symlink_to(loop)
    for path, message in (
        (pipe, "not a regular file but a pipe"),
        ("/dev/zero", "not a regular file but a device"),
        (tmp_path, "not a regular file but a folder"),
        (link, f"no such file: it is a symbolic link to {tmp_path / 'gone.wav'}"),
        (loop, "the file cannot be reached"),
        (tmp_path / ("x" * 300), "the file cannot be reached"),
        ("a\0b.wav", "the file cannot be reached"),
    ):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: {message}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(end)) if len(str(end)) < 100 else pytest.skip("the temporary folder's path is too long for a socket")
        with pytest.raises(InputError, match="not a regular file but a socket"):
            read(end)


def test_a_link_to_a_file_is_followed(tmp_path, encode):
    (tmp_path / "clip").write_bytes(encode("WAV"))
    (tmp_path / "link.flac").symlink_to(tmp_path / "clip")
    assert len(load(tmp_path / "link.flac")) == 16000


def test_max_bytes(tmp_path, encode):
    data = encode("WAV", "PCM_16")
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    for source in (path, data, memoryview(np.frombuffer(data, np.int16))):
        assert len(load(source, max_bytes=len(data))) == 16000
        for read in (load, duration):
            with pytest.raises(InputError, match=f"{len(data)} bytes, over the limit of {len(data) - 1}: split the recording"):
                read(source, max_bytes=len(data) - 1)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.wav"
    with open(path, "wb") as stream:
        stream.truncate(5 << 30)  # sparse: takes no room
    with pytest.raises(InputError, match="5368709120 bytes, over the limit of 4294967296"):
        load(path)


@pytest.mark.parametrize("channels", [9, 16])
def test_max_channels(channels):
    stream = io.BytesIO()
    soundfile.write(stream, np.full((1600, channels), 0.25, np.float32), 16000, format="WAV", subtype="FLOAT")
    data = stream.getvalue()
    for read in (load, duration):
        with pytest.raises(InputError, match=f"{channels} channels, at most 8 can be mixed down: choose the talker's with channel"):
            read(data)
    # a sum of 16 rounded terms
    np.testing.assert_allclose(load(data, max_channels=channels), 0.25, rtol=1e-6)


@pytest.mark.parametrize("option", [{"max_seconds": 0}, {"max_seconds": float("nan")}, {"max_bytes": -1}, {"max_channels": 0}])
def test_limits_that_nothing_meets(encode, option):
    with pytest.raises(ValueError, match=f"load: {next(iter(option))} must be positive"):
        load(encode("WAV"), **option)


def lying_flac(data, samples):
    """The file with another count of samples in its header (the last 36 bits before its checksum)."""
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    return data[:18] + fields.to_bytes(8, "big") + data[26:]


def lying_mp3(data, samples):
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8  # behind the flags, the first of which announces this count of frames
    return data[:at] + struct.pack(">I", samples // 576) + data[at + 4 :]


def lying_wav(data, samples):
    at = data.index(b"data") + 4
    data = data[:at] + struct.pack("<I", 2 * samples) + data[at + 4 :]
    return data[:4] + struct.pack("<I", at - 4 + 2 * samples) + data[8:]


LIES = [("FLAC", "PCM_16", lying_flac), ("MP3", "MPEG_LAYER_III", lying_mp3), ("WAV", "PCM_16", lying_wav)]


@pytest.mark.parametrize(("form", "subtype", "lie"), LIES)
def test_a_header_that_lies_about_ten_hours(encode, form, subtype, lie):
    """Refused by what it says, or found out where the samples end; neither ten hours of memory nor of time."""
    honest = encode(form, subtype, seconds=4)
    data = lie(honest, 10 * 3600 * 16000)
    tracemalloc.start()
    try:
        for limits in ({}, {"max_seconds": 30.0}, {"max_seconds": None}):
            with pytest.raises(InputError, match=r"over the limit of (21600|30) s|truncated|damaged: its header"):
                load(data, **limits)
        if form == "FLAC":  # it may as well be two files joined, and a seek could end in the other one
            with pytest.raises(InputError, match="damaged: its header announces 36000 s and its last frame ends at 4 s"):
                load(data, begin=1, end=2)
            return
        # what is really there can be had
        np.testing.assert_array_equal(load(data, begin=1, end=2), load(honest, begin=1, end=2))
        with pytest.raises(InputError, match=r"truncated|past the recording's end"):
            load(data, begin=1, end=9000, max_seconds=None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6, f"{peak} bytes for a file of {len(data)}; ten hours would take 2.3e9"


def test_memory_is_that_of_the_result(encode):
    """48 kHz: the decoded whole would take three times the result."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(120 * 48000, np.int16), 48000, format="FLAC")
    data = stream.getvalue()
    load(encode("WAV", rate=48000))  # imports
    tracemalloc.start()
    try:
        samples = load(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # the pieces and the whole made of them, and a few blocks
    assert peak < 2 * samples.nbytes + 4e6


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
@pytest.mark.parametrize("count", [65536, 65537, 150001])
def test_resampling_by_blocks_changes_nothing(speech, rate, count):
    import soxr

    samples = speech(count, rate)
    resampler = Resampler(rate, 16000)
    for piece in np.split(samples, [1, 1000, 40000, 65536]):
        resampler.push(piece)
    resampled, expected = resampler.finish(), soxr.resample(samples, rate, 16000, quality="HQ")
    assert abs(len(resampled) - len(expected)) <= 1
    shared = min(len(resampled), len(expected))
    np.testing.assert_array_equal(resampled[:shared], expected[:shared])


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_a_name_that_is_no_utf_8(tmp_path, encode, form, subtype):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    try:
        with open(path, "wb") as file:
            file.write(encode(form, subtype))
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert len(load(path)) >= 16000
    assert duration(path) >= 1.0
