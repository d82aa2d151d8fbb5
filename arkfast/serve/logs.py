"""The service's log: a JSON object a line, on standard error and in a file that is rotated."""

from __future__ import annotations

import logging
import sys
import time
from logging.handlers import RotatingFileHandler

from arkfast.files.json_text import json_text
from arkfast.records import InputError, JsonObject
from arkfast.serve.options import ServeConfig

LOG_BYTES, LOG_FILES = 50_000_000, 4
FIELDS = "fields"
"""What a record's ``extra`` calls the fields of its line."""


class Lines(logging.Formatter):
    """A record as a JSON object: ``time`` (UTC), ``level``, ``message``, fields that it brings, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: JsonObject = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields = getattr(record, FIELDS, None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_text(line, ascii_only=True)


def log_as(config: ServeConfig) -> None:
    """Send the log of this process where the flags say.

    Raises:
        InputError: --log_file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if config.log_to_console else []
    if config.log_file is not None:
        try:
            handlers.append(RotatingFileHandler(config.log_file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--log_file {config.log_file}: cannot be written ({error.strerror})") from error
    for handler in handlers:
        handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=handlers)
