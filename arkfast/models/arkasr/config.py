"""The ARK-ASR configuration: a Qwen2 decoder's fields at the top level, a Whisper encoder's under ``whisper_config``.

The official ``config.json`` loads as it is; fields of older versions are mapped to those of Transformers 5.
"""

# Annotations stay live objects here: Transformers builds a checked dataclass from them.
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, WhisperConfig


class ArkasrConfig(Qwen2Config):
    """Configuration of :class:`ArkasrForConditionalGeneration`.

    Loads the official files as they are (``rope_theta`` may stand flat) and keeps fields that it does not know. Every field of
    ``Qwen2Config`` describes the decoder.

    Raises:
        ValueError: ``use_rope`` is false or ``adapter_type`` is not ``"mlp"``: no published checkpoint has these.
    """

    model_type = "arkasr"
    default_theta = 1_000_000.0

    tie_word_embeddings: bool = True
    whisper_config: dict | PreTrainedConfig | None = None
    """The encoder's fields, as in ``WhisperConfig``; the encoder of whisper-large-v3 in both official checkpoints."""
    adapter_type: str = "mlp"
    """How encoder frames become decoder embeddings; only ``"mlp"``."""
    mlp_adapter_act: str = "gelu"
    """Activation between the adapter's two layers."""
    merge_factor: int = 4
    """Consecutive encoder frames concatenated into one decoder embedding."""
    max_whisper_length: int = 1500
    """Encoder frames of the longest training clip (30 s); no limit of the encoder, which has rotary positions."""
    use_rope: bool = True
    """Rotary positions in the encoder; the absolute ones in official files are not used."""
    spec_aug: bool = False
    """Kept for the file's sake; augmentation is the data's part, not the model's."""
    audio_token_id: int = 151663
    """The placeholder id that one audio embedding replaces."""
    masked_encoding: bool = True
    """Whether padded frames are hidden from the encoder, which makes a clip's embeddings independent of its batch. False attends to
    padding as the original code does: for comparisons with it only."""

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.whisper_config, PreTrainedConfig):
            self.whisper_config = WhisperConfig(**{**WHISPER_LARGE_V3, **(self.whisper_config or {})})
        if not self.use_rope:
            raise ValueError(
                "ArkasrConfig: use_rope=false (absolute positions) is not supported; the published checkpoints have use_rope=true"
            )
        if self.adapter_type != "mlp":
            raise ValueError(f"ArkasrConfig: adapter_type must be 'mlp', got {self.adapter_type!r}")
        super().__post_init__(**kwargs)

    @property
    def whisper(self) -> WhisperConfig:
        """The encoder's configuration, whatever ``whisper_config`` was given as."""
        assert isinstance(self.whisper_config, WhisperConfig), f"whisper_config is a {type(self.whisper_config).__name__}"
        return self.whisper_config

    @property
    def encoder_width(self) -> int:
        """Width of one encoder frame."""
        return self.whisper.d_model

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; ``rope_theta`` also stands flat, where readers of the older layout look for it."""
        return _as_stored(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        """As :meth:`to_dict`, without the fields that equal their defaults: what ``config.json`` holds."""
        return _as_stored(super().to_diff_dict())


WHISPER_LARGE_V3: dict[str, Any] = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
}


def _as_stored(fields: dict[str, Any]) -> dict[str, Any]:
    fields.pop("auto_map", None)  # names code files of the official repository, which a saved checkpoint does not hold
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    return fields
