"""Making an ARK-ASR checkpoint from nothing: a tokenizer trained on texts, random weights, and every file of the official layout.

Knows sizes and files; trains no weight. The same arguments write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Tokenizer

from arkfast.data import prompt
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.processing import ArkasrProcessor

END_OF_TEXT = "<|endoftext|>"
ADDED_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    prompt.END_OF_TURN,
    prompt.AUDIO,
    prompt.USER,
    prompt.BEGIN_OF_AUDIO,
    prompt.END_OF_AUDIO,
    prompt.ASSISTANT,
    "<|system|>",
)
"""The official added tokens that the prompt and the transcript use, in the official order."""


def build_tokenizer(texts: Iterable[str], *, vocab_size: int, extra_text: Iterable[str] = (prompt.INSTRUCTION,)) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer of the official kind (NFC, Qwen2's split) with the official added tokens after its base vocabulary.

    Any text can be encoded. Frequent words become single ids first, with and without their leading blank, as far as ``vocab_size`` allows.

    Args:
        texts: what the model will read and write.
        vocab_size: at most so many ids, added tokens included; at least 256 bytes + the added tokens.
        extra_text: further texts that must encode well; the prompt's instruction.

    Raises:
        ValueError: ``vocab_size`` leaves no room for the bytes and the added tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(ADDED_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"build_tokenizer: vocab_size must be at least {smallest} ({len(alphabet)} bytes and the added tokens), got {vocab_size}")
    reference = _tokenizer({symbol: i for i, symbol in enumerate(alphabet)}, [])
    trained = Tokenizer(models.BPE())
    trained.normalizer = reference.backend_tokenizer.normalizer
    trained.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(ADDED_TOKENS), initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*texts, *extra_text], trainer)
    base = trained.get_vocab()
    # A byte-level vocabulary is closed under its merges, so the merges can be read back from what the trainer stored.
    return _tokenizer(dict(sorted(base.items(), key=lambda item: item[1])), _merges(trained))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    stored = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in stored]


def _tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=END_OF_TEXT, bos_token=None, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS], special_tokens=True)
    tokenizer.eos_token = prompt.END_OF_TURN  # not in the constructor, which would give it the first id after the base vocabulary
    tokenizer.padding_side = "left"
    return tokenizer
