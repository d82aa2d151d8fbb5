"""Exact top-k of logit rows with a tie rule, and what the same pass over a row also gives: log-sum-exp, chosen columns, flags."""

from arkfast.kernels.row_topk.op import FLAG_INF, FLAG_NAN, FLAG_SHORT, TopK, topk_lse

__all__ = ["FLAG_INF", "FLAG_NAN", "FLAG_SHORT", "TopK", "topk_lse"]
