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
from arkfast.kernels.add_rms_norm import add_rms_norm  # noqa: E402
from arkfast.kernels.common.backend import UnfitError, available_backends, fallbacks, reset_usage, usage  # noqa: E402
from arkfast.kernels.decode_attention import decode_attention  # noqa: E402
from arkfast.kernels.embed_merge import audio_embed_merge  # noqa: E402
from arkfast.kernels.gather_linear import gather_linear  # noqa: E402
from arkfast.kernels.linear_kl import linear_kl, linear_logprob  # noqa: E402
from arkfast.kernels.linear_topk import linear_topk_lse  # noqa: E402
from arkfast.kernels.log_softmax import linear_log_softmax, row_log_softmax  # noqa: E402
from arkfast.kernels.rope_cache import rope_cache  # noqa: E402
from arkfast.kernels.row_topk import FLAG_INF, FLAG_NAN, FLAG_SHORT, TopK, topk_lse  # noqa: E402
from arkfast.kernels.sparse_grad import sparse_weight_grad  # noqa: E402
from arkfast.kernels.swiglu import swiglu  # noqa: E402
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
    "UnfitError",
    "UnionKL",
    "UnionKLRows",
    "UnionSupport",
    "add_rms_norm",
    "audio_embed_merge",
    "available_backends",
    "decode_attention",
    "fallbacks",
    "gather_linear",
    "linear_kl",
    "linear_log_softmax",
    "linear_logprob",
    "linear_topk_lse",
    "opd_union_kl",
    "reset_usage",
    "rope_cache",
    "row_log_softmax",
    "sparse_weight_grad",
    "swiglu",
    "topk_lse",
    "union_kl",
    "union_support",
    "union_topk_kl",
    "usage",
]
