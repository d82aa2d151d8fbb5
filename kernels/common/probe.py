"""The smallest Triton kernel, to see whether kernels can be built and started at all."""

import triton
import triton.language as tl


@triton.jit
def store_one(x_ptr):
    tl.store(x_ptr, 1)
