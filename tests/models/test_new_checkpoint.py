"""New tokenizers and checkpoints: what they encode, in which order, and that the same arguments write the same bytes."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Tokenizer

from arkfast.models import ArkasrProcessor, load_model
from arkfast.models.arkasr.new import ADDED_TOKENS, build_tokenizer, new_checkpoint
from arkfast.models.arkasr.prompt import INSTRUCTION, Prompt
from arkfast.records import AllowedTokens
from arkfast.testing import synthetic_speech, tiny_checkpoint

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    rng = np.random.default_rng(0)
    return build_tokenizer([" ".join(rng.choice(DIGITS, 6)) for _ in range(200)], vocab_size=512)


def test_words_are_single_ids_and_the_prompt_is_short(tokenizer: Qwen2Tokenizer) -> None:
    for word in DIGITS:
        assert len(tokenizer.encode(word)) == 1, word
        assert len(tokenizer.encode(" " + word)) == 1, word
    assert len(tokenizer.encode(INSTRUCTION)) <= 6
    assert len(tokenizer) < 512


def test_added_tokens_follow_the_base_vocabulary_in_the_official_order(tokenizer: Qwen2Tokenizer) -> None:
    base = len(tokenizer) - len(ADDED_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(base, len(tokenizer)))
    assert sorted(tokenizer.added_tokens_decoder) == list(range(base, len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(tokenizer: Qwen2Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 265"):
        build_tokenizer(["one"], vocab_size=264)
    assert len(build_tokenizer(["one"], vocab_size=265)) == 265


def test_tokenizer_reloads_as_it_was(tokenizer: Qwen2Tokenizer, tmp_path: Path) -> None:
    new_checkpoint(tmp_path, tokenizer, seed=0, d_model=32, encoder_attention_heads=2, hidden_size=32)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is Qwen2Tokenizer
    text = "one two <|audio|>nine Élan 日本"
    assert again.encode(text) == tokenizer.encode(text)
    assert Prompt.asr(again) == Prompt.asr(tokenizer)


def test_checkpoint_is_complete_and_consistent(tokenizer: Qwen2Tokenizer, tmp_path: Path) -> None:
    new_checkpoint(
        tmp_path, tokenizer, seed=0, d_model=32, encoder_attention_heads=2, hidden_size=32, initializer_range=0.1, vocab_size=600
    )
    model = load_model(tmp_path)
    config = model.config
    assert (config.vocab_size, config.eos_token_id) == (600, tokenizer.eos_token_id)
    assert config.audio_token_id == tokenizer.convert_tokens_to_ids("<|audio|>")
    allowed = AllowedTokens.asr(tokenizer, config)
    assert allowed.ranges == ((0, len(tokenizer) - len(ADDED_TOKENS)),)
    assert allowed.stop_ids == (tokenizer.eos_token_id,)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert float(weight.detach().std()) == pytest.approx(0.1, rel=0.05)  # 3072 samples: 1.3 % standard error
    inputs = ArkasrProcessor.from_pretrained(tmp_path)(audio=[synthetic_speech(0.5)])
    assert model(**inputs).logits.isfinite().all()


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    random_state = torch.get_rng_state()
    here = tiny_checkpoint(tmp_path / "here", seed=5)
    assert torch.equal(torch.get_rng_state(), random_state)
    program = "import sys; from arkfast.testing import tiny_checkpoint; tiny_checkpoint(sys.argv[1], seed=5)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], check=True, cwd=Path(__file__).parents[2], capture_output=True)
    names = sorted(file.name for file in here.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "there").iterdir())
    assert {"chat_template.jinja", "model.safetensors", "preprocessor_config.json", "processor_config.json", "tokenizer.json"} <= set(names)
    for name in names:
        assert (here / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    other = tiny_checkpoint(tmp_path / "other", seed=6)
    assert (other / "model.safetensors").read_bytes() != (here / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"d_model": 36}, "d_model"), ({"hidden_size": 36}, "hidden_size"), ({"vocab_size": 100}, "vocab_size")],
)
def test_sizes_that_do_not_fit_are_refused(tokenizer: Qwen2Tokenizer, tmp_path: Path, sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_checkpoint(tmp_path, tokenizer, seed=0, **sizes)
