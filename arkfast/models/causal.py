"""What a causal language model of Transformers lacks to be a ``SpeechModel``: the head called inside its forward, and no audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from arkfast.models.family import Audio, AudioInput, Head, Out

if TYPE_CHECKING:
    from torch import nn

    class _CausalLM(nn.Module):
        """The class that ``CausalSpeechModel`` stands before."""

        model: Any
        lm_head: nn.Linear
else:
    _CausalLM = object


def through_head(hidden: Tensor, weight: Tensor, head: Head[Out], select: Tensor | None) -> Out:
    """``head`` on hidden states [B, P, H], on those at ``select`` [N] of B·P only where it is given; weight [V, H]."""
    rows = hidden.flatten(0, 1)
    return head(rows if select is None else rows.index_select(0, select), weight)


class CausalSpeechModel(_CausalLM):
    """Stands before a Transformers class such as ``LlamaForCausalLM`` among the bases of a model that hears nothing."""

    audio_input: AudioInput | None = None

    def get_audio_features(self, audios: Tensor, audio_lens: Tensor | None = None, *, frames: Sequence[int] | None = None) -> Audio:
        """Raises ``TypeError``: the model hears nothing."""
        raise TypeError(f"{type(self).__name__} hears nothing; give batches without audio")

    def encode_prompt(self, input_ids: Tensor, *, audio_embeds: Audio | None = None) -> Tensor:
        """Token embeddings [B, P, H]."""
        assert audio_embeds is None, "the model hears nothing"
        embeddings: Tensor = self.model.embed_tokens(input_ids)
        return embeddings

    def forward(self, *args: Any, select: Tensor | None = None, head: Head | None = None, **options: Any) -> Any:
        """As the Transformers class's, or what ``head`` returns where it is given."""
        if head is None:
            return super().forward(*args, **options)
        return through_head(self.model(*args, **options).last_hidden_state, self.lm_head.weight, head, select)
