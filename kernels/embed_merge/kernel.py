"""Triton kernels of the audio merge: which audio row each placeholder takes, the merged rows, and the audio's gradient.

Letters: B prompts, P ids a prompt, V table rows, Ta audio rows of a padded clip, H features. Rows are on grid axis 0, offsets are int64.
A slot is the placeholder's audio row, or one of the marks below.
"""

import triton
import triton.language as tl

TEXT: tl.constexpr = tl.constexpr(-1)
"""Slot of an id that is looked up in the table."""
ZERO: tl.constexpr = tl.constexpr(-2)
"""Slot of padding and of a placeholder without an audio row."""


@triton.jit(do_not_specialize=["P", "Ta", "audio_id"])
def merge_slots(ids_ptr, lens_ptr, slot_ptr, place_ptr, mismatch_ptr, P, Ta, audio_id, BLOCK: tl.constexpr):
    """One prompt a program: slot [P], its inverse place [Ta] (position of the row's placeholder, or −1), whether the counts differ."""
    b = tl.program_id(0).to(tl.int64)
    length = tl.load(lens_ptr + b).to(tl.int32)
    usable = tl.maximum(tl.minimum(length, Ta), 0)
    seen = 0
    for start in range(0, P, BLOCK):
        p = start + tl.arange(0, BLOCK)
        ids = tl.load(ids_ptr + b * P + p, mask=p < P, other=-1).to(tl.int64)
        is_audio = (ids == audio_id) & (p < P)
        j = seen + tl.cumsum(is_audio.to(tl.int32), 0) - 1
        filled = is_audio & (j < usable)
        slot = tl.where(filled, j, tl.where(is_audio | (ids < 0), ZERO, TEXT))
        tl.store(slot_ptr + b * P + p, slot, mask=p < P)
        tl.store(place_ptr + b * Ta + j, p, mask=filled)
        seen += tl.sum(is_audio.to(tl.int32), 0)
    # Rows past the last filled one: disjoint from what is stored above, so the stores need no order.
    for start in range(0, Ta, BLOCK):
        j = start + tl.arange(0, BLOCK)
        tl.store(place_ptr + b * Ta + j, tl.full([BLOCK], -1, tl.int32), mask=(j < Ta) & (j >= tl.minimum(seen, usable)))
    tl.store(mismatch_ptr + b, ((seen != length) | (length > Ta)).to(tl.int8))


@triton.jit(do_not_specialize=["P"])
def merge_rows(
    ids_ptr,
    slot_ptr,
    table_ptr,
    audio_ptr,
    out_ptr,
    table_stride,
    audio_stride_b,
    audio_stride_t,
    P,
    V,
    H,
    BLOCK_H: tl.constexpr,
):
    """One position a program: its row of the result is a table row, an audio row or zeros."""
    n = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + n).to(tl.int64)
    to_ptr = out_ptr + n * H
    if slot >= 0:
        from_ptr = audio_ptr + (n // P) * audio_stride_b + slot * audio_stride_t
        for start in range(0, H, BLOCK_H):
            h = start + tl.arange(0, BLOCK_H)
            tl.store(to_ptr + h, tl.load(from_ptr + h, mask=h < H, other=0.0).to(out_ptr.dtype.element_ty), mask=h < H)
    else:
        token = tl.load(ids_ptr + n).to(tl.int64)
        # What stands where nothing is loaded: zeros for ZERO; NaN for an id past the table, which cannot raise here.
        width = tl.where((slot == -1) & (token < V), H, 0)
        other = tl.where(slot == -1, float("nan"), 0.0)
        from_ptr = table_ptr + tl.where(slot == -1, token, 0) * table_stride
        for start in range(0, H, BLOCK_H):
            h = start + tl.arange(0, BLOCK_H)
            row = tl.load(from_ptr + h, mask=h < width, other=0.0)
            row = tl.where(h < width, row, other.to(row.dtype))
            tl.store(to_ptr + h, row.to(out_ptr.dtype.element_ty), mask=h < H)


@triton.jit(do_not_specialize=["P", "Ta"])
def merge_audio_grad(place_ptr, grad_ptr, out_ptr, P, Ta, H, BLOCK_H: tl.constexpr):
    """One audio row a program: the upstream gradient at its one placeholder, so that nothing is summed, or zeros."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(place_ptr + row).to(tl.int64)
    width = tl.where(place >= 0, H, 0)
    from_ptr = grad_ptr + ((row // Ta) * P + tl.maximum(place, 0)) * H
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        grad = tl.load(from_ptr + h, mask=h < width, other=0.0)
        tl.store(out_ptr + row * H + h, grad.to(out_ptr.dtype.element_ty), mask=h < H)
