"""One rank of a run of several processes, for the tests: does one scenario after the other in a process that has imported once.

``python ranks.py SCENARIOS.json RANK WORLD``: the file holds a list of scenarios, each {"config": fields of TrainConfig, "halt": a step
after which the run is abandoned as if killed, "free": the bytes of memory that each rank is to find free, "stale": whether a copy for
rollouts is filled once and never again; all but the first may be absent}. Rank 0 leaves ``first_gradients.pt`` and ``collectives.json``
in each run's folder, and every rank ``rollouts<rank>.json``, each clip's tokens in every rollout. Not a test itself.
"""

import faulthandler
import json
import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arkfast.engine import Engine
from arkfast.train import rollout_copy
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

TENSORS = {"model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight", "audio_encoder.whisper.conv1.weight"}
NAMES = {"_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter", "allreduce_": "all-reduce"}


class Collectives(TorchDispatchMode):
    """Counts what passes through torch's process groups, and the bytes of its largest tensor, within and outside a rollout."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes, self.rollout = Counter(), Counter(), Counter()
        self.decoding = self.exporting = False
        self.tokens = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and not self.exporting:
            name = func._schema.name.removeprefix("c10d::")
            kind = NAMES.get(name, name)
            self.count[kind] += 1
            self.bytes[kind] += max(t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
            if self.decoding:
                self.rollout[kind] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(trainer, out):
    """Count a run's collectives, those of its decoding apart, and keep the first step's gradients."""
    counter, decode, step = Collectives(), Engine.rollout, trainer.optimizer.step

    def rollout(self, batch, **options):
        counter.decoding = True
        try:
            found = decode(self, batch, **options)
        finally:
            counter.decoding = False
        answers = [row[:n] for row, n in zip(found.tokens.tolist(), found.lens.tolist(), strict=True)]
        counter.tokens.append(dict(zip(batch.ids, answers, strict=True)))
        return found

    def first_step(*args):
        gradients = {}
        for name, parameter in trainer.learner.student.parameters:
            if parameter.grad is not None:
                gradients[name] = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad.clone()
        count = trainer.parallel.total(args[1].clone())
        if trainer.parallel.is_first:
            torch.save({name: gradient / count for name, gradient in gradients.items()}, out / "first_gradients.pt")
        trainer.optimizer.step = step
        counter.__enter__()  # from here on, so that what this check itself sent is not counted
        return step(*args)

    export = trainer._exporter

    def exporter(weights):  # a model that is written gathers its weights, outside every step
        counter.exporting = True
        try:
            return export(weights)
        finally:
            counter.exporting = False

    trainer._exporter = exporter
    trainer.optimizer.step, Engine.rollout = first_step, rollout
    try:
        yield counter
    finally:
        Engine.rollout = decode
        if trainer.optimizer.step == step:
            counter.__exit__(None, None, None)


def halt_after(trainer, steps):
    """Abandon the run after so many steps, with whatever was saved by then."""
    after = trainer._after_step

    def checked():
        after()
        if trainer._state.step == steps:
            raise KeyboardInterrupt

    trainer._after_step = checked


def play(scenario):
    config = TrainConfig(**{name: Path(v) if name in PATHS and v is not None else v for name, v in scenario["config"].items()})
    free_memory, refresh = rollout_copy.free_memory, rollout_copy.RolloutCopy.refresh
    if "free" in scenario:
        rollout_copy.free_memory = lambda _: scenario["free"][int(os.environ["RANK"])]
    if scenario.get("stale"):
        filled = []
        rollout_copy.RolloutCopy.refresh = lambda self: filled or filled.append(refresh(self))
    try:
        run(config, scenario)
    finally:
        rollout_copy.free_memory, rollout_copy.RolloutCopy.refresh = free_memory, refresh


def run(config, scenario):
    trainer = Trainer(config)
    if "halt" in scenario:
        halt_after(trainer, scenario["halt"])
    try:
        with watched(trainer, config.output_dir) as counter:
            trainer.run()
    except KeyboardInterrupt:
        trainer._saver.close()
        trainer.parallel.close()
    (config.output_dir / f"rollouts{trainer.parallel.rank}.json").write_text(json.dumps(counter.tokens))
    if trainer.parallel.is_first:
        steps = trainer.total_steps - 1
        found = {"count": counter.count, "bytes": counter.bytes, "rollout": counter.rollout, "steps": steps}
        (config.output_dir / "collectives.json").write_text(json.dumps(found))


PATHS = {"student_model", "teacher_model", "train_data", "eval_data", "output_dir"}

if __name__ == "__main__":
    scenarios, rank, world = sys.argv[1:]
    faulthandler.register(signal.SIGUSR2)  # whoever waits in vain asks where this process stands
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    for one in json.loads(Path(scenarios).read_text()):
        play(one)
    assert not dist.is_initialized()
