"""Every row of a manifest checked: ids among themselves, each row against its recording; and what is written of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from arkfast.audio.channels import written_channel
from arkfast.data.first_rows import WRONG_FILE, FirstRows, seen
from arkfast.data.ids import SeenIds
from arkfast.data.manifest import iter_rows, no_rows, repeated_id
from arkfast.data.rows import ORIGINAL, Fields, Row, RowError
from arkfast.data.shards import TarMember
from arkfast.data.sources import Format, expand
from arkfast.files import is_outlet, jsonl_files
from arkfast.files.inputs import input_folder
from arkfast.manifest.check import CheckOptions, Finding, check_rows
from arkfast.manifest.durations import DurationCache
from arkfast.manifest.summary import Summary
from arkfast.records import InputError, JsonObject, Utterance

Progress = Callable[[Finding], None]
"""Called with each finding as it is done."""

_CLEAN, _REJECTS = 0, 1


def check_manifest(
    path: Path,
    *,
    options: CheckOptions | None = None,
    fields: Fields = ORIGINAL,
    task: str = "asr",
    format: Format = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Read a manifest and its recordings' headers; write nothing.

    Args:
        path: as ``iter_manifest`` takes it.
        options: what makes a row bad.
        fields: names of the rows' fields.
        task: rows of another task are bad.
        format: what the manifest is.
        progress: called with each row's finding, in order.

    Raises:
        InputError: a file cannot be read, there are no rows, or the first 20 say that it is no manifest (``data.first_rows``).
    """
    summary = Summary()
    with DurationCache(None) as cache:
        rows = seen(iter_rows(path, fields=fields, task=task, format=format), FirstRows(path, kinds=WRONG_FILE))
        for finding in _findings(rows, options or CheckOptions(), cache):
            _count(summary, finding)
            if progress:
                progress(finding)
    if not summary.rows and not summary.rejected:
        raise InputError(no_rows(path))
    return summary


def scan_manifest(
    path: Path,
    output: Path,
    rejects: Path,
    *,
    cache: Path | None = None,
    options: CheckOptions | None = None,
    fields: Fields = ORIGINAL,
    task: str = "asr",
    format: Format = "auto",
    progress: Progress | None = None,
) -> Summary:
    """Write a manifest's good rows with their durations to ``output`` and the bad ones with their reasons to ``rejects``.

    Both appear when the last row is done, and replace files of those names only then. Clean rows are in arkfast's form whatever the
    input's; each carries its ``id`` and ``duration``, the whole recording's length in seconds, and where it was decoded its ``warnings``.

    Args:
        path: as ``iter_manifest`` takes it.
        output: JSONL manifest to write.
        rejects: JSONL file to write: source, line, kind, reason, raw_line.
        cache: file that keeps the durations for the next scan; None keeps none.
        options, fields, task, format, progress: as for ``check_manifest``.

    Raises:
        InputError: a file cannot be read or written, another scan is writing it, there are no rows, the first 20 say that the input is no
            manifest (``data.first_rows``), or two of the paths are the same file.
    """
    sources = expand(path)
    _check_distinct({"--output": output, "--rejects": rejects} | ({"--cache": cache} if cache else {}), sources)
    beside = {source for source in sources if not is_outlet(output) and input_folder(source).resolve() == output.parent.resolve()}
    summary = Summary()
    with jsonl_files([output, rejects]) as write, DurationCache(cache) as known:
        rows = seen(iter_rows(path, fields=fields, task=task, format=format), FirstRows(path, kinds=WRONG_FILE))
        for finding in _findings(rows, options or CheckOptions(), known):
            _count(summary, finding)
            if finding.error is None:
                write(_CLEAN, clean_row(finding, same_folder=finding.row.source in beside))
            else:
                write(_REJECTS, reject_row(finding.row, finding.error))
            if progress:
                progress(finding)
        if not summary.rows and not summary.rejected:
            raise InputError(no_rows(path))
    return summary


def _findings(rows: Iterable[Row], options: CheckOptions, cache: DurationCache) -> Iterator[Finding]:
    """``check_rows`` with repeated ids: of several good rows with one id the first stays."""
    ids = SeenIds()
    try:
        for finding in check_rows(rows, options, cache):
            utterance = finding.row.utterance
            if finding.error is None and utterance is not None and (first := ids.first(utterance.id, utterance.where)):
                yield Finding(finding.row, error=RowError(repeated_id(utterance, first), "repeated id"))
            else:
                yield finding
    finally:
        ids.close()


def _count(summary: Summary, finding: Finding) -> None:
    if finding.error is not None:
        summary.rejects[finding.error.kind] += 1
    else:
        assert finding.row.utterance is not None
        summary.add(finding, finding.row.utterance)


def clean_row(finding: Finding, *, same_folder: bool) -> JsonObject:
    """A good row as it stands in the clean manifest, which may lie in the row's folder or elsewhere."""
    utterance = finding.row.utterance
    assert utterance is not None
    row: JsonObject = {"id": utterance.id, "audio": _reference(utterance, finding.row.source, same_folder)}
    optional = {"text": utterance.text, "language": utterance.language, "begin_time": utterance.begin, "end_time": utterance.end}
    row |= {name: value for name, value in optional.items() if value is not None}
    if utterance.channel is not None:
        row["channel"] = written_channel(utterance.channel)
    if utterance.audio_track is not None:
        row["audio_track"] = utterance.audio_track
    row["duration"] = round(finding.seconds, 6)
    if finding.warnings:
        row["warnings"] = list(finding.warnings)
    return row | {name: value for name, value in utterance.extra.items() if name not in row and name not in optional}


def reject_row(row: Row, error: RowError) -> JsonObject:
    """A bad row as it stands in the rejects file."""
    return {
        "source": str(row.source),
        "line": row.number,
        "kind": error.kind,
        "reason": str(error),
        "raw_line": row.raw.rstrip("\r\n"),
    }


def _reference(utterance: Utterance, source: Path, same_folder: bool) -> str:
    """The audio field of a row from ``source``: as given where that leads there from the clean manifest too, else the whole path."""
    assert isinstance(utterance.audio, str)
    path, given = utterance.audio, str(utterance.extra["audio"])
    member = TarMember.parse(path)
    if member is not None and Path(member.path) == source:  # a clip of the shard that is read, given relative to the working folder
        return str(replace(member, path=source.name if same_folder else str(source.absolute())))
    if same_folder or os.path.isabs(given):
        return given
    return str(Path(path).absolute()) if member is None else str(replace(member, path=str(Path(member.path).absolute())))


def _check_distinct(outputs: dict[str, Path], sources: list[Path]) -> None:
    """No output may be an input or another output: the one would be lost."""
    taken = {source.resolve(): "an input" for source in sources}
    for flag, path in outputs.items():
        if is_outlet(path):
            continue
        resolved = path.resolve()
        if resolved in taken:
            raise InputError(f"{flag} {path}: is {taken[resolved]} too; give another path")
        taken[resolved] = flag
