"""Stage ctc_head: what its loss is, that it goes on where it was stopped, what it refuses, and how well words are placed."""

import itertools
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from arkfast.align import CtcHead, HeadConfig, load_head
from arkfast.align.head import SETTINGS, WEIGHTS
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.command import main
from arkfast.train.config import TrainConfig
from arkfast.train.ctc_head import STATE, CtcHeadRun, ctc_loss
from arkfast.train.stop import Interrupted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(6):
        path = write_wav(folder / f"{number}.wav", synthetic_speech(1 + 0.2 * number, seed=number))
        rows.append(json.dumps({"audio": str(path), "text": f"Word number {'abcdef'[number]}!"}) + "\n")
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(rows), encoding="utf-8")
    return tiny_checkpoint(folder / "tiny"), manifest


def config(data: tuple[Path, Path], output: Path, **more: object) -> TrainConfig:
    given = {"max_steps": 4, "per_device_train_batch_size": 2, "device": "cpu", "dataloader_num_workers": 0, "quiet": True, **more}
    return TrainConfig(stage="ctc_head", student_model=data[0], train_data=data[1], output_dir=output, **given)  # type: ignore[arg-type]


def test_the_loss_and_its_gradient_are_those_of_all_alignments() -> None:
    torch.manual_seed(0)
    head = CtcHead(HeadConfig(hidden_size=4, width=4, frames_per_embedding=8, units=("a", "b"), weights=""))
    head.log_prior.copy_(torch.tensor([0.6, 0.1, 0.2, 0.1]).log())
    logits = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    steps, units, counts = torch.tensor([5, 4, 2]), torch.tensor([[2, 3], [2, 2], [3, 3]]), torch.tensor([2, 2, 2])

    def by_definition() -> torch.Tensor:
        scores, total = head.scores(logits.log_softmax(-1)), torch.zeros((), dtype=torch.float64)
        for row in range(2):  # the third has no step between its equal units
            ids, paths = units[row].tolist(), []
            for path in itertools.product(range(4), repeat=int(steps[row])):
                if [unit for unit, _ in itertools.groupby(path) if unit] == ids:
                    paths.append(sum(scores[row, t, unit] for t, unit in enumerate(path)))
            total = total - torch.stack(paths).logsumexp(0)
        return total

    loss, short = ctc_loss(head, logits.log_softmax(-1), steps, units, counts)
    assert int(short) == 1
    expected = by_definition()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_a_run_that_was_stopped_ends_as_one_that_was_not(data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CtcHeadRun(config(data, tmp_path / "whole")).run()
    run, step = CtcHeadRun(config(data, tmp_path / "cut")), CtcHeadRun._one_step

    def killed(self: CtcHeadRun, *arguments: object, **options: object) -> str:
        if self._step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(CtcHeadRun, "_one_step", killed)
        with pytest.raises(Interrupted, match="step 2 of 4 saved"):
            run.run()
    assert not (tmp_path / "cut" / WEIGHTS).exists()
    with pytest.raises(InputError, match="belongs to a run of other seed"):
        CtcHeadRun(config(data, tmp_path / "cut", resume_from_checkpoint="auto", seed=2))
    CtcHeadRun(config(data, tmp_path / "cut", resume_from_checkpoint="auto")).run()
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert not (tmp_path / "cut" / STATE).exists()
    load_head(tmp_path / "cut", checkpoint=data[0], hidden_size=48, device=torch.device("cpu"))
    settings = json.loads((tmp_path / "cut" / SETTINGS).read_text(encoding="utf-8"))
    assert (settings["frames_per_embedding"], settings["upsample"]) == (8, 4)
    assert set(settings["units"]) == set("wordnumberabcdef")


def test_a_run_that_goes_on_knows_the_rows_that_it_passed_over(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no recording")
    manifest = tmp_path / "rows.jsonl"
    bad = json.dumps({"audio": str(tmp_path / "bad.wav"), "text": "Word"}) + "\n"
    manifest.write_text(data[1].read_text(encoding="utf-8") + bad, encoding="utf-8")
    more = {"on_bad_audio": "skip:1", "per_device_train_batch_size": 7, "max_steps": 3}  # every step meets the bad row
    run, step = CtcHeadRun(config((data[0], manifest), tmp_path / "cut", **more)), CtcHeadRun._one_step

    def killed(self: CtcHeadRun, *arguments: object, **options: object) -> str:
        if self._step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(CtcHeadRun, "_one_step", killed)
        with pytest.raises(Interrupted):
            run.run()
    assert run._skipped == 2
    again = CtcHeadRun(config((data[0], manifest), tmp_path / "cut", resume_from_checkpoint="auto", **more))
    assert again._skipped == 2
    again.run()
    assert again._skipped == 3


def test_what_has_no_effect_is_refused(data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        ({"lora_rank": 4}, "--lora_rank: stage ctc_head"),
        ({"eval_data": data[1]}, "--eval_data"),
        ({"calibrate_only": True}, "--calib"),
    ):
        with pytest.raises(InputError, match=said):
            CtcHeadRun(config(data, tmp_path / "no", **more))
    with pytest.raises(InputError, match="is not there; leave the flag out"):
        CtcHeadRun(config(data, tmp_path / "no", resume_from_checkpoint="latest"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text(data[1].read_text(encoding="utf-8").replace("Word number", "…").replace("!", ""), encoding="utf-8")
    rows = [json.loads(line) | {"text": "…"} for line in empty.read_text(encoding="utf-8").splitlines()]
    empty.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = [
        "--stage",
        "ctc_head",
        "--student_model",
        str(data[0]),
        "--train_data",
        str(empty),
        "--output_dir",
        str(tmp_path / "no"),
        "--device",
        "cpu",
    ]
    with pytest.raises(InputError, match="no text has a letter or a number"):
        main(flags)


@pytest.mark.slow
def test_words_are_where_they_were_spoken(tmp_path: Path) -> None:
    """Bound at toy size: four tones for four letters, a model of random weights. The figures of real words are in docs/inference.md."""
    from arkfast.align import Aligner
    from arkfast.audio import LogMel
    from arkfast.data.collate import features_of
    from arkfast.models import load_model

    def clip(rng: np.random.Generator) -> tuple[np.ndarray, str, list[tuple[float, float]]]:
        letters, times, parts, at = [], [], [], 0
        for _ in range(6):
            letter = int(rng.integers(4))
            pause, length = int(rng.integers(1600, 6400)), int(rng.integers(2400, 6400))
            time = np.arange(length) / 16000
            tone = 0.3 * sum(np.sin(2 * np.pi * (300 + 700 * letter) * k * time) / k for k in (1, 2, 3))
            parts += [np.zeros(pause), tone]
            times.append(((at + pause) / 16000, (at + pause + length) / 16000))
            at += pause + length
            letters.append("abcd"[letter])
        samples = np.concatenate([*parts, np.zeros(3200)])
        return (samples + 0.002 * rng.standard_normal(len(samples))).astype(np.float32), " ".join(letters), times

    rng = np.random.default_rng(0)
    rows = []
    for number in range(64):
        samples, text, _ = clip(rng)
        rows.append(json.dumps({"audio": str(write_wav(tmp_path / f"{number}.wav", samples)), "text": text}) + "\n")
    manifest = tmp_path / "tones.jsonl"
    manifest.write_text("".join(rows), encoding="utf-8")
    model = tiny_checkpoint(tmp_path / "wide", initializer_range=0.1)
    more = {"max_steps": 300, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20}
    CtcHeadRun(config((model, manifest), tmp_path / "head", **more, num_threads=1, feature_cache_mb=256)).run()
    head = load_head(tmp_path / "head", checkpoint=model, hidden_size=48, device=torch.device("cpu"))
    test = [clip(rng) for _ in range(12)]
    log_mel = LogMel(128)
    found = Aligner(load_model(model), head)([features_of(samples, log_mel, "") for samples, _, _ in test], [text for _, text, _ in test])
    errors = []
    for (_, _, times), words in zip(test, found, strict=True):
        assert not isinstance(words, str)
        errors += [abs(a - b) for word, (start, end) in zip(words, times, strict=True) for a, b in ((word.start, start), (word.end, end))]
    print(f"median {1000 * np.median(errors):.0f} ms, 95th percentile {1000 * np.percentile(errors, 95):.0f} ms")
    assert np.median(errors) < 0.08
    assert np.percentile(errors, 95) < 0.3
    assert math.isfinite(max(errors))
