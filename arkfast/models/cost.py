"""How much arithmetic a pass of a decoder is; families that hear add what their encoders take."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from arkfast.models.family import SpeechModel
from arkfast.records import Batch


def matrix_elements(modules: Iterable[nn.Module]) -> int:
    """Elements of the matrices of some modules: their products, for each row that passes through them."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)


class DecoderCost:
    """Operations of one pass of a decoder alone, two for each multiply-add: a ``Cost``.

    Args:
        model: whole or sharded.
    """

    def __init__(self, model: SpeechModel) -> None:
        config = model.config
        self._layers = matrix_elements(model.model.layers)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._attention = config.num_hidden_layers * config.num_attention_heads * head_dim
        self._head = config.vocab_size * config.hidden_size

    def forward(self, batch: Batch, answers: float, *, rollouts: int = 1, head: bool) -> float:
        """See ``Cost.forward``."""
        return 2.0 * (self.encoder(batch) + self._decoder(batch, answers, rollouts, head=head))

    def encoder(self, batch: Batch) -> float:
        """Multiply-adds of what runs before the decoder: none."""
        return 0.0

    def _decoder(self, batch: Batch, answers: float, rollouts: int, *, head: bool) -> float:
        prompts = batch.prompt_lens.double()
        width = prompts + answers / (batch.size * rollouts)  # each row's length, answers taken as equally long
        repeated = rollouts - 1 if head else 0  # of a prompt's rows, those that find it read
        tokens = float((rollouts * width - repeated * prompts).sum())
        # Scores and their use are a product each; of a causal row half is needed.
        attention = self._attention * float((rollouts * width**2 - repeated * prompts**2).sum())
        return self._layers * tokens + attention + (self._head * answers if head else 0.0)
