"""The page of a run: what the log holds is on it, and what it does not hold is not; nothing of the outside goes unescaped."""

from __future__ import annotations

import datetime
import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from arkfast.cli import main
from arkfast.metrics import count_errors, word_errors
from arkfast.records import InputError
from arkfast.reports import runs
from arkfast.train.report.page import aligned, headline
from arkfast.train.report.page import page as render
from arkfast.train.report.run_records import RunRecords, read_run

PHASES = {"data_wait_max": 0.1, "encode_time_max": 0.1, "rollout_time_max": 0.4, "teacher_time_max": 0.2, "backward_max": 0.1}


def step(number: int, **more: Any) -> dict[str, Any]:
    return {
        "step": number, "epoch": number / 10, "stage": "opd", "loss": 4.0 / number, "opd_loss": 4.0 / number, "opd_valid_topk_mean": 50.0,
        "opd_overlap_mean": 14.0, "generated_tokens_mean": 12.0, "generated_nonempty": 1.0, "generated_stopped": 0.9, "audio_seconds": 90.0,
        "grad_norm": 2.0, "lr": 1e-5, "skipped": False, "time_per_step": 1.0, **PHASES, **more,
    }  # fmt: skip


def evaluation(number: int, wer: float, **more: Any) -> dict[str, Any]:
    return {"step": number, "eval_wer": wer, "eval_utterances": 100, "eval_cut": 0, "best": False, **more}


def a_run(**changes: Any) -> RunRecords:
    values: dict[str, Any] = {
        "name": "night", "config": {"stage": "opd", "max_steps": 20, "learning_rate": 1e-5, "seed": 1},
        "steps": [step(i) for i in range(1, 21)], "evaluations": [evaluation(0, 23.9), evaluation(10, 6.5), evaluation(20, 6.6)],
        "samples": [{"step": s, "id": "clip", "text": "Four five six", "pred_text": t}
                    for s, t in ((0, "four nine"), (20, "four five six"))],
    }  # fmt: skip
    return RunRecords(**{**values, **changes})


def written(folder: Path, run: RunRecords) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"identity": {}, "config": run.config}))
    evaluations = [
        {
            **record,
            "samples": [{k: v for k, v in sample.items() if k != "step"} for sample in run.samples if sample["step"] == record["step"]],
        }
        for record in run.evaluations
    ]
    records = sorted([*run.steps, *evaluations], key=lambda record: record["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


class Page(HTMLParser):
    """Text, tags and figures' captions; fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "img"})
    CLOSED = frozenset({"path", "circle"})
    """Elements of a drawing that are closed where they are opened."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.captions: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "figcaption":
            self.captions.append("")
        if tag not in self.VOID | self.CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.CLOSED:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "figcaption" in self.open and "span" not in self.open:
            self.captions[-1] += data


def test_the_command_writes_the_page_beside_the_log(tmp_path, capsys):
    folder = written(tmp_path / "night shift", a_run())
    assert main(["report", str(folder)]) == 0
    assert "20 steps, 3 evaluations" in capsys.readouterr().err
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert source == render(read_run(folder))
    assert "<title>night shift: arkfast training report</title>" in source
    assert main(["report", "--run", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == source
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]


def test_the_page_has_every_curve_that_was_logged():
    page = Page(render(a_run()))
    assert [caption.strip() for caption in page.captions] == [
        "WER", "Loss", "Learning rate", "Gradient norm", "Support and overlap", "Rollout length", "Rollouts", "Step time",
        "Share of the step", "Longest phases",
    ]  # fmt: skip
    assert "lowest 6.50 % at step 10" in page.text
    for figure in ("20", "30.0 min", "90 s"):  # steps, audio, audio a second of training
        assert figure in page.text
    for share in ("rollout40.0 %", "teacher20.0 %", "the rest10.0 %"):
        assert share in page.text.replace("\n", "")


def test_transcripts_are_normalised_by_their_language():
    text, heard = "it's 5%", "it's 5 percent"
    sample = {"step": 20, "id": "clip", "language": "en", "text": text, "pred_text": heard}
    assert marked(text, heard, "en") == ["it's 5 percent"]
    assert len(marked(text, heard)) > 1
    source = render(a_run(samples=[sample]))
    assert "5 percent" in source
    assert source.count("<ins>") == 2, "in the key alone"


def test_the_kl_has_a_chart_of_its_own_where_the_loss_is_more_than_it():
    steps = [step(i, opd_loss=1.0 / i) for i in range(1, 5)]
    assert "Divergence from the teacher" in [caption.strip() for caption in Page(render(a_run(steps=steps))).captions]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "τ²·KL(p‖q) a position, on the union"),
        (
            {"divergence": "jsd", "support": "teacher", "tail_bucket": True},
            "τ² times --divergence jsd a position, on --support teacher with a tail",
        ),
        ({"opd_objective": "policy_gradient"}, "−advantage · log q a position, --opd_objective policy_gradient"),
    ],
)
def test_the_loss_is_named_as_it_was_chosen(flags, said):
    steps = [step(i, opd_loss=1.0 / i) for i in range(1, 5)]
    page = Page(render(a_run(steps=steps, config={"stage": "opd", **flags})))
    assert said in page.text
    captions = [caption.strip() for caption in page.captions]
    assert ("Divergence from the teacher" in captions) == ("opd_objective" not in flags), "an estimate is no divergence"


def test_steps_that_were_not_measured_in_full_do_not_distort_speed_and_shares():
    """Of several ranks' steps only every --log_freq-th is."""
    bare = {"audio_seconds", *PHASES}
    steps = [step(i) if i % 2 == 0 else {k: v for k, v in step(i).items() if k not in bare} for i in range(1, 21)]
    source = render(a_run(steps=steps))
    text = Page(source).text.replace("\n", "")
    assert "audio a second of training90 s" in text
    assert "rollout40.0 %" in text
    assert "<dt>audio</dt>" not in source, "the whole is not known"
    assert source.count("<circle") == 3, "no gaps: every line is one line, and only WER has its points marked"


def test_what_was_not_logged_has_no_chart():
    bare = [{"step": i, "loss": 1.0, "lr": 1e-5} for i in range(1, 4)]
    page = Page(render(a_run(steps=bare, evaluations=[], samples=[], config={"stage": "sft"})))
    assert [caption.strip() for caption in page.captions] == ["Loss", "Learning rate"]
    assert "Supervised fine-tuning: 3 steps; WER was not measured." in page.text
    assert "logged no transcripts" in page.text
    empty = Page(render(a_run(steps=[], evaluations=[], samples=[])))
    assert empty.captions == []
    assert "has not taken a step yet" in empty.text


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [
        ([(0, 23.9), (20, 6.6)], "fell from 23.90 % at step 0 to 6.60 % at step 20, lowest 6.60 % at step 20."),
        ([(0, 5.0), (10, 4.0), (20, 6.0)], "rose from 5.00 % at step 0 to 6.00 % at step 20, lowest 4.00 % at step 10."),
        ([(10, 5.0), (20, 5.0)], "stayed at 5.00 %, lowest 5.00 % at step 10."),
        ([(20, 5.0)], "WER on the evaluation set is 5.00 % at step 20."),
        ([(10, math.nan), (20, 5.0)], "WER on the evaluation set is 5.00 % at step 20."),
    ],
)
def test_the_headline_says_what_the_figures_say(evaluations, said):
    run = a_run(evaluations=[evaluation(*pair) for pair in evaluations])
    assert headline(run).startswith("On-policy distillation: 20 of 20 steps; ")
    assert headline(run).endswith(said)


def test_what_must_not_be_overlooked_stands_at_the_top():
    steps = [step(1), step(2, skipped=True, loss=math.nan, opd_loss=math.nan), step(3, bad_audio=["a.jsonl:7: broken"])]
    source = render(a_run(steps=steps, evaluations=[evaluation(3, 5.0, eval_cut=4)]))
    top = source[: source.index("<h2>Curves")]
    assert "1 step was skipped because loss or gradient was not finite, first at step 2" in top
    assert "1 clip could not be read and was passed over, the first: a.jsonl:7: broken" in top
    assert "4 transcripts of the last evaluation ended at the length limit" in top
    assert 'class="bad"' not in render(a_run())


def marked(reference: str, hypothesis: str, language: str | None = None) -> list[str]:
    """A transcript's runs: right ones as they are, wrong ones as "said>heard", "-" before what was left out, "+" before what was added."""
    return [
        run.heard if run.kind == "right" else f"{run.said}>{run.heard}" if run.kind == "wrong"
        else f"-{run.said}" if run.kind == "left out" else f"+{run.heard}"
        for run in runs(aligned(reference, hypothesis, language), "mixed")
    ]  # fmt: skip


def test_transcripts_are_marked_where_they_differ():
    assert marked("one two three", "one too three") == ["one", "two>too", "three"]
    assert marked("one two three", "one three") == ["one", "-two", "three"]
    assert marked("one three", "one two three") == ["one", "+two", "three"]
    assert marked("one two three four", "one x four") == ["one", "two>x", "-three", "four"]
    assert marked("one", "") == ["-one"]
    assert marked("", "") == []
    assert marked("四五 six", "四六 six") == ["四", "五>六", "six"], "Han by the character, Latin by the word"
    source = render(a_run(samples=[{"step": 20, "id": "clip", "text": "one", "pred_text": ""}]))
    assert '<p class="diff" dir="auto"><del>one</del></p>' in source


@pytest.mark.parametrize(("words", "unit"), [("abcd", "word"), ("一二ab", "mixed")])
def test_as_many_words_are_marked_as_errors_are_counted(words, unit):
    drawn = random.Random(0)
    pairs = [[" ".join(drawn.choices(words, k=drawn.randint(0, 12))) for _ in range(2)] for _ in range(1000)]
    counted = count_errors([said for said, _ in pairs], [heard for _, heard in pairs], unit=unit)
    if unit == "word":
        assert (counted.errors == word_errors([said for said, _ in pairs], [heard for _, heard in pairs]).errors).all()
    assert counted.errors.sum() > 3000
    for i, (said, heard) in enumerate(pairs):
        shown = [(run.kind, len((run.heard or run.said).split() if unit == "word" else (run.heard or run.said).replace(" ", "")))
                 for run in runs(aligned(said, heard), "mixed")]  # fmt: skip
        for kind, errors in (("wrong", counted.substitutions), ("added", counted.insertions), ("left out", counted.deletions)):
            assert sum(length for of, length in shown if of == kind) == errors[i], (said, heard)


def test_samples_show_the_first_and_the_last_evaluation():
    samples = [{"step": s, "id": "clip", "text": "one two", "pred_text": t} for s, t in ((0, "nine"), (10, "five"), (20, "one two"))]
    page = Page(render(a_run(samples=samples)))
    assert "step 0" in page.text
    assert "step 10" not in page.text[page.text.index("Transcripts before") :]
    assert "five" not in page.text


def test_clips_that_changed_are_chosen_and_come_first():
    def clip(name: str, first: str, last: str) -> list[dict[str, Any]]:
        return [{"step": s, "id": name, "text": "one two three", "pred_text": t} for s, t in ((0, first), (20, last))]

    same = [sample for i in range(14) for sample in clip(f"same {i}", "one two", "one two")]
    samples = [*same, *clip("mended", "nine", "one two three"), *clip("broken", "one two three", "one two")]
    source = render(a_run(samples=samples))
    shown = source[source.index("Transcripts before") :]
    names = [part.split("</h3>")[0] for part in shown.split("<h3>")[1:]]
    assert names == ["mended", "broken", *(f"same {i}" for i in range(10))]
    assert "12 of the 16 clips whose transcripts were logged, those that changed most first; 2 changed." in shown
    assert "3 errors → 0 errors" in shown
    assert "0 errors → 1 error" in shown


def test_the_error_rate_before_and_after_is_the_hero():
    config = {"stage": "opd", "max_steps": 20, "student_model": "/models/ARK-0.6B", "train_data": "/data/pool.jsonl"}
    page = " ".join(Page(render(a_run(config=config, day=datetime.date(2026, 3, 7)))).text.split())
    assert "model ARK-0.6B · data pool.jsonl · last step logged 7 March 2026 23.90 % → 6.60 % WER on the evaluation set" in page
    none = " ".join(Page(render(a_run(evaluations=[]))).text.split())
    assert "20 steps of 20 WER was not measured." in none


def test_two_lines_that_lie_on_each_other_are_both_seen():
    source = render(a_run(steps=[step(i, generated_stopped=1.0) for i in range(1, 5)]))
    figure = next(part for part in source.split("<figure>") if part.startswith("<figcaption>Rollouts"))
    lines = [part.split("/>")[0] for part in figure.split("<path ")[1:] if 'fill="none"' in part.split("/>")[0]]
    assert len(lines) == 2
    assert [("stroke-dasharray" in line) for line in lines] == [False, True]
    assert len({line.split('"')[1] for line in lines}) == 1


def test_times_have_their_unit():
    assert '<td class="number">8.0 s</td>' in render(a_run())


def test_settings_that_were_chosen_come_first():
    source = render(a_run(config={"stage": "opd", "learning_rate": 1e-4, "seed": 1}))
    chosen, everything = source[source.index("<h2>Settings") :].split("<details>")
    assert "<dt>learning_rate</dt><dd>0.0001</dd>" in chosen
    assert "learning_rate" in chosen
    assert "seed" not in chosen
    assert "seed" in everything


def test_all_that_comes_from_outside_is_escaped_and_nothing_is_fetched():
    evil = "</title><script>alert(1)</script>&\"'"
    run = a_run(
        name=evil, config={evil: evil, "stage": evil}, steps=[step(1, bad_audio=[evil])],
        samples=[{"step": 0, "id": evil, "text": evil, "pred_text": evil + " x"}],
    )  # fmt: skip
    source = render(run)
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "http:" not in source
    assert "https:" not in source
    assert "url(" not in source
    assert page.text.count(evil) >= 5


def test_a_log_that_is_still_being_written_is_read_up_to_its_last_whole_line(tmp_path):
    folder = written(tmp_path / "run", a_run())
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 21, "lo')
    assert len(read_run(folder).steps) == 20


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metrics.jsonl").unlink(), r"not a run's folder \(metrics.jsonl is missing\)"),
        (lambda folder: (folder / "run.json").unlink(), r"not a run's folder \(run.json is missing\)"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json: not the description of a run"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n'), "metrics.jsonl:2: not valid JSON"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n'), "metrics.jsonl:2: a record without its step"),
        (lambda folder: (folder / "metrics.jsonl").write_text("[1]\n"), "metrics.jsonl:1: expected an object, got list"),
    ],
)
def test_what_is_not_a_run_is_named(tmp_path, damage, message):
    folder = written(tmp_path / "run", a_run())
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_run(folder)


def test_a_wrong_path_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    folder = written(tmp_path / "run", a_run())
    assert main(["report", str(folder), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err
