"""Order, windows and isolation, with a decoder that makes things up."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from arkfast.data.pipeline import FeatureItem
from arkfast.infer.result import Result
from arkfast.infer.stream import DeviceLost, Outcome, transcribe_stream
from arkfast.records import InputError, Utterance


def clip(name: str, frames: int = 10) -> Utterance:
    return Utterance(id=name, audio=np.zeros(frames, dtype=np.float32), where=f"m.jsonl:{name}")


class Fake:
    """Features of the length that an utterance asks for, and a transcript that is its id, after as many steps as it has frames."""

    def __init__(
        self,
        bad_audio: Sequence[str] = (),
        bad_clip: Sequence[str] = (),
        refused: Sequence[str] = (),
        doubtful: Sequence[str] = (),
        slots: int = 4,
    ) -> None:
        self.bad_audio, self.bad_clip, self.refused, self.doubtful, self.slots = bad_audio, bad_clip, refused, doubtful, slots
        self.queue: list[list] = []
        self.loaded = self.most = self.tickets = 0

    def features(self, items: Iterable[Utterance | FeatureItem]) -> Iterator[FeatureItem]:
        for item in items:
            if isinstance(item, FeatureItem):
                yield item
                continue
            self.loaded += 1
            bad = item.id in self.bad_audio
            features = InputError(f"{item.name}: no such file") if bad else np.zeros((2, len(item.audio)), dtype=np.float32)
            yield FeatureItem(item, features, warnings=(f"{item.id} is doubtful",) if item.id in self.doubtful else ())

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        if utterance.id in self.refused:
            raise InputError("too long for a slot")
        self.tickets += 1
        self.queue.append([self.tickets, utterance.id, features.shape[1]])
        self.most = max(self.most, len(self.queue))
        return self.tickets

    def step(self) -> list[Outcome]:
        for entry in self.queue[: self.slots]:
            entry[2] -= 3
        done = [entry for entry in self.queue if entry[2] <= 0]
        self.queue = [entry for entry in self.queue if entry[2] > 0]
        return [self.outcome(ticket, name) for ticket, name, _ in reversed(done)]

    def outcome(self, ticket: int, name: str) -> Outcome:
        if name in self.bad_clip:
            return Outcome(ticket, None, None, "RuntimeError: non-finite scores")
        return Outcome(ticket, name, "length" if name == "long" else "stop", None)

    def run(self, items: Iterable[Utterance | Result], window: int = 8) -> Iterator[Result]:
        return transcribe_stream(items, features=self.features, decoder=self, window=window, frames_per_second=100)


@pytest.mark.parametrize(("slots", "window"), [(1, 1), (4, 8), (3, 7), (64, 1000), (5, 2)])
def test_order_and_results_do_not_depend_on_slots(slots: int, window: int) -> None:
    rng = np.random.default_rng(0)
    items = [clip(str(i), int(rng.integers(1, 100))) for i in range(23)]
    results = list(Fake(slots=slots).run(items, window))
    assert [r.text_raw for r in results] == [str(i) for i in range(23)]
    assert [r.seconds for r in results] == [len(i.audio) / 100 for i in items]


def test_memory_is_bounded_by_the_window() -> None:
    fake = Fake()
    endless = (clip(str(i)) for i in itertools.count())
    first = list(itertools.islice(fake.run(endless), 20))
    assert [r.text_raw for r in first] == [str(i) for i in range(20)]
    assert fake.loaded <= 20 + 8
    assert fake.most == 8, "the decoder has a whole window to choose from"


def test_bad_clips_are_errors_in_their_places() -> None:
    fake = Fake(bad_audio=["2"], bad_clip=["5", "6"], refused=["7"])
    results = list(fake.run([clip(str(i)) for i in range(9)]))
    assert [r.utterance.id for r in results] == [str(i) for i in range(9)]
    assert [i for i, r in enumerate(results) if r.failed] == [2, 5, 6, 7]
    assert results[2].error == "m.jsonl:2: no such file"
    assert results[5].error == "m.jsonl:5: RuntimeError: non-finite scores"
    assert results[7].error == "m.jsonl:7: too long for a slot"
    assert all(r.text_raw is None and r.seconds == 0 for r in results if r.failed)


def test_what_is_doubtful_stands_in_the_row_whatever_becomes_of_it() -> None:
    results = list(Fake(bad_clip=["1"], refused=["2"], doubtful=["0", "1", "2"]).run([clip(str(i)) for i in range(4)]))
    assert [r.row().get("warnings") for r in results] == [["0 is doubtful"], ["1 is doubtful"], ["2 is doubtful"], None]
    stale = Utterance(id="a", audio="a.wav", extra={"warnings": ["of another run"]})
    assert "warnings" not in Result(utterance=stale, text_raw="").row(), "an input's own are those of an earlier run"


def test_known_results_pass_through() -> None:
    known = Result(utterance=clip("known"), error="m.jsonl:3: not JSON")
    results = list(Fake().run([clip("a"), known, clip("long")]))
    assert [r.text_raw for r in results] == ["a", None, "long"]
    assert results[1] is known
    assert [r.finish_reason for r in results] == ["stop", None, "length"]


def test_a_memory_is_asked_first_and_told_in_order() -> None:
    class Kept:
        def __init__(self) -> None:
            self.asked: list[str] = []
            self.told: list[str] = []

        def find(self, clip: Utterance) -> Result | None:
            self.asked.append(clip.id)
            return Result(utterance=clip, text_raw="remembered", finish_reason="stop") if clip.id == "b" else None

        def keep(self, result: Result) -> None:
            self.told.append(result.utterance.id)

    fake, kept = Fake(bad_audio=("c",)), Kept()
    given = Result(utterance=clip("d"), error="known before")
    items = [clip("a", 30), clip("b"), clip("c"), given, clip("e", 3)]
    results = transcribe_stream(items, features=fake.features, decoder=fake, window=8, frames_per_second=100, memory=kept)
    for result in results:
        assert kept.told[-1:] == [result.utterance.id] or result.utterance.id in ("b", "d"), "told before it is handed on"
    assert kept.asked == ["a", "b", "c", "e"], "what is known already is not asked about"
    assert kept.told == ["a", "c", "e"]
    assert fake.loaded == 3


def test_a_lost_device_ends_the_run_instead_of_failing_every_clip() -> None:
    class Losing(Fake):
        def step(self) -> list[Outcome]:
            if any(name == "2" for _, name, _ in self.queue):
                raise DeviceLost("gone")
            return super().step()

    stream = Losing().run([clip(str(i)) for i in range(4)], window=1)
    assert [next(stream).text_raw, next(stream).text_raw] == ["0", "1"]
    with pytest.raises(DeviceLost):
        next(stream)


def test_an_interrupt_is_not_a_bad_clip() -> None:
    class Interrupted(Fake):
        def submit(self, utterance: Utterance, features: np.ndarray) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(Interrupted().run([clip("a")]))
