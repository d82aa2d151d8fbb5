"""One training step of on-policy distillation: ours, and the published algorithm written again as it is, from its description.

A step goes from a batch to the optimizer; reading files is no part of it. Both start from the same weights and clips, in one process on one
device; transcripts have a fixed length, because the random models never end one by themselves, and the learning rate is 0, so that every
call does the same. The published step is what its flaws make it: the audio is encoded and the prompt read twice, logits are full wherever
they are made, a decoded token costs a look at the device and an all-reduce, top-k ids travel through Python lists, the union is filled in
element by element, and it trains in bfloat16 without master weights. Left out of it: decoding to text and tokenising again, for which
random ids have no text, and the teacher's second feature extraction.

    python benchmarks/bench_step.py --out step.json
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import speech
from harness.common import normal
from harness.results import machine, table, write
from harness.runner import run
from harness.suite import Provider, Suite, Work, device_here
from shapes import MODELS, Shape, prompt_length
from transformers import DynamicCache

from arkfast.distill import opd_step
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.models.arkasr.cost import ArkasrCost
from arkfast.models.packed import pack, pays
from arkfast.records import Batch, Rollout
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phases import Phases
from arkfast.train.optim import MasterAdamW
from arkfast.train.throughput import peak, step_operations

STUDENTS = {"cuda": 896, "cpu": 48}
TEACHERS = {"cuda": 2_048, "cpu": 48}
CLIPS = {"cuda": (40, 8), "cpu": (3,)}
"""Utterances of a step: the published recipe's first."""
ANSWER = {"cuda": 30, "cpu": 6}
"""Tokens of each transcript."""
K = {"cuda": 32, "cpu": 8}
SCALARS = 34
"""Numbers that the published step reduces one by one."""
LOSS_ERROR = {"cuda": 0.1, "cpu": 1e-4}
"""In bfloat16 two implementations do not decode the same tokens, so their losses agree as samples do."""


@dataclass(frozen=True)
class Pair:
    """A student and its teacher."""

    student: Any
    teacher: Any


@functools.lru_cache(maxsize=1)
def pair(student: int, teacher: int, device: torch.device) -> Pair:
    """Both models; a teacher of the student's size gets weights of its own."""
    made = speech.model.__wrapped__(student, device).requires_grad_(True)
    other = speech.model.__wrapped__(teacher, device)
    if student == teacher:
        with torch.no_grad():
            for i, weight in enumerate(p for p in other.parameters() if p.ndim == 2):
                weight.copy_(normal(*weight.shape, device=device, seed=i, scale=float(weight.std()), dtype=weight.dtype))
            other.lm_head.weight[MODELS[teacher].text + 2] = 0
    return Pair(made, other)


def models(shape: Shape, device: torch.device) -> Pair:
    return pair(shape.H, shape.HT, device)


def settings(shape: Shape) -> TrainConfig:
    """What both optimizers are told."""
    return TrainConfig(stage="sft", student_model=".", train_data=".", output_dir=".", opd_top_k=shape.K)  # type: ignore[arg-type]


# -- ours -----------------------------------------------------------------------------------------------------------------------------


class Ours:
    """``distill.opd_step`` and ``MasterAdamW``, as the trainer puts them together."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        both, allowed = models(shape, device), speech.allowed(shape.H)
        self._answer, self._device = ANSWER[device.type], device
        compute = speech.data_type(device)
        # A copy of its own: the other step trains the model's parameters themselves.
        self.student = speech.model.__wrapped__(shape.H, device).requires_grad_(True)
        self.student.load_state_dict(both.student.state_dict())
        if pays(device, compute):
            pack(self.student)
        self.optimizer = MasterAdamW(self.student.float().named_parameters(), settings(shape), compute)
        self._engine = Engine(self.student, allowed=allowed, topk=shape.K)
        self._teacher = ArkasrTeacher(both.teacher, allowed=allowed, top_k=shape.K)
        self.phases = Phases(device)

    def __call__(self, batch: Batch) -> torch.Tensor:
        loss = opd_step(
            self.student, self._engine, self._teacher, batch, tau=1.0, max_new_tokens=self._answer, phase=self.phases
        )  # fmt: skip
        with self.phases("backward"):
            loss.total.backward()
            self.optimizer.collect()
        with self.phases("optimizer"):
            result = self.optimizer.step(0.0, loss.count, loss.total)
        return result[0].cpu()


# -- the published algorithm ----------------------------------------------------------------------------------------------------------


class Original:
    """The published step, for one process."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        both = models(shape, device)
        self.student, self._teacher, self._k = both.student, both.teacher, shape.K
        self._answer, self._device = ANSWER[device.type], device
        # The two vocabularies are of different sizes, and blocked ids are left out of each by its own.
        self._blocked = speech.allowed(shape.H).blocked(MODELS[shape.H].V).tolist()
        self._blocked_t = speech.allowed(shape.HT).blocked(MODELS[shape.HT].V).tolist()
        self._optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.005)
        self.phases = Phases(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)

    def __call__(self, batch: Batch) -> torch.Tensor:
        ids, mask = speech.left_padded(batch, pad=0)
        with self.phases("rollout"), torch.no_grad():
            tokens, support = self._rollout(batch, ids, mask)
        with self.phases("teacher"), torch.no_grad():
            top_ids, top_scores, on_student = self._ask_teacher(batch, ids, mask, tokens, support)
        with self.phases("student_score"):
            loss = self._loss(self._score(batch, ids, mask, tokens), support, top_ids, top_scores, on_student)
        with self.phases("backward"):
            loss.backward()
        with self.phases("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
        for _ in range(SCALARS):
            self._reduced(float(loss.detach()))
        return loss.detach().cpu()

    def _reduced(self, number: float) -> float:
        """A number added up over the ranks, which takes it to the device and back."""
        tensor = torch.tensor(number, device=self._device)
        dist.all_reduce(tensor)
        return float(tensor.item())

    def _rollout(self, batch: Batch, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[list[list[int]]]]:
        """Greedy tokens [B, L] and the student's top-k of every row and step; the prompt's logits are full."""
        cache, picked, tops = DynamicCache(), [], []
        output = self.student(input_ids=ids, attention_mask=mask, audios=batch.mel, audio_lens=batch.mel_lens, past_key_values=cache,
                              use_cache=True)  # fmt: skip
        position = mask.sum(1)
        for step in range(self._answer):
            scores = output.logits[:, -1]
            scores[:, self._blocked] = float("-inf")
            best = torch.topk(scores, self._k, dim=-1).indices
            token = scores.argmax(-1)
            picked.append(token)
            tops.append(best)
            unfinished = torch.tensor(float((token >= 0).any()), device=self._device)
            dist.all_reduce(unfinished)
            if not bool(unfinished > 0) or step + 1 == self._answer:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = self.student(input_ids=token[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache,
                                  use_cache=True)  # fmt: skip
            position = position + 1
        return torch.stack(picked, 1), [[tops[t][row].cpu().tolist() for t in range(len(tops))] for row in range(batch.size)]

    def _forced(self, model: Any, batch: Batch, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Full logits of prompts and tokens, then the rows [N, V] that predict a token."""
        whole = torch.cat([ids, tokens], dim=1)
        seen = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        logits = model(input_ids=whole, attention_mask=seen, audios=batch.mel, audio_lens=batch.mel_lens, use_cache=False).logits
        rows = torch.arange(batch.size, device=self._device).repeat_interleave(tokens.shape[1])
        places = torch.arange(tokens.shape[1], device=self._device).repeat(batch.size) + ids.shape[1] - 1
        return logits[rows, places]

    def _ask_teacher(
        self, batch: Batch, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, support: list[list[list[int]]]
    ) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
        """Its top-k ids with their logits, and its log-probabilities of the student's ids, as lists."""
        selected = self._forced(self._teacher, batch, ids, mask, tokens).clone()
        selected[:, self._blocked_t] = float("-inf")
        best = torch.topk(selected, self._k, dim=-1)
        log_probs = torch.log_softmax(selected.float(), dim=-1)
        top_ids, top_scores, on_student = [], [], []
        flat = [step for row in support for step in row]
        for i, wanted in enumerate(flat):
            top_ids.append(best.indices[i].cpu().tolist())
            top_scores.append(best.values[i].float().cpu().tolist())
            index = torch.tensor(wanted, device=self._device)
            on_student.append(log_probs[i].gather(0, index).cpu().tolist())
        return top_ids, top_scores, on_student

    def _score(self, batch: Batch, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._forced(self.student, batch, ids, mask, tokens)

    def _loss(
        self,
        logits: torch.Tensor,
        support: list[list[list[int]]],
        top_ids: list[list[int]],
        top_scores: list[list[float]],
        on_student: list[list[float]],
    ) -> torch.Tensor:
        """KL over the union, its rows filled in one element at a time; logits and log-probabilities stand in one row."""
        flat = [step for row in support for step in row]
        merged = []
        for wanted, theirs, ours, scores in zip(flat, top_ids, on_student, top_scores, strict=True):
            row = dict(zip(wanted, ours, strict=True))
            row.update(dict(zip(theirs, scores, strict=True)))
            merged.append(row)
        width = max(len(row) for row in merged)
        union = torch.zeros(len(merged), width, dtype=torch.long, device=self._device)
        teacher = torch.full((len(merged), width), float("-inf"), device=self._device)
        for i, row in enumerate(merged):
            for j, (token, score) in enumerate(row.items()):
                union[i, j] = token
                teacher[i, j] = score
        inside = torch.isfinite(teacher)
        student = logits.gather(1, union).masked_fill(~inside, float("-inf"))
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        return torch.where(inside, p.exp() * (p - q), 0.0).sum(-1).mean()


# -- the suite ------------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def steps(shape: Shape, device: torch.device) -> dict[str, Ours | Original]:
    """Both steps of a shape: models and optimizers are made once."""
    return {"original": Original(shape, device), "ours": Ours(shape, device)}


def inputs(shape: Shape, device: torch.device, seed: int) -> Batch:
    return speech.clips(shape.H, [MODELS[shape.H].clip] * shape.B, device, 1_000 * seed)


@torch.no_grad()
def oracle(shape: Shape, batch: Batch) -> dict[str, float]:
    """Both losses from full logits in double precision, by the two definitions."""
    device = batch.mel.device
    both, allowed = models(shape, device), speech.allowed(shape.H)
    rollout = Engine(both.student, allowed=allowed, topk=shape.K).rollout(batch, max_new_tokens=ANSWER[device.type])
    # Every allowed id is in both vocabularies, so the ids that both have hold all that counts.
    wide = min(MODELS[shape.H].V, MODELS[shape.HT].V)
    blocked = allowed.blocked(wide, device).long()
    mine, theirs = (_dense(model, batch, rollout, blocked)[:, :wide] for model in (both.student, both.teacher))
    support = torch.zeros_like(theirs, dtype=torch.bool).scatter_(1, mine.topk(shape.K).indices, True)
    top = torch.zeros_like(support).scatter_(1, theirs.topk(shape.K).indices, True)
    mixture = torch.where(top, theirs, theirs.log_softmax(-1))
    return {"ours": _divergence(theirs, mine, support | top), "original": _divergence(mixture, mine, support | top)}


def _dense(model: Any, batch: Batch, rollout: Rollout, blocked: torch.Tensor) -> torch.Tensor:
    """[N, V] float64 logits that predict the rollout's tokens, row by row."""
    found = []
    for i in range(batch.size):
        prompt = batch.input_ids[i, : batch.prompt_lens[i]]
        ids = torch.cat([prompt, rollout.tokens[i]])[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), audios=batch.mel[i : i + 1, :, : batch.mel_lens[i]],
                       use_cache=False).logits[0]  # fmt: skip
        found.append(logits[len(prompt) - 1 : -1].double())
    return torch.cat(found).index_fill(1, blocked, float("-inf"))


def _divergence(teacher: torch.Tensor, student: torch.Tensor, inside: torch.Tensor) -> float:
    p, q = (scores.masked_fill(~inside, float("-inf")).log_softmax(-1) for scores in (teacher, student))
    return float(torch.where(inside, p.exp() * (p - q), 0.0).sum(1).mean())


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    def make(name: str, note: str) -> Provider:
        def check(batch: Batch, loss: torch.Tensor, wanted: dict[str, float]) -> str | None:
            error = abs(float(loss) - wanted[name]) / abs(wanted[name])
            return None if error <= LOSS_ERROR[device.type] else f"loss is off by {error:.1e} of {wanted[name]:.4f}"

        def extra(batch: Batch) -> dict[str, Any]:
            step = steps(shape, device)[name]
            step.phases.take()
            step(batch)
            return {"phases": {phase: round(seconds, 6) for phase, seconds in step.phases.take().items()}, "audio_seconds": batch.seconds}

        return Provider(
            name=name, run=lambda batch: steps(shape, device)[name](batch), check=check, note=note, ours=name == "ours", extra=extra
        )

    return [make("original", "bfloat16 weights without masters, loss of mixed scores"), make("ours", "float32 masters")]


def work(shape: Shape) -> Work:
    """The passes that the loss needs: three of the student, one of the teacher with its head."""
    device = torch.device("cuda" if STUDENTS["cuda"] == shape.H else "cpu")
    batch = speech.clips(shape.H, [MODELS[shape.H].clip] * shape.B, torch.device("cpu"), 0)
    both = models(shape, device)
    answers = float(shape.B * ANSWER[device.type])
    flop = step_operations(batch, answers, rollouts=1, student=ArkasrCost(both.student), teacher=ArkasrCost(both.teacher))
    read = sum(p.numel() * p.element_size() for model in (both.student, both.teacher) for p in model.parameters())
    return Work(read=read, flop=round(flop))


def shapes(device: str) -> list[Shape]:
    """T counts the positions of all rows, prompts and answers."""
    H, HT, answer = STUDENTS[device], TEACHERS[device], ANSWER[device]
    length = prompt_length(MODELS[H].clip) + answer
    return [Shape(T=B * length, V=MODELS[H].V, H=H, HT=HT, K=K[device], B=B, mode="opd") for B in CLIPS[device]]


SUITE = Suite(
    name="step",
    shapes=shapes,
    inputs=inputs,
    set_bytes=lambda shape: 4 * 128 * round(100 * MODELS[shape.H].clip) * shape.B,
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="original",
)


def test_step(entry: Any, timed: Any) -> None:
    timed(entry)


def phases(rows: list[dict[str, Any]]) -> list[str]:
    """Where each step's time goes, how much audio it hears a second and what share of the device's peak its passes are."""
    lines = []
    for row in (row for row in rows if "phases" in row and "seconds" in row):
        parts = [f"{name} {1e3 * seconds:.1f} ms" for name, seconds in row["phases"].items()]
        rate = row["audio_seconds"] / row["seconds"]["p50"]
        top = peak(device_here())
        share = "" if top is None else f", {100 * work(Shape(**row['shape'])).flop / row['seconds']['p50'] / top:.1f} % of the peak"
        lines.append(f"{row['provider']:<9} {rate:.1f} audio-s/s{share}: {', '.join(parts)}")
    return lines


def show() -> None:
    """``python benchmarks/bench_step.py``: the table of all shapes, then each step's phases; exit status 1 when our check failed."""
    parser = argparse.ArgumentParser(description="Checks and times a training step, ours and the published one, side by side.")
    parser.add_argument("--seconds", type=float, default=300.0, help="no new shape is begun after so long")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    rows = list(run(SUITE, seconds=options.seconds))
    print("\n".join([*table(rows), *phases(rows)]))
    if options.out:
        write(options.out, {"name": SUITE.name, **machine(device_here(), None), "rows": rows})
    raise SystemExit(1 if any(row.get("ours") and str(row["check"]).startswith("failed") for row in rows) else 0)


if __name__ == "__main__":
    show()
