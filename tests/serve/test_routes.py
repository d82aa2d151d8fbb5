"""Each route's answer, as OpenAI's client and open-audio-opd's users expect it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arkfast import Transcriber
from arkfast.records import Utterance

if TYPE_CHECKING:
    from tests.serve.conftest import Running

TOKENS = 24


@pytest.fixture(scope="module")
def texts(model: Path, clips: Path) -> dict[str, str]:
    """What ``arkfast transcribe`` makes of each recording."""
    transcriber = Transcriber(model, device="cpu", max_new_tokens=TOKENS, vad="energy")
    return {
        name: row["pred_text"]
        for name in ("1.wav", "2.wav", "70.wav")
        for row in transcriber([Utterance(id=name, audio=str(clips / name))])
    }


def test_every_format_holds_the_text_of_transcription(service: Running, clips: Path, texts: dict[str, str]):
    answers = {form: service.post(file=clips / "70.wav", response_format=form) for form in ("json", "text", "srt", "vtt", "verbose_json")}
    assert {form: answer.status_code for form, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert answers["json"].json()["text"] == answers["verbose_json"].json()["text"] == texts["70.wav"]
    assert answers["json"].json()["usage"] == {"type": "duration", "seconds": 70.0}
    assert answers["text"].text == texts["70.wav"] + "\n"
    assert answers["srt"].text.startswith("1\n00:00:00,000 --> ")
    assert answers["vtt"].text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    segments = answers["verbose_json"].json()["segments"]
    assert len(segments) == 3, "a recording over 30 s is cut, and nothing of it is left out"
    assert all(a["end"] <= b["start"] for a, b in pairwise(segments))
    assert segments[-1]["end"] == 70.0
    assert answers["json"].json()["warnings"], "the transcript was cut at its token limit, and the answer says so"


def test_a_stream_is_openai_s_events_and_their_deltas_are_the_text(service: Running, clips: Path, texts: dict[str, str]):
    answer = service.post(file=clips / "70.wav", stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == texts["70.wav"]


def test_the_client_of_openai_gets_all_formats_and_the_stream(service: Running, clips: Path, texts: dict[str, str]):
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    client = openai.OpenAI(base_url=f"{service.address}/v1", api_key="none")
    create = client.audio.transcriptions.create
    with (clips / "2.wav").open("rb") as file:
        ask = {form: create(model="ark-asr", file=file, response_format=form) for form in ("json", "text", "srt", "vtt")}
        verbose = create(model="tiny", file=file, response_format="verbose_json", timestamp_granularities=["segment"], language="en")
        stream = list(create(model="ark-asr", file=file, stream=True))
        with pytest.raises(openai.BadRequestError, match="does not translate"):
            client.audio.translations.create(model="ark-asr", file=file)
    assert ask["json"].text == verbose.text == stream[-1].text == texts["2.wav"]
    assert ask["text"].strip() == texts["2.wav"].strip()
    assert verbose.segments[0].end == verbose.duration == 2.0
    assert verbose.language == "en"
    assert [model.id for model in client.models.list()] == ["ark-asr", "tiny"]


def test_the_original_s_route_has_its_fields(service: Running, clips: Path, texts: dict[str, str]):
    whole = service.post("/asr", file=clips / "2.wav").json()
    assert {"text", "latency_s", "prompt_tokens", "sampling"} <= set(whole)
    assert whole["text"] == texts["2.wav"]
    part = service.post(
        "/asr", file=clips / "2.wav", begin_time="0.5", end_time="1.5", max_new_tokens="4", top_k="3", temperature="0.5"
    ).json()
    assert part["sampling"] == {"temperature": 0.5, "top_p": 1.0, "top_k": 3, "repetition_penalty": 1.0, "max_new_tokens": 4}
    assert (part["segments"][0]["start"], part["segments"][0]["end"]) == (0.5, 1.5)
    assert part["prompt_tokens"] < whole["prompt_tokens"], "the prompt grows with the audio"


def test_what_is_served_and_how_it_is(service: Running):
    with service.client as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready", "model": "tiny"}
        mask = client.get("/token-mask").json()
        assert mask["tokens"]["<|im_end|>"]["allowed"]
        assert mask["tokens"]["<|user|>"]["blocked"]
        assert mask["allowed_count"] + mask["blocked_count"] == 400
        said = client.get("/metrics").text
    assert "arkfast_ready 1.0" in said
    assert 'arkfast_requests_total{route="/health",status="200"}' in said


def test_several_at_once_get_what_each_gets_alone(service: Running, clips: Path, texts: dict[str, str]):
    from concurrent.futures import ThreadPoolExecutor

    names = ["1.wav", "2.wav", "70.wav", "text.wav"] * 3
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: service.post(file=clips / name), names))
    for name, answer in zip(names, answers, strict=True):
        assert answer.status_code == (400 if name == "text.wav" else 200)
        if name != "text.wav":
            assert answer.json()["text"] == texts[name]
