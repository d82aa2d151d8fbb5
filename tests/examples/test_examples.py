"""The examples: each loss against its definition in plain torch, and each script run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parents[2] / "examples"
FLOAT32 = 2e-6  # losses of order 1 from sums over 30 ids


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trl, verl = load("trl_style_loss"), load("verl_style_loss")


def models(positions: int = 6, vocabulary: int = 30) -> tuple[torch.Tensor, ...]:
    """(hidden, head, teacher hidden, teacher head) for [2, positions] positions and logits of standard deviation 1."""
    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(2, positions, 8), torch.randn(2, positions, 5)
    return (
        hidden.requires_grad_(),
        (torch.randn(vocabulary, 8) / 8**0.5).requires_grad_(),
        teacher_hidden,
        torch.randn(vocabulary, 5) / 5**0.5,
    )


def full(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> torch.Tensor:
    """[B, L] divergences over the whole vocabulary, in float64."""
    log_q, log_p = (student.double() / temperature).log_softmax(-1), (teacher.double() / temperature).log_softmax(-1)

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.kl_div(b, a, log_target=True, reduction="none").sum(-1)

    if beta in (0.0, 1.0):
        return kl(log_p, log_q) if beta == 0.0 else kl(log_q, log_p)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("top_k", [30, None])
def test_trl_style_losses_over_all_ids_are_the_full_divergence(beta, top_k):
    hidden, head, teacher_hidden, teacher_head = models()
    labels = torch.full((2, 6), 7)
    labels[0, :2], labels[1, 5] = -100, -100
    logits, teacher_logits = hidden @ head.t(), teacher_hidden @ teacher_head.t()
    rows = full(logits, teacher_logits, beta, 1.5)[labels != -100]
    want = torch.autograd.grad(rows.mean(), (hidden, head), retain_graph=True)
    settings = {"labels": labels, "beta": beta, "temperature": 1.5}
    losses = [trl.generalized_jsd_loss_from_hidden(hidden, head, teacher_hidden, teacher_head, **settings, top_k=top_k)]
    if top_k:
        losses.append(trl.generalized_jsd_loss(logits, teacher_logits, **settings, top_k=top_k))
    for loss in losses:
        torch.testing.assert_close(loss.double(), rows.mean(), rtol=0, atol=FLOAT32)
        for mine, true in zip(torch.autograd.grad(loss, (hidden, head), retain_graph=True), want, strict=True):
            torch.testing.assert_close(mine, true, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_trl_style_losses_agree_on_the_union(beta):
    hidden, head, teacher_hidden, teacher_head = models()
    labels = torch.zeros(2, 6).long()
    labels[1, 2] = -100
    settings = {"labels": labels, "beta": beta, "top_k": 4}
    a = trl.generalized_jsd_loss(hidden @ head.t(), teacher_hidden @ teacher_head.t(), reduction="none", **settings)
    b = trl.generalized_jsd_loss_from_hidden(hidden, head, teacher_hidden, teacher_head, reduction="none", **settings)
    assert a.shape == (12,)
    assert a[8] == b[8] == 0
    assert (a > 0).sum() == 11
    torch.testing.assert_close(a, b, rtol=0, atol=FLOAT32)
    total, mean = (
        trl.generalized_jsd_loss_from_hidden(hidden, head, teacher_hidden, teacher_head, reduction=r, **settings)
        for r in ("sum", "batchmean")
    )
    torch.testing.assert_close(total, b.sum())
    torch.testing.assert_close(mean, b.sum() / 11)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_verl_style_loss_is_its_definition(tail, divergence):
    hidden, head, teacher_hidden, teacher_head = models()
    top = (teacher_hidden @ teacher_head.t()).log_softmax(-1).topk(5)
    mask = torch.ones(2, 6)
    mask[0, 3:] = 0
    responses = torch.randint(0, 30, (2, 6))
    settings = {"divergence": divergence, "tail": tail, "responses": responses}
    loss, metrics = verl.topk_distillation_loss(hidden, head, top.indices, top.values, mask, **settings)
    grads = torch.autograd.grad(loss, (hidden, head))

    all_log_q = (hidden @ head.t()).double().log_softmax(-1)
    p, q = top.values.double().exp(), all_log_q.gather(-1, top.indices).exp()
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) if tail else x / x.sum(-1, keepdim=True) for x in (p, q))
    m = (p + q) / 2
    divergences = {
        "forward_kl": p * (p / q).log(),
        "reverse_kl": q * (q / p).log(),
        "jsd": (p * (p / m).log() + q * (q / m).log()) / 2,
    }
    kept = mask.bool()
    want = divergences[divergence].sum(-1)[kept].mean()
    torch.testing.assert_close(loss.double(), want, rtol=0, atol=FLOAT32)
    for mine, true in zip(grads, torch.autograd.grad(want, (hidden, head), retain_graph=True), strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=FLOAT32)
    entropy = -(all_log_q.exp() * all_log_q).sum(-1)[kept].mean()
    logprob = all_log_q.gather(-1, responses[..., None])[..., 0][kept].mean()
    wanted = {"tokens": 9.0, "teacher_mass": top.values.exp().sum(-1)[kept].mean(), "entropy": entropy, "logprob": logprob}
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        assert metrics[name].item() == pytest.approx(float(value.detach() if name != "tokens" else value), abs=FLOAT32)


def test_verl_style_loss_takes_short_lists_and_no_tokens():
    hidden, head, *_ = models(3)
    ids = torch.tensor([[4, 9], [7, -1], [-1, -1]]).expand(2, 3, 2)
    logprobs = torch.tensor([[-0.5, -1.5], [-0.1, float("-inf")], [float("-inf")] * 2]).expand(2, 3, 2)
    loss, metrics = verl.topk_distillation_loss(hidden, head, ids, logprobs, torch.ones(2, 3))
    assert loss > 0
    assert metrics["tokens"] == 4
    loss, metrics = verl.topk_distillation_loss(hidden, head, ids, logprobs, torch.zeros(2, 3))
    loss.backward()
    assert loss == 0
    assert metrics["tokens"] == 0
    assert not hidden.grad.any()


@pytest.mark.parametrize(("script", "lines"), [("trl_style_loss", 5), ("verl_style_loss", 4)])
def test_scripts_print_memory_before_and_after(script, lines):
    sizes = ["--positions", "600", "--vocabulary", "2000", "--features", "8"]
    run = subprocess.run([sys.executable, str(FOLDER / f"{script}.py"), *sizes], capture_output=True, text=True, cwd=FOLDER.parent)
    assert run.returncode == 0, run.stderr
    out = run.stdout.splitlines()
    assert len(out) == lines
    assert out[0].startswith("600 positions, vocabulary 2000, 8 features")
    assert torch.cuda.is_available() or all("largest tensor made (on a CPU; not a GPU's peak)" in line for line in out[1:])
    before, *after = (float(re.search(r": ([0-9.]+) MiB", line)[1]) for line in out[1:])
    assert min(after) < before


def test_full_vocabulary_losses_are_their_definitions():
    full = load("full_vocabulary")
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    teacher = (torch.randn(6, 5), torch.randn(30, 5))
    mask, tokens, advantages = torch.arange(6) < 4, torch.randint(0, 30, (6,)), torch.randn(6)
    log_q, log_p = (hidden @ head.t()).log_softmax(-1), (teacher[0] @ teacher[1].t()).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
    jsd = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)
    torch.testing.assert_close(full.distillation_loss((hidden, head), teacher, mask), jsd[:4].mean(), rtol=1e-5, atol=FLOAT32)
    entropy = -(log_q.exp() * log_q).sum(-1)
    wanted = -(log_q.gather(1, tokens[:, None])[:, 0] * advantages + 0.01 * entropy).mean()
    torch.testing.assert_close(full.policy_loss((hidden, head), tokens, advantages), wanted, rtol=1e-5, atol=FLOAT32)
    torch.testing.assert_close(full.confidences(hidden @ head.t(), tokens), log_q.exp().gather(1, tokens[:, None])[:, 0])
