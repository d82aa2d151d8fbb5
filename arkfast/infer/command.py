"""``arkfast transcribe``: a JSONL manifest in, a JSONL file of transcripts out."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.command_line import parse, to_dict
from arkfast.console import Console
from arkfast.files import destination, is_outlet, is_standard_output
from arkfast.files.remote import shown_argument
from arkfast.infer.dry_run import dry_run
from arkfast.infer.fetching import Fetcher
from arkfast.infer.first_rows import Intake, Reasons, kept_rows, look_through
from arkfast.infer.formats import CaptionLimits, Form
from arkfast.infer.inputs import Input, local_sources, named
from arkfast.infer.journal import Journal
from arkfast.infer.jsonl import AtomicJsonl
from arkfast.infer.loading import Load, load_transcriber
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.outputs import Outputs, planned
from arkfast.infer.ranks import Lengths, Shard, Team, follow, for_rank, lead, of_all_ranks, take_in, team_of, wrote_something
from arkfast.infer.ray import OnRay, RayOptions
from arkfast.infer.record import record_path, write_record
from arkfast.infer.result import CUT_SHORT, Result, bad_line
from arkfast.infer.resume import Rows, Turn, decided, journal_of, tell
from arkfast.infer.row_files import RowFiles
from arkfast.infer.stop import Stopped, stopping
from arkfast.infer.stream import DeviceLost
from arkfast.infer.summary import Summary
from arkfast.records import InputError, Utterance

DEFAULT_MODEL = "AutoArk-AI/ARK-ASR-0.6B"
PROGRESS_SECONDS = 60.0
"""Between two plain lines about progress, where standard error is no terminal."""


@dataclass(frozen=True, kw_only=True)
class TranscribeConfig(RayOptions, TranscribeOptions):
    """The flags of ``arkfast transcribe``."""

    headings: ClassVar[dict[str, str]] = {"input": command_line.FIRST, "output_dir": command_line.OUTPUT}

    input: Path
    """Manifest (JSONL with audio, and optionally text, begin_time, end_time, id, language; NeMo's JSONL; tar shards; - for standard input),
    a recording, a folder of recordings, or a pattern such as 'talks/*.flac'."""
    output: Path | None = None
    """File for the transcripts, one row for each input row in the same order; replaced only when the new one is complete. JSON lines, or
    Parquet where it ends in .parquet; several files where its name holds {shard:05d}; - for standard output. Without it and --output_dir,
    the text of a single recording is printed."""
    rows_per_shard: int | None = None
    """Rows of each file where the name of --output holds {shard:05d}, 10000 by default."""
    model_path: Path = Path(DEFAULT_MODEL)
    """Folder of a Transformers checkpoint, or a Hugging Face repository as organisation/name."""
    more_inputs: tuple[Path, ...] = ()
    """Further inputs; they may stand behind the first one without the flag's name."""
    output_dir: Path | None = None
    """Folder for a file for each recording, in each --output_format; all rows go into transcripts.jsonl there unless --output says
    otherwise."""
    output_format: tuple[Form, ...] = ()
    """Formats, several with commas between: jsonl (the file of all rows), json and verbose_json (as OpenAI's service gives them), txt, srt,
    vtt, tsv. By default jsonl, and txt where it is printed."""
    max_line_width: int = 42
    """Most columns of a line of captions, of which a Han character or a kana takes two; 0 sets no limit."""
    max_line_count: int = 2
    """Most lines of a caption; 0 sets no limit."""
    shard: str | None = None
    """i/n: transcribe the i-th of n parts of the input alone, for the jobs of an array; i counts from 1. Parts are neighbouring rows of
    about as much audio, so outputs in the order of i, put behind one another, are the output of the whole."""
    rank_timeout: float = 30.0
    """Where several ranks were started, seconds without a sign of life after which the others do a rank's rows."""
    dry_run: bool = False
    """Say what the input holds and what its transcription would take: hours, bad rows, cores for decoding, time, memory and disk. No model
    is loaded and nothing is written; with --run_record - it comes as JSON."""
    assume_rtfx: float | None = None
    """With --dry_run, how many seconds of audio the device is taken to transcribe in a second; times follow from it."""
    run_record: Path | None = None
    """JSON file for the record of the run (model, versions, flags, speed); OUTPUT.run.json beside an output that is a file by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ray()
        if not 0 < self.rank_timeout < math.inf:
            raise InputError(f"--rank_timeout must be above 0 and finite, got {self.rank_timeout}")
        if self.shard is not None:
            Shard.parse(self.shard)
        if self.assume_rtfx is not None and not (self.dry_run and 0 < self.assume_rtfx < math.inf):
            raise InputError(f"--assume_rtfx must be above 0 and finite and needs --dry_run, got {self.assume_rtfx}")
        if self.dry_run and self.shard is not None:
            raise InputError(f"--dry_run speaks of the whole input; leave out --shard {self.shard}")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All inputs, in order."""
        return self.input, *self.more_inputs

    def notes(self) -> list[str]:
        """See ``TranscribeOptions.notes``."""
        used = [f"--model_path {DEFAULT_MODEL}: the default is used"] if str(self.model_path) == DEFAULT_MODEL else []
        return [*super().notes(), *used]


def transcribe_file(
    input: Input,
    output: Path,
    model_path: Path,
    options: TranscribeOptions,
    *,
    load: Load = load_transcriber,
    shard: Shard | None = None,
    team: Team | None = None,
    ray: RayOptions | None = None,
    files: RowFiles | None = None,
) -> Summary:
    """Transcribe manifests and recordings into a JSONL file, one output row for each row of the input, in order.

    A line that is no valid row becomes a failed row with ``line`` and ``raw_line``. ``output`` is replaced when the last row is written.
    What a run of the same command did that was killed or stopped is taken from its journal (``arkfast.infer.journal``); there is none for
    an output that is written through.

    Args:
        input: manifests and recordings.
        output: the file.
        model_path: the checkpoint.
        options: the flags.
        load: gives the model.
        shard: the part of the rows that is transcribed; None takes all.
        team: other ranks that do a share of the rows, and this one, which is rank 0; None where this process is alone.
        ray: where actors of Ray do the rows; None where this process does them.
        files: the files that the rows go into in the end; ``output`` is then their ``base``. None is the file ``output``.

    Raises:
        InputError: the input cannot be read, is empty, holds an id twice or is no manifest (``first_rows``), the output cannot be written,
            is the input or is being written by another run, the checkpoint cannot be loaded, or every row failed and there is an earlier
            output, which stays.
        BrokenPipeError: standard output is the output and was closed.
        DeviceLost: the device failed; the rows so far are in the journal and in the partial file.
    """
    from arkfast.models.bars import without_loading_bars

    without_loading_bars()
    lengths = Lengths() if any(one is not None for one in (shard, team, ray)) else None
    intake = look_through(input, fields=options.row_fields, allow_repeats=options.allow_repeats, see=lengths)
    rows_in_all, part = intake.rows, slice(None)
    if shard is not None and lengths is not None:
        its_rows = lengths.shard(shard)
        intake, part = replace(intake, rows=len(its_rows)), slice(its_rows.start, its_rows.stop)
    if not is_outlet(output) and output.resolve() in {source.resolve() for source in local_sources(input)}:
        raise InputError(f"{output}: is the input too; give another path, so that the manifest stays as it is")
    place = None if is_outlet(output) else journal_of(destination(output))
    kept, finish = (
        options.resume and place is not None and wrote_something(place),
        None if files is None else partial(_finish, files, options),
    )
    with ExitStack() as ending, AtomicJsonl(output, kept=kept, finish=finish) as writer:
        journal: Journal | None = None
        try:
            cluster = None if ray is None else ending.enter_context(OnRay(ray, model_path, options, load=load))
            transcriber = load(model_path, options) if cluster is None else cluster
            before, decides, shared, began = transcriber.processing_seconds, None, None, time.perf_counter()
            with Console(quiet=options.quiet, log_file=options.log_file, every=PROGRESS_SECONDS) as console:
                if place is not None:
                    decides = decided(transcriber, options)
                    take_in(place, keep=options.resume)
                    journal = Journal(place, rows=rows_in_all, decides=decides, resume=options.resume, retry_failed=options.retry_failed)
                    ending.callback(journal.close)
                    tell(journal, intake, console)
                    if lengths is not None and (cluster is not None or team is not None):
                        items = partial(_items, input, options)
                        if cluster is not None:
                            shared = cluster.hand_out(
                                items, lengths=lengths, rows=rows_in_all, decides=decides, journal=journal, console=console
                            )
                        elif team is not None:
                            shared = lead(
                                team,
                                transcriber=transcriber,
                                items=items,
                                lengths=lengths,
                                rows=rows_in_all,
                                place=place,
                                decides=decides,
                                options=options,
                                held=journal.held,
                                console=console,
                            )
                        journal.close()
                        journal = Journal(place, rows=rows_in_all, decides=decides)
                        ending.callback(journal.close)
                fetcher = ending.enter_context(Fetcher(options.spool_mb)) if intake.remote and cluster is None else None
                rows = Rows(islice(enumerate(_items(input, options)), part.start, part.stop), journal, fetcher=fetcher)
                summary = _write(rows.results(transcriber), rows, writer, intake, console, Reasons(named(input)))
                if shared is not None:
                    summary = of_all_ranks(summary, shared, wall_seconds=time.perf_counter() - began)
                if summary.failed == summary.rows and place is not None and _holds_something(files.standing() if files else [writer.path]):
                    raise InputError(_every_row_failed(writer, summary))
                console.keep(f"{summary.line()} → {files.output if files else output}")
            if journal is not None:
                done = journal
                writer.committed.append(lambda: done.close(remove=not summary.failed and not done.lacking))
            spent = max(transcriber.processing_seconds - before, 0.0 if shared is None else shared.processing_seconds)
            size, commit = transcriber.batch_size, transcriber.model_commit
            return replace(summary, processing_seconds=spent, batch_size=size, model_commit=commit, model=decides)
        except BaseException:
            if writer.rows:
                again = "" if place is None else "; the same command goes on from there"
                print(f"stopped after {writer.rows} of {intake.rows} rows; they are in {writer.partial}{again}", file=sys.stderr)
            raise


def _finish(files: RowFiles, options: TranscribeOptions, rows: Path, count: int) -> None:
    said = files.write(rows, count)
    if not options.quiet:
        print(f"arkfast transcribe: wrote {said}", file=sys.stderr)


def _holds_something(paths: Sequence[Path]) -> bool:
    return any(path.exists() and path.stat().st_size > 0 for path in paths)


def _every_row_failed(writer: AtomicJsonl, summary: Summary) -> str:
    return (
        f"{writer.path}: every one of {summary.rows} rows failed, so the earlier output stays as it was; the failed rows are in "
        f"{writer.partial}; remove the earlier output first if they are to take its place. The first reason: {summary.reasons[0]}"
    )


def _items(path: Input, options: TranscribeOptions) -> Iterator[Utterance | Result]:
    """The manifest's utterances, with a failed result in the place of each bad line."""
    fields = options.row_fields
    for row in kept_rows(path, fields=fields, allow_repeats=options.allow_repeats):
        yield row.utterance or bad_line(row, fields=fields)


def _write(results: Iterator[Result], rows: Rows, writer: AtomicJsonl, intake: Intake, console: Console, reasons: Reasons) -> Summary:
    failed, truncated, doubtful, silent, resumed, start = 0, 0, 0, 0, 0, time.perf_counter()
    seconds, known_seconds = 0.0, 0.0
    admissible: deque[Turn] = deque()

    def write(admitted: Sequence[Result]) -> None:
        for result in admitted:
            turn = admissible.popleft()
            if rows.journal is not None and turn.key is not None:
                rows.journal.add(turn.row, turn.key, result)
            writer.write(result.row())

    console.begin(unit="row", total=intake.rows, done=0 if rows.journal is None else rows.journal.held)
    try:
        for result in results:
            turn = rows.next()
            admissible.append(turn)
            write(reasons.admit(result))
            failed += result.failed
            truncated += result.finish_reason in CUT_SHORT
            doubtful += bool(result.warnings)
            silent += bool(result.scores.get("no_speech"))
            resumed += turn.resumed
            if turn.resumed:
                known_seconds += result.seconds
            else:
                seconds += result.seconds
            speed = f"{seconds / 3600:.2f} h of audio, RTFx {seconds / (time.perf_counter() - start):.1f}"
            console.advance(f"{speed}, {failed} failed" if failed else speed, by=0 if turn.counted else 1)
    finally:
        write(reasons.rest())
    return Summary(
        rows=writer.rows,
        failed=failed,
        truncated=truncated,
        doubtful=doubtful,
        no_speech=silent,
        audio_seconds=seconds - rows.clip_seconds,
        wall_seconds=time.perf_counter() - start,
        repeats=intake.repeats,
        reasons=reasons.lines(),
        resumed=resumed,
        resumed_seconds=known_seconds + rows.clip_seconds,
    )


def _record(path: Path, config: TranscribeConfig, summary: Summary) -> None:
    """Write the record; where that cannot be done, the output is complete all the same, and nothing has to be done again."""
    try:
        inputs = {"input": str(named(config.input)), "more_inputs": [str(named(path)) for path in config.more_inputs]}
        write_record(path, flags=to_dict(config) | inputs, summary=summary)
    except InputError as error:
        print(f"arkfast transcribe: no record of the run, whose output is complete: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None, *, load: Load = load_transcriber) -> int:
    """``arkfast transcribe``.

    Args:
        argv: the flags; None takes the process'.
        load: gives the model.

    Returns:
        0; 1 when rows failed and ``--allow_failures`` is not set; 2 when the run could not begin or go on (flags, input, output or
        checkpoint are wrong, the disk is full, the device failed, every row failed); 130 when interrupted, 128 and the signal's number
        when the system asked the process to end.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(
        TranscribeConfig,
        arguments,
        prog="arkfast transcribe",
        description="Transcribe recordings, or those of a JSONL manifest.",
        position="input",
        further="more_inputs",
    )
    for note in config.notes() if os.environ.get("RANK", "0") == "0" else ():
        print(f"arkfast transcribe: {note}", file=sys.stderr)
    limits = CaptionLimits(max_line_width=config.max_line_width, max_line_count=config.max_line_count)
    try:
        if config.dry_run:
            return dry_run(config.inputs, config, config.model_path, rtfx=config.assume_rtfx, record=config.run_record)
        with planned(
            config.inputs,
            output=config.output,
            folder=config.output_dir,
            forms=config.output_format,
            limits=limits,
            rows_per_shard=config.rows_per_shard,
        ) as outputs:
            team = team_of(timeout=config.rank_timeout)
            if config.ray and (team is not None or config.shard is not None):
                raise InputError("--ray hands out the whole input itself; leave out torchrun and --shard")
            if config.ray and (is_outlet(outputs.rows) or outputs.temporary):
                raise InputError("--ray needs a journal beside the output; give --output a file")
            if team is None:
                return _main(config, outputs, arguments, load)
            if config.shard is not None:
                raise InputError(f"--shard {config.shard} is for jobs of one process each, and {team.world} ranks were started; give one")
            if is_outlet(outputs.rows) or outputs.temporary:
                raise InputError(f"{team.world} ranks write one output together, and each needs journals beside it; give --output a file")
            return _main(for_rank(config, team), outputs, arguments, load, team)
    except InputError as error:
        print(f"arkfast transcribe: error: {error}", file=sys.stderr)
        return 2


def _follow(team: Team, config: TranscribeConfig, output: Path, load: Load) -> int:
    """``main`` of a rank other than 0, whose exit code is 0 unless the fault is its own."""
    try:
        with stopping(), team:
            follow(
                team,
                load=partial(load, config.model_path, config),
                items=partial(_items, config.inputs, config),
                place=journal_of(destination(output)),
                options=config,
            )
    except (InputError, DeviceLost) as error:
        print(f"arkfast transcribe: rank {team.rank}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as asked:  # rank 0 says what to type
        return asked.exit_code if isinstance(asked, Stopped) else 130
    return 0


def _main(config: TranscribeConfig, outputs: Outputs, arguments: Sequence[str], load: Load, team: Team | None = None) -> int:
    """``main`` when it is known what goes where."""
    if team is not None and not team.leads:
        return _follow(team, config, outputs.rows, load)
    rows, through = outputs.rows, is_outlet(outputs.rows) or outputs.temporary
    try:
        record = record_path(config.run_record, inputs=config.inputs, output=rows)
        shard = None if config.shard is None else Shard.parse(config.shard)
        with stopping(), team or nullcontext():
            summary = transcribe_file(
                config.inputs,
                rows,
                config.model_path,
                config,
                load=load,
                shard=shard,
                team=team,
                ray=config if config.ray else None,
                files=outputs.files,
            )
            if record is not None:
                _record(record, config, summary)
    except (InputError, DeviceLost) as error:
        print(f"arkfast transcribe: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as asked:
        stopped = asked if isinstance(asked, Stopped) else None
        words = "run it again" if through else "to go on, type"
        command = f"{words}: {shlex.join(['arkfast', 'transcribe', *map(shown_argument, arguments)])}"
        print(f"arkfast transcribe: {stopped or 'interrupted'}; {command}", file=sys.stderr)
        return 130 if stopped is None else stopped.exit_code
    said, shown_rows = outputs.finish(), outputs.files.output if outputs.files else rows
    shown = sys.stderr if is_standard_output(outputs.single or rows) else sys.stdout
    if not config.quiet:
        print(summary.line() if outputs.temporary else f"{summary.line()} → {shown_rows}", *([said] if said else []), sep="\n", file=shown)
    if summary.failed:
        accept = "" if config.allow_failures else "; --allow_failures accepts them"
        if not through:
            accept += "; --retry_failed does them anew"
        where = "" if outputs.temporary else f', each with "status": "error" and its reason in {shown_rows}'
        print(
            f"arkfast transcribe: failed rows: {summary.failed}{where}{accept}",
            *summary.reasons,
            sep="\n  ",
            file=sys.stderr,
        )
    return 1 if summary.failed and not config.allow_failures else 0
