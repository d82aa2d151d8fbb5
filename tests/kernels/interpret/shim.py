"""Makes Triton's interpreter right for bfloat16, fast enough for sorts and able to count under any NumPy. Knows the interpreter's
insides; knows no kernel.

The interpreter keeps a bfloat16 block as numpy uint16, and a number as an array of one element. As it comes (Triton 3.6 to 3.9)

- it does arithmetic and comparisons on those raw bits. Kernels cast to float32 right after each load; here whoever forgot is told;
- it truncates float32 → bfloat16, where a GPU rounds to the nearest even. Here it rounds;
- ``tl.dot`` of bfloat16 blocks multiplies raw bits. Here it multiplies what they stand for, and adds in float32;
- it reduces with any function but max, min and sum one element at a time in Python. Here other functions combine halves of the block;
- it patches ``triton.language`` anew at each call of one jit function by another. Here once a launch;
- it runs ``tl.sort`` and ``tl.topk`` as the networks of hundreds of steps that they are on a GPU. Here each is one numpy call;
- under Triton 3.6 a loop's bound is int() of an array with a dimension, which NumPy refuses from 2.4 on. Here it is the array's element.

Import once, before a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder


def is_bf16(handle: Any) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16


def widened(handle: Any) -> Any:
    """bfloat16 bits → float32, exactly; any other handle as it is."""
    if not is_bf16(handle):
        return handle
    return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(values: np.ndarray) -> Any:
    """float32 → bfloat16, to nearest even, NaN kept."""
    shape = np.shape(values)
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return Handle(np.where(np.isnan(values), np.uint16(0x7FC0), nearest).reshape(shape), tl.bfloat16)


def refusing_bf16(name: str) -> Callable[..., Any]:
    """The builder's method ``name``, which raises where an operand is bfloat16."""
    plain = getattr(Builder, name)

    def method(self: Any, *operands: Any) -> Any:
        op = operands[-1]
        # np.where is a selection, which moves bits and computes nothing.
        if op is not np.where and any(is_bf16(operand) for operand in operands):
            raise TypeError(f"{getattr(op, '__name__', op)} on bfloat16: a kernel casts to float32 right after it loads")
        return plain(self, *operands)

    return method


plain_cast, plain_convert, plain_dot = Builder.cast_impl, Builder.create_fp_to_fp, Builder.create_dot


def cast(self: Any, source: Any, target: Any) -> Any:
    """Casts from and to bfloat16 by way of float32."""
    before, after = source.dtype.scalar, target.scalar
    if before == after or tl.bfloat16 not in (before, after):
        return plain_cast(self, source, target)
    if before == tl.bfloat16:
        wide = widened(source)
        return wide if after == tl.float32 else plain_cast(self, wide, target)
    return rounded((source if before == tl.float32 else plain_cast(self, source, tl.float32)).data)


def convert(self: Any, source: Any, target: Any, mode: Any) -> Any:
    bf16 = tl.bfloat16 in (source.dtype.scalar, target.scalar)
    return cast(self, source, target) if bf16 else plain_convert(self, source, target, mode)


def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    return plain_dot(self, widened(a), widened(b), *rest)


plain_reduce = interpreter.ReduceOps.apply_impl
BITWISE = {"_xor_combine": np.bitwise_xor, "_or_combine": np.bitwise_or}  # what the library's own sort is built of
BUILT_IN = (
    "_argmin_combine_tie_break_left",
    "_argmax_combine_tie_break_left",
    "_argmin_combine_tie_break_fast",
    "_argmax_combine_tie_break_fast",
    "_elementwise_max",
    "_elementwise_min",
    "_sum_combine",
)


def reduce(self: Any, operands: Any) -> Any:
    if any(is_bf16(operand.handle) for operand in operands):
        raise TypeError("a reduction of bfloat16: a kernel casts to float32 right after it loads")
    for name, op in BITWISE.items():
        if self.combine_fn is getattr(tl.standard, name, None):
            data = operands[0].handle.data
            if self.axis is None:
                return [self.to_tensor(op.reduce(data.reshape(-1)), operands[0].dtype.scalar)]
            return [self.to_tensor(op.reduce(data, axis=self.axis, keepdims=self.keep_dims), operands[0].dtype.scalar)]
    if any(self.combine_fn is getattr(tl.standard, name, None) for name in BUILT_IN):
        return plain_reduce(self, operands)
    return halved(self, operands)


def halved(self: Any, operands: Any) -> list[Any]:
    """Reduces with the caller's function by combining the lower half of the axis with the upper one until one element is left."""
    dtypes = [operand.dtype.scalar for operand in operands]
    blocks = [operand.handle.data for operand in operands]
    dims, axis = blocks[0].ndim, self.axis
    if axis is None:
        blocks, axis = [block.reshape(-1) for block in blocks], 0

    def half(block: np.ndarray, dtype: Any, start: int, stop: int) -> Any:
        part = np.ascontiguousarray(np.take(block, range(start, stop), axis))
        return tl.core.tensor(Handle(part, dtype), tl.block_type(dtype, list(part.shape)))

    while (n := blocks[0].shape[axis]) > 1:
        low, high = ([half(b, d, *ends) for b, d in zip(blocks, dtypes, strict=True)] for ends in ((0, n // 2), (n // 2, n)))
        result = self.combine_fn.fn(*low, *high)
        result = result if isinstance(result, tuple) else (result,)
        blocks = [np.broadcast_to(r.handle.data, low[0].handle.data.shape).astype(b.dtype) for r, b in zip(result, blocks, strict=True)]
    if self.axis is None:
        shape = (1,) * dims if self.keep_dims else ()
        blocks = [block.reshape(shape) for block in blocks]
    elif not self.keep_dims:
        blocks = [np.squeeze(block, axis) for block in blocks]
    return [self.to_tensor(block if block.ndim else block[()], dtype) for block, dtype in zip(blocks, dtypes, strict=True)]


def sort(x: Any, dim: Any = None, descending: Any = False) -> Any:
    """``tl.sort`` along the last axis."""
    return ordered(x, x.shape[-1], dim, descending)


def topk(x: Any, k: Any, dim: Any = None, descending: Any = True) -> Any:
    """``tl.topk``: the k largest along the last axis, largest first."""
    return ordered(x, k, dim, descending)


def ordered(x: Any, k: Any, dim: Any, descending: Any) -> Any:
    assert getattr(dim, "value", dim) in (None, -1, len(x.shape) - 1), "tl.sort takes the last axis alone"
    k, descending = getattr(k, "value", k), getattr(descending, "value", descending)
    if is_bf16(x.handle):
        raise TypeError("a sort of bfloat16: a kernel casts to float32 right after it loads")
    data = np.sort(x.handle.data, axis=-1)
    data = np.ascontiguousarray((data[..., ::-1] if descending else data)[..., :k])
    dtype = x.dtype.scalar
    return tl.core.tensor(Handle(data, dtype), tl.block_type(dtype, list(data.shape)))


plain_patch_tensor = interpreter._patch_lang_tensor


def patch_tensor(tensor: Any, scope: Any) -> None:
    plain_patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


plain_patch, plain_launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
patched: set[str] = set()
languages: dict[Any, set[str]] = {}


class NothingToRestore:
    def restore(self) -> None:
        pass


def patch_once(fn: Any) -> Any:
    """The interpreter's ``_patch_lang``, for the language modules that this launch has not yet patched."""
    if fn not in languages:
        languages[fn] = {value.__name__ for value in fn.__globals__.values() if value is tl or value is tl.core}
    if languages[fn] <= patched:
        return NothingToRestore()
    patched.update(languages[fn])
    return plain_patch(fn)


def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
    patched.clear()
    return plain_launch(self, *args, **kwargs)


# The interpreter's named operations (create_fadd and the like) go through these methods of the class.
for method_name in ("binary_op", "unary_op", "ternary_op"):
    setattr(Builder, method_name, refusing_bf16(method_name))
Builder.cast_impl, Builder.create_fp_to_fp, Builder.create_dot = cast, convert, dot
interpreter.ReduceOps.apply_impl = reduce
interpreter._patch_lang_tensor = patch_tensor
interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch
library_sort, library_topk = tl.sort, tl.topk
tl.sort, tl.topk = sort, topk
