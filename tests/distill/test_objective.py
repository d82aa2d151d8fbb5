"""Every divergence on every support against its dense definition in float64, and the properties that each must have."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill.losses import opd_loss
from arkfast.distill.objective import Divergence, Objective, Support, divergences
from arkfast.distill.teachers import TeacherRequest, load_teacher
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.records import AllowedTokens, InputError, Rollout, TeacherScores
from arkfast.testing import tiny_model

SMALL = AllowedTokens(ranges=((0, 18),), stop_ids=(21,))
V, HIDDEN, LENS, TAU = 24, 6, (3, 1, 4), 1.5
BLOCKED = SMALL.blocked(V)
CHOICES: list[tuple[Divergence, Support, bool]] = [
    (divergence, support, tail)
    for divergence in ("forward_kl", "reverse_kl", "jsd")
    for support in ("union", "teacher", "student", "intersection", "full")
    for tail in (False, True)
    if not (tail and support == "full")
]  # fmt: skip


class World:
    """Two heads over 24 ids of which 19 may be produced, in float64; the teacher cannot score the last position."""

    def __init__(self, k: int = 4, *, same: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        n = sum(LENS)
        self.hidden = torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
        self.weight = torch.randn(V, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
        self.states = torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64)
        self.head = torch.randn(V, HIDDEN, generator=generator, dtype=torch.float64)
        if same:
            self.states, self.head = self.hidden.detach(), self.weight.detach()
        self.k = k
        out = ~SMALL.mask(V)
        self.z = (self.hidden @ self.weight.T).masked_fill(out, float("-inf"))
        self.t = (self.states @ self.head.T).masked_fill(out, float("-inf"))
        student, teacher = (z.detach().topk(min(k, SMALL.count), 1) for z in (self.z, self.t))
        tokens = torch.zeros(len(LENS), max(LENS), dtype=torch.int64)
        self.rollout = Rollout(
            tokens=tokens, lens=torch.tensor(LENS), stopped=torch.ones(3, dtype=torch.bool), owner=torch.arange(3),
            topk_ids=student.indices.int(), total=n,
        )  # fmt: skip
        self.valid = torch.arange(n) < n - 1
        self.scores = TeacherScores(
            ids=teacher.indices.int(), scores=teacher.values, student_scores=self.t.gather(1, student.indices), valid=self.valid,
            lse=(self.t / TAU).logsumexp(1), states=self.states, head=self.head,
        )  # fmt: skip

    def found(self, divergence: Divergence, support: Support, tail: bool, scores: TeacherScores | None = None) -> torch.Tensor:
        objective = Objective(divergence=divergence, beta=0.3, support=support, tail=tail)
        scores = self.scores if scores is None else scores
        found = divergences(
            objective, self.hidden, self.weight, self.rollout, scores, tau=TAU, blocked=BLOCKED, allowed=SMALL
        )  # fmt: skip
        self.counted, self.sizes = found.valid, found.support
        return found.total

    def dense(self, divergence: Divergence, support: Support, tail: bool) -> torch.Tensor:
        """Both distributions as vectors over the support, position by position, from the definition."""
        total = self.hidden.new_zeros(())
        for row in range(len(self.z) - 1):
            ours = set(self.z[row].detach().topk(self.k).indices.tolist())
            theirs = set(self.t[row].topk(self.k).indices.tolist())
            every = set(range(18)) | {21}
            ids = {"union": ours | theirs, "teacher": theirs, "student": ours, "intersection": ours & theirs, "full": every}[support]
            if len(ids) < (1 if tail else 2):
                continue
            where = torch.tensor(sorted(ids))
            if tail:
                p, q = ((z[row] / TAU).softmax(0)[where] for z in (self.t, self.z))
                p, q = (torch.cat([x, (1 - x.sum())[None]]) for x in (p, q))
            else:
                p, q = ((z[row][where] / TAU).softmax(0) for z in (self.t, self.z))
            m = 0.3 * p + 0.7 * q
            total = (
                total
                + TAU**2
                * {
                    "forward_kl": (p * (p / q).log()).sum(),
                    "reverse_kl": (q * (q / p).log()).sum(),
                    "jsd": 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum(),
                }[divergence]
            )
        return total

    def gradients(self, total: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(total, (self.hidden, self.weight), retain_graph=True)


@pytest.mark.parametrize(("divergence", "support", "tail"), CHOICES)
def test_loss_and_gradients_are_those_of_the_definition(divergence: Divergence, support: Support, tail: bool) -> None:
    world = World()
    found, want = world.found(divergence, support, tail), world.dense(divergence, support, tail)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    assert float(want.detach()) > 0.1
    for ours, theirs in zip(world.gradients(found), world.gradients(want), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    assert not world.counted[-1], "the teacher could not score it"


@pytest.mark.parametrize(("divergence", "support", "tail"), CHOICES)
def test_a_constant_added_to_a_positions_scores_changes_nothing(divergence: Divergence, support: Support, tail: bool) -> None:
    """As a bias that all ids share; the teacher's head has none, so of its states the full support is tried in another way."""
    world = World()
    shift = torch.linspace(-30, 50, len(world.t), dtype=torch.float64)
    assert world.scores.lse is not None
    moved = replace(
        world.scores,
        scores=world.scores.scores + shift[:, None],
        student_scores=world.scores.student_scores + shift[:, None],
        lse=world.scores.lse + shift / TAU,
    )
    if support == "full":  # one more column that is the constant of each position in the states, and 1 in the head
        moved = replace(
            world.scores, states=torch.cat([world.states, shift[:, None]], 1), head=torch.cat([world.head, torch.ones(V, 1)], 1)
        )
    before, after = world.found(divergence, support, tail), world.found(divergence, support, tail, moved)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(world.gradients(after), world.gradients(before), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("divergence", "support", "tail"), CHOICES)
def test_equal_models_have_no_loss_and_no_gradient(divergence: Divergence, support: Support, tail: bool) -> None:
    world = World(same=True)
    found = world.found(divergence, support, tail)
    assert abs(float(found.detach())) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in world.gradients(found)) < 1e-12
    assert int(world.counted.sum()) == sum(LENS) - 1


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_the_tail_bucket_grows_into_the_whole_divergence(divergence: Divergence) -> None:
    """Merging ids never adds divergence, and lists of more ids merge fewer: the loss grows with k, up to that of all ids."""
    whole = World().dense(divergence, "full", False).detach()
    grown = [float(World(k).found(divergence, "teacher", True).detach()) for k in (1, 2, 4, 8, 16, SMALL.count)]
    assert all(a < b for a, b in itertools.pairwise(grown)), grown
    assert grown[0] < 0.7 * float(whole)
    # With every id listed the tail's mass is 0 and is taken as 2⁻¹⁷ on both sides.
    assert grown[-1] == pytest.approx(float(whole), rel=1e-4)


def test_supports_are_nested_and_said() -> None:
    sizes = {}
    for support in ("union", "teacher", "student", "intersection", "full"):
        world = World()
        world.found("forward_kl", support, False)  # type: ignore[arg-type]
        sizes[support] = world.sizes[:-1]
    assert bool((sizes["teacher"] == 4).all())
    assert bool((sizes["student"] == 4).all())
    assert torch.equal(sizes["union"] + sizes["intersection"], sizes["teacher"] + sizes["student"])
    assert len(sizes["intersection"].unique()) > 1
    assert bool((sizes["full"] == SMALL.count).all())


MODELS: list[tuple[Divergence, Support, bool]] = [
    ("reverse_kl", "teacher", False), ("jsd", "union", True), ("forward_kl", "full", False),
]  # fmt: skip


@pytest.mark.parametrize(("divergence", "support", "tail"), MODELS)
def test_through_a_model_and_its_teacher(divergence: Divergence, support: Support, tail: bool) -> None:
    """The teacher reports what the objective needs; the same loss from its logits of whole sequences."""
    objective = Objective(divergence=divergence, support=support, tail=tail)
    student, batch = tiny_model(seed=1), make_batch()
    engine = Engine(student, allowed=ALLOWED, topk=8)
    teacher = ArkasrTeacher(
        tiny_model(seed=2), allowed=ALLOWED, top_k=8, lse_temperature=1.5 if objective.needs_lse else None, states=objective.needs_states
    )
    rollout = engine.rollout(batch, max_new_tokens=10)
    scores = teacher.score(batch, rollout)
    assert (scores.lse is None, scores.states is None, scores.head is None) == (not tail, support != "full", support != "full")
    audio = student.get_audio_features(batch.mel, batch.mel_lens)
    loss = opd_loss(student, batch, audio, rollout, scores, tau=1.5, objective=objective, blocked=engine.blocked, allowed=ALLOWED)

    def logits(model: torch.nn.Module) -> torch.Tensor:
        packed = []
        for i, n in enumerate(rollout.lens.tolist()):
            ids = torch.cat([batch.input_ids[i, : batch.prompt_lens[i]], rollout.tokens[i, :n]])[None]
            mel = batch.mel[i : i + 1, :, : int(batch.mel_lens[i])]
            whole = model(input_ids=ids, attention_mask=torch.ones_like(ids), audios=mel, use_cache=False).logits[0]
            packed.append(whole[int(batch.prompt_lens[i]) - 1 :][:n])
        return torch.cat(packed).masked_fill(~ALLOWED.mask(97), float("-inf"))

    z = logits(student)
    with torch.no_grad():
        t = logits(teacher.model)
    want = z.new_zeros(())
    for ours, theirs in zip(z, t, strict=True):
        listed = set(theirs.topk(8).indices.tolist()) | (set(ours.topk(8).indices.tolist()) if support == "union" else set())
        where = ALLOWED.mask(97) if support == "full" else torch.tensor(sorted(listed))
        p, q = ((scores / 1.5).softmax(0)[where] for scores in (theirs, ours))
        p, q = (torch.cat([x, (1 - x.sum())[None]]) if tail else x / x.sum() for x in (p, q))
        m = 0.5 * (p + q)
        terms = {
            "forward_kl": p * (p / q).log(),
            "reverse_kl": q * (q / p).log(),
            "jsd": 0.5 * (p * (p / m).log() + q * (q / m).log()),
        }
        want = want + 1.5**2 * terms[divergence].sum()
    assert loss.count == rollout.lens.sum()
    torch.testing.assert_close(loss.total, want, rtol=1e-4, atol=0)
    found, dense = (torch.autograd.grad(total, student.lm_head.weight, retain_graph=True)[0] for total in (loss.total, want))
    torch.testing.assert_close(found, dense, rtol=1e-3, atol=2e-5 * float(dense.abs().max()))


def test_what_a_teacher_does_not_report_is_said() -> None:
    world = World()
    bare = replace(world.scores, lse=None, states=None, head=None)
    with pytest.raises(InputError, match="--tail_bucket: the teacher reports no log-sum-exp"):
        world.found("forward_kl", "union", True, bare)
    with pytest.raises(InputError, match="--support full: the teacher reports no hidden states"):
        world.found("forward_kl", "full", False, bare)
    with pytest.raises(ValueError, match="the full one leaves out nothing"):
        Objective(support="full", tail=True)


def test_a_teacher_elsewhere_or_of_another_vocabulary_is_no_teacher_of_the_full_support() -> None:
    fields = dict.fromkeys(("model", "student", "interface", "task", "allowed", "device", "dtype", "attn_implementation"))
    request = TeacherRequest(**fields, top_k=4, states=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--support full: the teacher hf_causal_lm has no such choice"):
        load_teacher("hf_causal_lm", request)
