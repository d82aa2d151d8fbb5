"""What all tests share: real recordings, where somebody has them.

A test reads nothing outside the checkout and its own temporary folder, but for the recordings, whose folder the environment variable
ARKFAST_TEST_AUDIO names.
"""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recordings() -> list[Path]:
    """The wav, flac, mp3 and ogg files of the folder in ARKFAST_TEST_AUDIO, at least one; the test skips where the variable is unset."""
    folder = os.environ.get("ARKFAST_TEST_AUDIO")
    if not folder:
        pytest.skip("ARKFAST_TEST_AUDIO names no folder of recordings")
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix in {".wav", ".flac", ".mp3", ".ogg"})
    assert paths, f"ARKFAST_TEST_AUDIO={folder} holds no recordings"
    return paths
