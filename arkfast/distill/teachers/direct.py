"""A teacher in this process that scores the student's ids as they are, because they are its own: what every such teacher shares.

What it hears and how it is prompted is each teacher's; from there on it is one decoder over prompts, then over produced tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from arkfast.distill.prefix import ATTENTIONS, at_predicting_positions_after
from arkfast.distill.teachers.base import Prepare
from arkfast.engine import Engine
from arkfast.engine.prefill import Prefilled, prefill
from arkfast.kernels import linear_log_softmax, linear_topk_lse
from arkfast.models.family import Audio, Cost, SpeechModel, check_head
from arkfast.records import AllowedTokens, Batch, Rollout, TeacherScores

OPTIONS = ("tail_bucket", "opd_objective", "support full")
"""Flags that only some teachers obey, and every one of these does."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a teacher reports of each position."""

    top_k: int
    """Kt, how many of its best ids."""
    lse_temperature: float | None = None
    sampled: bool = False
    states: bool = False
    """All three as in ``TeacherRequest``."""

    @torch.no_grad()
    def at(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        rollout: Rollout,
        *,
        blocked: torch.Tensor | None,
        ranges: torch.Tensor | None,
    ) -> TeacherScores:
        """The report on positions whose ids are the student's.

        Args:
            hidden: [N, H] states that predict the produced tokens.
            weight: [V, H] the head, as far as the student's ids go.
            rollout: what the student produced, with its top-k ids.
            blocked, ranges: what may not be produced, as the kernels take it.
        """
        assert rollout.topk_ids is not None
        tau, wanted, kept = self.lse_temperature, rollout.topk_ids, rollout.topk_ids.shape[1]
        if self.sampled:
            wanted = torch.cat([wanted, rollout.tokens[rollout.packed_index()][:, None].to(wanted.dtype)], 1)
        best = linear_topk_lse(hidden, weight, self.top_k, blocked=blocked, ranges=ranges, gather_ids=wanted, need_lse=tau == 1.0)
        assert best.gathered is not None
        scores = best.gathered.masked_fill(wanted < 0, float("-inf"))
        lse = best.lse
        if tau is not None and tau != 1.0:
            none = torch.full((len(hidden), 1), -1, dtype=torch.int32, device=hidden.device)
            _, lse = linear_log_softmax(hidden, weight, none, tau=tau, blocked=blocked, ranges=ranges, return_lse=True)
        return TeacherScores(
            ids=best.ids,
            scores=best.values,
            student_scores=scores[:, :kept],
            valid=torch.isfinite(best.values[:, 0]),
            lse=lse,
            sampled_scores=scores[:, kept] if self.sampled else None,
            states=hidden.detach() if self.states else None,
            head=weight.detach() if self.states else None,
        )


class DirectTeacher:
    """A ``Teacher`` of one model whose ids are the student's.

    Args:
        model: the teacher, on its device; it is put into evaluation mode and never trained.
        allowed: what the student may produce; the teacher's distribution is restricted to the same ids.
        top_k: Kt, how many of its best ids it reports.
        cost: its arithmetic.
        lse_temperature, sampled, states: what it reports besides; see ``TeacherRequest``.

    Raises:
        ValueError: an attention that cannot score answers after prompts.
        InputError: a head with a bias.
    """

    prepare: Prepare | None = None

    def __init__(
        self,
        model: SpeechModel,
        *,
        allowed: AllowedTokens,
        top_k: int,
        cost: Cost,
        lse_temperature: float | None = None,
        sampled: bool = False,
        states: bool = False,
    ) -> None:
        attention = model.config._attn_implementation
        if attention not in ATTENTIONS:
            raise ValueError(
                f"{type(self).__name__}: the model's attention is {attention!r}, which takes no mask of each row's own; "
                f"load it with attn_implementation={' or '.join(map(repr, ATTENTIONS))}"
            )
        check_head(model, where=type(self).__name__)
        model.eval()
        model.requires_grad_(False)
        self.model, self.cost = model, cost
        self._wanted = Wanted(top_k=top_k, lse_temperature=lse_temperature, sampled=sampled, states=states)
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
        prefix = self.begin(batch) if begun is None else begun
        assert isinstance(prefix, Prefilled)
        if self._stream is not None:
            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            prefix.record_stream(here)  # its memory belongs to the other stream
        ranges = self._engine.allowed.row_ranges(rollout.packed_index()[1])
        width = self._engine.allowed.width(self.model.lm_head.weight.shape[0])
        found: TeacherScores = at_predicting_positions_after(
            self.model,
            prefix,
            rollout,
            lambda hidden, weight: self._wanted.at(hidden, weight[:width], rollout, blocked=self._engine.blocked, ranges=ranges),
        )
        return found

    @torch.no_grad()
    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``."""
        own, audio = self.read(batch)
        return self._engine.rollout(own, audio=audio, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        """See ``Teacher.close``: nothing is held outside this process."""
