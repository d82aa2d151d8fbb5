"""The flags of ``arkfast evaluate``, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from arkfast import command_line
from arkfast.evaluate.rows import Fields
from arkfast.evaluate.scoring import UnitChoice
from arkfast.files.inputs import is_stream
from arkfast.files.outlets import is_outlet
from arkfast.infer.long import Vad
from arkfast.infer.options import TranscribeOptions
from arkfast.metrics import NormalizerName, NormalizerOption
from arkfast.records import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TranscribeOptions):
    """The flags of ``arkfast evaluate``."""

    headings: ClassVar[dict[str, str]] = {
        "input": command_line.FIRST, "summary": command_line.OUTPUT, "model_path": command_line.FIRST, "vad": command_line.DECODING,
        "tmp_output": command_line.OUTPUT,
        "pred_field": command_line.DATA, "unit": command_line.SCORING, "sort": command_line.OUTPUT, "compare": command_line.COMPARING,
    }  # fmt: skip

    input: Path
    """JSONL file: rows with a transcript and the reference, or, with --model_path, a manifest to transcribe first."""
    output: Path | None = None
    """JSONL file for the scored rows, in the input's order; none is written by default."""
    summary: Path | None = None
    """JSON file for the scores; none is written by default."""
    markdown: Path | None = None
    """Markdown file with a table per preset and language; none is written by default."""
    html: Path | None = None
    """Self-contained HTML page of the evaluation; none is written by default."""
    model_path: Path | None = None
    """Folder of a checkpoint, or a Hugging Face repository as organisation/name; given, the input's recordings are transcribed and any
    transcript there is ignored."""
    vad: Vad = "none"
    """As for transcribe; a segment over --max_audio_seconds fails unless this says how to cut it."""
    tmp_output: Path | None = None
    """With --model_path, JSONL file that keeps the transcripts before scoring; OUTPUT with .tmp_unsorted.jsonl behind it by default."""
    pred_field: str = "pred_text"
    """Input field with the transcript."""
    language: str | None = None
    """Language of rows that carry none, as a code or a name; it decides the unit and the normaliser's rules, and models whose prompt knows
    languages are told it. Without it the script of the references decides what is counted."""
    preset: str | None = None
    """Name of the test set, for rows that carry none; the input's name by default, without test_ in front and its ending."""
    unit: UnitChoice = "auto"
    """What is counted; auto takes each language's convention: characters in Chinese, Cantonese, Japanese and Thai, else words."""
    normalizer: NormalizerName = "basic"
    """What references and transcripts go through before they are compared."""
    normalizer_options: tuple[NormalizerOption, ...] = ()
    """What is taken out of references and transcripts before, several with commas between: prefix (language X<asr_text>, <|en|>), tags
    ([noise], (laughter), <unk>), fillers (uh, 嗯), vowel_marks (Arabic and Hebrew, and tatweel), dotted_i (Turkish İ and I)."""
    filler_words: tuple[str, ...] = ()
    """With --normalizer_options fillers, the words that are dropped in every language, in place of the lists for each."""
    disable_text_normalize: bool = False
    """open-audio-opd's flag: no module text_process; the same as --normalizer basic."""
    text_normalize_python: str | None = None
    """Python that has the module text_process; given, --normalizer is external."""
    text_normalize_workdir: Path | None = None
    """Folder that --text_normalize_python runs in; the current one by default."""
    leaderboard_path: Path | None = None
    """Checkout of open_asr_leaderboard; given, --normalizer is leaderboard."""
    group_by: str | None = None
    """Field (session, speaker) whose equal values the bootstrap resamples together; utterances by default."""
    sort: Literal["input", "cer_errors"] = "input"
    """Order of the output's rows; cer_errors puts the most character errors first, as open-audio-opd does."""
    compare: Path | None = None
    """JSONL file with another system's transcripts of the same rows, joined by id: difference, interval and p-value."""
    baseline: Path | None = None
    """Summary of an earlier evaluation; a regression of more than --max_regression exits with 1."""
    max_regression: float = 0.1
    """Percentage points by which a rate may be worse than the baseline's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_path is not None and self.transcripts is None:
            raise InputError(
                "--model_path needs --tmp_output, or a file as --output: the transcripts have to stand in a file before they are scored"
            )
        if not self.max_regression >= 0:
            raise InputError(f"max_regression must be percentage points of at least 0, got {self.max_regression}")
        asked = [name for name in ("disable_text_normalize", "text_normalize_python", "leaderboard_path") if getattr(self, name)]
        if len(asked) > 1:
            raise InputError(f"--{' and --'.join(asked)} ask for different normalisers; give one of them")
        if self.normalizer not in ("basic", self.normalizer_name):
            raise InputError(
                f"--{asked[0]} asks for normalizer {self.normalizer_name}, --normalizer for {self.normalizer}; give one of them"
            )
        if self.text_normalize_workdir is not None and self.normalizer_name != "external":
            raise InputError("--text_normalize_workdir is of use with --text_normalize_python only")

    @property
    def transcripts(self) -> Path | None:
        """Where transcripts go before they are scored."""
        if self.tmp_output is not None or self.output is None or is_outlet(self.output):
            return self.tmp_output
        return self.output.with_name(self.output.name + ".tmp_unsorted.jsonl")

    @property
    def normalizer_name(self) -> NormalizerName:
        """The normaliser that the flags ask for together."""
        if self.disable_text_normalize:
            return "basic"
        if self.text_normalize_python is not None:
            return "external"
        return "leaderboard" if self.leaderboard_path is not None else self.normalizer

    @property
    def fields(self) -> Fields:
        """Where the rows to be scored keep their texts, and what holds where they do not say."""
        transcribed = self.model_path is not None
        return Fields(
            text="text" if transcribed else self.text_field,
            prediction="pred_text" if transcribed else self.pred_field,
            language=self.language,
            preset=self.preset if self.preset is not None else None if is_stream(self.input) else self.input.stem.removeprefix("test_"),
            group_by=self.group_by,
        )
