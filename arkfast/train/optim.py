"""AdamW on float32 master weights, with a gradient that is normalised once a window.

Training in bf16 alone loses most updates: at a learning rate of 1e-6, 98 % of the weights never move, because the update is smaller
than half a bf16 step. Here the optimizer sees float32 weights and float32 gradients; the model's own weights are a copy in the compute
precision, refreshed once a step. Where the model already computes in float32, its weights are the master weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor

from arkfast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of step ``step`` (from 0): linear warm-up, then the schedule, which ends at ``total_steps``.

    ``constant`` stays; ``cosine`` falls to ``min_lr_ratio`` of the peak; ``wsd`` stays and falls linearly to ``min_lr_ratio`` over the
    last ``wsd_decay_share`` of all steps.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    if config.lr_scheduler_type == "wsd":
        decay = max(1, round(config.wsd_decay_share * total_steps))
        left = min(1.0, max(0.0, (total_steps - step) / decay))
        return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * share


class StepResult(NamedTuple):
    """What became of a step."""

    loss: float
    """Mean over the counting positions of all ranks."""
    norm: float
    """Of the whole gradient, before clipping."""
    positions: float
    """Counting positions of all ranks, or what they weigh together."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    @property
    def taken(self) -> bool:
        """False where a number was not finite, or no position counted: nothing was changed."""
        return self.finite and self.positions > 0


class AdamW(torch.optim.AdamW):
    """AdamW with the two numbers that its fused kernel looks for, by which it divides the gradient or skips the step."""

    grad_scale: torch.Tensor
    found_inf: torch.Tensor


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) over named parameters, in float32 whatever the model computes in.

    Of a sharded parameter it holds and updates the shard of this rank; FSDP2 keeps that in float32 and leaves the summed gradient there.

    Args:
        parameters: (name, float32 parameter) pairs; names key the state. With another ``compute_dtype`` whole parameters become a copy
            in it. Buffers, such as rotary tables, keep their precision.
        config: betas, weight decay, clipping and the decay of the running average.
        compute_dtype: what the model runs in.
        total: adds a float64 tensor up over all ranks; None for a single process.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        config: TrainConfig,
        compute_dtype: torch.dtype,
        *,
        total: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._clip, self._ema_decay, self._total = config.grad_clip, config.ema_decay, total
        self.changes = 0
        """How often the weights may have changed: what is made of them is remade when this has grown."""
        self._model: dict[str, torch.nn.Parameter] = {}
        self._master: dict[str, torch.nn.Parameter] = {}
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            assert parameter.dtype == torch.float32, f"{name}: master weights start from float32, got {parameter.dtype}"
            self._model[name] = self._master[name] = parameter
            if isinstance(parameter, DTensor):
                self._master[name] = torch.nn.Parameter(_local(parameter.detach()))  # the same memory
            elif compute_dtype != torch.float32:
                self._master[name] = torch.nn.Parameter(parameter.detach().clone())
                parameter.data = parameter.data.to(compute_dtype)
        self._sharded = {name: p for name, p in self._model.items() if isinstance(p, DTensor)}
        self._copied = [name for name, p in self._model.items() if p is not self._master[name] and name not in self._sharded]
        assert total is not None or not self._sharded, "sharded gradients need a sum over ranks"
        assert not self._sharded or len(self._sharded) == len(self._model), "a model is sharded or it is not"
        self._copies = next((_copies(p) for p in self._sharded.values()), 1)
        decayed = [p for name, p in self._master.items() if self._model[name].ndim >= 2]
        plain = [p for name, p in self._master.items() if self._model[name].ndim < 2]  # norms and biases
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adamw = AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=(config.adam_beta1, config.adam_beta2), fused=True
        )
        self._ema = {name: p.detach().clone() for name, p in self._master.items()} if self._ema_decay else {}

    @property
    def masters(self) -> dict[str, torch.Tensor]:
        """The float32 weights by name; DTensors where the parameters are sharded."""
        return {name: self._placed(name, p.detach()) for name, p in self._master.items()}

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """The running average of the weights by name; empty where none is kept."""
        return {name: self._placed(name, value) for name, value in self._ema.items()}

    @torch.no_grad()
    def collect(self) -> None:
        """After each micro-batch: add the model's gradients to the float32 ones and clear them."""
        for name in self._copied:
            model, master = self._model[name], self._master[name]
            if model.grad is not None:
                master.grad = model.grad.float() if master.grad is None else master.grad.add_(model.grad)
                model.grad = None

    @torch.no_grad()
    def step(self, lr: float, count: torch.Tensor, loss_sum: torch.Tensor) -> torch.Tensor:
        """Divide the window's summed gradient by its count, clip, update; skip the update when loss or gradient is not finite.

        All of it is decided on the device: AdamW's fused kernel divides by the count and by what clipping asks for as it reads the
        gradient, and leaves everything as it is when it is told of a number that is not finite. Every rank comes to the same result, from
        one all-reduce of three numbers.

        Args:
            lr: this step's learning rate.
            count: scalar, counting positions of this rank's part of the window, or what they weigh together.
            loss_sum: scalar, that part's summed loss.

        Returns:
            [3] float64 on the device, the fields of ``StepResult``; nothing here waits for them.
        """
        self.changes += 1
        for name, parameter in self._sharded.items():
            self._master[name].grad = None if parameter.grad is None else _local(parameter.grad)
            parameter.grad = None
        loss, norm, positions = result = self._measured(count, loss_sum)
        taken = loss.isfinite() & norm.isfinite() & (positions > 0)
        clipped = (norm / self._clip).clamp_min(1.0) if self._clip else torch.ones_like(norm)
        self._adamw.grad_scale = (_divisor(positions) * clipped).float()
        self._adamw.found_inf = (~taken).float()
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for name in self._copied:
            self._model[name].copy_(self._master[name])
        if self._ema:
            weight = taken * (1.0 - self._ema_decay)
            for name, average in self._ema.items():
                average.lerp_(self._master[name].detach(), weight.to(average.dtype))
        self._adamw.zero_grad(set_to_none=True)
        return result

    def _measured(self, count: torch.Tensor, loss_sum: torch.Tensor) -> torch.Tensor:
        """[3]: mean loss, norm of the divided gradient and count, over all ranks."""
        gradients = [p.grad for p in self._master.values() if p.grad is not None]
        # Copies of a shard on several ranks count once. float64: the gradient is not divided yet, and its square is large.
        norms = torch.stack(torch._foreach_norm(gradients)).double() if gradients else loss_sum.new_zeros(1, dtype=torch.float64)
        own = torch.stack([loss_sum.detach().double(), count.double(), norms.square().sum() / self._copies])
        loss, positions, squares = own if self._total is None else self._total(own)
        divisor = _divisor(positions)
        return torch.stack([loss / divisor, squares.sqrt() / divisor, positions])

    def _placed(self, name: str, local: torch.Tensor) -> torch.Tensor:
        """A rank's part of a parameter's tensor as what it is part of; a whole tensor as it is."""
        sharded = self._sharded.get(name)
        if sharded is None:
            return local
        return DTensor.from_local(
            local, sharded.device_mesh, sharded.placements, run_check=False, shape=sharded.shape, stride=sharded.stride()
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Master weights, moments, step counts and running average, as ``<kind>/<parameter>`` tensors; DTensors where sharded."""
        tensors = {f"master/{name}": weight for name, weight in self.masters.items()}
        tensors |= {f"ema/{name}": weight for name, weight in self.average.items()}
        for name, master in self._master.items():
            for kind, value in self._adamw.state.get(master, {}).items():
                tensors[f"{kind}/{name}"] = value if kind == "step" else self._placed(name, value)
        return tensors

    def blank(self) -> dict[str, torch.Tensor]:
        """Tensors of the names, shapes and shards that ``state`` can have, to be filled from a file."""
        tensors = {}
        for name, master in self._master.items():
            for kind in ("master", "exp_avg", "exp_avg_sq", *(["ema"] if self._ema else [])):
                tensors[f"{kind}/{name}"] = self._placed(name, torch.zeros_like(master.detach()))
            tensors[f"step/{name}"] = torch.zeros((), device=master.device)
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load what ``state`` returned. Where it holds no running average, that starts from the weights.

        Raises:
            ValueError: a parameter has no master weight of its shape there.
        """
        self.changes += 1
        for name, master in self._master.items():
            saved = tensors.get(f"master/{name}")
            if saved is None or saved.shape != self._model[name].shape:
                there = "nothing" if saved is None else tuple(saved.shape)
                raise ValueError(
                    f"optimizer state: parameter {name} {tuple(self._model[name].shape)} has {there} saved; the checkpoint is another "
                    "model's"
                )
            master.copy_(_local(saved))
            if name in self._copied:
                self._model[name].copy_(master)
        for name, master in self._master.items():
            held = {key.partition("/")[0]: _local(value) for key, value in tensors.items() if key.partition("/")[2] == name}
            held.pop("master")
            average = held.pop("ema", master)
            if self._ema:
                self._ema[name].copy_(average)
            if held:
                self._adamw.state[master] = {kind: value.to(master.device, copy=True) for kind, value in held.items()}


def _divisor(positions: torch.Tensor) -> torch.Tensor:
    """What a window's sums are divided by; 1 where nothing counts. What positions weigh together may lie below 1."""
    return torch.where(positions > 0, positions, 1.0)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(parameter: DTensor) -> int:
    """On how many ranks the same shard lies."""
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_replicate())
