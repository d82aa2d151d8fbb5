"""The first half minute on a GPU: what it copies and multiplies, which attention PyTorch takes, and what the encoder costs with each.

These few figures decide how all others are read, so that each is written as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from shapes import Shape
from torch.nn.attention import SDPBackend

from harness import ceilings, speech
from harness.clock import Clock, percentiles
from harness.plan import LOOK
from harness.results import Result

COPIED = {"cuda": 4 << 30, "cpu": 1 << 20}
PRODUCTS = {"cuda": ((8_192, 8_192, 8_192), (4_096, 151_680, 1_024)), "cpu": ((64, 64, 64),)}
"""(rows, columns, features) of products: a square one, and the head of the model that teaches."""
CLIPS = {"cuda": (896, 40, (10.0, 7.3)), "cpu": (48, 2, (1.0, 0.8))}
"""Decoder's width, clips, and their seconds: two lengths, since cuDNN's attention builds a plan for each new one."""
ROUNDS = 3
Row = dict[str, Any]


def row(device: torch.device, shape: Shape, provider: str, **more: Any) -> Row:
    return {
        "group": LOOK,
        "shape": shape.sizes(),
        "device": device.type,
        "provider": provider,
        "ours": False,
        "check": "none needed",
        **more,
    }


def of_machine(device: torch.device) -> Iterator[Row]:
    """The rate of a copy and of products."""
    clock = Clock(device)
    nothing, moved = Shape(T=1, mode="copy"), COPIED[device.type]
    calls: list[tuple[str, Shape, int]] = [("copy", nothing, moved)]
    calls += [("mm", Shape(T=T, V=V, H=H, mode="product"), 0) for T, V, H in PRODUCTS[device.type]]
    for name, shape, size in calls:
        call = ceilings.make(name, shape, size, device)
        call(0)
        taken = percentiles([clock.seconds(call, 0) for _ in range(5)])
        yield row(device, shape, f"ceiling: {name}", seconds=taken, samples=5, **ceilings.rates(name, shape, size, taken["p50"]))


def backend_for(device: torch.device, masked: bool) -> str:
    """The attention that PyTorch takes for the encoder's sizes, by the name that it has there."""
    dtype = speech.data_type(device)
    q = torch.zeros(2, 20, 500, 64, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(2, 1, 500, 500, device=device, dtype=torch.bool) if masked else None
    return SDPBackend(torch._fused_sdp_choice(q, q, q, mask, 0.0, False)).name


def of_attention(device: torch.device) -> Iterator[Row]:
    """Which attention is taken with cuDNN's and without, for clips of one length and for padded ones."""
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        said = ", ".join(f"{'masked' if masked else 'unmasked'}: {backend_for(device, masked)}" for masked in (False, True))
        yield row(device, Shape(T=500, mode="attention"), f"cuDNN {'on' if cudnn else 'off'}", note=said)


def of_encoder(device: torch.device) -> Iterator[Row]:
    """A forward and a backward pass of the encoder: the first call at a length and the middle one of the next, and its gradients."""
    H, clips, lengths = CLIPS[device.type]
    model = speech.model(H, device)
    model.audio_encoder.requires_grad_(True)
    clock, norms = Clock(device, queued=False), dict[float, float]()

    def step(seconds: float) -> Callable[[int], None]:
        mel = speech.clips(H, [seconds] * clips, device, 0).mel

        def run(_: int) -> None:
            model.audio_encoder.zero_grad()
            model.get_audio_features(mel)[0].float().square().mean().backward()

        return run

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # The product's plans are made before anything is timed, at a length of its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    step(lengths[0] / 2)(0)
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for seconds in lengths:
            call = step(seconds)
            begun = wait()
            call(0)
            first = wait() - begun
            taken = percentiles([clock.seconds(call, 0) for _ in range(ROUNDS)])
            norm = float(torch.stack([p.grad.float().norm() for p in model.audio_encoder.parameters() if p.grad is not None]).norm())
            norms.setdefault(seconds, norm)
            apart = abs(norm - norms[seconds]) / norms[seconds] if norms[seconds] else 0.0
            right = torch.isfinite(torch.tensor(norm)).item()
            yield row(
                device,
                Shape(T=round(clips * seconds * 50), B=clips, mode="encoder"),
                f"cuDNN {'on' if cudnn else 'off'}",
                check="passed" if right else "failed: the gradient is not finite",
                seconds=taken,
                samples=ROUNDS,
                note=f"forward and backward; first call at this length {1e3 * first:.0f} ms"
                + (f"; the gradient's norm is {apart:.1e} from that without cuDNN" if cudnn and right else ""),
            )


def look(device: torch.device, on_rows: Callable[[list[Result]], None]) -> list[Result]:
    """All of it; ``on_rows`` is told of the rows so far after each.

    Args:
        device: the GPU, or a CPU, whose figures are of toy sizes.
    """
    before, rows = torch.backends.cuda.cudnn_sdp_enabled(), list[Result]()
    try:
        for part in (of_machine, of_attention, of_encoder):
            for one in part(device):
                rows.append(one)
                on_rows(rows)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        speech.model.cache_clear()
    return rows
