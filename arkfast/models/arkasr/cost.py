"""The arithmetic of an ARK-ASR model."""

from __future__ import annotations

from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.prompt import encoder_frames
from arkfast.models.cost import DecoderCost, matrix_elements
from arkfast.records import Batch


class ArkasrCost(DecoderCost):
    """The encoder over a batch's frames, the adapter over what they are merged to, the decoder."""

    def __init__(self, model: ArkasrForConditionalGeneration) -> None:
        super().__init__(model)
        encoder = model.config.whisper
        self._encoder_layers = matrix_elements(model.audio_encoder.whisper.layers)
        self._adapter = matrix_elements([model.audio_encoder.adapting])
        self._encoder_attention = encoder.encoder_layers * encoder.d_model
        self._merge = model.config.merge_factor

    def encoder(self, batch: Batch) -> float:
        """Multiply-adds of encoder and adapter."""
        assert batch.mel_lens is not None
        frames = encoder_frames(batch.mel_lens).double()
        products = self._encoder_layers * float(frames.sum()) + self._adapter * float((frames / self._merge).sum())
        return products + 2 * self._encoder_attention * float((frames**2).sum())
