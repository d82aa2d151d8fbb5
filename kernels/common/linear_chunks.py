"""A linear layer's logits in row chunks, and the gradients of its input and weight from the chunks' dL/dlogits.

A loss stands between the two: it is handed a chunk's logits and hands back dL/dlogits. Letters: T rows, n
rows of a chunk, H features, V outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from arkfast.kernels.common.chunks import padded_rows, spans
from arkfast.kernels.common.precision import wide_dtype

ROW_ALIGNMENT = 64
"""Elements that a row of logits is padded to in memory."""


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b in float32 or wider; bfloat16 operands are multiplied exactly and summed in float32 by the tensor cores."""
    return torch.mm(a, b, out_dtype=torch.float32, out=out) if a.dtype == torch.bfloat16 else torch.mm(a, b, out=out)


def add_product_(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """out += a @ b in place, ``out`` in float32 or wider."""
    if a.dtype == torch.bfloat16:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a, b)


class ChunkedLinear:
    """hidden @ weight.T in chunks of ``rows`` rows.

    Args:
        hidden: [T, H].
        weight: [V, H].
        rows: rows of a chunk.
        fast: what a kernel asks for: bfloat16 operands on a GPU stay bfloat16 (their logits are float32 all the same), and the last chunk
            is padded with zero rows up to ``rows``, so that a row's logits do not depend on how many rows there are. float16 is widened:
            dL/dlogits of a mean over many rows would vanish in it.
        grads: (hidden's, weight's) gradient is wanted.
    """

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, rows: int, *, fast: bool, grads: tuple[bool, bool] = (False, False)
    ) -> None:
        narrow = fast and all(x.is_cuda and x.dtype == torch.bfloat16 for x in (hidden, weight))
        self.dtype = torch.bfloat16 if narrow else wide_dtype(hidden, weight)
        """Dtype of the operands, and of the d_logits that ``collect`` takes."""
        self._hidden, self._weight, self._rows, self._fast = hidden, weight.to(self.dtype), rows, fast
        self._buffers: dict[torch.dtype, torch.Tensor] = {}
        wide = torch.float32 if narrow else self.dtype
        self._d_hidden = torch.empty(hidden.shape, dtype=wide, device=hidden.device) if grads[0] else None
        self._d_weight = torch.zeros(weight.shape, dtype=wide, device=hidden.device) if grads[1] else None

    def spans(self) -> Iterator[slice]:
        """The chunks' rows, in order; one empty chunk where T is 0."""
        return spans(self._hidden.shape[0], self._rows)

    def _buffer(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, V], one for each dtype. Kernels read and write 16 bytes at a time where every row starts at a multiple of that, whatever V
        is."""
        if dtype not in self._buffers:
            width = self._weight.shape[0]
            stride = -(-width // ROW_ALIGNMENT) * ROW_ALIGNMENT
            self._buffers[dtype] = torch.empty(self._rows, stride, dtype=dtype, device=self._hidden.device)[:, :width]
        return self._buffers[dtype]

    def _input(self, span: slice, idle: torch.Tensor | None = None) -> torch.Tensor:
        x = self._hidden[span].to(self.dtype)
        if idle is not None:
            x = x.masked_fill(idle[:, None], 0.0)
        return padded_rows(x, self._rows) if self._fast else x

    def logits(self, span: slice) -> torch.Tensor:
        """[n, V] in float32 or wider, rows past the span's being padding. ``fast`` chunks share one buffer, valid until the next call."""
        if not self._fast:
            return product(self._input(span), self._weight.t())
        return product(self._input(span), self._weight.t(), out=self._buffer(torch.promote_types(self.dtype, torch.float32)))

    def d_logits_buffer(self, span: slice, logits: torch.Tensor) -> torch.Tensor:
        """Where a kernel writes dL/dlogits [n, V]: over the logits themselves where the dtypes agree, else into one buffer for all chunks.
        Padding rows hold zeros."""
        if logits.dtype == self.dtype:
            return logits  # a padding row's logits are 0
        buffer = self._buffer(self.dtype)
        buffer[span.stop - span.start :].zero_()
        return buffer

    def collect(self, span: slice, d_logits: torch.Tensor, idle: torch.Tensor) -> None:
        """Takes a chunk's dL/dlogits [n, V] into the wanted gradients.

        ``idle`` [m] marks the span's rows that have none, zeros in ``d_logits``: their hidden states, which may be NaN, stay out of the
        weight's gradient.
        """
        if self._d_hidden is not None:
            self._d_hidden[span] = product(d_logits, self._weight)[: span.stop - span.start]
        if self._d_weight is not None:
            add_product_(self._d_weight, d_logits.t(), self._input(span, idle))

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(d_hidden [T, H], d_weight [V, H]) in float32 or wider; None where not wanted."""
        return self._d_hidden, self._d_weight
