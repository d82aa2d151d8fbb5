"""Any Transformers speech model as a teacher, in this process: audio language models with a chat template, encoder-decoders like Whisper.

The model's class is the first that Transformers' Auto classes know for its configuration: a multimodal language model, else a speech
encoder-decoder, else a causal language model. Weights are safetensors, and no code of a checkpoint is run. Where its vocabulary is the
student's it scores the student's own ids; otherwise both tokenisations are aligned by bytes (``arkfast.distill.alignment``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq

from arkfast.distill.alignment import Aligned, VocabularyMap, align_bytes, align_direct, token_bytes
from arkfast.distill.teachers.base import TeacherRequest
from arkfast.distill.teachers.hf_inputs import ChatInputs, EncoderDecoderInputs, Inputs, RowInputs
from arkfast.distill.teachers.hf_model import TeacherModel
from arkfast.distill.teachers.vocabulary import differing_ids
from arkfast.kernels import topk_lse
from arkfast.models.weights import LISTED, weight_files
from arkfast.records import AllowedTokens, Batch, InputError, Rollout, TeacherScores, TokenizerLike

OPTIONS = ("teacher_prompt", "tail_bucket", "opd_objective")
AUTO_CLASSES = (AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoModelForCausalLM)


def load(request: TeacherRequest) -> HfTeacher:
    """The teacher of a checkpoint, whole.

    Raises:
        InputError: the checkpoint cannot be used, it hears nothing, or its vocabulary can be neither shared nor aligned.
    """
    where = f"--teacher_model {request.model}"
    if request.student.audio_input is None:
        raise InputError(f"{where}: the hf_causal_lm teacher hears, and the student does not; give a student that hears")
    model = TeacherModel(_loaded(request, where), where=where)
    inputs: Inputs
    if model.writes_apart:
        inputs = EncoderDecoderInputs(request.model, model.model, prompt=request.prompt, dtype=request.dtype, device=request.device)
    else:
        inputs = ChatInputs(request.model, prompt=request.prompt, dtype=request.dtype, device=request.device)
    return HfTeacher(
        model,
        inputs,
        tokenizer=request.interface.tokenizer,
        end_id=request.interface.end_id,
        allowed=request.allowed,
        width=int(request.student.config.vocab_size),
        top_k=request.top_k,
        lse_temperature=request.lse_temperature,
        sampled=request.sampled,
        where=where,
    )


def _loaded(request: TeacherRequest, where: str) -> Any:
    weight_files(request.model)  # which refuses pickles
    try:
        config = AutoConfig.from_pretrained(request.model, local_files_only=True, trust_remote_code=False)
        auto: Any = next((auto for auto in AUTO_CLASSES if type(config) in auto._model_mapping), None)
        if auto is None:
            raise InputError(f"{where}: Transformers has no speech or language model of type {config.model_type!r}; give another teacher")
        model, found = auto.from_pretrained(
            request.model, config=config, dtype=request.dtype, attn_implementation=request.attn_implementation, use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the model cannot be loaded ({reason}); give a complete checkpoint of a Transformers model") from error
    wrong = sorted({*map(str, found["missing_keys"]), *(str(key) for key in found.get("mismatched_keys", ()))})
    if wrong:  # Transformers would go on with random numbers
        raise InputError(f"{where}: {len(wrong)} weights are missing or have other shapes, {', '.join(wrong[:LISTED])}; copy it again")
    return model.to(request.device)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What does not wait for the student's tokens."""

    rows: list[RowInputs]
    states: list[torch.Tensor | None]


class HfTeacher:
    """A Transformers speech model as a ``Teacher``.

    A Whisper model's features are made by the feature workers; another model's processor runs in this process when the batch is there, one
    clip at a time.

    Args:
        model: the teacher.
        inputs: how clips reach it.
        tokenizer: the student's.
        end_id: the student's end token.
        allowed: what the student may produce.
        width: scores that the student's head gives.
        top_k: Kt, how many of its best ids it reports.
        lse_temperature, sampled: see ``TeacherRequest``; the log-sum-exp is over those of the student's ids that it has.
        where: what an error calls the teacher.

    Raises:
        InputError: its vocabulary can be neither shared nor aligned, or its tokenizer is another model's.
    """

    cost = None

    def __init__(
        self, model: TeacherModel, inputs: Inputs, *, tokenizer: TokenizerLike, end_id: int, allowed: AllowedTokens, width: int, top_k: int,
        lse_temperature: float | None = None, sampled: bool = False, where: str = "the teacher",
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.top_k, self.prepare = model, inputs, top_k, inputs.prepare
        self._tokenizer, self._end_id, self._allowed = tokenizer, end_id, allowed
        self._tau, self._sampled = lse_temperature, sampled
        theirs = inputs.tokenizer
        eos = _eos(model.model, where)
        self.direct = set(allowed.stop_ids) <= set(eos) and not differing_ids(tokenizer, theirs, allowed, width=model.width)
        """The student's ids are the teacher's."""
        special = {int(i) for i in theirs.added_tokens_decoder} | set(eos)
        self._ends = set(eos)
        _check_own_ids(model.model, theirs, eos, inputs.prompt_ids, rows=model.width, where=where)
        spoken = torch.zeros(model.width, dtype=torch.bool)
        spoken[: min(len(theirs), model.width)] = True
        spoken[sorted(i for i in special if i < model.width)] = False
        spoken[sorted(i for i in eos if i < model.width)] = True
        self.vocabulary: VocabularyMap | None = None
        """How the vocabularies meet where they differ."""
        if self.direct:
            spoken = allowed.mask(model.width)
            ids = torch.arange(width)
            table = torch.where(allowed.mask(width), ids, -1).expand(2, -1)
        else:
            end = _shared_end(theirs, eos, str(tokenizer.convert_ids_to_tokens([end_id])[0]))
            self.vocabulary = VocabularyMap.of(
                token_bytes(tokenizer, where="--student_model"),
                token_bytes(theirs, where=where),
                allowed=allowed,
                special=special,
                ends=(end_id, end),
                widths=(width, model.width),
            )
            table = self.vocabulary.teacher_ids
        self._spoken = spoken.to(model.device)
        self._table = table.to(model.device)

    @torch.no_grad()
    def begin(self, batch: Batch) -> Begun:
        """See ``Teacher.begin``: the clips' inputs, and an encoder-decoder's encoder."""
        rows = self.inputs.rows(batch, self._detected)
        return Begun(rows=rows, states=self.model.encoded(rows))

    @torch.no_grad()
    def score(self, batch: Batch, rollout: Rollout, begun: object = None) -> TeacherScores:
        """See ``Teacher.score``. The produced ids come to the host once, since rows and prompts are Python's."""
        assert rollout.topk_ids is not None
        begun = self.begin(batch) if begun is None else begun
        assert isinstance(begun, Begun)
        owner, tokens, stopped = rollout.owner.tolist(), _rows(rollout), rollout.stopped.tolist()
        aligned = self._aligned(tokens, stopped)
        rows, states = [begun.rows[i] for i in owner], [begun.states[i] for i in owner]
        starts = np.cumsum([0, *map(len, tokens)])
        wanted, fed = [], []
        for r, (row, answer) in enumerate(zip(rows, aligned.fed, strict=True)):
            place = aligned.place[starts[r] : starts[r + 1]]
            room = len(answer) if self.model.limit is None else max(self.model.limit - len(row.prompt), 0)
            fed.append(answer[:room])
            wanted.append(starts[r] + np.flatnonzero((place >= 0) & (place <= room)))
        ranges = self._allowed.row_ranges(rollout.packed_index()[1])
        device, count, gather = rollout.topk_ids.device, len(aligned.place), rollout.topk_ids
        if self._sampled:
            gather = torch.cat([gather, rollout.tokens[rollout.packed_index()][:, None].to(gather.dtype)], 1)
        ids = torch.full((count, self.top_k), -1, dtype=torch.int32, device=device)
        scores = torch.full((count, self.top_k), float("-inf"), device=device)
        own = torch.full((count, gather.shape[1]), float("-inf"), device=device)
        lse = None if self._tau is None else torch.zeros(count, device=device)
        for part, logits in self.model.scores(rows, states, fed, [aligned.place[which].tolist() for which in wanted]):
            packed = np.concatenate([wanted[i] for i in part])
            for kind in np.unique(aligned.kind[packed]).tolist():
                inside = torch.from_numpy(np.flatnonzero(aligned.kind[packed] == kind)).to(device)
                here = torch.from_numpy(packed).to(device)[inside]
                own_turn = None if ranges is None else ranges[here]
                seen = self._in_student_ids(logits[inside], kind)
                best = topk_lse(seen, self.top_k, ranges=own_turn, gather_ids=gather[here])
                assert best.gathered is not None
                ids[here], scores[here] = best.ids, best.values
                own[here] = best.gathered.masked_fill(gather[here] < 0, float("-inf"))
                if lse is not None and self._tau is not None:
                    over = topk_lse(seen / self._tau, 1, ranges=own_turn, need_lse=True).lse
                    assert over is not None
                    lse[here] = over.to(lse.dtype)
        kept = rollout.topk_ids.shape[1]
        return TeacherScores(
            ids=ids,
            scores=scores,
            student_scores=own[:, :kept],
            valid=torch.isfinite(scores[:, 0]),
            lse=lse,
            sampled_scores=own[:, kept] if self._sampled else None,
        )

    def _in_student_ids(self, logits: torch.Tensor, kind: int) -> torch.Tensor:
        """[n, V] scores of the teacher's ids → [n, Vs] of the student's, −inf where the teacher has no such id."""
        table = self._table[kind]
        return logits.index_select(1, table.clamp(min=0)).masked_fill_(table < 0, float("-inf"))

    def _aligned(self, tokens: Sequence[Sequence[int]], stopped: Sequence[bool]) -> Aligned:
        if self.vocabulary is None:
            return align_direct(tokens)
        return align_bytes(tokens, stopped, self.vocabulary, self.inputs.tokenizer, leading_blank=self.inputs.leading_blank)

    def _detected(self, rows: Sequence[RowInputs], candidates: Sequence[int]) -> list[int]:
        """The most probable of ``candidates`` after each row's prompt."""
        found = [0] * len(rows)
        choices = torch.tensor(candidates, device=self.model.device)
        for part, logits in self.model.scores(rows, self.model.encoded(rows), [[]] * len(rows), [[0]] * len(rows)):
            for i, best in zip(part, choices[logits.index_select(1, choices).argmax(1)].tolist(), strict=True):
                found[i] = best
        return found

    @torch.no_grad()
    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """See ``Teacher.transcribe``. Where vocabularies differ, the answers are the student's ids of the teacher's text."""
        begun = self.begin(batch)
        answers, ended = self.model.answers(
            begun.rows, begun.states, spoken=self._spoken, ends=sorted(self._ends), max_new_tokens=max_new_tokens
        )
        if self.vocabulary is not None:
            answers = [self._tokenizer.encode(self._text(answer), add_special_tokens=False) for answer in answers]
        whole = [[*answer, self._end_id] if end else answer for answer, end in zip(answers, ended, strict=True)]
        device = batch.input_ids.device
        tokens = torch.zeros(len(whole), max(max_new_tokens, 1), dtype=torch.int64)
        for own, row in zip(tokens, whole, strict=True):
            own[: min(len(row), max_new_tokens)] = torch.tensor(row[:max_new_tokens], dtype=torch.int64)
        lens = torch.tensor([min(len(row), max_new_tokens) for row in whole])
        stopped = torch.tensor([end and len(row) <= max_new_tokens for row, end in zip(whole, ended, strict=True)])
        return Rollout(
            tokens=tokens[:, : max(int(lens.max()), 1)].to(device),
            lens=lens.to(device),
            stopped=stopped.to(device),
            owner=torch.arange(len(whole), device=device),
            total=int(lens.sum()),
        )

    def _text(self, answer: Sequence[int]) -> str:
        assert self.vocabulary is not None
        text = b"".join(self.vocabulary.teacher_bytes[i] or b"" for i in answer).decode(errors="ignore")
        return text.removeprefix(" ") if self.inputs.leading_blank else text

    def close(self) -> None:
        """See ``Teacher.close``: nothing is held outside this process."""


def _rows(rollout: Rollout) -> list[list[int]]:
    return [row[:n] for row, n in zip(rollout.tokens.tolist(), rollout.lens.tolist(), strict=True)]


def _eos(model: Any, where: str) -> list[int]:
    """The ids that end the model's answers, the usual one first."""
    for config in (model.generation_config, model.config, model.config.get_text_config(decoder=True)):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return [int(eos)] if isinstance(eos, int) else [int(i) for i in eos]
    raise InputError(f"{where}: neither its generation_config.json nor its config.json names an end token (eos_token_id); add it there")


def _check_own_ids(model: Any, tokenizer: Any, eos: Sequence[int], prompt: Collection[int], *, rows: int, where: str) -> None:
    """Whether the teacher's end, audio and prompt ids are the same tokens to its configuration and to its tokenizer.

    Raises:
        InputError: naming an id and what it is to either.
    """
    known = len(tokenizer)
    special = {int(i) for i in tokenizer.added_tokens_decoder} | set(tokenizer.all_special_ids)
    for end in eos:
        if end >= min(known, rows):
            raise InputError(
                f"{where}: its configuration ends answers with id {end}, and it has {min(known, rows)} tokens; correct eos_token_id in its "
                "generation_config.json, or give the tokenizer that the model was trained with"
            )
        if end not in special:
            raise InputError(
                f"{where}: its configuration ends answers with id {end}, which its tokenizer writes as the text "
                f"{str(tokenizer.convert_ids_to_tokens([end])[0])!r}; correct eos_token_id in its generation_config.json, or give the "
                "tokenizer that the model was trained with"
            )
    table = int(model.get_input_embeddings().weight.shape[0])
    if outside := sorted(i for i in prompt if i >= table):
        raise InputError(
            f"{where}: its prompt holds id {outside[0]}, and the model has {table}; give the tokenizer that it was trained with"
        )
    audio = next((i for name in ("audio_token_id", "audio_token_index") if (i := getattr(model.config, name, None)) is not None), None)
    if audio is not None and audio not in prompt:
        named = f"{str(tokenizer.convert_ids_to_tokens([audio])[0])!r} in its tokenizer" if audio < known else "no token of its tokenizer"
        raise InputError(
            f"{where}: its configuration puts audio in the place of id {audio}, which is {named} and not in its prompt; give its own "
            "processor, or a --teacher_prompt that holds the audio token"
        )


def _shared_end(teacher: Any, eos: Sequence[int], name: str) -> int:
    """The teacher's end token that stands for the student's: the one of the same name, else its tokenizer's, else the first."""
    names = {str(token): i for i, token in zip(eos, teacher.convert_ids_to_tokens(list(eos)), strict=True)}
    return names.get(name, teacher.eos_token_id if teacher.eos_token_id in eos else eos[0])
