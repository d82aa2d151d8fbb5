"""Manifests of any size in memory that does not grow with them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arkfast.data.ids import SeenIds
from arkfast.testing import write_wav

# SQLite keeps 8 MiB of ids, the rows under way take a few more, the allocator rounds up; 200,000 ids kept in Python would take 30.
ALLOWED_MIB = 24

PEAKS = """
import re, sys
from pathlib import Path
from arkfast.manifest import scan_manifest

def peak():  # of this process alone: getrusage counts what it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

small, large, folder = map(Path, sys.argv[1:])
for path in (small, large):
    summary = scan_manifest(path, folder / "clean.jsonl", folder / "rejects.jsonl", cache=folder / "cache")
    print(summary.rows, summary.rejected, peak())
"""


def write(path: Path, rows: int) -> Path:
    """Rows over few recordings, one in 100 bad in one of four ways; ids in no order."""
    bad = ("{bad", '{"audio": 3}', '{"audio": "absent.wav"}', '{"audio": "0.wav", "id": "again"}')
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"audio": "0.wav", "id": "again"}) + "\n")
        for i in range(1, rows):
            row = {"audio": f"{i % 10}.wav", "text": "one two three", "language": "en", "id": f"utterance-{i * 7919 % 1_000_003:07d}"}
            file.write((bad[i // 100 % 4] if i % 100 == 0 else json.dumps(row)) + "\n")
    return path


def peaks(folder: Path, rows: int) -> None:
    for i in range(10):
        write_wav(folder / f"{i}.wav", np.zeros(1600, dtype=np.float32))
    small, large = write(folder / "small.jsonl", 5000), write(folder / "large.jsonl", rows)
    run = subprocess.run([sys.executable, "-c", PEAKS, small, large, folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (_, _, before), (good, rejected, after) = (line.split() for line in run.stdout.splitlines())
    assert (int(good), int(rejected)) == (rows - (rows - 1) // 100, (rows - 1) // 100)
    assert float(after) - float(before) < ALLOWED_MIB


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")


@linux
def test_200_000_rows_take_the_memory_of_5_000(tmp_path):
    peaks(tmp_path, 200_000)


@pytest.mark.slow
@linux
def test_a_million_rows_take_the_memory_of_5_000(tmp_path):
    peaks(tmp_path, 1_000_000)


def test_ids_are_told_apart_by_themselves():
    ids = SeenIds()
    for i, identity in enumerate(("a", "A", "a ", "é", "e\u0301", "1", "1.0", "a\0", "a\0b", "")):
        assert ids.first(identity, f"m:{i}") is None
    assert [ids.first("a", "m:99"), ids.first("a\0", "m:99"), ids.first("e\u0301", "m:99")] == ["m:0", "m:7", "m:4"]
    ids.close()
