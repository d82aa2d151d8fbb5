"""Streams: deltas come while a clip is being decoded, hold only what stays, and joined are the text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from starlette.types import Message

from arkfast.data.transcript import clean_transcript
from arkfast.infer.long.texts import glue, is_begun, join_texts
from arkfast.infer.session import EngineSession
from arkfast.serve import app
from arkfast.serve.child import Done
from arkfast.serve.engines import Engines
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import Asked
from arkfast.serve.growing import Growing, settled
from arkfast.serve.hearing import Clip, Heard, Hearing
from arkfast.serve.work import Transcript, Work

if TYPE_CHECKING:
    from tests.serve.conftest import Running

TEXTS = [
    "Hello, how are you? I'm fine; it's 3.14 o'clock.",
    "你好，世界！今天天气很好。",
    "こんにちは、東京タワー。",
    "안녕하세요 여러분.",
    "Family 👨‍👩‍👧‍👦 and flag 🇩🇪 and 🎉🎉.",
    "naïve cafe\u0301 ﬁne 𝄞 music",
    "混合 mixed 文字 text，“引号”里的话。",
    ". so it goes",
    "-5 degrees, .NET and ... dots",
    "a  b\n\nc   ",
    "x < y and y <| z | w |> v",
    "control <|noise|> tokens <|x|>inside<|y|>",
    "ends here<|im_end|>and not there",
    "�� broken � bytes",
    "",
]


class Bytes:
    """A tokenizer with an id for each byte, whose decoder does as byte-level ones do."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


class Pieces(Bytes):
    """A tokenizer of whole words that leaves out the blank before the first, as those of SentencePiece do."""

    def __init__(self, text: str) -> None:
        self.pieces = [piece for word in text.split(" ") for piece in (" ", word)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.pieces[id_] for id_ in token_ids).removeprefix(" ")


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_settled_begins_every_text_that_may_come(text: str) -> None:
    whole = clean_transcript(text)
    for end in range(len(text) + 1):
        assert whole.startswith(settled(text[:end])), end
    assert len(settled(text)) >= len(whole) - 6, "it would be right to say nothing, but of no use"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_a_text_grows_by_what_stays(text: str, step: int) -> None:
    ids, growing = list(text.encode()), Growing(Bytes())
    parts = [growing.add(ids[:end]) for end in [*range(step, len(ids), step), len(ids)]]
    whole = clean_transcript(text)
    assert "".join(parts) == growing.text
    assert whole.startswith(growing.text)
    assert len(growing.text) >= len(whole.rstrip("�")) - 6
    assert growing.add(ids[: len(ids) // 2]) == "", "fewer ids than before, as when memory ran out, say nothing"
    assert growing.add(ids) == ""


def test_a_character_of_several_bytes_comes_whole() -> None:
    growing, parts = Growing(Bytes()), []
    ids = list("好🎉".encode())
    for end in range(1, len(ids) + 1):
        parts.append(growing.add(ids[:end]))
    assert [part for part in parts if part] == ["好", "🎉"]


def test_bytes_that_are_no_character_hold_nothing_up() -> None:
    growing = Growing(Bytes())
    growing.add([0x80] * 10)
    assert growing.text == "�" * 7
    growing.add([0x80] * 10 + list(b"ab"))
    assert growing.text == "�" * 10 + "ab"


def test_pieces_that_lose_their_blank_at_a_start_keep_it_inside() -> None:
    tokenizer = Pieces("one two three four")
    growing = Growing(tokenizer)
    assert "".join(growing.add(range(end)) for end in range(1, 9)) == "one two three four"


@pytest.mark.parametrize(("left", "right"), [("你好", "“世界”"), ("Hello", "“world”"), ("你好", "‘“a"), ("a", "。"), ("你好", "Hello")])
def test_what_stands_between_clips_is_known_before_it_is_shown(left: str, right: str) -> None:
    begun = [right[:end] for end in range(1, len(right) + 1) if is_begun(right[:end])]
    assert begun
    assert {glue(left, part) for part in begun} == {glue(left, right)}


class Scripted(Engines):
    """Engines that say a clip's text in parts, as they are let."""

    def __init__(self, texts: list[str], *, wait: float = 0.0) -> None:
        self.texts, self.wait, self.parts = texts, wait, 0

    async def decode(self, owner: str, *, key: str, grown=None, **asked: object) -> Done:
        text = self.texts[int(float(key))]
        growing, ids = Growing(Bytes()), list(text.encode())
        for end in range(1, len(ids) + 1):
            if grown is not None and (part := growing.add(ids[:end])):
                self.parts += 1
                grown(part)
            await asyncio.sleep(self.wait)
        return Done(ticket=1, text=text, finish_reason="stop")


async def streamed(work: Work, count: int, *, pause: float = 0.0, stream: bool = True) -> tuple[list[str], Transcript]:
    clips = tuple(Clip(float(n), float(n + 1), Path()) for n in range(count))
    transcript = Transcript(Heard(clips, float(count), ()), Path(), Path(), None)
    found = []
    async with work.decoding("anna", transcript, Asked(stream=stream)) as deltas:
        async for delta in deltas:
            found.append(delta)
            await asyncio.sleep(pause)
    return found, transcript


def work_of(texts: list[str], *, streams: bool = True, wait: float = 0.0) -> Work:
    return Work(Scripted(texts, wait=wait), Hearing.__new__(Hearing), knows=False, streams=streams)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], ["你好", "“世界”。", "“and", "”so", "on"], [""], ["", "a", "", "b"]])
def test_deltas_joined_are_the_text_of_transcription(texts: list[str]) -> None:
    deltas, transcript = asyncio.run(streamed(work_of(texts), len(texts)))
    assert "".join(deltas) == transcript.text == join_texts(clean_transcript(text) for text in texts)
    assert all(deltas)
    if texts is TEXTS:
        assert len(deltas) > len(texts), "a clip comes in parts"
    whole, _ = asyncio.run(streamed(work_of(texts), len(texts), stream=False))
    held, _ = asyncio.run(streamed(work_of(texts, streams=False), len(texts)))
    assert "".join(whole) == "".join(held) == transcript.text
    assert len(whole) == len(held) <= len(texts), "a clip at a time where no stream is asked for, or none may be shown early"


def test_a_client_who_reads_slowly_gets_larger_parts_and_holds_nobody_up() -> None:
    """Parts that nobody takes come together; the engine says all of them meanwhile."""
    text = "one two three four five six seven eight nine ten " * 4
    work = work_of([text], wait=0.001)

    async def slow() -> tuple[list[str], Transcript]:
        return await streamed(work, 1, pause=0.5)

    deltas, transcript = asyncio.run(slow())
    assert "".join(deltas) == transcript.text == text.strip()
    assert isinstance(work._engines, Scripted)
    assert work._engines.parts > 10 * len(deltas)


def test_a_transcript_that_is_taken_back_ends_in_an_error() -> None:
    """A model that writes the marker of its text as text takes back what stood before it."""
    with pytest.raises(ApiError, match="took back"):
        asyncio.run(streamed(work_of(["never mind <|text|> this"]), 1))
    deltas, _ = asyncio.run(streamed(work_of(["never mind <|text|> this"]), 1, stream=False))
    assert deltas == ["this"]


def test_a_client_that_never_reads_its_stream_is_let_go_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READ_SECONDS", 0.1)
    ended: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: {}"
        finally:
            ended.append("events")

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # as a server does whose buffers are full

    async def check() -> None:
        held = AsyncExitStack()
        held.callback(ended.append, "spool and place")
        await app._Streamed(events(), held, time.monotonic())({"type": "http"}, receive, send)

    asyncio.run(asyncio.wait_for(check(), 30))
    assert ended == ["events", "spool and place"]


class Names:
    """An interface whose model names the language, with the id 9 behind it."""

    languages = ("English",)

    def heard(self, answer: Sequence[int]) -> SimpleNamespace:
        return SimpleNamespace(language="English", begin=answer.index(9) + 1 if 9 in answer else 0)


def test_a_language_that_the_model_names_is_no_part_of_its_transcript() -> None:
    session = EngineSession.__new__(EngineSession)
    told = {7: [5, 9, 1, 2], 8: [5], 9: [5, 9, 1]}
    untold = {1: True, 2: True, 3: False}
    session.__dict__ |= {
        "_engine": SimpleNamespace(progress=lambda: told),
        "_tickets": {7: 1, 8: 2, 9: 3},
        "_names": Names(),
        "_asked": {ticket: SimpleNamespace(untold=each) for ticket, each in untold.items()},
    }
    assert session.progress() == {1: [1, 2], 3: [5, 9, 1]}


def events_of(lines: Sequence[str]) -> list[dict[str, str]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_a_stream_tells_a_clip_in_parts(service: Running, clips: Path) -> None:
    whole = service.post(file=clips / "70.wav").json()["text"]
    events = events_of(service.post(file=clips / "70.wav", stream="true").text.splitlines())
    assert [event["type"] for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert len(events) - 1 > 6, "three clips in more than two parts each"
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == whole


def test_a_client_that_does_not_read_its_stream_holds_nobody_up(service: Running, clips: Path) -> None:
    with (
        service.client as client,
        client.stream(
            "POST", "/v1/audio/transcriptions", data={"stream": "true"}, files={"file": ("a.wav", (clips / "70.wav").read_bytes())}
        ) as answer,
    ):
        assert answer.status_code == 200
        for _ in range(3):
            assert service.post(file=clips / "1.wav").status_code == 200
        assert service.gauge("arkfast_clips_decoding") == 0, "its clips are done, though nobody reads"
        events = events_of(list(answer.iter_lines()))
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"]
