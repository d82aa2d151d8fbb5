"""How far the times of words are from where the words are: synthetic speech whose word times are known exactly.

Twenty English words and digits are spoken one by one by espeak-ng, cut to their sound and laid one behind the other, with pauses of 0
to 0.3 s in noise. A model of the quickstart's size is trained on such clips for ``--model_steps``, then a head on the frozen model for
``--head_steps`` (``arkfast train``, stages sft and ctc_head, from the transcripts alone). Test clips have other words in a row, voices and
noise. The error of a time is its distance from the truth; starts and ends are counted alike.

    python benchmarks/bench_word_times.py
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arkfast.align import Aligner, load_head
from arkfast.audio import LogMel
from arkfast.data.collate import features_of
from arkfast.models import load_model
from arkfast.models.arkasr.new import build_tokenizer, new_checkpoint
from arkfast.quickstart.arms import INITIALIZER_RANGE, STUDENT_SIZE, VOCAB_SIZE
from arkfast.quickstart.speech import SAMPLE_RATE, Line, Synthesizer
from arkfast.testing import write_wav
from arkfast.train.command import main as train

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "monday", "tuesday", "red", "yellow", "window",
         "garden", "people", "music", "letter", "mountain")  # fmt: skip
VOICES = {"train": ("en-us+m1", "en-us+f2", "en-gb+m3", "en-gb+f3"), "test": ("en-us+m4", "en-gb+f4")}
MARGIN = round(0.05 * SAMPLE_RATE)
"""What the synthesizer leaves around a word's sound."""


class Clip(NamedTuple):
    """Speech and its truth."""

    samples: np.ndarray
    text: str
    times: list[tuple[float, float]]


def clips(split: str, count: int, seed: int = 0) -> list[Clip]:
    """``count`` clips of four to eight words; ``split`` decides the voices and all draws."""
    synthesizer = Synthesizer()
    lines = [Line(word, voice, rate) for voice in VOICES[split] for rate in (150, 190) for word in WORDS]
    spoken = [sound[MARGIN:-MARGIN] for sound in synthesizer.speak_lines(lines)]
    by_style = [spoken[at : at + len(WORDS)] for at in range(0, len(spoken), len(WORDS))]
    draw, noise = random.Random(f"{seed} {split}"), np.random.default_rng([seed, len(split)])
    made = []
    for _ in range(count):
        style = draw.choice(by_style)
        parts, times, at = [], [], 0
        chosen = [draw.randrange(len(WORDS)) for _ in range(draw.randint(4, 8))]
        for number in chosen:
            pause = draw.choice((0.0, draw.uniform(0.02, 0.3)))
            parts += [np.zeros(round(pause * SAMPLE_RATE), dtype=np.float32), style[number]]
            begin = at + len(parts[-2])
            at = begin + len(style[number])
            times.append((begin / SAMPLE_RATE, at / SAMPLE_RATE))
        parts.append(np.zeros(round(0.2 * SAMPLE_RATE), dtype=np.float32))
        samples = np.concatenate(parts)
        samples = 0.5 * samples / np.abs(samples).max() + 0.002 * noise.standard_normal(len(samples))
        made.append(Clip(samples.astype(np.float32), " ".join(WORDS[number] for number in chosen), times))
    return made


def write_manifest(folder: Path, some: list[Clip]) -> Path:
    """The clips as files with a manifest."""
    folder.mkdir(parents=True)
    rows = []
    for number, clip in enumerate(some):
        path = write_wav(folder / f"{number:05}.wav", clip.samples)
        rows.append(json.dumps({"audio": str(path), "text": clip.text, "duration": len(clip.samples) / SAMPLE_RATE}))
    manifest = folder / "rows.jsonl"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def run_train(**flags: object) -> None:
    """``arkfast train``; it must end well."""
    common = {"device": "cpu", "num_threads": 1, "dataloader_num_workers": 0, "feature_cache_mb": 2048, "lr_scheduler_type": "cosine",
              "per_device_train_batch_size": 16, "adam_beta2": 0.98}  # fmt: skip
    code = train([word for name, value in {**common, **flags}.items() for word in (f"--{name}", str(value))])
    if code:
        raise SystemExit(code)


def measure(folder: Path, *, train_clips: int, test_clips: int, model_steps: int, head_steps: int) -> list[float]:
    """Seconds between each found start or end of a word and the true one, over all test clips."""
    known = clips("train", train_clips)
    manifest = write_manifest(folder / "train", known)
    tokenizer = build_tokenizer([clip.text for clip in known], vocab_size=VOCAB_SIZE)
    model_folder = new_checkpoint(folder / "new", tokenizer, seed=1, initializer_range=INITIALIZER_RANGE, **STUDENT_SIZE)
    if model_steps:
        run_train(
            stage="sft", student_model=model_folder, train_data=manifest, output_dir=folder / "model", max_steps=model_steps,
            learning_rate=2e-3, ctc_weight=0.5, warmup_steps=50, asr_opd_max_new_tokens=64,
        )  # fmt: skip
        model_folder = folder / "model" / "last"
    run_train(
        stage="ctc_head", student_model=model_folder, train_data=manifest, output_dir=folder / "head", max_steps=head_steps, warmup_steps=20
    )
    model = load_model(model_folder)
    device = model.lm_head.weight.device
    head = load_head(folder / "head", checkpoint=model_folder, hidden_size=model.config.hidden_size, device=device)
    log_mel = LogMel(128)
    test = clips("test", test_clips)
    found = Aligner(model, head)([features_of(clip.samples, log_mel, clip.text) for clip in test], [clip.text for clip in test])
    errors = []
    for clip, words in zip(test, found, strict=True):
        if isinstance(words, str):
            raise RuntimeError(words)
        for word, (start, end) in zip(words, clip.times, strict=True):
            errors += [abs(word.start - start), abs(word.end - end)]
    return errors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_clips", type=int, default=400)
    parser.add_argument("--test_clips", type=int, default=60)
    parser.add_argument("--model_steps", type=int, default=400, help="0 leaves the model at its random weights")
    parser.add_argument("--head_steps", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        errors = measure(Path(folder), **vars(given))
    milliseconds = 1000 * np.array(errors)
    print(
        f"{len(errors)} starts and ends of words: median error {np.median(milliseconds):.0f} ms, "
        f"95th percentile {np.percentile(milliseconds, 95):.0f} ms"
    )


if __name__ == "__main__":
    main()
