"""Bytes of real files' headers changed at random: every outcome is audio, or one ``InputError`` that names the file.

A case is made of its reader's name and a number, so that a failure can be had again alone. ``ARKFAST_FUZZ_CASES`` says how many each reader
gets; ``scripts/test_full.sh`` gives them 10,000.
"""

import io
import os
import zlib

import numpy as np
import pytest
import soundfile

from arkfast.audio import extent, load, read
from arkfast.audio.ogg import _checksum
from arkfast.records import InputError

CASES = int(os.environ.get("ARKFAST_FUZZ_CASES", "300"))
MOST_SECONDS = 60
HEAD = 600  # bytes; the headers of the files below are shorter

SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-adpcm": ("WAV", "IMA_ADPCM"),
    "rifx": ("WAV", "PCM_16", "BIG"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
PYAV = {
    "m4a": ("ipod", "aac", 16000, {}),
    "mp4-front": ("mp4", "aac", 16000, {"movflags": "faststart"}),
    "mp4-fragments": ("mp4", "aac", 16000, {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "100000"}),
    "mov": ("mov", "pcm_s16le", 16000, {}),
    "webm": ("webm", "libopus", 48000, {}),
    "webm-live": ("webm", "libopus", 48000, {"live": "1"}),
    "mkv": ("matroska", "aac", 16000, {}),
    "asf": ("asf", "wmav2", 16000, {}),
    "adts": ("adts", "aac", 16000, {}),
    "amr": ("amr", "libopencore_amrnb", 8000, {}),
    "flv": ("flv", "aac", 16000, {}),
    "ts": ("mpegts", "aac", 16000, {}),
    "avi": ("avi", "pcm_s16le", 16000, {}),
    "wv": ("wv", "wavpack", 16000, {}),
    "ogg-flac": ("ogg", "flac", 16000, {}),
    "wav-g726": ("wav", "g726", 8000, {}),
    "caf-alac": ("caf", "alac", 16000, {}),
}
HEADERLESS = {"gsm": "GSM610", "ulaw": "ULAW", "sln": "PCM_16"}
EXTREMES = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff\xff\xff\x7f"]


def encode(name, samples, path):
    """The bytes of a short recording in a reader's format."""
    if name in SNDFILE:
        form, subtype, *endian = SNDFILE[name]
        stream = io.BytesIO()
        soundfile.write(stream, samples(6400), 16000, format=form, subtype=subtype, endian=endian[0] if endian else "FILE")
        return stream.getvalue()
    if name == "mp3-bare":
        data = encode("mp3", samples, path)
        return data[data.index(data[:2], max(data.find(b"Xing"), data.find(b"Info"))) :]
    if name == "flac-piped":
        data = encode("flac", samples, path)
        return data[:18] + (int.from_bytes(data[18:26], "big") >> 36 << 36).to_bytes(8, "big") + data[26:]
    if name in HEADERLESS:
        stream = io.BytesIO()
        soundfile.write(stream, samples(3200, 8000), 8000, format="RAW", subtype=HEADERLESS[name], endian="LITTLE")
        return stream.getvalue()
    av = pytest.importorskip("av", reason="PyAV is not installed: the extra containers brings it")
    form, codec, rate, options = PYAV[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        kind = track.codec_context.codec.audio_formats[0].name
        track.format, track.bit_rate = kind, 32000 if codec in ("aac", "g726", "wmav2") else 12200
        to_format = av.AudioResampler(format=kind, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(samples(rate * 2 // 5, rate)[None], "fltp", "mono")
        frame.rate, frame.pts = rate, 0
        for converted in [*to_format.resample(frame), *to_format.resample(None)]:
            container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return path.read_bytes()


def changed(data, rng):
    """A file with some bytes of its head, seldom of its tail or of anywhere, flipped, set to an extreme, cut, or said twice."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = rng.random()
        least, most = (0, HEAD) if place < 0.75 else (len(data) - HEAD, len(data)) if place < 0.9 else (0, len(data))
        at = int(rng.integers(max(0, least), max(1, min(most, len(data)))))
        kind = rng.random()
        if kind < 0.6:
            data[at : at + 1] = bytes([data[at] ^ int(rng.integers(1, 256))] if at < len(data) else [])
        elif kind < 0.85:
            extreme = EXTREMES[rng.integers(len(EXTREMES))]
            extreme = (
                extreme * int(rng.choice([1, 2, 4, 8])) if len(extreme) == 1 else extreme + bytes([extreme[-1]]) * int(rng.choice([0, 4]))
            )
            data[at : at + len(extreme)] = extreme
        elif kind < 0.93:
            del data[at : at + int(rng.integers(1, 50))]
        elif kind < 0.97:
            data[at:at] = data[at : at + int(rng.integers(1, 300))]
        else:
            del data[at:]
    return bytes(data)


def sealed(data):
    """An Ogg file with its pages' checksums made anew, so that what is damaged comes to its decoder."""
    data, at = bytearray(data), data.find(b"OggS")
    while at >= 0 and at + 27 < len(data):
        lengths = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(lengths) + sum(lengths)
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = _checksum(bytes(data[at:end])).to_bytes(4, "little")
        at = data.find(b"OggS", end)
    return bytes(data)


def outcome(data, name):
    """What became of a file: its samples, or the error's message."""
    label = f"in.jsonl:7: clip.{name}"
    result, messages = None, []
    for ask in (lambda: extent(data, name=label).seconds, lambda: load(data, name=label, max_seconds=MOST_SECONDS)):
        try:
            result = ask()
        except InputError as error:
            messages.append(str(error))
    assert all(message.startswith(label) and "\n" not in message for message in messages), "an error is one line and names its file"
    return messages[-1] if messages else result


@pytest.mark.parametrize("name", [*SNDFILE, "mp3-bare", "flac-piped", *HEADERLESS, *PYAV])
def test_changed_bytes_are_audio_or_one_error(name, speech, tmp_path):
    data = encode(name, speech, tmp_path / "clip")
    assert len(read(data, name=f"clip.{name}").samples) >= 6000, "the file is read while nothing is changed"
    for case in range(CASES):
        damaged = changed(data, np.random.default_rng([zlib.crc32(name.encode()), case]))
        if name in ("vorbis", "opus", "ogg-flac") and case % 2:
            damaged = sealed(damaged)
        if not damaged:
            continue
        try:
            samples = outcome(damaged, name)
        except Exception as error:
            raise AssertionError(f"case {case} of {name}: {type(error).__name__}: {error}") from error
        if not isinstance(samples, str):
            assert samples.dtype == np.float32, f"case {case} of {name}"
            assert np.isfinite(samples).all(), f"case {case} of {name}"
            assert 1 <= len(samples) <= MOST_SECONDS * 16000, f"case {case} of {name}"
