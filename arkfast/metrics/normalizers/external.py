"""``external``: a module ``text_process`` in another Python, as open-audio-opd called it; then ``basic``.

Every reply carries the number of the text it belongs to, so that no line can stand for another's: a reply
too many, too few, out of turn or not of the protocol is an error, and so are a silent process and one that ends early.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arkfast.files.json_input import parse_json
from arkfast.metrics.normalizers import basic
from arkfast.metrics.normalizers.record import Normalizer, hash_files
from arkfast.records import InputError, JsonObject

STALL_SECONDS = 120.0  # for one text, and for the import, which may compile grammars
_AHEAD = 256  # texts sent before their replies are read; a pipe holds 64 KiB, so more would not get further
_STDERR_TAIL = 2000  # bytes of the process's own complaints that an error shows


def load_external(python: str, workdir: Path | None = None, *, stall_seconds: float = STALL_SECONDS) -> Normalizer:
    """A running process that normalises by ``text_process.text_normalize``.

    Args:
        python: interpreter that has the module.
        workdir: folder to run it in, where the module may lie; None is the current one.
        stall_seconds: how long one reply may take.

    Raises:
        InputError: the interpreter cannot be started or the module cannot be imported; from ``apply``: the process fails, ends, answers out
            of turn, or does not answer in time. The message ends with what the process wrote on standard error.
    """
    process = _Process(python, workdir, stall_seconds)
    try:
        hello = process.reply()
        version, rules = hello.get("version"), hello.get("sha256")
        if not isinstance(version, str) or not isinstance(rules, str):
            raise process.error(f"expected its version and hash first, got {hello}")
    except BaseException:
        process.close()
        raise

    def apply(texts: Sequence[str], languages: Sequence[str | None]) -> list[str]:
        # open-audio-opd gives no language to text_normalize and never shows it an empty text
        given = [i for i, text in enumerate(texts) if text.strip()]
        out = [""] * len(texts)
        for i, text in zip(given, process.normalize([texts[i] for i in given]), strict=True):
            out[i] = basic.of_language(languages[i])(text)
        return out

    return Normalizer(name="external", version=version, sha256=hash_files([], rules, basic.sha256()), apply=apply, close=process.close)


class _Process:
    def __init__(self, python: str, workdir: Path | None, stall_seconds: float) -> None:
        self._python, self._stall = python, stall_seconds
        source = Path(__file__).with_name("external_worker.py").read_text(encoding="utf-8")
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the process
        try:
            self._process = subprocess.Popen(
                [python, "-c", source], cwd=workdir, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self._stderr.close()
            raise InputError(
                f"--text_normalize_python {python}: cannot be started in {workdir or Path.cwd()} ({error.strerror}); give the path of a "
                "Python that has the module text_process, and its folder as --text_normalize_workdir"
            ) from error
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._sent = 0

    def normalize(self, texts: Sequence[str]) -> list[str]:
        out: list[str] = []
        for start in range(0, len(texts), _AHEAD):
            part = texts[start : start + _AHEAD]
            writer = threading.Thread(target=self._write, args=(part, self._sent), daemon=True)
            writer.start()
            for text in part:
                out.append(self._normalized(text, self._sent))
                self._sent += 1
            writer.join()
        if not self._lines.empty():
            raise self.error(f"more replies than texts: {self._lines.get()[:200]!r}")
        return out

    def _normalized(self, text: str, number: int) -> str:
        reply = self.reply()
        if reply.get("i") != number:
            raise self.error(f"expected the reply to text {number}, got {reply}")
        if "error" in reply:
            raise self.error(f"text_normalize failed with {reply['error']} on {text!r}")
        if not isinstance(reply.get("text"), str):
            raise self.error(f"expected text_normalize to give text, got {reply.get('text')!r} for {text!r}")
        return reply["text"]

    def reply(self) -> JsonObject:
        try:
            line = self._lines.get(timeout=self._stall)
        except queue.Empty:
            raise self.error(f"no reply within {self._stall:g} s") from None
        if not line:
            raise self.error("the process ended before its last reply")
        try:
            message = parse_json(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise self.error(f"a line that is no reply: {line[:200]!r}")
        return message

    def error(self, what: str) -> InputError:
        """The error, with the end of what the process wrote on standard error; the process is ended."""
        self._end()
        size = self._stderr.seek(0, 2)
        self._stderr.seek(max(0, size - _STDERR_TAIL))
        complaint = self._stderr.read().decode("utf-8", errors="replace").strip()
        tail = f"; it wrote on standard error:\n{complaint}" if complaint else ""
        return InputError(f"--text_normalize_python {self._python}: {what}{tail}")

    def close(self) -> None:
        """End the process and forget what it wrote."""
        self._end()
        self._stderr.close()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # unsent texts of a process that has gone
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")  # the end

    def _write(self, texts: Sequence[str], first: int) -> None:
        assert self._process.stdin is not None
        # a process that has gone is told of by the reader, with its reason
        with contextlib.suppress(OSError, ValueError):
            for number, text in enumerate(texts, start=first):
                self._process.stdin.write(json.dumps({"i": number, "text": text}).encode() + b"\n")
            self._process.stdin.flush()
