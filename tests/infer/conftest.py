"""What several files of the tests of transcription share: a tiny model, recordings good and bad, the command run on them, and modules.

A file that wants another model has a fixture of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    from arkfast.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings, and three files that cannot be heard."""
    import numpy as np
    import soundfile
    from tiny_transcriptions import SECONDS

    from arkfast.testing import synthetic_speech, write_wav

    folder = tmp_path_factory.mktemp("audio")
    for i, seconds in enumerate(SECONDS):
        write_wav(folder / f"{i}.wav", synthetic_speech(seconds, seed=i))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio")
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    return folder


@pytest.fixture
def transcribe(tmp_path: Path, model: Path) -> Callable[..., tuple[int, Path]]:
    """Run the command on manifest lines; returns its exit code and the output's path."""
    from tiny_transcriptions import TOKENS, write_manifest

    from arkfast.infer.command import main

    def run(lines: list[Any], *flags: str) -> tuple[int, Path]:
        manifest, output = write_manifest(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
        base = ["--input", manifest, "--output", output, "--model_path", model, "--max_new_tokens", TOKENS, "--device", "cpu"]
        return main([*map(str, base), *flags]), output

    return run
