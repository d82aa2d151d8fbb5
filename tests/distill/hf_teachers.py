"""Tiny random Transformers speech models with their processors, as ``hf_causal_lm`` meets them in checkpoint folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from arkfast.testing import INITIALIZER_RANGE, TEXTS

OTHER_TEXTS = (
    "nine lives of eight seven cats",
    "one twofold three-fold fourth",
    "Чай и 東京 晴れ, tôi é à ü",
    "brown foxes jumped lazily over dogs",
)
DECODER: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": INITIALIZER_RANGE, "max_position_embeddings": 512,
}  # fmt: skip
CHAT = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{%- for c in m['content'] -%}"
    "{%- if c['type'] == 'audio' -%}<|audio|>{%- else -%}{{ c['text'] }}{%- endif -%}{%- endfor -%}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


def byte_level(texts: tuple[str, ...], *, merges: int, added: tuple[str, ...], end: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ``merges`` merges and special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def random_model(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "encoder.embed_positions" not in name:
                # Learnt positions are as large as what a norm lets through, else a tied head repeats the token that it has read.
                torch.nn.init.normal_(parameter, std=2.0 if "embed_positions" in name else INITIALIZER_RANGE)
    return model.eval()


def save(folder: Path, model: Any, processor: Any, *, end: int, **generation: Any) -> Path:
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end, **generation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def glmasr(folder: Path, *, tokenizer: Any = None, seed: int = 3) -> Path:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>")
    own = tokenizer or byte_level(OTHER_TEXTS, merges=80, added=names, end="<|im_end|>")
    audio, end = own.convert_tokens_to_ids("<|audio|>"), own.convert_tokens_to_ids("<|im_end|>")
    config = GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder", "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_mel_bins": 128, "max_position_embeddings": 1500,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": len(own) + 3, "tie_word_embeddings": True, "pad_token_id": end, "bos_token_id": end,
            "eos_token_id": end, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, **DECODER,
        },
        audio_token_id=audio,
    )  # fmt: skip
    processor = GlmAsrProcessor(WhisperFeatureExtractor(feature_size=128), own, audio_token="<|audio|>", chat_template=CHAT)
    return save(folder, random_model(GlmAsrForConditionalGeneration, config, seed), processor, end=end)


def qwen2_audio(folder: Path, *, seed: int = 4) -> Path:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    own = byte_level(OTHER_TEXTS, merges=60, added=names, end="<|im_end|>")
    audio, end = own.convert_tokens_to_ids("<|AUDIO|>"), own.convert_tokens_to_ids("<|im_end|>")
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
            "num_mel_bins": 128,
        },
        text_config={"model_type": "qwen2", "vocab_size": len(own), "pad_token_id": end, "eos_token_id": end,
                     **DECODER, "max_position_embeddings": 2048},
        audio_token_index=audio, audio_token_id=audio,
    )  # fmt: skip
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), own)
    return save(folder, random_model(Qwen2AudioForConditionalGeneration, config, seed), processor, end=end)


class Both:
    """Tokenizer and extractor of a folder without a processor of its own."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def save_pretrained(self, folder: Path) -> None:
        for part in self.parts:
            part.save_pretrained(folder)


WHISPER = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|ru|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def whisper(folder: Path, *, merges: int = 90, n_mels: int = 80, seed: int = 7) -> Path:
    own = byte_level(OTHER_TEXTS, merges=merges, added=WHISPER, end="<|endoftext|>")
    ids = {name: own.convert_tokens_to_ids(name) for name in WHISPER}
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(own), num_mel_bins=n_mels, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, d_model=32, max_source_positions=1500, max_target_positions=64,
        decoder_start_token_id=ids["<|startoftranscript|>"], bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = random_model(WhisperForConditionalGeneration, config, seed)
    return save(
        folder, model, Both(own, WhisperFeatureExtractor(feature_size=n_mels)), end=end, decoder_start_token_id=ids["<|startoftranscript|>"]
    )


KINDS: dict[str, Callable[[Path], Path]] = {"glmasr": glmasr, "qwen2_audio": qwen2_audio, "whisper": whisper}


def manifest(path: Path, clips: list[tuple[str, str, str | None]]) -> Path:
    rows = [{"audio": name, "text": text, "id": name, "language": language} for name, text, language in clips]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    return path


__all__ = ["KINDS", "OTHER_TEXTS", "TEXTS", "byte_level", "glmasr", "manifest", "qwen2_audio", "whisper"]
