"""Qwen3's forced aligner as --aligner: its times are those of Transformers' own classes, and rows have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ASRConfig, Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from arkfast.align.qwen3 import Qwen3Aligner
from arkfast.audio import LogMel
from arkfast.infer import Transcriber, session
from arkfast.infer.command import main
from arkfast.infer.words import weights_of_head
from arkfast.models.qwen3_asr import aligning
from arkfast.models.qwen3_asr.aligning import is_aligner, load_aligner
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav

TEXTS = ("One, two three.", "It's 3.50 — the quick-brown fox!", "请转写 two 段。", "…", "zero")
WORDS = (["One", "two", "three"], ["It's", "350", "the", "quickbrown", "fox"], ["请", "转", "写", "two", "段"], [], ["zero"])
SECONDS = (2.0, 3.37, 9.2, 1.0, 0.4)
SOME = (0, 1, 2)
"""Clips with words that are long enough for the processor, which pads others to half a second as nobody else does."""
CPU = torch.device("cpu")


class World:
    """A tiny aligner in both layouts, and Transformers' own classes filled from it."""

    def __init__(self, root: Path) -> None:
        asr = tiny_qwen3_asr(root / "asr", seed=3)
        self.folder, self.first, self.ark = root / "aligner", root / "first", tiny_checkpoint(root / "ark")
        config = Qwen3ASRConfig.from_pretrained(asr)
        config.num_labels = 40
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Qwen3ASRForTokenClassification(config).eval()
        self.processor: Any = Qwen3ASRProcessor.from_pretrained(asr)
        self.mark = self.processor.tokenizer.convert_tokens_to_ids("<timestamp>")
        self.clips = [synthetic_speech(seconds, seed=i) for i, seconds in enumerate(SECONDS)]
        self._tell_marks_apart()
        for folder in (self.folder, self.first):
            shutil.copytree(asr, folder)
            (folder / "model.safetensors").unlink()
        self.model.save_pretrained(self.folder)
        self._write_first_layout(tiny_qwen3_asr(root / "old", seed=3, layout="first"))

    @torch.no_grad()
    def _tell_marks_apart(self) -> None:
        """Take out of the head what all marks have in common, which would give them one time."""
        inputs = [self.inputs(i) for i in SOME]
        hidden = torch.cat([self.model.model(**one).last_hidden_state[one["input_ids"] == self.mark] for one in inputs])
        common = torch.linalg.svd(hidden, full_matrices=False).Vh[:1]
        self.model.score.weight -= self.model.score.weight @ common.T @ common

    def _write_first_layout(self, old: Path) -> None:
        names = (
            ("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
            ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
            ("model.audio_tower.", "audio_tower."),
            ("model.language_model.", "model."),
            ("score.", "lm_head."),
        )
        weights = {}
        for name, tensor in load_file(self.folder / "model.safetensors").items():
            before, after = next(pair for pair in names if name.startswith(pair[0]))
            weights[f"thinker.{after}{name.removeprefix(before)}"] = tensor
        save_file(weights, self.first / "model.safetensors")
        fields = json.loads((old / "config.json").read_text())
        fields["thinker_config"]["classify_num"] = 40
        (self.first / "config.json").write_text(json.dumps(fields))
        (self.first / "processor_config.json").unlink()

    def inputs(self, i: int) -> dict[str, torch.Tensor]:
        """What Transformers' processor makes of a clip and its words."""
        marked = "".join(f"{word}<timestamp><timestamp>" for word in WORDS[i])
        text = [f"<|audio_start|><|audio_pad|><|audio_end|>{marked}"]
        inputs = dict(self.processor(text=text, audio=[self.clips[i]], sampling_rate=16_000))
        inputs["input_features"] = inputs["input_features"] * inputs["input_features_mask"][:, None]
        return inputs

    @torch.no_grad()
    def wanted(self, i: int) -> tuple[list[int], list[tuple[str, float, float]]]:
        """The likeliest class at each mark of a clip, and the times of its words, by Transformers' processor and model."""
        inputs = self.inputs(i)
        logits = self.model(**inputs).logits
        (items,) = self.processor.decode_forced_alignment(logits, inputs["input_ids"], [WORDS[i]], timestamp_token_id=self.mark)
        end = SECONDS[i]
        times = [(item["text"], min(item["start_time"], end), min(item["end_time"], end)) for item in items]
        return logits.argmax(-1)[inputs["input_ids"] == self.mark].tolist(), times


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("aligner"))


@pytest.mark.parametrize("layout", ["folder", "first"])
def test_times_are_those_of_transformers_alone_and_together(world: World, layout: str) -> None:
    model = load_aligner(getattr(world, layout), dtype=torch.float32, device=CPU)
    aligner, log_mel = Qwen3Aligner(model), LogMel(128)
    features = [np.asarray(log_mel([clip])[0])[0] for clip in world.clips]
    wanted = {i: world.wanted(i) for i in SOME}
    assert len({one for bins, _ in wanted.values() for one in bins}) >= 6, "a head that says one thing proves nothing"
    for i, (bins, _) in wanted.items():
        frames = features[i].shape[1]
        audio = model.get_audio_features(torch.from_numpy(features[i])[None], frames=[frames])
        assert model.times(torch.tensor([model.prompt(frames, WORDS[i])]), audio).tolist() == bins
    together = aligner(features, TEXTS, [None] * 5)
    alone = [aligner([feature], [text], ["en"])[0] for feature, text in zip(features, TEXTS, strict=True)]
    assert together == alone
    for i, words in enumerate(together):
        assert not isinstance(words, str)
        assert [word.text for word in words] == WORDS[i]
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= time <= SECONDS[i] for time in times)
        if i in wanted:
            assert [(word.text, word.start, word.end) for word in words] == wanted[i][1]


def test_no_gradients_are_prepared_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_aligner(world.folder, dtype=torch.float32, device=CPU)
    heard, needing = model.get_audio_features, []

    def watched(*args: Any, **options: Any) -> Any:
        audio, lens = heard(*args, **options)
        needing.append(audio.requires_grad)
        return audio, lens

    monkeypatch.setattr(model, "get_audio_features", watched)
    assert Qwen3Aligner(model)([np.zeros((128, 100), np.float32)], ["zero"], ["en"])
    assert needing == [False]


def test_slots_are_counted_when_the_aligner_has_its_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def told(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: (order.append(what), call(*args, **options))[1]

    monkeypatch.setattr(session, "default_slots", told("slots", session.default_slots))
    monkeypatch.setattr(aligning, "load_aligner", told("aligner", load_aligner))
    Transcriber(world.ark, device="cpu", max_new_tokens=4, timestamps="word", aligner=world.folder)
    assert order == ["aligner", "slots"]


def test_languages_that_it_does_not_know_are_said(world: World) -> None:
    aligner = Qwen3Aligner(load_aligner(world.folder, dtype=torch.float32, device=CPU))
    features = [np.zeros((128, 100), np.float32)] * 3
    finnish, swahili, japanese = aligner(features, ["yksi kaksi", "moja mbili", "東京は晴れ"], ["fi", "sw", None])
    assert str(finnish).startswith("the aligner does not know Finnish; it knows Cantonese, Chinese, English")
    assert str(swahili).startswith("the aligner does not know sw;")
    assert isinstance(japanese, list) or "nagisa" in japanese


@pytest.mark.parametrize("kind", ["ark", "qwen"])
def test_rows_have_its_words(world: World, tmp_path: Path, kind: str) -> None:
    model = world.ark if kind == "ark" else tiny_qwen3_asr(tmp_path / "asr", seed=5)
    short, talk = (write_wav(tmp_path / f"{n}.wav", synthetic_speech(n, seed=n)) for n in (3, 14))
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps({"id": path.stem, "audio": str(path), "language": "en"}) + "\n" for path in (short, talk)))
    flags = ["--model_path", str(model), "--max_new_tokens", "10", "--max_audio_seconds", "6", "--quiet", "true", "--device", "cpu"]
    aligned = [*flags, "--timestamps", "word", "--aligner", str(world.folder)]
    assert main([str(manifest), "--output", str(tmp_path / "plain.jsonl"), *flags]) == 0
    assert main([str(manifest), "--output", str(tmp_path / "words.jsonl"), *aligned]) == 0
    plain, rows = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("plain.jsonl", "words.jsonl"))
    assert [row["pred_text"] for row in rows] == [row["pred_text"] for row in plain]
    for row in rows:
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= row["audio_seconds"]


def test_what_it_cannot_do_is_said_before_anything_is_decoded(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives times of words alone; give --timestamps word"):
        Transcriber(world.ark, device="cpu", timestamps="character", aligner=world.folder)
    asr = tiny_qwen3_asr(tmp_path / "asr")
    assert (is_aligner(world.folder), is_aligner(world.first), is_aligner(asr), is_aligner(world.ark)) == (True, True, False, False)
    with pytest.raises(InputError, match=r"is a checkpoint \(qwen3_asr\), neither a CTC head nor Qwen3's forced aligner"):
        Transcriber(world.ark, device="cpu", timestamps="word", aligner=asr)
    assert weights_of_head(world.folder) != weights_of_head(world.first)
    broken = tmp_path / "broken"
    shutil.copytree(world.folder, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: score\.weight"):
        Transcriber(world.ark, device="cpu", timestamps="word", aligner=broken)


def test_a_language_that_is_told_decides_whether_words_are(world: World) -> None:
    clip = Utterance(id="a", audio=synthetic_speech(3, seed=3))
    told = next(Transcriber(world.ark, device="cpu", max_new_tokens=10, timestamps="word", aligner=world.folder)([clip]))
    with pytest.warns(RuntimeWarning, match="has no effect on transcripts"):
        transcriber = Transcriber(world.ark, device="cpu", max_new_tokens=10, timestamps="word", aligner=world.folder, language="fi")
    finnish = next(transcriber([clip]))
    assert told["words"]
    assert (finnish["words"], "does not know Finnish" in finnish["words_error"]) == (None, True)
