"""The pages of training, the quickstart and a proof in a real browser, with what strains a layout on them: long names, words without a
break, many commands and settings. The evaluation's page has its own file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arkfast.prove.outcome import Outcome, Part
from arkfast.prove.report import Report as Proof
from arkfast.prove.report import page as proof_page
from arkfast.prove.training import Trained
from arkfast.quickstart.picture import draw_mel
from arkfast.quickstart.report import ArmRow, Rate, Report, Transcription, render_page
from arkfast.testing import synthetic_speech, write_wav
from arkfast.train.report.page import page as training_page
from arkfast.train.report.run_records import RunRecords

pytestmark = pytest.mark.slow

UNBROKEN = "w" * 200


def quickstart(folder: Path) -> str:
    pytest.importorskip("matplotlib", reason="the quickstart's pictures are drawn by matplotlib")
    write_wav(folder / "clip.wav", synthetic_speech(1.5, seed=1))
    rates = [Rate(value=value, low=value - 0.02, high=value + 0.02) for value in (0.34, 0.26, 0.26, 0.33)]
    curve = tuple((75 * i, 0.3 - 0.02 * i) for i in range(9))
    arms = tuple(
        ArmRow(arm=arm, state="done", dev=rate, test=rate, steps=600, seconds=90.0, support=9.5, curve=curve, stage_begins=(300,))
        for arm, rate in zip(("base", "opd", "pseudo", "sft"), rates, strict=True)
    )
    words, wav = "one two three " * 9, (folder / "clip.wav").read_bytes()
    clip = Transcription(id="test-0", reference=words, before=f"one too {UNBROKEN}", after=words, seconds=1.5,
                         mel=np.add.outer(np.arange(40.0), np.arange(90.0)), wav=wav, note=UNBROKEN)  # fmt: skip
    command = "arkfast transcribe --model_path runs/quickstart/opd/last --input runs/quickstart/three.jsonl --output " + UNBROKEN
    report = Report(
        rows=arms, clips=(clip,), commands=(command,), recipe={"teacher": UNBROKEN}, environment={UNBROKEN: 1}, student=UNBROKEN
    )
    return render_page(report, {clip.id: draw_mel(clip.mel)})


def training(folder: Path) -> str:
    steps = [
        {"step": i, "stage": "opd", "loss": 3 / i, "lr": 1.5e-5 / i, "grad_norm": 2.0, "generated_stopped": 1.0, "generated_nonempty": 1.0,
         "time_per_step": 1.0, "rollout_time_max": 0.4, "teacher_time_max": 0.2, "audio_seconds": 1e6 * i}
        for i in range(1, 801)
    ]  # fmt: skip
    samples = [{"step": s, "id": f"{UNBROKEN}{i}", "text": "one two", "pred_text": f"one {UNBROKEN}"} for s in (0, 800) for i in range(3)]
    config = {"stage": "opd", "max_steps": 800, "student_model": f"/x/{UNBROKEN}", "train_data": "/x/a.jsonl", UNBROKEN: UNBROKEN}
    evaluations = [{"step": s, "eval_wer": w, "eval_cut": 2} for s, w in ((0, 123.456), (400, math.nan), (800, 6.5))]
    return training_page(RunRecords(name=UNBROKEN, config=config, steps=steps, evaluations=evaluations, samples=samples))


def proof(folder: Path) -> str:
    outcomes = [Outcome(name=f"{verdict} {UNBROKEN}", verdict=verdict, found=1.2e-6, tolerance=1e-4, reason="sums in another order",
                        detail=f"4 clips {UNBROKEN}") for verdict in ("pass", "FAIL", "not compared")]  # fmt: skip
    trained = Trained([], [1.0, 0.5], [(0, 12.0), (2, 11.0)])
    parts = [Part(name="comparisons", seconds=43.2, peak_mb=3120.0)]
    return proof_page(Proof(outcomes=outcomes, parts=parts, trained=trained, settings={"student_model": f"/m/{UNBROKEN}", "steps": 2}))


PAGES = {"quickstart": quickstart, "training": training, "proof": proof}


@pytest.fixture(scope="module", params=list(PAGES))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "page.html"
    path.write_text(PAGES[request.param](path.parent), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_overlaps_is_cut_or_fetched(browser: Any, written: Path, width: int, scheme: str) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(written.as_uri())
    view.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    outside = """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') && !e.closest('svg')
        && !e.closest('.stacks thead') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert view.evaluate(outside) == []
    cut = "() => [...document.querySelectorAll('pre, .hero, .tiles > div, .card')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert view.evaluate(cut) == 0, "text is wrapped, not cut"
    # words of one drawing do not lie on each other, nor do blocks of the page
    overlapping = """() => {
      const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
      const found = [];
      for (const group of [...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('text')])
          .concat([...document.querySelectorAll('main > section, main, figure, .clip')].map(e => [...e.children]))) {
        const boxes = group.map(e => [e, e.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
        for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++)
          if (touch(boxes[i][1], boxes[j][1])) found.push([boxes[i][0].outerHTML.slice(0, 90), boxes[j][0].outerHTML.slice(0, 90)]);
      }
      return found;
    }"""
    assert view.evaluate(overlapping) == []
    assert said == []
    assert [request for request in requests if not request.startswith("data:")] == [written.as_uri()]
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == (scheme == "dark")
    view.close()


def test_a_chart_is_read_at_a_phones_width(browser: Any, written: Path) -> None:
    view = browser.new_page(viewport={"width": 390, "height": 900})
    view.goto(written.as_uri())
    sizes = view.evaluate("""() => [...document.querySelectorAll('figure > svg')].map(svg => svg.getBoundingClientRect().width
        / svg.viewBox.baseVal.width * parseFloat(getComputedStyle(svg.querySelector('text') || svg).fontSize))""")
    assert sizes
    assert min(sizes) >= 9, "pixels of the charts' text"
    left = view.evaluate("""() => [...document.querySelectorAll('figure > svg text')].filter(e => e.getBBox().x < 0
        || e.getBBox().x + e.getBBox().width > e.ownerSVGElement.viewBox.baseVal.width + 0.5).map(e => e.textContent)""")
    assert left == [], "labels beyond a drawing's edge"
    view.close()


def test_players_know_how_long_their_recordings_are(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(quickstart(tmp_path), encoding="utf-8")
    view = browser.new_page()
    view.goto((tmp_path / "page.html").as_uri())
    view.wait_for_function("[...document.querySelectorAll('audio')].every(e => e.readyState > 0 || e.error)")
    assert view.evaluate("[...document.querySelectorAll('audio')].map(e => e.duration)") == pytest.approx([1.5], abs=0.01)
    view.close()
