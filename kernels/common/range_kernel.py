"""The test whether ids lie in a row's ranges, for kernels of several ops."""

import triton
import triton.language as tl


@triton.jit
def in_ranges(ranges_ptr, ids, R: tl.constexpr):
    """Which of ``ids``, in any shape, lie in one of the R half-open ranges of a row, whose int32 (start, stop) ``ranges_ptr`` points to."""
    inside = (ids >= tl.load(ranges_ptr)) & (ids < tl.load(ranges_ptr + 1))
    for r in tl.static_range(1, R):
        inside = inside | ((ids >= tl.load(ranges_ptr + 2 * r)) & (ids < tl.load(ranges_ptr + 2 * r + 1)))
    return inside
