"""The cache of durations: measured once, measured again when the file changed, and never in the way."""

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from arkfast import audio
from arkfast.manifest import DurationCache, scan_manifest
from arkfast.manifest.durations import Length
from arkfast.records import InputError
from arkfast.testing import write_wav


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings whose headers were read."""
    names: list[str] = []
    real = audio.extent

    def extent(source: str, **options: object) -> audio.Extent:
        names.append(Path(source).name)
        return real(source, **options)

    monkeypatch.setattr(audio, "extent", extent)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        write_wav(tmp_path / f"{name}.wav", np.zeros(16000, dtype=np.float32))
    rows = [{"audio": f"{name}.wav", "id": f"{name}{i}"} for name in "abc" for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def scan(folder: Path) -> list[float]:
    """Durations of the clean rows."""
    output = folder / "clean.jsonl"
    scan_manifest(folder / "in.jsonl", output, folder / "rejects.jsonl", cache=folder / "cache")
    return [json.loads(line)["duration"] for line in output.read_text().splitlines()]


def test_a_header_is_read_once(folder, measured, monkeypatch):
    assert scan(folder) == [1.0] * 9
    assert sorted(measured) == ["a.wav", "b.wav", "c.wav"]
    assert scan(folder) == [1.0] * 9
    monkeypatch.chdir(folder)
    scan_manifest(Path("in.jsonl"), Path("clean.jsonl"), Path("rejects.jsonl"), cache=Path("cache"))
    assert len(measured) == 3


def test_a_file_of_another_size_or_time_is_read_again(folder, measured):
    scan(folder)
    measured.clear()
    write_wav(folder / "a.wav", np.zeros(8000, dtype=np.float32))
    assert scan(folder) == [0.5] * 3 + [1.0] * 6
    assert measured == ["a.wav"]
    # The same size at another time.
    state = (folder / "b.wav").stat()
    os.utime(folder / "b.wav", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    scan(folder)
    # Another size at the same time.
    state = (folder / "c.wav").stat()
    write_wav(folder / "c.wav", np.zeros(4000, dtype=np.float32))
    os.utime(folder / "c.wav", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert scan(folder) == [0.5] * 3 + [1.0] * 3 + [0.25] * 3
    assert measured == ["a.wav", "b.wav", "c.wav"]
    (folder / "a.wav").unlink()
    assert len(scan(folder)) == 6


def test_a_bad_recording_is_tried_again(folder, measured):
    (folder / "a.wav").write_text("not audio")
    assert len(scan(folder)) == 6
    measured.clear()
    scan(folder)
    assert measured == ["a.wav"] * 3


def test_other_files_are_not_written_to(tmp_path):
    path = tmp_path / "other"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="is a database, but no cache of durations; give another --cache"):
        DurationCache(path)
    assert path.read_bytes() == before
    path.write_text("precious " * 200)
    with pytest.raises(InputError, match="is no cache of durations"):
        DurationCache(path)
    assert path.read_text() == "precious " * 200


def test_where_nothing_can_be_kept_it_says_so_and_goes_on(tmp_path, capsys):
    with DurationCache(tmp_path / "absent" / "cache") as cache:
        cache.put({"a": Length(1, 2, 3.0)})
        assert cache.get(["a"]) == {}
    assert "durations are not kept" in capsys.readouterr().err


def test_a_cache_of_another_version_is_begun_anew(tmp_path):
    path = tmp_path / "cache"
    with DurationCache(path) as cache:
        cache.put({"a": Length(1, 2, 3.0)})
    with DurationCache(path) as cache:
        assert cache.get(["a", "b"]) == {"a": Length(1, 2, 3.0)}
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with DurationCache(path) as cache:
        assert cache.get(["a"]) == {}
        cache.put({"a": Length(4, 5, 6.0)})
        assert cache.get(["a"]) == {"a": Length(4, 5, 6.0)}


def test_a_cache_damaged_in_use_costs_only_time(tmp_path, capsys):
    path = tmp_path / "cache"
    with DurationCache(path) as cache:
        cache.put({f"recording {i}": Length(1, 2, 3.0) for i in range(2000)})
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    with DurationCache(path) as cache:
        assert cache.get(["recording 5"]) == {}
        cache.put({"a": Length(1, 2, 3.0)})
    assert "durations are not kept" in capsys.readouterr().err
