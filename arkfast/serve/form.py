"""A request's form: fields, and the recording in a file of the spool."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from arkfast.serve.body import Bounded, check_length
from arkfast.serve.errors import FULL, ApiError, no_room

MOST_FIELDS, MOST_FIELD_BYTES = 40, 64_000
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


class Form(NamedTuple):
    """What a client sent."""

    fields: dict[str, list[str]]
    """Values of every field but the file."""
    recording: Path
    """The file, in the spool."""


async def received(request: Request, folder: Path, *, most: int, seconds: float) -> Form:
    """Receive a request's form.

    Args:
        request: whose body has not been read.
        folder: for the recording. It exists, and nobody else uses it.
        most: bytes of the whole body.
        seconds: within which it must have arrived.

    Raises:
        ApiError: 400 for a form that cannot be read or has no recording, 408, 413, 415, or 503 where the disk is full.
        ClientDisconnect: the client went away.
    """
    check_length(request.scope, most)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = "The request must be multipart/form-data with the recording in the field file."
        raise ApiError(415, message, code="unsupported_type", close=True)
    body = Bounded(request.receive, most, seconds)
    try:
        async with Request(request.scope, body).form(max_files=1, max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "The field file is missing. Send the recording in it.", param="file", code="missing_file")
            fields: dict[str, list[str]] = {}
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.setdefault(name, []).append(value)
                elif name != "file":
                    raise ApiError(400, "The recording must stand in the field file.", param="file", code="invalid_value")
            # The client's name is used for its suffix alone, which says how recordings without a header are coded.
            suffix = Path((file.filename or "").replace("\\", "/")[-64:]).suffix
            recording = folder / f"recording{suffix.lower() if _SUFFIX.fullmatch(suffix) else ''}"
            await asyncio.to_thread(_copied, file, recording)
            return Form(fields, recording)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room(close=not body.done) from None
    except HTTPException as error:  # how the parser tells what is wrong with a form
        raise ApiError(400, f"The form cannot be read: {str(error.detail)[:200]}", code="invalid_form", close=not body.done) from None
    except (KeyError, UnicodeDecodeError, ValueError):  # no boundary, or headers that are no text
        raise ApiError(400, "The form cannot be read.", code="invalid_form", close=not body.done) from None


def _copied(file: UploadFile, path: Path) -> None:
    file.file.seek(0)
    with path.open("xb") as target:
        shutil.copyfileobj(file.file, target, 1 << 20)
