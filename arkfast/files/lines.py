"""Rows of a file, one JSON object a line or all of them in one JSON array, in constant memory; what holds no rows is told at once."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from arkfast.files.inputs import Input, open_input
from arkfast.records import InputError

MAX_LINE = 4 << 20  # bytes; a longer line is no row, and reading it whole could take all memory
BOM = codecs.BOM_UTF8
_KEPT = 1000  # bytes of an overlong line that are kept
_SKIP = 1 << 16  # bytes of its rest that are read at a time
_HEAD = 4096  # bytes that a file is judged by
_TAR_MAGIC = 257  # where "ustar" stands
_BLANK = b" \t\r\n"
_KINDS = (
    (0, b"RIFF", "a WAV recording"), (0, b"RF64", "a WAV recording"), (0, b"RIFX", "a WAV recording"), (0, b"fLaC", "a FLAC recording"),
    (0, b"OggS", "an Ogg recording"), (0, b"ID3", "an MP3 recording"), (0, b"\xff\xfb", "an MP3 recording"),
    (0, b"\xff\xf3", "an MP3 recording"), (0, b"\xff\xf2", "an MP3 recording"), (0, b"\xff\xfa", "an MP3 recording"),
    (4, b"ftyp", "an MP4 or M4A recording"), (0, b"FORM", "an AIFF recording"), (0, b"caff", "a CAF recording"),
    (0, b".snd", "an AU recording"), (0, b"\x1aE\xdf\xa3", "a Matroska or WebM recording"), (0, b"PK\3\4", "a zip archive"),
    (0, b"PAR1", "a Parquet file"), (0, b"BZh", "compressed by bzip2"), (0, b"\xfd7zXZ", "compressed by xz"), (0, b"%PDF", "a PDF"),
    (0, b"SQLite format 3", "a database"), (0, b"<!DOCTYPE", "a web page"), (0, b"<html", "a web page"),
)  # fmt: skip
_BOMS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


def read_lines(path: Path, what: str = "JSONL file") -> Iterator[tuple[bytes, int, bool]]:
    """(line, bytes of the content up to its end, whether it is whole) of each line; of one over 4 MiB only the beginning.

    The objects of a JSON array come as lines too, blanks and commas between them left out.

    Args:
        path: as ``open_input`` takes it.
        what: what the path should be, as errors say.

    Raises:
        InputError: the file cannot be read, is a recording or something else that holds no rows, or its array is no JSON.
    """
    with open_input(path, what) as file:
        head = file.peek(_HEAD)
        if reason := _no_rows(head):
            raise InputError(f"{path}: is {reason}, no {what}; {_advice(reason)}")
        if _is_array(head):
            yield from _elements(path, file)
            return
        end = 0
        while line := file.readline(MAX_LINE):
            end += len(line)
            whole = len(line) < MAX_LINE or line.endswith(b"\n")
            if not whole:
                line = line[:_KEPT]
                while rest := file.readline(_SKIP):
                    end += len(rest)
                    if rest.endswith(b"\n"):
                        break
            yield line, end, whole


def _no_rows(head: bytes) -> str | None:
    """What a file is that begins so and holds no rows; None for what may hold some."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return f"text in {name}"
    text = head.removeprefix(BOM).lstrip(_BLANK)
    if text.startswith((b"{", b"[")) and b"\0" not in text[:2]:
        return None
    for at, magic, kind in _KINDS:
        if head.startswith(magic, at):
            return kind
    if head[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar":
        return "a tar file whose name does not end in .tar"
    return "no text (it has bytes of value 0)" if b"\0" in head else None


def _advice(reason: str) -> str:
    if "recording" in reason:
        return 'its rows name the recordings, as {"audio": "clip.wav"}'
    if reason.startswith("text in"):
        return "save it as UTF-8"
    return "give the path of a file of JSON objects, one a line"


def _is_array(head: bytes) -> bool:
    text = head.removeprefix(BOM).lstrip(_BLANK)
    return text.startswith(b"[") and text[1:].lstrip(_BLANK)[:1] in (b"{", b"]", b"")


def _elements(path: Path, file: Input) -> Iterator[tuple[bytes, int, bool]]:
    """The elements of a JSON array as ``read_lines`` gives lines."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, end, number, more = "", 0, 0, 0, True

    def read() -> None:
        nonlocal text, at, end, more
        block = file.read(_SKIP)
        more, end = bool(block), end + len(block)
        try:
            text, at = text[at:] + utf8.decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error

    def skip(characters: str) -> str:
        """Pass over some characters; returns the one after them, empty at the end of the file."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in characters:
                at += 1
            if at < len(text) or not more:
                return text[at : at + 1]
            read()

    blank = " \t\r\n"
    skip("\ufeff" + blank)
    at += 1  # the bracket, by which it was known
    after = skip(blank)
    while after != "]":
        number += 1
        while True:
            try:
                _, stop = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                if not more or len(text) - at > MAX_LINE or isinstance(error, RecursionError):
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise InputError(f"{path}:{number}: not valid JSON ({reason}) in element {number} of the array; repair it") from error
                read()
                continue
            if stop < len(text) or not more:  # a number at the end of what was read might go on
                break
            read()
        element, at = text[at:stop], stop
        yield element.encode("utf-8", "surrogatepass"), end - len(text) + at, True
        after = skip(blank)
        if after == ",":
            at += 1
            after = skip(blank)
            if after == "]":
                raise InputError(f"{path}:{number + 1}: not valid JSON: a comma at the end of the array; remove it")
        elif after != "]":
            where = "the file ends before the array does" if not after else f"'{after}' after element {number} of the array"
            raise InputError(f"{path}:{number}: not valid JSON: {where}; repair it")
    at += 1
    if rest := skip(blank):
        raise InputError(f"{path}: not valid JSON: '{rest}' after the end of the array; give one array, or one object a line")
