"""Stage ctc_head: a small head on the frozen model's audio embeddings, from plain transcripts, by which words get their times.

The model is not changed, so that one process and minutes are enough. Rows, their order and bad audio are those of the other stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import MISSING, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from arkfast.align import CtcHead, HeadConfig, Units, save_head
from arkfast.align.head import SETTINGS, WEIGHTS, weights_digest
from arkfast.align.units import BLANK
from arkfast.audio import LogMel
from arkfast.console import Console
from arkfast.data import FeatureItem
from arkfast.data.bad_audio import BadAudioLimit
from arkfast.files import new_file
from arkfast.models.family import AnyFamily, SpeechModel, find_family
from arkfast.models.hub import checkpoint_folder
from arkfast.records import Batch, InputError, Utterance
from arkfast.train.checkpoints.run_lock import RunLock
from arkfast.train.config import TrainConfig
from arkfast.train.feed import Feed, batch_of, read_rows
from arkfast.train.models import compute_dtype
from arkfast.train.optim import learning_rate
from arkfast.train.parallel import Parallel
from arkfast.train.paths import check_paths
from arkfast.train.stop import Interrupted, StopRequest
from arkfast.train.trainer import TrainingStopped

OBEYS = frozenset({
    "quiet", "log_file", "stage", "student_model", "student_revision", "train_data", "output_dir", "train_max_samples", "shuffle_train",
    "per_device_train_batch_size", "batch_seconds", "gradient_accumulation_steps", "micro_batches_per_step", "distributed_timeout",
    "dataloader_num_workers", "dataloader_prefetch_factor", "on_bad_audio", "feature_cache_mb", "max_steps", "total_epochs",
    "learning_rate", "lr_scheduler_type", "wsd_decay_share", "warmup_steps", "min_lr_ratio", "weight_decay", "adam_beta1", "adam_beta2",
    "grad_clip", "seed", "channel", "audio_track", "on_truncated", "max_audio_seconds", "save_freq", "resume_from_checkpoint",
    "model_dtype", "student_attn_implementation", "device", "num_threads",
})  # fmt: skip
"""The flags that this stage asks for. Another one is an error, since it would have no effect."""
HEAD_RATE = 2e-3
"""The peak learning rate where none is given: the default of the other stages is meant for whole models."""
STATE = "ctc_head_state.safetensors"
"""What a run goes on from, in its folder; removed when the head is complete."""
PRIOR_DECAY = 0.98
"""Of the running average of the units' shares, a step."""
LONG_CLIP = 24_000
"""Mel frames of a clip of four minutes, in which no rounding hides how many an embedding has."""


def ctc_loss(head: CtcHead, log_probabilities: Tensor, steps: Tensor, units: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """−log of the sum over all alignments of the products of ``head.scores``, summed over the clips that can be aligned.

    Those scores are no distribution. The gradient that torch gives for CTC is right for one that is: it adds the gradient of Σ exp(score)
    at each step, which a log-softmax turns into nothing. Here it is taken off again.

    Args:
        head: of which the priors are read.
        log_probabilities: [B, T, V].
        steps: [B] of each clip.
        units: [B, U] ids, padded on the right.
        counts: [B] of each clip.

    Returns:
        The loss, and how many of its clips have fewer steps than their units need; they add nothing.
    """
    scores = head.scores(log_probabilities)
    again = (units[:, 1:] == units[:, :-1]) & (torch.arange(1, units.shape[1], device=units.device) < counts[:, None])
    fits = (steps >= counts + again.sum(1)) & (counts > 0)
    loss = torch.nn.functional.ctc_loss(scores.transpose(0, 1), units, steps, counts, blank=BLANK, reduction="none", zero_infinity=True)
    inside = (torch.arange(scores.shape[1], device=scores.device) < steps[:, None]) & fits[:, None]
    extra = (scores.exp().sum(-1) * inside).sum()
    return torch.where(fits, loss, 0).sum() - (extra - extra.detach()), (~fits).sum()


class CtcHeadRun:
    """A run of stage ctc_head. Everything that can be wrong with its inputs is found here, before the first step.

    Args:
        config: what to train on; ``OBEYS`` names the flags that it asks.

    Raises:
        InputError: with the flag or the file and line that is wrong.
    """

    def __init__(self, config: TrainConfig) -> None:
        for f in fields(config):
            if f.name == "learning_rate" and config.learning_rate == f.default:
                config = replace(config, learning_rate=HEAD_RATE)
            if f.name not in OBEYS and f.default is not MISSING and getattr(config, f.name) != f.default:
                raise InputError(f"--{f.name}: stage ctc_head trains a head on a model that stays as it is, and asks for no such thing")
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        self._parallel = Parallel(config.device, timeout=config.distributed_timeout)
        if self._parallel.world > 1:
            raise InputError(f"--stage ctc_head: there are {self._parallel.world} processes, and a head is trained in minutes by one")
        check_paths(config)
        if config.resume_from_checkpoint not in ("", "auto", "latest"):
            raise InputError(
                f"--resume_from_checkpoint {config.resume_from_checkpoint}: stage ctc_head keeps one state, in its --output_dir; give "
                "auto or latest"
            )
        self._lock = RunLock(config, self._parallel)
        with self._lock.unless_it_fails():
            self._set_up()

    def _set_up(self) -> None:
        config, device = self.config, self._parallel.device
        self._rows = read_rows(config, self._parallel)
        folder = checkpoint_folder(config.student_model, revision=config.student_revision, flag="--student_model")
        self._family: AnyFamily = find_family(folder)
        self._model: SpeechModel = self._family.load(
            folder, dtype=compute_dtype(config, device), attn_implementation=config.student_attn_implementation, device=device
        )
        self._model.requires_grad_(False)
        interface = self._family.interface(self._family.tokenizer(folder), self._model, where=f"--student_model {folder}")
        hears = self._model.audio_input
        if interface.n_mels is None or hears is None:
            raise InputError(f"--student_model {folder}: the model hears nothing, so nothing can be aligned with it; give another")
        self._prompt = interface.prompt(config.task)
        units = Units.of_texts(row.text or "" for row in self._rows.train)
        if not units.characters:
            raise InputError(f"--train_data {config.train_data}: no text has a letter or a number; there is nothing to learn")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = CtcHead(
                HeadConfig(
                    hidden_size=int(self._model.config.hidden_size),
                    frames_per_embedding=round(LONG_CLIP / hears.token_count(LONG_CLIP)),
                    units=units.characters,
                    weights=weights_digest(folder),
                )
            ).to(device)
        self._optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), weight_decay=config.weight_decay
        )
        self._console = Console(quiet=config.quiet, log_file=config.log_file)
        self._skipped = 0
        self._limit = BadAudioLimit(config.on_bad_audio)
        self._feed = Feed(
            self._rows,
            config,
            self._parallel,
            LogMel(interface.n_mels),
            None,
            self._batch,
            self._pass_over,
            lambda t: self._console.warn(t),
        )
        self._step = self._cursor = 0
        self._state = config.output_dir / STATE
        if config.resume_from_checkpoint:
            self._resume()
        self.total_steps = self._feed.total_steps(self._step, self._cursor)

    def _batch(self, items: Sequence[FeatureItem]) -> Batch:
        return batch_of(items, self._prompt, hears=True, targets=lambda row: self.head.units.ids(row.text or ""))

    def _pass_over(self, _row: Utterance, error: InputError) -> None:
        self._skipped += 1
        self._console.warn(f"--on_bad_audio {self.config.on_bad_audio}: passed over {error}")

    def run(self) -> Path:
        """Train to the end, write the head and return its folder.

        Raises:
            TrainingStopped: no clip has enough steps for its text, or the loss is not finite.
            InputError: a clip cannot be used, or something cannot be written.
            Interrupted: a signal told the run to stop; the step was finished and its state written.
        """
        config, stop = self.config, StopRequest(self._parallel)
        text = f"step {self._step}/{self.total_steps}"
        try:
            with self._console, stop, closing(self._feed.windows(self._cursor)) as windows:
                self._console.begin(unit="step", total=self.total_steps, done=self._step)
                while self._step < self.total_steps:
                    window, batches = next(windows)
                    text = self._one_step(batches, seen=window.cursor)
                    self._cursor = window.cursor
                    self._step += 1
                    self._console.advance(text)
                    signal = stop.of_any()
                    if signal or (config.save_freq > 0 and self._step % config.save_freq == 0):
                        self._save()
                    if signal and self._step < self.total_steps:
                        raise Interrupted(signal, self._step, self.total_steps)
                save_head(self.head, config.output_dir)
                self._state.unlink(missing_ok=True)
                self._console.say(f"{text}; {config.output_dir / WEIGHTS}, {config.output_dir / SETTINGS}")
        finally:
            self._lock.release()
        return config.output_dir

    def _one_step(self, batches: Iterator[Batch | None], *, seen: int) -> str:
        """A step over all micro-batches of a window; returns how it went."""
        self._optimizer.zero_grad()
        device, clips, left_out, total = self._parallel.device, 0, 0, 0.0
        for batch in batches:
            if batch is None:
                continue
            loss, short = self._loss(batch.to(device))
            loss.backward()
            total, left_out, clips = total + float(loss.detach()), left_out + int(short), clips + len(batch.ids)
        if self._limit.passed(self._skipped, seen):
            raise InputError(f"--on_bad_audio {self.config.on_bad_audio}: {self._skipped} of {seen} rows so far are bad")
        learnt = clips - left_out
        if clips and not learnt:
            self._console.warn(f"step {self._step + 1}: no clip has enough steps for its text, so nothing was learnt from it")
        for parameter in self.head.parameters():
            if parameter.grad is not None and learnt:
                parameter.grad /= learnt
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.grad_clip or math.inf)
        if not math.isfinite(total) or not math.isfinite(float(norm)):
            raise TrainingStopped(f"step {self._step + 1}: the loss is {total:g}; lower --learning_rate")
        rate = learning_rate(self.config, self._step, self.total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if learnt:
            self._optimizer.step()
        short_of = f", {left_out} clips too short for their text" if left_out else ""
        return f"loss {total / max(1, learnt):.3f} a clip{short_of}"

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.mel is not None
        assert batch.target_ids is not None
        assert batch.target_lens is not None
        with torch.no_grad():
            embeddings, counts = self._model.get_audio_features(batch.mel, batch.mel_lens, frames=batch.mel_frames)
        log_probabilities, steps = self.head(embeddings, counts)
        loss = ctc_loss(self.head, log_probabilities, steps, batch.target_ids, batch.target_lens)
        with torch.no_grad():
            inside = torch.arange(log_probabilities.shape[1], device=steps.device) < steps[:, None]
            share = (log_probabilities.exp() * inside[..., None]).sum((0, 1)) / inside.sum()
            prior = PRIOR_DECAY * self.head.log_prior.exp() + (1 - PRIOR_DECAY) * share
            self.head.log_prior.copy_(prior.clamp(min=1e-8).log())
        return loss

    def _save(self) -> None:
        """Write what a run goes on from, in one file."""
        tensors = {f"head/{name}": tensor for name, tensor in self.head.state_dict().items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": tensor for name, tensor in moments.items()}
        with new_file(self._state) as file:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, self._identity())

    def _identity(self) -> dict[str, str]:
        """What a state belongs to and where it stands."""
        config = self.head.config
        known = {
            "weights": config.weights,
            "units": "".join(config.units),
            "rows": str(len(self._rows.train)),
            "seed": str(self.config.seed),
        }
        return known | self._place()

    def _place(self) -> dict[str, str]:
        """Where it stands: steps taken, rows met, and those of them that were passed over."""
        return {"step": str(self._step), "cursor": str(self._cursor), "skipped": str(self._skipped)}

    def _resume(self) -> None:
        """Go on from the state in the run's folder; ``auto`` begins anew where there is none."""
        if not self._state.is_file():
            if self.config.resume_from_checkpoint == "auto":
                return
            raise InputError(f"--resume_from_checkpoint latest: {self._state} is not there; leave the flag out to begin anew")
        try:
            with safe_open(self._state, "pt") as file:
                known = dict(file.metadata() or {})
            tensors = load_file(self._state, device=str(self._parallel.device))
            step, cursor, skipped = (int(known.pop(name)) for name in self._place())
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"{self._state}: cannot be read ({error}); remove it to begin anew") from error
        ours = {name: value for name, value in self._identity().items() if name not in self._place()}
        if known != ours:
            differing = ", ".join(sorted(name for name in known.keys() | ours.keys() if known.get(name) != ours.get(name)))
            raise InputError(f"{self._state}: belongs to a run of other {differing}; give another --output_dir, or remove it to begin anew")
        self.head.load_state_dict({name.removeprefix("head/"): value for name, value in tensors.items() if name.startswith("head/")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam/"):
                _, number, moment = name.split("/")
                moments.setdefault(int(number), {})[moment] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._step, self._cursor, self._skipped = step, cursor, skipped
        self._console.say(f"goes on after step {step} ({self._state})")
