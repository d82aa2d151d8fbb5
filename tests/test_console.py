"""What commands say while they work: a live line on a terminal, plain lines elsewhere, and the same in a log file."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest

from arkfast import console
from arkfast.console import Console, duration
from arkfast.records import InputError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error on a terminal; called within the test, since pytest puts its own stream in place before."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    return stream


def work(said: Console, clock: Clock, steps: int) -> None:
    said.begin(unit="step", total=steps)
    for step in range(steps):
        clock.now += 1.0
        said.advance(f"loss {step}")


def test_in_a_file_or_pipe_there_is_a_plain_line_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Console(every=20.0, clock=clock) as said:
        work(said, clock, 60)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 20 of 60, 40 s left, loss 19", "step 40 of 60, 20 s left, loss 39", "step 60 of 60, loss 59"]


def test_a_terminal_has_one_live_line_that_goes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    clock = Clock()
    with Console(every=20.0, clock=clock) as said:
        work(said, clock, 60)
        said.say("noted")
        assert "60/60" in terminal.getvalue()
    assert "step 20 of 60" not in terminal.getvalue(), "the live line says it"
    shown = re.split(r"[\r\n]", terminal.getvalue())
    assert "noted" in shown
    assert terminal.getvalue().count("\n") == 1, "nothing but what was said stays"
    assert shown[-1].strip() == ""


def test_nothing_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR asks for what holds in any case."""
    terminal = watched(monkeypatch)
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        clock = Clock()
        with Console(clock=clock) as said:
            work(said, clock, 3)
            said.warn("warning: careful")
    assert "\x1b[3" not in terminal.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.getvalue())


def test_a_terminal_that_cannot_write_over_a_line_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with Console(every=2.0, clock=clock) as said:
        work(said, clock, 4)
    assert terminal.getvalue() == "step 2 of 4, 2 s left, loss 1\nstep 4 of 4, loss 3\n"


def test_quiet_leaves_warnings_and_the_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock, path = Clock(), tmp_path / "logs" / "run.log"

    def fail() -> None:
        with Console(quiet=True, log_file=path, every=2.0, clock=clock) as said:
            work(said, clock, 2)
            said.say("noted")
            said.warn("warning: careful")
            said.keep("in detail\nin two lines")
            raise RuntimeError("the disk melted")

    with pytest.raises(RuntimeError, match="melted"):
        fail()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: careful\n"
    lines = path.read_text(encoding="utf-8").splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    assert all(stamp.match(line) for line in lines)
    assert [stamp.sub("", line) for line in lines] == [
        "step 2 of 2, loss 1", "noted", "warning: careful", "in detail", "in two lines", "error: the disk melted",
    ]  # fmt: skip
    with Console(log_file=path) as said:
        said.say("a second run")
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(lines) + 1, "it is added to"


def test_a_log_file_that_cannot_be_written_is_an_error_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), Console(log_file=tmp_path / "file" / "run.log"):
        pass


def test_what_goes_to_standard_output_stays_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = watched(monkeypatch)
    with Console() as said:
        said.begin(unit="step", total=2)
        said.out('{"step": 1}')
        said.advance("loss 1")
    assert capsys.readouterr().out == '{"step": 1}\n'
    assert '{"step": 1}' not in terminal.getvalue()


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not console.is_terminal(stream)


def test_times_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (0.4, 45, 200, 7500, 360000)] == ["0 s", "45 s", "3 min", "2 h 5 min", "100 h 0 min"]


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="there are no pseudo-terminals here")
def test_training_on_a_terminal_shows_a_line_and_where_the_model_stands_and_no_json(tmp_path: Path) -> None:
    """The whole command on a real pseudo-terminal, and once more into pipes."""
    import json
    import subprocess

    from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

    tiny_checkpoint(tmp_path / "student", seed=1)
    write_wav(tmp_path / "a.wav", synthetic_speech(0.5, seed=1))
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "one two", "id": "a"}) + "\n")

    def words(run: str, *more: str) -> list[str]:
        flags = {"stage": "sft", "student_model": tmp_path / "student", "train_data": tmp_path / "train.jsonl", "max_steps": 3,
                 "output_dir": tmp_path / run, "dataloader_num_workers": 0, "device": "cpu", "gates": "off"}  # fmt: skip
        given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", "arkfast", "train", *given, *more]

    code, shown = on_a_terminal(words("watched"))
    assert code == 0, shown
    assert '{"step"' not in shown
    assert "it/s]" not in shown, "bars of other libraries"
    assert f"3 of 3 steps are done; the model is {tmp_path}/watched/last" in " ".join(shown.split())
    code, shown = on_a_terminal(words("asked", "--log_json"))
    assert shown.count('{"step"') == 3, shown
    piped = subprocess.run(words("piped"), capture_output=True, text=True)
    assert [json.loads(line)["step"] for line in piped.stdout.splitlines()] == [1, 2, 3]
    assert piped.stderr.splitlines()[0] == f"3 of 3 steps are done; the model is {tmp_path}/piped/last"
    assert len(piped.stderr.splitlines()) == 2, piped.stderr


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
def test_transcription_and_evaluation_can_be_quiet_and_keep_a_log(tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    import json

    from arkfast import cli
    from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

    tiny_checkpoint(tmp_path / "model", seed=1)
    write_wav(tmp_path / "a.wav", synthetic_speech(0.5, seed=1))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "one two", "id": "a"}) + "\n")
    capfd.readouterr()
    flags = {"input": tmp_path / "rows.jsonl", "output": tmp_path / "out.jsonl", "model_path": tmp_path / "model", "device": "cpu",
             "log_file": tmp_path / "log.txt", "max_new_tokens": 8}  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert cli.main([command, *words, "--quiet"]) == 0
    said = capfd.readouterr()
    assert said.err == "", "no bar of another library, and no progress"
    assert (said.out == "") == (command == "transcribe"), "what an evaluation found is what it is asked for"
    assert "1 of 1 rows transcribed" in (tmp_path / "log.txt").read_text()


def on_a_terminal(words: list[str]) -> tuple[int, str]:
    """Run a command on a pseudo-terminal of 400 columns; its exit code and all that it showed."""
    import fcntl
    import struct
    import termios

    pid, descriptor = os.forkpty()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0))
        os.execve(words[0], words, {**os.environ, "TERM": "xterm"})
    shown = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode("utf-8", "replace")
