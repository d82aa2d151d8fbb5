"""Recordings that are longer than a clip: cut at quiet places, transcribed among the others, joined, and nothing of them lost."""

import itertools
import json
import resource
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from arkfast import Transcriber
from arkfast.audio import load, reading
from arkfast.data.collate import read_clip
from arkfast.infer.long import Splitter, Vad, transcribe_long
from arkfast.infer.long.cuts import LEAST_SHARE, REST_SHARE, Cutter, Frames
from arkfast.infer.long.judges import ENERGY_FRAME, Energy
from arkfast.infer.long.texts import join_texts
from arkfast.infer.result import Result
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint

RATE = 16000
LIMIT = 30.0


def speech_with_pauses(seconds: float, *, pause: float = 0.5, seed: int = 0) -> NDArray[np.float32]:
    """Utterances of 2 to 6 s with faint noise between them."""
    rng = np.random.default_rng(seed)
    parts: list[NDArray[np.float32]] = []
    while sum(map(len, parts)) < seconds * RATE:
        spoken = synthetic_speech(float(rng.uniform(2, 6)), seed=int(rng.integers(1 << 30)))
        parts += [spoken, rng.normal(0, 3e-4, round(pause * RATE)).astype(np.float32)]
    return np.concatenate(parts)[: round(seconds * RATE)]


def write(path: Path, samples: NDArray[np.float32], rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def pieces_of(utterance: Utterance, vad: Vad = "energy", longest: float = LIMIT) -> list[tuple[float, float]]:
    return [(piece.begin, piece.end) for piece in Splitter(vad, longest).pieces(utterance, tell=[])]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("audio") / "talk.wav", speech_with_pauses(180))


def transcribed(items: Iterable[Utterance | Result]) -> Iterator[Result]:
    """A stand-in for a model: the text is the clip's length in samples."""
    for item in items:
        if isinstance(item, Result):
            yield item
            continue
        try:
            clip = read_clip(item, max_seconds=LIMIT).samples
        except InputError as error:
            yield Result(utterance=item, error=str(error))
        else:
            yield Result(utterance=item, text_raw=f"n{len(clip)}", finish_reason="stop", seconds=len(clip) / RATE)


def run(items: Iterable[Utterance | Result], splitter: Splitter | None = None) -> list[Result]:
    return list(transcribe_long(items, transcribe=transcribed, splitter=splitter or Splitter("energy", LIMIT)))


# Where cuts fall


def test_cuts_stand_in_pauses_and_clips_cover_the_recording(talk: Path) -> None:
    pieces = pieces_of(Utterance(id="talk", audio=str(talk)))
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 180
    assert [a[1] for a in pieces[:-1]] == [b[0] for b in pieces[1:]], "faint noise is heard, so nothing is left out"
    assert all(end - begin <= LIMIT for begin, end in pieces)
    assert all(end - begin >= LEAST_SHARE * LIMIT for begin, end in pieces[:-1])
    assert pieces[-1][1] - pieces[-1][0] >= REST_SHARE * LIMIT
    samples = load(talk)
    for _, end in pieces[:-1]:
        around = samples[round((end - 0.1) * RATE) : round((end + 0.1) * RATE)]
        assert np.abs(around).max() < 2e-3, f"speech stands at {end} s"


@pytest.mark.parametrize("seed", range(20))
def test_no_frame_in_which_something_is_heard_is_lost_or_heard_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30_000))
    heard = np.repeat(rng.random(count // 200 + 1) < 0.4, 200)[:count]
    level = rng.uniform(-60, 0, count).astype(np.float32)
    cutter = Cutter(0.01, LIMIT)
    clips: list[tuple[int, int]] = []
    at = 0
    while at < count:
        step = int(rng.integers(1, 3000))
        clips += cutter.push(Frames(level[at : at + step], heard[at : at + step]))
        at += step
    clips += cutter.finish()
    covered = np.zeros(count, dtype=int)
    for begin, end in clips:
        assert 0 <= begin < end <= count
        assert end - begin <= LIMIT / 0.01
        covered[begin:end] += 1
    assert covered.max(initial=0) <= 1
    assert covered[heard].all()
    assert [begin for begin, _ in clips] == sorted(begin for begin, _ in clips)


def test_clips_do_not_depend_on_the_pieces_in_which_the_recording_comes(talk: Path) -> None:
    whole = load(talk)
    level, heard = Energy()(whole)
    at_once = Cutter(ENERGY_FRAME / RATE, LIMIT)
    found = at_once.push(Frames(level, heard)) + at_once.finish()
    assert [(a / 100, b / 100) for a, b in found] == pieces_of(Utterance(id="x", audio=str(talk)))


def test_what_is_read_in_pieces_is_what_load_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.repeat(synthetic_speech(20, seed=1), 3), 48000)
    with reading(path, begin=1.5, end=18.25) as opened:
        pieces = list(opened)
        assert (opened.seconds, opened.seeks, opened.warnings()) == (20.0, True, ())
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), load(path, begin=1.5, end=18.25))


# Silence


def test_a_recording_of_silence_has_an_empty_transcript_that_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "silence.wav", np.zeros(90 * RATE, dtype=np.float32))
    (result,) = run([Utterance(id="s", audio=str(path))])
    row = result.row()
    assert (row["status"], row["pred_text"], row["segments"], row["vad"]) == ("ok", "", [], "energy")
    assert row["warnings"] == [
        "digital silence: every sample is 0",
        "nothing in the recording is above −80 dB of full scale, so nothing was transcribed",
    ]


def test_digital_silence_at_the_ends_and_between_is_left_out_but_for_a_moment(tmp_path: Path) -> None:
    zeros = np.zeros(60 * RATE, dtype=np.float32)
    path = write(tmp_path / "gaps.wav", np.concatenate([zeros, synthetic_speech(4, seed=1), zeros, synthetic_speech(5, seed=2), zeros]))
    pieces = pieces_of(Utterance(id="g", audio=str(path)))
    assert len(pieces) == 2
    for (begin, end), (first, last) in zip(pieces, [(60, 64), (124, 129)], strict=True):
        assert first - 0.31 <= begin <= first + 0.05
        assert last - 0.5 <= end <= last + 0.31


# Which rows are cut


def test_only_rows_over_the_limit_are_cut_and_order_is_kept(talk: Path) -> None:
    short = Utterance(id="short", audio=str(talk), begin=10, end=20)
    failed = Result(utterance=Utterance(id="bad", audio=""), error="known")
    items = [short, Utterance(id="long", audio=str(talk)), failed, Utterance(id="part", audio=str(talk), begin=50, end=100.5), short]
    results = run(items)
    assert [result.utterance.id for result in results] == ["short", "long", "bad", "part", "short"]
    assert [result.vad for result in results] == [None, "energy", None, "energy", None]
    assert results[2] is failed
    starts = [(segment["start"], segment["end"]) for segment in results[3].segments]
    assert (starts[0][0], starts[-1][1]) == (50, 100.5)
    assert results[1].seconds == pytest.approx(180)


def test_without_a_splitter_a_long_recording_is_an_error_as_before(talk: Path) -> None:
    (result,) = run([Utterance(id="long", audio=str(talk), where="m.jsonl:1")], Splitter("none", LIMIT))
    assert result.vad is None
    assert result.error == f"m.jsonl:1: {talk}: 180 s of audio, over the limit of 30 s: split it into segments"


def test_a_duration_well_below_the_limit_saves_the_opening(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("arkfast.infer.long.split.audio.extent", opened)
    splitter = Splitter("energy", LIMIT)
    assert not splitter.is_long(Utterance(id="a", audio=str(talk), extra={"duration": 12.0}))
    assert splitter.is_long(Utterance(id="a", audio=str(talk), begin=0, end=31))
    with pytest.raises(AssertionError, match="opened"):
        splitter.is_long(Utterance(id="a", audio=str(talk), extra={"duration": 29.9}))


def test_samples_in_memory_are_cut_too() -> None:
    samples = speech_with_pauses(70, seed=3)
    (result,) = run([Utterance(id="m", audio=samples)])
    assert len(result.segments) >= 3
    assert (result.segments[0]["start"], result.segments[-1]["end"]) == (0, 70)


def test_what_is_decoded_from_its_start_hands_on_samples_that_equal_the_segments(talk: Path, tmp_path: Path) -> None:
    """A member of a tar file, which would be read whole for every clip."""
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(talk, "talk.wav")
    member = Utterance(id="t", audio=f"{tmp_path / 'shard.tar'}::talk.wav", begin=3.0, end=100.0)
    by_samples = list(Splitter("energy", LIMIT).pieces(member, tell=[]))
    by_times = list(Splitter("energy", LIMIT).pieces(replace(member, audio=str(talk)), tell=[]))
    assert len(by_times) >= 4
    for one, other in zip(by_samples, by_times, strict=True):
        assert (one.begin, one.end, one.utterance.id) == (other.begin, other.end, other.utterance.id)
        assert isinstance(one.utterance.audio, np.ndarray)
        assert isinstance(other.utterance.audio, str)
        np.testing.assert_array_equal(read_clip(one.utterance).samples, read_clip(other.utterance).samples)


def test_a_clip_without_transcript_fails_the_row_and_keeps_the_others(talk: Path) -> None:
    def third_fails(items: Iterable[Utterance | Result]) -> Iterator[Result]:
        for number, result in enumerate(transcribed(items)):
            name = result.utterance.name
            yield Result(utterance=result.utterance, error=f"{name}: RuntimeError: no") if number == 2 else result

    (result,) = transcribe_long([Utterance(id="t", audio=str(talk))], transcribe=third_fails, splitter=Splitter("energy", LIMIT))
    begin, end = result.segments[2]["start"], result.segments[2]["end"]
    assert result.error == f"t: the stretch from {begin:.2f} to {end:.2f} s has no transcript: RuntimeError: no"
    assert [segment["text"] is None for segment in result.segments] == [n == 2 for n in range(len(result.segments))]
    assert result.row()["pred_text"] is None


def test_a_recording_that_breaks_off_fails_and_keeps_what_was_before(tmp_path: Path) -> None:
    path = tmp_path / "nan.wav"
    samples = speech_with_pauses(100, seed=4)
    samples[95 * RATE] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    (result,) = run([Utterance(id="n", audio=str(path), where="m.jsonl:4")])
    assert result.error == f"m.jsonl:4: {path}: NaN or infinite sample at 95.000 s: the recording is damaged, export it again"
    assert len(result.segments) >= 1
    assert all(segment["text"] for segment in result.segments)


# Joining


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["hello there", "General"], "hello there General"),
        (["今天天气", "很好"], "今天天气很好"),
        (["今天天气很好。", "我们走吧"], "今天天气很好。我们走吧"),
        (["これは", "テストです"], "これはテストです"),
        (["我在用", "Python 写"], "我在用 Python 写"),
        (["说完了。", "Then he left"], "说完了。Then he left"),
        (["他说“好”", "然后走了"], "他说“好”然后走了"),
        (["안녕하세요", "여러분"], "안녕하세요 여러분"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["", " one ", "", "two"], "one two"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_their_script_is_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


# Silero


def test_silero_without_its_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(InputError, match=r"^--vad silero needs the package silero-vad, pip install .*; --vad energy needs none$"):
        Splitter("silero", LIMIT)


def test_silero_chooses_by_its_probabilities_and_leaves_threads_as_they_are(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the network that takes loudness for speech; the package sets one thread, as this one does."""

    class Network:
        def audio_forward(self, samples: torch.Tensor, rate: int) -> torch.Tensor:
            assert (rate, samples.shape[0], samples.shape[1] % 512) == (RATE, 1, 0)
            return (samples.reshape(1, -1, 512).abs().amax(dim=2) > 0.02).float()

    def package() -> Network:
        torch.set_num_threads(1)
        return Network()

    monkeypatch.setitem(sys.modules, "silero_vad", SimpleNamespace(load_silero_vad=package))
    before = torch.get_num_threads()
    pieces = pieces_of(Utterance(id="t", audio=str(talk)), "silero")
    assert torch.get_num_threads() == before
    assert len(pieces) >= 6
    assert all(0 < end - begin <= LIMIT for begin, end in pieces)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(pieces))


# With a model


def test_three_minutes_have_the_texts_of_their_segments_alone(talk: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    transcriber = Transcriber(model, device="cpu", max_new_tokens=6, batch_size=4, vad="energy")
    (row,) = transcriber([Utterance(id="talk", audio=str(talk))])
    segments = row["segments"]
    assert len(segments) >= 6
    assert all(a["start"] < a["end"] <= b["start"] for a, b in itertools.pairwise(segments))
    alone = list(transcriber(Utterance(id=str(n), audio=str(talk), begin=s["start"], end=s["end"]) for n, s in enumerate(segments)))
    assert [segment["text"] for segment in segments] == [other["pred_text"] for other in alone]
    assert all("segments" not in other for other in alone)
    assert row["pred_text"] == join_texts(other["pred_text"] for other in alone)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.slow
def test_two_hours_take_no_more_memory_than_ten_minutes(tmp_path: Path) -> None:
    minute = speech_with_pauses(60, seed=5)

    def recording(name: str, minutes: int) -> Utterance:
        path = tmp_path / name
        with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
            for _ in range(minutes):
                file.write(minute)
        return Utterance(id=name, audio=str(path))

    short, long = recording("short.wav", 10), recording("long.wav", 120)
    run([short])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (result,) = run([long])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert result.seconds == pytest.approx(7200)
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(result.segments))
    assert grown < 20, f"{grown:.0f} MB more, and its samples alone would take 460 MB"
