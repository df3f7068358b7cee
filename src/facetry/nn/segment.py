"""Sums and means over the edges of an atom or the atoms of a crystal, and gathers that undo them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "items *channels"], index: Int[Tensor, " items"], size: int
) -> Float[Tensor, "segments *channels"]:
    """Sum of the rows that share an index, in float32 at least: bfloat16 sums lose items beyond 256.

    Fastest where `index` is sorted.
    """
    exact = torch.promote_types(values.dtype, torch.float32)
    out = values.new_zeros((size, *values.shape[1:]), dtype=exact)
    return out.index_add(0, index, values.to(exact))


def segment_mean(
    values: Float[Tensor, "items *channels"], index: Int[Tensor, " items"], size: int
) -> Float[Tensor, "segments *channels"]:
    """Mean of the rows that share an index; empty segments are zero."""
    total = segment_sum(values, index, size)
    count = torch.bincount(index, minlength=size).clamp(min=1).to(total.dtype)
    return total / count.reshape(-1, *[1] * (values.dim() - 1))
