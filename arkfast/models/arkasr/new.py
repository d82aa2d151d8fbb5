"""Making an ARK-ASR checkpoint from nothing: a tokenizer trained on texts, random weights, and every file of the official layout.

The same arguments write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, WhisperFeatureExtractor

from arkfast.models.arkasr import prompt
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.processing import ArkasrProcessor

N_MELS = 128
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
        raise ValueError(
            f"build_tokenizer: vocab_size must be at least {smallest} ({len(alphabet)} bytes and the added tokens), got {vocab_size}"
        )
    reference = _tokenizer({symbol: i for i, symbol in enumerate(alphabet)}, [])
    trained = Tokenizer(models.BPE())
    trained.normalizer = reference.backend_tokenizer.normalizer
    trained.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(ADDED_TOKENS), initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*texts, *extra_text], trainer)
    base = trained.get_vocab()
    merges = json.loads(trained.to_str())["model"]["merges"]  # pairs, or "left right" as older tokenizers wrote them
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    return _tokenizer(dict(sorted(base.items(), key=lambda item: item[1])), pairs)


def new_checkpoint(
    path: str | Path,
    tokenizer: Qwen2Tokenizer,
    *,
    seed: int,
    initializer_range: float = 0.02,
    d_model: int = 128,
    encoder_layers: int = 2,
    encoder_attention_heads: int = 4,
    encoder_ffn_dim: int | None = None,
    hidden_size: int = 128,
    intermediate_size: int | None = None,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    num_key_value_heads: int | None = None,
    max_position_embeddings: int = 4096,
    tie_word_embeddings: bool = True,
    vocab_size: int | None = None,
) -> Path:
    """Write a checkpoint of random float32 weights: model, tokenizer and processor files in the official layout.

    Args:
        path: the folder; made when absent.
        tokenizer: from :func:`build_tokenizer`, or one with the same added tokens.
        seed: of the weights; the process's own generator is left as it was.
        initializer_range: standard deviation of every weight that is not a norm's.
        d_model: encoder width; a multiple of four times its heads, for the rotary pairs.
        encoder_layers: of the encoder.
        encoder_attention_heads: of the encoder.
        encoder_ffn_dim: None: 4 · d_model.
        hidden_size: decoder width.
        intermediate_size: None: 3 · hidden_size.
        num_hidden_layers: of the decoder.
        num_attention_heads: of the decoder.
        num_key_value_heads: of the decoder; None: as many as attention heads.
        max_position_embeddings: the decoder's longest sequence.
        tie_word_embeddings: whether the head is the token table.
        vocab_size: rows of the token table; None: as many as the tokenizer has ids.

    Returns:
        ``path``.

    Raises:
        ValueError: sizes that do not fit each other, or a vocabulary smaller than the tokenizer.
    """
    rows = len(tokenizer) if vocab_size is None else vocab_size
    if rows < len(tokenizer):
        raise ValueError(f"new_checkpoint: vocab_size must be at least the tokenizer's {len(tokenizer)} ids, got {rows}")
    if d_model % (4 * encoder_attention_heads):
        raise ValueError(
            f"new_checkpoint: d_model must be a multiple of 4 · encoder_attention_heads, got {d_model} and {encoder_attention_heads}"
        )
    if hidden_size % (2 * num_attention_heads):
        raise ValueError(
            f"new_checkpoint: hidden_size must be a multiple of 2 · num_attention_heads, got {hidden_size} and {num_attention_heads}"
        )
    special = {token: tokenizer.get_vocab()[token] for token in ADDED_TOKENS}
    config = ArkasrConfig(
        vocab_size=rows,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads or num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        initializer_range=initializer_range,
        tie_word_embeddings=tie_word_embeddings,
        audio_token_id=special[prompt.AUDIO],
        bos_token_id=special[END_OF_TEXT],
        pad_token_id=special[END_OF_TEXT],
        eos_token_id=special[prompt.END_OF_TURN],
        whisper_config={
            "d_model": d_model,
            "encoder_layers": encoder_layers,
            "encoder_attention_heads": encoder_attention_heads,
            "encoder_ffn_dim": encoder_ffn_dim or 4 * d_model,
            "num_mel_bins": N_MELS,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ArkasrForConditionalGeneration(config)
    path = Path(path)
    model.save_pretrained(path)
    ArkasrProcessor(WhisperFeatureExtractor(feature_size=N_MELS), tokenizer).save_pretrained(path)
    return path


def _tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,  # type: ignore[arg-type] # annotated as strings, while the class hands them on to BPE, which takes pairs
        unk_token=END_OF_TEXT,
        bos_token=None,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS], special_tokens=True)
    tokenizer.eos_token = prompt.END_OF_TURN  # not in the constructor, which would give it the first id after the base vocabulary
    return tokenizer
