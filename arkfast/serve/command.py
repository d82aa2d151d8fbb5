"""``arkfast serve``: the service on an address, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler

from arkfast import command_line
from arkfast.records import InputError
from arkfast.serve.options import ServeConfig

DESCRIPTION = "An OpenAI-compatible transcription service: arkfast serve --model AutoArk-AI/ARK-ASR-0.6B"
EXTRA = "arkfast serve needs the packages of its extra; install them with: pip install -e '.[serve]' (in a clone of arkfast)"
LOG_BYTES, LOG_FILES = 50_000_000, 4


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code: 0 stopped, 1 the engine or the address failed, 2 wrong input."""
    config = command_line.parse(ServeConfig, argv, prog="arkfast serve", description=DESCRIPTION, position="model")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"{EXTRA} ({error.name} is missing)") from error
    from arkfast.serve.server import run

    _log_to(config)
    return asyncio.run(run(config))


def _log_to(config: ServeConfig) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if config.log_file is not None:
        try:
            handlers.append(RotatingFileHandler(config.log_file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--log_file {config.log_file}: cannot be written ({error.strerror})") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
