"""Which checkpoints the Qwen3-ASR teacher takes: vocabularies, tensors, heads and configurations, and what is said of those it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen3_asr_world import World
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3ASRForConditionalGeneration

from arkfast.distill.teachers import load_teacher
from arkfast.models.qwen3_asr.load import load_config, transformers_name
from arkfast.records import InputError
from arkfast.testing import tiny_qwen3_asr


@pytest.fixture
def world(qwen3_asr_world: World) -> World:
    return qwen3_asr_world


def test_a_checkpoint_of_the_first_layout_scores_the_same_and_is_left_as_it_was(world):
    before = {path.name: path.read_bytes() for path in (world.root / "first").iterdir()}
    assert all(name.startswith("thinker.") for name in load_file(world.root / "first" / "model.safetensors"))
    native, first = world.teacher(), world.teacher("first")
    batch, rollout = world.batch(native), world.rollout()
    want, scores = native.score(batch, rollout), first.score(world.batch(first), rollout)
    assert torch.equal(scores.scores, want.scores)
    assert torch.equal(scores.ids, want.ids)
    assert torch.equal(scores.student_scores, want.student_scores)
    assert {path.name: path.read_bytes() for path in (world.root / "first").iterdir()} == before
    text = load_config(world.root / "first").get_text_config()
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


def changed(world: World, tmp_path: Path, **files: Any) -> Path:
    """A copy of the teacher with some JSON files changed by functions of their contents."""
    folder = tmp_path / "changed"
    shutil.copytree(world.root / "teacher", folder)
    for name, change in files.items():
        path = folder / f"{name}.json"
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))
    return folder


def swap_tokens(fields: dict[str, Any]) -> None:
    vocab = fields["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_merges(fields: dict[str, Any]) -> None:
    merges = fields["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def other_end(fields: dict[str, Any]) -> None:
    for token in fields["added_tokens"]:
        token["content"] = {"<|im_end|>": "<|done|>", "<think>": "<|im_end|>"}.get(token["content"], token["content"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_tokens, r"vocabulary differs from --student_model's at 2 of \d+ ids \(id \d+: student '[ab]', teacher '[ab]'"),
        (swap_merges, r"cuts words differently from --student_model's: merge 0 is \(.*\), the student's \("),
        (other_end, r"vocabulary differs from --student_model's at 1 of \d+ ids \(id \d+: student '<\|im_end\|>', teacher '<\|done\|>'"),
    ],
)
def test_a_teacher_of_another_vocabulary_is_refused_and_what_differs_is_named(world, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        world.teacher(changed(world, tmp_path, tokenizer=change))


def test_a_smaller_vocabulary_or_head_is_refused(world, tmp_path):
    tiny_qwen3_asr(tmp_path / "small", vocab_size=330)
    with pytest.raises(InputError, match="vocabulary differs"):
        world.teacher(tmp_path / "small")
    from arkfast.distill.teachers.vocabulary import check_direct_ids

    tokenizer = AutoTokenizer.from_pretrained(world.root / "teacher")
    with pytest.raises(InputError, match=r"its head has scores of ids up to 99, and the student may produce id \d+"):
        check_direct_ids(world.interface.tokenizer, tokenizer, world.allowed, rows=100, backend="Qwen3-ASR")


@pytest.mark.parametrize("folder", ["teacher", "first"])
def test_tensors_that_are_missing_or_of_another_shape_are_named(world, tmp_path, folder):
    shutil.copytree(world.root / folder, tmp_path / "t")
    weights = load_file(tmp_path / "t" / "model.safetensors")
    gone = next(name for name in weights if name.endswith("audio_tower.layers.1.fc1.weight"))
    wrong = next(name for name in weights if name.endswith("audio_tower.ln_post.bias"))
    del weights[gone]
    weights |= {wrong: torch.zeros(7), "thinker.more": torch.zeros(1)}
    save_file(weights, tmp_path / "t" / "model.safetensors")
    with pytest.raises(InputError) as caught:
        world.teacher(tmp_path / "t")
    text = str(caught.value)
    assert f"missing: {transformers_name(gone)}" in text
    assert f"wrong shape: {transformers_name(wrong)} [7], expected [32]" in text
    assert "unexpected: thinker.more" in text


def test_a_head_that_differs_from_the_table_that_it_is_said_to_be_is_used_as_it_is_stored(world, tmp_path):
    shutil.copytree(world.root / "first", tmp_path / "t")
    weights = load_file(tmp_path / "t" / "model.safetensors")
    assert {"thinker.lm_head.weight", "thinker.model.embed_tokens.weight"} <= set(weights), "both are stored, and equal"
    weights["thinker.lm_head.weight"][3, 3] += 1
    save_file(weights, tmp_path / "t" / "model.safetensors")
    with pytest.warns(RuntimeWarning, match="are one tensor .* and the files hold two that differ"):
        model = world.teacher(tmp_path / "t").model
    assert torch.equal(model.lm_head.weight, weights["thinker.lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, weights["thinker.model.embed_tokens.weight"])


def test_an_untied_head_is_its_own(world, tmp_path):
    for layout in ("transformers", "first"):
        tiny_qwen3_asr(tmp_path / layout, seed=4, layout=layout, tie_word_embeddings=False)
    native, first = (world.teacher(tmp_path / layout) for layout in ("transformers", "first"))
    assert not torch.equal(native.model.lm_head.weight, native.model.get_input_embeddings().weight)
    batch, rollout = world.batch(native), world.rollout()
    assert torch.equal(native.score(batch, rollout).scores, first.score(batch, rollout).scores)
    whole = Qwen3ASRForConditionalGeneration.from_pretrained(tmp_path / "transformers")
    assert torch.equal(native.model.lm_head.weight, whole.lm_head.weight)


def test_what_is_no_qwen3_asr_is_refused(world, tmp_path):
    with pytest.raises(
        InputError, match=r"student/config.json: model_type is 'arkasr', expected 'qwen3_asr'; give a Qwen3-ASR checkpoint$"
    ):
        world.teacher("student")
    folder = changed(world, tmp_path, config=lambda fields: fields.update(text_config=None, audio_config={"n_window": "x"}))
    with pytest.raises(InputError, match="cannot be read as a Qwen3-ASR configuration"):
        world.teacher(folder)
    shutil.rmtree(folder)
    folder = changed(world, tmp_path, processor_config=lambda fields: fields["feature_extractor"].update(hop_length=320))
    with pytest.raises(InputError, match="its features have hop_length = 320, expected 160"):
        world.teacher(folder)
    shutil.rmtree(folder)
    folder = changed(world, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="no safetensors weights"):
        world.teacher(folder)


def test_flags_of_this_teacher_are_refused_by_others(world):
    for flag, change in (("teacher_full_attention", {"full_attention": True}), ("unsupported_language", {"unsupported_language": "none"})):
        with pytest.raises(InputError, match=f"--{flag}: the teacher arkasr has no such choice"):
            load_teacher("arkasr", world.request("student", **change))
