"""Small random models and synthetic audio for tests.

Their sizes let a test take milliseconds, and their initialisation is such that greedy output is not one repeated token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import AddedToken

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.new import build_tokenizer, new_checkpoint

SAMPLING_RATE = 16_000
INITIALIZER_RANGE = 0.25
"""At Transformers' 0.02 a tiny model's greedy output is one token over and over, and every comparison of tokens is vacuous."""

TEXTS = (
    "zero one two three four five six seven eight nine",
    "the quick brown fox jumps over the lazy dog",
    "It costs 3.50, doesn't it? Yes: .NET and -5 °C.",
    "请转写这段音频。 東京は晴れ。 Привет мир",
)
"""What the tiny tokenizer is trained on."""


def tiny_checkpoint(path: str | Path, *, seed: int = 0, vocab_size: int = 400, tied: bool = True, **sizes: Any) -> Path:
    """Write a tiny random checkpoint in the official layout: model, tokenizer and processor files.

    Args:
        path: the folder.
        seed: of the weights.
        vocab_size: the tokenizer's largest size (its texts may fill less).
        tied: whether the head is the token table.
        **sizes: other arguments of :func:`new_checkpoint`.

    Returns:
        ``path``.
    """
    tokenizer = build_tokenizer(TEXTS * 8, vocab_size=vocab_size)
    return new_checkpoint(path, tokenizer, seed=seed, tie_word_embeddings=tied, **{**TINY, **sizes})


QWEN3_ASR_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|repo_name|>", "<|file_sep|>", "<think>", "</think>",
                    "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>", "<timestamp>")  # fmt: skip
"""What the tiny Qwen3-ASR tokenizer has after its base vocabulary; the first three are ARK-ASR's too, the others are other tokens there."""


def tiny_qwen3_asr(
    path: str | Path, *, seed: int = 0, vocab_size: int = 400, layout: Literal["transformers", "first"] = "transformers", **text: Any
) -> Path:
    """Write a tiny random Qwen3-ASR checkpoint whose vocabulary is that of ``tiny_checkpoint`` below the added tokens, as the official ones
    are.

    Args:
        path: the folder.
        seed: of the weights.
        vocab_size: as for :func:`tiny_checkpoint`, whose base vocabulary it then shares.
        layout: of the files: Transformers' or that of the first publication, with everything within ``thinker``.
        **text: other fields of the decoder's configuration.

    Returns:
        ``path``.
    """
    import json

    from safetensors.torch import save_file
    from transformers import Qwen2Tokenizer, Qwen3ASRConfig, Qwen3ASRFeatureExtractor, Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

    base = json.loads(build_tokenizer(TEXTS * 8, vocab_size=vocab_size).backend_tokenizer.to_str())["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in base["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=base["vocab"],
        merges=merges,  # type: ignore[arg-type] # annotated as strings, while the class hands them on to BPE, which takes pairs
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN3_ASR_TOKENS], special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    path = Path(path)
    tokenizer.save_pretrained(path)
    named = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    tokenizer = Qwen2Tokenizer.from_pretrained(path, extra_special_tokens=named)  # a constructor would give these the first ids
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN3_ASR_TOKENS}
    rows = len(tokenizer) + 5  # as official heads, with rows that no token has
    config = Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
            "num_mel_bins": 128, "downsample_hidden_size": 8, "output_dim": 48, "initializer_range": INITIALIZER_RANGE,
        },
        text_config={
            "model_type": "qwen3", "vocab_size": rows, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
            "tie_word_embeddings": True, "initializer_range": INITIALIZER_RANGE,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **text,
        },
        audio_token_id=ids["<|audio_pad|>"], timestamp_token_id=ids["<timestamp>"], pad_token_id=ids["<|im_end|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|im_end|>"]], initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=text.get("tie_word_embeddings", True),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ASRForConditionalGeneration(config)
    Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer).save_pretrained(path)
    if layout == "transformers":
        model.save_pretrained(path)
        return path
    (path / "processor_config.json").unlink(missing_ok=True)
    names = (("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
             ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
             ("model.audio_tower.", "audio_tower."), ("model.language_model.", "model."), ("lm_head.", "lm_head."))  # fmt: skip
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        old, new = next(pair for pair in names if name.startswith(pair[0]))
        weights[f"thinker.{new}{name.removeprefix(old)}"] = tensor.clone()
    save_file(weights, path / "model.safetensors")
    fields = {kind: getattr(config, kind).to_dict() for kind in ("audio_config", "text_config")}
    sections = {"interleaved": True, "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default", "type": "default"}
    theta = fields["text_config"].pop("rope_parameters")["rope_theta"]
    fields["text_config"] |= {"model_type": "qwen3_asr_text", "rope_theta": theta, "rope_scaling": sections}
    fields["audio_config"] |= {"model_type": "qwen3_asr_audio_encoder", "conv_chunksize": 500}
    thinker = {**fields, "model_type": "qwen3_asr", "audio_token_id": config.audio_token_id, "dtype": "float32"}
    whole = {"architectures": ["Qwen3ASRForConditionalGeneration"], "model_type": "qwen3_asr", "support_languages": ["Chinese", "English"],
             "thinker_config": thinker}  # fmt: skip
    (path / "config.json").write_text(json.dumps(whole))
    return path


TINY: dict[str, Any] = {
    "initializer_range": INITIALIZER_RANGE,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_config(**overrides: Any) -> ArkasrConfig:
    """A configuration of 97 ids: 0 to 89 text, 90 the audio placeholder, 95 the end, 96 padding. ``overrides`` are its fields."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    fields: dict[str, Any] = {
        **{name: value for name, value in TINY.items() if name not in encoder},
        "vocab_size": 97,
        "max_position_embeddings": 4096,
        "audio_token_id": 90,
        "eos_token_id": 95,
        "pad_token_id": 96,
        "bos_token_id": 96,
        "whisper_config": encoder,
    }
    return ArkasrConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> ArkasrForConditionalGeneration:
    """A random model of :func:`tiny_config`, in eval mode; the process's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArkasrForConditionalGeneration(tiny_config(**overrides)).eval()


@torch.no_grad()
def perturb(model: ArkasrForConditionalGeneration, seed: int = 0) -> ArkasrForConditionalGeneration:
    """Add N(0, 0.1²) to every bias and norm weight, which start at 0 and 1: a misplaced or forgotten one then changes the result."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


CHAIN = "uvwxyz"
"""What ``agreeing_models`` write over any clip; in the tiny vocabulary each letter is a token of its own."""


def agreeing_models(root: Path) -> None:
    """Write ``root/student`` and ``root/teacher``, a tiny student and a tiny Qwen3-ASR teacher that agree as trained ones do: a run with
    them passes every gate.

    Their decoder layers add nothing, so that each token is predicted from the one before it alone; one table says how likely each is, and
    the teacher is surer of it than the student. ``CHAIN`` and the end token follow the prompt.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from arkfast.models.family import find_family

    tiny_checkpoint(root / "student", seed=1, tied=False)
    tiny_qwen3_asr(root / "teacher", seed=3, tie_word_embeddings=False)
    family = find_family(root / "student")
    tokenizer = family.tokenizer(root / "student")
    chain = tokenizer.encode(CHAIN, add_special_tokens=False)
    assert len(chain) == len(CHAIN)
    base = min(tokenizer.added_tokens_decoder)
    width = 48
    generator = torch.Generator().manual_seed(0)
    states = torch.nn.functional.normalize(torch.randn(len(chain) + 1, width, generator=generator))
    background = 0.1 * torch.randn(base, width, generator=generator)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for name, start, sureness in (("student", "<|assistant|>", 0.8), ("teacher", "<asr_text>", 1.2)):
        file = root / name / "model.safetensors"
        weights = load_file(file)
        own = AutoTokenizer.from_pretrained(root / name)
        table = next(key for key in weights if key.endswith("embed_tokens.weight"))
        head = weights["lm_head.weight"]
        head.zero_()[:base] = background
        for place, (before, after) in enumerate(zip([own.convert_tokens_to_ids(start), *chain], [*chain, end], strict=True)):
            weights[table][before] = states[place]
            head[after] = sureness * states[place]
        for key, weight in weights.items():
            if "layers" in key and key.endswith(("o_proj.weight", "down_proj.weight")) and "audio" not in key:
                weight.zero_()
        save_file(weights, file, {"format": "pt"})


def synthetic_speech(seconds: float, seed: int = 0) -> np.ndarray:
    """A vowel-like signal: harmonics of a gliding pitch under moving formants, in syllables, with a little noise.

    Args:
        seconds: its length.
        seed: of pitch, formants and noise.

    Returns:
        float32 [seconds · 16000] within ±0.5.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    pitch = rng.uniform(90, 220) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.3, 1.2) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    formants = [centre * (1 + 0.25 * np.sin(2 * np.pi * rng.uniform(1, 3) * time)) for centre in (500, 1500, 2500)]
    signal = np.zeros_like(time)
    for harmonic in range(1, 20):
        gain = sum(np.exp(-(((harmonic * pitch - formant) / 250) ** 2)) for formant in formants)
        signal += (gain + 0.02) * np.sin(harmonic * phase)
    signal *= np.abs(np.sin(np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 3)))
    signal += 0.01 * rng.standard_normal(len(time))
    return (0.5 * signal / max(float(np.abs(signal).max()), 1e-9)).astype(np.float32) if len(time) else signal.astype(np.float32)


def write_wav(path: str | Path, samples: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> Path:
    """Write float samples in ±1 as a 16-bit WAV file and return its path."""
    import soundfile

    soundfile.write(str(path), samples, sampling_rate, subtype="PCM_16")
    return Path(path)
