"""A teacher whose end, prompt, audio or special tokens are not the student's is refused when it is loaded, with both meanings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_teachers import byte_level, glmasr, whisper
from safetensors.torch import load_file, save_file

from arkfast.distill.teachers import Teacher, TeacherRequest, load_teacher
from arkfast.models.family import find_family
from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint, tiny_qwen3_asr


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        tiny_checkpoint(root / "student", seed=1)
        tiny_checkpoint(root / "arkasr", seed=2, hidden_size=64, num_attention_heads=4)
        for layout in ("transformers", "first"):
            tiny_qwen3_asr(root / layout, seed=3, layout=layout)
        glmasr(root / "glmasr")
        whisper(root / "whisper")
        self.family = find_family(root / "student")
        self.model = self.family.shell(root / "student", attn_implementation="sdpa")
        self.interface = self.family.interface(self.family.tokenizer(root / "student"), self.model, where="student")
        self.allowed = self.interface.allowed("asr")

    def id(self, token: str) -> int:
        return self.interface.tokenizer.convert_tokens_to_ids(token)

    def load(self, backend: str, folder: Path, *, positions: int = 0) -> Teacher:
        return load_teacher(backend, TeacherRequest(
            model=folder, student=self.model, interface=self.interface, task="asr", allowed=self.allowed, top_k=8,
            device=torch.device("cpu"), dtype=torch.float32, attn_implementation="sdpa", positions=positions,
        ))  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def edit(file: Path, **fields: Any) -> None:
    held = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**held, **fields}))


def end_of_text(world: World, folder: Path) -> None:
    """The rows of both ends are exchanged, and the configuration says so."""
    a, b = world.id("<|im_end|>"), world.id("<|endoftext|>")
    weights = load_file(folder / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    table[[a, b]] = table[[b, a]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=b)


def listed(world: World, folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[world.id("<|endoftext|>"), world.id("<|im_end|>")])


def generated_otherwise(world: World, folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=world.id("<|assistant|>"))


def past_the_vocabulary(world: World, folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[world.id("<|im_end|>"), 100_000])


def no_id(world: World, folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id="<|im_end|>")


def renamed(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Special tokens under other ids, in the tokenizer's files."""
    file = folder / "tokenizer.json"
    held = json.loads(file.read_text())
    for token in held["added_tokens"]:
        token["content"] = change({}).get(token["content"], token["content"])
    file.write_text(json.dumps(held))
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    for entry in fields.get("added_tokens_decoder", {}).values():
        entry["content"] = change({}).get(entry["content"], entry["content"])
    config.write_text(json.dumps(fields))


def other_user(world: World, folder: Path) -> None:
    names = {"<|user|>": "<|system|>", "<|system|>": "<|user|>"}
    renamed(folder, lambda _: names)


def other_unused(world: World, folder: Path) -> None:
    names = {"<|im_start|>": "<|system|>", "<|system|>": "<|im_start|>"}
    renamed(folder, lambda _: names)


def other_audio(world: World, folder: Path) -> None:
    edit(folder / "config.json", audio_token_id=world.id("<|system|>"))


def merged_otherwise(world: World, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    first = weights["audio_encoder.adapting.0.weight"]
    weights["audio_encoder.adapting.0.weight"] = first[:, : first.shape[1] // 2].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", merge_factor=2)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (end_of_text, r"it ends its answers with id \d+ '<\|endoftext\|>', the student with id \d+ '<\|im_end\|>'.*never to stop"),
        (listed, r"it ends its answers with id \d+ '<\|endoftext\|>' and id \d+ '<\|im_end\|>', the student with id \d+ '<\|im_end\|>'"),
        (generated_otherwise, r"it ends its answers with id \d+ '<\|im_end\|>' and id \d+ '<\|assistant\|>', the student"),
        (past_the_vocabulary, r"'<\|im_end\|>' and id 100000, which is no token, the student with"),
        (no_id, r"generation_config.json: eos_token_id holds '<', which is no id"),
        (other_user, r"position 0 is id \d+ '<\|user\|>' in its own and id \d+ '<\|user\|>' in the student's"),
        (other_unused, r"special tokens are not the student's, 2 of them \('<\|im_start\|>': student \d+, teacher \d+"),
        (other_audio, r"its tokenizer is another model's: the audio token is \d+ there, and \d+ of"),
        (merged_otherwise, r"its prompt for 30 s of audio has \d+ ids and the student's \d+; position \d+ is"),
    ],
)
def test_a_teacher_of_the_students_family(world: World, tmp_path: Path, broken: Callable[[World, Path], None], said: str) -> None:
    assert world.load("arkasr", world.root / "arkasr") is not None
    folder = shutil.copytree(world.root / "arkasr", tmp_path / "teacher")
    broken(world, folder)
    with pytest.raises(InputError, match=said):
        world.load("arkasr", folder)


def test_a_teacher_with_fewer_positions_than_the_student_needs(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.root / "arkasr", tmp_path / "teacher")
    edit(folder / "config.json", max_position_embeddings=400)
    assert world.load("arkasr", folder, positions=400) is not None
    with pytest.raises(InputError, match="the longest prompt and answer take 401 positions, and it has 400; lower --max_audio_seconds"):
        world.load("arkasr", folder, positions=401)


@pytest.mark.parametrize("layout", ["transformers", "first"])
def test_a_qwen3_asr_teacher_may_name_the_end_of_a_text_besides_and_nothing_else(world: World, tmp_path: Path, layout: str) -> None:
    folder = shutil.copytree(world.root / layout, tmp_path / "teacher")
    tokenizer = find_family(world.root / "student").tokenizer(folder)
    text, turn, other = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>", "<|im_start|>"))
    edit(folder / "generation_config.json", eos_token_id=[text, turn])
    assert world.load("qwen3_asr_transformers", folder) is not None
    for eos, said in (
        (text, r"it ends its answers with id \d+ '<\|endoftext\|>', the student with id \d+ '<\|im_end\|>'"),
        ([turn, other], r"it ends its answers with id \d+ '<\|im_start\|>' and id \d+ '<\|im_end\|>', the student with"),
    ):
        edit(folder / "generation_config.json", eos_token_id=eos)
        with pytest.raises(InputError, match=said):
            world.load("qwen3_asr_transformers", folder)


def test_a_qwen3_asr_prompt_that_is_cut_otherwise(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.root / "transformers", tmp_path / "teacher")
    file = folder / "tokenizer.json"
    held = json.loads(file.read_text())
    for token in held["added_tokens"]:
        if token["content"] == "<|im_start|>":
            token["single_word"] = True  # it then is no token between two others
    file.write_text(json.dumps(held))
    with pytest.raises(InputError, match=r"its tokenizer makes .* of the prompt .*, where <\|im_start\|> is no token of its own"):
        world.load("qwen3_asr_transformers", folder)


def test_a_teacher_of_another_vocabulary(world: World, tmp_path: Path) -> None:
    for name in ("glmasr", "whisper"):
        assert world.load("hf_causal_lm", world.root / name) is not None

    def refused(name: str, file: str, said: str, **fields: Any) -> None:
        folder = shutil.copytree(world.root / name, tmp_path / f"{name}{len(list(tmp_path.iterdir()))}")
        edit(folder / file, **fields)
        with pytest.raises(InputError, match=said):
            world.load("hf_causal_lm", folder)

    refused("glmasr", "generation_config.json", r"ends answers with id 100000, and it has \d+ tokens", eos_token_id=100_000)
    refused("glmasr", "generation_config.json", "ends answers with id 65, which its tokenizer writes as the text", eos_token_id=[65])
    refused("whisper", "generation_config.json", "answers start with id 70 by its configuration", decoder_start_token_id=70)
    other = byte_level(("a b",), merges=2, added=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>"), end="<|im_end|>")
    folder = shutil.copytree(world.root / "glmasr", tmp_path / "swapped")
    other.save_pretrained(folder)
    with pytest.raises(InputError, match="--teacher_model"):
        world.load("hf_causal_lm", folder)
