"""Audio rows in the place of placeholders: ours, masked_scatter as Hugging Face's models do it, a boolean index_put, and gather and where.

The mode "backward" runs forward and backward; host_syncs counts how often a call made the host wait.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from harness.common import compiled, compiles, normal, our_backends, zipf_ids
from harness.oracles import apart, first, further
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import AUDIO, PROMPT, USED_IDS, Shape, prompt_shapes
from torch.nn import functional as F

from arkfast.kernels import audio_embed_merge

Result = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Prompts:
    """Prompts of equal length whose placeholders stand together, as a chat template puts them."""

    ids: torch.Tensor
    """[B, P] int64"""
    table: torch.Tensor
    """[V, H]"""
    audio: torch.Tensor
    """[B, Ta, H] padded"""
    lens: torch.Tensor
    """[B] int32 rows of each clip, as many as its prompt has placeholders"""
    audio_id: int
    upstream: torch.Tensor
    """[B, P, H] gradient of the embeddings"""
    backward: bool


def inputs(shape: Shape, device: torch.device, seed: int) -> Prompts:
    B, P = shape.B, shape.T // shape.B
    most = P * AUDIO // PROMPT
    audio_id = min(USED_IDS, shape.V - 1)
    ids = zipf_ids(B, P, audio_id, device, seed).long()
    # Clips of unequal length: down to two thirds of the longest.
    lens = most - torch.arange(B, device=device, dtype=torch.int32) * (most // 3) // max(1, B - 1)
    place = torch.arange(P, device=device)
    ids[(place >= 5) & (place < 5 + lens[:, None])] = audio_id
    table, audio = normal(shape.V, shape.H, device=device, seed=seed), normal(B, most, shape.H, device=device, seed=seed + 1)
    backward = shape.mode == "backward"
    upstream = normal(B, P, shape.H, device=device, seed=seed + 2)
    return Prompts(ids, table.requires_grad_(backward), audio.requires_grad_(backward), lens, audio_id, upstream, backward)


def oracle(shape: Shape, x: Prompts) -> Result:
    """Row by row: the clip's rows in order at the prompt's placeholders; gradients by summing float64 rows."""
    table, audio = x.table.detach(), x.audio.detach()
    merged = table[x.ids].clone()
    for b, length in enumerate(x.lens.tolist()):
        merged[b, x.ids[b] == x.audio_id] = audio[b, :length]
    if not x.backward:
        return (merged,)
    d_table, d_audio = torch.zeros(table.shape, dtype=torch.float64, device=table.device), torch.zeros_like(audio)
    text = x.ids != x.audio_id
    d_table.index_add_(0, x.ids[text], x.upstream[text].double())
    for b, length in enumerate(x.lens.tolist()):
        d_audio[b, :length] = x.upstream[b, ~text[b]]
    return merged, d_table, d_audio


def check(x: Prompts, result: Result, oracle: Result) -> str | None:
    """Copies are exact; the table's gradient is rounded, once where sums are float32 and at every addition elsewhere."""
    complaint = further("an embedding", result[0], oracle[0], 0.0)
    if not x.backward:
        return complaint
    return first(
        complaint,
        apart("the table's gradient", result[1], oracle[1], 2e-2),
        further("the audio gradient", result[2], oracle[2], 0.0),
    )


def check_ours(x: Prompts, result: Result, oracle: Result) -> str | None:
    return check(x, result, oracle) or (apart("the table's gradient", result[1], oracle[1], 4e-3) if x.backward else None)


def whole(merge: Any, x: Prompts) -> Result:
    """The forward and, where wanted, the gradients."""
    merged = merge(x.ids, x.table, x.audio, x.lens, x.audio_id)
    if not x.backward:
        return (merged,)
    return (merged.detach(), *torch.autograd.grad(merged, (x.table, x.audio), x.upstream))


def rows_in_order(audio: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    return audio[torch.arange(audio.shape[1], device=audio.device) < lens[:, None]]


def masked_scatter(ids: torch.Tensor, table: torch.Tensor, audio: torch.Tensor, lens: torch.Tensor, audio_id: int) -> torch.Tensor:
    mask = (ids == audio_id)[..., None].expand(*ids.shape, table.shape[1])
    return F.embedding(ids, table).masked_scatter(mask, rows_in_order(audio, lens))


def index_put(ids: torch.Tensor, table: torch.Tensor, audio: torch.Tensor, lens: torch.Tensor, audio_id: int) -> torch.Tensor:
    merged = F.embedding(ids, table).clone()
    merged[ids == audio_id] = rows_in_order(audio, lens)
    return merged


def gather_where(ids: torch.Tensor, table: torch.Tensor, audio: torch.Tensor, lens: torch.Tensor, audio_id: int) -> torch.Tensor:
    mask = ids == audio_id
    slot = (mask.cumsum(1) - 1).clamp(0, audio.shape[1] - 1)
    rows = audio.gather(1, slot[..., None].expand(-1, -1, audio.shape[2]))
    return torch.where(mask[..., None], rows, F.embedding(ids.masked_fill(mask, 0), table))


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = []
    for backend in our_backends(shape):
        merge = functools.partial(audio_embed_merge, backend=backend)
        run = functools.partial(whole, merge)
        graph = backend == "triton" and shape.mode == "forward"
        found.append(Provider(name=f"ours/{backend}", run=run, check=check_ours, ours=True, graph=graph))
    found.append(Provider(name="masked_scatter", run=functools.partial(whole, masked_scatter), check=check))
    found.append(Provider(name="index_put", run=functools.partial(whole, index_put), check=check))
    found.append(Provider(name="gather + where", run=functools.partial(whole, gather_where), check=check))
    if compiles(device, shape):
        found.append(Provider(name="gather + where compiled", run=functools.partial(whole, compiled(gather_where)), check=check))
    return found


def work(shape: Shape) -> Work:
    """Each embedding read once and written once; backward, its gradient too, and the dense table gradient written."""
    merged, table = 2 * shape.T * shape.H, 2 * shape.V * shape.H
    backward = shape.mode == "backward"
    return Work(read=2 * merged + (2 * merged + table) * backward, excluded_peak=merged + (merged + table) * backward)


SUITE = Suite(
    name="embed_merge",
    shapes=prompt_shapes,
    inputs=inputs,
    set_bytes=lambda shape: 4 * shape.T * shape.H,
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="masked_scatter",
)


def test_embed_merge(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
