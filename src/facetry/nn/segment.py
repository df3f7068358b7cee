"""Sums and means over the edges of an atom or the atoms of a crystal, and gathers that undo them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear


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


def segment_softmax(
    values: Float[Tensor, " items"], index: Int[Tensor, " items"], size: int
) -> Float[Tensor, " items"]:
    """Softmax over the rows that share an index."""
    highest = values.new_full((size,), -torch.inf).scatter_reduce(0, index, values.detach(), "amax")
    raised = torch.exp(values - highest.index_select(0, index))
    return raised / segment_sum(raised, index, size).index_select(0, index)


def linear_of_parts(
    layer: nn.Linear, parts: Sequence[tuple[Tensor, Tensor | None]]
) -> Float[Tensor, "items outputs"]:
    """A Linear of concatenated rows, x[index] of every part (x, index); None: x as it is.

    A Linear of a concatenation is a sum of Linears: each part is projected where its rows are few, then
    gathered.
    """
    blocks = layer.weight.split([x.shape[1] for x, _ in parts], dim=1)
    total = layer.bias
    for (x, index), block in zip(parts, blocks, strict=True):
        projected = linear(x, block)
        total = total + (projected if index is None else projected.index_select(0, index))
    return total
