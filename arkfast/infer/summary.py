"""What a transcription did, in figures and in a line."""

from __future__ import annotations

from dataclasses import dataclass

from arkfast.records import JsonObject


@dataclass(frozen=True)
class Summary:
    """What a transcription run did."""

    rows: int
    """Rows written."""
    failed: int
    """Rows without a transcript."""
    truncated: int
    """Transcripts cut at their token limit or in a loop."""
    audio_seconds: float
    """Seconds of audio transcribed by this run."""
    wall_seconds: float
    """From the first row read to the last one written, without the loading of the model."""
    processing_seconds: float | None = None
    """``Transcriber.processing_seconds``; None where it was not measured."""
    model_commit: str | None = None
    """``Transcriber.model_commit``."""
    doubtful: int = 0
    """Rows with something doubtful about their recording."""
    no_speech: int = 0
    """Rows without speech, whose text is marked or left out."""
    repeats: int = 0
    """Rows of the input that repeat an earlier one and were taken once."""
    batch_size: int | None = None
    """Most clips that were decoded together; None where nothing says it."""
    reasons: tuple[str, ...] = ()
    """The first three different reasons of failed rows, as a user reads them."""
    resumed: int = 0
    """Rows whose result an earlier run had left in the journal."""
    resumed_seconds: float = 0.0
    """Seconds of audio of those rows, which ``audio_seconds`` leaves out."""
    model: JsonObject | None = None
    """What the transcripts depend on (``arkfast.infer.journal.deciding``); None where neither journal nor record is written."""

    @property
    def rtfx(self) -> float | None:
        """Seconds of audio over ``processing_seconds``; None where that was not measured."""
        return self.audio_seconds / self.processing_seconds if self.processing_seconds else None

    @property
    def rtfx_end_to_end(self) -> float:
        """Seconds of audio over ``wall_seconds``."""
        return self.audio_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0

    def line(self) -> str:
        """The summary as a user reads it."""
        parts = [f"{self.rows - self.failed} of {self.rows} rows transcribed"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.truncated:
            parts.append(f"{self.truncated} cut short")
        if self.doubtful:
            parts.append(f"{self.doubtful} with warnings")
        if self.no_speech:
            parts.append(f"{self.no_speech} without speech")
        if self.repeats:
            parts.append(f"{self.repeats} repeat{'s' if self.repeats > 1 else ''} left out")
        if self.resumed:
            parts.append(f"{self.resumed} of an earlier run taken from its journal")
        parts.append(f"{self.audio_seconds:.1f} s of audio in {self.wall_seconds:.1f} s")
        processed = "" if self.rtfx is None else f", {self.rtfx:.1f} by processing time"
        parts.append(f"RTFx {self.rtfx_end_to_end:.1f} end to end{processed}")
        return ", ".join(parts)
