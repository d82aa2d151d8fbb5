"""``scripts/service.sh`` leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "service.sh"


def session(pid: int) -> list[int]:
    """Processes of the session, zombies left out."""
    listed = subprocess.run(["ps", "-eo", "sid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    return [int(own) for sid, own, state in map(str.split, listed.splitlines()) if int(sid) == pid and not state.startswith("Z")]


def test_start_status_restart_and_stop(model: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MODEL": str(model), "PORT": str(port), "PYTHON_BIN": sys.executable, "RUN_DIR": str(tmp_path), "MAX_NUM_SEQS": "4",
        "SERVE_FLAGS": "--device cpu",
    }  # fmt: skip
    pid_file = tmp_path / f"ark_asr_vllm_{port}.pid"

    def run(action: str) -> tuple[int, str]:
        done = subprocess.run(["bash", str(SCRIPT), action], env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    assert run("status")[0] == 3
    code, said = run("start")
    assert (code, f"ready on port {port}" in said) == (0, True), said
    first = int(pid_file.read_text())
    assert len(session(first)) > 1, "the service and the engine's process"
    assert run("status")[0] == 0
    assert "runs already" in run("start")[1]
    code, said = run("restart")
    assert code == 0, said
    second = int(pid_file.read_text())
    assert session(first) == []
    assert second != first
    os.kill(second, signal.SIGKILL)
    assert run("stop")[0] == 0
    assert session(second) == []
    assert not pid_file.exists()
    environment["MODEL"] = str(tmp_path)
    code, said = run("start")
    assert code == 1
    assert "ended before it was ready" in said
    assert run("elsewhere")[0] == 2
