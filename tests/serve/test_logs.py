"""The log: a JSON object a line, rotated, and on the console unless the flags say otherwise."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast.records import InputError
from arkfast.serve import logs
from arkfast.serve.options import ServeConfig


@contextmanager
def alone() -> Iterator[logging.Logger]:
    """The root logger without anybody's handlers, as in a process of its own. Pytest gives each phase of a test its own ones."""
    logger = logging.getLogger()
    kept, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    try:
        yield logger
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:], logger.level = kept, level


def test_lines_are_objects_and_files_are_rotated(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "LOG_BYTES", 3000)
    with alone() as root:
        logs.log_as(ServeConfig(model=Path("m"), log_file=tmp_path / "log"))
        for number in range(200):
            root.info("request %d", number, extra={logs.FIELDS: {"request": f"é{number}", "seconds": float("nan")}})
        try:
            raise KeyError("line 1\nline 2")
        except KeyError as error:
            root.error("a request failed: %s", "KeyError", exc_info=error)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["log", "log.1", "log.2", "log.3", "log.4"]
    assert all(path.stat().st_size <= 3000 for path in files)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[-1]["level"] == "error"
    assert "line 1" in lines[-1]["traceback"]
    assert lines[-2] == {"time": lines[-2]["time"], "level": "info", "message": "request 199", "request": "é199", "seconds": None}
    assert lines[-2]["time"].endswith("Z")
    assert len(capsys.readouterr().err.splitlines()) == 201


def test_the_console_may_be_left_out_where_there_is_a_file(tmp_path: Path, capsys):
    with alone() as root:
        logs.log_as(ServeConfig(model=Path("m"), log_file=tmp_path / "log", log_to_console=False))
        root.info("something")
    assert capsys.readouterr().err == ""
    assert "something" in (tmp_path / "log").read_text()
    with pytest.raises(InputError, match="nobody would have the log"):
        ServeConfig(model=Path("m"), log_to_console=False)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    with alone(), pytest.raises(InputError, match=r"none/log: cannot be written \(No such file or directory\)"):
        logs.log_as(ServeConfig(model=Path("m"), log_file=tmp_path / "none" / "log"))
