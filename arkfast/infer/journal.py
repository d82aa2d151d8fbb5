"""What a transcription has done so far, in a file beside the output that only grows, so that a run that was killed can be gone on with.

A result is in the journal before its row is in the output. A later run of the same command takes it from there when the row, its recording
and everything else that decides the transcript are what they were, and does what is missing. The journal is removed when the output is
complete and no row failed.

**Format, version 1.** Each line is the CRC-32 of what follows as eight hexadecimal digits, a blank, and a JSON object.
``{"arkfast_journal": 1, "decides": {…}}`` begins what one run wrote; ``decides`` is what every transcript of that run depends on
(``deciding``). ``{"row": 7, "key": "…", "result": {…}}`` is the result of the row with that number, counted from 0 over the rows that are
transcribed. ``key`` is ``key_of`` its utterance; ``segment`` names a clip where the result is that of a part of the row. Where a row has
several results, the last one counts. A line that is torn or damaged is passed over.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

from arkfast import __version__
from arkfast.data.shards import TarMember
from arkfast.files import LineFile, json_line, move, naming
from arkfast.files.json_input import parse_json_object
from arkfast.files.remote import identity
from arkfast.infer.hotwords import FIELD as HOTWORDS
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import Result
from arkfast.records import InputError, JsonObject, JsonRow, Utterance

VERSION = 1
SYNC_SECONDS = 5.0
"""What a power cut may cost. A killed process loses nothing that was written."""
DECIDES_NOTHING = frozenset({
    "quiet", "log_file", "revision", "processor_path", "batch_size", "num_workers", "dtype", "device", "audio_field", "text_field",
    "begin_field", "end_field", "channel", "audio_track", "on_truncated", "allow_failures", "allow_repeats", "resume", "retry_failed",
    "target_sr", "padding_side", "asr_block_token_id_from", "aligner", "spool_mb",
})  # fmt: skip
"""Flags that no transcript depends on, or that stand in ``deciding`` or in ``key_of`` as what they come to: the files of the checkpoint,
the type of the weights, the channel that a row is heard in."""
_HEAD = "arkfast_journal"
_CHECK = 9  # bytes before a line's object


def deciding(options: TranscribeOptions, *, contents: Mapping[str, str], device: str, dtype: str) -> JsonObject:
    """What all transcripts of a run depend on: the flags, but for those that decide nothing, the version of arkfast, the model.

    Args:
        options: the flags.
        contents: digests of the model's and of the tokenizer's files.
        device: kind of device, such as cuda.
        dtype: type of the weights.
    """
    flags = {f.name: getattr(options, f.name) for f in fields(TranscribeOptions) if f.name not in DECIDES_NOTHING}
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    return {
        "arkfast": __version__,
        "device": device,
        "dtype": dtype,
        **flags,
        **{f"file {name}": value for name, value in contents.items()},
    }


def key_of(utterance: Utterance) -> str:
    """A digest of what a row asks for: its recording, with the file's size and time of change, its segment, its id, its language and its
    hotwords.

    The reference text and fields that are only passed through are left out. The file is not read, and nobody is asked about one of another
    machine, which goes by its address without what signs it.
    """
    u = utterance
    assert u.audio is None or isinstance(u.audio, str), "rows of a manifest name their recordings"
    segment, heard = [u.begin, u.end], [u.channel, u.audio_track, u.on_truncated]
    audio = None if u.audio is None else identity(u.audio)
    asked = {"row": [u.id, audio, _file(u.audio), segment, heard, u.language, u.task, u.extra.get(HOTWORDS)]}
    return hashlib.blake2b(json_line(asked), digest_size=16).hexdigest()


def _file(audio: str | None) -> list[int] | None:
    """Size and time of change of the file that holds a recording; None where the system does not say."""
    if audio is None:
        return None
    member = TarMember.parse(audio)
    try:
        found = os.stat(audio if member is None else member.path)
    except (OSError, ValueError):  # a path with a NUL in it is a ValueError
        return None
    return [found.st_size, found.st_mtime_ns]


class Journal:
    """The journal of one output, open for one run. Whoever opens it holds the output's lock.

    Args:
        path: the file; one without an intact line is moved aside to ``path`` + ``.old``.
        rows: how many rows the run has.
        decides: ``deciding``; results of runs for which it was something else are not taken.
        resume: False begins the file anew.
        retry_failed: do not take failed results.
        own: the file that results are written to, anew, where several processes share ``path`` and only read it; None is ``path``.

    Raises:
        InputError: the file cannot be read or written, or is of another version.

    Attributes:
        held: rows with a result that may be taken.
        other: results of runs with other settings.
        differing: names of those settings.
        damaged: lines that were passed over.
        lacking: whether a result that was taken or added has an error, its own or a segment's.
    """

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        decides: JsonObject,
        resume: bool = True,
        retry_failed: bool = False,
        own: Path | None = None,
    ) -> None:
        decides = parse_json_object(json_line(decides))  # as it comes back from the file
        self.path = path
        self._clips: dict[int, dict[str, int]] = {}  # the same for clips of rows that are not complete
        self._places = array("q", [-1]) * rows  # a byte's number for each row, so that a million rows cost 8 MB
        self._retry_failed, self._own = retry_failed, own
        self._synced = time.monotonic()
        self.held = self.other = self.damaged = 0
        self.lacking = False
        self.differing: tuple[str, ...] = ()
        self._decides, self._resume = decides, resume
        self._lines: LineFile | None = None  # a run that does nothing leaves no journal
        self._reader: BinaryIO | None = None
        self._intact = 0
        with naming(path):
            if resume and path.exists():
                self._intact = self._load(decides)
                self._reader = path.open("rb")

    def _load(self, decides: JsonObject) -> int:
        """Find the results that may be taken, and return how many lines are intact."""
        intact, ours, place = 0, False, 0
        with self.path.open("rb") as file:
            for line in file:
                begin, place = place, place + len(line)
                entry = _entry(line)
                if entry is None:
                    self.damaged += bool(line.strip())
                    continue
                intact += 1
                if _HEAD in entry:
                    if entry[_HEAD] != VERSION:
                        raise InputError(
                            f"{self.path}: is a journal of format {entry[_HEAD]}, and this version of arkfast reads format {VERSION}; "
                            "finish with the version that began it, or remove the file to begin anew"
                        )
                    theirs = entry.get("decides")
                    ours = theirs == decides
                    if not ours and isinstance(theirs, dict):
                        names = {name for name in theirs.keys() | decides.keys() if theirs.get(name) != decides.get(name)}
                        self.differing = tuple(sorted(names))
                elif not ours:
                    self.other += 1
                else:
                    self._note(entry, begin)
        self.held = sum(place >= 0 for place in self._places)
        return intact

    def _note(self, entry: JsonRow, place: int) -> None:
        row, result = entry.get("row"), entry.get("result")
        if not isinstance(row, int) or not 0 <= row < len(self._places) or not isinstance(result, dict):
            return
        lacks, segment = _lacks(result), entry.get("segment")
        if isinstance(segment, str):
            self._clips.setdefault(row, {})[segment] = -1 if self._retry_failed and lacks else place
            return
        self._places[row] = -1 if self._retry_failed and lacks else place
        if not lacks:
            self._clips.pop(row, None)

    def holds(self, row: int) -> bool:
        """Whether ``held`` counts the row; ``find`` may refuse its result all the same."""
        return self._places[row] >= 0

    def find(self, row: int, key: str, utterance: Utterance, *, segment: str | None = None) -> Result | None:
        """The result of an earlier run for a row or a clip of it, as a result of its utterance; None where there is none.

        Args:
            row: the row's number.
            key: ``key_of`` the row's utterance.
            utterance: what is asked for now.
            segment: the clip's name within the row; None for the row.
        """
        place = self._places[row] if segment is None else self._clips.get(row, {}).get(segment, -1)
        entry = self._at(place, key)
        if entry is None:
            return None
        result = restored(entry["result"], utterance)
        if result is not None:
            self.lacking |= _lacks(entry["result"])
        return result

    def clips(self, row: int, key: str) -> dict[str, JsonObject]:
        """What is known of clips of a row that is not complete: ``stored`` results by the clips' names.

        Args:
            row, key: as for ``find``.
        """
        found: dict[str, JsonObject] = {}
        for segment, place in self._clips.get(row, {}).items():
            if entry := self._at(place, key):
                found[segment] = entry["result"]
        return found

    def _at(self, place: int, key: str) -> JsonObject | None:
        """The entry at a byte's number; None where there is none, or one of another key."""
        if self._reader is None or place < 0:
            return None
        with naming(self.path):
            self._reader.seek(place)
            entry = _entry(self._reader.readline())
        return entry if entry is not None and entry.get("key") == key else None

    def add(self, row: int, key: str, result: Result, *, segment: str | None = None) -> None:
        """Write the result of a row or of a clip of it down; arguments are those of ``find``.

        Raises:
            InputError: the system refuses, as on a full disk.
        """
        self.add_stored(row, key, stored(result), segment=segment)

    def add_stored(self, row: int, key: str, values: JsonRow, *, segment: str | None = None) -> None:
        """``add`` of a result as ``stored`` gives it.

        Raises:
            InputError: the system refuses.
        """
        self.lacking |= _lacks(values)
        with naming(self.path):
            if self._lines is None:
                self._lines = self._begun()
            part = {} if segment is None else {"segment": segment}
            self._lines.add(_line({"row": row, "key": key, **part, "result": values}))
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._lines.sync()
                self._synced = time.monotonic()

    def _begun(self) -> LineFile:
        """The file with this run's first line."""
        if self._own is not None:
            lines = LineFile(self._own, fresh=True)
            lines.add(_line({_HEAD: VERSION, "decides": self._decides}))
            return lines
        if self._resume and not self._intact and self.path.exists() and self.path.stat().st_size:
            move(self.path, self.path.with_name(self.path.name + ".old"))
        lines = LineFile(self.path, fresh=not self._intact)
        if self._intact and not ends_whole(self.path):
            lines.add(b"\n")
        lines.add(_line({_HEAD: VERSION, "decides": self._decides}))
        return lines

    def close(self, *, remove: bool = False) -> None:
        """End the writing.

        Args:
            remove: the output is complete and nothing of the journal is wanted any more.
        """
        if self._lines is not None:
            with suppress(OSError):  # what ended the run is what is told
                if not remove:
                    self._lines.sync()
            with suppress(OSError):
                self._lines.close()
        if self._reader is not None:
            self._reader.close()
        self._lines = self._reader = None
        if remove:
            with naming(self.path):
                self.path.unlink(missing_ok=True)


def stored(result: Result) -> JsonObject:
    """What the journal keeps of a result: all but its utterance."""
    values: JsonObject = {f.name: getattr(result, f.name) for f in fields(Result) if f.name != "utterance"}
    values = {name: value for name, value in values.items() if value not in (None, (), {})}
    if result.failed:
        values["where"] = result.utterance.where  # an error begins with it, and must not name another line
    return values


def restored(values: JsonRow, utterance: Utterance) -> Result | None:
    """The result that ``stored`` gave, as a result of this utterance; None where it is of another place or another version.

    Args:
        values: as they come from a file.
        utterance: what is asked for now.
    """
    known = {f.name for f in fields(Result)} - {"utterance"}
    kept: JsonObject = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "where"}
    if values.get("where", utterance.where) != utterance.where or not kept.keys() <= known:
        return None
    return Result(utterance=utterance, **kept)


def _lacks(result: JsonRow) -> bool:
    """Whether a result, or a segment of it, is an error."""
    return result.get("error") is not None or any(segment.get("error") is not None for segment in result.get("segments", ()))


def _line(entry: JsonRow) -> bytes:
    text = json_line(entry)
    return b"%08x " % zlib.crc32(text) + text


def _entry(line: bytes) -> JsonObject | None:
    """The object of an intact line."""
    text = line[_CHECK:]
    try:
        if line[_CHECK - 1 : _CHECK] != b" " or int(line[: _CHECK - 1], 16) != zlib.crc32(text):
            return None
        return parse_json_object(text)
    except ValueError:
        return None


def ends_whole(path: Path) -> bool:
    """Whether a file is empty or ends in a line feed."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
