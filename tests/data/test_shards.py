"""Tar shards: members found by place, pairs made by name, and no damage that goes unnoticed."""

import dataclasses
import io
import itertools
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkfast.audio import LogMel
from arkfast.data import extract, iter_manifest, read_manifest, shards
from arkfast.data.manifest import count_rows, iter_rows
from arkfast.data.rows import RowError
from arkfast.data.shards import BLOCK, TarMember, iter_samples
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, write_wav

Member = tuple[str, Any]


def pack(path: Path, *members: Member, **options: Any) -> Path:
    """A tar file of (name, content); dictionaries become JSON, strings UTF-8."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            data = json.dumps(content).encode() if isinstance(content, dict) else content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    folder = tmp_path_factory.mktemp("clips")

    def make(seed: int) -> bytes:
        path = folder / f"{seed}.wav"
        if not path.exists():
            write_wav(path, synthetic_speech(0.3 + 0.1 * seed, seed=seed))
        return path.read_bytes()

    return make


def faults(path: Path) -> list[tuple[int, str, str]]:
    """(number, kind, message) of each bad row."""
    return [(row.number, row.error.kind, str(row.error)) for row in iter_rows(path) if row.error is not None]


def test_pairs_become_utterances(tmp_path, clip):
    shard = pack(
        tmp_path / "a.tar",
        ("d/x.wav", clip(0)),
        ("d/x.json", {"text": "one", "language": "en", "speaker": 3, "audio": "/elsewhere/x.wav"}),
        ("d/y.json", {"id": "why", "begin_time": 0.1, "end_time": 0.2}),
        ("d/y.txt", "two\n"),
        ("d/y.wav", clip(1)),
        ("d/z.WAV", clip(2)),
        ("d/z.txt", "\ufeffthree"),
    )
    x, y, z = read_manifest(shard)
    assert (x.id, x.text, x.language, x.where) == ("a.tar:d/x", "one", "en", f"{shard}::d/x")
    assert x.extra == {"speaker": 3, "audio": x.audio}
    assert (y.id, y.text, y.begin, y.end) == ("why", "two", 0.1, 0.2)
    assert (z.id, z.text) == ("a.tar:d/z", "three")
    for seed, row in enumerate((x, y, z)):
        member = TarMember.parse(row.audio)
        assert member.read() == clip(seed)
        assert row.audio == f"{shard}::{member.name}@{member.offset}+{member.size}"
    assert count_rows(shard) == 3


def test_features_equal_those_of_the_file(tmp_path, clip):
    (tmp_path / "x.wav").write_bytes(clip(4))
    shard = pack(tmp_path / "a.tar", ("x.wav", clip(4)), ("x.json", {"begin_time": 0.1, "end_time": 0.5}))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "".join(
            json.dumps({"audio": audio, "begin_time": 0.1, "end_time": 0.5}) + "\n" for audio in ("x.wav", "a.tar::x.wav", "./a.tar::x.wav")
        )
    )
    features = [extract(row, LogMel()) for row in [*read_manifest(shard), *read_manifest(manifest)]]
    assert features[0].shape == (128, 40)
    for other in features[1:]:
        assert np.array_equal(features[0], other)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_and_long_and_foreign_names(tmp_path, clip, form):
    names = ["x", "a/" * 20 + "y" * 50, "中文/名"] + ([] if form == tarfile.USTAR_FORMAT else ["d/" * 100 + "z" * 120])
    members = [m for i, name in enumerate(names) for m in ((f"{name}.wav", clip(i)), (f"{name}.txt", str(i)))]
    rows = read_manifest(pack(tmp_path / "a.tar", *members, format=form))
    assert [row.text for row in rows] == [str(i) for i in range(len(names))]
    for i, row in enumerate(rows):
        assert TarMember.parse(row.audio).read() == clip(i)
        assert dataclasses.replace(TarMember.parse(row.audio), offset=None, size=None).read() == clip(i)


def test_what_is_no_sample_is_passed_over(tmp_path, clip):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in (("d/._x.wav", b"mac"), ("d/x.wav", clip(0)), ("d/x.npy", b"??"), ("d/x.txt", b"one"), ("README.md", b"hello")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("../../evil.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [row.text for row in read_manifest(path)] == ["one"]


def test_names_that_climb_are_labels_only(tmp_path, clip):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    shard = pack(folder / "a.tar", ("../../up.wav", clip(0)), ("../../up.txt", "one"), ("/etc/abs.wav", clip(1)), ("/etc/abs.txt", "two"))
    rows = read_manifest(shard)
    assert [extract(row, LogMel()).shape[0] for row in rows] == [128, 128]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.tar"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.wav", 0)], "x.wav has no single .json or .txt beside it"),
        ([("x.json", {"text": "one"})], ".json without a recording"),
        ([("x.txt", "one")], ".txt without a recording"),
        ([("x.wav", 0), ("x.flac", 1), ("x.txt", "one")], "two recordings, x.wav and x.flac"),
        # A key ends at the first dot, so these two clips share one.
        ([("v_1.5.wav", 0), ("v_1.5.txt", "a"), ("v_1.6.wav", 1), ("v_1.6.txt", "b")], "two recordings, v_1.5.wav and v_1.6.wav"),
        ([("x.wav", 0), ("x.a.json", {}), ("x.b.json", {})], "no single .json or .txt"),
        ([("x.wav", 0), ("x.json", "{bad")], "not valid JSON"),
        ([("x.wav", 0), ("x.json", "[1]")], "expected a JSON object, got list"),
        ([("x.wav", 0), ("x.txt", b"\xe9t\xe9")], "not UTF-8"),
        ([("x.wav", 0), ("x.json", {"text": 3})], "field 'text' must be text"),
        ([("x.wav", 0), ("x.json", {"task": "tts"})], "task 'tts' in a run of task 'asr'"),
        ([("x.wav", 0), ("x.json", {"begin_time": 2, "end_time": 1})], "begin_time 2 is past end_time 1"),
    ],
)
def test_bad_samples_are_named_and_cost_no_others(tmp_path, clip, members, message):
    members = [(name, clip(content) if isinstance(content, int) else content) for name, content in members]
    shard = pack(tmp_path / "a.tar", ("a.wav", clip(5)), ("a.txt", "first"), *members, ("z.wav", clip(6)), ("z.txt", "last"))
    ((number, kind, text),) = faults(shard)
    assert (number, kind != "") == (2, True)
    assert text.startswith(f"{shard}::{members[0][0].partition('.')[0]}")
    assert message in text
    assert [row.text for row in iter_manifest(shard, on_error=lambda *_: None)] == ["first", "last"]
    with pytest.raises(InputError):
        read_manifest(shard)


def test_a_truncated_member_and_a_shard_cut_between_members(tmp_path, clip):
    whole = pack(tmp_path / "a.tar", *[m for i in range(3) for m in ((f"{i}.txt", str(i)), (f"{i}.wav", clip(i)))]).read_bytes()
    last = TarMember.parse(list(read_manifest(tmp_path / "a.tar"))[-1].audio)

    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: last.offset + 1000])
    assert [row.text for row in iter_manifest(cut, on_error=lambda *_: None)] == ["0", "1"]
    ((number, kind, message),) = faults(cut)
    assert (number, kind) == (3, "damaged shard")
    assert f"2.wav has {last.size} bytes and the shard ends after 1000" in message

    # Cut where a member ends, tarfile takes the shard for whole.
    cut.write_bytes(whole[: last.offset - 512])
    assert [row.text for row in iter_manifest(cut, on_error=lambda *_: None)] == ["0", "1"]
    assert [(kind, "truncated: it ends at byte" in message) for _, kind, message in faults(cut)] == [
        ("incomplete pair", False),
        ("damaged shard", True),
    ]


def test_a_damaged_header_in_the_middle(tmp_path, clip):
    shard = pack(tmp_path / "a.tar", *[m for i in range(3) for m in ((f"{i}.wav", clip(i)), (f"{i}.txt", str(i)))])
    member = TarMember.parse(read_manifest(shard)[1].audio)
    data = bytearray(shard.read_bytes())
    data[member.offset - 400] ^= 0xFF  # within its header, whose checksum no longer holds
    shard.write_bytes(data)
    assert [row.text for row in iter_manifest(shard, on_error=lambda *_: None)] == ["0"]
    ((number, kind, message),) = faults(shard)
    assert (number, kind) == (2, "damaged shard")
    assert f"no member's header at byte {member.offset - 512}" in message
    assert count_rows(shard) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a plain tar file"), (b"hello" * 500, "not a plain tar file"), (b"\x1f\x8b" + bytes(2000), "not a plain tar file")],
)
def test_no_tar_file_at_all(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "a.tar")


def test_joined_archives_and_compressed_ones(tmp_path, clip):
    one = pack(tmp_path / "1.tar", ("x.wav", clip(0)), ("x.txt", "one")).read_bytes()
    (tmp_path / "joined.tar").write_bytes(one + one)
    assert "after its end mark" in faults(tmp_path / "joined.tar")[0][2]
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="decompress it"):
        read_manifest(tmp_path / "a.tar.gz")


def test_braces_read_shards_in_order_and_a_broken_one_costs_only_itself(tmp_path, clip):
    for i in range(8, 12):
        pack(tmp_path / f"s-{i:06d}.tar", ("x.wav", clip(i % 4)), ("x.txt", f"{i}"))
    pattern = tmp_path / "s-{000008..000011}.tar"
    assert [(row.id, row.text) for row in read_manifest(pattern)] == [(f"s-{i:06d}.tar:x", str(i)) for i in range(8, 12)]
    (tmp_path / "s-000009.tar").write_bytes(b"broken" * 200)
    assert [row.text for row in iter_manifest(pattern, on_error=lambda *_: None)] == ["8", "10", "11"]
    (tmp_path / "s-000009.tar").unlink()
    with pytest.raises(InputError, match=r"s-000009.tar: cannot be read"):
        next(iter_manifest(pattern))


def test_a_member_that_is_not_there_any_more(tmp_path, clip):
    shard = pack(tmp_path / "a.tar", ("x.wav", clip(0)), ("x.txt", "one"), ("y.wav", clip(0)), ("y.txt", "two"))
    x, y = (TarMember.parse(row.audio) for row in read_manifest(shard))
    assert x.size == y.size
    # The same sizes in another order: the place is right for both, and only the name tells.
    pack(shard, ("y.wav", clip(0)), ("y.txt", "two"), ("x.wav", clip(0)), ("x.txt", "one"))
    for member in (x, y):
        with pytest.raises(InputError, match="it was changed; scan it again"):
            member.read()
    assert dataclasses.replace(x, offset=None, size=None).read() == clip(0)
    with pytest.raises(InputError, match=r"a.tar::absent.wav: the shard has no such member"):
        TarMember(str(shard), "absent.wav").read()
    for offset in (0, 100, 1 << 70):
        with pytest.raises(InputError):
            TarMember(str(shard), "x.wav", offset, 10).read()
    os.truncate(shard, 600)
    with pytest.raises(InputError, match=r"a.tar::y.wav: truncated"):
        TarMember(str(shard), "y.wav", 512, x.size).read()
    shard.unlink()
    with pytest.raises(InputError, match=r"a.tar::x.wav: .*a.tar cannot be read"):
        x.read()


def test_errors_of_clips_in_shards_name_row_and_member(tmp_path):
    shard = pack(tmp_path / "a.tar", ("x.wav", b"no sound"), ("x.txt", "one"))
    (row,) = read_manifest(shard)
    with pytest.raises(InputError) as raised:
        extract(row, LogMel())
    assert str(raised.value).startswith(f"{shard}::x.wav: ")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio": "a.tar::x.wav"}\n{"audio": "a.tar::y.wav"}\n')
    for number, row in enumerate(read_manifest(manifest), 1):
        with pytest.raises(InputError) as raised:
            extract(row, LogMel())
        assert str(raised.value).startswith(f"{manifest}:{number}: {shard}::{'xy'[number - 1]}.wav: ")


def test_a_large_shard_is_walked_in_constant_memory(tmp_path):
    """Of tarfile and of this reader alone: the interpreter's table of all strings that paths share may grow meanwhile, by megabytes."""
    members = [m for i in range(4000) for m in ((f"{i:05d}.wav", b"x"), (f"{i:05d}.txt", "one"))]
    samples = iter_samples(pack(tmp_path / "a.tar", *members))
    theirs = [tracemalloc.Filter(True, file) for file in (tarfile.__file__, shards.__file__)]
    tracemalloc.start()
    try:
        assert sum(1 for _ in itertools.islice(samples, 3999)) == 3999
        held = sum(block.size for block in tracemalloc.take_snapshot().filter_traces(theirs).traces)
        assert len(list(samples)) == 1
    finally:
        tracemalloc.stop()
    assert held < 100_000, "8000 members at tarfile's 1 kB each would be 8 MB"


NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30)


@given(NAMES.filter(lambda text: ".tar::" not in text), NAMES, st.none() | st.tuples(st.integers(0, 1 << 60), st.integers(0, 1 << 60)))
def test_references_come_back_as_they_were_written(folder, name, place):
    # Without a place, a name that ends like one reads as having it; the header's check finds that out.
    if place is None and TarMember.parse(f"a.tar::{name}").offset is not None:
        return
    member = TarMember(f"{folder}.tar", name, *(place or (None, None)))
    assert TarMember.parse(str(member)) == member


def test_ordinary_paths_are_no_references():
    for path in ("a.wav", "a.tar", "a::b.wav", "a.tar.gz::b", "::", ""):
        assert TarMember.parse(path) is None


def test_row_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(RowError("a:1: bad", "kind")))
    assert (str(error), error.kind) == ("a:1: bad", "kind")


def test_a_shard_named_in_capitals_gives_its_clips(tmp_path, clip):
    shard = pack(tmp_path / "X.TAR", ("a.wav", clip(1)), ("a.txt", "one"))
    (row,) = read_manifest(shard)
    assert TarMember.parse(row.audio) is not None
    assert extract(row, LogMel(8)).shape[1] > 0


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_claims_much_is_refused_unread(tmp_path, clip, kind):
    """A sparse file of a few kilobytes on disk would otherwise take all that its header claims in memory."""
    shard = pack(tmp_path / "a.tar", ("a.wav", clip(1)), ("a.txt", "one"))
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 200 << 20
    with shard.open("r+b") as file:
        at = file.seek(-2 * BLOCK - shard.stat().st_size % BLOCK, os.SEEK_END)
        while at > 0:  # back over the zeros that end the archive, to the last member
            file.seek(at - BLOCK)
            if any(file.read(BLOCK)):
                break
            at -= BLOCK
        file.seek(at)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(at + BLOCK + info.size + 4 * BLOCK)
    tracemalloc.start()
    try:
        rows = list(iter_rows(shard))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
    assert rows[0].utterance is not None
    assert [row.error.kind for row in rows[1:]] == ["damaged shard"]
    assert f"the header extension at byte {at} has {info.size} bytes, over the limit of 1048576" in str(rows[1].error)
