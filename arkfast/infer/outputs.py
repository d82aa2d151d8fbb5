"""Where transcripts go: a JSONL file of all rows, files for each recording in other formats, or the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from arkfast.files import STANDARD, is_outlet, write_text
from arkfast.infer.formats import FORMS, CaptionLimits, Form, recordings_of, save, written
from arkfast.infer.inputs import Input, check_local, local_sources, single_recording, sources
from arkfast.infer.jsonl import read_rows
from arkfast.infer.row_files import RowFiles, row_files
from arkfast.records import InputError

ROWS = "transcripts.jsonl"
"""The file of all rows in a folder of files for each recording."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a transcription leaves behind."""

    rows: Path
    """JSONL file of all rows; where there are ``files``, what the journal and the partial file are called after."""
    files: RowFiles | None = None
    """The files of all rows where that is not one JSONL file."""
    temporary: bool = False
    """Whether that file is nobody's wish and is gone in the end."""
    folder: Path | None = None
    """Where the files for each recording go."""
    single: Path | None = None
    """The file, or standard output, that the one recording goes to."""
    forms: tuple[Form, ...] = ()
    """In which formats."""
    limits: CaptionLimits = field(default_factory=CaptionLimits)
    """Of captions."""

    def finish(self) -> str | None:
        """Make the other formats of the rows, which are complete.

        Returns:
            A sentence for the user; None where there is nothing to say.

        Raises:
            InputError: a file cannot be written.
        """
        if self.single is not None:
            for recording in recordings_of(read_rows(self.rows)):
                if not recording.failed:
                    write_text(self.single, written(recording, self.forms[0], self.limits))
            return None
        forms = [form for form in self.forms if form in FORMS]
        if self.folder is None or not forms:
            return None
        done, left_out = save(recordings_of(read_rows(self.rows)), self.folder, forms, self.limits)
        said = f"{', '.join(forms)} of {done} recording{'' if done == 1 else 's'} in {self.folder}"
        return said + (f"; none of {len(left_out)} with failed rows, the first of them {left_out[0]}" if left_out else "")


@contextmanager
def planned(
    given: Input,
    *,
    output: Path | None,
    folder: Path | None,
    forms: Sequence[Form],
    limits: CaptionLimits,
    rows_per_shard: int | None = None,
) -> Iterator[Outputs]:
    """Yields what the flags ask for.

    Args:
        given: the input.
        output: ``--output``.
        folder: ``--output_dir``.
        forms: ``--output_format``; none of them is the default.
        limits: of captions.
        rows_per_shard: ``--rows_per_shard``.

    Raises:
        InputError: the flags do not go together, an output is an input, or one is the address of another machine.
    """
    if limits.max_line_width < 0 or limits.max_line_count < 0:
        raise InputError("--max_line_width and --max_line_count must be at least 0, which sets no limit")
    for path in (output, folder):
        if path is not None:
            check_local(path)
    others = [form for form in forms if form in FORMS]
    files = None if others and folder is None else row_files(output or Path(), rows_per_shard)
    if files is not None:
        if folder is not None:
            raise InputError(
                f"--output {output} cannot go with --output_dir, whose files are made from one of JSON lines; give a name in .jsonl"
            )
        if both := {path.resolve() for path in files.standing()} & {source.resolve() for source in local_sources(given)}:
            raise InputError(
                f"{min(both)}: is an input and would be an output too; give another --output, so that the input stays as it is"
            )
        yield Outputs(rows=files.base, files=files)
        return
    if folder is not None:
        if output is not None and is_outlet(output):
            raise InputError(f"--output {output} cannot go with --output_dir, whose files are made from it; give a file")
        yield Outputs(rows=output or folder / ROWS, folder=folder, forms=tuple(forms), limits=limits)
        return
    if output is not None and not others:
        yield Outputs(rows=output)
        return
    if single_recording(given) is None:
        sources(given)  # what is not there is the better reason
        if output is None:
            raise InputError("required: --output, a JSONL file, or --output_dir for a file for each recording")
        raise InputError(f"--output_format {','.join(others)} needs --output_dir, since each recording has a file of its own")
    if len(forms) > 1:
        raise InputError(f"--output_format {','.join(forms)}: several formats need --output_dir")
    if forms == ("jsonl",):
        yield Outputs(rows=STANDARD)
        return
    with TemporaryDirectory(prefix="arkfast-") as temporary:
        single = STANDARD if output is None else output
        yield Outputs(rows=Path(temporary) / ROWS, temporary=True, single=single, forms=tuple(forms) or ("txt",), limits=limits)
