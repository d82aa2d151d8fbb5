"""Fused operations for distillation, one folder each.

In a checkout the folders here are links to those of the repository's top-level ``kernels/``; a wheel and a source distribution carry the
folders themselves. Every public name imports here and needs torch alone.
"""

try:
    from arkfast.kernels.common.backend import UnfitError, available_backends, fallbacks, reset_usage, usage
except ModuleNotFoundError as error:
    if error.name != "arkfast.kernels.common":
        raise
    raise ImportError(
        "the folders in arkfast/kernels are missing: they are symbolic links to those of kernels/, which this copy of the repository has "
        "lost; clone it with 'git clone -c core.symlinks=true' (on Windows turn on its Developer Mode before), unpack an archive with a "
        "program that keeps links, or install a wheel"
    ) from None

# Where an op's folder has its function's name, the function is what this package's attribute holds.
from arkfast.kernels.add_rms_norm import add_rms_norm
from arkfast.kernels.decode_attention import decode_attention
from arkfast.kernels.embed_merge import audio_embed_merge
from arkfast.kernels.gather_linear import gather_linear
from arkfast.kernels.linear_kl import linear_kl, linear_logprob
from arkfast.kernels.linear_topk import linear_topk_lse
from arkfast.kernels.log_softmax import linear_log_softmax, row_log_softmax
from arkfast.kernels.rope_cache import rope_cache
from arkfast.kernels.rotary import rotary
from arkfast.kernels.row_topk import FLAG_INF, FLAG_NAN, FLAG_SHORT, TopK, topk_lse
from arkfast.kernels.sparse_grad import sparse_weight_grad
from arkfast.kernels.swiglu import swiglu
from arkfast.kernels.union_kl import (
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
    "rotary",
    "row_log_softmax",
    "sparse_weight_grad",
    "swiglu",
    "topk_lse",
    "union_kl",
    "union_support",
    "union_topk_kl",
    "usage",
]
