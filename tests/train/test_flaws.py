"""docs/flaws.md: every flaw has its row, every test and symbol that a row names is there; and the flaws that no other test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from arkfast.command_line import parse
from arkfast.data import pad_right
from arkfast.data.transcript import clean_transcript
from arkfast.distill.step import opd_step
from arkfast.distill.teachers import backends
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import AllowedTokens, Batch, Rollout
from arkfast.testing import tiny_model
from arkfast.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([CP]\d+) \| (.+?) \| (.*?) \| (.+) \|$", re.MULTILINE)
REFERENCE = re.compile(r"`((?:tests|arkfast|kernels|scripts)/[\w/.]+):(:?)([\w.]+)`")


def rows() -> dict[str, tuple[str, str]]:
    """What each row says of the present state: (how it is here, shown by)."""
    found = ROW.findall((ROOT / "docs" / "flaws.md").read_text(encoding="utf-8"))
    assert len({name for name, *_ in found}) == len(found), "a flaw has two rows"
    return {name: (here, shown) for name, _, here, shown in found}


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (Class.method) of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_every_flaw_has_a_row():
    assert set(rows()) == {f"C{i}" for i in range(1, 40)} | {f"P{i}" for i in range(1, 16)}


@pytest.mark.parametrize("flaw", list(rows()))
def test_what_a_row_names_is_there_and_no_row_is_bare(flaw):
    here, shown = rows()[flaw]
    references = REFERENCE.findall(shown)
    assert shown.count("`") == 2 * len(references), f"{flaw}: not every name could be read"
    if "**open**" not in shown:
        assert references, f"{flaw}: nothing shows it"
        assert here, f"{flaw}: no word on how it is here"
    for path, test, name in references:
        assert bool(test) == path.startswith("tests/"), f"{flaw}: {path}: tests are named with two colons, code with one"
        assert name in defined(ROOT / path), f"{flaw}: {path} has no {name}"
        assert not test or name.startswith("test_")


def test_words_that_look_like_a_marker_stay():
    for text in ("language learning takes time", "language English is spoken", "he wrote asr_text twice"):
        assert clean_transcript(text) == text


END = 95
ALLOWED = AllowedTokens(ranges=((0, 90),), stop_ids=(END,))


def a_batch() -> Batch:
    """Two clips under half a second, with the prompt of a vocabulary whose special tokens begin at 90."""
    frames = (37, 45)
    prompt = Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94))
    mel = torch.randn(2, 128, max(frames), generator=torch.Generator().manual_seed(0))
    ids, lens = pad_right([prompt.ids(n) for n in frames])
    return Batch(ids=("a", "b"), keys=torch.arange(2), mel=mel, mel_lens=torch.tensor(frames), input_ids=ids, prompt_lens=lens)


def test_the_end_token_is_a_candidate_before_the_end():
    """Lists as long as all allowed ids hold each of them; one that is left out at some positions would be missing there."""
    student, batch = tiny_model(seed=1), a_batch()
    k = ALLOWED.count
    rollout = Engine(student, allowed=ALLOWED, topk=k).rollout(batch, max_new_tokens=5)
    assert rollout.topk_ids is not None
    assert int(rollout.lens.sum()) > 2
    assert (rollout.topk_ids == END).any(1).all(), "the rollout's own list holds the end token at every position"
    scores = ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=k).score(batch, rollout)
    assert (scores.ids == END).any(1).all(), "and so does the teacher's"


def test_an_immediate_end_is_empty_and_is_trained():
    student, teacher, batch = tiny_model(seed=1), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8), a_batch()

    class EndsAtOnce(Engine):
        def rollout(self, batch, **_):
            return Rollout(
                tokens=torch.tensor([[END], [5]]), lens=torch.tensor([1, 1]), stopped=torch.tensor([True, False]),
                owner=torch.arange(2), topk_ids=torch.arange(16, dtype=torch.int32).reshape(2, 8),
            )  # fmt: skip

    loss = opd_step(student, EndsAtOnce(student, allowed=ALLOWED), teacher, batch, tau=1.0, max_new_tokens=1)
    total, rows_counted = loss.metrics["generated_nonempty"]
    assert (float(total), float(rows_counted)) == (1.0, 2.0)
    assert float(loss.count) == 2.0, "the row that ended at once is trained on its one position"


def test_teachers_that_are_not_there_are_refused(capsys):
    there = backends()
    absent = {"qwen3_asr_teacher_forcing", "qwen3_asr_transformers", "qwen3_asr_vllm", "hf_causal_lm", "parrot"} - set(there)
    assert "arkasr" in there
    for name in absent:
        words = ["--student_model", "s", "--teacher_model", "t", "--train_data", "d", "--output_dir", "o", "--teacher_backend", name]
        with pytest.raises(SystemExit):
            parse(TrainConfig, words, prog="arkfast train", description="")
        assert f"--teacher_backend {name}: there is no such backend; give {' or '.join(there)}" in capsys.readouterr().err
