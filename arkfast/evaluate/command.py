"""``arkfast evaluate``: rows with transcripts, or a manifest and a model, in; scored rows, a summary and a table out.

Knows flags, files and exit codes; counting is ``scores``', transcription is ``arkfast.infer``'s.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arkfast.config import parse
from arkfast.evaluate.scores import Scores, score_rows
from arkfast.infer.command import Summary, TranscribeOptions, transcribe_file
from arkfast.infer.jsonl import AtomicJsonl, read_rows
from arkfast.metrics import Unit, get_normalizer
from arkfast.records import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TranscribeOptions):
    """The flags of ``arkfast evaluate``."""

    input: Path
    """JSONL file: rows with pred_text and the reference, or, with --model_path, a manifest to transcribe first."""
    output: Path | None = None
    """JSONL file for the scored rows, in the input's order; none is written by default."""
    summary: Path | None = None
    """JSON file for the scores; none is written by default."""
    model_path: Path | None = None
    """Folder of a checkpoint; given, the input's recordings are transcribed and any pred_text there is ignored."""
    tmp_output: Path | None = None
    """With --model_path, JSONL file that keeps the transcripts before scoring; OUTPUT with .transcripts.jsonl behind it by default."""
    normalizer: Literal["basic", "none", "whisper"] = "basic"
    """What references and transcripts go through before they are compared."""
    unit: Unit = "word"
    """What the interval and the counts speak of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_path is not None and self.transcripts is None:
            raise InputError("--model_path needs --output or --tmp_output: the transcripts have to stand somewhere")

    @property
    def transcripts(self) -> Path | None:
        """Where transcripts go before they are scored."""
        if self.tmp_output is not None or self.output is None:
            return self.tmp_output
        return self.output.with_name(self.output.name + ".transcripts.jsonl")


def run(config: EvaluateConfig) -> tuple[Scores, Summary | None]:
    """Transcribe if asked to, score, and write what was asked for.

    Returns:
        The scores, and what the transcription did (None without one).

    Raises:
        InputError: a file cannot be read or written, no row carries a transcript, or a normaliser is missing (told before transcription).
    """
    get_normalizer(config.normalizer)
    source, text_field, transcription = config.input, config.text_field, None
    if config.output is not None and config.output.resolve() == config.input.resolve():
        raise InputError(f"{config.output}: is the input too; give another path, so that the input stays as it is")
    if config.model_path is not None:
        assert config.transcripts is not None, "checked when the configuration was made"
        source, text_field = config.transcripts, "text"
        transcription = transcribe_file(config.input, source, config.model_path, config)
    rows = list(read_rows(source))
    if not rows:
        raise InputError(f"{source}: holds no rows; expected one JSON object a line")
    if not any("pred_text" in row for row in rows):
        raise InputError(f"{source}: no row has pred_text; give --model_path to transcribe the recordings first")
    if not any(row.get(text_field) is not None for row in rows):
        raise InputError(f"{source}: no row has a reference in field '{text_field}'; name the reference's field with --text_field")
    scores, scored = score_rows(rows, normalizer=config.normalizer, unit=config.unit, text_field=text_field)
    if config.output is not None:
        with AtomicJsonl(config.output) as writer:
            for row in scored:
                writer.write(row)
    if config.summary is not None:
        _write_json(config.summary, scores.to_dict() | _speed(transcription))
    return scores, transcription


def main(argv: Sequence[str] | None = None) -> int:
    """``arkfast evaluate``.

    Returns:
        0; 1 when rows failed or have no reference and ``--allow_failures`` is not set; 2 when nothing could be scored (flags, input, output
        or checkpoint are wrong); 130 when interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(EvaluateConfig, arguments, prog="arkfast evaluate", description="Score transcripts against their references.")
    try:
        scores, transcription = run(config)
    except InputError as error:
        print(f"arkfast evaluate: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("arkfast evaluate: interrupted", file=sys.stderr)
        return 130
    print(scores.table())
    if transcription is not None:
        print(transcription.line())
    if scores.scored < scores.utterances and not config.allow_failures:
        missing = f"{scores.utterances - scores.scored} of {scores.utterances} rows were not scored"
        print(f"arkfast evaluate: {missing}; --allow_failures true accepts that", file=sys.stderr)
        return 1
    return 0


def _speed(transcription: Summary | None) -> dict[str, Any]:
    if transcription is None:
        return {}
    return {
        "audio_seconds": transcription.audio_seconds,
        "wall_seconds": transcription.wall_seconds,
        "rtfx": transcription.rtfx,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write through a file beside ``path``, so that a summary is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give a path in a folder that you may write to") from error
