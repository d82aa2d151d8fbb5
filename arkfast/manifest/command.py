"""``arkfast manifest check`` and ``arkfast manifest scan``: flags, the progress bar and exit codes.

The actions that read a corpus' own folders have their flags in ``corpora.command``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from arkfast import command_line
from arkfast.audio.channels import check_choice, parse_channel
from arkfast.command_line import parse
from arkfast.data.rows import Fields
from arkfast.data.sources import Format, expand
from arkfast.files import is_outlet, is_standard_output
from arkfast.files.inputs import input_size
from arkfast.files.streams import PIPE_CLOSED, Patient
from arkfast.manifest.check import CheckOptions, Finding
from arkfast.manifest.corpora import command as corpora
from arkfast.manifest.scan import check_manifest, scan_manifest
from arkfast.manifest.summary import Summary
from arkfast.records import InputError, OnTruncated

_MOST_REASONS = 3  # of rejected rows that are shown
_ROWS_AN_UPDATE = 64  # of the progress bar, whose arithmetic costs as much as a row's


@dataclass(frozen=True, kw_only=True)
class CheckConfig(CheckOptions):
    """The flags of ``arkfast manifest check``."""

    headings: ClassVar[dict[str, str]] = {"input": command_line.FIRST, "format": command_line.DATA}

    input: Path
    """JSONL manifest (arkfast's fields or NeMo's) or tar shard; braces name several, as in shard-{000000..000009}.tar; - for standard
    input."""
    format: Format = "auto"
    """What the input is; auto tells shards by their name in .tar and NeMo rows by audio_filepath."""
    task: str = "asr"
    """Rows of another task are bad."""
    audio_field: str = "audio"
    """Input field with the recording's path."""
    text_field: str = "text"
    """Input field with the reference transcript."""
    begin_field: str = "begin_time"
    """Input field with the segment's start in seconds."""
    end_field: str = "end_time"
    """Input field with the segment's end in seconds."""
    channel: str | None = None
    """Which channel is heard in rows that do not say it: a number from 0, several with commas whose average is heard, or average; the
    average of all by default."""
    audio_track: int | None = None
    """Which audio track of a container such as mp4 is heard in rows that do not say it, from 0; the first by default."""
    on_truncated: OnTruncated = "warn"
    """What becomes of an Ogg file that ends on a page's boundary without the mark of its end, as some encoders leave it and as a broken
    download may: warn reads it and says so, fail refuses it. Every other truncated recording is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.channel, self.audio_track)

    @property
    def fields(self) -> Fields:
        """The field names as a manifest's reader takes them, and what holds for rows that do not say."""
        return Fields(
            audio=self.audio_field,
            text=self.text_field,
            begin=self.begin_field,
            end=self.end_field,
            channel=parse_channel(self.channel),
            audio_track=self.audio_track,
            on_truncated=self.on_truncated,
        )


@dataclass(frozen=True, kw_only=True)
class ScanConfig(CheckConfig):
    """The flags of ``arkfast manifest scan``."""

    headings: ClassVar[dict[str, str]] = {"output": command_line.FIRST, "cache": command_line.OUTPUT}

    output: Path
    """JSONL manifest for the good rows, each with its id and duration; replaced only when the new one is complete; - for standard
    output."""
    rejects: Path
    """JSONL file for the bad rows: source, line, kind, reason, raw_line; written even when there are none."""
    cache: Path | None = None
    """File that keeps durations for the next scan; <output>.durations.sqlite3 when left out."""


_ACTIONS = {
    "check": "read a manifest and its recordings, report every bad row, write nothing",
    "scan": "write the good rows with their durations, and the bad ones with their reasons",
} | {action: f"DIR: write manifests from a folder of the corpus {name}" for action, name in corpora.ACTIONS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """``arkfast manifest``.

    Returns:
        0 when every row is good; 1 when rows were rejected; 2 when nothing could be done (flags, input or output are wrong); 130 when
        interrupted; 141 when standard output was closed, as by ``head``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    action, flags = words[0], words[1:]
    if action not in _ACTIONS:
        what = f"unknown flag {action}; an action comes first" if action.startswith("-") else f"unknown action '{action}'"
        print(f"arkfast manifest: error: {what}: one of {', '.join(_ACTIONS)}", file=sys.stderr)
        return 2
    prog = f"arkfast manifest {action}"
    try:
        if action in corpora.ACTIONS:
            code = corpora.run(action, flags, prog)
        else:
            code = (_check if action == "check" else _scan)(flags, prog)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # head or less has seen enough; what is left in the buffer has nowhere to go
        if not isinstance(sys.stdout, Patient):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (InputError, OSError) as error:  # OSError: a full disk, a file system that goes away
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: arkfast manifest ACTION INPUT [--flag value ...]", ""]
    lines += [f"  {name:<16} {what}" for name, what in _ACTIONS.items()]
    return "\n".join([*lines, "", "arkfast manifest ACTION --help lists an action's flags."])


def _check(flags: list[str], prog: str) -> int:
    config = parse(CheckConfig, flags, prog=prog, description=f"{_ACTIONS['check'].capitalize()}.", position="input")
    with _Bar(config.input, "check") as bar:

        def progress(finding: Finding) -> None:
            if finding.error is not None:
                bar.say(str(finding.error))
            elif finding.row.utterance is not None:
                for warning in finding.warnings:
                    bar.say(f"{finding.row.utterance.where}: warning: {warning}")
            bar(finding)

        summary = check_manifest(
            config.input, options=config, fields=config.fields, task=config.task, format=config.format, progress=progress
        )
    print(summary.table())
    return _exit_code(summary)


def _scan(flags: list[str], prog: str) -> int:
    config = parse(ScanConfig, flags, prog=prog, description=f"{_ACTIONS['scan'].capitalize()}.", position="input")
    cache = config.cache or (None if is_outlet(config.output) else Path(f"{config.output}.durations.sqlite3"))
    with _Bar(config.input, "scan") as bar:
        summary = scan_manifest(
            config.input,
            config.output,
            config.rejects,
            cache=cache,
            options=config,
            fields=config.fields,
            task=config.task,
            format=config.format,
            progress=bar,
        )
    said = sys.stderr if is_standard_output(config.output) or is_standard_output(config.rejects) else sys.stdout
    print(summary.table(), file=said)
    print(f"\ngood rows → {config.output}, rejected ones → {config.rejects}", file=said)
    if summary.rejected:
        print("rejected rows, for example:", *bar.reasons.values(), sep="\n  ", file=sys.stderr)
    return _exit_code(summary)


def _exit_code(summary: Summary) -> int:
    return 1 if summary.rejected else 0


class _Bar:
    """A progress bar over the input's bytes, which are known beforehand (not of pipes and compressed files) while its rows are not."""

    def __init__(self, path: Path, action: str) -> None:
        from tqdm import tqdm

        sources = expand(path)
        self._before: dict[Path, int] = {}
        total: int | None = 0
        for source in sources:
            self._before[source] = total or 0
            size = input_size(source)
            total = None if size is None or total is None else total + size
        self._bar: Any = tqdm(total=total, unit="B", unit_scale=True, desc=action, disable=None, dynamic_ncols=True)
        self._rows = self._rejected = 0
        self.reasons: dict[str, str] = {}
        """The first rejected row of each of the first three kinds, as errors show it."""
        self._write: Callable[..., None] = tqdm.write

    def __call__(self, finding: Finding) -> None:
        self._rows += 1
        self._rejected += finding.error is not None
        if finding.error is not None and len(self.reasons) < _MOST_REASONS:
            self.reasons.setdefault(finding.error.kind, " ".join(str(finding.error).split()))
        if self._rows % _ROWS_AN_UPDATE == 0:
            done = self._before[finding.row.source] + finding.row.end
            self._bar.set_postfix(rows=self._rows, rejected=self._rejected, refresh=False)
            self._bar.update(max(0, done - self._bar.n))

    def say(self, line: str) -> None:
        """A line above the bar, on standard output."""
        self._write(line, file=sys.stdout)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._bar.set_postfix(rows=self._rows, rejected=self._rejected, refresh=False)
            if self._bar.total is not None:
                self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()
