"""A transcription of many rows costs as much memory as one of few, and as much time a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEW = 10_000
LINES = int(os.environ.get("ARKFAST_LINES", "100000"))
# The places of the journal's results take eight bytes each; the rest is for knowing ids and for what an allocator does not give back.
BYTES_A_LINE = 16
SLACK = 12 << 20

RUN = '''
"""Transcribe generated lines without a model: a clip's features are its number, and so is its transcript."""

import json, resource, sys, time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from arkfast.data.pipeline import FeatureItem
from arkfast.infer.command import main
from arkfast.infer.stream import Outcome, transcribe_stream

lines, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / "a.wav").write_bytes(b"")
with (folder / "in.jsonl").open("w") as file:
    for i in range(lines):
        file.write(json.dumps({"id": f"r{i}", "audio": "a.wav", "text": f"reference {i}", "begin_time": i, "end_time": i + 5}) + "\\n")


class StandIn:
    checkpoint = tokenizer = folder / "model"
    device, dtype, model_commit, processing_seconds, head_folder, batch_size = SimpleNamespace(type="cpu"), "float32", None, 0.0, None, 40

    def __init__(self):
        self.queue, self.tickets = deque(), 0

    def features(self, items):
        for item in items:
            if isinstance(item, FeatureItem):
                yield item
            else:
                yield FeatureItem(item, np.full((1, 500), item.begin, np.float32), None, (), {})

    def results(self, items, *, memory=None):
        return transcribe_stream(items, features=self.features, decoder=self, window=320, frames_per_second=100, memory=memory)

    def submit(self, utterance, features):
        self.tickets += 1
        self.queue.append((self.tickets, f"text {features[0, 0]:.0f}"))
        return self.tickets

    def step(self):
        return [Outcome(*self.queue.popleft(), "stop", None) for _ in range(min(40, len(self.queue)))]


began = time.perf_counter()
code = main([str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), "--model_path", "m", "--quiet"], load=lambda *_: StandIn())
seconds = time.perf_counter() - began
with (folder / "out.jsonl").open() as file:
    for count, line in enumerate(file):
        row = json.loads(line)
        assert (row["id"], row["pred_text"]) == (f"r{count}", f"text {count}"), line
assert count + 1 == lines
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"code": code, "seconds": seconds, "peak": peak * 1024}))
'''


def transcribed(lines: int, folder: Path) -> dict[str, float]:
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", RUN, str(lines), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert figures["code"] == 0
    return figures


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    few, many = transcribed(FEW, tmp_path / "few"), transcribed(LINES, tmp_path / "many")
    for lines, figures in ((FEW, few), (LINES, many)):
        print(f"{lines} lines: {lines / figures['seconds']:.0f} lines/s, {figures['peak'] / 2**20:.0f} MiB at most")
    assert many["peak"] - few["peak"] < BYTES_A_LINE * LINES + SLACK
