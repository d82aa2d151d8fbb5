"""Rows in other files than one of JSON lines: a Parquet file, or several files with so many rows each.

They are made of the rows when all are done, and take their names together, so that what was there before stays until then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from arkfast.files import LineFile, is_outlet, json_line, naming, new_files
from arkfast.infer.columns import Columns
from arkfast.infer.jsonl import read_rows
from arkfast.installation import install_hint
from arkfast.records import InputError, JsonObject

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_SHARD = 10_000
"""By default."""
MOST_SHARDS = 10_000
ROW_GROUP = 4096
"""Rows of a Parquet file that are in memory together."""
_SHARD = re.compile(r"\{shard(?::0?(\d{1,2})d)?\}")


@dataclass(frozen=True)
class RowFiles:
    """The files that all rows go into.

    Args:
        output: what the user gave; ``{shard}`` or ``{shard:05d}`` in its name stands for the number of a file, from 0.
        rows_per_shard: rows of each file but the last; None where there is one file.
    """

    output: Path
    rows_per_shard: int | None = None

    @property
    def parquet(self) -> bool:
        """Whether they are Parquet files; else JSON lines."""
        return self.output.suffix.lower() == ".parquet"

    @property
    def base(self) -> Path:
        """The path that the journal, the partial file, the lock and the record are called after."""
        return self.output if self.rows_per_shard is None else self.output.with_name(_SHARD.sub("shards", self.output.name))

    def shard(self, number: int) -> Path:
        """The file with a number."""
        return self.output.with_name(_SHARD.sub(lambda match: f"{number:0{match[1] or 0}d}", self.output.name))

    def standing(self) -> list[Path]:
        """The files that are there, in order of their numbers: those of an earlier run."""
        if self.rows_per_shard is None:
            return [self.output] if self.output.exists() else []
        if not self.output.parent.is_dir():
            return []
        before, _, after = _SHARD.sub("\0", self.output.name).partition("\0")
        name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        found = [(int(match[1]), path) for path in self.output.parent.iterdir() if (match := name.fullmatch(path.name))]
        return [path for number, path in sorted(found) if path == self.shard(number)]

    def write(self, partial: Path, rows: int) -> str:
        """Make the files of complete rows. Files of an earlier run with higher numbers go.

        Args:
            partial: JSONL file of all rows.
            rows: how many they are.

        Returns:
            A sentence on what was written, for the user.

        Raises:
            InputError: a file cannot be written; what was there before is there still.
        """
        each = self.rows_per_shard or rows
        count = -(-rows // each)
        if count > MOST_SHARDS:
            raise InputError(
                f"{self.output}: {rows} rows would be {count} files, and {MOST_SHARDS} are the most; give a larger --rows_per_shard"
            )
        paths = [self.shard(number) for number in range(count)] if self.rows_per_shard else [self.output]
        columns = Columns(read_rows(partial)) if self.parquet else None
        with new_files(paths) as temporaries:
            lines = read_rows(partial)
            for path, temporary in zip(paths, temporaries, strict=True):
                with naming(path):
                    if columns is None:
                        _write_lines(temporary, islice(lines, each))
                    else:
                        _write_table(temporary, columns, islice(lines, each))
        for path in self.standing():
            if path not in paths:
                with naming(path):
                    path.unlink()
        return self._said(paths, columns)

    def _said(self, paths: Sequence[Path], columns: Columns | None) -> str:
        said = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, {paths[0].name} to {paths[-1].name} in {paths[0].parent}"
        if columns is not None and columns.as_text:
            said += f"; JSON text, since values share no type: {', '.join(columns.as_text)}"
        if columns is not None and columns.renamed:
            said += "; renamed: " + ", ".join(f"{name} to {column}" for name, column in columns.renamed.items())
        return said


def row_files(output: Path, rows_per_shard: int | None) -> RowFiles | None:
    """The files that ``--output`` asks for; None where that is one file of JSON lines.

    Raises:
        InputError: the flags do not go together, or pyarrow is needed and not installed.
    """
    sharded = _SHARD.search(output.name) is not None
    if len(_SHARD.findall(output.name)) > 1 or (not sharded and "{shard" in str(output)):
        raise InputError(f"--output {output}: the number of a file stands once and in its name, as in out-{{shard:05d}}.jsonl")
    if rows_per_shard is not None and not sharded:
        raise InputError(f"--rows_per_shard {rows_per_shard} needs several files: --output 'out-{{shard:05d}}.jsonl'")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise InputError(f"--rows_per_shard must be at least 1, got {rows_per_shard}")
    files = RowFiles(output, (rows_per_shard or ROWS_PER_SHARD) if sharded else None)
    if is_outlet(output) or not (sharded or files.parquet):
        return None
    if files.parquet and find_spec("pyarrow") is None:
        raise InputError(f"--output {output} needs the package pyarrow, {install_hint('parquet')}; a name in .jsonl needs none")
    return files


def _write_lines(path: Path, rows: Iterator[JsonObject]) -> None:
    lines = LineFile(path, fresh=True)
    try:
        for row in rows:
            lines.add(json_line(row))
    finally:
        lines.close()


def _write_table(path: Path, columns: Columns, rows: Iterator[JsonObject]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema: pyarrow.Schema = columns.schema()
    with ParquetWriter(path, schema, compression="zstd") as writer:
        while group := [columns.row(row) for row in islice(rows, ROW_GROUP)]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
