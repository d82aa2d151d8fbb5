"""AdamW on float32 master weights, with a gradient that is normalised once a window.

Training in bf16 alone loses most updates: at a learning rate of 1e-6, 98 % of the weights never move, because the update is smaller
than half a bf16 step. Here the optimizer sees float32 weights and float32 gradients; the model's own weights are a copy in the compute
precision, refreshed once a step. Where the model already computes in float32, its weights are the master weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from arkfast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of step ``step`` (from 0): linear warm-up, then constant or a cosine down to ``min_lr_ratio`` at ``total_steps``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * share


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) over named parameters, in float32 whatever the model computes in.

    Args:
        parameters: (name, float32 parameter) pairs; names key the state. With another ``compute_dtype`` the parameters become a copy
            in it. Buffers, such as rotary tables, keep their precision.
        config: betas, weight decay and clipping.
        compute_dtype: what the model runs in.
    """

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], config: TrainConfig, compute_dtype: torch.dtype) -> None:
        self._clip = config.grad_clip
        self._model: dict[str, torch.nn.Parameter] = {}
        self._master: dict[str, torch.nn.Parameter] = {}
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            assert parameter.dtype == torch.float32, f"{name}: master weights start from float32, got {parameter.dtype}"
            self._model[name] = self._master[name] = parameter
            if compute_dtype != torch.float32:
                self._master[name] = torch.nn.Parameter(parameter.detach().clone())
                parameter.data = parameter.data.to(compute_dtype)
        self._copied = [name for name, p in self._model.items() if p is not self._master[name]]
        decayed = [p for p in self._master.values() if p.ndim >= 2]
        plain = [p for p in self._master.values() if p.ndim < 2]  # norms and biases
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=(config.adam_beta1, config.adam_beta2), fused=True
        )

    @property
    def masters(self) -> dict[str, torch.Tensor]:
        """The float32 weights by name."""
        return {name: p.detach() for name, p in self._master.items()}

    @torch.no_grad()
    def collect(self) -> None:
        """After each micro-batch: add the model's gradients to the float32 ones and clear them."""
        for name in self._copied:
            model, master = self._model[name], self._master[name]
            if model.grad is not None:
                master.grad = model.grad.float() if master.grad is None else master.grad.add_(model.grad)
                model.grad = None

    @torch.no_grad()
    def step(self, lr: float, count: torch.Tensor, loss_sum: torch.Tensor) -> tuple[float, float, bool]:
        """Divide the window's summed gradient by ``count``, clip, update; skip the update when loss or gradient is not finite.

        Args:
            lr: this step's learning rate.
            count: scalar, counting positions of the window.
            loss_sum: scalar, the window's summed loss.

        Returns:
            (mean loss, gradient norm before clipping, whether the step was taken). The one wait for the device in a step.
        """
        masters = [p for p in self._master.values() if p.grad is not None]
        gradients = [p.grad for p in masters]
        scale = 1.0 / count.clamp_min(1.0)
        torch._foreach_mul_(gradients, scale)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        loss, norm_value = torch.stack([loss_sum.detach() * scale, norm]).tolist()
        finite = math.isfinite(loss) and math.isfinite(norm_value)
        if finite:
            if self._clip and norm_value > self._clip:
                torch._foreach_mul_(gradients, self._clip / norm_value)
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
            for name in self._copied:
                self._model[name].copy_(self._master[name])
        self._adamw.zero_grad(set_to_none=True)
        return loss, norm_value, finite

    def state(self) -> dict[str, torch.Tensor]:
        """Master weights, moments and step counts, as ``<kind>/<parameter>`` tensors."""
        tensors = {f"master/{name}": weight for name, weight in self.masters.items()}
        for name, master in self._master.items():
            for kind, value in self._adamw.state.get(master, {}).items():
                tensors[f"{kind}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Undo ``state``.

        Raises:
            ValueError: a parameter has no master weight of its shape there.
        """
        for name, master in self._master.items():
            saved = tensors.get(f"master/{name}")
            if saved is None or saved.shape != master.shape:
                there = "nothing" if saved is None else tuple(saved.shape)
                raise ValueError(
                    f"optimizer state: parameter {name} {tuple(master.shape)} has {there} saved; the checkpoint is another model's"
                )
            master.copy_(saved)
            self._model[name].copy_(master)
        for name, master in self._master.items():
            held = {key.partition("/")[0]: value for key, value in tensors.items() if key.partition("/")[2] == name}
            held.pop("master")
            if held:
                self._adamw.state[master] = {kind: value.to(master.device, copy=True) for kind, value in held.items()}
