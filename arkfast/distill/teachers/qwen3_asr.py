"""Qwen3-ASR as the teacher of a student with its vocabulary: its own features, its own prompt, the student's ids.

It is told the language of the data, else that of the reference's script; where neither says anything it detects the language itself, as the
likeliest of those that it can be told. The student's output never decides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from arkfast.data.teacher_features import TeacherLogMel
from arkfast.distill.languages import DETECTED, by_reference, skipped
from arkfast.distill.prefix import at_predicting_positions_after
from arkfast.distill.references import put_in, references
from arkfast.distill.teachers import direct
from arkfast.distill.teachers.base import TeacherRequest
from arkfast.distill.teachers.direct import DirectTeacher
from arkfast.distill.teachers.vocabulary import check_direct_ids, check_ends
from arkfast.engine.prefill import prefill
from arkfast.kernels import linear_log_softmax
from arkfast.models.family import Audio, named_ends
from arkfast.models.qwen3_asr.cost import Qwen3AsrCost
from arkfast.models.qwen3_asr.languages import Spoken, spoken
from arkfast.models.qwen3_asr.load import load_model, load_tokenizer
from arkfast.models.qwen3_asr.modeling import Qwen3AsrModel
from arkfast.models.qwen3_asr.prompt import END_OF_TEXT, LANGUAGES, Prompts
from arkfast.records import AllowedTokens, Batch, InputError, Rollout, TeacherScores, TokenizerLike

OPTIONS = ("teacher_full_attention", "unsupported_language", *direct.OPTIONS)
"""Flags that only some teachers obey, and this one does."""


def load(request: TeacherRequest) -> Qwen3AsrTeacher:
    """The teacher of a checkpoint, whole, in Transformers' layout or in that of the model's first publication.

    Raises:
        InputError: the checkpoint cannot be used, or its vocabulary or end of an answer is not the student's.
    """
    folder, device, student = request.model, request.device, request.interface
    if request.task != "asr":
        raise InputError(f"--teacher_model {folder}: Qwen3-ASR transcribes and does nothing else; give --task asr")
    tokenizer = load_tokenizer(folder)
    model = load_model(
        folder,
        dtype=request.dtype,
        attn_implementation=request.attn_implementation,
        device=device,
        full_attention=request.full_attention,
    )
    backend, rows = "Qwen3-ASR", model.lm_head.weight.shape[0]
    check_direct_ids(student.tokenizer, tokenizer, request.allowed, rows=rows, backend=backend)
    named = named_ends(folder)
    ends = named.get("generation_config.json") or named.get("config.json") or ()
    # Official files name the end of a text too, with which no turn of a chat ends.
    unused = [tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    check_ends(student, tokenizer, ends, folder, allowed=request.allowed, unused=unused)
    return Qwen3AsrTeacher(
        model,
        tokenizer,
        folder,
        allowed=request.allowed,
        top_k=request.top_k,
        unsupported=request.unsupported_language,
        lse_temperature=request.lse_temperature,
        sampled=request.sampled,
        states=request.states,
    )


class Qwen3AsrTeacher(DirectTeacher):
    """See ``Teacher``.

    Args:
        model: the teacher, on its device.
        tokenizer: its own.
        folder: of the checkpoint, for its settings and for messages.
        allowed, top_k, lse_temperature, sampled, states: see ``DirectTeacher``.
        unsupported: what becomes of rows in languages that it does not know; see ``TeacherRequest.unsupported_language``.

    Raises:
        InputError: the tokenizer or the features are not Qwen3-ASR's, or its turns do not end with the student's end token.
    """

    model: Qwen3AsrModel

    def __init__(
        self,
        model: Qwen3AsrModel,
        tokenizer: TokenizerLike,
        folder: Path,
        *,
        allowed: AllowedTokens,
        top_k: int,
        unsupported: Literal["skip", "sft", "none"] = "skip",
        lse_temperature: float | None = None,
        sampled: bool = False,
        states: bool = False,
    ) -> None:
        device = model.lm_head.weight.device
        self._prompts = prompts = Prompts(tokenizer, where=f"--teacher_model {folder}", device=device)
        config = model.whole.config
        if prompts.audio_id != config.audio_token_id or len(tokenizer) > config.get_text_config().vocab_size:
            raise InputError(
                f"--teacher_model {folder}: its tokenizer is another model's: the audio token is {prompts.audio_id} there, and "
                f"{config.audio_token_id} in the model; give a complete checkpoint"
            )
        if prompts.end_id not in allowed.stop_ids:
            raise InputError(
                f"--teacher_model {folder}: its turns end with id {prompts.end_id}, the student's with {sorted(allowed.stop_ids)}; "
                "the end would mean something else to each; give a teacher of the student's vocabulary"
            )
        cost = Qwen3AsrCost(model, around=prompts.before + prompts.after + 3)
        super().__init__(model, allowed=allowed, top_k=top_k, cost=cost, lse_temperature=lse_temperature, sampled=sampled, states=states)
        heard = model.audio_input
        self.prepare = TeacherLogMel(heard.n_mels, least_samples=heard.least_samples)
        self._skip, self._teach = unsupported != "none", unsupported == "sft"

    def _spoken(self, batch: Batch) -> list[Spoken]:
        unknown = (None,) * batch.size
        return [spoken(language, text) for language, text in zip(batch.languages or unknown, batch.texts or unknown, strict=True)]

    def read(self, batch: Batch) -> tuple[Batch, Audio]:
        """See ``DirectTeacher.read``."""
        heard = batch.teacher_inputs["mel"]
        device = heard.values.device
        mel, lens = heard.values, heard.shapes[:, 1]
        frames = tuple(shape[1] for shape in heard.sizes)
        audio = self.model.get_audio_features(mel, lens, frames=frames)
        names = [row.name for row in self._spoken(batch)]
        out = self._left_out(batch)
        told = torch.tensor([self._prompts.untold if name is None else LANGUAGES.index(name) for name in names])
        told = told.to(device, non_blocking=True)
        if unknown := [i for i, name in enumerate(names) if name is None and not out[i]]:
            rows = torch.tensor(unknown).to(device, non_blocking=True)
            told = told.index_copy(0, rows, self._detected((audio[0][rows], audio[1][rows])))
        ids, prompt_lens = self._prompts(audio[1], audio[0].shape[1], told)
        own = replace(batch, mel=mel, mel_lens=lens, mel_frames=frames, input_ids=ids, prompt_lens=prompt_lens, prompt_sizes=None)
        return own, audio

    def _detected(self, audio: Audio) -> torch.Tensor:
        """[B] int64: the language with which it would most likely begin its turn over each clip, as an index into ``LANGUAGES``."""
        prompts, count, rows = self._prompts, len(LANGUAGES), len(audio[1])
        untold = torch.full_like(audio[1], prompts.untold)
        ids, lens = prompts(audio[1], audio[0].shape[1], untold)
        candidates = Rollout(
            tokens=prompts.candidates.repeat(rows, 1),
            lens=prompts.candidate_lens.repeat(rows),
            stopped=torch.zeros(rows * count, dtype=torch.bool, device=ids.device),
            owner=torch.arange(rows, device=ids.device).repeat_interleave(count),
            total=rows * prompts.candidate_total,
        )
        row, place = candidates.packed_index()
        wanted = candidates.tokens[row, place][:, None]
        found = at_predicting_positions_after(
            self.model,
            prefill(self.model, ids, lens, audio),
            candidates,
            lambda hidden, weight: linear_log_softmax(hidden, weight, wanted),
        )
        assert isinstance(found, torch.Tensor)
        likelihood = found.new_zeros(candidates.tokens.shape)
        likelihood[row, place] = found[:, 0]
        return likelihood.sum(1).view(rows, count).argmax(1)

    def _left_out(self, batch: Batch) -> list[bool]:
        return [self._skip and row.unsupported is not None for row in self._spoken(batch)]

    def _counted(self, batch: Batch) -> tuple[str, ...]:
        """What it was told of each row, as the log counts it."""
        learnt = self._by_reference(batch)
        names = [by_reference if i in learnt else skipped for i in range(batch.size)]
        rows = zip(names, self._spoken(batch), self._left_out(batch), strict=True)
        return tuple(name(row.unsupported) if left and row.unsupported else row.name or DETECTED for name, row, left in rows)

    def _by_reference(self, batch: Batch) -> tuple[int, ...]:
        """Rows that it cannot score and that have a reference to be learnt."""
        if not self._teach:
            return ()
        texts = batch.texts or (None,) * batch.size
        return tuple(i for i, (left, text) in enumerate(zip(self._left_out(batch), texts, strict=True)) if left and text and text.strip())

    def score(self, batch: Batch, rollout: Rollout, begun: object = None) -> TeacherScores:
        """See ``Teacher.score``; rows in languages that it does not know are not valid where they are to be skipped."""
        scores = super().score(batch, rollout, begun)
        names, out = self._counted(batch), self._left_out(batch)
        if not any(out):
            return replace(scores, languages=names)
        left_out = torch.tensor(out).to(scores.valid.device, non_blocking=True)
        row, _ = rollout.packed_index()
        valid = scores.valid & ~left_out[rollout.owner[row]]
        return replace(scores, languages=names, valid=valid, by_reference=self._by_reference(batch))

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``; a row that is to be skipped has no ids, and so nothing to learn, and one that is to be learnt by its
        reference has that."""
        rollout, out = super().transcribe(batch, max_new_tokens=max_new_tokens), self._left_out(batch)
        rollout = replace(rollout, languages=self._counted(batch))
        if not any(out):
            return rollout
        left_out = torch.tensor(out).to(rollout.lens.device, non_blocking=True)[rollout.owner]
        lens = rollout.lens.masked_fill(left_out, 0)
        rollout = replace(rollout, lens=lens, stopped=rollout.stopped & ~left_out, total=None, sizes=None)  # what the host knew is past
        learnt = references(batch, self._by_reference(batch))
        return rollout if learnt is None else put_in(rollout, learnt)
