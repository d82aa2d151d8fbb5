"""``scripts/service.sh`` leaves no process behind, and none of anybody else's is ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "service.sh"


def session(pid: int) -> list[int]:
    """Processes of the session, zombies left out."""
    listed = subprocess.run(["ps", "-eo", "sid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    return [int(own) for sid, own, state in map(str.split, listed.splitlines()) if int(sid) == pid and not state.startswith("Z")]


def free_ports() -> int:
    """The first of two consecutive ports that are free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


class Script:
    """The script with its variables; it is called from the folder where its files are to lie, which it is given by a relative name."""

    def __init__(self, folder: Path, port: int, model: str) -> None:
        self.folder, self.port = folder, port
        self.variables = {
            "MODEL": model, "PORT": str(port), "PYTHON_BIN": sys.executable, "RUN_DIR": "run", "MAX_NUM_SEQS": "4",
            "SERVE_FLAGS": "--device cpu",
        }  # fmt: skip

    def __call__(self, action: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(SCRIPT), action],
            env=os.environ | self.variables | more,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout + done.stderr

    def pid_file(self, place: int = 0) -> Path:
        return self.folder / "run" / f"ark_asr_vllm_{self.port + place}.pid"


@pytest.mark.slow
def test_start_status_restart_and_stop(model: Path, tmp_path: Path):
    (tmp_path / "model").symlink_to(model)
    run = Script(tmp_path, free_ports(), "model")
    port = run.port
    run.variables["http_proxy"] = "http://127.0.0.1:1"  # nobody's: the script asks the service itself
    assert run("status")[0] == 3
    code, said = run("start")
    assert (code, f"ready on port {port}" in said) == (0, True), said
    first = int(run.pid_file().read_text())
    assert len(session(first)) > 1, "the service and the engine's process"
    assert run("status")[0] == 0
    assert "runs already" in run("start")[1]

    # One on each GPU: both run on the CPU here, on consecutive ports.
    code, said = run("restart", GPUS="0 1")
    assert (code, f"ready on port {port}" in said, f"ready on port {port + 1}" in said) == (0, True, True), said
    second, third = (int(run.pid_file(place).read_text()) for place in (0, 1))
    assert session(first) == []
    assert len({first, second, third}) == 3
    os.kill(second, signal.SIGKILL)
    code, said = run("stop", GPUS="0 1")
    assert code == 0, said
    assert session(second) == session(third) == []
    assert not run.pid_file(0).exists()
    assert not run.pid_file(1).exists()

    # The log is lines of JSON; what was printed besides does not grow with requests.
    log = tmp_path / "run" / f"ark_asr_vllm_{port + 1}.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"request", "time", "level"} <= {key for line in lines for key in line}
    printed = log.with_name(f"{log.name}.console").read_text()
    assert "is ready at" in printed
    assert '"level"' not in printed

    code, said = run("start", MODEL=str(tmp_path))
    assert code == 1
    assert "ended before it was ready" in said
    assert "error: " in said


def test_a_number_that_is_another_program_s_by_now_is_left_alone(tmp_path: Path):
    run = Script(tmp_path, free_ports(), "model")
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        run.pid_file().parent.mkdir()
        run.pid_file().write_text(f"{other.pid}\n")
        assert run("status")[0] == 3
        code, said = run("stop")
        assert (code, "does not run" in said) == (0, True)
        assert other.poll() is None
        assert not run.pid_file().exists()
        for wrong in ("", "no number", "-1"):
            run.pid_file().write_text(wrong)
            assert run("status")[0] == 3
    finally:
        other.kill()
        other.wait()


def test_a_port_that_another_program_has_is_not_taken_for_the_service(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        run = Script(tmp_path, other.getsockname()[1], "model")
        code, said = run("start")
        assert (code, "another program listens" in said) == (1, True), said
        assert not run.pid_file().exists()


def test_the_script_names_its_actions_and_wants_a_model(tmp_path: Path):
    run = Script(tmp_path, free_ports(), "")
    assert run("elsewhere")[0] == 2
    assert "start|stop|status|restart" in run("elsewhere")[1]
    code, said = run("start")
    assert (code != 0, "give the checkpoint" in said) == (True, True)
