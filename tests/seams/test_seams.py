"""Families, teachers and tasks that join in one file each: they train, decode, are exported and resumed with no edit elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import arkfast.data.tasks
import arkfast.distill.teachers
import arkfast.models
from arkfast.data import collate
from arkfast.data.tasks import find_task, tasks
from arkfast.distill.teachers import TeacherRequest, load_teacher
from arkfast.engine import Engine
from arkfast.infer import Transcriber
from arkfast.models.family import families, find_family
from arkfast.records import InputError, Utterance
from arkfast.testing import TEXTS, synthetic_speech, write_wav
from arkfast.train.checkpoints.export_command import ExportConfig, export
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

HERE = Path(__file__).resolve().parent
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module", autouse=True)
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toys' files where a file of their kind stands, in folders of their own."""
    root = tmp_path_factory.mktemp("joined")
    for name in ("toytext", "toyaudio"):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "__init__.py").write_text("")
        shutil.copy(HERE / f"{name}.py", root / "models" / name / "family.py")
    (root / "tasks").mkdir()
    shutil.copy(HERE / "reverse.py", root / "tasks" / "reverse.py")
    (root / "elsewhere" / "toys").mkdir(parents=True)
    shutil.copy(HERE / "toy_teacher.py", root / "elsewhere" / "toys" / "toy_teacher.py")
    (root / "elsewhere" / "toys" / "__init__.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arkfast.models, "__path__", [*arkfast.models.__path__, str(root / "models")])
        patch.setattr(arkfast.data.tasks, "__path__", [*arkfast.data.tasks.__path__, str(root / "tasks")])
        patch.syspath_prepend(str(root / "elsewhere"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "elsewhere"), os.environ.get("PYTHONPATH", "")]))  # of the feature workers
        importlib.invalidate_caches()
        yield root
    for name in [name for name in sys.modules if name.startswith(("arkfast.models.toy", "arkfast.data.tasks.reverse", "toys"))]:
        del sys.modules[name]


def toy(name: str) -> ModuleType:
    return importlib.import_module(f"arkfast.models.{name}.family")


@pytest.fixture(scope="module")
def world(joined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    toy("toytext").new_checkpoint(root / "toytext", TEXTS * 8, seed=1)
    toy("toyaudio").new_checkpoint(root / "toyaudio", TEXTS * 8, seed=2)
    texts, clips = [], []
    for i in range(6):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.2 * i, seed=i))
        text = " ".join(NUMBERS[(i * 3 + k) % 10] for k in range(2 + i % 3))
        texts.append({"text": text, "task": "reverse", "id": f"r{i}"})
        clips.append({"audio": f"{i}.wav", "text": text, "id": f"c{i}", "language": ["en", "de"][i % 2]})
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (root / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clips))
    return root


def config(world: Path, folder: Path, name: str, **fields: Any) -> TrainConfig:
    data = {"toytext": ("texts.jsonl", "reverse"), "toyaudio": ("clips.jsonl", "asr")}[name]
    plain: dict[str, Any] = {
        "stage": "sft", "student_model": world / name, "train_data": world / data[0], "eval_data": world / data[0], "task": data[1],
        "output_dir": folder, "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-3, "dataloader_num_workers": 0,
        "asr_opd_max_new_tokens": 12, "gates": "off", "device": "cpu", "save_freq": 2, "calibration_batches": 1,
    }  # fmt: skip
    return TrainConfig(**{**plain, **fields})


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = find_family(folder).load(folder, dtype="auto", attn_implementation="sdpa")
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_they_are_found_by_name(joined: Path) -> None:
    assert {"arkasr", "toytext", "toyaudio"} <= set(families())
    assert {"asr", "reverse"} <= set(tasks())


@pytest.mark.parametrize("name", ["toytext", "toyaudio"])
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_family_trains_is_resumed_and_is_exported(world: Path, tmp_path: Path, name: str, sharding: str) -> None:
    whole = tmp_path / "whole"
    state = Trainer(config(world, whole, name, sharding=sharding, activation_checkpointing=True)).run()
    assert state.step == 4
    found = losses(whole)
    assert len(set(found)) == 4
    assert all(np.isfinite(found))

    cut = tmp_path / "cut"
    Trainer(config(world, cut, name, sharding=sharding, activation_checkpointing=True)).run()
    shutil.rmtree(cut / "checkpoints" / "global_step_4")
    resumed = config(world, cut, name, sharding=sharding, activation_checkpointing=True, resume_from_checkpoint="latest")
    assert Trainer(resumed).run().step == 4
    assert losses(cut) == found, "the last two steps were taken again"

    exported = export(ExportConfig(checkpoint=whole, output=tmp_path / "exported", dtype="float32"))
    assert exported == whole / "checkpoints" / "global_step_4"
    one, other = weights(tmp_path / "exported"), weights(whole / "last")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    before = weights(world / name)
    assert any(not torch.equal(before[key], one[key]) for key in one), "something was learnt"


@pytest.mark.parametrize("name", ["toytext", "toyaudio"])
def test_shards_change_no_loss(world: Path, tmp_path: Path, name: str) -> None:
    for sharding in ("none", "full", "optimizer"):
        Trainer(config(world, tmp_path / sharding, name, sharding=sharding)).run()
    wanted = losses(tmp_path / "none")
    for sharding in ("full", "optimizer"):
        assert losses(tmp_path / sharding) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["toytext", "toyaudio"])
def test_parts_of_a_family_are_what_freeze_names(world: Path, tmp_path: Path, name: str) -> None:
    part = next(iter(toy(name).family.parts))
    prefixes = tuple(toy(name).family.parts[part])
    Trainer(config(world, tmp_path / "run", name, freeze=(part,), eval_data=None)).run()
    before, after = weights(world / name), weights(tmp_path / "run" / "last")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert not any(key.startswith(prefixes) for key in changed)
    with pytest.raises(InputError, match=rf"--freeze audio_encoder: the model has no such part; it has {part}"):
        Trainer(config(world, tmp_path / "other", name, freeze=("audio_encoder",)))


@pytest.mark.parametrize("name", ["toytext", "toyaudio"])
def test_the_engine_decodes_it_as_generate_does(world: Path, name: str) -> None:
    family = find_family(world / name)
    model = family.load(world / name, dtype="float32", attn_implementation="sdpa")
    interface = family.interface(family.tokenizer(world / name), model, where="toy")
    task = {"toytext": "reverse", "toyaudio": "asr"}[name]
    rng = np.random.default_rng(0)
    rows = [Utterance(id=f"u{i}", audio=None, text=" ".join(NUMBERS[: 3 + i]), language="en") for i in range(5)]
    features = None if interface.n_mels is None else [rng.standard_normal((80, n)).astype(np.float32) for n in (37, 120, 9, 64, 250)]
    batch = collate(rows, features, interface.prompt(task))
    allowed = interface.allowed(task)
    got = Engine(model, allowed=allowed, slots=3).rollout(batch, max_new_tokens=24)
    blocked = allowed.blocked(model.config.vocab_size).tolist()
    seen = set()
    for i in range(5):
        ids = batch.input_ids[i : i + 1, : batch.prompt_lens[i]]
        audio = None if batch.mel is None else model.get_audio_features(batch.mel[i : i + 1, :, : batch.mel_lens[i]])
        want = model.generate(
            inputs_embeds=model.encode_prompt(ids, audio_embeds=audio), attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=24, suppress_tokens=blocked,
        )[0].tolist()  # fmt: skip
        ours = got.tokens[i, : got.lens[i]].tolist()
        assert ours == want[: len(ours)]
        assert len(want) == len(ours) or not any(want[len(ours) :])
        seen |= set(ours)
    assert len(seen) >= 10, "a model that repeats one id proves nothing"


def test_a_family_that_hears_transcribes(world: Path) -> None:
    rows = [Utterance(id=f"c{i}", audio=str(world / f"{i}.wav"), language="en") for i in range(4)]
    found = list(Transcriber(world / "toyaudio", device="cpu", max_new_tokens=8)(rows))
    assert [row["id"] for row in found] == ["c0", "c1", "c2", "c3"]
    assert all(row["status"] == "ok" for row in found)
    assert len({row["pred_text"] for row in found}) > 1
    with pytest.raises(InputError, match=r"toytext: .*hears nothing|task 'asr': a toy text model"):
        Transcriber(world / "toytext", device="cpu")


def test_a_task_has_its_own_targets_and_its_own_rate(world: Path, tmp_path: Path) -> None:
    Trainer(config(world, tmp_path / "run", "toytext", eval_at_start=True)).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "eval_utterances" in row]
    assert measured
    assert all("eval_places" in row and "eval_wer" not in row for row in measured)
    trainer = Trainer(config(world, tmp_path / "again", "toytext"))
    task, interface = find_task("reverse"), trainer.learner.interface
    row = Utterance(id="a", audio=None, text="one two three")
    *ids, end = task.targets(row, interface)
    assert (task.answer(ids, interface), end) == ("three two one", interface.end_id)
    with pytest.raises(InputError, match=r"task 'asr': a toy text model reverses words"):
        Trainer(config(world, tmp_path / "third", "toytext", task="asr", train_data=world / "clips.jsonl", eval_data=None))
    (tmp_path / "bare.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(InputError, match="field 'audio' must be the path of a recording"):
        Trainer(config(world, tmp_path / "fourth", "toyaudio", train_data=tmp_path / "bare.jsonl", eval_data=None))
    with pytest.raises(ValueError, match="task 'sing': there is no such task"):
        config(world, tmp_path, "toytext", task="sing")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_teacher_gets_its_own_features_from_workers(world: Path, tmp_path: Path, workers: int) -> None:
    teacher = importlib.import_module("toys.toy_teacher").ToyTeacher
    teacher.seen.clear()
    closed = teacher.closed
    Trainer(
        config(
            world, tmp_path / "run", "toyaudio", stage="opd", teacher_model=world / "toyaudio", teacher_backend="toys.toy_teacher",
            dataloader_num_workers=workers, opd_top_k=8, feature_cache_mb=64,
        )
    ).run()  # fmt: skip
    assert teacher.closed == closed + 1
    assert len(teacher.seen) >= 4
    processes = set()
    for ids, inputs in teacher.seen:
        for row, id_ in enumerate(ids):
            i = int(id_[1:])
            (tenths,) = inputs["loudness"].shapes[row].tolist()
            assert tenths == (5 + 2 * i), "0.5 + 0.2 i seconds"
            values = inputs["loudness"].values[row]
            assert values[:tenths].min() > 0
            assert not values[tenths:].any()
            processes.add(int(inputs["process"].values[row]))
    assert (processes == {os.getpid()}) == (workers == 0)
    assert len(set(losses(tmp_path / "run"))) == 4


def test_backends_that_are_not_there_or_are_none(world: Path, tmp_path: Path) -> None:
    for name in ("parrot", "toys.parrot", "no_such_package.teacher", "..", "os.path; import os", ""):
        with pytest.raises(ValueError, match=r"--teacher_backend .*: there is no such backend; give arkasr"):
            config(world, tmp_path, "toyaudio", stage="opd", teacher_model=world / "toyaudio", teacher_backend=name)
    request = TeacherRequest(
        model=world, student=None, interface=None, task="asr", allowed=None, top_k=1, device=torch.device("cpu"), dtype=torch.float32,
        attn_implementation="sdpa",
    )  # type: ignore[arg-type]  # fmt: skip
    with pytest.raises(InputError, match=r"--teacher_backend os.path: the module has no function load"):
        load_teacher("os.path", request)


def test_no_code_of_a_checkpoint_or_of_another_package_is_imported_by_its_name(tmp_path: Path) -> None:
    for kind in ("os", "../evil", "arkasr.prompt", "cost", "", None, 7, ["arkasr"], "ARKASR"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(InputError, match=r"config.json: model_type is .*, expected 'arkasr' or 'toyaudio' or 'toytext'"):
            find_family(tmp_path)


WORDS = re.compile(r"whisper_config|audio_encoder|merge_factor|ArkasrTeacher|ArkasrForConditionalGeneration")
"""Words of one family."""
AT_HOME = ("models/arkasr/", "models/__init__.py", "distill/teachers/arkasr.py", "testing.py", "quickstart/", "__init__.py")
"""Where they may stand: the family itself, its teacher, what makes tiny models, and the public names."""


def strangers(package: Path) -> list[str]:
    """``file:line`` of every word of one family that stands outside its folder."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(AT_HOME[:1] + AT_HOME[4:5]) and name not in AT_HOME:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if WORDS.search(line)]
    return found


def test_words_of_one_family_stand_in_its_folder_alone(tmp_path: Path) -> None:
    package = Path(arkfast.models.__file__).parents[1]
    assert strangers(package) == []
    for name in ("models/arkasr/x.py", "quickstart/x.py", "engine/x.py", "train/student.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\nb = model.config.merge_factor\n")
    assert strangers(tmp_path) == ["engine/x.py:2", "train/student.py:2"]
