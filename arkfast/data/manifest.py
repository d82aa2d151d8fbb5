"""Manifests: one utterance a row, every bad row named.

Rows stand in JSON Lines (arkfast's fields or NeMo's), or in tar shards as pairs of a recording and its json or txt. No recording is opened
here. What a row's fields mean is decided in ``rows``, and what a tar file holds in ``shards``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from arkfast.data.rows import ORIGINAL, Fields, Row, RowError, RowForm, parse_object, to_utterance
from arkfast.data.shards import DamagedShard, Sample, iter_samples
from arkfast.data.sources import Format, expand, is_tar, short_names
from arkfast.files.inputs import input_folder
from arkfast.files.lines import BOM, MAX_LINE, read_lines
from arkfast.files.remote import shown
from arkfast.records import InputError, Utterance

_WHAT = "JSONL manifest"  # what errors ask for

OnError = Callable[[InputError, int, str], None]


def iter_manifest(
    path: str | Path, *, fields: Fields = ORIGINAL, task: str = "asr", format: Format = "auto", on_error: OnError | None = None
) -> Iterator[Utterance]:
    """Each row of a manifest as an ``Utterance``, in order, in constant memory. Blank lines are skipped.

    A manifest is a JSONL file, in arkfast's form or NeMo's, or a tar shard in WebDataset's layout (its name ends in ``.tar``); braces name
    several: ``shard-{000000..000009}.tar``. JSONL may be compressed by gzip or zstd, its rows may stand in one JSON array, and ``-`` and
    pipes are read too, as often as is asked. Relative audio paths resolve against the manifest's folder; a clip inside a tar file is
    ``shard.tar::clip.flac``. A row without ``id`` is named ``<file name>:<line>``, in a shard ``<file name>:<key>``; where
    braces name files of one name in several folders, the folders that differ stand before it: ``a/train.jsonl:3``.

    Args:
        path: the manifest.
        fields: names of the row's fields.
        task: rows whose ``task`` is something else are errors.
        format: what the manifest is; ``auto`` sees it by the name and by each row.
        on_error: called with (error, line number, the line) for a bad row, which is then skipped; None raises the first error. In a shard
            the number is the sample's, the line its json or txt.

    Raises:
        InputError: a file cannot be read, or a row is bad and ``on_error`` is None. Messages begin with ``file:line`` or ``shard::key``.
    """
    for row in iter_rows(path, fields=fields, task=task, format=format):
        if row.utterance is not None:
            yield row.utterance
            continue
        assert row.error is not None
        if on_error is None:
            raise row.error
        on_error(row.error, row.number, row.raw)


def iter_rows(path: str | Path, *, fields: Fields = ORIGINAL, task: str = "asr", format: Format = "auto") -> Iterator[Row]:
    """``iter_manifest`` with bad rows in their places, as they stand, instead of errors.

    A shard that breaks off is one bad row after the samples before the damage; the next shard is read all the same.

    Raises:
        InputError: a file cannot be read.
    """
    sources = expand(path)
    for source, name in zip(sources, short_names(sources), strict=True):
        yield from source_rows(source, name, fields=fields, task=task, format=format)


def source_rows(
    source: Path, name: str, *, fields: Fields = ORIGINAL, task: str = "asr", format: Format = "auto", origin: str | None = None
) -> Iterator[Row]:
    """``iter_rows`` of one file, whose rows are called after ``name`` where they give no id.

    Args:
        source: the file.
        name: as above.
        fields, task, format: as for ``iter_rows``.
        origin: the address that the file is a copy of; None where it is a file of its own.

    Raises:
        InputError: the file cannot be read.
    """
    if is_tar(source, format):
        yield from _shard_rows(source, name, fields, task)
    else:
        assert format != "tar"
        yield from _jsonl_rows(source, name, fields, task, format, origin)


def read_manifest(
    path: str | Path, *, fields: Fields = ORIGINAL, task: str = "asr", format: Format = "auto", limit: int | None = None
) -> list[Utterance]:
    """All rows of a manifest (the first ``limit``), with ids checked for uniqueness.

    Raises:
        InputError: a bad row, a repeated id, or no rows at all.
    """
    rows: list[Utterance] = []
    seen: dict[str, str] = {}
    for utterance in iter_manifest(path, fields=fields, task=task, format=format):
        if limit is not None and len(rows) >= limit:
            break
        if utterance.id in seen:
            raise InputError(repeated_id(utterance, seen[utterance.id]))
        seen[utterance.id] = utterance.where
        rows.append(utterance)
    if not rows:
        raise InputError(no_rows(path))
    return rows


def repeated_id(utterance: Utterance, first: str) -> str:
    """The message for an id that stands already at ``first``."""
    return f"{utterance.where}: id '{utterance.id}' stands already at {first}; ids must be unique"


def no_rows(path: str | Path) -> str:
    """The message for a manifest without rows."""
    return f"{path}: holds no rows; expected one JSON object a line, or a tar file of recordings with their json or txt"


def count_rows(path: str | Path, *, format: Format = "auto") -> int:
    """How many rows a manifest has, good and bad, without parsing them: lines that are not blank, samples of shards.

    Raises:
        InputError: a file cannot be read, or there is no row.
    """
    total = 0
    for source in expand(path):
        if is_tar(source, format):
            try:
                for _ in iter_samples(source):
                    total += 1
            except DamagedShard:
                total += 1  # the damage counts as a row of its own
        else:
            total += sum(1 for line, _, _ in read_lines(source, _WHAT) if line.strip())
    if not total:
        raise InputError(no_rows(path))
    return total


def _jsonl_rows(copy: Path, name: str, fields: Fields, task: str, form: RowForm, origin: str | None) -> Iterator[Row]:
    path = str(copy) if origin is None else shown(origin)
    source = copy if origin is None else Path(path)
    folder = input_folder(copy) if origin is None else origin.partition("#")[0].partition("?")[0].rpartition("/")[0]
    for number, (raw, end, whole) in enumerate(_lines(copy, path), 1):
        where, default_id = f"{path}:{number}", f"{name}:{number}"
        try:
            if not whole:
                raise RowError(f"{where}: a line of more than {MAX_LINE >> 20} MiB is no row; is this a JSONL manifest?", "overlong line")
            line = _decoded(raw, where)
            if not line.strip():
                continue
            utterance = to_utterance(
                parse_object(line, where),
                where=where,
                default_id=default_id,
                folder=folder,
                fields=fields,
                task=task,
                form=form,
            )
        except RowError as error:
            text = raw.decode("utf-8", errors="replace")
            yield Row(source=source, number=number, raw=text, end=end, default_id=default_id, error=error)
        else:
            yield Row(source=source, number=number, raw=line, end=end, default_id=default_id, utterance=utterance)


def _lines(copy: Path, path: str) -> Iterator[tuple[bytes, int, bool]]:
    """The lines of a file, whose errors call it ``path``."""
    try:
        yield from read_lines(copy, _WHAT)
    except InputError as error:
        if path == str(copy):
            raise
        raise InputError(str(error).replace(str(copy), path)) from error


def _shard_rows(path: Path, name: str, fields: Fields, task: str) -> Iterator[Row]:
    number, end = 0, 0
    try:
        for sample in iter_samples(path):
            number, end = sample.number, sample.end
            raw = sample.text("json") or sample.text("txt") or b""
            line, default_id = raw.decode("utf-8", errors="replace"), f"{name}:{sample.key}"
            try:
                utterance = _from_sample(sample, path, default_id, fields, task)
            except RowError as error:
                yield Row(source=path, number=number, raw=line, end=end, default_id=default_id, error=error)
            else:
                yield Row(source=path, number=number, raw=line, end=end, default_id=default_id, utterance=utterance)
    except DamagedShard as error:
        fault = RowError(str(error), "damaged shard")
        yield Row(source=path, number=number + 1, raw="", end=end, default_id=f"{name}:{number + 1}", error=fault)


def _from_sample(sample: Sample, path: Path, default_id: str, fields: Fields, task: str) -> Utterance:
    where = f"{path}::{sample.key}"
    if sample.fault:
        raise RowError(f"{where}: {sample.fault}", "damaged shard")
    if not sample.audio:
        raise RowError(f"{where}: {_listed(sample)} without a recording beside it; {_PAIRING}", "incomplete pair")
    if len(sample.audio) > 1:
        both = " and ".join(member.name for member in sample.audio[:2])
        raise RowError(f"{where}: two recordings, {both}, under one key; {_PAIRING}", "incomplete pair")
    described, spoken = sample.text("json"), sample.text("txt")
    if described is None and spoken is None:
        raise RowError(f"{where}: {sample.audio[0].name} has no single .json or .txt beside it; {_PAIRING}", "incomplete pair")
    row = {} if described is None else parse_object(_decoded(described, f"{where}.json"), f"{where}.json")
    if spoken is not None and row.get(fields.text) is None:
        row[fields.text] = _decoded(spoken, f"{where}.txt").strip()
    # The clip is the one in the shard, wherever the row may have had it from.
    row[fields.audio] = str(sample.audio[0])
    return to_utterance(row, where=where, default_id=default_id, folder=None, fields=fields, task=task, form="jsonl")


_PAIRING = "a clip and its text share their name up to the first dot and follow one another (tar --sort=name)"


def _listed(sample: Sample) -> str:
    return " and ".join(f".{suffix}" for suffix in sample.texts)


def _decoded(content: bytes, where: str) -> str:
    """UTF-8 text, without the mark that some editors put before it."""
    try:
        return content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8", "not UTF-8") from error
