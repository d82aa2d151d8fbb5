"""The Qwen3-ASR teacher against Transformers' own model run by hand, on a tiny checkpoint whose vocabulary overlaps the student's as the
official ones do: one base vocabulary, other tokens above it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qwen3_asr_world import LANGUAGES, LENS, NAMED, K, World, dense_scores
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

from arkfast.distill.teachers import backends, load_teacher
from arkfast.models.packing import Packing
from arkfast.models.qwen3_asr.languages import NAMES
from arkfast.models.qwen3_asr.modeling import token_count
from arkfast.records import Rollout


@pytest.fixture
def world(qwen3_asr_world: World) -> World:
    return qwen3_asr_world


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
    batch = replace(batch, prompt_sizes=tuple(batch.prompt_lens.tolist()))
    own, _ = teacher.read(batch)
    assert own.prompt_sizes in (None, tuple(own.prompt_lens.tolist())), "those of the student's prompts are others"
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


def test_ids_without_a_token_are_never_candidates(world):
    teacher = world.teacher(top_k=world.allowed.count)
    scores = teacher.score(world.batch(teacher), world.rollout())
    allowed = world.allowed.mask(teacher.model.config.vocab_size)
    assert allowed[scores.ids.long()].all()
    assert not allowed[world.interface.end_id + 1 :].any(), "the tokens above are others in each vocabulary"


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
