"""The README's first minute of the service: its very lines, with the quickstart's model, give the digits that were said.

Where no quickstart has been run the test skips; scripts/test_full.sh runs one first. tests/first_hour.sh runs the lines with a tiny model.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "runs/quickstart/opd/last"


def lines() -> list[str]:
    """The README's commands from ``arkfast serve`` of the quickstart's model to the last curl line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (first,) = (number for number, block in enumerate(blocks) if f"arkfast serve {MODEL}" in block)
    return [line for block in blocks[first : first + 2] for line in block.splitlines()]


def said_in(line: str) -> str:
    """What the corpus says of the clip in a curl line."""
    found = re.search(r"file=@runs/quickstart/corpus/(audio/(\w+)/\S+)", line)
    assert found is not None, line
    rows = map(json.loads, (ROOT / f"runs/quickstart/corpus/{found[2]}.jsonl").read_text(encoding="utf-8").splitlines())
    (text,) = (row["text"] for row in rows if row["audio"] == found[1])
    return str(text)


def test_the_readme_shows_one_service_and_two_requests():
    assert [line.split()[0] for line in lines()] == ["arkfast", "curl", "curl"]


@pytest.mark.slow
def test_the_digits_that_were_said_come_back():
    if not (ROOT / MODEL / "config.json").exists():
        pytest.skip("no quickstart has been run here: bash scripts/quickstart.sh")
    serve, *requests = lines()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    service = subprocess.Popen(["bash", "-c", f"exec {serve}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        assert " is ready at http://127.0.0.1:8025" in service.stdout.readline()
        for line in requests:
            done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            if "srt" in line:
                assert done.stdout.startswith("1\n00:00:0")
                assert said_in(line) in done.stdout
            else:
                assert json.loads(done.stdout)["text"] == said_in(line)
    finally:
        service.send_signal(signal.SIGINT)
        assert service.wait(60) == 0
