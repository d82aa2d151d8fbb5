"""``arkfast manifest scan`` finds each recording whose header promises less than the file holds, and says what is doubtful."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from arkfast.audio.ogg import _checksum
from arkfast.data import Fields, read_manifest
from arkfast.data.collate import read_clip
from arkfast.manifest.command import main
from arkfast.records import InputError
from arkfast.testing import synthetic_speech

RATE = 16000


def encoded(form: str, subtype: str, seconds: float = 3.0) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, synthetic_speech(seconds, seed=1), RATE, format=form, subtype=subtype)
    return stream.getvalue()


def put(data: bytes, at: int, replacement: bytes) -> bytes:
    return data[:at] + replacement + data[at + len(replacement) :]


def half_of_an_mp3(data: bytes) -> bytes:
    """Its length tag counts half of the frames."""
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    return put(data, at, struct.pack(">I", struct.unpack_from(">I", data, at)[0] // 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that lie, with ``lies`` in their names, and two that do not."""
    folder = tmp_path_factory.mktemp("promises")
    wav, mp3, ogg = encoded("WAV", "PCM_16"), encoded("MP3", "MPEG_LAYER_III"), encoded("OGG", "VORBIS")
    au, rf64 = encoded("AU", "PCM_16"), encoded("RF64", "PCM_16")
    files = {
        "whole.wav": wav,
        "unfinished.wav": put(wav, 40, bytes(4)),
        "lies-half.wav": put(wav, 40, struct.pack("<I", RATE * 3)),
        "lies-joined.wav": wav + wav,
        "lies-joined.au": au + au,
        "lies-joined.rf64": rf64 + rf64,
        "lies-half.mp3": half_of_an_mp3(mp3),
        "lies-joined.mp3": mp3 + b"TAG" + bytes(125) + mp3,
    }
    last = ogg.rindex(b"OggS")
    page = bytearray(ogg[last:])
    assert page[5] == 4
    page[5] = 0
    page[22:26] = bytes(4)
    page[22:26] = _checksum(bytes(page)).to_bytes(4, "little")
    files["unmarked.ogg"] = ogg[:last] + bytes(page)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def containers(folder: Path) -> None:
    """An m4a and an mka whose durations are halved, beside the other files."""
    av = pytest.importorskip("av", reason="PyAV is not installed: the extra containers brings it")
    samples = synthetic_speech(3.0, seed=2)
    for form, codec, name in (("ipod", "aac", "lies-half.m4a"), ("matroska", "aac", "lies-half.mka")):
        path = folder / "encoded"
        with av.open(str(path), "w", format=form) as container:
            track = container.add_stream(codec, rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
            frame.rate = RATE
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
        data = path.read_bytes()
        path.unlink()
        if form == "ipod":
            (folder / "lies-joined.m4a").write_bytes(data + data)
            at = data.index(b"mdhd") + 20
            data = put(data, at, struct.pack(">I", struct.unpack_from(">I", data, at)[0] // 2))
        else:
            at = data.index(b"\x44\x89\x88") + 3  # Duration, a float64
            data = put(data, at, struct.pack(">d", struct.unpack_from(">d", data, at)[0] / 2))
        (folder / name).write_bytes(data)


def scan(folder: Path, output: Path, *flags: str) -> tuple[list[str], dict[str, str]]:
    """(good recordings, bad ones with their kind and reason) of a manifest of all files."""
    manifest = folder / "in.jsonl"
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".jsonl")
    manifest.write_text("".join(json.dumps({"audio": name}) + "\n" for name in names))
    clean, rejects = output / "clean.jsonl", output / "rejects.jsonl"
    main(["scan", "--input", str(manifest), "--output", str(clean), "--rejects", str(rejects), *flags])
    good = [Path(json.loads(line)["audio"]).name for line in clean.read_text().splitlines()]
    bad = [json.loads(line) for line in rejects.read_text().splitlines()]
    return good, {json.loads(row["raw_line"])["audio"]: f"{row['kind']}: {row['reason']}" for row in bad}


@pytest.mark.usefixtures("containers")
def test_decoding_finds_every_lie(folder: Path, tmp_path: Path) -> None:
    good, bad = scan(folder, tmp_path, "--decode", "true")
    assert good == ["unfinished.wav", "unmarked.ogg", "whole.wav"]
    assert sorted(bad) == sorted(path.name for path in folder.glob("lies-*"))
    kinds = {name: reason.split(":")[0] for name, reason in bad.items()}
    assert kinds.pop("lies-joined.wav") == "unreadable recording", "libsndfile cannot open it"
    assert set(kinds.values()) == {"damaged recording"}
    assert "its length tag ends it at" in bad["lies-half.mp3"]
    assert "and its packets go on" in bad["lies-half.m4a"]
    assert "are in it: the header is wrong" in bad["lies-half.mka"]
    for name in ("wav", "au", "rf64", "m4a"):
        assert "another recording is joined to it" in bad[f"lies-joined.{name}"]


def test_headers_alone_find_those_whose_bytes_show_it(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):  # measured, and then from the cache
        good, bad = scan(folder, tmp_path)
        assert {"unfinished.wav", "unmarked.ogg", "whole.wav"} <= set(good)
        assert {"lies-half.wav", "lies-joined.wav", "lies-joined.au", "lies-joined.rf64", "lies-half.mp3", "lies-joined.mp3"} <= set(bad)


def test_what_may_be_truncated_is_refused_on_demand(folder: Path, tmp_path: Path) -> None:
    scan(folder, tmp_path)
    good, bad = scan(folder, tmp_path, "--on_truncated", "fail")  # the cache holds what both ask for
    assert "unmarked.ogg" not in good
    assert "truncated: its last Ogg page does not mark the end of the stream" in bad["unmarked.ogg"]
    for fields, form in ((Fields(on_truncated="fail"), "audio"), (Fields(on_truncated="fail"), "audio_filepath")):
        (folder / "one.jsonl").write_text(json.dumps({form: "unmarked.ogg"}))
        (row,) = read_manifest(folder / "one.jsonl", fields=fields)
        with pytest.raises(InputError, match=r"one\.jsonl:1: .*unmarked\.ogg: truncated: its last Ogg page does not mark"):
            read_clip(row)
    (row,) = read_manifest(folder / "one.jsonl")
    assert read_clip(row).warnings == ("its last Ogg page does not mark the end of the stream: pages may be missing",)
