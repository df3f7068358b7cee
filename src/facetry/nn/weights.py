"""One number for each field of an edge or a triplet: a perceptron with two hidden layers on rows that are
sums of gathered rows.

The first Linear acts on concatenations (h_i ∥ h_j ∥ ...), so it is projected on atoms and edges and only
gathered and added here; an item costs one product with the second matrix, there and twice on the way back.
These products are two thirds of the time at the speed of the processor, so nothing but fewer bits makes them
cheaper: `half` rounds their factors to bfloat16. Items are worked on in stretches that fit the cache, and the
first hidden rows are made again on the way back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 17  # numbers of hidden rows that exist at once on the CPU
_CHUNK_GPU = 1 << 26


def perceptron_of_pairs(
    left: Float[Tensor, "rows hidden"],
    right: Float[Tensor, "other_rows hidden"],
    features: Float[Tensor, "items features"],
    mix: Float[Tensor, "features hidden"],
    second: nn.Linear,
    last: nn.Linear,
    left_row: Int[Tensor, " items"],
    right_row: Int[Tensor, " items"],
    half: bool = False,
) -> Float[Tensor, "items outputs"]:
    """last(silu(second(silu(left[left_row] + right[right_row] + features @ mix)))); `second` has no bias.
    First derivatives only. `half` multiplies with the second matrix in bfloat16, there and back."""
    w, v, b = (t.to(left.dtype) for t in (second.weight, last.weight, last.bias))
    features, mix, right = (t.to(left.dtype) for t in (features, mix, right))
    keep = torch.is_grad_enabled()
    return _Perceptron.apply(left, right, features, mix, w, v, b, left_row, right_row, keep, half)


class _Perceptron(torch.autograd.Function):
    """Keeps the second hidden rows of all items, before their activation."""

    @staticmethod
    def forward(
        ctx,
        left: Tensor,
        right: Tensor,
        features: Tensor,
        mix: Tensor,
        w: Tensor,
        v: Tensor,
        b: Tensor,
        left_row: Tensor,
        right_row: Tensor,
        keep: bool,
        half: bool,
    ) -> Tensor:
        items = len(left_row)
        product = torch.bfloat16 if half else left.dtype
        kept = left.new_empty((items if keep else 0, len(w)), dtype=product)
        ctx.save_for_backward(left, right, features, mix, w, v, b, left_row, right_row, kept)
        turned = w.T.to(product)
        out = left.new_empty((items, len(v)))
        with torch.autocast(left.device.type, enabled=False):
            for rows in _stretches(items, left):
                x = _hidden(left, right, features, mix, left_row[rows], right_row[rows], rows)
                x = nn.functional.silu(x, inplace=True).to(product)
                y = torch.mm(x, turned, out=kept[rows]) if keep else x @ turned
                torch.addmm(b, nn.functional.silu(y.to(v.dtype)), v.T, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right, features, mix, w, v, b, left_row, right_row, kept = ctx.saved_tensors
        exact = torch.promote_types(left.dtype, torch.float32)
        by_left, by_right, by_mix, by_w, by_v, by_b = (
            torch.zeros(t.shape, dtype=exact, device=t.device) for t in (left, right, mix, w, v, b)
        )
        by_features = torch.empty_like(features)
        product = kept.dtype
        turned = w.to(product)
        with torch.autocast(left.device.type, enabled=False):
            for rows in _stretches(len(left_row), left):
                x = _hidden(left, right, features, mix, left_row[rows], right_row[rows], rows)
                hidden, y = nn.functional.silu(x), kept[rows].to(left.dtype)
                second = nn.functional.silu(y)
                incoming = gradient[rows].to(left.dtype)
                by_v += incoming.T @ second
                by_b += incoming.sum(0)
                by_y = torch.ops.aten.silu_backward(incoming @ v, y).to(product)
                by_w += by_y.T @ hidden.to(product)
                by_x = torch.ops.aten.silu_backward((by_y @ turned).to(left.dtype), x)
                by_mix += features[rows].T @ by_x
                by_features[rows] = by_x @ mix.T
                by_x = by_x.to(exact)
                by_left.index_add_(0, left_row[rows], by_x)
                by_right.index_add_(0, right_row[rows], by_x)
        found = (by_left, by_right, by_features, by_mix, by_w, by_v, by_b)
        return (*(g.to(t.dtype) for g, t in zip(found, ctx.saved_tensors, strict=False)), *[None] * 4)


def _stretches(items: int, like: Tensor) -> list[slice]:
    """Few rows for the cache, enough for fast products; all at once on a large accelerator."""
    most = max(256, (_CHUNK if like.device.type == "cpu" else _CHUNK_GPU) // like.shape[1])
    return [slice(start, min(start + most, items)) for start in range(0, items, most)]


def _hidden(
    left: Tensor,
    right: Tensor,
    features: Tensor,
    mix: Tensor,
    left_row: Tensor,
    right_row: Tensor,
    rows: slice,
) -> Tensor:
    x = left.index_select(0, left_row)
    x += right.index_select(0, right_row)
    return x.addmm_(features[rows], mix) if features.shape[1] else x
