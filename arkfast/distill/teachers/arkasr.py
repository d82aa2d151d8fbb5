"""A larger ARK-ASR model as the teacher of a smaller one: same vocabulary, same prompt, same features.

Knows that ids need no mapping and proves it at load; scores the student's ids directly, without a detour through text.
"""

from __future__ import annotations

from typing import Any

import torch

from arkfast.distill.prefix import ATTENTIONS, Prefix, at_predicting_positions_after, prefill
from arkfast.engine import Engine
from arkfast.kernels import linear_topk_lse
from arkfast.records import AllowedTokens, Batch, InputError, Rollout, TeacherScores

SHOWN = 5  # differing ids named in the error


def check_same_vocabulary(student: Any, teacher: Any, allowed: AllowedTokens) -> None:
    """Raise unless every allowed id is the same token in both tokenizers.

    Raises:
        InputError: listing the first ids that differ.
    """
    wanted = [i for start, stop in allowed.ranges for i in range(start, stop)] + list(allowed.stop_ids)
    ours, theirs = student.convert_ids_to_tokens(wanted), teacher.convert_ids_to_tokens([min(i, len(teacher) - 1) for i in wanted])
    differing = [(i, a, b) for i, a, b in zip(wanted, ours, theirs, strict=True) if i >= len(teacher) or a != b]
    if differing:
        shown = "; ".join(f"id {i}: student {a!r}, teacher {b if i < len(teacher) else 'nothing'!r}" for i, a, b in differing[:SHOWN])
        raise InputError(
            f"--teacher_model: its vocabulary differs from --student_model's at {len(differing)} of {len(wanted)} ids ({shown}); "
            "the arkasr teacher scores the student's ids directly, so both checkpoints must share one tokenizer"
        )


class ArkasrTeacher:
    """An ``ArkasrForConditionalGeneration`` as a ``Teacher``.

    Args:
        model: the teacher, on its device; it is put into evaluation mode and never trained.
        allowed: what the student may produce; the teacher's distribution is restricted to the same ids.
        top_k: Kt, how many of its best ids it reports.

    Raises:
        ValueError: an attention that cannot score answers after prompts.
    """

    def __init__(self, model: Any, *, allowed: AllowedTokens, top_k: int) -> None:
        attention = model.config._attn_implementation
        if attention not in ATTENTIONS:
            raise ValueError(
                f"ArkasrTeacher: the model's attention is {attention!r}, which takes no mask of each row's own; "
                f"load it with attn_implementation={' or '.join(map(repr, ATTENTIONS))}"
            )
        self.model = model.eval().requires_grad_(False)
        self.top_k = top_k
        self._engine = Engine(model, allowed=allowed)
        device = model.lm_head.weight.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def begin(self, batch: Batch) -> Prefix:
        """See ``Teacher.begin``: the encoder and the decoder over the prompts, on a stream of their own while the student decodes."""
        if self._stream is None:
            return self._prefill(batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return self._prefill(batch)

    def _prefill(self, batch: Batch) -> Prefix:
        return prefill(self.model, batch, self.model.get_audio_features(batch.mel, batch.mel_lens))

    @torch.no_grad()
    def score(self, batch: Batch, rollout: Rollout, begun: Prefix | None = None) -> TeacherScores:
        """See ``Teacher.score``: the decoder over the produced tokens, and one [N, V] product in bounded chunks."""
        assert rollout.topk_ids is not None
        topk_ids = rollout.topk_ids
        prefix = self.begin(batch) if begun is None else begun
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            prefix.record_stream(torch.cuda.current_stream())  # its memory belongs to the other stream
        best = at_predicting_positions_after(
            self.model,
            prefix,
            rollout,
            lambda hidden, weight: linear_topk_lse(hidden, weight, self.top_k, blocked=self._engine.blocked, gather_ids=topk_ids),
        )
        return TeacherScores(
            ids=best.ids,
            scores=best.values,
            student_scores=best.gathered.masked_fill(topk_ids < 0, float("-inf")),
            valid=torch.isfinite(best.values[:, 0]),
        )

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``."""
        return self._engine.rollout(batch, max_new_tokens=max_new_tokens)
