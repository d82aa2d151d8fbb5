"""The benchmark of the service: one small run, and what it says of servers that are not there or answer wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_serve import main, others, recordings, row, table
from harness.flood import Answer, Clip, Flood, Server

CLIPS = [Clip("a.wav", b"", 2.0), Clip("b.wav", b"", 4.0)]
ALONE = [Answer(0, 200, 0.1, "one", None, False), Answer(1, 200, 0.1, "two", None, False)]
SERVER = Server(name="other", address="http://127.0.0.1:1", model="m")


def test_a_row_counts_what_is_wrong():
    answers = [
        Answer(0, 200, 1.0, "one", None, False),
        Answer(1, 200, 3.0, "three", None, False),
        Answer(0, 429, 0.1, None, "overloaded", True),
        Answer(1, 503, 0.1, None, "timeout", True),
        Answer(0, 0, 0.1, None, "ReadError", False),
    ]
    found = row(SERVER, 8, CLIPS, ALONE, Flood(answers, 2.0, [(0.0, 10_000_000), (1.0, 30_000_000), (2.0, 20_000_000)]))
    assert (found["requests"], found["answered"], found["refused"], found["failed"], found["differ"]) == (5, 2, 0.4, 1, 1)
    assert found["latency"]["p50"] == 2.0
    assert found["audio_rate"] == 3.0
    assert found["memory"] == {"first": 10_000_000, "last": 20_000_000, "most": 30_000_000}
    assert "| other | 8 | 5 | 2 | 40.0 % | 1 | 1 | 2.00 |" in table([found], [])


def test_a_row_of_refusals_alone_has_no_latency():
    found = row(SERVER, 64, CLIPS, ALONE, Flood([Answer(0, 429, 0.1, None, "overloaded", True)], 1.0, []))
    assert found["latency"] is found["memory"] is None
    assert "| – | – | – | 0.0 | – |" in table([found], [])


def test_servers_that_are_not_there_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert '| vLLM | not run: give --against "vLLM=URL" where it runs |' in table([], ["vLLM"])
    with pytest.raises(ValueError, match="give NAME=URL"):
        others(["http://127.0.0.1:8000"])
    with pytest.raises(ValueError, match="does not say what is served"):
        others(["vLLM=http://127.0.0.1:1"])
    with pytest.raises(ValueError, match="holds no wav"):
        recordings(tmp_path)
    for wrong in ("4,1", "0,1", "1,1"):
        with pytest.raises(SystemExit):
            main(["--concurrency", wrong])
        assert "ascending numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_has_a_table_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    pytest.importorskip("matplotlib")
    flags = "--device cpu --max_new_tokens 16"
    assert main(["--serve_flags", flags, "--concurrency", "1,4", "--requests", "8", "--hold", "3", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "serve.json").read_text())
    assert [(each["concurrency"], each["held"]) for each in found["rows"]] == [(1, False), (4, False), (4, True)]
    for each in found["rows"]:
        assert each["answered"] == each["requests"] >= 8
        assert 0 < each["latency"]["p50"] <= each["latency"]["p95"] <= each["latency"]["p99"]
        assert each["memory"]["last"] > 100e6, "the engine's process counts too"
    assert len(found["held"]) >= 3
    assert said.count("not run") == len(found["not_run"]) == 3
    assert (tmp_path / "serve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
