"""The quickstart from end to end: corpus, models, training, evaluation, report.

Every training is a call of ``arkfast train`` in a process of its own, two at a time with one thread each. What a finished or killed earlier
call left is used: a complete corpus, complete models, checkpoints of the others.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from arkfast import __version__
from arkfast.command_line import to_dict
from arkfast.console import Console
from arkfast.data import iter_manifest
from arkfast.evaluate import Scores, evaluate_rows
from arkfast.files import NewFolder, json_text, leftovers, write_text
from arkfast.infer import Transcriber
from arkfast.metrics import bootstrap_difference
from arkfast.quickstart.arms import INITIALIZER_RANGE, STUDENT_SIZE, TEACHER_SIZE, VOCAB_SIZE, Arm, Stage, plan
from arkfast.quickstart.config import QuickstartConfig
from arkfast.quickstart.corpus import Corpus, CorpusRecipe, build_corpus
from arkfast.quickstart.progress import row_of, steps_done
from arkfast.quickstart.report import headline_of, render_table, write_report
from arkfast.quickstart.results import ArmRow, Difference, Rate, Report, Transcription
from arkfast.records import InputError

SHOWN_CLIPS = 3
NO_SETTINGS = ("output_dir", "jobs", "quiet", "log_file")
"""Flags that change neither models nor figures."""


class ArmFailed(RuntimeError):
    """A training process ended early, or a model left clips without a transcript; the message holds the end of its log."""


class Quickstart:
    """One call of ``arkfast quickstart``.

    Args:
        config: sizes and the output folder.

    Raises:
        InputError: the folder holds a quickstart of other settings, or something else.
    """

    def __init__(self, config: QuickstartConfig) -> None:
        self.config, self.root = config, config.output_dir.absolute()
        self._started = time.monotonic()
        self._scores: dict[str, dict[str, Scores]] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._console = Console(quiet=config.quiet, log_file=config.log_file)
        self._claim()

    def _claim(self) -> None:
        settings = {key: value for key, value in to_dict(self.config).items() if key not in NO_SETTINGS}
        path = self.root / "quickstart.json"
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{key} {there.get(key)!r} there, {value!r} here" for key, value in settings.items() if there.get(key) != value]
            if differing:
                raise InputError(
                    f"--output_dir {self.root}: holds a quickstart of other settings ({'; '.join(differing)}); give another folder"
                )
        elif self.root.exists() and set(self.root.iterdir()) - leftovers(path):
            raise InputError(f"--output_dir {self.root}: not empty and not a quickstart; give a new or empty folder")
        write_text(path, json_text(settings, indent=2) + "\n")

    def run(self) -> bool:
        """Do it all; returns whether OPD's dev WER is below the base student's and the more-SFT arm's."""
        with self._console:
            return self._run()

    def _run(self) -> bool:
        import torch

        torch.set_num_threads(1)
        config = self.config
        recipe = CorpusRecipe(
            train=config.train_clips,
            labels=config.label_clips,
            pool=config.pool_clips,
            dev=config.dev_clips,
            test=config.test_clips,
            digits=(config.min_digits, config.max_digits),
            seed=config.seed,
        )
        corpus = build_corpus(self.root / "corpus", recipe, log=self._say, workers=config.jobs)
        self._new_models(corpus)
        self._arms = plan(self.root, config, corpus)
        self._train(corpus)
        report = self._report(corpus)
        page = write_report(self.root, report)
        self._transcribe(corpus)
        rows = {row.arm: row for row in report.rows}
        dev = {name: self._scores[name]["dev"].wer for name in rows}
        better = lowered(dev)
        self._say(f"OPD's dev WER {100 * dev['opd']:.1f} %, base student {100 * dev['base']:.1f} %, more SFT {100 * dev['sft']:.1f} %: "
                  + ("OPD lowered it" if better else "OPD did not lower it below both"))  # fmt: skip
        self._say(headline_of(report))
        self._say(f"report {page}\npicture {self.root / 'picture.png'}\nOPD model {self._arm('opd').stages[-1].model}")
        return better

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in self._arms if arm.name == name)

    def _say(self, text: str) -> None:
        text = f"[{time.monotonic() - self._started:4.0f} s] {text}"
        if not self.config.quiet:
            self._console.out(text)
        self._console.keep(text)

    def _new_models(self, corpus: Corpus) -> None:
        """Random weights for teacher and student, over one tokenizer trained on the teacher's texts."""
        from arkfast.models.arkasr.new import build_tokenizer, new_checkpoint

        tokenizer = None
        for name, size, seed in (("teacher", TEACHER_SIZE, 1), ("student", STUDENT_SIZE, 2)):
            folder = self.root / "new" / name
            if folder.exists():
                continue
            if tokenizer is None:
                tokenizer = build_tokenizer([row.text or "" for row in iter_manifest(corpus.train)], vocab_size=VOCAB_SIZE)
            with NewFolder(folder) as unfinished:
                new_checkpoint(unfinished, tokenizer, seed=1000 * self.config.seed + seed, initializer_range=INITIALIZER_RANGE, **size)

    def _train(self, corpus: Corpus) -> None:
        """Run every arm as soon as those it needs are done, ``jobs`` at a time, showing the table as it stands."""
        futures: dict[str, Future[None]] = {}
        waiting = list(self._arms)
        shown = -1
        self._console.begin(unit="step", total=sum(arm.steps for arm in waiting), done=self._steps())
        steps = self._steps()
        pool = ThreadPoolExecutor(self.config.jobs)
        try:
            while waiting or not all(future.done() for future in futures.values()):
                done = {name for name, future in futures.items() if future.done()}
                for name in done:
                    futures[name].result()  # raises what the arm raised
                for arm in list(waiting):
                    if set(arm.after) <= done:
                        futures[arm.name] = pool.submit(self._run_arm, arm, corpus)
                        waiting.remove(arm)
                if len(done) != shown:
                    shown = len(done)
                    if shown:
                        self._say("the arms as they stand\n" + render_table(self._rows()))
                before, steps = steps, self._steps()
                self._console.advance(self._under_way(done), by=steps - before)
                time.sleep(0.2)
            for future in futures.values():
                future.result()
        finally:
            for process in list(self._processes):
                process.terminate()
            pool.shutdown(cancel_futures=True)
            self._console.end()
        self._say("all arms\n" + render_table(self._rows()))

    def _steps(self) -> int:
        """Training steps that all arms have done so far."""
        return sum(steps_done(stage.folder) for arm in self._arms for stage in arm.stages)

    def _under_way(self, done: set[str]) -> str:
        parts = []
        for arm in self._arms:
            steps = sum(steps_done(stage.folder) for stage in arm.stages)
            if arm.name not in done and steps:
                parts.append(f"{arm.name} {steps}/{arm.steps}")
        return f"training {', '.join(parts)}" if parts else "starting"

    def _run_arm(self, arm: Arm, corpus: Corpus) -> None:
        for stage in arm.stages:
            if not (stage.model / "config.json").exists():
                self._run_stage(stage)
        scores = {split: self._score(arm, split, manifest) for split, manifest in (("dev", corpus.dev), ("test", corpus.test))}
        with self._lock:
            self._scores[arm.name] = scores

    def _run_stage(self, stage: Stage) -> None:
        stage.folder.parent.mkdir(parents=True, exist_ok=True)
        log_path = stage.folder.with_name(stage.folder.name + ".log")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "arkfast.cli", *stage.words()], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            self._processes.add(process)
            code = process.wait()
            self._processes.discard(process)
        if code:
            tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise ArmFailed(f"training {stage.folder.name} ended with code {code}; the end of {log_path}:\n{tail}")

    def _score(self, arm: Arm, split: str, manifest: Path) -> Scores:
        """Transcribe a split with the arm's model, or use the transcripts of an earlier call, and score them."""
        path = self.root / "transcripts" / f"{arm.name}.{split}.jsonl"
        if not path.exists():
            # Transformers builds a model under a setting of the whole process: two arms that end together must not load at once.
            with self._loading:
                transcriber = Transcriber(arm.stages[-1].model, device="cpu", batch_size=50, max_new_tokens=self._max_tokens())
            rows = list(transcriber(iter_manifest(manifest)))
            write_text(path, "".join(json_text(row) + "\n" for row in rows))
        scores = evaluate_rows(self._transcripts(arm.name, split))
        if scores.scored != scores.utterances:
            raise RuntimeError(
                f"{path}: {scores.utterances - scores.scored} of {scores.utterances} clips have no transcript; see their rows"
            )
        return scores

    def _max_tokens(self) -> int:
        return int(self._arms[0].stages[0].flags["asr_opd_max_new_tokens"])

    def _transcripts(self, arm: str, split: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.root / "transcripts" / f"{arm}.{split}.jsonl").read_text(encoding="utf-8").splitlines()]

    def _rows(self) -> list[ArmRow]:
        with self._lock:
            scores = dict(self._scores)
        rows = []
        for arm in self._arms:
            rates = {split: _rate(scores[arm.name][split]) if arm.name in scores else None for split in ("dev", "test")}
            rows.append(row_of(arm, done=arm.name in scores, dev=rates["dev"], test=rates["test"]))
        return rows

    def _report(self, corpus: Corpus) -> Report:
        differences = []
        for second in ("base", "sft", "pseudo", "td_opd"):
            for split in ("dev", "test"):
                value, low, high = bootstrap_difference(self._scores["opd"][split].words, self._scores[second][split].words)
                differences.append(Difference(first="opd", second=second, split=split, value=value, low=low, high=high))
        root = self.config.output_dir
        return Report(
            rows=tuple(self._rows()),
            clips=self._clips(corpus),
            differences=tuple(differences),
            recipe={
                **{key: value for key, value in to_dict(self.config).items() if key not in NO_SETTINGS},
                "teacher": ", ".join(f"{k} {v}" for k, v in TEACHER_SIZE.items()),
                "student": ", ".join(f"{k} {v}" for k, v in STUDENT_SIZE.items()),
                "speech": ", ".join(f"{split} {seconds / 60:.0f} min" for split, seconds in corpus.seconds.items()),
            },
            commands=(
                "bash scripts/quickstart.sh",
                "source .venv/bin/activate",
                f"arkfast transcribe --model_path {root}/opd/last --input {root}/three.jsonl --output {root}/three.transcribed.jsonl",
                f"arkfast evaluate --model_path {root}/opd/last --input {root}/corpus/test.jsonl --output {root}/opd.test.scored.jsonl",
            ),
            student=f"student with {STUDENT_SIZE['hidden_size']} units and {STUDENT_SIZE['num_hidden_layers']} decoder layers",
            data=f"{self.config.min_digits} to {self.config.max_digits} digits said by synthetic voices in noise",
            environment={
                "arkfast": __version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            },
        )

    def _clips(self, corpus: Corpus) -> tuple[Transcription, ...]:
        """The first clips of the test set, whatever became of them."""
        from arkfast.audio import LogMel
        from arkfast.data import extract

        utterances = [row for row, _ in zip(iter_manifest(corpus.test), range(SHOWN_CLIPS), strict=False)]
        before, after = (self._transcripts(arm, "test") for arm in ("base", "opd"))
        log_mel = LogMel()
        return tuple(
            Transcription(
                id=row.id,
                reference=row.text or "",
                before=before[i]["pred_text"],
                after=after[i]["pred_text"],
                seconds=float(row.extra["duration"]),
                mel=extract(row, log_mel),
                wav=Path(str(row.audio)).read_bytes(),
                note=f"voice {row.extra['voice']}, noise {row.extra['noise']}",
            )
            for i, row in enumerate(utterances)
        )

    def _transcribe(self, corpus: Corpus) -> None:
        """The three clips once more, through the public command."""
        three, output = self.root / "three.jsonl", self.root / "three.transcribed.jsonl"
        rows = [json.loads(line) for line, _ in zip(corpus.test.open(encoding="utf-8"), range(SHOWN_CLIPS), strict=False)]
        write_text(three, "".join(json_text({**row, "audio": f"{corpus.root.name}/{row['audio']}"}) + "\n" for row in rows))
        words = ["transcribe", "--input", str(three), "--output", str(output), "--model_path", str(self._arm("opd").stages[-1].model),
                 "--max_new_tokens", str(self._max_tokens()), "--quiet"]  # fmt: skip
        subprocess.run([sys.executable, "-m", "arkfast.cli", *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for line in output.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self._say(f"{row['id']}\n    said  {row['text']}\n    heard {row['pred_text']}")


def lowered(dev: Mapping[str, float]) -> bool:
    """Whether OPD's dev WER is below both the base student's and the more-SFT arm's; False where one is not a number."""
    return dev["opd"] < dev["base"] and dev["opd"] < dev["sft"]


def _rate(scores: Scores) -> Rate:
    low, high = scores.interval
    return Rate(value=scores.wer, low=min(low, scores.wer), high=max(high, scores.wer))
