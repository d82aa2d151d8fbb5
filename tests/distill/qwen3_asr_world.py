"""A tiny Qwen3-ASR teacher beside a student, and Transformers' own model of it run by hand, for the tests of that teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from arkfast.audio import LogMel
from arkfast.data import collate
from arkfast.distill.teachers import TeacherRequest, load_teacher
from arkfast.models.family import find_family, load_model
from arkfast.models.qwen3_asr.modeling import token_count
from arkfast.records import Rollout, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_qwen3_asr

K = 8
SECONDS = (0.3, 2.37, 17.1, 9.56)
"""Under half a second; within a window; over two windows and a part of a third; two windows."""
LANGUAGES = ("en", "German", "zh-CN", "fr")
NAMED = ("English", "German", "Chinese", "French")
LENS = (5, 1, 9, 3)
TEMPLATE = (
    "{% set p = namespace(context='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set p.context = m['content'][0]['text'] %}"
    "{% endif %}{% endfor %}<|im_start|>system\n{{ p.context }}<|im_end|>\n{% for m in messages %}{% if m['role'] == 'user' %}"
    "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n{% elif m['role'] == 'assistant' %}"
    "<|im_start|>assistant\n{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
)
"""The documented layout, for Transformers' processor."""


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        tiny_checkpoint(root / "student", seed=1)
        tiny_qwen3_asr(root / "teacher", seed=3)
        tiny_qwen3_asr(root / "first", seed=3, layout="first")
        family = find_family(root / "student")
        self.student = load_model(root / "student")
        self.interface = family.interface(family.tokenizer(root / "student"), self.student, where="student")
        self.allowed = self.interface.allowed("asr")
        self.transformers = Qwen3ASRForConditionalGeneration.from_pretrained(root / "teacher").eval()
        self.processor = Qwen3ASRProcessor.from_pretrained(root / "teacher", chat_template=TEMPLATE)
        self.clips = [synthetic_speech(seconds, seed=i) for i, seconds in enumerate(SECONDS)]

    def request(self, folder: str | Path = "teacher", **changes: Any) -> TeacherRequest:
        fields = {
            "model": self.root / folder, "student": self.student, "interface": self.interface, "task": "asr", "allowed": self.allowed,
            "top_k": K, "device": torch.device("cpu"), "dtype": torch.float32, "attn_implementation": "sdpa",
        }  # fmt: skip
        return TeacherRequest(**{**fields, **changes})

    def teacher(self, folder: str | Path = "teacher", **changes: Any) -> Any:
        return load_teacher("qwen3_asr_teacher_forcing", self.request(folder, **changes))

    def batch(self, teacher: Any, rows: Any = range(4), languages: Any = LANGUAGES, texts: Any = (None,) * 4) -> Any:
        log_mel = LogMel(128)
        utterances = [
            Utterance(id=f"u{i}", audio=self.clips[i], language=languages[i], text=texts[i], where=f"a.jsonl:{i + 1}") for i in rows
        ]
        features = [log_mel([self.clips[i]])[0][0] for i in rows]
        prepared = [teacher.prepare(self.clips[i]) for i in rows]
        return collate(utterances, features, self.interface.prompt("asr"), None, prepared)

    def rollout(self, rows: Any = range(4)) -> Rollout:
        """Random text with the end token last, and random lists; every row the same whatever its mates."""
        lens = [LENS[i] for i in rows]
        last = self.allowed.ranges[0][1]
        tokens = torch.zeros(len(lens), max(lens), dtype=torch.int64)
        lists = []
        for place, i in enumerate(rows):
            generator = torch.Generator().manual_seed(i)
            tokens[place, : LENS[i]] = torch.randint(0, last, (LENS[i],), generator=generator)
            tokens[place, LENS[i] - 1] = self.interface.end_id
            lists += [torch.randperm(last, generator=generator)[:K].int() for _ in range(LENS[i])]
        topk_ids = torch.stack(lists)
        topk_ids[(torch.cat([torch.arange(n) for n in lens]) % 3) == 0, -1] = -1
        return Rollout(
            tokens=tokens, lens=torch.tensor(lens), stopped=torch.ones(len(lens), dtype=torch.bool), owner=torch.arange(len(lens)),
            topk_ids=topk_ids, total=sum(lens),
        )  # fmt: skip

    @torch.no_grad()
    def dense(self, teacher: Any, i: int, tail: list[int], *, whole: bool = False, prefix: str | None = None) -> torch.Tensor:
        """Transformers' logits at the positions that predict ``tail`` after the prompt of clip i: [tail, V]."""
        mel = torch.from_numpy(teacher.prepare(self.clips[i])["mel"])
        frames = mel.shape[1]
        padded = torch.nn.functional.pad(mel, (0, -frames % 100))
        count = token_count(frames)
        told = f"language {NAMED[i]}<asr_text>" if prefix is None else prefix
        text = (
            f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>{'<|audio_pad|>' * count}<|audio_end|><|im_end|>\n"
            f"<|im_start|>assistant\n{told}"
        )
        ids = self.processor.tokenizer.encode(text, add_special_tokens=False) + tail
        inputs, features = (
            torch.tensor([ids]),
            {
                "input_features": padded[None],
                "input_features_mask": (torch.arange(padded.shape[1]) < frames).long()[None],
            },
        )
        if not whole:
            logits = self.transformers(input_ids=inputs, attention_mask=torch.ones_like(inputs), **features).logits[0]
            return logits[-len(tail) - 1 : -1].float()
        one = torch.tensor([0, count], dtype=torch.int32)  # the bounds of one window
        audio = self.transformers.get_audio_features(**features, cu_seqlens=one).pooler_output
        embeddings = self.transformers.get_input_embeddings()(inputs)
        embeddings[inputs == self.transformers.config.audio_token_id] = audio
        logits = self.transformers(inputs_embeds=embeddings, attention_mask=torch.ones_like(inputs)).logits[0]
        return logits[-len(tail) - 1 : -1].float()


def dense_scores(world: World, teacher: Any, rollout: Rollout, rows: Any = range(4), *, whole: bool = False) -> torch.Tensor:
    """[N, V] of every row run by hand, −inf at ids that may not be produced."""
    found = [world.dense(teacher, i, rollout.tokens[place, : LENS[i]].tolist(), whole=whole) for place, i in enumerate(rows)]
    logits = torch.cat(found)
    return logits.masked_fill(~world.allowed.mask(logits.shape[1]), float("-inf"))
