"""``arkfast serve``: the service on an address, until it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arkfast import command_line
from arkfast.records import InputError
from arkfast.serve.logs import log_as
from arkfast.serve.options import ServeConfig

DESCRIPTION = "An OpenAI-compatible transcription service: arkfast serve --model AutoArk-AI/ARK-ASR-0.6B"
EXTRA = "arkfast serve needs the packages of its extra; install them with: pip install -e '.[serve]' (in a clone of arkfast)"


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

    log_as(config)
    return asyncio.run(run(config))
