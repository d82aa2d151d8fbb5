"""A service in a process of its own, with a tiny random model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from arkfast.testing import synthetic_speech, write_wav

TOKENS = 24
KEY = "a-key-of-the-tests-4567"


@dataclass
class Running:
    """A service that runs."""

    process: subprocess.Popen[str]
    address: str
    said: list[str] = field(default_factory=list)
    """What it wrote on standard error, line by line."""
    key: str = ""
    """The key that it wants, if any."""

    @property
    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.address, timeout=60, headers=headers)

    def post(self, path: str = "/v1/audio/transcriptions", *, file: Path | None = None, **fields: str) -> httpx.Response:
        headers = {"Authorization": fields.pop("authorization")} if "authorization" in fields else {}
        with self.client as client:
            files = {} if file is None else {"file": (file.name, file.read_bytes())}
            return client.post(path, data=fields, files=files or {"nothing": b""}, headers=headers)

    def gauge(self, name: str) -> float:
        """A figure of its metrics that has no labels."""
        with self.client as client:
            found = re.search(rf"^{name} ([\d.]+)$", client.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def is_idle(self, seconds: float = 30.0) -> bool:
        """Whether no request is under way and no clip waits or is decoded, within a time."""
        until = time.monotonic() + seconds
        while any(self.gauge(f"arkfast_{name}") for name in ("requests_inside", "clips_waiting", "clips_decoding")):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def stop(self) -> int:
        """End it as a terminal would; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def _started(model: Path, *flags: str, environment: dict[str, str] | None = None) -> Running:
    command = [sys.executable, "-m", "arkfast", "serve", str(model), "--port", "0", "--device", "cpu", "--max_new_tokens", str(TOKENS)]
    process = subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors, said = process.stderr, list[str]()
    threading.Thread(target=lambda: said.extend(iter(errors.readline, "")), daemon=True).start()
    line = process.stdout.readline()
    if " is ready at " not in line:
        process.kill()
        process.wait()
        raise AssertionError(f"no service: {line} {''.join(said)}")
    return Running(process, line.split(" is ready at ")[1].strip(), said)


@pytest.fixture(scope="session")
def model(timed_model: Path) -> Path:
    return timed_model


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seconds in (1, 2, 70):
        write_wav(folder / f"{seconds}.wav", synthetic_speech(float(seconds), seed=seconds))
    write_wav(folder / "sample.wav", synthetic_speech(1.0)[:1])
    (folder / "text.wav").write_text("This is no recording.")
    return folder


@pytest.fixture(scope="session")
def service(model: Path) -> Iterator[Running]:
    """One that needs no key."""
    running = _started(model, "--max_upload_mb", "4", "--max_duration", "100", "--upload_timeout", "4")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def keyed_service(model: Path) -> Iterator[Running]:
    """One that needs a key."""
    running = _started(model, environment={"ARKFAST_API_KEYS": f"anna:{KEY}"})
    running.key = KEY
    yield running
    assert running.stop() == 0


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Running]]:
    """Starts services with flags, and ends them with the test."""
    all_: list[Running] = []

    def started(*flags: str, environment: dict[str, str] | None = None, served: Path | None = None) -> Running:
        all_.append(_started(served or model, *flags, environment=environment))
        return all_[-1]

    yield started
    for running in all_:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


class Views:
    """Opens the page, and sees what the browser says and asks for."""

    def __init__(self, browser: Any, service: Running) -> None:
        self.browser, self._service = browser, service
        self.said: list[str] = []
        self.asked: list[str] = []
        self._contexts: list[Any] = []

    def context(self, **options: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US"} | options
        self._contexts.append(self.browser.new_context(**options))
        return self._contexts[-1]

    def __call__(self, *, context: Any = None, key: bool = True, path: str = "/", **options: Any) -> Any:
        """A view of the page. With ``key`` it knows the key, as one that somebody entered in this tab before."""
        view = (context or self.context(**options)).new_page()
        view.set_default_timeout(20_000)
        view.on("console", lambda message: self.said.append(message.text))
        view.on("pageerror", lambda error: self.said.append(str(error)))
        view.on("request", lambda request: self.asked.append(request.url))
        if key:
            view.add_init_script(f"sessionStorage.setItem('arkfast-key', {json.dumps(self._service.key)})")
        view.route("**/behind/**", lambda route: route.continue_(url=route.request.url.replace("/behind/", "/")))  # as a proxy does
        view.goto(self._service.address + path)
        self.until(view, "document.getElementById('health').textContent !== '–'")
        return view

    def until(self, view: Any, true: str) -> None:
        """Wait for something to become true. Playwright's own way would need an evaluation that the page's policy forbids."""
        ends = time.monotonic() + 20
        while not view.evaluate(true):
            assert time.monotonic() < ends, f"never true: {true}"
            view.wait_for_timeout(30)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture(scope="module")
def browser(open_browser: Callable[..., Any]) -> Any:
    return open_browser()


@pytest.fixture
def views(browser: Any, keyed_service: Running) -> Iterator[Views]:
    """Views in which nothing may go wrong: no error and no warning in the console, and no request to anybody but the service."""
    views = Views(browser, keyed_service)
    yield views
    views.close()
    assert views.said == []
    assert [url for url in views.asked if not url.startswith((keyed_service.address, "blob:"))] == []
