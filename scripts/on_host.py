"""What ``launch_hostfile.sh`` runs on each host: ``check`` says what is there, ``run`` keeps a command alive while the launcher lives.

The launcher is known here by the pipe on standard input alone. When that ends, because the launcher closed it, was killed or lost the
network, the command and all its descendants end too, so that nothing is left on a GPU that nobody watches.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

TORCHRUN_GRACE = 30.0
"""Seconds that a torchrun without TORCH_ELASTIC_SHUTDOWN_TIMEOUT leaves its processes after SIGTERM."""
_SET_CHILD_SUBREAPER = 36  # prctl(2): orphaned descendants become children of this process, so that they can be found


def main(argv: Sequence[str] | None = None) -> int:
    """``check`` prints one line of what must agree between hosts; ``run`` returns the command's exit code (128 + n for signal n)."""
    parser = argparse.ArgumentParser(description="The launcher's part on each host.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say which code, versions and devices are here")
    check.add_argument("--gpus", type=int, default=0, help="how many the run needs here; 0 asks for none")
    check.add_argument("--port", type=int, default=0, help="a port that must be free; 0 asks for none")
    check.add_argument("--grace", type=float, default=0.0, help="seconds that a stopped run is to have for its last checkpoint")
    check.add_argument("flags", nargs="*", help="the trainer's, whose files must be here")
    run = commands.add_parser("run", help="run a command until it ends or standard input does")
    run.add_argument("--grace", type=float, default=60.0, help="seconds between asking the command to stop and killing it")
    run.add_argument("words", nargs="+", help="the command")
    arguments = parser.parse_args(argv)
    if arguments.command == "run":
        return run_while_watched(arguments.words, grace=arguments.grace)
    try:
        print(checked(gpus=arguments.gpus, port=arguments.port, flags=arguments.flags))
    except (RuntimeError, OSError, ValueError) as error:
        print(f"on_host: error: {error}", file=sys.stderr)
        return 1
    if arguments.grace > TORCHRUN_GRACE and not torchrun_waits():
        version = importlib.metadata.version("torch")
        print(
            f"on_host: note: torch {version} kills what torchrun started {TORCHRUN_GRACE:g} s after SIGTERM, whatever STOP_GRACE is "
            f"({arguments.grace:g} s here); a checkpoint that takes longer is lost: set SAVE_FREQ, or install a newer torch",
            file=sys.stderr,
        )
    return 0


def torchrun_waits() -> bool:
    """Whether torchrun here reads TORCH_ELASTIC_SHUTDOWN_TIMEOUT. Looks into its source: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    launcher = Path(spec.origin).parent / "distributed" / "launcher" / "api.py"
    return not launcher.is_file() or "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in launcher.read_text(encoding="utf-8")


def checked(*, gpus: int, port: int, flags: Sequence[str]) -> str:
    """One line of ``name=value`` words that are the same on hosts that can train together.

    Raises:
        RuntimeError: a GPU or the port is missing, or the package is; the message says what to do.
        InputError: the flags are wrong, or this host lacks a file or a checkpoint that they name, or cannot write to the run's folder.
    """
    if port and not port_is_free(port):
        raise RuntimeError(f"port {port} is taken here; set MASTER_PORT to a free one, or end what holds it")
    if importlib.util.find_spec("arkfast") is None:
        raise RuntimeError(f"{sys.executable} has no package arkfast; run scripts/setup.sh in this checkout, or set PY to its interpreter")
    if gpus:
        import torch

        found = torch.cuda.device_count()
        if found < gpus:
            raise RuntimeError(
                f"{found} GPUs are here, {gpus} are asked for; correct slots= or CUDA_VISIBLE_DEVICES (--device cpu needs none)"
            )
    if flags:
        from arkfast.command_line import parse
        from arkfast.train.config import TrainConfig
        from arkfast.train.originals import without_original_flags
        from arkfast.train.paths import check_paths

        config = parse(TrainConfig, without_original_flags(flags)[0], prog="arkfast train", description="")
        check_paths(config)
    import arkfast

    versions = f"arkfast={arkfast.__version__} torch={importlib.metadata.version('torch')}"
    return f"code={fingerprint()} {versions} python={platform.python_version()}"


def fingerprint() -> str:
    """12 hex digits of the code that a run would import here, wherever it is installed."""
    import arkfast

    digest = hashlib.sha256()
    for folder in arkfast.__path__:
        # Links are followed: the folders of kernels are links in a checkout.
        paths = [Path(inner, name) for inner, _, names in os.walk(folder, followlinks=True) for name in names if name.endswith(".py")]
        for path in sorted(paths):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def port_is_free(port: int) -> bool:
    """Whether a server could listen there; one that has just ended does not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("", port))
        except OSError:
            return False
    return True


def run_while_watched(words: Sequence[str], *, grace: float) -> int:
    """Run a command; ask it to stop when standard input ends or a signal comes, and kill what is left ``grace`` seconds later."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: stop.set())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Its own session: a signal to the group of this process is ours to pass on, once.
    child = subprocess.Popen(list(words), stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_watch_input, args=(stop,), daemon=True).start()
    while child.poll() is None and not stop.wait(0.1):
        pass
    if child.poll() is None:
        print(f"on_host: stopping; what is left in {grace:g} s is killed", file=sys.stderr, flush=True)
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
    left = descendants(os.getpid())
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    code = child.wait()
    return 128 - code if code < 0 else code


def _watch_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def descendants(root: int) -> list[int]:
    """Every process below ``root`` now, by /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []:
        try:
            # pid (name) state ppid …; the name may hold spaces and brackets.
            parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
