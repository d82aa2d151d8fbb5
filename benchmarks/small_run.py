"""The kernels once at tiny sizes, for tools that watch every access to memory.

    compute-sanitizer --tool memcheck python benchmarks/small_run.py

Sizes are such that no block divides them, rows start anywhere, and some ids lie past the tables, where the kernels must touch nothing.
Without a GPU it runs in Triton's interpreter (TRITON_INTERPRET=1) or in torch.
"""

from __future__ import annotations

import os

# Each tensor in an allocation of its own: in PyTorch's pools, what lies past a tensor's end is memory of the process all the same.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch
from harness.suite import device_here

from arkfast.kernels import (
    audio_embed_merge,
    available_backends,
    decode_attention,
    linear_kl,
    linear_log_softmax,
    linear_topk_lse,
    opd_union_kl,
    sparse_weight_grad,
    topk_lse,
    usage,
)

T, H, V, K = 9, 70, 131, 5
"""Positions, features, ids, and ids of each model's list."""


def leaf(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*size).to(dtype).requires_grad_()


def ids_of(rows: int, columns: int, past: int) -> torch.Tensor:
    """[rows, columns] with the first id, the last one, an empty slot, and ``past`` past the end."""
    ids = torch.randint(0, V, (rows, columns), dtype=torch.int32)
    ids[0, :3] = torch.tensor([0, V - 1, -1])
    ids[1, :1] = past
    return ids


def losses(backend: str, dtype: torch.dtype, past: int) -> None:
    """The teacher's block, the student's, and the full-vocabulary ones, forward and backward."""
    hidden, weight, teacher = leaf(T, H, dtype=dtype), leaf(V, H, dtype=dtype), torch.randn(T, 36).to(dtype)
    student_ids, head = ids_of(T, K, V - 1), torch.randn(V, 36).to(dtype)
    top = linear_topk_lse(teacher, head, K, gather_ids=student_ids, need_lse=True, backend=backend)
    topk_lse(torch.randn(3, 4099).to(dtype), K, need_lse=True, backend=backend)
    scores = torch.cat([top.gathered, top.values], dim=1)
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        opd_union_kl(hidden, weight, student_ids, top.ids, scores, divergence=divergence, backend=backend).loss.backward()
        linear_kl(hidden, weight, teacher, head, divergence=divergence, chunk_rows=4, backend=backend).backward()
    opd_union_kl(hidden, weight, ids_of(T, K, past), top.ids, scores, backend=backend).loss.backward()
    linear_log_softmax(hidden, weight, ids_of(T, K, past), chunk_rows=4, backend=backend).sum().backward()


def sums(backend: str, dtype: torch.dtype, past: int) -> None:
    """Runs of equal ids that are summed whole and in pieces, some of them past the table, with an embedding's rows."""
    runs = [torch.full((100, 3), token, dtype=torch.int32) for token in (past, 7)]
    ids = torch.cat([ids_of(20, 3, past), *runs])
    hidden, extra = torch.randn(len(ids), H).to(dtype), torch.randn(4, H).to(dtype)
    extra_ids = torch.tensor([V - 1, past, -1, 7])
    for mode in ("sorted", "atomic"):
        sparse_weight_grad(torch.randn(ids.shape), ids, hidden, V, extra_ids=extra_ids, extra_rows=extra, mode=mode, backend=backend)


def merge(backend: str, dtype: torch.dtype, past: int) -> None:
    """A clip that its placeholders use up, one that they do not, one that they overrun."""
    audio_id, table, audio = V + 5, leaf(V, H, dtype=dtype), leaf(3, 4, H, dtype=dtype)
    ids = ids_of(3, 11, past)
    ids[:, 4:7] = audio_id
    out = audio_embed_merge(ids, table, audio, torch.tensor([3, 4, 2]), audio_id, backend=backend)
    out.nan_to_num().sum().backward()


def decoding(backend: str, dtype: torch.dtype) -> None:
    """Rows of one key, of some, and of more than one part."""
    keys, values = torch.randn(3, 2, 600, 64).to(dtype), torch.randn(3, 2, 600, 64).to(dtype)
    decode_attention(torch.randn(3, 4, 64).to(dtype), keys, values, torch.tensor([1, 37, 600]), backend=backend)


def main() -> None:
    device, backend = device_here(), "triton" if "triton" in available_backends() else "torch"
    torch.manual_seed(0)
    torch.set_default_device(device)
    # In torch an id past a table is an error.
    past = V if backend == "triton" else V - 1
    for dtype in (torch.bfloat16, torch.float32):
        losses(backend, dtype, past)
        sums(backend, dtype, past)
        merge(backend, dtype, past)
        decoding(backend, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("\n".join(f"{op}: {calls}" for op, calls in usage().items()))


if __name__ == "__main__":
    main()
