"""``arkfast evaluate``: rows with transcripts, or a manifest and a model, in; scored rows, a summary, tables and a verdict out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from arkfast.command_line import parse
from arkfast.evaluate.baseline import baseline_rows, read_baseline, sha256_of
from arkfast.evaluate.check import check_manifest, load_normalizer
from arkfast.evaluate.compare import Comparison, compare
from arkfast.evaluate.gate import Verdict, judge
from arkfast.evaluate.options import EvaluateConfig
from arkfast.evaluate.scores import Scores
from arkfast.evaluate.scoring import score_rows
from arkfast.evaluate.source import Source, read_source
from arkfast.evaluate.summary import markdown, summarise
from arkfast.evaluate.text_table import text_table
from arkfast.files import json_text, write_text
from arkfast.files.outlets import is_outlet, is_standard_output
from arkfast.infer.command import Load, load_transcriber, transcribe_file
from arkfast.infer.jsonl import AtomicJsonl
from arkfast.infer.stream import DeviceLost
from arkfast.infer.summary import Summary
from arkfast.metrics import Normalizer
from arkfast.records import InputError, JsonObject, JsonRow

_MOST_REASONS = 3  # of failed rows that are shown


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run of the command found."""

    scores: Scores
    """The scores."""
    transcription: Summary | None
    """What the transcription did; None without one."""
    comparison: Comparison | None
    """The comparison with the rows of ``--compare``; None without them."""
    pairs: Comparison | None
    """With whose rows the page lists the clips that changed: those of ``--compare``, else the baseline's where they are at hand."""
    verdict: Verdict | None
    """The gate's, where ``--baseline`` was given."""
    repeats: int
    """Rows of the input that repeat an earlier one and were taken once."""
    reasons: tuple[str, ...]
    """The first different reasons of failed rows, at most three."""


def run(config: EvaluateConfig, *, load: Load = load_transcriber) -> Evaluation:
    """Transcribe if asked to, score, compare, and write what was asked for.

    Args:
        config: the flags.
        load: gives the model, where there is one.

    Raises:
        InputError: a file cannot be read or written, no row carries a transcript, or what is to be compared does not match; told
            before transcription: a normaliser is missing or has no rules for a row's language, or a row lacks the field of ``--group_by``.
    """
    _check_paths(config)
    normalizer = load_normalizer(config)
    with closing(normalizer):
        return _run(config, normalizer, load)


def _run(config: EvaluateConfig, normalizer: Normalizer, load: Load) -> Evaluation:
    # read first, so that a fault is told before the work, and because this run's output may replace the baseline's
    compared_with = None if config.compare is None else read_source(config.compare, allow_repeats=config.allow_repeats)
    others = None if compared_with is None else compared_with.rows
    baseline = None if config.baseline is None else read_baseline(config.baseline)
    earlier, pairing = (None, "") if baseline is None else baseline_rows(baseline, config.compare, others)
    source, transcription = config.input, None
    if config.model_path is not None:
        assert config.transcripts is not None, "checked when the configuration was made"
        source = config.transcripts
        check_manifest(config, normalizer)
        transcription = transcribe_file(config.input, source, config.model_path, config, load=load)
    fields, given = config.fields, _read(source, config)
    digest = sha256_of(source) if source.is_file() else None  # a pipe has been read and is empty now
    scores, scored = score_rows(given.rows, normalizer=normalizer, unit=config.unit, fields=fields, places=given.places)

    def compared(rows: Sequence[JsonRow], path: object, places: Sequence[str] | None = None) -> Comparison:
        return compare(
            scored, rows, other=str(path), scores=scores, fields=fields, unit=config.unit, places=given.places, other_places=places
        )

    comparison = None if compared_with is None else compared(compared_with.rows, config.compare, compared_with.places)
    verdict, pairs = None, comparison
    if baseline is not None:
        pairs = None if earlier is None else comparison if earlier is others else compared(earlier, baseline["output"])
        verdict = judge(scores, baseline, str(config.baseline), max_regression=config.max_regression, comparison=pairs, pairing=pairing)
    found = Evaluation(
        scores=scores,
        transcription=transcription,
        comparison=comparison,
        pairs=comparison or pairs,
        verdict=verdict,
        repeats=given.repeats + (transcription.repeats if transcription is not None else 0),
        reasons=_reasons(scored) if transcription is None else transcription.reasons,
    )
    _write(config, found, scored, digest)
    return found


def _reasons(scored: Sequence[JsonRow]) -> tuple[str, ...]:
    """What failed rows that carry a reason say, each reason once."""
    errors = (" ".join(str(row["error"]).split()) for row in scored if row["outcome"] == "failed" and row.get("error"))
    return tuple(dict.fromkeys(errors))[:_MOST_REASONS]


def _check_paths(config: EvaluateConfig) -> None:
    read = {path.resolve() for path in (config.input, config.compare, config.baseline) if path is not None}
    outputs = [path for path in (config.output, config.summary, config.markdown, config.html) if path is not None and not is_outlet(path)]
    for path in outputs:
        if path.resolve() == config.input.resolve():
            raise InputError(f"{path}: is the input too; give another path, so that the input stays as it is")
        if path.resolve() in read:
            raise InputError(f"{path}: is what is compared with too; give another path, so that it stays as it is")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError("two of --output, --summary, --markdown and --html are one file; give each its own path")


def _read(source: Path, config: EvaluateConfig) -> Source:
    given, fields = read_source(source, allow_repeats=config.allow_repeats), config.fields
    rows = given.rows
    if not any(fields.prediction in row for row in rows):
        raise InputError(
            f"{source}: no row has {fields.prediction}; name the transcript's field with --pred_field, or give --model_path to transcribe "
            "the recordings first"
        )
    if all(row.get(fields.text, row.get("ref_text")) is None for row in rows):
        raise InputError(f"{source}: no row has a reference in field '{fields.text}'; name the reference's field with --text_field")
    return given


def _write(config: EvaluateConfig, found: Evaluation, scored: list[JsonObject], transcripts_sha256: str | None) -> None:
    digest = None
    if config.output is not None:
        with AtomicJsonl(config.output) as writer:
            for row in _sorted(scored, config.sort):
                writer.write(row)
        digest = None if is_outlet(config.output) else sha256_of(config.output)
    summary = summarise(
        found.scores,
        input=str(config.input),
        output=None if config.output is None or is_outlet(config.output) else str(config.output),
        repeats=found.repeats,
        transcripts_sha256=transcripts_sha256,
        output_sha256=digest,
        model_path=None if config.model_path is None else str(config.model_path),
        model_commit=None if found.transcription is None else found.transcription.model_commit,
        group_by=config.group_by,
        comparison=None if found.comparison is None else found.comparison.to_dict(),
        gate=None if found.verdict is None else found.verdict.to_dict(),
        **speed(found.transcription),
    )
    if config.summary is not None:
        write_text(config.summary, json_text(summary, indent=2) + "\n")
    if config.markdown is not None:
        write_text(config.markdown, markdown([summary]))
    if config.html is not None:
        write_text(config.html, _page(summary, scored, config.input.parent, config.html.parent, found.pairs))


def _sorted(rows: list[JsonObject], order: str) -> Iterable[JsonObject]:
    """Rows that are not scored come last, as in open-audio-opd; equal rows keep their order."""
    if order == "input":
        return rows
    return sorted(rows, key=lambda row: -1 if row["cer_errors"] is None else row["cer_errors"], reverse=True)


def _page(summary: JsonObject, rows: list[JsonObject], start: Path, folder: Path, pairs: Comparison | None) -> str:
    from arkfast.evaluate.page import page
    from arkfast.evaluate.page.paths import from_page

    return page(summary, from_page(rows, start, folder), folder, others=None if pairs is None else pairs.other_rows)


def speed(transcription: Summary | None) -> JsonObject:
    """The run's own fields of ``summary.json``: RTFx by processing time, and end to end."""
    if transcription is None:
        return {}
    return {
        "audio_seconds": transcription.audio_seconds,
        "processing_seconds": transcription.processing_seconds,
        "wall_seconds": transcription.wall_seconds,
        "rtfx": transcription.rtfx,
        "rtfx_end_to_end": transcription.rtfx_end_to_end,
    }


def main(argv: Sequence[str] | None = None, *, load: Load = load_transcriber) -> int:
    """``arkfast evaluate``.

    Args:
        argv: the flags; the process's own by default.
        load: gives the model, where there is one.

    Returns:
        0; 1 when rows failed or have no reference and ``--allow_failures`` is not set, or a rate regressed; 2 when nothing could be scored
        (flags, input, output or checkpoint are wrong); 130 when interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(
        EvaluateConfig, arguments, prog="arkfast evaluate", description="Score transcripts against their references.", position="input"
    )
    for note in config.notes() if config.model_path is not None else ():
        print(f"arkfast evaluate: {note}", file=sys.stderr)
    try:
        found = run(config, load=load)
    except (InputError, DeviceLost) as error:
        print(f"arkfast evaluate: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("arkfast evaluate: interrupted", file=sys.stderr)
        return 130
    # rows and files that go to standard output come out of it alone, so that a program can read them
    said = sys.stderr if any(map(is_standard_output, (config.output, config.summary, config.markdown, config.html))) else sys.stdout
    print(text_table(found.scores), file=said)
    if found.repeats:
        print(f"{found.repeats} rows repeat an earlier one in every field and were taken once", file=said)
    for part in (found.transcription, found.comparison):
        if part is not None:
            print(part.line(), file=said)
    if found.verdict is not None:
        print(found.verdict.table(), file=said)
    return _verdict(config, found)


def _verdict(config: EvaluateConfig, found: Evaluation) -> int:
    code, scores = 0, found.scores
    if found.verdict is not None and found.verdict.regressed:
        print(f"arkfast evaluate: worse than {config.baseline} by more than {config.max_regression:g} percentage points", file=sys.stderr)
        code = 1
    if scores.scored < scores.utterances and not config.allow_failures:
        missing = f"{scores.utterances - scores.scored} of {scores.utterances} rows were not scored"
        print(f"arkfast evaluate: {missing}; --allow_failures accepts that", *found.reasons, sep="\n  ", file=sys.stderr)
        code = 1
    return code
