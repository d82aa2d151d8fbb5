"""The rows of a transcription, gathered by recording: a manifest may hold many segments of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from arkfast.files.remote import identity
from arkfast.infer.formats.captions import Segment
from arkfast.infer.long.texts import join_texts
from arkfast.infer.result import DETECTED, SCORES
from arkfast.records import JsonObject, JsonRow


@dataclass
class Recording:
    """What is known of a recording after its transcription."""

    audio: str
    """Its path, as the rows give it."""
    language: str | None = None
    """As the rows give it; None where they differ or say nothing."""
    parts: list[tuple[Segment, JsonObject]] = field(default_factory=list)
    """Its segments, ascending, and what is said of each besides: why its transcript ends, and the id of its row."""
    warnings: list[str] = field(default_factory=list)
    words: list[JsonRow] | None = None
    """``words`` of all rows, ascending; None where no row has any."""
    failed: int = 0
    """Rows without a transcript. No file is written for a recording that has some, since it would lack what they said."""

    @property
    def segments(self) -> list[Segment]:
        """What is said when."""
        return [segment for segment, _ in self.parts]

    @property
    def text(self) -> str:
        """The whole transcript."""
        return join_texts(segment.text for segment in self.segments)

    @property
    def duration(self) -> float:
        """Seconds up to where the last segment ends."""
        return max((segment.end for segment in self.segments), default=0.0)


def recordings_of(rows: Iterable[JsonRow]) -> Iterator[Recording]:
    """Each recording with all of its segments, in the order in which they first stand in the rows.

    A recording of another machine is one, however often its address was signed.

    Args:
        rows: as ``Result.row`` makes them. Their texts are held in memory.
    """
    found: dict[str, Recording] = {}
    languages: dict[str, set[str | None]] = {}
    for row in rows:
        audio = row.get("audio")
        if not isinstance(audio, str):
            continue
        name = identity(audio)
        recording = found.setdefault(name, Recording(audio))
        if row.get("status") != "ok":
            recording.failed += 1
            continue
        languages.setdefault(name, set()).add(row.get("language") or row.get(DETECTED))
        recording.warnings += [warning for warning in row.get("warnings", ()) if warning not in recording.warnings]
        recording.parts += _segments(row)
        if row.get("words") is not None:
            recording.words = [*(recording.words or ()), *row["words"]]
        if row.get("words_error") is not None:
            recording.warnings.append(f"words without times: {row['words_error']}")
    for name, recording in found.items():
        said = languages.get(name, set())
        recording.language = said.pop() if len(said) == 1 else None
        recording.parts.sort(key=lambda part: part[0][:2])
        if recording.words is not None:
            recording.words.sort(key=lambda word: (word["start"], word["end"]))
        yield recording


def _segments(row: JsonRow) -> Iterator[tuple[Segment, JsonObject]]:
    words = row.get("words") or ()
    if "segments" in row:
        for part in row["segments"]:
            its = tuple((word["start"], word["end"]) for word in words if part["start"] <= word["start"] < part["end"])
            yield (
                Segment(part["start"], part["end"], part["text"], its),
                {"finish_reason": part["finish_reason"], "row": row["id"]} | _scores(part),
            )
        return
    begin, end = max(row["begin_time"], 0.0), row["end_time"]
    if end < 0:
        end = round(begin + row["audio_seconds"], 3)
    its = tuple((word["start"], word["end"]) for word in words)
    yield Segment(begin, end, row["pred_text"], its), {"finish_reason": row["finish_reason"], "row": row["id"]} | _scores(row)


def _scores(row: JsonRow) -> JsonObject:
    return {name: row[name] for name in SCORES if name in row}
