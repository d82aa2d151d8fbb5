"""ARK-ASR for Transformers: the audio encoder in front of a Qwen2 decoder.

This is where audio embeddings enter the prompt, where ``generate()`` gets what it needs, and where a training step reaches the head. Shape
letters: B rows, P prompt ids, T mel frames, N audio embeddings, H decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2Model
from transformers.modeling_outputs import CausalLMOutputWithPast

from arkfast.models.arkasr.audio_tower import ArkasrAudioEncoder
from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.prompt import audio_token_count
from arkfast.models.causal import through_head
from arkfast.models.family import Audio, AudioInput, Head


class ArkasrPreTrainedModel(PreTrainedModel):
    """What Transformers has to know. New weights are drawn from N(0, ``initializer_range``²); norms start at 1, biases at 0."""

    config_class = ArkasrConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "EncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # In official files and unused: rotary positions replace the absolute ones, and the encoder's own last norm was taken out.
    _keys_to_ignore_on_load_unexpected = [
        r"^audio_encoder\.whisper\.embed_positions\.",
        r"^audio_encoder\.whisper\.layer_norm\.",
    ]


class ArkasrForConditionalGeneration(ArkasrPreTrainedModel, GenerationMixin):
    """Speech in, text ids out. The state dict is that of the official checkpoints."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: ArkasrConfig) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.audio_encoder = ArkasrAudioEncoder(config)
        self.post_init()

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Read a checkpoint's generation settings, and never take a ``generate`` that a repository brings, whoever trusts its code."""
        # Transformers types this method's self as a protocol that its own models do not satisfy.
        super().adjust_generation_fn(*args, **{**kwargs, "trust_remote_code": False})  # type: ignore[misc]

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As Transformers' own, and the configuration says what came of it.

        Where the files hold two tensors that differ, ``from_pretrained`` leaves them apart; with a configuration that still called them
        one, what this model writes would be tied again.
        """
        super().tie_weights(missing_keys, recompute_mapping)
        if self.config.tie_word_embeddings and "lm_head.weight" not in self.all_tied_weights_keys:
            self.config.tie_word_embeddings = False

    @property
    def audio_input(self) -> AudioInput:
        """What the model hears."""
        config = self.config
        count = partial(audio_token_count, merge_factor=config.merge_factor)
        return AudioInput(n_mels=config.whisper.num_mel_bins, placeholder_id=config.audio_token_id, token_count=count)

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        """Decoder embeddings of a batch of clips.

        Args:
            audios: [B, 128, T] log-mel; cast to the encoder's dtype.
            audio_lens: [B] int frames of each clip; None: every frame counts. With ``config.masked_encoding`` false the lengths only
                give the counts, and padded frames are attended to.
            frames: the same lengths where the host knows them: clips are then encoded end to end, without padding.

        Returns:
            embeddings [B, N, H]; counts [B] int64: ``max(((frames + 1) // 2) // merge_factor, 1)``.
        """
        if audio_lens is None or self.config.masked_encoding:
            return self.audio_encoder(audios, audio_lens, frames=frames)
        embeddings, _ = self.audio_encoder(audios, None)
        return embeddings, audio_token_count(audio_lens.to(torch.int64), self.config.merge_factor)

    def encode_prompt(
        self,
        input_ids: Tensor,
        audios: Tensor | None = None,
        audio_lens: Tensor | None = None,
        audio_embeds: Audio | None = None,
    ) -> Tensor:
        """Token embeddings with each row's audio placeholders replaced, in order, by that row's audio embeddings.

        Args:
            input_ids: [B, P] int64, padded on either side.
            audios: [B, 128, T] log-mel.
            audio_lens: [B] frames, or None: all count.
            audio_embeds: what :meth:`get_audio_features` returned, instead of ``audios``.

        Returns:
            [B, P, H]. Where a row has more placeholders than embeddings, the rest are zero.
        """
        from arkfast.kernels import audio_embed_merge

        table = self.model.embed_tokens.weight
        if audio_embeds is None:
            if audios is None:
                raise ValueError("ArkasrForConditionalGeneration.encode_prompt: neither audios nor audio_embeds; give one of them")
            audio_embeds = self.get_audio_features(audios, audio_lens)
        embeddings, counts = audio_embeds
        return audio_embed_merge(input_ids, table, embeddings, counts, self.config.audio_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audios: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        audio_lens: Tensor | None = None,
        audio_embeds: Audio | None = None,
        select: Tensor | None = None,
        head: Head | None = None,
        **kwargs: Any,
    ) -> Any:
        """One pass of the decoder, over the audio when it is given.

        Args:
            input_ids: [B, P] int64, one placeholder per audio embedding.
            attention_mask: [B, P], 0 on padding (either side); or what the decoder takes.
            audios: [B, 128, T] log-mel. Given at prefill; ``generate()`` drops it afterwards.
            past_key_values: the decoder's cache.
            inputs_embeds: [B, P, H] instead of ``input_ids`` and ``audios``.
            position_ids: [B, P]; None: counted from the attention mask, so padding does not move a row.
            labels: [B, P] int64, −100 where not counted: adds the causal cross-entropy.
            use_cache: whether to return the cache.
            logits_to_keep: logits of the last so many positions (0: all), or of these positions.
            audio_lens: [B] frames of each clip; None: all count.
            audio_embeds: what :meth:`get_audio_features` returned, instead of ``audios``.
            select: [N] int64 flat indexes into B·P (row-major) of the hidden states that ``head`` gets; None: all.
            head: called as ``head(hidden [N, H], lm_head.weight [V, H])`` inside this forward, where a sharded weight is whole; its
                result is returned in place of an output with logits.
            **kwargs: passed to the decoder; ``num_items_in_batch`` to the loss.

        Returns:
            ``CausalLMOutputWithPast``, or what ``head`` returns.
        """
        if inputs_embeds is None and (audios is not None or audio_embeds is not None):
            if input_ids is None:
                raise ValueError("ArkasrForConditionalGeneration: audio without input_ids; give the prompt that holds its placeholders")
            inputs_embeds, input_ids = self.encode_prompt(input_ids, audios, audio_lens, audio_embeds), None
        if position_ids is None and past_key_values is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        hidden = outputs.last_hidden_state
        if head is not None:
            return through_head(hidden, self.lm_head.weight, head, select)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.lm_head(hidden[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else kept])
        loss = None
        if labels is not None:
            items = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **items)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What one step of ``generate()`` feeds: audio at the first only, when a cache carries it on."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc] # as above
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            for name in ("audios", "audio_lens", "audio_embeds"):
                inputs.pop(name, None)
        return inputs
