"""The evaluation's page in a real browser: no error, no request, nothing wider than the window, everything reachable by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate import score_rows
from arkfast.evaluate.page import page
from arkfast.evaluate.summary import summarise
from arkfast.testing import synthetic_speech, write_wav

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with what strains a layout: long names, words without a break, right-to-left text, failures, several sets."""
    unbroken = "w" * 240
    rows: list[dict[str, Any]] = [
        {
            "id": f"{language}-{i}",
            "preset": preset,
            "language": language,
            "text": text,
            "pred_text": heard,
            "audio": f"{i}.wav",
            "duration": 1.0 + i,
        }
        for i in range(60)
        for preset, language, text, heard in (
            ("clean", "en", "one two three four", "one too four five" if i % 3 else "one two three four"),
            ("net", "zh", "今天天气很好", "今天田气好"),
            ("fleurs", "ar", "في كل يوم", "في كلا"),
        )
    ]
    rows += [
        {"id": "i" * 200, "preset": "p" * 90, "language": "en", "text": unbroken, "pred_text": f"x {unbroken}y", "audio": "long.wav"},
        {
            "id": "f",
            "preset": "clean",
            "language": "en",
            "text": "a",
            "pred_text": None,
            "status": "error",
            "error": f"/{unbroken}: no such file",
        },
        {"id": "loop", "preset": "clean", "language": "en", "text": "a", "pred_text": "to " * 300, "audio": "/data/loop.wav"},
        {"id": "silence", "preset": "clean", "language": "en", "text": "", "pred_text": "thank you", "audio": "s.wav"},
    ]
    scores, scored = score_rows(rows)
    comparison = {
        "other": "old.jsonl",
        "metric": "joint",
        "rows": 180,
        "left_out": 1,
        "rate_of_other": 0.1,
        "groups": [],
        "rates": [0.11, 0.1],
    }
    comparison |= {"difference": 0.01, "low": -0.01, "high": 0.03, "p_value": 0.2}
    path = tmp_path_factory.mktemp("page") / "evaluation.html"
    for i in range(60):
        write_wav(path.parent / f"{i}.wav", synthetic_speech(1.5, seed=i))
    others = score_rows([row | {"pred_text": row["text"]} if row["pred_text"] is not None else row for row in rows])[1]
    summary = summarise(scores, rtfx=1234.5, comparison=comparison)
    path.write_text(page(summary, scored, path.parent, others=others), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_error_no_request_no_sideways_scroll(browser: Any, written: Path, width: int, scheme: str) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(written.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") == width
    view.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    # nothing sticks out of the window but what scrolls on its own
    outside = """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') && !e.closest('svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert view.evaluate(outside) == []
    assert said == []
    assert requests[0] == written.as_uri()
    assert {request.rpartition(".")[2] for request in requests[1:]} == {"wav"}, "players read how long their recordings are"
    assert all(request.startswith(written.parent.as_uri()) for request in requests)
    view.close()


def test_players_know_how_long_their_recordings_are(browser: Any, written: Path) -> None:
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.goto(written.as_uri())
    view.wait_for_function("[...document.querySelectorAll('audio')].filter(e => e.readyState > 0).length > 0")
    view.wait_for_function("[...document.querySelectorAll('audio')].every(e => e.readyState > 0 || e.error)")
    lengths = view.evaluate("[...document.querySelectorAll('audio')].map(e => e.duration)")
    assert len(lengths) > 10
    assert lengths == pytest.approx([1.5] * len(lengths), abs=0.01)
    view.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, written: Path, scheme: str) -> None:
    """WCAG's 4.5 : 1 for every text, with the colours that the browser computes."""
    view = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    view.goto(written.as_uri())
    contrasts = """() => {
      const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const over = layers => {
        for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const low = [];
      for (const e of document.querySelectorAll('h1, h2, h3, p, dt, dd, small, span, b, li, del, ins, summary, td, th, text')) {
        if (!e.textContent.trim()) continue;
        const style = getComputedStyle(e), layers = [];
        for (let a = e; a; a = a.parentElement) layers.unshift(getComputedStyle(a).backgroundColor);
        const ground = over(layers), ink = over([...layers, e.tagName === 'text' ? style.fill : style.color]);
        const [a, b] = [light(ground), light(ink)].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push([e.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)]);
      }
      return low;
    }"""
    assert view.evaluate(contrasts) == []
    view.close()


def test_everything_that_opens_or_scrolls_is_reached_by_keyboard(browser: Any, written: Path) -> None:
    view = browser.new_page(viewport={"width": 390, "height": 900})
    view.goto(written.as_uri())
    reached = []
    for _ in range(150):  # every button of the players of changed clips comes before the figures
        view.keyboard.press("Tab")
        reached.append(view.evaluate("document.activeElement.textContent.trim().slice(0, 20)"))
    assert reached[0] == "Failed rows and why"
    assert "All figures" in reached
    view.evaluate("document.querySelector('summary').focus()")
    view.keyboard.press("Enter")
    assert view.evaluate("document.querySelector('details').open") is True
    unnamed = "() => [...document.querySelectorAll('audio, svg[role=img], [tabindex]')].filter(e => !e.getAttribute('aria-label')).length"
    assert view.evaluate(unnamed) == 0
    view.close()
