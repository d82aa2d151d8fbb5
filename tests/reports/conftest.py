"""A browser for the tests that look at pages as a reader does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are looked at through playwright")
    with playwright.sync_playwright() as driver:
        executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if executable is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium here; apt-get install chromium, or playwright install chromium")
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
