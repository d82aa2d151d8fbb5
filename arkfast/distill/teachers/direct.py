"""A teacher in this process that scores the student's ids as they are, because they are its own: what every such teacher shares.

What it hears and how it is prompted is each teacher's; from there on it is one decoder over prompts, then over produced tokens.
"""

from __future__ import annotations

import torch

from arkfast.distill.prefix import ATTENTIONS, at_predicting_positions_after
from arkfast.distill.teachers.base import Prepare
from arkfast.engine import Engine
from arkfast.engine.prefill import Prefilled, prefill
from arkfast.kernels import linear_topk_lse
from arkfast.models.family import Audio, Cost, SpeechModel, check_head
from arkfast.records import AllowedTokens, Batch, Rollout, TeacherScores


class DirectTeacher:
    """A ``Teacher`` of one model whose ids are the student's.

    Args:
        model: the teacher, on its device; it is put into evaluation mode and never trained.
        allowed: what the student may produce; the teacher's distribution is restricted to the same ids.
        top_k: Kt, how many of its best ids it reports.
        cost: its arithmetic.

    Raises:
        ValueError: an attention that cannot score answers after prompts.
        InputError: a head with a bias.
    """

    prepare: Prepare | None = None

    def __init__(self, model: SpeechModel, *, allowed: AllowedTokens, top_k: int, cost: Cost) -> None:
        attention = model.config._attn_implementation
        if attention not in ATTENTIONS:
            raise ValueError(
                f"{type(self).__name__}: the model's attention is {attention!r}, which takes no mask of each row's own; "
                f"load it with attn_implementation={' or '.join(map(repr, ATTENTIONS))}"
            )
        check_head(model, where=type(self).__name__)
        model.eval()
        model.requires_grad_(False)
        self.model, self.top_k, self.cost = model, top_k, cost
        self._engine = Engine(model, allowed=allowed)
        device = model.lm_head.weight.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(self, batch: Batch) -> tuple[Batch, Audio | None]:
        """A batch with the teacher's own prompts and features, and its audio embeddings; None where it hears nothing."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, batch: Batch) -> Prefilled:
        """See ``Teacher.begin``: the encoder and the decoder over the prompts, on a stream of their own while the student decodes."""
        if self._stream is None:
            return self._prefill(batch)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return self._prefill(batch)

    def _prefill(self, batch: Batch) -> Prefilled:
        own, audio = self.read(batch)
        return prefill(self.model, own.input_ids, own.prompt_lens, audio)

    @torch.no_grad()
    def score(self, batch: Batch, rollout: Rollout, begun: object = None) -> TeacherScores:
        """See ``Teacher.score``: the decoder over the produced tokens, and one [N, V] product in bounded chunks."""
        assert rollout.topk_ids is not None
        topk_ids = rollout.topk_ids
        prefix = self.begin(batch) if begun is None else begun
        assert isinstance(prefix, Prefilled)
        if self._stream is not None:
            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            prefix.record_stream(here)  # its memory belongs to the other stream
        ranges = self._engine.allowed.row_ranges(rollout.packed_index()[1])
        width = self._engine.allowed.width(self.model.lm_head.weight.shape[0])
        best = at_predicting_positions_after(
            self.model,
            prefix,
            rollout,
            lambda hidden, weight: linear_topk_lse(
                hidden, weight[:width], self.top_k, blocked=self._engine.blocked, ranges=ranges, gather_ids=topk_ids
            ),
        )
        assert best.gathered is not None
        return TeacherScores(
            ids=best.ids,
            scores=best.values,
            student_scores=best.gathered.masked_fill(topk_ids < 0, float("-inf")),
            valid=torch.isfinite(best.values[:, 0]),
        )

    @torch.no_grad()
    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``."""
        own, audio = self.read(batch)
        return self._engine.rollout(own, audio=audio, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        """See ``Teacher.close``: nothing is held outside this process."""
