"""What is read: pipes that are read twice, compressed files, arrays, and files that hold no rows."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from arkfast.files import inputs
from arkfast.files.inputs import input_folder, is_stream, local_path, open_input
from arkfast.files.lines import MAX_LINE, read_lines
from arkfast.records import InputError


def rows(path: Path) -> list[object]:
    return [json.loads(line) for line, _, _ in read_lines(path) if line.strip()]


def lines_of(content: bytes, path: Path) -> list[bytes]:
    path.write_bytes(content)
    return [line for line, _, _ in read_lines(path)]


# Pipes

TWICE = """
import sys
from pathlib import Path
from arkfast.files.lines import read_lines
for path in map(Path, sys.argv[1:]):
    first, second = ([line for line, _, _ in read_lines(path)] for _ in range(2))
    assert first == second, (first, second)
    print(len(first), sum(map(len, first)))
"""


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
@pytest.mark.parametrize("kind", ["pipe", "file", "rest of a file"])
def test_standard_input_is_read_as_often_as_is_asked(tmp_path: Path, name: str, kind: str) -> None:
    content = b'{"a": 1}\n' * 100_000
    script = [sys.executable, "-c", TWICE, name]
    if kind == "pipe":
        done = subprocess.run(script, input=content, stdout=subprocess.PIPE, check=True).stdout
    else:
        (tmp_path / "rows").write_bytes((b"x" * 7 if kind != "file" else b"") + content)
        with (tmp_path / "rows").open("rb") as file:
            os.lseek(file.fileno(), 7 if kind != "file" else 0, os.SEEK_SET)
            done = subprocess.run(script, stdin=file, stdout=subprocess.PIPE, check=True).stdout
    assert done.split() == [b"100000", b"900000"]


def test_process_substitution_is_read_twice() -> None:
    words = f"{sys.executable} -c '{TWICE}' <(printf '{{}}\\n{{}}\\n') <(gzip -c <(printf '{{}}\\n'))"
    done = subprocess.run(["bash", "-c", words], stdout=subprocess.PIPE, check=True).stdout
    assert done.split() == [b"2", b"6", b"1", b"3"]


def test_a_named_pipe_is_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["bash", "-c", f"printf '{{}}\\n{{}}\\n' > {pipe}"]):
        assert rows(pipe) == [{}, {}]
    assert rows(pipe) == [{}, {}]
    assert is_stream(pipe)


def test_several_processes_would_each_get_a_part_of_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=rf"/dev/fd/{read}: gives its content once, and several processes would each get a part"):
        open_input(Path(f"/dev/fd/{read}"))
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("path", ["/dev/fd/987", "gone.jsonl", ".", "nul\0"])
def test_what_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(InputError, match=r": cannot be read \(.+\); give the path of a JSONL manifest"):
        list(read_lines(Path(path), "JSONL manifest"))


def test_where_relative_paths_start(tmp_path: Path) -> None:
    assert [input_folder(Path(path)) for path in ("-", "/dev/stdin", "/dev/fd/63")] == [Path()] * 3
    assert input_folder(tmp_path / "a.jsonl") == tmp_path


# Compressed files


def test_gzip_is_read_whatever_its_name_and_however_many_parts_it_has(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert rows(tmp_path / "rows") == [{"a": 1}, {"a": 2}]
    (tmp_path / "array.gz").write_bytes(gzip.compress(b'[{"a": 1}, {"a": 2}]'))
    assert rows(tmp_path / "array.gz") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_gzip_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    whole = bytearray(gzip.compress(os.urandom(100_000).hex().encode()))
    if damage == "cut":
        del whole[50_000:]
    else:
        whole[60_000] ^= 255
    (tmp_path / "rows.gz").write_bytes(bytes(whole))
    with pytest.raises(InputError, match=r"rows\.gz: cannot be read to its end"):
        list(read_lines(tmp_path / "rows.gz"))


ZSTD = b"\x28\xb5\x2f\xfd"


def test_zstd_without_a_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("Python has the library itself")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "rows.zst").write_bytes(ZSTD + b"...")
    with pytest.raises(InputError, match=r"rows\.zst: is compressed by zstd, for which no library is installed: pip install zstandard"):
        list(read_lines(tmp_path / "rows.zst"))


def test_zstd_is_read_with_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("Python has the library itself")
    module = pytest.importorskip("zstandard") if "zstandard" in sys.modules else None
    if module is None:  # a stand-in with the library's interface, whose "compression" is an offset of one
        import io

        class Decompressor:
            def stream_reader(self, source: io.BufferedReader, *, read_across_frames: bool) -> io.BytesIO:
                assert read_across_frames
                return io.BytesIO(bytes(byte - 1 for byte in source.read()[4:]))

        monkeypatch.setitem(sys.modules, "zstandard", types.SimpleNamespace(ZstdDecompressor=Decompressor))
        (tmp_path / "rows.zst").write_bytes(ZSTD + bytes(byte + 1 for byte in b'{"a": 1}\n{}\n'))
    else:
        (tmp_path / "rows.zst").write_bytes(module.ZstdCompressor().compress(b'{"a": 1}\n{}\n'))
    assert rows(tmp_path / "rows.zst") == [{"a": 1}, {}]


# Arrays


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n\n  "])
def test_the_objects_of_an_array_are_lines(tmp_path: Path, indent: int | None, mark: str) -> None:
    expected = [{"text": 'grüße ] } \\ " 你好' * 20, "n": number, "list": [number, {}]} for number in range(3000)]
    path = tmp_path / "rows.json"
    path.write_text(mark + json.dumps(expected, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert rows(path) == expected
    assert path.stat().st_size > 3 * (1 << 16), "several blocks are read"
    ends = [end for _, end, _ in read_lines(path)]
    assert ends == sorted(ends)


def test_an_empty_array_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(b" [ ] \n", tmp_path / "a") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1}, {"a": ]', "rows:2: not valid JSON .* in element 2 of the array"),
        ('[{"a": 1} {"a": 2}]', "rows:1: not valid JSON: '{' after element 1 of the array"),
        ('[{"a": 1},]', "rows:2: not valid JSON: a comma at the end of the array"),
        ('[{"a": 1}', "rows:1: not valid JSON: the file ends before the array does"),
        ('[{"a": 1}]\n{"a": 2}\n', "rows: not valid JSON: '{' after the end of the array"),
        ('[{"a": 1}]x', "rows: not valid JSON: 'x' after the end of the array"),
        ("[{" + '"a": [' * 100_000, "rows:1: not valid JSON"),
    ],
)
def test_an_array_that_is_no_json_is_named(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lines_of(content.encode(), tmp_path / "rows")


def test_an_array_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows: not UTF-8 text \(.+\); save it as UTF-8"):
        lines_of('[{"text": "grüße"}]'.encode("latin-1"), tmp_path / "rows")


# Files that hold no rows

NO_ROWS = {
    "a WAV recording": b"RIFF\x24\0\0\0WAVEfmt ",
    "a FLAC recording": b"fLaC\0\0\0\x22",
    "an Ogg recording": b"OggS\0\2",
    "an MP3 recording": b"ID3\4\0",
    "an MP4 or M4A recording": b"\0\0\0\x20ftypM4A ",
    "a Parquet file": b"PAR1\x15\4",
    "a zip archive": b"PK\3\4\x14\0",
    "a web page": b"<!DOCTYPE html>",
    "text in UTF-16": '{"audio": "a.wav"}\n'.encode("utf-16"),
    "text in UTF-32": '{"audio": "a.wav"}\n'.encode("utf-32"),
    "no text": '{"audio": "a.wav"}\n'.encode("utf-16-le"),
    "a tar file": b"clip.flac" + b"\0" * 248 + b"ustar\0",
}


@pytest.mark.parametrize("kind", NO_ROWS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_holds_no_rows_is_told_at_once(tmp_path: Path, kind: str, packed: bool) -> None:
    with pytest.raises(InputError, match=rf"rows: is {kind}.*, no JSONL file; "):
        lines_of(gzip.compress(NO_ROWS[kind]) if packed else NO_ROWS[kind], tmp_path / "rows")


@pytest.mark.parametrize("content", [b"", b"\n", b'\xef\xbb\xbf{"a": 1}\n', b"[1, 2]\n{}\n", b"not JSON\n", b'{"a": "\0"}\n', b"[\n1]\n"])
def test_what_may_hold_rows_comes_line_by_line(tmp_path: Path, content: bytes) -> None:
    assert lines_of(content, tmp_path / "rows") == content.splitlines(keepends=True)


def test_an_overlong_line_is_cut_and_the_next_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"{" + b"x" * MAX_LINE + b"\n{}\n")
    (first, end, whole), second = read_lines(tmp_path / "rows")
    assert (len(first), end, whole) == (1000, MAX_LINE + 2, False)
    assert second == (b"{}\n", MAX_LINE + 5, True)


def test_paths_as_users_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    given = {
        "~/a.jsonl": "/home/someone/a.jsonl",
        "file:///data/a%20b.wav": "/data/a b.wav",
        "file:/data/a.wav": "/data/a.wav",
        "FILE://localhost/data/a.wav": "/data/a.wav",
        "a/~b.wav": "a/~b.wav",
        "clip.wav": "clip.wav",
        "-": "-",
    }
    assert {text: local_path(text) for text in given} == given
    with pytest.raises(InputError, match="is a file of the machine server"):
        local_path("file://server/a.wav")


def test_the_copy_of_a_pipe_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read, write = os.pipe()
    os.write(write, b"{}\n")
    os.close(write)
    path = Path(f"/dev/fd/{read}")
    assert rows(path) == rows(path) == [{}]
    os.close(read)
    assert list(tmp_path.iterdir()) == []
    inputs._copies.clear()


def test_every_file_of_an_evaluation_may_be_a_pipe(tmp_path: Path) -> None:
    """The input is read for its rows and again for its digest, and what is compared with twice too."""
    row = {"id": "1", "text": "a b", "pred_text": "a c", "language": "en"}
    (tmp_path / "rows").write_text(json.dumps(row) + "\n")
    run = f"{sys.executable} -m arkfast evaluate"
    words = f"{run} --input rows --summary summary.json && {run} --input <(cat rows) --compare <(cat rows) --baseline <(cat summary.json)"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, stdout=subprocess.PIPE, check=True, timeout=100)
    assert b"its rows are those of /dev/fd/" in done.stdout
    words = f"cat rows | {run} --input - --output - | {run} --input - | grep en && ls"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, stdout=subprocess.PIPE, check=True, timeout=100)
    assert done.stdout.splitlines()[-2:] == [b"rows", b"summary.json"]


def test_flags_take_addresses_of_files_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from arkfast.infer.command import TranscribeConfig, parse

    monkeypatch.setenv("HOME", "/home/someone")
    flags = ["--input=~/a.jsonl", "--output", "-", "--model_path", "file:///models/a%20b"]
    config = parse(TranscribeConfig, flags, prog="arkfast transcribe", description="A test.")
    assert (config.input, config.output, config.model_path) == (Path("/home/someone/a.jsonl"), Path("-"), Path("/models/a b"))
