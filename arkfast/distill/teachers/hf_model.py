"""A Transformers speech model that is run over prompts and answers: scores of chosen positions, and greedy answers.

Prompts and answers come in as ids; which ids they are is decided by the caller. Shape letters: V the model's ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from arkfast.distill.teachers.hf_inputs import RowInputs
from arkfast.records import InputError

SCORES = 1 << 27
"""Scores that one forward gives at most, 512 MB of float32, unless one row alone has more."""
HEAD_ROWS = 8192
"""Rows of the head that are turned into float32 at a time."""


class ChosenHead(nn.Module):
    """A model's head on chosen positions alone, in float32 whatever the weights' precision: in bfloat16 a score of 20 is known to 0.125."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.chosen: torch.Tensor | None = None
        """[n] int64: positions of the flattened hidden states."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, n, V] scores of hidden states [B, T, H]."""
        assert self.chosen is not None, "positions are chosen before a forward"
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.chosen).float()
        scores = torch.cat([nn.functional.linear(rows, part.float()) for part in self.weight.split(HEAD_ROWS)], 1)
        return (scores if self.bias is None else scores + self.bias.float())[None]


class TeacherModel:
    """The model, with its head exchanged for a ``ChosenHead``; what it does behind the head (scaling, capping) stays as it is.

    Rows share a forward when their inputs have equal shapes, so that nothing that is heard is ever padded for a batch mate; the answers
    are padded on the right, where no causal decoder looks. A model whose features have a fixed length therefore runs its whole batch at
    once, another one a clip at a time.

    Args:
        model: any of Transformers', on its device.
        where: what an error calls it.

    Raises:
        InputError: its head is not a plain linear layer.
    """

    def __init__(self, model: Any, *, where: str) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise InputError(f"{where}: a {type(model).__name__} has no linear head over its vocabulary; give a model that writes text")
        self.model = model.eval().requires_grad_(False)
        self.head = ChosenHead(head)
        model.set_output_embeddings(self.head)
        self.width = head.weight.shape[0]
        """V."""
        self.device = head.weight.device
        self.writes_apart = bool(model.config.is_encoder_decoder)
        """An encoder hears and a decoder of its own writes."""
        text = model.config.get_text_config(decoder=True)
        limit = getattr(text, "max_target_positions", None) or getattr(text, "max_position_embeddings", None)
        self.limit = int(limit) if limit else None
        """Positions that prompt and answer may have together; None: no such limit."""

    def encoded(self, rows: Sequence[RowInputs]) -> list[torch.Tensor | None]:
        """What an encoder-decoder's encoder makes of each clip, [1, frames, H]; None for another model."""
        if not self.writes_apart:
            return [None] * len(rows)
        found: list[torch.Tensor | None] = [None] * len(rows)
        encoder = self.model.get_encoder()
        for group in _groups([row.shapes for row in rows]):
            states = encoder(**_joined([rows[i].heard for i in group])).last_hidden_state
            for i, state in zip(group, states.split(1), strict=True):
                found[i] = state
        return found

    def scores(
        self,
        rows: Sequence[RowInputs],
        states: Sequence[torch.Tensor | None],
        fed: Sequence[Sequence[int]],
        places: Sequence[Sequence[int]],
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Scores after chosen beginnings of answers, a few rows at a time.

        Args:
            rows: R of them, with repetition where a clip has several answers.
            states: of each row, from ``encoded``.
            fed: each row's answer.
            places: of each row, after how many ids of the answer scores are wanted.

        Yields:
            rows in the order of their scores, and float32 [n, V] over the rows' places, one row after the other.
        """
        for group in _groups([row.shapes for row in rows]):
            start = 0
            while start < len(group):
                stop, wanted = start + 1, len(places[group[start]])
                while stop < len(group) and (wanted + len(places[group[stop]])) * self.width <= SCORES:
                    wanted += len(places[group[stop]])
                    stop += 1
                part = group[start:stop]
                start = stop
                part = [i for i in part if len(places[i])]
                if part:
                    answers = [[*rows[i].prompt, *fed[i]] for i in part]
                    width = max(map(len, answers))
                    chosen = [b * width + len(rows[i].prompt) - 1 + place for b, i in enumerate(part) for place in places[i]]
                    yield part, self._forward([rows[i] for i in part], [states[i] for i in part], answers, chosen).logits[0].float()

    def _forward(
        self, rows: Sequence[RowInputs], states: Sequence[torch.Tensor | None], ids: Sequence[Sequence[int]], chosen: Sequence[int],
        cache: Any = None, *, keep: bool = False,
    ) -> Any:  # fmt: skip
        """One forward over rows of equal shapes.

        Without ``cache`` (the output of the forward before, which was to ``keep`` keys and values) ``ids`` begin at the prompt.
        """
        width = max(map(len, ids))
        padded = torch.zeros(len(ids), width, dtype=torch.int64)
        mask = torch.zeros(len(ids), width, dtype=torch.int64)
        for own, seen, row in zip(padded, mask, ids, strict=True):
            own[: len(row)], seen[: len(row)] = torch.tensor(row), 1
        padded, mask = padded.to(self.device), mask.to(self.device)
        self.head.chosen = torch.tensor(chosen, device=self.device)
        options: dict[str, Any] = {"use_cache": keep}
        if cache is not None:
            options["past_key_values"] = cache.past_key_values
        if self.writes_apart:
            heard = torch.cat([state for state in states if state is not None])
            others = _joined([{k: v for k, v in row.heard.items() if k == "attention_mask"} for row in rows])
            return self.model(encoder_outputs=BaseModelOutput(last_hidden_state=heard), decoder_input_ids=padded, **others, **options)
        if cache is not None:
            return self.model(input_ids=padded, **options)
        return self.model(input_ids=padded, attention_mask=mask, **_joined([row.heard for row in rows]), **options)

    def answers(
        self,
        rows: Sequence[RowInputs],
        states: Sequence[torch.Tensor | None],
        *,
        spoken: torch.Tensor,
        ends: Sequence[int],
        max_new_tokens: int,
    ) -> tuple[list[list[int]], list[bool]]:
        """Each row's greedy answer without its end token, and whether it ended.

        Args:
            rows: to be answered.
            states: of each row, from ``encoded``.
            spoken: bool [V], the ids that an answer may hold; those of ``ends`` among them.
            ends: ids that end it.
            max_new_tokens: the most ids, the end token included.
        """
        answers: list[list[int]] = [[] for _ in rows]
        ended = [False] * len(rows)
        for group in _groups([(row.shapes, len(row.prompt)) for row in rows]):
            own, seen = [rows[i] for i in group], [states[i] for i in group]
            width = len(own[0].prompt)
            most = max_new_tokens if self.limit is None else min(max_new_tokens, self.limit - width + 1)
            ids: list[list[int]] = [list(row.prompt) for row in own]
            cache = None
            for _ in range(most):
                cache = self._forward(own, seen, ids, [(b + 1) * len(ids[0]) - 1 for b in range(len(own))], cache, keep=True)
                best = cache.logits[0].float().masked_fill(~spoken, float("-inf")).argmax(1).tolist()
                for i, token in zip(group, best, strict=True):
                    ended[i] = ended[i] or token in ends
                    if not ended[i]:
                        answers[i].append(token)
                if all(ended[i] for i in group):
                    break
                ids = [[token] for token in best]
        return answers, ended


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal keys, in the order in which the keys come up."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _joined(inputs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([own[name] for own in inputs]) for name in inputs[0]}
