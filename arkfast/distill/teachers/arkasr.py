"""A larger ARK-ASR model as the teacher of a smaller one: same vocabulary, same prompt, same features.

It scores the student's ids directly, without a detour through text; that the ids are the same is proven when it is loaded.
"""

from __future__ import annotations

import torch

from arkfast.distill.prefix import ATTENTIONS, at_predicting_positions_after
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers.base import TeacherRequest
from arkfast.distill.teachers.vocabulary import check_same_vocabulary
from arkfast.engine import Engine
from arkfast.engine.prefill import Prefilled, prefill
from arkfast.kernels import linear_topk_lse
from arkfast.models.arkasr.cost import ArkasrCost
from arkfast.models.arkasr.family import family
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.records import AllowedTokens, Batch, InputError, Rollout, TeacherScores


def load(request: TeacherRequest) -> ArkasrTeacher:
    """The teacher of a checkpoint, whole.

    Raises:
        InputError: the checkpoint cannot be used, or does not fit the student's vocabulary or features.
    """
    check_same_vocabulary(request.interface.tokenizer, family.tokenizer(request.model), request.allowed)
    attention = request.attn_implementation
    model = family.load(request.model, dtype=request.dtype, attn_implementation=attention, device=request.device)
    heard = request.student.audio_input
    bins, ours = model.audio_input.n_mels, None if heard is None else heard.n_mels
    if bins != ours:
        raise InputError(
            f"--teacher_model {request.model}: takes {bins} mel bins, the student {ours}; the arkasr teacher shares the student's features"
        )
    return ArkasrTeacher(model, allowed=request.allowed, top_k=request.top_k)


class ArkasrTeacher:
    """An ``ArkasrForConditionalGeneration`` as a ``Teacher``.

    Args:
        model: the teacher, on its device; it is put into evaluation mode and never trained.
        allowed: what the student may produce; the teacher's distribution is restricted to the same ids.
        top_k: Kt, how many of its best ids it reports.

    Raises:
        ValueError: an attention that cannot score answers after prompts.
    """

    prepare = None

    def __init__(self, model: ArkasrForConditionalGeneration, *, allowed: AllowedTokens, top_k: int) -> None:
        attention = model.config._attn_implementation
        if attention not in ATTENTIONS:
            raise ValueError(
                f"ArkasrTeacher: the model's attention is {attention!r}, which takes no mask of each row's own; "
                f"load it with attn_implementation={' or '.join(map(repr, ATTENTIONS))}"
            )
        self.model = model.eval().requires_grad_(False)
        self.top_k, self.cost = top_k, ArkasrCost(model)
        self._engine = Engine(model, allowed=allowed)
        device = model.lm_head.weight.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def begin(self, batch: Batch) -> Prefilled:
        """See ``Teacher.begin``: the encoder and the decoder over the prompts, on a stream of their own while the student decodes."""
        if self._stream is None:
            return self._prefill(batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return self._prefill(batch)

    def _prefill(self, batch: Batch) -> Prefilled:
        return prefill(self.model, batch.input_ids, batch.prompt_lens, encoded(self.model, batch))

    @torch.no_grad()
    def score(self, batch: Batch, rollout: Rollout, begun: object = None) -> TeacherScores:
        """See ``Teacher.score``: the decoder over the produced tokens, and one [N, V] product in bounded chunks."""
        assert rollout.topk_ids is not None
        topk_ids = rollout.topk_ids
        prefix = self.begin(batch) if begun is None else begun
        assert isinstance(prefix, Prefilled)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            prefix.record_stream(torch.cuda.current_stream())  # its memory belongs to the other stream
        ranges = self._engine.allowed.row_ranges(rollout.packed_index()[1])
        best = at_predicting_positions_after(
            self.model,
            prefix,
            rollout,
            lambda hidden, weight: linear_topk_lse(
                hidden, weight, self.top_k, blocked=self._engine.blocked, ranges=ranges, gather_ids=topk_ids
            ),
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

    def close(self) -> None:
        """See ``Teacher.close``: nothing is held outside this process."""
