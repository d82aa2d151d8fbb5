"""The distillation loss: a divergence on the union of the student's and the teacher's top-k."""

from arkfast.kernels.union_kl.logits import union_topk_kl
from arkfast.kernels.union_kl.loss import UnionKL, opd_union_kl
from arkfast.kernels.union_kl.op import UnionKLRows, UnionSupport, union_kl, union_support

__all__ = ["UnionKL", "UnionKLRows", "UnionSupport", "opd_union_kl", "union_kl", "union_support", "union_topk_kl"]
