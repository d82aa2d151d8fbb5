"""The Open ASR Leaderboard's contract: the result file's name and rows, what is left out, what is timed, what is printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast.evaluate import leaderboard
from arkfast.evaluate.leaderboard import LeaderboardConfig, figures, main, read_utterances, run, sessions
from arkfast.metrics import get_normalizer
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

FIELDS = ["audio_filepath", "duration", "time", "text", "pred_text"]


class Clock:
    """Time that passes only while something is transcribed, a second a clip."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Echo:
    """Transcribes by what was given for an id; notes its batches."""

    def __init__(self, clock: Clock, said: dict[str, str | None] | None = None) -> None:
        self.clock, self.said = clock, said or {}
        self.batches: list[list[str]] = []
        self.audio: list[np.ndarray] = []

    def __call__(self, utterances: Sequence[Utterance]) -> Iterable[dict[str, Any]]:
        self.batches.append([utterance.id for utterance in utterances])
        for utterance in utterances:
            assert isinstance(utterance.audio, np.ndarray)  # decoding files is no part of what is timed
            self.audio.append(utterance.audio)
            self.clock.now += 1.0
            text = self.said.get(utterance.id, utterance.text)
            yield (
                {"status": "ok", "pred_text": text} if text is not None else {"status": "error", "error": "out of luck", "pred_text": None}
            )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leaderboard.time, "perf_counter", clock)
    return clock


def config(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> LeaderboardConfig:
    """The flags for a manifest of ``rows``, with the recordings that they name."""
    for i, row in enumerate(rows):
        if not row.pop("absent", False):
            write_wav(folder / row["audio"], synthetic_speech(0.5 + 0.25 * i, seed=i))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        "manifest": folder / "manifest.jsonl",
        "model_path": folder / "model",
        "model_id": "AutoArk-AI/ARK-ASR-0.6B-arkfast",
        "dataset": "librispeech",
        "split": "test.clean",
        "output_dir": folder / "results",
        "warmup_steps": 0,
        "batch_size": 2,
    }
    return LeaderboardConfig(**given | changes)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


THREE = [
    {"audio": "a.wav", "id": "data/61-1", "text": "He said, “hello”."},
    {"audio": "b.wav", "id": "61-2", "text": "One two three four"},
    {"audio": "c.wav", "id": "61-3", "text": "五"},
]


def test_file_name_and_rows(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo(clock, {"61-2": "one too three"})
    wer, rtfx = run(config(tmp_path, [dict(row) for row in THREE]), echo)
    path = tmp_path / "results" / "MODEL_AutoArk-AI-ARK-ASR-0.6B-arkfast_DATASET_hf-audio-open-asr-leaderboard_librispeech_test.clean.jsonl"
    assert [path] == list((tmp_path / "results").iterdir())
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "五" in lines[2]  # UTF-8, not escapes
    rows = rows_of(path)
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [row["audio_filepath"] for row in rows] == ["61-1", "61-2", "61-3"]
    assert [row["duration"] for row in rows] == [0.5, 0.75, 1.0]
    assert [row["time"] for row in rows] == [1.0, 1.0, 1.0]
    assert [row["text"] for row in rows] == [row["text"] for row in THREE]  # as given, not normalised
    assert rows[1]["pred_text"] == "one too three"
    assert (wer, rtfx) == (2 / 8, 2.25 / 3)
    said = capsys.readouterr().out
    assert f"Results saved at path: {path}" in said
    assert "WER: 25.0 % RTFx: 0.75" in said


def test_references_without_words_are_left_out(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*(dict(row) for row in THREE), {"audio": "d.wav", "text": " . "}, {"audio": "e.wav", "text": "Ignore time segment in scoring."}]
    echo = Echo(clock)
    run(config(tmp_path, rows), echo)
    assert sum(map(len, echo.batches)) == 3
    assert "2 rows" in capsys.readouterr().out


def test_warm_up_is_transcribed_and_not_timed(tmp_path: Path, clock: Clock) -> None:
    echo = Echo(clock)
    settings = config(tmp_path, [dict(row) for row in THREE], warmup_steps=1)
    _, rtfx = run(settings, echo)
    assert echo.batches == [["data/61-1", "61-2"], ["data/61-1", "61-2", "61-3"]]
    assert rtfx == 2.25 / 3
    echo.batches.clear()
    run(replace(settings, max_eval_samples=1, warmup_steps=9), echo)
    assert echo.batches == [["data/61-1"], ["data/61-1"]]


def test_a_segment_is_cut_before_the_clock_starts(tmp_path: Path, clock: Clock) -> None:
    echo = Echo(clock)
    settings = config(tmp_path, [{"audio": "a.wav", "text": "x"}, {"audio": "b.wav", "text": "y", "begin_time": 0.25, "end_time": 0.5}])
    run(settings, echo)
    assert [len(samples) for samples in echo.audio] == [8000, 4000]
    assert [row["duration"] for row in rows_of(settings.result)] == [0.5, 0.25]


CHUNKS = [
    {"audio": "a.wav", "text": "one two three four", "parent_id": "s1", "chunk_index": 0, "id": "s1-0"},
    {"audio": "b.wav", "text": "one two three four", "parent_id": "s1", "chunk_index": 1, "id": "s1-1"},
    {"audio": "c.wav", "text": "five", "parent_id": "s2", "chunk_index": 0, "id": "s2-0"},
]


def test_chunks_of_a_session_are_scored_together(tmp_path: Path, clock: Clock) -> None:
    settings = config(tmp_path, [dict(row) for row in CHUNKS])
    wer, _ = run(settings, Echo(clock, {"s1-0": "one two ", "s1-1": "three", "s2-0": "five"}))
    assert wer == 1 / 5
    rows = rows_of(settings.result)
    assert [list(row) for row in rows] == [[*FIELDS, "parent_id", "chunk_index"]] * 3
    assert [(row["parent_id"], row["chunk_index"]) for row in rows] == [("s1", 0), ("s1", 1), ("s2", 0)]


def test_a_session_with_a_hole_is_an_error() -> None:
    rows = [{"parent_id": "s", "chunk_index": i, "text": "a b", "pred_text": "a", "time": 1.0, "duration": 1.0} for i in (0, 2)]
    with pytest.raises(InputError, match=r"session s: its chunks are \[0, 2\], expected 0 to 1"):
        sessions(rows)


def test_a_failed_row_is_no_empty_transcript(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path, [dict(row) for row in THREE])
    write_wav(tmp_path / "c.wav", np.zeros(0, dtype=np.float32))
    echo = Echo(clock, {"61-2": None})
    with pytest.raises(InputError, match="2 of 3 rows failed, the first because of: out of luck"):
        run(settings, echo)
    assert not settings.result.exists()
    partial = rows_of(settings.result.with_name(settings.result.name + ".partial"))
    assert [row["pred_text"] for row in partial] == [THREE[0]["text"], None, None]
    assert "c.wav" in partial[2]["error"]
    wer, rtfx = run(replace(settings, allow_failures=True), echo)
    assert wer == 5 / 8
    assert rtfx == pytest.approx(1.25 / 2, abs=1e-6)  # the clip that could not be read adds neither length nor time
    assert "2 of 3 rows failed and count as deletions, 1 of them without length or time because" in capsys.readouterr().err
    rows = rows_of(settings.result)
    assert [row["pred_text"] for row in rows] == [THREE[0]["text"], "", ""]
    assert rows[1]["error"] == "out of luck"
    assert [(row["duration"], row["time"]) for row in rows] == [(0.5, 1.0), (0.75, 1.0), (1e-9, 1e-9)]
    assert all(row[name] for row in rows for name in ("duration", "time")), "the scorer asks this before it adds them up"


def test_a_set_of_which_nothing_was_transcribed_is_no_result(tmp_path: Path, clock: Clock) -> None:
    settings = config(tmp_path, [dict(THREE[0])], allow_failures=True)
    with pytest.raises(InputError, match=r"1 of 1 rows failed.*Repair them$"):
        run(settings, Echo(clock, {"data/61-1": None}))
    assert not settings.result.exists()


def test_the_normaliser_of_a_checkout_is_used(tmp_path: Path, clock: Clock) -> None:
    """A stand-in for the checkout: its normaliser turns "colour" into "color", as the leaderboard's does."""
    package = tmp_path / "checkout" / "normalizer"
    package.mkdir(parents=True)
    lines = ["class EnglishTextNormalizer:", "    def __call__(self, s):", "        return s.lower().replace('colour', 'color')", ""]
    (package / "normalizer.py").write_text("\n".join(lines))
    names = "from .normalizer import EnglishTextNormalizer\n"
    names += "BasicMultilingualTextNormalizer = lambda remove_diacritics=False: EnglishTextNormalizer()\n"
    (package / "__init__.py").write_text(names)
    (package / "data_utils.py").write_text(
        "from .normalizer import EnglishTextNormalizer\nnormalizer = ml_normalizer = EnglishTextNormalizer()\n"
    )
    settings = config(tmp_path, [{"audio": "a.wav", "text": "Colour", "language": "en", "id": "a"}], leaderboard_path=tmp_path / "checkout")
    assert run(settings, Echo(clock, {"a": "color"}))[0] == 0.0
    assert run(replace(settings, leaderboard_path=None), Echo(clock, {"a": "color"}))[0] == 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"audio": "a.wav"}], "no text; the leaderboard scores every row"),
        ([{"audio": "a.wav", "text": "."}], "no row has a reference that is scored"),
        ([{"audio": "a.wav", "text": "x"}, {"audio": "gone.wav", "text": "y", "absent": True}], r"gone\.wav: no such file \(1 recordings"),
        ([{"audio": "a.wav", "text": "x", "parent_id": "s", "chunk_index": 0}, {"audio": "b.wav", "text": "y"}], "every row or in none"),
        ([{"audio": "a.wav", "text": "x", "parent_id": "s"}], "every row or in none"),
    ],
)
def test_a_manifest_that_cannot_be_submitted_starts_nothing(tmp_path: Path, clock: Clock, rows: list[dict[str, Any]], message: str) -> None:
    echo = Echo(clock)
    with pytest.raises(InputError, match=message):
        run(config(tmp_path, rows), echo)
    assert echo.batches == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"max_eval_samples": 0}, "max_eval_samples"),
        ({"split": "a/b"}, "could not be read back"),
        ({"model_id": " "}, "model_id is empty"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(tmp_path, [], **changes)


def test_a_finished_result_stays_until_the_next_is_complete(tmp_path: Path, clock: Clock) -> None:
    settings = config(tmp_path, [dict(row) for row in THREE])
    run(settings, Echo(clock))
    before = settings.result.read_bytes()
    with pytest.raises(InputError, match="1 of 3 rows failed"):
        run(settings, Echo(clock, {"61-2": None}))
    assert settings.result.read_bytes() == before


def test_figures_pool_errors_and_seconds() -> None:
    rows = [
        {"text": "a b c d", "pred_text": "a b c d", "duration": 10.0, "time": 1.0},
        {"text": "a", "pred_text": "b c", "duration": 2.0, "time": 3.0},
    ]
    assert figures(rows, get_normalizer("none"), None) == (2 / 5, 12 / 4)


def test_rows_keep_the_manifests_order_over_windows(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "_WINDOW_BATCHES", 1)
    rows = [{"audio": "a.wav", "text": f"word {i}", "id": f"{i}"} for i in range(5)]
    settings = config(tmp_path, rows)
    echo = Echo(clock)
    run(settings, echo)
    assert echo.batches == [["0", "1"], ["2", "3"], ["4"]]
    assert [row["audio_filepath"] for row in rows_of(settings.result)] == ["0", "1", "2", "3", "4"]
    kept, dropped = read_utterances(settings.manifest, get_normalizer("basic"))
    assert (len(kept), dropped) == (5, 0)


@pytest.mark.slow
def test_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint(tmp_path / "model")
    settings = config(tmp_path, [dict(row) for row in THREE])
    flags = ["--manifest", str(settings.manifest), "--model_path", str(settings.model_path), "--model_id", "a/b", "--dataset", "d"]
    flags += [
        "--output_dir",
        str(tmp_path / "results"),
        "--device",
        "-1",
        "--max_new_tokens",
        "8",
        "--warmup_steps",
        "1",
        "--batch_size",
        "2",
    ]
    assert main(flags) == 0
    rows = rows_of(tmp_path / "results" / "MODEL_a-b_DATASET_hf-audio-open-asr-leaderboard_d_test.jsonl")
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert all(isinstance(row["pred_text"], str) and row["time"] > 0 for row in rows)
    assert "WER:" in capsys.readouterr().out
    assert main([*flags, "--manifest", str(tmp_path / "gone.jsonl")]) == 2
    assert "gone.jsonl" in capsys.readouterr().err
