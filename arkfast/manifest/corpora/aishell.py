"""AISHELL-1: ``transcript/aishell_transcript_*.txt`` for all splits, and ``wav/{train,dev,test}/<speaker>/<utterance>.wav``.

The transcript file divides words by spaces, which Chinese is not written with: they are taken out, except between two Latin words. The file
does not say which split a line belongs to; the recording's folder does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from arkfast.data.rows import RowError
from arkfast.manifest.corpora.corpus import Corpus, Split, SplitRow, TranscriptLine, choose, make_row, transcript_lines, without_transcript
from arkfast.records import InputError

LANGUAGE = "zh"

# Utterances with a transcript, as the corpus' page at openslr.org/33 and the recipes built on it have them.
_PUBLISHED = {"train": 120_098, "dev": 14_326, "test": 7_176}
SPLITS = {name: Split(name, f"{name}_aishell.jsonl", count) for name, count in _PUBLISHED.items()}

_WORD_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_SPEAKER = re.compile(r"S\d{4}")


def open_aishell(root: Path, splits: Sequence[str] = ()) -> Corpus:
    """AISHELL-1 unpacked in ``root`` or in ``root/data_aishell``, the speakers' archives in ``wav`` unpacked too.

    Raises:
        InputError: no transcript file or no split is there, several transcript files are, or a named split is not.
    """
    inside = root / "data_aishell"
    base = inside if inside.is_dir() else root
    transcripts = sorted((base / "transcript").glob("aishell_transcript_*.txt"))
    if len(transcripts) != 1:
        found = f"there are {len(transcripts)}" if transcripts else "there is none"
        raise InputError(
            f"{base}: expected one transcript/aishell_transcript_*.txt, {found}; give the folder that AISHELL-1 was unpacked into"
        )
    present = [name for name in SPLITS if (base / "wav" / name).is_dir()]
    if not present and any((base / "wav").glob("*.tar.gz")):
        raise InputError(f"{base / 'wav'}: the speakers' archives are not unpacked; run in it: for a in *.tar.gz; do tar -xzf $a; done")
    chosen = choose(splits, SPLITS, present, base)
    return Corpus(name="aishell", root=base, splits=chosen, rows=lambda: _rows(base, transcripts[0], [split.name for split in chosen]))


def spoken(text: str) -> str:
    """A transcript without the spaces that divide Chinese words; two Latin words keep theirs."""
    return _WORD_SPACE.sub("", text)


def _rows(base: Path, transcript: Path, splits: Sequence[str]) -> Iterator[SplitRow]:
    recordings: dict[str, tuple[str, Path]] = {}
    speakers: dict[str, str] = {}
    for split in splits:
        for folder in sorted(path for path in (base / "wav" / split).iterdir() if path.is_dir()):
            speakers[folder.name] = split
            recordings |= {path.stem: (split, path) for path in sorted(folder.glob("*.wav"))}
    whole, named = len(splits) == len(SPLITS), set()
    for line in transcript_lines(transcript):
        named.add(line.name)
        if line.error is not None:
            yield make_row(transcript, line.number, line.raw, splits[0], line.error, folder=base)
        elif line.name in recordings:
            split, recording = recordings[line.name]
            fields = {"id": line.name, "audio": str(recording), "text": spoken(line.text), "language": LANGUAGE}
            yield make_row(transcript, line.number, line.raw, split, fields | {"speaker": recording.parent.name}, folder=base)
        elif (split := _split_of(line.name, speakers)) or whole:
            yield make_row(transcript, line.number, line.raw, split or splits[0], _missing(transcript, line, base), folder=base)
    for name, (split, recording) in recordings.items():
        if name not in named:
            yield make_row(recording, 0, "", split, without_transcript(recording, transcript), folder=base)


def _split_of(name: str, speakers: dict[str, str]) -> str:
    """The split of a line whose recording is missing, by its speaker's folder; empty where none of the chosen splits has the speaker."""
    speaker = _SPEAKER.search(name)
    return speakers.get(speaker.group(), "") if speaker else ""


def _missing(transcript: Path, line: TranscriptLine, base: Path) -> RowError:
    return RowError(f"{transcript}:{line.number}: no recording {line.name}.wav in {base / 'wav'}", "missing recording")
