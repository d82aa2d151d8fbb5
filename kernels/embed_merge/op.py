"""``audio_embed_merge``: checks, launches, autograd, the choice of backend. The torch backend's gradients follow from its own operations.

The table's gradient is ``sparse_weight_grad``'s sorted sum over the text positions.
"""

from __future__ import annotations

from typing import Any

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_flag, check_floating, check_ids, check_shapes
from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.recording import first_order
from arkfast.kernels.common.strides import block_of
from arkfast.kernels.embed_merge import reference
from arkfast.kernels.sparse_grad import sparse_weight_grad

# Width is H. One block holds a row up to the widest decoder of the family, 8 or 16 bytes a thread and load.
TABLE = (
    Rule(config=Config(num_warps=4, num_stages=1, blocks={"BLOCK_H": 1024}), max_width=1024),
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"BLOCK_H": 2048})),
)
SLOT_BLOCK = 1024
"""Prompt ids that one step of the slot kernel numbers."""


class _Merge(torch.autograd.Function):
    """The merged rows; an audio row's gradient is the one at its placeholder, a table row's the sum over its text positions."""

    @staticmethod
    @on_its_device
    def forward(
        ctx: Any, table: torch.Tensor, audio: torch.Tensor, input_ids: torch.Tensor, audio_lens: torch.Tensor, audio_id: int, backend: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from arkfast.kernels.embed_merge import kernel

        (batch, prompt), (_, available, features) = input_ids.shape, audio.shape
        device, ids = table.device, input_ids.contiguous()
        slot = torch.empty(batch, prompt, dtype=torch.int32, device=device)
        place = torch.empty(batch, available, dtype=torch.int32, device=device)
        mismatch = torch.empty(batch, dtype=torch.int8, device=device)
        out = torch.empty(batch, prompt, features, dtype=table.dtype, device=device)
        if batch:
            kernel.merge_slots[(batch,)](
                ids, audio_lens.contiguous(), slot, place, mismatch, prompt, available, audio_id, BLOCK=SLOT_BLOCK, num_warps=4
            )
        if out.numel():
            config = pick(TABLE, device=device, width=features, dtype=table.dtype)
            kernel.merge_rows[(batch * prompt,)](
                ids,
                slot,
                table,
                audio,
                out,
                table.stride(0),
                audio.stride(0),
                audio.stride(1),
                prompt,
                table.shape[0],
                features,
                **_narrowed(config, features),
            )
        ctx.save_for_backward(ids, place)
        ctx.table, ctx.audio, ctx.audio_id, ctx.backend = (table.shape[0], table.dtype), (audio.shape, audio.dtype), audio_id, backend
        ctx.mark_non_differentiable(mismatch)
        return out, mismatch

    @staticmethod
    @first_order("audio_embed_merge")
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ids, place = ctx.saved_tensors
        grad = grad.contiguous()
        d_table = d_audio = None
        if ctx.needs_input_grad[0]:
            rows, dtype = ctx.table
            text = ids.masked_fill((ids == ctx.audio_id) | (ids < 0), -1).flatten()
            flat = grad.flatten(0, 1)
            d_table = sparse_weight_grad(
                grad.new_zeros(0, 1), ids.new_zeros(0, 1), flat[:0], rows, extra_ids=text, extra_rows=flat, dtype=dtype, backend=ctx.backend
            )
        if ctx.needs_input_grad[1]:
            d_audio = _audio_grad(place, grad, *ctx.audio)
        return d_table, d_audio, *(None,) * 4


@on_its_device
def _audio_grad(place: torch.Tensor, grad: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    from arkfast.kernels.embed_merge import kernel

    out = torch.empty(shape, dtype=dtype, device=grad.device)
    batch, available, features = shape
    if out.numel() == 0 or grad.numel() == 0:
        return out.zero_()
    config = pick(TABLE, device=grad.device, width=features, dtype=dtype)
    kernel.merge_audio_grad[(batch * available,)](place, grad, out, grad.shape[1], available, features, **_narrowed(config, features))
    return out


def _narrowed(config: Config, features: int) -> dict[str, int]:
    """The launch arguments, with a block no wider than the row needs."""
    return config.kwargs() | {"BLOCK_H": block_of(features, least=128, most=config.blocks["BLOCK_H"])}


def _unfit(table: torch.Tensor, audio: torch.Tensor) -> str | None:
    if torch.float64 in (table.dtype, audio.dtype):
        return "float64 inputs"
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in (table, audio)):
        return "rows whose features are not neighbours in memory"
    return None


def audio_embed_merge(
    input_ids: torch.Tensor,
    table: torch.Tensor,
    audio: torch.Tensor,
    audio_lens: torch.Tensor,
    audio_id: int,
    *,
    validate: bool = False,
    mismatch: torch.Tensor | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Embeddings of prompts in which each placeholder is replaced, in order, by the next audio row of that prompt's clip.

    Audio rows without a placeholder are left out; placeholders without an audio row become zeros. Nothing waits for the device unless
    ``validate``.

    Args:
        input_ids: [B, P] int32 or int64 in [0, V); ``audio_id`` marks placeholders and need not be below V; other negative ids give zeros.
            Another id from V on is an error of the torch backend (on a GPU a failed device-side assertion); the kernels, which
            cannot raise, make its row NaN, and it gives the table no gradient.
        table: [V, H] the embedding table; gets a dense gradient that is zero at placeholders, summed in a fixed order.
        audio: [B, Ta, H] the clips' encoder outputs, padded; cast to the table's dtype.
        audio_lens: [B] int32 or int64 rows of each clip; rows past it are never read and get gradient 0.
        validate: compare every prompt's placeholders with its clip's rows, which waits for the device.
        mismatch: [B] bool, written with True where they differ, for a look at a time when the device is waited for anyway.

    Returns:
        [B, P, H] in the table's dtype.

    Raises:
        ValueError: on wrong shapes or dtypes; with ``validate``, naming the first row whose placeholders do not match its audio.
    """
    op = "audio_embed_merge"
    check_flag(op, validate=validate)
    if not isinstance(audio_id, int) or isinstance(audio_id, bool):
        raise ValueError(f"{op}: audio_id must be a whole number, got {audio_id!r}")
    check_shapes(
        op,
        input_ids=(input_ids, "B P"),
        table=(table, "V H"),
        audio=(audio, "B Ta H"),
        audio_lens=(audio_lens, "B"),
        mismatch=(mismatch, "B"),
    )
    check_floating(op, table=table, audio=audio)
    check_ids(op, input_ids=input_ids, audio_lens=audio_lens)
    if mismatch is not None and mismatch.dtype != torch.bool:
        raise ValueError(f"{op}: mismatch must be a tensor of torch.bool to write to, got {mismatch.dtype}")
    chosen = resolve_backend(backend, op, table, unfit=_unfit(table, audio))
    if chosen == "torch":
        out = reference.merge(input_ids, table, audio, audio_lens, audio_id)
        if mismatch is not None or validate:
            differs = reference.mismatched(input_ids, audio_lens, audio_id, audio.shape[1])
    else:
        out, differs = _Merge.apply(table, audio, input_ids, audio_lens, audio_id, backend)
    if mismatch is not None:
        mismatch.copy_(differs)
    if validate and differs.any():
        row = int(differs.nonzero()[0])
        placeholders, length = int((input_ids[row] == audio_id).sum()), int(audio_lens[row])
        raise ValueError(
            f"{op}: row {row} has {placeholders} placeholders for {length} audio rows (audio holds {audio.shape[1]}); build the prompt "
            "from the encoder's output length"
        )
    return out
