"""Result files of Hugging Face's Open ASR Leaderboard, as its ``run_eval.py`` scripts write them, for a row "model (arkfast)".

The file's name, the fields of its rows, which references are left out, what is timed and what is printed follow the leaderboard's own
scripts as of August 2026 (``normalizer/eval_utils.py``, ``normalizer/data_utils.py`` and ``ark_asr/run_eval.py`` of its repository). The
user gives a manifest for each data set and split; nothing is downloaded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.data import read_manifest
from arkfast.files import streams
from arkfast.infer.jsonl import AtomicJsonl
from arkfast.infer.stream import DeviceLost
from arkfast.infer.transcriber import DType, Transcriber, check_limits
from arkfast.metrics import Normalizer, count_errors, get_normalizer
from arkfast.records import InputError, JsonObject, JsonRow, Utterance

IGNORED = "ignore time segment in scoring"
"""A reference that normalises to this, or to nothing, is no part of the leaderboard's data."""
PARENT, INDEX = "parent_id", "chunk_index"
"""Fields of a chunk of a longer session; every chunk's ``text`` is the whole session's."""
UNREAD = 1e-9
"""Seconds of audio and of transcription of a clip that could not be read. The leaderboard's scorer takes 0 or null in one row for a file
without measurements, and fails where other files have some; so little changes no sum."""

_WINDOW_BATCHES = 8  # batches handed over at a time, so that clips of like length are decoded together

Transcribe = Callable[[Sequence[Utterance]], Iterable[JsonRow]]
"""One row (``pred_text``, ``status``, ``error``) for each utterance, whose audio is in memory."""


@dataclass(frozen=True, kw_only=True)
class LeaderboardConfig:
    """The flags of the leaderboard's script; its own ones keep their names."""

    headings: ClassVar[dict[str, str]] = {
        "manifest": command_line.FIRST, "revision": command_line.MODEL, "model_id": command_line.FIRST, "split": command_line.DATA,
        "output_dir": command_line.OUTPUT, "device": command_line.MACHINE, "dtype": command_line.MODEL,
        "batch_size": command_line.DECODING, "max_audio_seconds": command_line.DATA, "warmup_steps": command_line.DECODING,
        "leaderboard_path": command_line.SCORING, "allow_failures": command_line.OUTPUT,
    }  # fmt: skip

    manifest: Path
    """JSONL manifest of one data set and split: audio, text, id; parent_id and chunk_index where sessions were cut into chunks."""
    model_path: Path
    """Folder of a checkpoint, or a Hugging Face repository as organisation/name."""
    revision: str | None = None
    """Branch, tag or commit of the repository; its default branch by default."""
    model_id: str
    """Name of the leaderboard's row, such as AutoArk-AI/ARK-ASR-0.6B-arkfast; goes into the file's name."""
    dataset: str
    """Name of the data set, such as librispeech."""
    split: str = "test"
    """Its split, such as test.clean."""
    dataset_path: str = "hf-audio/open-asr-leaderboard"
    """Where the data set comes from; goes into the file's name."""
    output_dir: Path = Path("results")
    """Folder for the result file."""
    device: str | None = None
    """Device as torch spells it, or as the leaderboard does: a GPU's number, -1 for the CPU; the GPU where there is one."""
    dtype: DType = "auto"
    """Type of the weights; auto is bfloat16 on a GPU and float32 elsewhere."""
    batch_size: int = 64
    """Most clips decoded together."""
    max_new_tokens: int = 256
    """Token limit of a transcript."""
    max_audio_seconds: float = 40.0
    """A longer clip is a failed row, never a shortened one."""
    max_eval_samples: int = -1
    """Only the first so many rows; -1 is all."""
    warmup_steps: int = 10
    """Batches transcribed beforehand without being timed."""
    leaderboard_path: Path | None = None
    """Checkout of open_asr_leaderboard, for its own normaliser, which decides what is left out; arkfast's basic one by default."""
    allow_failures: bool = False
    """Write failed rows as empty transcripts, which count as deletions, instead of leaving the result unfinished."""

    def __post_init__(self) -> None:
        check_limits(batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, max_audio_seconds=self.max_audio_seconds)
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.max_eval_samples == 0 or self.max_eval_samples < -1:
            raise InputError(f"max_eval_samples must be above 0, or -1 for all, got {self.max_eval_samples}")
        for name in ("model_id", "dataset", "split", "dataset_path"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} is empty; it is part of the result file's name")
        if "/" in self.split or "_DATASET_" in self.model_id:
            raise InputError("split must not contain '/', nor model_id '_DATASET_': the result file's name could not be read back")

    @property
    def result(self) -> Path:
        """The result file; the leaderboard reads model and data set from its name."""
        model, path, name = (text.replace("/", "-") for text in (self.model_id, self.dataset_path, self.dataset))
        return self.output_dir / f"MODEL_{model}_DATASET_{path}_{name}_{self.split}.jsonl"


def read_utterances(path: Path, normalizer: Normalizer) -> tuple[list[Utterance], int]:
    """A manifest's utterances that the leaderboard scores, and how many it leaves out.

    Raises:
        InputError: a row is bad, lacks a reference, only some rows are chunks of sessions, or a recording is not there.
    """
    utterances = read_manifest(path)
    for utterance in utterances:
        if utterance.text is None:
            raise InputError(f"{utterance.where}: no text; the leaderboard scores every row against a reference")
    _check_chunks(utterances)
    clean = normalizer.apply([u.text or "" for u in utterances], [u.language for u in utterances])
    kept = [u for u, text in zip(utterances, clean, strict=True) if text.strip() not in ("", IGNORED)]
    if not kept:
        raise InputError(f"{path}: no row has a reference that is scored")
    missing = [u for u in kept if isinstance(u.audio, str) and "::" not in u.audio and not os.path.exists(u.audio)]
    if missing:
        raise InputError(
            f"{missing[0].where}: {missing[0].audio}: no such file ({len(missing)} recordings are missing); nothing was started"
        )
    return kept, len(utterances) - len(kept)


def _check_chunks(utterances: Sequence[Utterance]) -> None:
    for utterance in utterances:
        chunk = [name in utterance.extra for name in (PARENT, INDEX)]
        if any(chunk) != (PARENT in utterances[0].extra) or all(chunk) != any(chunk):
            raise InputError(f"{utterance.where}: {PARENT} and {INDEX} must stand in every row or in none; else sessions cannot be joined")


def timed_rows(transcribe: Transcribe, utterances: Sequence[Utterance], *, window: int, max_seconds: float) -> Iterator[JsonObject]:
    """The result rows, in order, each with its share of the time that its window took.

    Recordings are decoded before the clock starts, as the leaderboard's data sets are; features, transfers, generation and text are
    inside. A failed row has a ``pred_text`` of None, and ``error``; one whose clip could not be read has ``UNREAD`` for
    its length and its time.
    """
    for start in range(0, len(utterances), window):
        loaded = [_load(utterance, max_seconds) for utterance in utterances[start : start + window]]
        good = [item for item in loaded if isinstance(item, Utterance)]
        began = time.perf_counter()
        rows = iter(list(transcribe(good)))
        seconds = (time.perf_counter() - began) / max(len(good), 1)
        for utterance, item in zip(utterances[start : start + window], loaded, strict=True):
            if isinstance(item, Utterance):
                assert item.audio is not None, "_load has put the samples there"
                yield _result_row(utterance, next(rows), len(item.audio) / _rate(), seconds)
            else:
                yield _result_row(utterance, {"status": "error", "error": item}, UNREAD, UNREAD)


def _rate() -> int:
    from arkfast.audio import SAMPLING_RATE

    return SAMPLING_RATE


def _load(utterance: Utterance, max_seconds: float) -> Utterance | str:
    """The utterance with its samples in memory, or why they cannot be had."""
    from arkfast.data.collate import read_clip

    try:
        samples = read_clip(utterance, max_seconds=max_seconds).samples
    except ImportError:  # a missing package is nobody's clip
        raise
    except Exception as error:  # one clip's fault, whatever the decoder raises, must not cost the others
        return str(error) if isinstance(error, InputError) else f"{utterance.name}: {type(error).__name__}: {error}"
    return replace(utterance, audio=samples, begin=None, end=None, channel=None, audio_track=None)


def _result_row(utterance: Utterance, row: JsonRow, duration: float, seconds: float) -> JsonObject:
    failed = row.get("status") == "error" or row.get("pred_text") is None
    result = {
        "audio_filepath": os.path.basename(utterance.id),
        "duration": duration,
        "time": seconds,
        "text": utterance.text,
        "pred_text": None if failed else row["pred_text"],
        **{name: utterance.extra[name] for name in (PARENT, INDEX) if name in utterance.extra},
    }
    return result | {"error": str(row.get("error") or "no transcript")} if failed else result


def sessions(rows: Sequence[JsonRow]) -> list[tuple[str, str]]:
    """(reference, transcript) of each scored unit: a row, or the joined chunks of a session.

    Raises:
        InputError: a session's chunks are not numbered 0, 1, 2 … without a gap, so that words would be missing.
    """
    if not rows or PARENT not in rows[0]:
        return [(row["text"], row["pred_text"]) for row in rows]
    parts: dict[Any, list[JsonRow]] = {}
    for row in rows:
        parts.setdefault(row[PARENT], []).append(row)
    joined = []
    for parent, chunks in parts.items():
        chunks.sort(key=lambda row: row[INDEX])
        if [row[INDEX] for row in chunks] != list(range(len(chunks))):
            raise InputError(f"session {parent}: its chunks are {[row[INDEX] for row in chunks]}, expected 0 to {len(chunks) - 1}")
        joined.append((chunks[0]["text"], " ".join(text for row in chunks if (text := row["pred_text"].strip()))))
    return joined


def figures(rows: Sequence[JsonRow], normalizer: Normalizer, language: str | None) -> tuple[float, float]:
    """(WER, RTFx) of result rows: word errors / reference words, and seconds of audio / seconds of transcription over all rows."""
    references, hypotheses = (list(side) for side in zip(*sessions(rows), strict=True))
    languages = [language] * len(references)
    counts = count_errors(normalizer.apply(references, languages), normalizer.apply(hypotheses, languages), unit="word")
    taken = sum(row["time"] for row in rows)
    return counts.rate(), sum(row["duration"] for row in rows) / taken if taken else 0.0


def run(config: LeaderboardConfig, transcribe: Transcribe | None = None) -> tuple[float, float]:
    """Transcribe a data set, write its result file, print what the leaderboard's scripts print.

    Args:
        config: the flags.
        transcribe: stands in for the checkpoint at ``model_path``.

    Returns:
        WER as a fraction, and RTFx.

    Raises:
        InputError: the manifest or the checkpoint cannot be used, or rows failed; rows written until then stay in a file named so.
    """
    name = "leaderboard" if config.leaderboard_path is not None else "basic"
    with closing(get_normalizer(name, leaderboard_path=config.leaderboard_path)) as normalizer:
        utterances, dropped = read_utterances(config.manifest, normalizer)
        if dropped:
            print(f"Left out, as the leaderboard does: {dropped} rows whose reference is empty after normalisation")
        utterances = utterances[: config.max_eval_samples] if config.max_eval_samples > 0 else utterances
        transcribe = transcribe or _transcriber(config)
        window = config.batch_size * _WINDOW_BATCHES
        limits: JsonObject = {"window": window, "max_seconds": config.max_audio_seconds}
        for _ in timed_rows(transcribe, utterances[: config.warmup_steps * config.batch_size], **limits):
            pass
        rows = _write(config, timed_rows(transcribe, utterances, **limits))
        wer, rtfx = figures(rows, normalizer, utterances[0].language)
        print("Results saved at path:", config.result.absolute())
        print("WER:", round(100 * wer, 2), "%", "RTFx:", round(rtfx, 2))
        print(
            f"(normaliser {normalizer.name}; compounds are not joined here: score_results of the leaderboard's normalizer/eval_utils.py "
            "gives the figure it publishes)"
        )
    return wer, rtfx


def _write(config: LeaderboardConfig, rows: Iterator[JsonObject]) -> list[JsonObject]:
    """The rows as written; the file appears when all are."""
    written, failed = [], []
    with AtomicJsonl(config.result) as file:
        for row in rows:
            if "error" in row:
                failed.append(row)
                if config.allow_failures:
                    row["pred_text"] = ""
            written.append(row)
            file.write(row)
        if failed and (not config.allow_failures or len(failed) == len(written)):
            advice = "" if config.allow_failures else ", or count them as deletions with --allow_failures true"
            raise InputError(
                f"{len(failed)} of {len(written)} rows failed, the first because of: {failed[0]['error']}; all rows are in {file.partial}. "
                f"Repair them{advice}"
            )
    if failed:
        unread = sum(row["duration"] == UNREAD for row in failed)
        print(
            f"leaderboard_eval: warning: {len(failed)} of {len(written)} rows failed and count as deletions, {unread} of them without "
            f"length or time because their clips could not be read; the first because of: {failed[0]['error']}",
            file=sys.stderr,
        )
    return written


def _transcriber(config: LeaderboardConfig) -> Transcribe:
    device = {"-1": "cpu"}.get(config.device or "", f"cuda:{config.device}" if (config.device or "").isdecimal() else config.device)
    return Transcriber(
        config.model_path,
        revision=config.revision,
        device=device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        max_audio_seconds=config.max_audio_seconds,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python scripts/leaderboard_eval.py``: 0 when the result file is written, 2 when it is not, 130 when interrupted."""
    streams.prepare()
    arguments = sys.argv[1:] if argv is None else argv
    description = "Transcribe one data set and write the Open ASR Leaderboard's result file."
    config = parse(LeaderboardConfig, arguments, prog="leaderboard_eval", description=description)
    try:
        run(config)
    except (InputError, DeviceLost) as error:
        print(f"leaderboard_eval: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leaderboard_eval: interrupted", file=sys.stderr)
        return 130
    return 0
