"""``audio_embed_merge``: checks and the choice of backend. Gradients follow from the reference's own operations."""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_ids, check_shapes
from arkfast.kernels.embed_merge import reference


def audio_embed_merge(
    input_ids: torch.Tensor,
    table: torch.Tensor,
    audio: torch.Tensor,
    audio_lens: torch.Tensor,
    audio_id: int,
    *,
    validate: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Embeddings of prompts in which each placeholder is replaced, in order, by the next audio row of that prompt's clip.

    Audio rows without a placeholder are left out; placeholders without an audio row become zeros. Nothing waits for the device unless
    ``validate``.

    Args:
        input_ids: [B, P] int32 or int64 in [0, V); ``audio_id`` marks placeholders and need not be below V; other negative ids give zeros.
        table: [V, H] the embedding table; gets a dense gradient that is zero at placeholders.
        audio: [B, Ta, H] the clips' encoder outputs, padded; cast to the table's dtype.
        audio_lens: [B] int32 or int64 rows of each clip; rows past it are never read and get gradient 0.
        validate: compare every prompt's placeholders with its clip's rows, which waits for the device.

    Returns:
        [B, P, H] in the table's dtype.

    Raises:
        ValueError: on wrong shapes or dtypes; with ``validate``, naming the first row whose placeholders do not match its audio.
    """
    op = "audio_embed_merge"
    resolve_backend(backend, op)
    check_shapes(op, input_ids=(input_ids, "B P"), table=(table, "V H"), audio=(audio, "B Ta H"), audio_lens=(audio_lens, "B"))
    check_floating(op, table=table, audio=audio)
    check_ids(op, input_ids=input_ids, audio_lens=audio_lens)
    if validate:
        _check_counts(op, (input_ids == audio_id).sum(1), audio_lens, audio.shape[1])
    return reference.merge(input_ids, table, audio, audio_lens, audio_id)


def _check_counts(op: str, placeholders: torch.Tensor, audio_lens: torch.Tensor, available: int) -> None:
    for row, (wanted, length) in enumerate(zip(placeholders.tolist(), audio_lens.tolist(), strict=True)):
        if wanted != length or length > available:
            raise ValueError(
                f"{op}: row {row} has {wanted} placeholders for {length} audio rows (audio holds {available}); build the prompt from the "
                "encoder's output length"
            )
