"""Launches the row kernels: configurations, buffers, grids.

How a row is cut depends on its width alone, so a row's bits do not depend on how many rows there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from arkfast.kernels.common.launch import Config, Rule, pick

K_MOST = 64
"""The largest k: selection looks at 32·k values of a row at once."""
V_MOST = 1 << 21
"""The widest row: its supergroup maxima, one for 512 columns, are looked at together."""

GROUP, SUPER = 32, 16
"""Columns of a group (as many as a word has bits, for the blocked ids) and groups of a supergroup."""
BLOCK, BLOCKS = 4096, 4
"""Columns a program reads at once, and how often: 16,384 columns a program, so that the few rows of a decoding step fill a GPU too."""
GATHERED = 64
"""Gathered columns of one program."""

STATS = (
    Rule(itemsize=4, config=Config(num_warps=8)),
    Rule(config=Config(num_warps=4)),
)
"""64 bytes in flight a thread."""
# Width is the largest number of candidates that are looked at together. They lie in registers and are counted over and over: in one warp
# without a barrier, as long as a thread has room for its share.
SELECT = (
    Rule(config=Config(num_warps=1), max_width=1024),
    Rule(config=Config(num_warps=4)),
)
KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Space(NamedTuple):
    """What the positions of a row stand for, and which of them take part in nothing."""

    width: int
    """V, the number of positions."""
    words: torch.Tensor | None = None
    """int32: bit p % 32 of word p // 32 is set where position p is dead, for whole parts of a row; None when none is."""
    blocks: torch.Tensor | None = None
    """int32: not 0 for each BLOCK of positions that has a dead one."""
    order: torch.Tensor | None = None
    """int32 [V]: the column of each position; None for the position's number."""
    id_of: torch.Tensor | None = None
    """int32 [V]: the output id of each position, ascending; None for the position's number."""


def blocks_of(width: int) -> int:
    """BLOCKs in a row of ``width`` columns, whole programs' worth."""
    per_program = min(BLOCKS, -(-width // BLOCK))
    return -(-width // (BLOCK * per_program)) * per_program


def blocked_space(width: int, blocked: torch.Tensor | None, device: torch.device) -> Space:
    """Positions are columns and output ids; ``blocked`` ones are dead, those outside [0, width) have no effect."""
    if blocked is None or blocked.numel() == 0:
        return Space(width)
    from arkfast.kernels.row_topk import kernel

    blocks = blocks_of(width)
    marks = torch.zeros(blocks * (BLOCK // GROUP + 1), dtype=torch.int32, device=device)
    words, flags = marks[: blocks * (BLOCK // GROUP)], marks[blocks * (BLOCK // GROUP) :]
    tokens, at_once = blocked.contiguous(), 256
    kernel.mark_dead[(-(-tokens.numel() // at_once),)](
        tokens, tokens.numel(), words, flags, width, BLOCK=BLOCK, G=GROUP, N=at_once, **Config().kwargs()
    )
    return Space(width, words, flags)


def mapped_space(order: torch.Tensor, id_of: torch.Tensor, dead: torch.Tensor) -> Space:
    """Positions in the order of their output ids: ``order`` [V] int32 columns, ``id_of`` [V] int32 ascending, ``dead`` [V] bool."""
    width, blocks = order.numel(), blocks_of(order.numel())
    bits = torch.zeros(blocks * BLOCK, dtype=torch.int64, device=dead.device)
    bits[:width] = dead
    shifted = bits.view(-1, GROUP) << torch.arange(GROUP, device=dead.device)
    # The sum of different powers of two is their bitwise or; the cast keeps the lower 32 bits.
    words = shifted.sum(1).to(torch.int32)
    return Space(width, words, (words.view(blocks, -1) != 0).any(1).to(torch.int32), order.contiguous(), id_of.contiguous())


def unfit(dtype: torch.dtype, k: int, width: int, column_stride: int = 1) -> str | None:
    """Why the kernels do not take rows of ``width`` logits that lie ``column_stride`` elements apart; None when they do."""
    if dtype not in KINDS:
        return f"{str(dtype).removeprefix('torch.')} logits"
    if k > K_MOST:
        return f"k above {K_MOST}"
    if width > V_MOST:
        return f"rows wider than {V_MOST}"
    if width * column_stride >= 1 << 31:
        return "columns that lie more than 2^31 elements apart"
    return None


def topk_rows(
    logits: torch.Tensor, k: int, space: Space, *, ranges: torch.Tensor | None = None, need_lse: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Rows of logits [n, V] → (values [n, k] float32, output ids [n, k] int32, lse [n] or None, flags [n] uint8).

    ``ranges`` [n, R, 2] contiguous int32 are ranges of positions, outside which nothing takes part in a row.
    """
    from arkfast.kernels.row_topk import kernel

    rows, device = logits.shape[0], logits.device
    blocks = blocks_of(space.width)
    per_program = min(BLOCKS, blocks)
    splits = blocks // per_program
    groups = torch.empty(rows, blocks * (BLOCK // GROUP), dtype=logits.dtype, device=device)
    supers = torch.empty(rows, blocks * (BLOCK // GROUP // SUPER), dtype=logits.dtype, device=device)
    nans = torch.empty(rows, splits, dtype=torch.int32, device=device)
    maxima, sums, lse = (
        torch.empty(size, dtype=torch.float32, device=device) if need_lse else None for size in ((rows, splits), (rows, splits), (rows,))
    )
    values = torch.empty(rows, k, dtype=torch.float32, device=device)
    ids = torch.empty(rows, k, dtype=torch.int32, device=device)
    flags = torch.empty(rows, dtype=torch.uint8, device=device)
    has = {"HAS_LSE": need_lse, "HAS_ORDER": space.order is not None, "HAS_DEAD": space.words is not None, "RANGES": _count(ranges)}
    kernel.row_stats[(rows * splits,)](
        logits,
        logits.stride(0),
        logits.stride(1),
        space.order,
        space.words,
        space.blocks,
        ranges,
        groups,
        groups.shape[1],
        supers,
        supers.shape[1],
        maxima,
        sums,
        nans,
        space.width,
        splits,
        BLOCK=BLOCK,
        G=GROUP,
        S=SUPER,
        BLOCKS=per_program,
        **has,
        **pick(STATS, device=device, dtype=logits.dtype).kwargs(),
    )
    most = max(2, power_of_two(k))
    supers_block = max(most, power_of_two(supers.shape[1]))
    kernel.row_select[(rows,)](
        logits,
        logits.stride(0),
        logits.stride(1),
        space.order,
        space.id_of,
        space.words,
        ranges,
        groups,
        groups.shape[1],
        supers,
        supers.shape[1],
        maxima,
        sums,
        nans,
        values,
        ids,
        lse,
        flags,
        space.width,
        splits,
        k,
        K=most,
        G=GROUP,
        S=SUPER,
        SUPERS=supers_block,
        SPLITS=power_of_two(splits),
        KIND=KINDS[logits.dtype],
        **has,
        **pick(SELECT, device=device, width=max(supers_block, most * GROUP), dtype=logits.dtype).kwargs(),
    )
    return values, ids, lse, flags


def gather_rows(logits: torch.Tensor, positions: torch.Tensor, space: Space, ranges: torch.Tensor | None = None) -> torch.Tensor:
    """Values [n, g] float32 of logits [n, V] at positions [n, g]; −inf outside [0, V) and a row's ranges, at dead positions and at NaN."""
    from arkfast.kernels.row_topk import kernel

    rows, columns = positions.shape
    out = torch.empty(rows, columns, dtype=torch.float32, device=logits.device)
    kernel.row_gather[(rows * -(-columns // GATHERED),)](
        logits,
        logits.stride(0),
        logits.stride(1),
        space.order,
        space.words,
        ranges,
        positions,
        positions.stride(0),
        positions.stride(1),
        out,
        space.width,
        columns,
        G=GROUP,
        N=GATHERED,
        HAS_ORDER=space.order is not None,
        HAS_DEAD=space.words is not None,
        RANGES=_count(ranges),
        **Config(num_warps=2).kwargs(),
    )
    return out


def _count(ranges: torch.Tensor | None) -> int:
    return 0 if ranges is None else ranges.shape[1]


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()
