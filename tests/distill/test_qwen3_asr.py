"""The Qwen3-ASR teacher against Transformers' own model run by hand, on a tiny checkpoint whose vocabulary overlaps the student's as the
official ones do: one base vocabulary, other tokens above it."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from arkfast.audio import LogMel
from arkfast.data import collate
from arkfast.data.collate import pad_right
from arkfast.distill import td_step
from arkfast.distill.languages import COUNTED
from arkfast.distill.losses import cross_entropy_loss, opd_loss
from arkfast.distill.references import references
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers import TeacherRequest, backends, load_teacher
from arkfast.engine import Engine
from arkfast.models.family import find_family, load_model
from arkfast.models.packing import Packing
from arkfast.models.qwen3_asr.languages import NAMES, Spoken, spoken
from arkfast.models.qwen3_asr.load import load_config, transformers_name
from arkfast.models.qwen3_asr.modeling import token_count
from arkfast.records import InputError, Rollout, Utterance
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("qwen3_asr"))


def dense_scores(world: World, teacher: Any, rollout: Rollout, rows: Any = range(4), *, whole: bool = False) -> torch.Tensor:
    """[N, V] of every row run by hand, −inf at ids that may not be produced."""
    found = [world.dense(teacher, i, rollout.tokens[place, : LENS[i]].tolist(), whole=whole) for place, i in enumerate(rows)]
    logits = torch.cat(found)
    return logits.masked_fill(~world.allowed.mask(logits.shape[1]), float("-inf"))


@pytest.mark.parametrize("whole", [False, True], ids=["windows of 8 s", "whole clips"])
def test_scores_equal_a_dense_pass_of_transformers(world, whole):
    teacher, rollout = world.teacher(full_attention=whole), world.rollout()
    batch = world.batch(teacher)
    scores = teacher.score(batch, rollout, teacher.begin(batch))
    want = dense_scores(world, teacher, rollout, whole=whole)
    best = want.topk(K)
    torch.testing.assert_close(scores.scores, best.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(want.gather(1, scores.ids.long()), best.values, atol=1e-5, rtol=1e-5)
    seen = rollout.topk_ids >= 0
    gathered = want.gather(1, rollout.topk_ids.clamp(min=0).long())
    torch.testing.assert_close(scores.student_scores[seen], gathered[seen], atol=1e-5, rtol=1e-5)
    assert (scores.student_scores[~seen] == float("-inf")).all()
    assert scores.valid.all()
    assert scores.languages == NAMED
    assert len(scores.ids.unique()) >= 10, "the teacher says more than one thing"


def test_windows_and_whole_clips_differ_where_a_clip_is_longer_than_a_window(world):
    windows, whole = world.teacher(), world.teacher(full_attention=True)
    batch, rollout = world.batch(windows), world.rollout()
    difference = (windows.score(batch, rollout).scores - whole.score(batch, rollout).scores).abs().amax(1).split(LENS)
    assert [float(part.max()) > 1e-3 for part in difference] == [False, False, True, True]
    assert max(float(difference[0].max()), float(difference[1].max())) <= 1e-5


@pytest.mark.parametrize("whole", [False, True])
def test_scores_do_not_depend_on_batch_mates(world, whole):
    teacher = world.teacher(full_attention=whole)
    together = teacher.score(world.batch(teacher), world.rollout())
    for i, scores, own in zip(range(4), together.scores.split(LENS), together.student_scores.split(LENS), strict=True):
        alone = teacher.score(world.batch(teacher, [i]), world.rollout([i]))
        torch.testing.assert_close(alone.scores, scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.student_scores, own, atol=1e-5, rtol=0)


def test_what_stands_past_a_clips_end_is_never_heard(world):
    teacher, rollout = world.teacher(), world.rollout()
    batch = world.batch(teacher)
    heard = batch.teacher_inputs["mel"]
    past = torch.arange(heard.values.shape[2]) >= heard.shapes[:, 1, None]
    junk = replace(batch, teacher_inputs={"mel": replace(heard, values=heard.values + 7.0 * past[:, None])})
    assert torch.equal(teacher.score(junk, rollout).scores, teacher.score(batch, rollout).scores)


def test_eager_attention_gives_the_same_scores(world):
    batch, rollout = world.batch(world.teacher()), world.rollout()
    want = world.teacher().score(batch, rollout)
    torch.testing.assert_close(world.teacher(attn_implementation="eager").score(batch, rollout).scores, want.scores, atol=1e-5, rtol=1e-5)


def test_several_rollouts_of_a_prompt_are_each_scored_after_it(world):
    teacher, rollout = world.teacher(), world.rollout((2, 0, 2))
    batch = world.batch(teacher)
    scores = teacher.score(batch, replace(rollout, owner=torch.tensor([2, 0, 2])))
    want = dense_scores(world, teacher, rollout, (2, 0, 2))
    torch.testing.assert_close(scores.scores, want.topk(K).values, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_the_first_layout_scores_the_same_and_is_left_as_it_was(world):
    before = {path.name: path.read_bytes() for path in (world.root / "first").iterdir()}
    assert all(name.startswith("thinker.") for name in load_file(world.root / "first" / "model.safetensors"))
    native, first = world.teacher(), world.teacher("first")
    batch, rollout = world.batch(native), world.rollout()
    want, scores = native.score(batch, rollout), first.score(world.batch(first), rollout)
    assert torch.equal(scores.scores, want.scores)
    assert torch.equal(scores.ids, want.ids)
    assert torch.equal(scores.student_scores, want.student_scores)
    assert {path.name: path.read_bytes() for path in (world.root / "first").iterdir()} == before
    text = load_config(world.root / "first").get_text_config()
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


def test_both_names_are_one_teacher(world):
    names = {"qwen3_asr_teacher_forcing", "qwen3_asr_transformers"}
    assert names <= set(backends())
    assert not {"qwen3_asr", "direct"} & set(backends())
    kinds = {type(load_teacher(name, world.request())) for name in names}
    assert len(kinds) == 1


@pytest.mark.parametrize("language", ["English", None])
def test_prompt_is_that_of_the_processor(world, language):
    teacher = world.teacher(unsupported_language="none")
    batch = world.batch(teacher, languages=(language,) * 4)
    own, _ = teacher.read(batch)
    for i in range(4):
        want = world.processor.apply_transcription_request(world.clips[i], language=language, sampling_rate=16000)["input_ids"][0]
        ids = own.input_ids[i, : own.prompt_lens[i]]
        assert torch.equal(ids[: len(want)], want)
        tail = world.processor.tokenizer.decode(ids[len(want) :])
        assert tail in ({""} if language else {f"language {name}<asr_text>" for name in NAMES.values()})


def test_features_are_those_of_the_extractor_and_short_clips_are_padded(world):
    teacher = world.teacher()
    for clip in world.clips:
        want = world.processor.feature_extractor(clip, sampling_rate=16000, padding="longest", n_window=0)["input_features"][0]
        mel = teacher.prepare(clip)["mel"]
        assert mel.shape == want.shape == (128, max(len(clip), 8000) // 160)
        np.testing.assert_allclose(mel, want, atol=1e-4)  # logarithms of small float32 sums, added up in another order


def test_feature_workers_prepare_without_torch(world):
    payload = pickle.dumps(world.teacher().prepare)
    code = (
        "import sys, pickle, numpy as np\n"
        "prepare = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(prepare(np.ones(3000, np.float32))['mel'].shape, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, payload.hex()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(128, 50) False False"


@pytest.mark.parametrize("frames", [1, 8, 9, 49, 50, 99, 100, 101, 199, 800, 801, 1710, 3000])
def test_token_count_is_the_processors(world, frames):
    assert token_count(frames) == int(world.processor._get_audio_token_length(torch.tensor(frames)))
    assert token_count(torch.tensor([frames])).tolist() == [token_count(frames)]
    assert frames != 3000 or token_count(frames) == 390


@pytest.mark.parametrize("full_attention", [False, True])
def test_no_layer_runs_over_padding_and_a_clip_is_what_it_is_alone(world, monkeypatch, full_attention):
    model, computed = world.teacher(full_attention=full_attention).model, []
    attend = Packing.attend
    monkeypatch.setattr(Packing, "attend", lambda self, *a, **b: (computed.append(self.lens), attend(self, *a, **b))[1])
    generator = torch.Generator().manual_seed(0)
    for frames in ([30], [2999, 1], [801, 800, 799, 100, 101], torch.randint(1, 3001, (7,), generator=generator).tolist()):
        mel = torch.randn(len(frames), 128, max(frames), generator=generator)
        computed.clear()
        found, counts = model.get_audio_features(mel, torch.tensor(frames), frames=frames)
        computed = list(computed)
        assert counts.tolist() == [token_count(n) for n in frames]
        windows = [min(n, 30 * 13 if full_attention else 8 * 13) for n in counts.tolist()]
        assert all(sum(lens) == sum(counts.tolist()) and max(lens) == max(windows) for lens in computed)
        for row, n, own in zip(found, counts.tolist(), zip(mel, frames, strict=True), strict=True):
            (alone,), _ = model.get_audio_features(own[0][None, :, : own[1]])
            torch.testing.assert_close(row[:n], alone, atol=1e-5, rtol=1e-5)
            assert not row[n:].any()


def test_nothing_waits_for_the_device(world):
    """On a GPU each of these operations would: they hand a tensor's contents to the host."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    teacher = world.teacher(unsupported_language="none")
    for languages in (LANGUAGES, (None, "hr", "en", None)):
        batch, rollout = world.batch(teacher, languages=languages), world.rollout()
        with Watch():
            teacher.score(batch, rollout, teacher.begin(batch))
    assert len(seen) > 100
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "item"} & set(seen)


# -- ids -----------------------------------------------------------------


def test_direct_ids_equal_retokenised_text_where_the_text_is_canonical_and_only_there(world):
    """What checkpoint formats promise: ids and text meet for canonical, complete text without a leading blank, and not otherwise."""
    student, teacher = world.interface.tokenizer, AutoTokenizer.from_pretrained(world.root / "teacher")

    def again(ids: list[int]) -> list[int]:
        return teacher.encode("<asr_text>" + student.decode(ids, skip_special_tokens=False).strip(), add_special_tokens=False)[1:]

    for text in ("the quick brown fox", "It costs 3.50, doesn't it?", "東京は晴れ。", "Привет мир"):
        ids = [*student.encode(text, add_special_tokens=False), world.interface.end_id]
        assert again(ids) == ids, text
    canonical = student.encode("seven", add_special_tokens=False)
    letters = [student.convert_tokens_to_ids(letter) for letter in "seven"]
    assert canonical != letters
    assert again(letters) == canonical, "another segmentation of the same text"
    blank = student.encode(" seven", add_special_tokens=False)
    assert again(blank) != blank, "a leading blank"
    cut = student.encode("東", add_special_tokens=False)[:1]
    assert len(student.encode("東", add_special_tokens=False)) > 1
    assert again(cut) != cut, "a character that was cut"


def test_the_ids_that_were_sampled_are_scored_not_their_text(world):
    """Letters in place of a word: the teacher scores the letters."""
    teacher, student = world.teacher(), world.interface.tokenizer
    letters = [student.convert_tokens_to_ids(letter) for letter in "seven"]
    rollout = Rollout(
        tokens=torch.tensor([letters]), lens=torch.tensor([5]), stopped=torch.tensor([False]), owner=torch.tensor([0]),
        topk_ids=torch.tensor(letters, dtype=torch.int32)[:, None], total=5,
    )  # fmt: skip
    scores = teacher.score(world.batch(teacher, [1]), rollout)
    want = world.dense(teacher, 1, letters)[torch.arange(5), torch.tensor(letters)]
    torch.testing.assert_close(scores.student_scores[:, 0], want, atol=1e-5, rtol=1e-5)


def changed(world: World, tmp_path: Path, **files: Any) -> Path:
    """A copy of the teacher with some JSON files changed by functions of their contents."""
    folder = tmp_path / "changed"
    shutil.copytree(world.root / "teacher", folder)
    for name, change in files.items():
        path = folder / f"{name}.json"
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))
    return folder


def swap_tokens(fields: dict[str, Any]) -> None:
    vocab = fields["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_merges(fields: dict[str, Any]) -> None:
    merges = fields["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def other_end(fields: dict[str, Any]) -> None:
    for token in fields["added_tokens"]:
        token["content"] = {"<|im_end|>": "<|done|>", "<think>": "<|im_end|>"}.get(token["content"], token["content"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_tokens, r"vocabulary differs from --student_model's at 2 of \d+ ids \(id \d+: student '[ab]', teacher '[ab]'"),
        (swap_merges, r"cuts words differently from --student_model's: merge 0 is \(.*\), the student's \("),
        (other_end, r"vocabulary differs from --student_model's at 1 of \d+ ids \(id \d+: student '<\|im_end\|>', teacher '<\|done\|>'"),
    ],
)
def test_a_teacher_of_another_vocabulary_is_refused_and_what_differs_is_named(world, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        world.teacher(changed(world, tmp_path, tokenizer=change))


def test_a_smaller_vocabulary_or_head_is_refused(world, tmp_path):
    tiny_qwen3_asr(tmp_path / "small", vocab_size=330)
    with pytest.raises(InputError, match="vocabulary differs"):
        world.teacher(tmp_path / "small")
    from arkfast.distill.teachers.vocabulary import check_direct_ids

    tokenizer = AutoTokenizer.from_pretrained(world.root / "teacher")
    with pytest.raises(InputError, match=r"its head has scores of ids up to 99, and the student may produce id \d+"):
        check_direct_ids(world.interface.tokenizer, tokenizer, world.allowed, rows=100, backend="Qwen3-ASR")


def test_ids_without_a_token_are_never_candidates(world):
    teacher = world.teacher(top_k=world.allowed.count)
    scores = teacher.score(world.batch(teacher), world.rollout())
    allowed = world.allowed.mask(teacher.model.config.vocab_size)
    assert allowed[scores.ids.long()].all()
    assert not allowed[world.interface.end_id + 1 :].any(), "the tokens above are others in each vocabulary"


# -- files -----------------------------------------------------------------


@pytest.mark.parametrize("folder", ["teacher", "first"])
def test_tensors_that_are_missing_or_of_another_shape_are_named(world, tmp_path, folder):
    shutil.copytree(world.root / folder, tmp_path / "t")
    weights = load_file(tmp_path / "t" / "model.safetensors")
    gone = next(name for name in weights if name.endswith("audio_tower.layers.1.fc1.weight"))
    wrong = next(name for name in weights if name.endswith("audio_tower.ln_post.bias"))
    del weights[gone]
    weights |= {wrong: torch.zeros(7), "thinker.more": torch.zeros(1)}
    save_file(weights, tmp_path / "t" / "model.safetensors")
    with pytest.raises(InputError) as caught:
        world.teacher(tmp_path / "t")
    text = str(caught.value)
    assert f"missing: {transformers_name(gone)}" in text
    assert f"wrong shape: {transformers_name(wrong)} [7], expected [32]" in text
    assert "unexpected: thinker.more" in text


def test_a_head_that_differs_from_the_table_that_it_is_said_to_be_is_used_as_it_is_stored(world, tmp_path):
    shutil.copytree(world.root / "first", tmp_path / "t")
    weights = load_file(tmp_path / "t" / "model.safetensors")
    assert {"thinker.lm_head.weight", "thinker.model.embed_tokens.weight"} <= set(weights), "both are stored, and equal"
    weights["thinker.lm_head.weight"][3, 3] += 1
    save_file(weights, tmp_path / "t" / "model.safetensors")
    with pytest.warns(RuntimeWarning, match="are one tensor .* and the files hold two that differ"):
        model = world.teacher(tmp_path / "t").model
    assert torch.equal(model.lm_head.weight, weights["thinker.lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, weights["thinker.model.embed_tokens.weight"])


def test_an_untied_head_is_its_own(world, tmp_path):
    for layout in ("transformers", "first"):
        tiny_qwen3_asr(tmp_path / layout, seed=4, layout=layout, tie_word_embeddings=False)
    native, first = (world.teacher(tmp_path / layout) for layout in ("transformers", "first"))
    assert not torch.equal(native.model.lm_head.weight, native.model.get_input_embeddings().weight)
    batch, rollout = world.batch(native), world.rollout()
    assert torch.equal(native.score(batch, rollout).scores, first.score(batch, rollout).scores)
    whole = Qwen3ASRForConditionalGeneration.from_pretrained(tmp_path / "transformers")
    assert torch.equal(native.model.lm_head.weight, whole.lm_head.weight)


def test_what_is_no_qwen3_asr_is_refused(world, tmp_path):
    with pytest.raises(
        InputError, match=r"student/config.json: model_type is 'arkasr', expected 'qwen3_asr'; give a Qwen3-ASR checkpoint$"
    ):
        world.teacher("student")
    folder = changed(world, tmp_path, config=lambda fields: fields.update(text_config=None, audio_config={"n_window": "x"}))
    with pytest.raises(InputError, match="cannot be read as a Qwen3-ASR configuration"):
        world.teacher(folder)
    shutil.rmtree(folder)
    folder = changed(world, tmp_path, processor_config=lambda fields: fields["feature_extractor"].update(hop_length=320))
    with pytest.raises(InputError, match="its features have hop_length = 320, expected 160"):
        world.teacher(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="no safetensors weights"):
        world.teacher(folder)


def test_flags_of_this_teacher_are_refused_by_others(world):
    for flag, change in (("teacher_full_attention", {"full_attention": True}), ("unsupported_language", {"unsupported_language": "none"})):
        with pytest.raises(InputError, match=f"--{flag}: the teacher arkasr has no such choice"):
            load_teacher("arkasr", world.request("student", **change))


# -- languages -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "want"),
    [
        ("de", None, Spoken("German")), ("German", "請", Spoken("German")), ("pt-BR", None, Spoken("Portuguese")),
        ("por", None, Spoken("Portuguese")), ("cmn-Hans", None, Spoken("Chinese")), ("yue", None, Spoken("Cantonese")),
        ("Farsi", None, Spoken("Persian")), ("tl", None, Spoken("Filipino")), ("hr", "dobar dan", Spoken(None, "hr")),
        ("Slovenian", None, Spoken(None, "sl")), ("est", None, Spoken(None, "et")), ("sw", None, Spoken(None, "sw")),
        ("zh-en", "请 open", Spoken(None)), (None, None, Spoken(None)), ("und", "hello", Spoken(None)),
        (None, "language learning takes time", Spoken(None)), (None, "東京は晴れ。", Spoken("Japanese")),
        (None, "请转写这段音频。", Spoken("Chinese")), (None, "the word 水 means water", Spoken(None)),
        (None, "he said カラオケ and left early", Spoken(None)), (None, "안녕하세요", Spoken("Korean")), (None, "Привет мир", Spoken(None)),
        ("日本語", None, Spoken("Japanese")),
        ("jp", None, Spoken("Japanese")), ("русский", None, Spoken("Russian")), ("arz", None, Spoken("Arabic")),
        ("klingon", "안녕하세요", Spoken("Korean")), ("klingon", "nuqneH", Spoken(None)), ("kr", "안녕하세요", Spoken("Korean")),
        ("kr", "ndu ye", Spoken(None, "kr")), ("wu", "侬好", Spoken(None, "wuu")), ("bzj", "weh di gaan", Spoken(None, "bzj")),
        (None, "สวัสดี", Spoken("Thai")), (None, "καλημέρα", Spoken("Greek")), (None, "2024", Spoken(None)),
    ],
)  # fmt: skip
def test_language_is_that_of_the_data_else_of_the_references_script(language, text, want):
    assert spoken(language, text) == want


def test_every_language_that_is_told_is_counted_under_its_name():
    assert set(NAMES.values()) <= set(COUNTED)
    assert len(NAMES) == 30


def test_the_reference_tells_the_language_and_the_students_output_does_not(world):
    teacher = world.teacher()
    batch = world.batch(teacher, languages=(None,) * 4, texts=("東京は晴れ。", "请转写", "안녕", "seven"))
    rollout = world.rollout()
    scores = teacher.score(batch, rollout)
    assert scores.languages == ("Japanese", "Chinese", "Korean", "detected")
    other = teacher.score(batch, replace(rollout, tokens=rollout.tokens.flip(0), lens=rollout.lens.flip(0), owner=rollout.owner))
    assert other.languages == scores.languages


@torch.no_grad()
def test_detection_takes_the_likeliest_language_by_the_whole_of_what_it_would_write(world):
    teacher = world.teacher()
    own, _ = teacher.read(world.batch(teacher, languages=(None,) * 4))
    chosen = set()
    for i in range(4):
        likelihood = {}
        for name in NAMES.values():
            tail = world.processor.tokenizer.encode(f"language {name}<asr_text>", add_special_tokens=False)
            logits = world.dense(teacher, i, tail, prefix="")
            likelihood[name] = float(logits.log_softmax(-1)[torch.arange(len(tail)), torch.tensor(tail)].sum())
        best = max(likelihood, key=likelihood.__getitem__)
        text = world.processor.tokenizer.decode(own.input_ids[i, : own.prompt_lens[i]])
        assert text.endswith(f"assistant\nlanguage {best}<asr_text>")
        chosen.add(best)
    assert chosen


def test_rows_in_languages_that_it_does_not_know_are_left_out_and_counted(world):
    teacher, rollout = world.teacher(), world.rollout()
    batch = world.batch(teacher, languages=("en", "hr", "sw", "lt"))
    scores = teacher.score(batch, rollout)
    assert scores.languages == ("English", "skipped: Croatian", "skipped: another", "skipped: Lithuanian")
    row, _ = rollout.packed_index()
    assert torch.equal(scores.valid, row == 0)
    loss = opd_loss(world.student, batch, encoded(world.student, batch), rollout, scores, tau=1.0)
    assert float(loss.count) == LENS[0]
    alone, only = world.batch(teacher, [0]), world.rollout([0])
    want = opd_loss(world.student, alone, encoded(world.student, alone), only, teacher.score(alone, only), tau=1.0)
    torch.testing.assert_close(loss.total, want.total, atol=1e-4, rtol=1e-5)

    asked = world.teacher(unsupported_language="none")
    scores = asked.score(batch, rollout)
    assert scores.languages == ("English", "detected", "detected", "detected")
    assert scores.valid.all()


@pytest.mark.parametrize("languages", [("en", "hr", "en", "sw"), ("hr", "sk", "sl", "et")], ids=["two of them", "all"])
def test_rows_in_such_languages_learn_their_references_where_that_is_chosen(world, languages):
    """The loss, its count and its gradient are those of the scored rows and of the references, each computed alone."""
    teacher, skipping, student = world.teacher(unsupported_language="sft"), world.teacher(), load_model(world.root / "student")
    texts = ("dobar dan", "jedan dva tri", " ", "moja")
    batch = world.batch(teacher, languages=languages, texts=texts)
    ids = [
        [*world.interface.tokenizer.encode(text, add_special_tokens=False), world.interface.end_id] if text.strip() else []
        for text in texts
    ]
    target_ids, target_lens = pad_right(ids)
    batch = replace(batch, target_ids=target_ids, target_lens=target_lens)
    engine = Engine(student, allowed=world.allowed)
    learnt = [i for i, language in enumerate(languages) if language != "en" and texts[i].strip()]

    def gradient(*losses: Any) -> Any:
        student.zero_grad()
        sum(loss.total for loss in losses).backward()
        return student.lm_head.weight.grad.clone()

    rollout = world.rollout()
    scores = teacher.score(batch, rollout)
    assert scores.by_reference == tuple(learnt)
    assert [name.startswith("reference: ") for name in scores.languages] == [i in learnt for i in range(4)]
    assert scores.languages[2] in ("English", "skipped: Slovene")
    limits = {"blocked": engine.blocked, "allowed": engine.allowed}
    loss = opd_loss(student, batch, encoded(student, batch), rollout, scores, tau=1.0, **limits)
    found = gradient(loss)
    scored = opd_loss(student, batch, encoded(student, batch), rollout, skipping.score(batch, rollout), tau=1.0)
    words = references(batch, learnt)
    alone = cross_entropy_loss(student, batch, encoded(student, batch), words, **limits)
    assert float(loss.count) == float(scored.count) + sum(len(ids[i]) for i in learnt)
    torch.testing.assert_close(loss.total, scored.total + alone.total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss.metrics["asr_loss"][0], alone.total.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found, gradient(scored, alone), atol=1e-4, rtol=1e-4)

    labels = teacher.transcribe(batch, max_new_tokens=2)
    for i in range(4):
        if i in learnt:
            assert labels.tokens[i, : labels.lens[i]].tolist() == ids[i]
        elif languages[i] != "en":
            assert labels.lens[i] == 0
    assert labels.languages == scores.languages


@pytest.mark.parametrize("languages", [("en", "hr", "en", "en"), ("hr", "sk", "sl", "et")], ids=["one of them", "all"])
def test_its_transcripts_of_such_rows_are_not_learnt_either(world, languages):
    teacher = world.teacher()
    batch = world.batch(teacher, languages=languages)
    labels = teacher.transcribe(batch, max_new_tokens=6)
    skipped = torch.tensor([language != "en" for language in languages])
    assert torch.equal(labels.lens == 0, skipped)
    loss = td_step(world.student, Engine(world.student, allowed=world.allowed), teacher, batch, max_new_tokens=6)
    assert float(loss.count) == float(labels.lens.sum())
    assert bool(torch.isfinite(loss.total))
    assert (
        loss.languages
        == labels.languages
        == tuple(
            "English" if code == "en" else f"skipped: {name}"
            for code, name in zip(
                languages, ("Croatian", "Croatian" if "sk" not in languages else "Slovak", "Slovene", "Estonian"), strict=True
            )
        )
    )


def test_a_batch_that_is_all_left_out_teaches_nothing(world):
    teacher, rollout = world.teacher(), world.rollout()
    batch = world.batch(teacher, languages=("hr", "sk", "sl", "et"))
    student = load_model(world.root / "student")
    losses = [opd_loss(student, batch, encoded(student, batch), rollout, teacher.score(batch, rollout), tau=1.0)]
    losses.append(td_step(student, Engine(student, allowed=world.allowed), teacher, batch, max_new_tokens=4))
    for loss in losses:
        loss.total.backward()
        assert float(loss.count) == float(loss.total) == 0
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


# -- answers -----------------------------------------------------------------


def test_its_transcript_is_the_greedy_one_of_transformers(world):
    teacher = world.teacher()
    found = teacher.transcribe(world.batch(teacher), max_new_tokens=8)
    distinct: set[int] = set()
    for i in range(4):
        ids: list[int] = []
        while len(ids) < 8 and (not ids or ids[-1] != world.interface.end_id):
            logits = world.dense(teacher, i, [*ids, 0])[-1]
            ids.append(int(logits.masked_fill(~world.allowed.mask(len(logits)), float("-inf")).argmax()))
        assert found.tokens[i, : found.lens[i]].tolist() == ids
        distinct |= set(ids)
    assert len(distinct) >= 10


def test_cost_counts_what_it_hears_and_reads(world):
    teacher = world.teacher()
    batch = world.batch(teacher)
    one, two = (teacher.cost.forward(batch, answers, head=True) for answers in (100.0, 200.0))
    assert two > one > 0
    assert teacher.cost.forward(world.batch(teacher, [0, 1]), 100.0, head=True) < one
    windows, whole = teacher.cost, world.teacher(full_attention=True).cost
    assert windows.encoder(batch) < whole.encoder(batch)
    assert windows.encoder(world.batch(teacher, [0, 1])) == whole.encoder(world.batch(teacher, [0, 1]))
    # The weights' products alone, by hand: every matrix of the encoder once for each embedding, every convolution once for each place.
    tower = teacher.model.whole.model.audio_tower
    counts = [token_count(max(len(clip), 8000) // 160) for clip in world.clips]
    matrices = sum(p.numel() for name, p in tower.named_parameters() if p.ndim == 2)
    matrices += sum(p.numel() for p in teacher.model.whole.model.multi_modal_projector.parameters() if p.ndim == 2)
    chunks = sum(-(-(max(len(clip), 8000) // 160) // 100) for clip in world.clips)
    places = (64 * 50, 32 * 25, 16 * 13)
    convolutions = sum(c.weight.numel() * n for c, n in zip((tower.conv2d1, tower.conv2d2, tower.conv2d3), places, strict=True))
    attention = 2 * 2 * 32 * sum(n * n for n in counts)
    assert whole.encoder(batch) == matrices * sum(counts) + convolutions * chunks + attention
