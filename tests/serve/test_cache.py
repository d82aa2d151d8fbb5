"""What was heard in a recording is kept for when it comes again: less work, the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from arkfast import Transcriber
from arkfast.audio import LogMel
from arkfast.serve.child import Cancel, Done, Submit, _Desk
from arkfast.serve.engines import Engines, Forgotten
from arkfast.serve.fields import Asked
from arkfast.serve.hearing import Clip, Heard, Hearing
from arkfast.serve.lru import Lru
from arkfast.serve.work import Work
from arkfast.testing import synthetic_speech

if TYPE_CHECKING:
    from tests.serve.conftest import Running

HITS, MISSES = "arkfast_encoder_cache_hits", "arkfast_encoder_cache_misses"


def test_what_was_not_asked_for_longest_goes_first() -> None:
    kept: Lru[bytes] = Lru(10, len)
    for name in "abc":
        kept.keep(name, bytes(3))
    assert kept.find("a") is not None
    kept.keep("d", bytes(3))
    assert [name for name in "abcd" if kept.find(name) is not None] == ["a", "c", "d"]
    assert (kept.held, len(kept)) == (9, 3)
    kept.keep("c", bytes(4))
    assert kept.held == 10
    kept.keep("large", bytes(11))
    assert kept.find("large") is None
    assert kept.held == 10, "what never fits costs no other"
    none: Lru[bytes] = Lru(0, len)
    none.keep("a", b"x")
    assert none.find("a") is None


class Noted(Connection):
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def __del__(self) -> None: ...

    def send(self, obj: object) -> None:
        self.sent.append(obj)


@pytest.fixture(scope="module")
def transcriber(model: Path) -> Transcriber:
    return Transcriber(model, device="cpu", batch_size=4, max_new_tokens=16, confidence=True)


def submit(ticket: int, features: Path | None, name: str | None, **more: object) -> Submit:
    fields = {"key": "0", "language": None, "max_new_tokens": None, "sampling": {}, "hotwords": (), "words": False, "watched": False}
    return Submit(ticket=ticket, features=features, name=name, **(fields | more))


def said(desk: _Desk, message: Submit | Cancel) -> Done | None:
    """The one answer to a message."""
    noted = desk._connection
    assert isinstance(noted, Noted)
    noted.sent.clear()
    desk.take(message)
    while desk._session.pending:
        desk.step()
    done = [each for each in noted.sent if isinstance(each, Done)]
    return done[0] if done else None


@pytest.fixture
def features(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.npy")
        np.save(paths[-1], np.asarray(LogMel(128)([synthetic_speech(1.0 + seed, seed=seed)])[0])[0])
    return paths


def test_a_clip_that_came_before_is_not_encoded(transcriber: Transcriber, features: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = _Desk(Noted(), transcriber, 10**6)
    first = said(desk, submit(1, features[0], "a"))
    assert first is not None
    assert (first.known, first.fault) == (False, None)
    assert first.text
    assert first.scores is not None
    assert first.scores["no_speech_prob"] < 0.5
    plain = said(desk, submit(2, features[0], None))
    assert plain is not None
    assert (plain.known, plain.text, plain.scores) == (None, first.text, first.scores)
    monkeypatch.setattr(transcriber.session._engine.model, "get_audio_features", None)  # nothing is encoded any more
    for path in (None, features[0]):
        again = said(desk, submit(3, path, "a"))
        assert again is not None
        assert (again.known, again.text, again.tokens, again.scores) == (True, first.text, first.tokens, first.scores)
        assert again.prompt_tokens == first.prompt_tokens
    unknown = said(desk, submit(4, None, "b"))
    assert unknown is not None
    assert (unknown.fault, unknown.text) == ("forgotten", None)


def test_no_more_is_kept_than_there_is_room_for(transcriber: Transcriber, features: list[Path]) -> None:
    desk = _Desk(Noted(), transcriber, 0)
    said(desk, submit(1, features[0], "a"))
    assert desk._heard.held == 0
    one = _Desk(Noted(), transcriber, 10**6)
    sizes = []
    for number, path in enumerate(features):
        said(one, submit(number, path, str(number)))
        sizes.append(one._heard.held)
    last = sizes[2] - sizes[1]
    tight = _Desk(Noted(), transcriber, last + sizes[0])
    for number, path in enumerate(features):
        said(tight, submit(number, path, str(number)))
        assert tight._heard.held <= last + sizes[0]
    faults = [done.fault for number in range(3) if (done := said(tight, submit(9, None, str(number))))]
    assert faults == ["forgotten", "forgotten", None]


def test_what_is_kept_needs_no_memory_of_its_neighbours(transcriber: Transcriber, features: list[Path]) -> None:
    desk = _Desk(Noted(), transcriber, 10**6)
    for number, path in enumerate(features):
        desk.take(submit(number, path, str(number)))
    while transcriber.session.pending:
        desk.step()
    for number in range(3):
        heard = desk._heard.find(str(number))
        assert heard is not None
        assert heard.audio.untyped_storage().nbytes() == heard.audio.numel() * heard.audio.element_size()
        assert not heard.audio.requires_grad


def test_hotwords_that_no_transcript_can_hold_are_the_client_s_fault(transcriber: Transcriber, features: list[Path]) -> None:
    desk = _Desk(Noted(), transcriber, 0)
    refused = said(desk, submit(1, features[0], None, hotwords=("<|user|>",)))
    assert refused is not None
    assert refused.fault == "hotwords"
    taken = said(desk, submit(2, features[0], None, hotwords=("zebra",)))
    assert taken is not None
    assert taken.fault is None


class Forgetful(Engines):
    """Engines that know a clip when they have heard it, unless they are told to forget it."""

    def __init__(self) -> None:
        self._current = None
        self.heard: dict[str, int] = {}
        self.asked: list[bool] = []

    async def decode(self, owner: str, *, features: Path | None, name: str | None = None, **asked: object) -> Done:
        self.asked.append(features is not None)
        if features is None and name not in self.heard:
            raise Forgotten
        if name is not None:
            self.heard[name] = 1
        return Done(ticket=1, text=f"clip {asked['key']}", finish_reason="stop")


class Counting(Hearing):
    """Hears two clips in every recording."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, path: Path, folder: Path, *, begin: float | None, end: float | None) -> Heard:
        self.count += 1
        return Heard((Clip(0.0, 1.0, folder / "0.npy"), Clip(1.5, 2.0, folder / "1.npy")), 1.5, ("a doubt",))


@pytest.fixture
def transcribed(tmp_path: Path) -> Callable[..., str]:
    engines, hearing = Forgetful(), Counting()
    works = {knows: Work(engines, hearing, knows=knows, streams=True) for knows in (True, False)}

    async def asked(data: bytes, owner: str, suffix: str, knows: bool, fields: Asked) -> str:
        path = tmp_path / f"recording{suffix}"
        path.write_bytes(data)
        work = works[knows]
        transcript = await work.begin(owner, path, tmp_path, fields)
        assert transcript.warnings == ["A doubt."]
        async with work.decoding(owner, transcript, fields) as deltas:
            async for _ in deltas:
                pass
        return transcript.text

    def run(
        data: bytes = b"x", owner: str = "anna", suffix: str = ".wav", *, knows: bool = True, forget: bool = False, **fields: object
    ) -> tuple[int, list[bool]]:
        hearing.count, engines.asked = 0, []
        if forget:
            engines.heard.clear()
        assert asyncio.run(asked(data, owner, suffix, knows, Asked(**fields))) == "clip 0 clip 1.5"
        return hearing.count, engines.asked

    return run


def test_the_same_recording_is_read_once_for_each_who_sends_it(transcribed: Callable[..., tuple[int, list[bool]]]) -> None:
    new, known = (1, [True, True]), (0, [False, False])
    assert transcribed() == new
    assert transcribed() == known
    assert transcribed(temperature=1.0, language="de") == known, "what is heard does not depend on how it is decoded"
    assert transcribed(b"y") == new
    assert transcribed(owner="bert") == new, "nobody finds out what others sent"
    assert transcribed(suffix=".mp3") == new
    assert transcribed(begin=0.5) == new
    assert transcribed(begin=0.5, end=1.0) == new
    assert transcribed(words=True) == new, "words are aligned by features"
    assert transcribed(knows=False) == new
    assert transcribed(knows=False) == new
    assert transcribed() == known


def test_what_the_engine_has_forgotten_is_heard_once_more(transcribed: Callable[..., tuple[int, list[bool]]]) -> None:
    transcribed()
    count, features = transcribed(forget=True)
    assert (count, sorted(features)) == (1, [False, False, True, True]), "each clip once without features and once with them"
    assert transcribed() == (0, [False, False])


def test_a_service_answers_the_same_and_counts(service: Running, clips: Path) -> None:
    before = [service.gauge(name) for name in (HITS, MISSES)]
    ask = {"response_format": "verbose_json", "end_time": "61.25"}  # a part that no other test asks for
    first = service.post(file=clips / "70.wav", **ask).json()
    middle = [service.gauge(name) for name in (HITS, MISSES)]
    again = service.post(file=clips / "70.wav", **ask).json()
    after = [service.gauge(name) for name in (HITS, MISSES)]
    assert first == again
    count = len(first["segments"])
    assert count == 3
    assert [b - a for a, b in zip(before, middle, strict=True)] == [0, count]
    assert [b - a for a, b in zip(middle, after, strict=True)] == [count, 0]


@pytest.mark.slow
def test_a_change_of_model_forgets_what_the_old_one_heard(start: Callable[..., Running], model: Path, clips: Path) -> None:
    admin = "an-admin-key-of-tests-02"
    service = start(environment={"ARKFAST_ADMIN_KEY": admin})

    def counted() -> tuple[str, float, float]:
        text = service.post(file=clips / "2.wav").json()["text"]
        return text, service.gauge(HITS), service.gauge(MISSES)

    text = counted()[0]
    assert counted() == (text, 1, 1)
    with service.client as client:
        changed = client.post("/admin/model", json={"model": str(model)}, headers={"Authorization": f"Bearer {admin}"})
    assert changed.status_code == 200
    assert counted() == (text, 1, 2), "the same recording is heard and encoded once more"
    assert counted() == (text, 2, 2)
