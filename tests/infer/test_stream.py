"""Windows, buckets and isolation, with functions in the place of audio and model."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from arkfast.infer.result import Result
from arkfast.infer.stream import DeviceLost, FinishReason, transcribe_stream
from arkfast.records import InputError, Utterance


def clip(name: str, frames: int = 10) -> Utterance:
    return Utterance(id=name, audio=np.zeros(frames, dtype=np.float32), where=f"m.jsonl:{name}")


class Fake:
    """Features of the length that an utterance asks for, a transcript that is its id, and a memory of the batches."""

    def __init__(self, bad_audio: Sequence[str] = (), bad_batch: Sequence[str] = (), memory: float = float("inf")) -> None:
        self.bad_audio, self.bad_batch, self.memory = bad_audio, bad_batch, memory
        self.batches: list[list[int]] = []
        self.loaded = 0

    def features(self, utterance: Utterance) -> np.ndarray:
        self.loaded += 1
        if utterance.id in self.bad_audio:
            raise InputError(f"{utterance.name}: no such file")
        return np.zeros((2, len(utterance.audio)), dtype=np.float32)

    def decode(self, utterances: Sequence[Utterance], features: Sequence[np.ndarray]) -> list[tuple[str, FinishReason]]:
        if len(features) * max(f.shape[1] for f in features) > self.memory:
            raise MemoryError("too much")
        for utterance in utterances:
            if utterance.id in self.bad_batch:
                raise RuntimeError("non-finite\nscores")
        self.batches.append([f.shape[1] for f in features])
        return [(u.id, "length" if u.id == "long" else "stop") for u in utterances]

    def run(self, items: Sequence[Utterance | Result] | Iterator[Utterance], batch_size: int = 4, window: int = 8) -> Iterator[Result]:
        return transcribe_stream(
            items, features=self.features, decode=self.decode, batch_size=batch_size, window=window, frames_per_second=100
        )


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (4, 8), (3, 7), (64, 1000), (5, 2)])
def test_order_and_results_do_not_depend_on_batches(batch_size: int, window: int) -> None:
    rng = np.random.default_rng(0)
    items = [clip(str(i), int(rng.integers(1, 100))) for i in range(23)]
    results = list(Fake().run(items, batch_size, window))
    assert [r.text_raw for r in results] == [str(i) for i in range(23)]
    assert [r.seconds for r in results] == [len(i.audio) / 100 for i in items]


def test_clips_of_similar_length_are_decoded_together() -> None:
    fake = Fake()
    list(fake.run([clip(str(i), frames) for i, frames in enumerate([9, 1, 8, 2, 7, 3, 6, 4])]))
    assert fake.batches == [[9, 8, 7, 6], [4, 3, 2, 1]]


def test_memory_is_bounded_by_the_window() -> None:
    fake = Fake()
    endless = (clip(str(i)) for i in itertools.count())
    first = list(itertools.islice(fake.run(endless), 3))
    assert [r.text_raw for r in first] == ["0", "1", "2"]
    assert fake.loaded == 8


def test_bad_clips_are_errors_in_their_places() -> None:
    fake = Fake(bad_audio=["2"], bad_batch=["5", "6"])
    results = list(fake.run([clip(str(i)) for i in range(9)]))
    assert [r.utterance.id for r in results] == [str(i) for i in range(9)]
    assert [i for i, r in enumerate(results) if r.failed] == [2, 5, 6]
    assert results[2].error == "m.jsonl:2: no such file"
    assert results[5].error == "m.jsonl:5: RuntimeError: non-finite scores"
    assert all(r.text_raw is None and r.seconds == 0 for r in results if r.failed)


def test_a_batch_too_large_for_memory_is_halved() -> None:
    fake = Fake(memory=25)
    assert not any(r.failed for r in fake.run([clip(str(i)) for i in range(8)]))
    assert {len(batch) for batch in fake.batches} == {2}


def test_known_results_pass_through() -> None:
    known = Result(utterance=clip("known"), error="m.jsonl:3: not JSON")
    results = list(Fake().run([clip("a"), known, clip("long")]))
    assert [r.text_raw for r in results] == ["a", None, "long"]
    assert results[1] is known
    assert [r.finish_reason for r in results] == ["stop", None, "length"]


def test_a_lost_device_ends_the_run_instead_of_failing_every_clip() -> None:
    def decode(utterances: Sequence[Utterance], features: Sequence[np.ndarray]) -> list[tuple[str, FinishReason]]:
        if utterances[0].id == "2":
            raise DeviceLost("gone")
        return [(u.id, "stop") for u in utterances]

    stream = transcribe_stream(
        [clip(str(i)) for i in range(4)], features=Fake().features, decode=decode, batch_size=1, window=1, frames_per_second=100
    )
    assert [next(stream).text_raw, next(stream).text_raw] == ["0", "1"]
    with pytest.raises(DeviceLost):
        next(stream)


def test_an_interrupt_is_not_a_bad_clip() -> None:
    def interrupted(utterance: Utterance) -> np.ndarray:
        raise KeyboardInterrupt

    stream = transcribe_stream([clip("a")], features=interrupted, decode=Fake().decode, batch_size=1, window=1, frames_per_second=100)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
