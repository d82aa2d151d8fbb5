"""What verbose answers say: OpenAI's fields, times of words, how sure the model was, and where there was no speech."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from arkfast import Transcriber
from arkfast.infer.command import main
from arkfast.infer.confidence import spans
from arkfast.infer.speech import THRESHOLD
from arkfast.records import InputError, JsonObject, Utterance
from arkfast.serve.answers import WARNINGS_HEADER, answer
from arkfast.serve.child import Done, load
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import MOST_HOTWORDS, Asked, asked
from arkfast.serve.hearing import Clip, Heard
from arkfast.serve.options import ServeConfig
from arkfast.serve.word_confidence import with_confidence
from arkfast.serve.work import NO_LANGUAGE, Transcript
from arkfast.testing import synthetic_speech, write_wav

if TYPE_CHECKING:
    from tests.serve.conftest import Running

TOKENS = 24
VERBOSE = {"response_format": "verbose_json"}
WORDS = VERBOSE | {"timestamp_granularities[]": "word"}


@pytest.fixture(scope="module")
def rows(model: Path, clips: Path) -> dict[str, JsonObject]:
    """What transcription says of the recordings."""
    transcriber = Transcriber(model, device="cpu", max_new_tokens=TOKENS, vad="energy", confidence=True, timestamps="word")
    names = ("2.wav", "70.wav")
    return dict(zip(names, transcriber([Utterance(id=name, audio=str(clips / name)) for name in names]), strict=True))


def test_words_have_the_times_of_transcription(service: Running, clips: Path, rows: dict[str, JsonObject]) -> None:
    found = service.post(file=clips / "70.wav", **WORDS).json()
    row = rows["70.wav"]
    assert [{name: word[name] for name in ("word", "start", "end")} for word in found["words"]] == row["words"]
    assert len(found["words"]) > 5, "the test shows nothing"
    assert all(a["end"] <= b["start"] for a, b in pairwise(found["words"]))
    confidences = [word["confidence"] for word in found["words"]]
    assert 0 <= min(confidences) < max(confidences) <= 1
    assert "words" not in service.post(file=clips / "70.wav", **VERBOSE).json(), "nobody asked"


def test_segments_say_what_transcription_says(service: Running, clips: Path, rows: dict[str, JsonObject]) -> None:
    found = service.post(file=clips / "70.wav", **VERBOSE).json()
    names = ("start", "end", "text", "finish_reason", "avg_logprob", "compression_ratio", "no_speech_prob", "confidence", "repetition")
    want = [{name: segment[name] for name in names} for segment in rows["70.wav"]["segments"]]
    assert [{name: segment[name] for name in names} for segment in found["segments"]] == want
    assert [segment["id"] for segment in found["segments"]] == [0, 1, 2]
    assert [segment["seek"] for segment in found["segments"]] == [round(100 * segment["start"]) for segment in want]
    assert {segment["temperature"] for segment in found["segments"]} == {0.0}
    assert all(0 < len(segment["tokens"]) <= TOKENS for segment in found["segments"])
    assert len({token for segment in found["segments"] for token in segment["tokens"]}) >= 10
    assert found["language"] == "und", "nobody said it, and the model names none"
    warm = service.post(file=clips / "2.wav", temperature="0.7", **VERBOSE).json()
    assert warm["segments"][0]["temperature"] == 0.7


def test_openai_s_own_classes_take_the_answer_strictly(service: Running, clips: Path) -> None:
    audio = pytest.importorskip("openai.types.audio", reason="the openai client is not installed")
    for fields in (VERBOSE, WORDS, WORDS | {"language": "zh"}):
        text = service.post(file=clips / "2.wav", **fields).text
        whole = audio.TranscriptionVerbose.model_validate_json(text, strict=True)
        assert whole.segments[0].tokens
        assert (whole.words is None) == (fields is VERBOSE)


def test_a_language_that_changes_nothing_is_said(service: Running, clips: Path) -> None:
    plain, told = (service.post(file=clips / "2.wav", **VERBOSE, **more).json() for more in ({}, {"language": "German"}))
    assert (plain["text"], plain["language"], told["language"]) == (told["text"], "und", "de")
    assert (NO_LANGUAGE in plain.get("warnings", ()), NO_LANGUAGE in told["warnings"]) == (False, True)


def test_the_client_of_openai_gets_words(service: Running, clips: Path) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    client = openai.OpenAI(base_url=f"{service.address}/v1", api_key="none")
    with (clips / "70.wav").open("rb") as file:
        found = client.audio.transcriptions.create(
            model="ark-asr", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
    assert found.words[-1].end <= found.segments[-1].end <= found.duration == 70.0


@pytest.mark.parametrize(
    ("words", "rated", "want"),
    [
        (["Hello", "world"], [("Hello,", 0.5), ("world!", 0.25)], [0.5, 0.25]),
        (["well", "known"], [("well-known.", 0.5)], [0.5, 0.5]),
        (["你", "好", "GPT"], [("你", 0.5), ("好", 0.25), ("GPT。", 0.125)], [0.5, 0.25, 0.125]),
        (["caf\u00e9"], [("cafe\u0301", 0.5)], [0.5]),
        (["3.14"], [("3.14", 0.5)], [0.5]),
        (["ab"], [("a", 0.5), ("b", 0.25)], [0.25]),
        (["world"], [("gone", 0.5), ("world", 0.25)], [0.25]),
        (["other"], [("word", 0.5)], [None]),
        (["word"], [], [None]),
        ([], [("word", 0.5)], []),
    ],
)
def test_each_word_has_the_confidence_of_its_letters(words: list[str], rated: list[tuple[str, float]], want: list[float | None]) -> None:
    given = [{"word": word, "start": 0.0, "end": 1.0} for word in words]
    found = with_confidence(given, [{"word": word, "confidence": confidence} for word, confidence in rated])
    assert [word.get("confidence") for word in found] == want
    assert [word["word"] for word in found] == words


def test_words_of_every_script_find_their_confidence() -> None:
    from arkfast.align import word_spans

    text = "Hello, well-known “world”! 你好，GPT-4o。안녕 하세요 3,141.5 l'été ไทย"
    words = [{"word": text[begin:end]} for begin, end in word_spans(text)]
    rated = [{"word": text[begin:end], "confidence": (begin + 1) / 100} for begin, end in spans(text)]
    assert all("confidence" in word for word in with_confidence(words, rated))


def take(*dones: Done) -> Transcript:
    clips = tuple(Clip(10.0 * n, 10.0 * n + 8, None) for n in range(len(dones)))
    transcript = Transcript(Heard(clips, 8.0 * len(dones), ()), Path(), Path(), None)
    for clip, done in zip(clips, dones, strict=True):
        transcript.take(clip, done)
    return transcript


def test_what_is_not_known_is_left_out_and_what_has_no_times_is_said() -> None:
    words = [{"word": "a", "start": 7.5, "end": 9.0}]
    dones = (
        Done(ticket=1, text="a", finish_reason="stop", tokens=(5,), words=words),
        Done(ticket=2, text="b", finish_reason="length", words_error="they do not fit"),
    )
    body = json.loads(answer(take(*dones), Asked(format="verbose_json", words=True)).body)
    plain = {"seek": 0, "start": 0.0, "end": 8.0, "text": "a", "tokens": [5], "temperature": 0.0, "finish_reason": "stop"}
    assert body["segments"][0] == {"id": 0} | plain
    assert body["words"] == [{"word": "a", "start": 7.5, "end": 8.0}], "nothing is said after its clip"
    assert body["warnings"] == [
        "The transcript from 10.00 to 18.00 s was cut at its token limit.",
        "Words from 10.00 to 18.00 s have no times: they do not fit.",
    ]


def test_the_language_is_the_client_s_or_the_one_that_the_model_heard() -> None:
    heard = [{"detected_language": "German"}, {"detected_language": "English"}, {"detected_language": "English"}]
    transcript = take(*(Done(ticket=n, text="a", finish_reason="stop", scores=scores) for n, scores in enumerate(heard)))
    said = [json.loads(answer(transcript, Asked(format="verbose_json", language=given)).body)["language"] for given in (None, "fr")]
    assert said == ["en", "fr"]
    assert b"detected" not in answer(transcript, Asked(format="verbose_json")).body


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of digital silence."""
    return write_wav(tmp_path_factory.mktemp("silence") / "silence.wav", np.zeros(32000, dtype=np.float32))


@pytest.mark.parametrize("form", ["json", "verbose_json", "text", "srt", "vtt", "stream", "asr"])
def test_silence_never_becomes_text_that_is_not_marked(service: Running, silence: Path, form: str) -> None:
    if form == "asr":
        found = service.post("/asr", file=silence)
    else:
        found = service.post(file=silence, **({"stream": "true"} if form == "stream" else {"response_format": form}))
    assert found.status_code == 200
    if form in ("text", "srt", "vtt"):
        assert "No speech was heard from 0.00 to 2.00 s" in found.headers[WARNINGS_HEADER]
        return
    body = json.loads(found.text.strip().splitlines()[-1].removeprefix("data: "))
    assert any("No speech was heard from 0.00 to 2.00 s; what the transcript has of it may be invented." in w for w in body["warnings"])
    if "segments" in body:
        assert body["segments"][0]["no_speech"] is True
        assert body["segments"][0]["no_speech_prob"] >= THRESHOLD


def test_speech_is_not_marked(service: Running, clips: Path) -> None:
    found = service.post(file=clips / "2.wav", **VERBOSE).json()
    assert "no_speech" not in found["segments"][0]
    assert not any("No speech" in warning for warning in found.get("warnings", ()))


def test_what_is_left_out_for_want_of_speech_has_no_tokens() -> None:
    skipped = Done(ticket=1, text="", finish_reason="no_speech", scores={"no_speech": True, "no_speech_prob": 0.9})
    said = take(Done(ticket=2, text="a", finish_reason="stop"), skipped)
    assert said.text == "a"
    assert said.warnings == ["No speech was heard from 10.00 to 18.00 s, so nothing of it is transcribed."]
    assert said.said[1].tokens == ()


@pytest.mark.parametrize(
    ("reasons", "want"),
    [
        (["stop", "no_speech"], "stop"), (["no_speech", "no_speech"], "no_speech"), (["no_speech", "length"], "length"),
        (["stop", "repetition", "length"], "repetition"), ([], "stop"),
    ],
)  # fmt: skip
def test_a_recording_ends_as_transcription_says(reasons: list[str], want: str) -> None:
    transcript = take(*(Done(ticket=n, text="", finish_reason=reason) for n, reason in enumerate(reasons)))
    assert json.loads(answer(transcript, Asked(format="verbose_json")).body)["finish_reason"] == want


def test_a_warning_is_fit_for_a_header() -> None:
    done = Done(ticket=1, text="a", finish_reason="stop", warnings=("language 'Ünknown'\nis none",))
    headers = answer(take(done), Asked(format="text")).headers
    assert headers[WARNINGS_HEADER.lower()] == "Language '?nknown' is none."
    many = take(*(Done(ticket=n, text="a", finish_reason="length") for n in range(200)))
    assert len(answer(many, Asked(format="srt")).headers[WARNINGS_HEADER.lower()]) == 4000


def fields_of(**form: str) -> Asked:
    return asked({name: [value] for name, value in form.items()}, names=["ark-asr"], max_new_tokens=10)


def test_hotwords_are_phrases_with_commas_or_lines_between() -> None:
    assert fields_of(hotwords="Ada Lovelace, Hopper\n 图灵 ,,\nHopper").hotwords == ("Ada Lovelace", "Hopper", "图灵")
    assert fields_of(hotwords=" ").hotwords == ()
    assert len(fields_of(hotwords=",".join(map(str, range(MOST_HOTWORDS)))).hotwords) == MOST_HOTWORDS
    for bad in (",".join(map(str, range(MOST_HOTWORDS + 1))), "x" * 2001):
        with pytest.raises(ApiError, match="hotwords") as refused:
            fields_of(hotwords=bad)
        assert (refused.value.status, refused.value.param) == (400, "hotwords")


def test_hotwords_change_the_transcript_of_their_request_alone(service: Running, model: Path, clips: Path) -> None:
    plain = service.post(file=clips / "2.wav").json()["text"]
    word = "qqqq"
    assert word not in plain
    transcriber = Transcriber(model, device="cpu", max_new_tokens=TOKENS)
    (row,) = transcriber([Utterance(id="0", audio=str(clips / "2.wav"), extra={"hotwords": [word, "zz"]})])
    assert service.post(file=clips / "2.wav", hotwords=f"{word},zz").json()["text"] == row["pred_text"]
    assert service.post(file=clips / "2.wav").json()["text"] == plain
    refused = service.post(file=clips / "2.wav", hotwords="<|user|>")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "hotwords")
    assert "<" not in refused.json()["error"]["message"]


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_cache_of_no_size_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="--encoder_cache_mb"):
        ServeConfig(model=Path("x"), encoder_cache_mb=float(value))


@pytest.fixture(scope="module")
def apart(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint without its head, and the head."""
    bare, head = tmp_path_factory.mktemp("apart") / "tiny", tmp_path_factory.mktemp("head")
    shutil.copytree(model, bare)
    for name in ("ctc_head.safetensors", "ctc_head.json"):
        shutil.move(bare / name, head)
    return bare, head


def test_a_head_may_stand_elsewhere(apart: tuple[Path, Path], model: Path, tmp_path: Path) -> None:
    bare, head = apart
    (tmp_path / "hotwords.txt").write_text("Ada Lovelace\t3\n", encoding="utf-8")

    def times(**flags: Path) -> bool:
        return load(ServeConfig(device="cpu", **flags)).word_times is not None

    assert times(model=model)
    assert not times(model=bare, hotwords=tmp_path / "hotwords.txt")
    assert times(model=bare, aligner=head)
    with pytest.raises(InputError, match="no ctc_head"):
        times(model=bare, aligner=tmp_path)
    with pytest.raises(InputError, match=r"nothing\.txt"):
        times(model=bare, hotwords=tmp_path / "nothing.txt")


@pytest.mark.slow
def test_ten_minutes_are_what_transcription_makes_of_them(
    start: Callable[..., Running], apart: tuple[Path, Path], tmp_path: Path, silence: Path
) -> None:
    """On a service without a head, which leaves silence out and keeps nothing of what it hears."""
    bare, _ = apart
    service = start("--max_duration", "700", "--no_speech", "skip", "--encoder_cache_mb", "0", served=bare)
    parts = [synthetic_speech(20.0, seed=seed) for seed in range(30)]
    long = write_wav(tmp_path / "long.wav", np.concatenate(parts))
    output = tmp_path / "rows.jsonl"
    flags = ["--max_new_tokens", str(TOKENS), "--confidence", "true", "--no_speech", "skip", "--device", "cpu", "--quiet", "true"]
    assert main([str(long), "--output", str(output), "--model_path", str(bare), *flags]) == 0
    (row,) = (json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
    found = service.post(file=long, **VERBOSE).json()
    segments = found["segments"]
    assert found["duration"] == segments[-1]["end"] == 600.0
    assert len(segments) >= 20
    assert found["text"] == row["pred_text"]
    names = ("start", "end", "text", "finish_reason", "avg_logprob", "no_speech_prob", "confidence")
    assert [[segment[name] for name in names] for segment in segments] == [[segment[name] for name in names] for segment in row["segments"]]
    assert all(a["start"] < a["end"] <= b["start"] for a, b in pairwise(segments))
    streamed = service.post(file=long, stream="true").text.strip().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if line]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == found["text"]
    assert len(events) - 1 <= len(segments), "what may be left out is not shown before it is known"
    refused = service.post(file=silence, **WORDS)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "timestamp_granularities[]")
    assert "--aligner" in refused.json()["error"]["message"]
    empty = service.post(file=silence, **VERBOSE).json()
    assert (empty["text"], empty["segments"][0]["finish_reason"], empty["segments"][0]["tokens"]) == ("", "no_speech", [])
    assert service.gauge("arkfast_encoder_cache_hits") == service.gauge("arkfast_encoder_cache_misses") == 0
