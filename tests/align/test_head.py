"""The head's file, and which model it belongs to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast.align import Aligner, CtcHead, HeadConfig, load_head, save_head
from arkfast.align.head import SETTINGS, WEIGHTS, weights_digest
from arkfast.models import load_model
from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def make_head(checkpoint: Path, units: str = "abcdefghijklmnopqrstuvwxyz") -> CtcHead:
    torch.manual_seed(0)
    return CtcHead(
        HeadConfig(hidden_size=48, width=32, frames_per_embedding=8, units=tuple(units), weights=weights_digest(checkpoint))
    ).eval()


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    save_head(make_head(checkpoint), tmp_path / "head")
    return tmp_path / "head"


def test_a_head_comes_back(checkpoint: Path, folder: Path) -> None:
    ours, back = make_head(checkpoint), load_head(folder, checkpoint=checkpoint, hidden_size=48, device=CPU)
    assert back.config == ours.config
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in ours.state_dict().items())
    assert not back.training


def test_a_head_beside_the_weights_is_none_of_them(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(checkpoint, both)
    for name in (WEIGHTS, SETTINGS):
        shutil.copy(folder / name, both)
    assert weights_digest(both) == weights_digest(checkpoint)
    load_head(both, checkpoint=both, hidden_size=48, device=CPU)
    load_model(both)


def test_what_is_wrong_is_said(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="was trained on a model of other weights"):
        load_head(folder, checkpoint=other, hidden_size=48, device=CPU)
    with pytest.raises(InputError, match=r"no ctc_head\.safetensors there; train one with"):
        load_head(checkpoint, checkpoint=checkpoint, hidden_size=48, device=CPU)
    with pytest.raises(InputError, match="reads embeddings of width 48, the model's have 64"):
        load_head(folder, checkpoint=checkpoint, hidden_size=64, device=CPU)
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "classify.bias": torch.zeros(5)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"classify\.bias has shape \(5,\) where .* asks for \(28,\)"):
        load_head(folder, checkpoint=checkpoint, hidden_size=48, device=CPU)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_head(folder, checkpoint=checkpoint, hidden_size=48, device=CPU)


@pytest.mark.parametrize("change", [{"width": 0}, {"width": True}, {"units": "ab"}, {"arkfast_ctc_head": 2}, {"more": 1}, {"weights": 3}])
def test_settings_that_are_none(checkpoint: Path, folder: Path, change: dict[str, object]) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | change))
    with pytest.raises(InputError, match="cannot be read as the settings of a CTC head"):
        load_head(folder, checkpoint=checkpoint, hidden_size=48, device=CPU)


def test_a_clip_does_not_depend_on_its_batch_and_times_are_ordered(checkpoint: Path) -> None:
    model, head = load_model(checkpoint), make_head(checkpoint)
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(128, n)).astype(np.float32) for n in (96, 203, 48, 16)]
    texts = ["aa bb Ünd", "Hello, 今天 world 42", "", "far too many letters for so short a clip"]
    aligner = Aligner(model, head)
    together = aligner(features, texts)
    assert together[2] == []
    assert together[3] == "the transcript has 32 letters and numbers, which do not fit into the 8 steps of 0.02 s that the clip has"
    for feature, text, words in zip(features[:2], texts[:2], together[:2], strict=True):
        assert aligner([feature], [text]) == [words]
        assert not isinstance(words, str)
        at = 0.0
        for word in words:
            assert at <= word.start < word.end <= feature.shape[1] / 100
            assert word.start == word.characters[0].start
            assert "".join(c.text for c in word.characters) == word.text
            at = word.end
            inner = word.start
            for character in word.characters:
                assert inner <= character.start < character.end
                inner = character.end
            assert inner == word.end
    assert [[word.text for word in words] for words in together[:2] if not isinstance(words, str)] == [
        ["aa", "bb", "Ünd"],
        ["Hello", "今", "天", "world", "42"],
    ]
