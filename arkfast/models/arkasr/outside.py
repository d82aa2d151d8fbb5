"""ARK-ASR from classes of Transformers alone: Whisper's features, GLM-ASR's encoder, Qwen2's decoder and ``generate``.

The files' tensors are read and renamed here. GLM-ASR's encoder is ARK-ASR's up to the order of rotated dimensions: it rotates halves where
ARK-ASR rotates neighbours, so the rows of the query and key projections are put into its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, GlmAsrEncoderConfig, Qwen2Config, Qwen2ForCausalLM, WhisperFeatureExtractor
from transformers.models.glmasr.modeling_glmasr import GlmAsrEncoder

from arkfast.models.family import read_config
from arkfast.models.weights import weight_files
from arkfast.records import AllowedTokens, InputError, JsonRow, Utterance

_PROMPT = "<|user|><|begin_of_audio|><|audio|><|end_of_audio|>Please transcribe this audio.<|assistant|>"
_AUDIO = "<|audio|>"
_LEAST = 400  # samples: one window
_TOWER, _NORM, _ADAPTER = "audio_encoder.whisper.", "audio_encoder.layer_norm.", "audio_encoder.adapting."
_RENAMED = (("out_proj", "o_proj"), ("self_attn_layer_norm", "input_layernorm"), ("final_layer_norm", "post_attention_layernorm"),
            ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"))  # fmt: skip
_DECODER_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                   "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "head_dim")  # fmt: skip


def load(folder: Path, device: torch.device) -> ArkasrOutside:
    """The checkpoint's model.

    Raises:
        InputError: its files cannot be read, or lack tensors.
    """
    return ArkasrOutside(folder, device)


class ArkasrOutside:
    """See ``Outside``.

    Args:
        folder: of the checkpoint.
        device: where it computes.
    """

    made_of = "WhisperFeatureExtractor, GlmAsrEncoder and Qwen2ForCausalLM"

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device, config = device, read_config(folder)
        tensors: dict[str, Tensor] = {}
        try:
            for file in weight_files(folder):
                with safe_open(file, framework="pt") as stored:
                    tensors |= {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
            self._extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder: torch.nn.Module = _encoder(config["whisper_config"], tensors)
            decoder: torch.nn.Module = _decoder(config, tensors)
            self._encoder = encoder.to(device).eval()
            self._decoder: Any = decoder.to(device).eval()
            self._adapter = [tensors[f"{_ADAPTER}{name}"].to(device) for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            said = " ".join(repr(error).split())
            raise InputError(f"{folder}: Transformers' classes cannot be filled from it ({said}); copy the checkpoint again") from error
        self._merge, self._audio_id = int(config.get("merge_factor", 4)), int(config["audio_token_id"])
        self._template, self.prompt_from = self._layout(folder)

    def _layout(self, folder: Path) -> tuple[str, str]:
        """The prompt's text with one placeholder, by the checkpoint's own template where it has one that gives such a text, and whose it
        is."""
        file = folder / "chat_template.jinja"
        if not file.is_file():
            return _PROMPT, "the published layout, since the checkpoint has no template"
        content = [{"type": "audio", "path": "clip.wav"}, {"type": "text", "text": "Please transcribe this audio."}]
        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=file.read_text(encoding="utf-8"),
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever a template raises; the report says it
            return _PROMPT, f"the published layout, since the checkpoint's template cannot be used ({' '.join(repr(error).split())})"
        if text.count(_AUDIO) != 1:
            return _PROMPT, f"the published layout, since the checkpoint's template gives no text with one {_AUDIO}"
        return text, "the checkpoint's template"

    def refuses(self, utterance: Utterance) -> str | None:
        """See ``Outside.refuses``."""
        return None

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """See ``Outside.features``."""
        samples = np.pad(waveform, (0, max(0, _LEAST - len(waveform))))
        found = self._extractor(samples, sampling_rate=16_000, padding="longest", truncation=False, return_tensors="np")
        return np.asarray(found["input_features"][0], dtype=np.float32)

    def prompt(self, waveform: np.ndarray, utterance: Utterance) -> list[int]:
        """See ``Outside.prompt``: tokenised as one string, every placeholder written out."""
        count = max(((self.features(waveform).shape[1] + 1) // 2) // self._merge, 1)
        ids: list[int] = self._tokenizer.encode(self._template.replace(_AUDIO, _AUDIO * count), add_special_tokens=False)
        return ids

    @torch.no_grad()
    def audio(self, waveform: np.ndarray) -> Tensor:
        """See ``Outside.audio``."""
        mel = torch.from_numpy(self.features(waveform))[None].to(self._device)
        hidden = self._encoder(mel).last_hidden_state
        merge, frames = self._merge, hidden.shape[1]
        hidden = F.pad(hidden, (0, 0, 0, max(0, merge - frames)))[:, : max(frames // merge, 1) * merge]
        first, first_bias, second, second_bias = self._adapter
        merged = hidden.reshape(-1, merge * hidden.shape[-1])
        return F.linear(F.gelu(F.linear(merged, first, first_bias)), second, second_bias)

    def _embedded(self, waveform: np.ndarray, utterance: Utterance) -> Tensor:
        ids = torch.tensor(self.prompt(waveform, utterance), device=self._device)
        rows = self._decoder.get_input_embeddings()(ids).clone()
        places, audio = (ids == self._audio_id).nonzero()[:, 0], self.audio(waveform)
        if len(places) != len(audio):
            raise InputError(f"{utterance.name}: its prompt has {len(places)} placeholders for {len(audio)} audio embeddings")
        rows[places] = audio
        return rows[None]

    @torch.no_grad()
    def scores(self, waveform: np.ndarray, utterance: Utterance, answer: Sequence[int]) -> Tensor:
        """See ``Outside.scores``."""
        rows = self._embedded(waveform, utterance)
        answered = self._decoder.get_input_embeddings()(torch.tensor(list(answer), device=self._device))
        inputs = torch.cat([rows, answered[None]], 1)
        first = rows.shape[1] - 1
        keep = torch.arange(first, first + len(answer), device=self._device)
        logits: Tensor = self._decoder(inputs_embeds=inputs, use_cache=False, logits_to_keep=keep).logits
        return logits[0].float().cpu()

    @torch.no_grad()
    def generate(self, waveform: np.ndarray, utterance: Utterance, *, allowed: AllowedTokens, max_new_tokens: int) -> list[int]:
        """See ``Outside.generate``."""
        stops, rows = list(allowed.stop_ids), self._embedded(waveform, utterance)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
            suppress_tokens=allowed.blocked(self._decoder.config.vocab_size).tolist() or None,
        )
        mask = torch.ones(rows.shape[:2], dtype=torch.int64, device=self._device)
        found = self._decoder.generate(inputs_embeds=rows, attention_mask=mask, generation_config=settings)
        ids: list[int] = found[0].tolist()
        return ids


def _encoder(whisper: JsonRow, tensors: Mapping[str, Tensor]) -> GlmAsrEncoder:
    heads, width = int(whisper["encoder_attention_heads"]), int(whisper["d_model"])
    config = GlmAsrEncoderConfig(
        hidden_size=width,
        intermediate_size=whisper["encoder_ffn_dim"],
        num_hidden_layers=whisper["encoder_layers"],
        num_attention_heads=heads,
        num_mel_bins=whisper.get("num_mel_bins", 128),
        max_position_embeddings=whisper.get("max_source_positions", 1500),
    )
    size = width // heads
    rotated = size // 2
    within = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, size)]
    order = torch.tensor([head * size + row for head in range(heads) for row in within])
    state = {f"norm.{part}": tensors[f"{_NORM}{part}"] for part in ("weight", "bias")}
    for name, tensor in tensors.items():
        # Positions and the last norm of Whisper's own encoder lie in official files and are not used.
        if not name.startswith(_TOWER) or name.startswith((f"{_TOWER}embed_positions.", f"{_TOWER}layer_norm.")):
            continue
        own = name.removeprefix(_TOWER)
        for ours, theirs in _RENAMED:
            own = own.replace(ours, theirs)
        state[own] = tensor[order] if ".q_proj." in name or ".k_proj." in name else tensor
    encoder = GlmAsrEncoder(config)
    encoder.load_state_dict(state)
    return encoder


def _decoder(config: JsonRow, tensors: Mapping[str, Tensor]) -> Qwen2ForCausalLM:
    fields = {name: config[name] for name in _DECODER_FIELDS if config.get(name) is not None}
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config["rope_theta"]}
    state = {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "lm_head."))}
    if fields.get("tie_word_embeddings"):
        table = state.setdefault("model.embed_tokens.weight", state["lm_head.weight"] if "lm_head.weight" in state else torch.empty(0))
        # The files may hold two tensors all the same, and then they are right.
        fields["tie_word_embeddings"] = torch.equal(state.setdefault("lm_head.weight", table), table)
    with torch.device("meta"):
        decoder = Qwen2ForCausalLM(Qwen2Config(**fields, rope_parameters=rope))
    decoder.load_state_dict(state, strict=True, assign=True)
    decoder.tie_weights()
    decoder.model.rotary_emb = type(decoder.model.rotary_emb)(decoder.config)  # which no checkpoint stores
    return decoder
