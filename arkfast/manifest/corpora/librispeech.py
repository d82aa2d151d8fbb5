"""LibriSpeech: ``<split>/<speaker>/<chapter>/`` with ``<speaker>-<chapter>.trans.txt`` beside its flac files.

The text stays as published, in capitals and without punctuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from arkfast.data.rows import RowError
from arkfast.manifest.corpora.corpus import Corpus, Split, SplitRow, choose, make_row, transcript_lines, without_transcript

LANGUAGE = "en"

# Utterances as the corpus' page at openslr.org/12 has them in its archives.
_PUBLISHED = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
SPLITS = {name: Split(name, f"{name.replace('-', '_')}.jsonl", count) for name, count in _PUBLISHED.items()}


def open_librispeech(root: Path, splits: Sequence[str] = ()) -> Corpus:
    """LibriSpeech unpacked in ``root`` or in ``root/LibriSpeech``.

    Raises:
        InputError: no split is there, or a named one is not.
    """
    inside = root / "LibriSpeech"
    base = inside if inside.is_dir() else root
    chosen = choose(splits, SPLITS, [name for name in SPLITS if (base / name).is_dir()], base)
    return Corpus(name="librispeech", root=base, splits=chosen, rows=lambda: _rows(base, [split.name for split in chosen]))


def _rows(base: Path, splits: Sequence[str]) -> Iterator[SplitRow]:
    for split in splits:
        for chapter in sorted(path for path in (base / split).glob("*/*") if path.is_dir()):
            yield from _chapter(chapter, split)


def _chapter(chapter: Path, split: str) -> Iterator[SplitRow]:
    speaker = chapter.parent.name
    transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
    named = set()
    if transcript.is_file():
        for line in transcript_lines(transcript):
            fields: dict[str, str] | RowError
            if line.error is not None:
                fields = line.error
            else:
                named.add(line.name)
                audio = str(chapter / f"{line.name}.flac")
                fields = {"id": line.name, "audio": audio, "text": line.text, "language": LANGUAGE, "speaker": speaker}
                fields["chapter"] = chapter.name
            yield make_row(transcript, line.number, line.raw, split, fields, folder=chapter)
    for recording in sorted(chapter.glob("*.flac")):
        if recording.stem not in named:
            yield make_row(recording, 0, "", split, without_transcript(recording, transcript), folder=chapter)
