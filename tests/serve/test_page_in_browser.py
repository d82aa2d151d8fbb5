"""The page in a real browser, as somebody uses it: a service that wants a key, and Chromium with a microphone that plays a recording."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from arkfast.testing import synthetic_speech, write_wav

if TYPE_CHECKING:
    from tests.serve.conftest import Running, Views

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHOWN = "#result:not(.running) #transcript > *"
"""A complete transcript."""
ANSWER = {
    "text": "Good <img src=x onerror=alert(1)> morning. 你好 --> & so on.",
    "language": "en",
    "segments": [
        {"id": 0, "start": 0.0, "end": 1.0, "text": "Good <img src=x onerror=alert(1)> morning.", "confidence": 0.9},
        {"id": 1, "start": 1.5, "end": 3.0, "text": "你好 --> & so on.", "confidence": 0.31, "no_speech_prob": 0.8},
    ],
    "words": [
        {"word": "Good", "start": 0.0, "end": 0.4, "confidence": 0.95},
        {"word": "morning", "start": 0.5, "end": 0.9, "confidence": 0.2},
        {"word": "你", "start": 1.5, "end": 1.7, "confidence": 0.8},
    ],
    "warnings": ["The transcript from 1.50 to 3.00 s was cut at its token limit."],
}
"""One with everything that an answer may hold, and with what must never be taken for markup."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "three seconds.wav"
    write_wav(path, synthetic_speech(3.0, seed=3))
    return path


def answered(view: Any, answer: object) -> None:
    """Let the service's route answer this."""
    view.route("**/v1/audio/transcriptions", lambda route: route.fulfill(json=answer))


def shown(view: Any) -> list[str]:
    """The segments' texts, as they are seen: without what only screen readers say."""
    texts = """() => [...document.querySelectorAll('.said')].map(said => { const copy = said.cloneNode(true);
      copy.querySelectorAll('.unseen').forEach(e => e.remove()); return copy.textContent; })"""
    return view.evaluate(texts)


def refused_with(views: Views, *statuses: int) -> None:
    """What the browser itself writes to its console for an answer that is an error; everything else stays."""
    for status in statuses:
        line = next(line for line in views.said if f"the server responded with a status of {status} " in line)
        views.said.remove(line)


@pytest.mark.parametrize(
    ("path", "width", "scheme", "locale"),
    [("/", 1280, "light", "en-US"), ("/ui", 1280, "dark", "zh-CN"), ("/ui", 390, "light", "zh-TW"), ("/behind/", 390, "dark", "de-DE")],
)
def test_an_uploaded_recording_is_transcribed(
    views: Views, keyed_service: Running, clip: Path, path: str, width: int, scheme: str, locale: str
) -> None:
    view = views(path=path, viewport={"width": width, "height": 900}, color_scheme=scheme, locale=locale)
    chinese = locale.startswith("zh")
    assert view.get_attribute("html", "lang") == ("zh-Hans" if chinese else "en")
    assert view.inner_text("#transcribe") == ("转写" if chinese else "Transcribe")
    views.until(view, "document.getElementById('model').textContent.endsWith('tiny')")
    view.set_input_files("#file", clip)
    views.until(view, "document.getElementById('about').textContent.includes('0:03.0')")
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    assert view.inner_text("#status") == ("转写完成。" if chinese else "The transcript is ready.")
    said = keyed_service.post(file=clip, response_format="verbose_json").json()
    assert shown(view) == [said["segments"][0]["text"]]
    assert json.loads(view.text_content("#raw"))["words"], "times of words are asked for where the service has them"
    assert view.inner_text(".when").replace("\n", "").endswith("0:00.0 – 0:03.0")
    assert json.loads(view.text_content("#raw"))["text"] == said["text"]
    drawn = "document.getElementById('waveform').getContext('2d').getImageData(0, 0, 300, 90).data.some(part => part > 0)"
    assert view.evaluate(drawn), "the waveform is drawn"

    view.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    view.click("#ask-mask")
    view.wait_for_selector("#mask-rows tr")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    outside = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .unseen')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert view.evaluate(outside) == []
    cut = "() => [...document.querySelectorAll('.card, button, dd')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML)"
    assert view.evaluate(cut) == [], "text is wrapped, not cut"
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == (scheme == "dark")


SPOKEN = synthetic_speech(2.0, seed=5)


@pytest.fixture(scope="module")
def listening(open_browser: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A browser whose microphone hears ``SPOKEN`` again and again."""
    path = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    write_wav(path, SPOKEN)
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    return open_browser(*flags, f"--use-file-for-fake-audio-capture={path}")


def test_a_recording_ends_where_the_service_would_refuse_it(views: Views, listening: Any) -> None:
    views.browser = listening
    context = views.context(permissions=["microphone"])
    limits = {"keys": True, "max_upload_mb": 4.0, "max_duration": 0.5, "max_new_tokens": 24, "words": False}
    context.route("**/page/settings.json", lambda route: route.fulfill(json=limits))
    view = views(context=context)
    view.click("#record")
    view.wait_for_selector("#player:not([hidden])")
    assert view.inner_text("#about").startswith("Recorded here, ")
    views.until(view, "document.getElementById('microphone-hint').textContent.startsWith('The recording ended here')")
    views.until(view, "document.getElementById('player').duration > 0.2")
    assert view.evaluate("document.getElementById('player').duration") <= 0.5
    assert view.inner_text("#record") == "Record"


def test_the_microphone_s_sound_is_what_is_sent(views: Views, listening: Any) -> None:
    views.browser = listening
    view = views(context=views.context(permissions=["microphone"]))
    kept = "() => { const make = URL.createObjectURL; URL.createObjectURL = blob => make.call(URL, window.made = blob); }"
    view.evaluate(kept)
    view.click("#record")
    views.until(view, "parseFloat(document.getElementById('about').textContent.split(':').at(-1)) >= 2.5")
    assert view.inner_text("#record") == "Stop recording"
    assert view.is_disabled("#transcribe")
    view.click("#record")
    view.wait_for_selector("#player:not([hidden])")
    read = """() => new Promise(done => { const reader = new FileReader(); reader.onload = () => done(reader.result.split(',')[1]);
      reader.readAsDataURL(window.made); })"""
    wav = base64.b64decode(view.evaluate(read))
    samples, rate = soundfile.read(BytesIO(wav))
    assert soundfile.info(BytesIO(wav)).subtype == "PCM_16"
    assert samples.ndim == 1
    assert len(samples) >= 2.4 * rate
    # What was played stands in what was recorded, wherever it begins: the peak of their normalised cross-correlation.
    at = np.arange(0.5, 0.8, 1 / rate)
    played = np.interp(at, np.arange(len(SPOKEN)) / 16_000, SPOKEN)
    size = 1 << (len(samples) + len(played)).bit_length()
    crossed = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(played, size)), size)[: len(samples) - len(played)]
    energy = np.cumsum(np.concatenate(([0.0], samples**2)))
    windows = np.sqrt(energy[len(played) :] - energy[: -len(played)])[: len(crossed)] * np.linalg.norm(played)
    assert np.max(crossed / np.maximum(windows, 1e-9)) > 0.95

    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    answer = json.loads(view.text_content("#raw"))
    assert answer["text"]
    assert shown(view) == [answer["segments"][0]["text"]]
    assert answer["usage"]["seconds"] == pytest.approx(len(samples) / rate, abs=0.01)


def test_abort_frees_the_service(views: Views, keyed_service: Running, clips: Path) -> None:
    view = views()
    view.set_input_files("#file", clips / "70.wav")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    network = view.context.new_cdp_session(view)
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    view.click("#transcribe")
    ends = time.monotonic() + 20
    while keyed_service.gauge("arkfast_requests_inside") == 0:
        assert time.monotonic() < ends, "the request reaches the service"
    assert view.evaluate("document.activeElement.id") == "abort", "who pressed a key to send can press it to stop"
    assert view.evaluate("document.getElementById('advanced').disabled")
    view.keyboard.press("Enter")
    views.until(view, "document.getElementById('status').textContent.startsWith('Stopped.')")
    assert keyed_service.is_idle(10)
    assert view.is_hidden("#result")
    assert view.is_hidden("#error")
    network.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    assert view.locator(".segment").count() == 3


def test_a_key_is_asked_for_kept_for_the_tab_and_forgotten(views: Views, keyed_service: Running, clip: Path) -> None:
    context = views.context()
    view = views(context=context, key=False)
    assert view.is_visible("#key-panel")
    assert view.inner_text("#model") == "", "nothing was asked that needs a key"
    view.set_input_files("#file", clip)
    view.click("#transcribe")
    assert view.inner_text("#key-state") == "Enter the API key first."
    assert view.evaluate("document.activeElement.id") == "key"
    view.fill("#key", "no blanks in keys")
    view.keyboard.press("Enter")
    assert "no blanks" in view.inner_text("#key-state")
    view.fill("#key", "another-key-0123456")
    view.keyboard.press("Enter")
    views.until(view, "document.getElementById('key-state').textContent.includes('does not know')")
    refused_with(views, 401)
    view.fill("#key", keyed_service.key)
    view.keyboard.press("Enter")
    views.until(view, "document.getElementById('model').textContent.endsWith('tiny')")
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    view.reload()
    views.until(view, "document.getElementById('model').textContent.endsWith('tiny')")
    kept = "[...Object.values(localStorage), document.cookie, location.href].join() + document.documentElement.outerHTML"
    assert keyed_service.key not in view.evaluate(kept)
    other = views(context=context, key=False)
    assert other.inner_text("#model") == "", "another tab has no key"
    view.click("#key-forget")
    assert view.evaluate("sessionStorage.length") == 0
    assert view.evaluate("document.activeElement.id") == "key"


def test_no_key_is_asked_for_where_none_is_needed(views: Views) -> None:
    view = views.context().new_page()
    view.route("**/page/settings.json", lambda route: route.fulfill(json={"keys": False, "max_upload_mb": 0.05, "max_new_tokens": 24}))
    view.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "ark-asr"}, {"id": "open"}]}))
    view.goto(views._service.address)
    views.until(view, "document.getElementById('model').textContent.endsWith('open')")
    assert view.is_hidden("#key-panel")
    # what the service would refuse is not sent
    view.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": bytes(60_000)})
    assert view.inner_text("#error") == "The recording has 60 kB, and the service takes at most 40 kB."
    view.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": b""})
    assert view.inner_text("#error") == "The file is empty."
    view.click("#transcribe")
    assert view.inner_text("#error") == "Choose a recording, or record one."


def test_a_dropped_recording_goes_to_the_original_s_route_with_every_setting(views: Views, clip: Path) -> None:
    view = views()
    dropped = view.evaluate_handle(
        """bytes => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(bytes)], "dropped.wav")); return data; }""",
        list(clip.read_bytes()),
    )
    view.dispatch_event("header", "drop", {"dataTransfer": dropped})
    views.until(view, "document.getElementById('about').textContent.startsWith('dropped.wav')")
    view.click("details:has(#advanced) > summary")
    view.select_option("#endpoint", "/asr")
    assert view.is_disabled("#stream")
    view.select_option("#preset", "varied")
    assert view.input_value("[name=temperature]") == "0.7"
    view.fill("[name=top_k]", "3")
    assert view.input_value("#preset") == "own"
    for name, value in {"begin_time": "0.5", "end_time": "2", "max_new_tokens": "4", "seed": "7", "language": "en"}.items():
        view.fill(f"[name={name}]", value)
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    answer = json.loads(view.text_content("#raw"))
    assert answer["sampling"] == {"temperature": 0.7, "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.0, "max_new_tokens": 4}
    assert (answer["segments"][0]["start"], answer["segments"][0]["end"]) == (0.5, 2.0)
    figures = dict(zip(view.locator("#figures dt").all_inner_texts(), view.locator("#figures dd").all_inner_texts(), strict=True))
    assert figures["Tokens of the prompt"] == str(answer["prompt_tokens"])
    assert figures["In the service"] == f"{answer['latency_s']:.2f} s"
    view.fill("[name=top_p]", "2")
    view.click("details:has(#advanced) > summary")
    view.click("#transcribe")
    assert view.evaluate("document.activeElement.name") == "top_p", "the browser points to what is out of range"


def test_a_stream_is_shown_as_it_comes(views: Views, keyed_service: Running, clips: Path) -> None:
    view = views()
    view.set_input_files("#file", clips / "70.wav")
    view.click("details:has(#advanced) > summary")
    view.check("#stream")
    watch = """() => { const place = document.getElementById('transcript'); window.seen = [];
      new MutationObserver(() => window.seen.push(place.textContent)).observe(place, { childList: true }); }"""
    view.evaluate(watch)
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    text = keyed_service.post(file=clips / "70.wav").json()["text"]
    assert view.text_content("#transcript") == text
    parts = [part for part in view.evaluate("seen") if part and part != text]
    assert len(set(parts)) >= 2
    assert all(text.startswith(part) for part in parts)
    assert view.is_disabled("[data-save=srt]")
    assert view.is_visible("#save-note")


def test_segments_words_and_doubt_are_shown_seek_the_player_and_are_saved(views: Views, clip: Path) -> None:
    view = views(context=views.context(permissions=["clipboard-read", "clipboard-write"]))
    answered(view, ANSWER)
    view.set_input_files("#file", clip)
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    assert view.locator("#transcript img").count() == 0, "text is text"
    assert shown(view) == [segment["text"] for segment in ANSWER["segments"]]
    assert view.text_content(".word.unsure") == "morning (unsure)"
    assert view.locator(".badge").all_inner_texts() == ["unsure, 31%", "perhaps no speech"]
    mark = "getComputedStyle(document.querySelector('.word.unsure'), '::after').content"
    assert view.evaluate(mark) == '"?"', "doubt is a sign, not a colour alone"
    assert view.inner_text("#warnings") == ANSWER["warnings"][0]
    assert view.is_visible("#legend")
    views.until(view, "document.getElementById('player').readyState >= 1")
    view.focus(".word >> nth=0")
    view.keyboard.press("ArrowRight")
    assert view.evaluate("document.activeElement.firstChild.textContent") == "morning"
    view.keyboard.press("Enter")
    views.until(view, "document.querySelector('.word.unsure[aria-current]')")
    assert view.evaluate("document.getElementById('player').currentTime") == pytest.approx(0.5, abs=0.4)
    view.click(".when >> nth=1")
    views.until(view, "document.querySelectorAll('.segment')[1].hasAttribute('aria-current')")
    assert view.evaluate("document.getElementById('player').currentTime") >= 1.5
    view.click("details:has(#advanced) > summary")
    view.fill("#threshold", "0.1")
    view.keyboard.press("Tab")
    view.wait_for_selector("#legend", state="hidden")

    view.click("#copy")
    views.until(view, "document.getElementById('copied').textContent === 'Copied.'")
    assert view.evaluate("navigator.clipboard.readText()") == ANSWER["text"]
    saved = {}
    for kind in ("txt", "srt", "vtt", "json"):
        with view.expect_download() as download:
            view.click(f"[data-save={kind}]")
        assert download.value.suggested_filename == f"three seconds.{kind}"
        saved[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    assert saved["txt"] == ANSWER["text"] + "\n"
    assert json.loads(saved["json"]) == ANSWER
    assert saved["srt"] == (
        "1\n00:00:00,000 --> 00:00:01,000\nGood <img src=x onerror=alert(1)> morning.\n\n"
        "2\n00:00:01,500 --> 00:00:03,000\n你好 -> & so on.\n"
    )
    assert saved["vtt"] == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nGood &lt;img src=x onerror=alert(1)&gt; morning.\n\n"
        "00:00:01.500 --> 00:00:03.000\n你好 -&gt; &amp; so on.\n"
    )


def test_the_chosen_language_is_remembered_and_everything_speaks_it(views: Views, clip: Path) -> None:
    context = views.context()
    view = views(context=context)
    answered(view, ANSWER)
    view.set_input_files("#file", clip)
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    view.click("#chinese")
    assert view.get_attribute("html", "lang") == "zh-Hans"
    assert view.title() == "语音转文字 · arkfast"
    for place, said in (("#status", "转写完成。"), ("#model", "模型：tiny"), ("#health", "是"), (".badge >> nth=0", "不确定，31%")):
        assert view.inner_text(place) == said
    left = """() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
      const not = '#transcript, #raw, #warnings, header [lang], code, noscript, option, [data-save]';
      while (walk.nextNode()) { const { data, parentElement } = walk.currentNode;
        if (/[A-Za-z]{3}/.test(data) && !parentElement.closest(not)) found.push(data.trim()); }
      return found; }"""
    names = r"https?|localhost|API|ASCII|Top p|Top k|tiny|three seconds\.wav|srt|vtt|txt|json"
    assert [text for text in view.evaluate(left) if re.search(r"[A-Za-z]{3}", re.sub(names, "", text))] == []
    assert views(context=context).get_attribute("html", "lang") == "zh-Hans", "in a new tab too"


def test_errors_of_the_service_are_told_in_words(views: Views, clips: Path, clip: Path) -> None:
    view = views(locale="zh-CN")
    view.set_input_files("#file", clips / "text.wav")
    view.wait_for_selector("#waveform-note:not([hidden])")
    view.click("#transcribe")
    view.wait_for_selector("#error:not([hidden])")
    refused_with(views, 400)
    assert view.inner_text("#error").startswith("无法使用该录音。 The recording: ")
    view.set_input_files("#file", clip)
    busy = {"error": {"message": "Too many requests.", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
    view.route("**/v1/audio/transcriptions", lambda route: route.fulfill(status=429, json=busy, headers={"Retry-After": "7"}))
    view.click("#transcribe")
    view.wait_for_selector("#error:not([hidden])")
    refused_with(views, 429)
    assert view.inner_text("#error") == "服务目前太忙。 Too many requests. 请在 7 秒后重试。"
    view.route("**/v1/audio/transcriptions", lambda route: route.abort())
    view.click("#english")
    view.click("#transcribe")
    views.until(view, "document.getElementById('error').textContent.startsWith('The service cannot be reached')")
    views.said.remove(next(line for line in views.said if "net::ERR_FAILED" in line))


def test_a_refused_microphone_is_explained(open_browser: Callable[..., Any], keyed_service: Running) -> None:
    browser = open_browser("--use-fake-device-for-media-stream", "--host-resolver-rules=MAP asr.test 127.0.0.1")
    view = browser.new_context(locale="en-US").new_page()
    view.goto(keyed_service.address)
    view.click("#record")
    view.wait_for_selector("#microphone-hint:not([hidden])")
    assert "refused the microphone" in view.inner_text("#microphone-hint")
    view.goto(keyed_service.address.replace("127.0.0.1", "asr.test"))
    view.click("#record")
    view.wait_for_selector("#microphone-hint:not([hidden])")
    assert "only to pages over https" in view.inner_text("#microphone-hint")
    assert view.inner_text("#record") == "Record"


def test_the_original_s_page_leads_to_the_service_s(views: Views, keyed_service: Running) -> None:
    view = views.context().new_page()
    view.on("console", lambda message: views.said.append(message.text))
    view.goto((ROOT / "tools" / "ark_asr_vllm_test.html").as_uri())
    assert view.input_value("#address") == "http://127.0.0.1:8025"
    view.fill("#address", "javascript://alert(1)")
    view.keyboard.press("Enter")
    assert "no address" in view.inner_text("#said")
    view.fill("#address", keyed_service.address.removeprefix("http://"))
    view.keyboard.press("Enter")
    view.wait_for_url(f"{keyed_service.address}/ui")
    view.wait_for_selector("#transcribe")


def axe() -> str:
    """The source of axe-core (npm's axe-core), which knows what keeps people from using a page."""
    named = os.environ.get("ARKFAST_AXE")
    path = Path(named) if named else ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not named and not path.is_file():
        pytest.skip("ARKFAST_AXE names no axe.min.js, and there is none in node_modules")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing(views: Views, clip: Path, width: int, scheme: str) -> None:
    source = axe()
    view = views(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view.evaluate(source)
    found = "async () => (await axe.run()).violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 90))])"
    assert view.evaluate(found) == []
    answered(view, ANSWER)
    view.set_input_files("#file", clip)
    view.click("#transcribe")
    view.wait_for_selector(SHOWN)
    view.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    view.click("#ask-mask")
    view.wait_for_selector("#mask-rows tr")
    assert view.evaluate(found) == []
    view.evaluate("document.querySelector('.when').removeAttribute('class'); document.querySelector('#file + label').remove()")
    assert "label" in str(view.evaluate(found)), "it would tell"
