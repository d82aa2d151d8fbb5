"""What several files of tests share: a small world to train in, a run that is abandoned, and a cluster of hosts that are all here."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that several files of tests share

LAUNCHER = Path(__file__).resolve().parents[2] / "scripts" / "launch_hostfile.sh"

# As sshd does: the words joined by blanks, read by a plain shell, in an environment of its own.
SSH = """#!/usr/bin/env bash
while [ "$1" = -o ]; do shift 2; done
host="$1"; shift
echo "$host" >>"{here}/calls"
if [ -e "{here}/unreachable_$host" ]; then echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; fi
exec env -i PATH="$PATH" STAND_IN_HOST="$host" sh -c "$*"
"""
# The hosts' interpreter: the launcher's own part runs for real, torchrun is what the test says the host does.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = scripts/on_host.py ]; then
  if [ "$2" = check ] && [ ! -e "{here}/check_for_real" ]; then
    if [ -e "{here}/check_$STAND_IN_HOST" ]; then . "{here}/check_$STAND_IN_HOST"; else echo code=1 python=3; fi
    exit
  fi
  exec "{python}" "$@"
fi
printf '%s\\0' "$@" >"{here}/$STAND_IN_HOST.args"
env -0 >"{here}/$STAND_IN_HOST.env"
echo $$ >"{here}/$STAND_IN_HOST.pid"
if [ -e "{here}/do_$STAND_IN_HOST" ]; then . "{here}/do_$STAND_IN_HOST"; fi
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a manifest of five clips, one of a single clip to measure on, and a clip that is too long."""
    from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    rows = []
    for i in range(5):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.13 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}", "language": "en"}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    (root / "dev.jsonl").write_text(rows[0])
    write_wav(root / "long.wav", synthetic_speech(1.5, seed=9))
    return root


@pytest.fixture(scope="session")
def ranks() -> Any:
    """The module that a rank of several runs."""
    spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def halted(ranks: Any) -> Any:
    """``halted(trainer, after)`` abandons a run when step ``after`` is done, with whatever was saved by then."""

    def run(trainer: Any, after: int) -> None:
        ranks.halt_after(trainer, after)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()

    return run


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on, from below those that systems hand out by themselves, lest a connection take it before its use."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
        return port


class Cluster:
    """A folder with the stand-ins, and what the hosts left there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run dir"
        (folder / "bin").mkdir()
        for path, text in ((folder / "bin" / "ssh", SSH), (folder / "py", PYTHON)):
            path.write_text(text.replace("{here}", str(folder)).replace("{python}", sys.executable))
            path.chmod(0o755)
        self.hostfile("alpha slots=2\nbeta slots=2\n")

    def hostfile(self, text: str) -> None:
        (self.folder / "hosts").write_text(text)

    def does(self, host: str, script: str) -> None:
        (self.folder / f"do_{host}").write_text(script)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        plain = {"HOME": os.environ.get("HOME", "/"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        settings = {"HOSTFILE": str(self.folder / "hosts"), "PY": str(self.folder / "py"), "RUN_DIR": str(self.run_dir),
                    "STUDENT_MODEL": "/models/student", "TEACHER_MODEL": "/models/teacher", "TRAIN_DATA": "/data/train.jsonl",
                    "STOP_GRACE": "5"}  # fmt: skip
        environment = {name: value for name, value in {**plain, **settings, **variables}.items() if value != "unset"}
        command = ["bash", str(LAUNCHER), *words]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def launch(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **variables)
        try:
            out, error = process.communicate(timeout=240)
        finally:
            process.kill()  # nothing of a launch that hangs outlives its test
        return subprocess.CompletedProcess(words, process.returncode, out, error)

    def arguments(self, host: str) -> list[str]:
        return (self.folder / f"{host}.args").read_text().split("\0")[:-1]

    def flags(self, host: str) -> dict[str, str]:
        """The trainer's flags, the last of each."""
        words = self.arguments(host)
        words = words[words.index("scripts/train.py") + 1 :]
        return dict(zip(words[::2], words[1::2], strict=True))

    def environment(self, host: str) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in (self.folder / f"{host}.env").read_text().split("\0")[:-1])
        return {name: value for name, _, value in pairs}

    def started(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.args")}

    def wait_for(self, *hosts: str) -> None:
        deadline = time.monotonic() + 120
        logs = [self.run_dir / f"node_{i}_{host}.out" for i, host in enumerate(hosts)]
        while not all(log.exists() and "training" in log.read_text() for log in logs):
            assert time.monotonic() < deadline, "the hosts did not start"
            time.sleep(0.02)

    def ended(self, host: str, within: float = 60.0) -> bool:
        """Whether what ran on a host ends in time."""
        pid, deadline = int((self.folder / f"{host}.pid").read_text()), time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    folder = tmp_path / "a cluster"
    folder.mkdir()
    return Cluster(folder)
