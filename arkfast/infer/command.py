"""``arkfast transcribe``: a JSONL manifest in, a JSONL file of transcripts out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.console import Console
from arkfast.data.sources import expand
from arkfast.files import is_outlet, is_standard_output
from arkfast.infer.first_rows import Intake, Reasons, kept_rows, look_through
from arkfast.infer.jsonl import AtomicJsonl
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.result import CUT_SHORT, Result, bad_line
from arkfast.infer.stream import DeviceLost
from arkfast.infer.transcriber import Transcriber
from arkfast.records import InputError, Utterance


@dataclass(frozen=True, kw_only=True)
class TranscribeConfig(TranscribeOptions):
    """The flags of ``arkfast transcribe``."""

    headings: ClassVar[dict[str, str]] = {"input": command_line.FIRST}

    input: Path
    """Manifest: JSONL with audio, and optionally text, begin_time, end_time, id, language; NeMo's JSONL; or tar shards; - for standard
    input."""
    output: Path
    """JSONL file for the transcripts, one row for each input row in the same order; replaced only when the new one is complete; - for
    standard output."""
    model_path: Path
    """Folder of a Transformers checkpoint, or a Hugging Face repository as organisation/name."""


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
    """Seconds of audio transcribed."""
    wall_seconds: float
    """From the first row read to the last one written, without the loading of the model."""
    processing_seconds: float | None = None
    """``Transcriber.processing_seconds``; None where it was not measured."""
    model_commit: str | None = None
    """``Transcriber.model_commit``."""
    doubtful: int = 0
    """Rows with something doubtful about their recording."""
    repeats: int = 0
    """Rows of the input that repeat an earlier one and were taken once."""
    reasons: tuple[str, ...] = ()
    """The first three different reasons of failed rows, as a user reads them."""

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
        if self.repeats:
            parts.append(f"{self.repeats} repeat{'s' if self.repeats > 1 else ''} left out")
        parts.append(f"{self.audio_seconds:.1f} s of audio in {self.wall_seconds:.1f} s")
        processed = "" if self.rtfx is None else f", {self.rtfx:.1f} by processing time"
        parts.append(f"RTFx {self.rtfx_end_to_end:.1f} end to end{processed}")
        return ", ".join(parts)


def load_transcriber(model_path: Path, options: TranscribeOptions) -> Transcriber:
    """The checkpoint, loaded as the flags ask.

    Raises:
        InputError: as ``Transcriber``.
    """
    return Transcriber(
        model_path,
        revision=options.revision,
        device=options.device,
        dtype=options.dtype,
        attn_implementation=options.attn_impl,
        processor_path=options.processor_path,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        max_audio_seconds=options.max_audio_seconds,
        max_tokens_per_second=options.max_tokens_per_second,
        cut_loops=options.cut_loops,
        sampling=options.sampling(),
        audio_gain=options.audio_gain,
        num_workers=options.num_workers,
    )


Load = Callable[[Path, TranscribeOptions], Transcriber]
"""As ``load_transcriber``; what serves several manifests gives one that is loaded already."""


def transcribe_file(input: Path, output: Path, model_path: Path, options: TranscribeOptions, *, load: Load = load_transcriber) -> Summary:
    """Transcribe a manifest into a JSONL file, one output row for each row of the input, in order.

    A line that is no valid row becomes a failed row with ``line`` and ``raw_line``. ``output`` is replaced when the last row is written.

    Raises:
        InputError: the input cannot be read, is empty, holds an id twice or is no manifest (``first_rows``), the output cannot be written,
            is the input or is being written by another run, or the checkpoint cannot be loaded.
        BrokenPipeError: standard output is the output and was closed.
        DeviceLost: the device failed; the rows so far are in the partial file.
    """
    from arkfast.models.bars import without_loading_bars

    without_loading_bars()
    intake = look_through(input, fields=options.row_fields, allow_repeats=options.allow_repeats)
    if not is_outlet(output) and output.resolve() in {source.resolve() for source in expand(input)}:
        raise InputError(f"{output}: is the input too; give another path, so that the manifest stays as it is")
    with AtomicJsonl(output) as writer:
        try:
            transcriber = load(model_path, options)
            before = transcriber.processing_seconds
            with Console(quiet=options.quiet, log_file=options.log_file) as console:
                summary = _write(transcriber.results(_items(input, options)), writer, intake, console, Reasons(input))
                console.keep(f"{summary.line()} → {output}")
            spent = transcriber.processing_seconds - before
            return replace(summary, processing_seconds=spent, model_commit=transcriber.model_commit)
        except BaseException:
            if writer.rows:
                print(f"stopped after {writer.rows} of {intake.rows} rows; they are in {writer.partial}", file=sys.stderr)
            raise


def _items(path: Path, options: TranscribeOptions) -> Iterator[Utterance | Result]:
    """The manifest's utterances, with a failed result in the place of each bad line."""
    fields = options.row_fields
    for row in kept_rows(path, fields=fields, allow_repeats=options.allow_repeats):
        yield row.utterance or bad_line(row, fields=fields)


def _write(results: Iterator[Result], writer: AtomicJsonl, intake: Intake, console: Console, reasons: Reasons) -> Summary:
    failed, truncated, doubtful, seconds, start = 0, 0, 0, 0.0, time.perf_counter()
    console.begin(unit="row", total=intake.rows)
    try:
        for result in results:
            for admitted in reasons.admit(result):
                writer.write(admitted.row())
            failed += result.failed
            truncated += result.finish_reason in CUT_SHORT
            doubtful += bool(result.warnings)
            seconds += result.seconds
            speed = f"{seconds:.0f} s of audio, RTFx {seconds / (time.perf_counter() - start):.1f}"
            console.advance(f"{speed}, {failed} failed" if failed else speed)
    finally:
        for held in reasons.rest():
            writer.write(held.row())
    return Summary(
        rows=writer.rows,
        failed=failed,
        truncated=truncated,
        doubtful=doubtful,
        audio_seconds=seconds,
        wall_seconds=time.perf_counter() - start,
        repeats=intake.repeats,
        reasons=reasons.lines(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``arkfast transcribe``.

    Returns:
        0; 1 when rows failed and ``--allow_failures`` is not set; 2 when the run could not begin or go on (flags, input, output or
        checkpoint are wrong, the disk is full, the device failed); 130 when interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(
        TranscribeConfig,
        arguments,
        prog="arkfast transcribe",
        description="Transcribe the recordings of a JSONL manifest.",
        position="input",
    )
    for note in config.notes():
        print(f"arkfast transcribe: {note}", file=sys.stderr)
    try:
        summary = transcribe_file(config.input, config.output, config.model_path, config)
    except (InputError, DeviceLost) as error:
        print(f"arkfast transcribe: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("arkfast transcribe: interrupted", file=sys.stderr)
        return 130
    if not config.quiet:
        print(f"{summary.line()} → {config.output}", file=sys.stderr if is_standard_output(config.output) else sys.stdout)
    if summary.failed:
        accept = "" if config.allow_failures else "; --allow_failures accepts them"
        print(
            f'arkfast transcribe: failed rows: {summary.failed}, each with "status": "error" and its reason in {config.output}{accept}',
            *summary.reasons,
            sep="\n  ",
            file=sys.stderr,
        )
    return 1 if summary.failed and not config.allow_failures else 0
