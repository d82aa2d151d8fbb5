"""Whole transcription in times real time by two clocks: ours, Transformers' ``generate`` as the original runs it, and others.

The mode "samples" is the clock of the Open ASR Leaderboard: from decoded samples to text, decoding of files left out. "flac", "wav" and
"mp3" are end to end: from files that no cache holds to text. Each provider is called once, on clips that it has not seen, after a few other
clips have warmed it up.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import engine_transcribe, recordings, speech
from harness.runner import main
from harness.suite import Provider, Row, Suite
from shapes import TOKENS_PER_SECOND, Shape, mixed_seconds, rtfx_shapes

from arkfast.infer.transcriber import Transcriber
from arkfast.models.arkasr.prompt import AUDIO
from arkfast.records import Utterance

CLOCKS = {"samples": "the leaderboard's clock, samples to text", "flac": "end to end, FLAC files to text",
          "wav": "end to end, WAV files to text", "mp3": "end to end, MP3 files to text"}  # fmt: skip
ORIGINAL_BATCH = 40
"""Clips that the original decodes together, in the order of the file."""
WARM = 8
OTHER = "ARKFAST_FASTER_WHISPER"
"""The variable that names the folder of a model for faster-whisper: nothing is fetched."""
Source = np.ndarray | Path


class Limited(Transcriber):
    """A transcriber whose transcripts have three ids for each second, since random weights never end one."""

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        return self.session.submit(utterance, features, max_new_tokens=limit(features.shape[1] / 100))


@dataclass(frozen=True)
class Given:
    """Clips as a provider gets them."""

    H: int
    device: torch.device
    sources: list[Source]
    """Samples or files, in no order."""
    seconds: list[float]
    ours: Limited
    folder: tempfile.TemporaryDirectory[str] | None = None
    """Of the files, which go with it."""


@dataclass(frozen=True)
class World:
    """What the shapes of one model share."""

    folder: tempfile.TemporaryDirectory[str]
    clips: list[np.ndarray]
    ours: Limited


def limit(seconds: float) -> int:
    """Ids of a clip's transcript."""
    return max(2, round(TOKENS_PER_SECOND * seconds))


@functools.lru_cache(maxsize=1)
def world(H: int, count: int, device: torch.device) -> World:
    """The checkpoint, the clips, and ours and the original's way warmed up on others."""
    # In memory where there is such a folder: three billion weights need not wait for a disk.
    shm = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="arkfast-rtfx-", dir=shm if device.type == "cuda" and shm.is_dir() else None)
    path = recordings.checkpoint(Path(folder.name) / "model", H, device)
    ours = Limited(path, device=device, cut_loops=False, max_tokens_per_second=0.0)
    seconds = mixed_seconds(H, count)
    few = recordings.signals(seconds[:WARM], seed=1)
    transcribed(ours, few)
    generated(H, ours, few)
    return World(folder, recordings.signals(seconds), ours)


def inputs(shape: Shape, device: torch.device, seed: int) -> Given:
    here, codec = world(shape.H, shape.B, device), str(shape.mode)
    seconds = mixed_seconds(shape.H, shape.B)
    if codec == "samples":
        return Given(shape.H, device, list(here.clips), seconds, here.ours)
    folder = tempfile.TemporaryDirectory(prefix=f"arkfast-{codec}-")
    return Given(shape.H, device, list(recordings.written(Path(folder.name), here.clips, codec)), seconds, here.ours, folder)


def transcribed(transcriber: Limited, sources: Sequence[Source]) -> list[str | None]:
    """The texts by ours, in the order of ``sources``; None for a clip without one of full length."""
    clips = (Utterance(id=str(i), audio=one if isinstance(one, np.ndarray) else str(one)) for i, one in enumerate(sources))
    rows = list(transcriber(clips))
    return [row["pred_text_raw"] if row["finish_reason"] == "length" else None for row in rows]


def ours(x: Given) -> list[str | None]:
    """In the order in which the clips came."""
    cold(x)
    return transcribed(x.ours, x.sources)


def ours_sorted(x: Given) -> list[str | None]:
    """The longest clips first."""
    cold(x)
    order = sorted(range(len(x.sources)), key=lambda i: -x.seconds[i])
    texts = dict(zip(order, transcribed(x.ours, [x.sources[i] for i in order]), strict=True))
    return [texts[i] for i in range(len(order))]


def cold(x: Given) -> None:
    """Have no cache hold a file."""
    recordings.forget([one for one in x.sources if isinstance(one, Path)])


def original(x: Given) -> list[str | None]:
    """As the original's script: batches in the order of the file, each read, made features of and decoded before the next."""
    cold(x)
    return generated(x.H, x.ours, x.sources)


@torch.no_grad()
def generated(H: int, ours: Limited, sources: Sequence[Source]) -> list[str | None]:
    """The texts by ``generate``, with the prompts and on the device of ours; None for a clip whose transcript has another length than it
    should."""
    device, interface = ours.device, ours.interface
    model, words, extract, prompt = speech.model(H, device), interface.tokenizer, extractor(), interface.prompt("asr")
    placeholder = words.get_vocab()[AUDIO]
    run, found = engine_transcribe.generator(model, H), list[str | None]()
    for batch in (sources[i : i + ORIGINAL_BATCH] for i in range(0, len(sources), ORIGINAL_BATCH)):
        clips = [one if isinstance(one, np.ndarray) else recordings.read(one) for one in batch]
        frames = [len(one) // 160 for one in clips]
        features = extract(clips, sampling_rate=16_000, padding="longest", truncation=False, return_tensors="pt").input_features
        ids = [prompt.ids(n, Utterance(id="", audio=None)) for n in frames]
        ids = [[model.config.audio_token_id if one == placeholder else one for one in row] for row in ids]
        given = speech.batch(features[:, :, : max(frames)].to(device), frames, ids)
        limits = [limit(n / 100) for n in frames]
        new = run(given.mel, *speech.left_padded(given, model.config.pad_token_id), limits)
        lens = (new != model.config.pad_token_id).sum(1).tolist()
        texts = words.batch_decode(new, skip_special_tokens=True)
        found += [text if n == wanted else None for text, n, wanted in zip(texts, lens, limits, strict=True)]
    return found


@functools.lru_cache(maxsize=1)
def extractor() -> Any:
    """The original's features."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=speech.N_MELS)


def others(x: Given) -> list[str | None]:
    """faster-whisper's batched pipeline, one file after the other."""
    cold(x)
    pipeline = faster_whisper(os.environ[OTHER], x.device)
    found: list[str | None] = []
    for one in x.sources:
        segments, _ = pipeline.transcribe(one if isinstance(one, np.ndarray) else str(one), batch_size=16, language="en")
        found.append(" ".join(segment.text for segment in segments))
    return found


@functools.lru_cache(maxsize=1)
def faster_whisper(folder: str, device: torch.device) -> Any:
    """The pipeline of a model, warm."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    made = BatchedInferencePipeline(
        model=WhisperModel(folder, device=device.type, compute_type="float16" if device.type == "cuda" else "int8")
    )
    list(made.transcribe(recordings.signals([2.0], seed=2)[0], batch_size=16, language="en")[0])
    return made


def oracle(shape: Shape, x: Given) -> dict[int, str | None]:
    """The longest clip's text by ``generate`` alone, which no batch pads; none in bfloat16, where a rounding decides between near ids, and
    none of a lossy file, which two decoders need not read alike."""
    if speech.data_type(x.device) != torch.float32 or shape.mode == "mp3":
        return {}
    longest = max(range(len(x.seconds)), key=x.seconds.__getitem__)
    return {longest: generated(x.H, x.ours, [x.sources[longest]])[0]}


def check(x: Given, texts: list[str | None], oracle: dict[int, str | None]) -> str | None:
    """Every clip has a transcript as long as it should be, and that of the longest is right."""
    if len(texts) != len(x.sources) or None in texts:
        return f"{sum(text is not None for text in texts)} of {len(x.sources)} clips have a transcript of the right length"
    # The last id ends a transcript of generate's and is one more word of ours; bytes before it may be no whole character.
    wrong = [i for i, text in oracle.items() if text is None or not str(texts[i]).startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))]
    return f"clip {wrong[0]}: another text than generate gives for it alone" if wrong else None


def answered(x: Given, texts: list[str | None], oracle: dict[int, str | None]) -> str | None:
    """Another model's texts are its own; that there is one for each clip is all that is looked at."""
    return None if len(texts) == len(x.sources) else f"{len(texts)} texts for {len(x.sources)} clips"


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = [
        Provider(name="ours", run=ours, check=check, ours=True, note="in the order in which clips come"),
        Provider(name="ours, sorted", run=ours_sorted, check=check, ours=True, note="longest clips first"),
        Provider(
            name="generate", run=original, check=check, note=f"as the original: batches of {ORIGINAL_BATCH} in order, one after the other"
        ),
    ]
    if os.environ.get(OTHER) and importlib.util.find_spec("faster_whisper") is not None:
        found.append(Provider(name="faster-whisper", run=others, check=answered, note="another model, batches of 16"))
    return found


def columns(shape: Shape, row: Row) -> Row:
    """Times real time, and by which clock."""
    audio = sum(mixed_seconds(shape.H, shape.B))
    speed = audio / row["seconds"]["p50"]
    said = f"{speed:,.0f} times real time ({CLOCKS[str(shape.mode)]}; {shape.B} clips, {audio:,.0f} s)"
    return {"x_real_time": speed, "note": "; ".join([said, row["note"]])}


SUITE = Suite(
    name="rtfx",
    shapes=rtfx_shapes,
    inputs=inputs,
    set_bytes=lambda shape: 0,
    oracle=oracle,
    providers=providers,
    work=engine_transcribe.work,
    ceilings=(),
    baseline="generate",
    columns=columns,
    queued=False,
    once=True,
)


if __name__ == "__main__":
    main(SUITE)
