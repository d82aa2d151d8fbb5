"""Kaldi's data folders: ``wav.scp``, and ``segments``, ``reco2file_and_channel``, ``text``, ``utt2spk`` and ``utt2lang`` if they are there.

The layout is described at kaldi-asr.org/doc/data_prep.html. Kaldi reads a recording through any shell command that ``wav.scp`` names; none
is run here, and such recordings are rejected.

A channel is the fifth column of ``segments``, counted from 0, where -1 stands for none. Without one it is the side of the recording in
``reco2file_and_channel``, A or 1 for the first and B or 2 for the second: recipes write that file for scoring, also for recordings whose
channels were taken apart already, so it says nothing of a recording that has one channel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from arkfast.audio import extent
from arkfast.data.rows import RowError
from arkfast.manifest.corpora.corpus import Corpus, Split, SplitRow, TranscriptLine, choose, make_row, transcript_lines
from arkfast.records import InputError

RECORDINGS = "wav.scp"
SIDES = "reco2file_and_channel"

_SIDES = {"A": 0, "1": 0, "B": 1, "2": 1}
_IN_ARCHIVE = re.compile(r"\.ark:\d+$")


def open_kaldi(root: Path, splits: Sequence[str] = ()) -> Corpus:
    """A data folder, which is then its only split, or a folder of data folders such as ``data`` with ``train``, ``dev`` and ``test``.

    Raises:
        InputError: there is no ``wav.scp``, or a named split is not there.
    """
    alone = (root / RECORDINGS).is_file()
    folders = {root.resolve().name: root} if alone else {path.parent.name: path.parent for path in sorted(root.glob(f"*/{RECORDINGS}"))}
    if not folders:
        raise InputError(f"{root}: neither it nor a folder in it has a {RECORDINGS}; give a Kaldi data folder")
    known = {name: Split(name, f"{name}.jsonl") for name in folders}
    chosen = choose(splits, known, list(folders), root)
    return Corpus(name="kaldi", root=root, splits=chosen, rows=lambda: _rows([(split.name, folders[split.name]) for split in chosen]))


def _rows(folders: Sequence[tuple[str, Path]]) -> Iterator[SplitRow]:
    for split, folder in folders:
        yield from _Folder(split, folder).rows()


class _Folder:
    """A data folder: its recordings by name, and what its other files say of each utterance."""

    def __init__(self, split: str, folder: Path) -> None:
        self._split, self._folder = split, folder
        self._cut = (folder / "segments").is_file()
        self._transcribed = (folder / "text").is_file()
        self._faults: list[tuple[str, TranscriptLine, RowError]] = []
        self._texts = self._read("text", "text")
        self._speakers, self._languages = self._read("utt2spk", "speaker"), self._read("utt2lang", "language")
        self._recordings = self._read(RECORDINGS, "path") if self._cut else {}
        self._sides = self._read(SIDES, "file and side")
        self._channels: dict[str, int | None] = {}

    def rows(self) -> Iterator[SplitRow]:
        """The utterances in the order of ``segments``, or else of ``wav.scp``, with their faults; then the faults of the other files."""
        source, rest, spoken = (self._folder / "segments", "recording, begin and end", self._segment) if self._cut else (
            self._folder / RECORDINGS, "path", self._recording)  # fmt: skip
        named = set()
        for line in transcript_lines(source, rest):
            named.add(line.name)
            yield self._row(source.name, line, line.error or spoken(line))
        for name, line in self._texts.items():
            if name not in named:
                fault = RowError(f"{self._folder / 'text'}:{line.number}: no line of {source} has {name}", "missing recording")
                yield self._row("text", line, fault)
        for file, line, fault in self._faults:
            yield self._row(file, line, fault)

    def _read(self, name: str, rest: str) -> dict[str, TranscriptLine]:
        """A file's good lines by their first word; none where the file is not there. The first of a name stays."""
        path, found = self._folder / name, dict[str, TranscriptLine]()
        for line in transcript_lines(path, rest) if path.is_file() else ():
            if line.error is not None:
                self._faults.append((name, line, line.error))
            elif line.name in found:
                fault = RowError(f"{path}:{line.number}: {line.name} stands in line {found[line.name].number} already", "repeated id")
                self._faults.append((name, line, fault))
            else:
                found[line.name] = line
        return found

    def _row(self, file: str, line: TranscriptLine, fields: dict[str, object] | RowError) -> SplitRow:
        # Kaldi's programs open relative paths from where they run, not from the data folder.
        return make_row(self._folder / file, line.number, line.raw, self._split, fields, folder=Path.cwd())

    def _recording(self, line: TranscriptLine) -> dict[str, object] | RowError:
        """An utterance that is a whole recording, from its line of ``wav.scp``."""
        return self._fields(line, RECORDINGS, line, {}, None)

    def _segment(self, line: TranscriptLine) -> dict[str, object] | RowError:
        """An utterance that is a part of one, from its line of ``segments``."""
        where = f"{self._folder / 'segments'}:{line.number}"
        words = line.text.split()
        try:
            recording, begin, end = words[0], float(words[1]), float(words[2])
            channel = int(words[3]) if len(words) > 3 else -1
            if channel < -1 or len(words) > 4:
                raise ValueError("a column too many, or a channel below 0")
        except (IndexError, ValueError):
            what = "a recording, its begin and its end in seconds and perhaps its channel"
            return RowError(f"{where}: expected {what}, got '{line.text}'", "segment")
        if recording not in self._recordings:
            return RowError(f"{where}: no line of {self._folder / RECORDINGS} has the recording {recording}", "missing recording")
        # -1 stands for the recording's end.
        times = {"begin_time": begin, "recording": recording} | ({} if end == -1 else {"end_time": end})
        return self._fields(line, "segments", self._recordings[recording], times, None if channel == -1 else channel)

    def _fields(
        self, line: TranscriptLine, file: str, recording: TranscriptLine, times: dict[str, object], channel: int | None
    ) -> dict[str, object] | RowError:
        where, audio = f"{self._folder / file}:{line.number}", recording.text
        if audio.endswith("|"):
            return RowError(f"{where}: '{audio}' is a command, and none is run; write the recording to a file and name that", "command")
        if _IN_ARCHIVE.search(audio):
            return RowError(f"{where}: '{audio}' is a place in an archive; write the recording to a file and name that", "archive")
        fields: dict[str, object] = {"id": line.name, "audio": audio, **times}
        try:
            channel = self._side(recording) if channel is None else channel
        except RowError as error:
            return error
        if channel is not None:
            fields["channel"] = channel
        if self._transcribed:
            if line.name not in self._texts:
                return RowError(f"{where}: no line of {self._folder / 'text'} has the transcript of {line.name}", "no transcript")
            fields["text"] = self._texts[line.name].text
        for key, known in (("speaker", self._speakers), ("language", self._languages)):
            if line.name in known:
                fields[key] = known[line.name].text
        return fields

    def _side(self, recording: TranscriptLine) -> int | None:
        """The channel that ``reco2file_and_channel`` says of a recording with several; None where there is none to choose."""
        if (line := self._sides.get(recording.name)) is None:
            return None
        if recording.name not in self._channels:
            side = line.text.split()[-1].upper()
            channel = _SIDES.get(side)
            if channel is None:
                where = f"{self._folder / SIDES}:{line.number}"
                raise RowError(f"{where}: expected the side A or B, or the channel 1 or 2, got '{line.text}'", "channel")
            try:
                several = extent(Path.cwd() / recording.text, channel=0).channels > 1
            except InputError:  # told when the row's recording is checked
                several = False
            self._channels[recording.name] = channel if several else None
        return self._channels[recording.name]
