"""A larger ARK-ASR model as the teacher of a smaller one: same vocabulary, same prompt, same features.

It scores the student's ids directly, without a detour through text; that the ids are the same is proven when it is loaded.
"""

from __future__ import annotations

from arkfast.distill.sequence import encoded
from arkfast.distill.teachers.base import TeacherRequest
from arkfast.distill.teachers.direct import OPTIONS, DirectTeacher
from arkfast.distill.teachers.vocabulary import check_ends, check_same_prompt, check_same_vocabulary
from arkfast.models.arkasr.cost import ArkasrCost
from arkfast.models.arkasr.family import family
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.family import Audio, named_ends, read_config
from arkfast.records import AllowedTokens, Batch, InputError, Rollout

KIND = "arkasr"
__all__ = ["OPTIONS", "ArkasrTeacher", "load"]


def load(request: TeacherRequest) -> ArkasrTeacher:
    """The teacher of a checkpoint, whole.

    Raises:
        InputError: the checkpoint cannot be used, or does not fit the student's vocabulary, end of an answer, prompt or features.
    """
    kind = read_config(request.model).get("model_type")
    if kind != KIND:
        raise InputError(
            f"--teacher_model {request.model}: model_type is {kind!r}, and --teacher_backend arkasr runs {KIND!r} alone; give "
            "--teacher_backend qwen3_asr_teacher_forcing for Qwen3-ASR, or hf_causal_lm for another speech model"
        )
    student, tokenizer = request.interface, family.tokenizer(request.model)
    check_same_vocabulary(student.tokenizer, tokenizer, request.allowed)
    ends = {end for ids in named_ends(request.model).values() for end in ids}
    check_ends(student, tokenizer, ends, request.model, allowed=request.allowed)
    attention = request.attn_implementation
    model = family.load(request.model, dtype=request.dtype, attn_implementation=attention, device=request.device)
    own = family.interface(tokenizer, model, where=f"--teacher_model {request.model}")
    check_same_prompt(student, own, request.task, request.model)
    heard = request.student.audio_input
    bins, ours = model.audio_input.n_mels, None if heard is None else heard.n_mels
    if bins != ours:
        raise InputError(
            f"--teacher_model {request.model}: takes {bins} mel bins, the student {ours}; the arkasr teacher shares the student's features"
        )
    if request.positions > model.config.max_position_embeddings:
        raise InputError(
            f"--teacher_model {request.model}: the longest prompt and answer take {request.positions} positions, and it has "
            f"{model.config.max_position_embeddings}; lower --max_audio_seconds or --asr_opd_max_new_tokens"
        )
    return ArkasrTeacher(
        model,
        allowed=request.allowed,
        top_k=request.top_k,
        lse_temperature=request.lse_temperature,
        sampled=request.sampled,
        states=request.states,
    )


class ArkasrTeacher(DirectTeacher):
    """An ``ArkasrForConditionalGeneration`` as a ``Teacher``: the student's prompt and features are its own.

    Args:
        model, allowed, top_k, lse_temperature, sampled, states: see ``DirectTeacher``.
    """

    def __init__(
        self,
        model: ArkasrForConditionalGeneration,
        *,
        allowed: AllowedTokens,
        top_k: int,
        lse_temperature: float | None = None,
        sampled: bool = False,
        states: bool = False,
    ) -> None:
        super().__init__(
            model, allowed=allowed, top_k=top_k, cost=ArkasrCost(model), lse_temperature=lse_temperature, sampled=sampled, states=states
        )

    def read(self, batch: Batch) -> tuple[Batch, Audio | None]:
        """See ``DirectTeacher.read``."""
        return batch, encoded(self.model, batch)

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``: the engine encodes as many clips at once as it prefills."""
        return self._engine.rollout(batch, max_new_tokens=max_new_tokens)
