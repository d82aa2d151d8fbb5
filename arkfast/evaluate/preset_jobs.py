"""What an evaluation of presets consists of: its settings, the files of each preset, the devices, and what must be there beforehand.

Variables and files are called as in open-audio-opd's launcher.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arkfast.command_line import parse
from arkfast.evaluate.check import check_manifest, load_normalizer
from arkfast.evaluate.options import EvaluateConfig
from arkfast.records import InputError, JsonObject

PRESETS = "aishell clean meeting net other"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be evaluated, and how; every field but ``extra`` is the environment variable of its name in capitals."""

    model_path: Path
    """Folder of a checkpoint, or a repository as ``organisation/name@revision``."""
    eval_data_dir: Path
    """Folder with ``test_<preset>.jsonl``."""
    output_dir: Path
    """Folder for results, summaries and logs."""
    processor_path: str = ""
    """Folder or repository of the tokenizer; the model's by default."""
    eval_script: str = ""
    """Python file that is run instead of ``arkfast evaluate``; it gets the original's flags alone."""
    suffix: str = "arkasr"
    """Goes into the results' names."""
    presets: tuple[str, ...] = tuple(PRESETS.split())
    """Test sets."""
    gpus: tuple[str, ...] = ()
    """A job at a time on each: GPU ids, or ``cpu``; all GPUs, or one CPU worker, by default."""
    batch_size: str = "40"
    dtype: str = "auto"
    attn_impl: str = "sdpa"
    text_normalize_python: str = ""
    max_new_tokens: str = "256"
    max_audio_seconds: str = "40"
    extra: tuple[str, ...] = ()
    """Further flags for every job."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], extra: Sequence[str] = ()) -> Settings:
        """The settings that environment variables spell; an empty variable counts as none.

        Raises:
            InputError: a required variable is missing, or a list has no or repeated names.
        """
        missing = [name for name in ("MODEL_PATH", "EVAL_DATA_DIR", "OUTPUT_DIR") if not environment.get(name)]
        if missing:
            raise InputError(f"set {', '.join(missing)}: the checkpoint, the folder with test_<preset>.jsonl, the folder for results")
        given: JsonObject = {name: environment[name.upper()] for name in cls.__dataclass_fields__ if environment.get(name.upper())}
        for name in ("model_path", "eval_data_dir", "output_dir"):
            given[name] = Path(given[name])
        for name in {"presets", "gpus"} & set(given):
            given[name] = tuple(given[name].split())
            if not given[name]:
                raise InputError(f"{name.upper()}: names nothing; separate names by spaces, or leave it out")
        settings = cls(**given, extra=tuple(extra))
        for preset in settings.presets:
            if settings.presets.count(preset) > 1:
                raise InputError(f"PRESETS: '{preset}' stands there {settings.presets.count(preset)} times; once is enough")
            if "/" in preset:
                raise InputError(f"PRESETS: '{preset}' is a path; give the name between test_ and .jsonl")
        return settings

    def job(self, preset: str) -> Job:
        """The files of one preset."""
        result = f"test_{preset}_{self.suffix}"
        return Job(
            preset=preset,
            input=self.eval_data_dir / f"test_{preset}.jsonl",
            output=self.output_dir / f"{result}_result.jsonl",
            summary=self.output_dir / f"{result}_summary.json",
            page=self.output_dir / f"{result}.html",
            log=self.output_dir / f"{preset}.log",
            pid=self.output_dir / f"{preset}.pid",
        )

    def command(self, job: Job, device: str, python: str) -> list[str]:
        """The words that evaluate one preset on a device with ``eval_script``."""
        return [python, self.eval_script, *self.flags(job, device)]

    def flags(self, job: Job, device: str) -> list[str]:
        """The flags of ``arkfast evaluate``, or of ``eval_script``, for one preset on a device."""
        flags = {
            "input": job.input,
            "output": job.output,
            "model_path": self.model_path,
            "processor_path": "" if self.processor_path == str(self.model_path) else self.processor_path,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "attn_impl": self.attn_impl,
            "max_new_tokens": self.max_new_tokens,
            "max_audio_seconds": self.max_audio_seconds,
            "text_normalize_python": self.text_normalize_python,
        }
        if not self.eval_script:
            # A GPU that is not there has to be an error, not a slow run on the CPU.
            flags |= {"summary": job.summary, "html": job.page, "preset": job.preset, "device": "cpu" if device == "cpu" else "cuda"}
        return [*(word for name, value in flags.items() if str(value) for word in (f"--{name}", str(value))), *self.extra]


@dataclass(kw_only=True)
class Job:
    """One preset: its files, and what became of it."""

    preset: str
    input: Path
    output: Path
    summary: Path
    page: Path
    log: Path
    pid: Path
    device: str = ""
    """Where it ran; empty until it does."""
    code: int | None = None
    """Exit code; None when it did not run to its end."""
    seconds: float = 0.0
    rows: int = 0
    """Lines of the input."""

    def outcome(self) -> str:
        """How it ended, in words."""
        if self.code is None:
            return "stopped" if self.device else "not started"
        return "done" if self.code == 0 else f"failed ({self.code})"


def check(settings: Settings) -> list[Job]:
    """The jobs, when every one of them can be started.

    Raises:
        InputError: the checkpoint, an input, a flag or the output folder is not usable; every preset's fault is named, not only the first.
    """
    faults = []
    for variable, name in (("MODEL_PATH", settings.model_path), ("PROCESSOR_PATH", settings.processor_path)):
        if name and not Path(name).is_dir():
            from arkfast.models.hub import repository_of

            try:
                repository_of(name, flag=variable)
            except InputError as error:
                faults.append(str(error))
    if settings.eval_script and not Path(settings.eval_script).is_file():
        faults.append(f"EVAL_SCRIPT {settings.eval_script}: no such file; leave it out to run arkfast evaluate")
    jobs = [settings.job(preset) for preset in settings.presets]
    for job in jobs:
        try:
            with job.input.open("rb") as file:
                first = next((line for line in file if line.strip()), b"")
                job.rows = bool(first) + sum(1 for line in file if line.strip())
        except OSError as error:
            faults.append(
                f"Missing input JSONL: {job.input} ({error.strerror}); arkfast manifest from-… writes it, or leave out '{job.preset}'"
            )
            continue
        if not first.lstrip().startswith(b"{"):
            faults.append(f"{job.input}: {'its first line is no JSON object' if first else 'holds no rows'}; expected one object a line")
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.output_dir, os.W_OK):
            faults.append(f"OUTPUT_DIR {settings.output_dir}: may not be written to; give another folder")
    except OSError as error:
        faults.append(f"OUTPUT_DIR {settings.output_dir}: cannot be made ({error.strerror}); give another folder")
    if not settings.eval_script:
        faults += _evaluate_faults(settings, jobs)
    if faults:
        raise InputError("nothing was started:\n  " + "\n  ".join(faults))
    return jobs


def fetched(settings: Settings) -> Settings:
    """The settings with model and tokenizer on this machine, and at one commit each for all jobs, where they are repositories.

    Raises:
        InputError: one of them cannot be had.
    """
    paths = [Path(name) for name in (settings.model_path, settings.processor_path) if str(name)]
    if all(path.is_dir() for path in paths):
        return settings
    from arkfast.models.hub import checkpoint_folder, pinned, repository_of

    model, processor = settings.model_path, settings.processor_path
    own = processor in ("", str(model))
    revision = None
    if not settings.eval_script:
        words = settings.flags(settings.job(settings.presets[0]), "cpu")
        revision = parse(EvaluateConfig, words, prog="arkfast evaluate", description="").revision
    repository = repository_of(model, revision=revision, flag="MODEL_PATH")
    folder = checkpoint_folder(model, revision=revision, flag="MODEL_PATH")
    if not own:
        tokenizer = checkpoint_folder(processor, flag="PROCESSOR_PATH", contents="processor")
        processor = str(tokenizer if settings.eval_script else pinned(processor, flag="PROCESSOR_PATH"))
    processor = "" if own else processor
    if repository is None or settings.eval_script:
        return replace(settings, model_path=folder, processor_path=processor)
    # the last one wins, so this stands behind a branch that the further flags may name
    extra = (*settings.extra, "--revision", folder.name)
    return replace(settings, model_path=Path(repository.id), processor_path=processor, extra=extra)


def _evaluate_faults(settings: Settings, jobs: Sequence[Job]) -> list[str]:
    """What ``arkfast evaluate`` would say against its flags, which stand for the variables' values and the further flags, or its inputs."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            words = [settings.flags(job, "cpu") for job in jobs]
            configs = [parse(EvaluateConfig, flags, prog="arkfast evaluate", description="") for flags in words]
    except SystemExit:
        return [said.getvalue().strip()]
    faults = []
    try:
        with contextlib.closing(load_normalizer(configs[0])) as normalizer:
            for job, config in zip(jobs, configs, strict=True):
                try:
                    if job.rows:
                        check_manifest(config, normalizer)
                except InputError as error:
                    faults.append(str(error))
    except InputError as error:
        faults.append(str(error))
    return faults


def check_gpus(settings: Settings, environment: Mapping[str, str]) -> None:
    """See that the GPUs that ``GPUS`` numbers are there, before a process for each finds out.

    Where ``CUDA_VISIBLE_DEVICES`` hides some, or with ``eval_script``, the jobs themselves are asked.

    Raises:
        InputError: one is not.
    """
    numbers = [name for name in settings.gpus if name.isdecimal()]
    if settings.eval_script or "CUDA_VISIBLE_DEVICES" in environment or not numbers:
        return
    import torch

    count = torch.cuda.device_count()
    missing = [name for name in numbers if int(name) >= count]
    if missing:
        advice = "set GPUS=cpu, or leave it out" if not count else f"there are 0 to {count - 1}; or leave it out"
        raise InputError(f"nothing was started:\n  GPUS: {', '.join(missing)}: torch sees {count} GPU(s); {advice}")


def devices(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Where jobs run, one at a time on each: ``gpus``, else the visible GPUs, else one CPU worker."""
    if settings.gpus:
        return list(settings.gpus)
    if visible := environment.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]
