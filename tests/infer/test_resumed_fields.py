"""A run that goes on where another ended, with all that rows may say beside their text: words, confidence, hotwords."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arkfast.align import CtcHead, HeadConfig, save_head
from arkfast.align.head import weights_digest
from arkfast.infer import Transcriber
from arkfast.infer.command import main
from arkfast.infer.loading import load_transcriber
from arkfast.infer.options import TranscribeOptions
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

ROWS = 8


class Run:
    """Runs of one command, the first of which is broken off."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, tiny_checkpoint(root / "tiny")
        torch.manual_seed(0)
        digest = weights_digest(self.model)
        save_head(
            CtcHead(HeadConfig(hidden_size=48, width=32, frames_per_embedding=8, units=tuple("abcdefghij"), weights=digest)), self.model
        )
        self.hotwords, self.manifest = root / "words.txt", root / "rows.jsonl"
        self.hotwords.write_text("quick brown\t9\n", encoding="utf-8")
        self.write(["lazy dog"])

    def write(self, own: list[str]) -> None:
        """The manifest; its second row has hotwords of its own, and the last recording is long."""
        rows = []
        for i in range(ROWS):
            path = self.root / f"{i}.wav"
            if not path.exists():
                write_wav(path, synthetic_speech(1 + 0.3 * i if i < ROWS - 1 else 9, seed=i))
            rows.append({"id": f"r{i}", "audio": str(path)} | ({"hotwords": own} if i == 1 else {}))
        self.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def __call__(self, output: Path, *, after: int | None = None) -> int:
        """Run the command, which is interrupted after so many clips; how many clips it decoded."""
        decoded = 0

        class Counted(Transcriber):
            def step(self):
                nonlocal decoded
                outcomes = super().step()
                decoded += len(outcomes)
                if after is not None and decoded >= after:
                    raise KeyboardInterrupt
                return outcomes

        def load(path: Path, options: TranscribeOptions) -> Transcriber:
            transcriber = load_transcriber(path, options)
            transcriber.__class__ = Counted
            return transcriber

        flags = ["--model_path", str(self.model), "--max_new_tokens", "12", "--max_audio_seconds", "4", "--batch_size", "2", "--device",
                 "cpu", "--quiet", "true", "--timestamps", "word", "--confidence", "--hotwords", str(self.hotwords)]  # fmt: skip
        code = main([str(self.manifest), "--output", str(output), *flags], load=load)
        assert code == (130 if after is not None else 0)
        return decoded


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_words_confidence_and_hotwords_survive_a_stop(run: Run, tmp_path: Path) -> None:
    clips = run(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    assert all("words" in row and "word_confidence" in row for row in rows)
    assert any(row["words"] for row in rows)
    assert rows[1]["hotwords"] == ["lazy dog"]
    assert len(rows[-1]["segments"]) > 1

    stopped = run(tmp_path / "cut.jsonl", after=5)
    assert 5 <= stopped < clips
    went_on = run(tmp_path / "cut.jsonl")
    assert 0 < went_on < clips, "what was done is not done again"
    assert (tmp_path / "cut.jsonl").read_text(encoding="utf-8") == whole


def test_other_hotwords_are_other_transcripts(run: Run, tmp_path: Path) -> None:
    clips = run(tmp_path / "whole.jsonl")
    run(tmp_path / "a.jsonl", after=5)
    run.hotwords.write_text("quick brown\t8\n", encoding="utf-8")
    assert run(tmp_path / "a.jsonl") == clips, "the file decides every row"
    run(tmp_path / "b.jsonl", after=5)
    run.write(["dog"])
    again = run(tmp_path / "b.jsonl")
    run.write(["lazy dog"])
    run(tmp_path / "c.jsonl", after=5)
    assert again == run(tmp_path / "c.jsonl") + 1, "a row's own decide that row"
