"""Fused operations for distillation, one folder each under the repository's top-level ``kernels/``.

A wheel carries those folders inside this package; a source checkout reads them in place. Every public name imports here and needs
torch alone.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]
if (_checkout / "csrc" / "bindings.cpp").is_file():
    __path__.append(str(_checkout / "kernels"))

# Below the path, which they are found through. Where an op's folder has its function's name, the function is what this package's
# attribute holds.
from arkfast.kernels.common.backend import available_backends  # noqa: E402
from arkfast.kernels.embed_merge import audio_embed_merge  # noqa: E402
from arkfast.kernels.gather_linear import gather_linear  # noqa: E402
from arkfast.kernels.linear_topk import linear_topk_lse  # noqa: E402
from arkfast.kernels.log_softmax import linear_log_softmax  # noqa: E402
from arkfast.kernels.row_topk import FLAG_INF, FLAG_NAN, FLAG_SHORT, TopK, topk_lse  # noqa: E402
from arkfast.kernels.sparse_grad import sparse_weight_grad  # noqa: E402
from arkfast.kernels.union_kl import (  # noqa: E402
    UnionKL,
    UnionKLRows,
    UnionSupport,
    opd_union_kl,
    union_kl,
    union_support,
    union_topk_kl,
)

__all__ = [
    "FLAG_INF",
    "FLAG_NAN",
    "FLAG_SHORT",
    "TopK",
    "UnionKL",
    "UnionKLRows",
    "UnionSupport",
    "audio_embed_merge",
    "available_backends",
    "gather_linear",
    "linear_log_softmax",
    "linear_topk_lse",
    "opd_union_kl",
    "sparse_weight_grad",
    "topk_lse",
    "union_kl",
    "union_support",
    "union_topk_kl",
]
