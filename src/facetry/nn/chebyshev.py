"""Smooth functions of one number as a few polynomials, for functions that are summed over many places."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MOST = 1024  # polynomials; a function that needs more is not smooth
_STRIDE = 8  # polynomials that are made at once


def chebyshev(
    x: Float[Tensor, " items"], weight: Float[Tensor, " items"], out: Float[Tensor, "size items"]
) -> None:
    """weight T_0 to weight T_(size - 1) at x in [-1, 1] into `out`, of at least two rows: T_(n + k) =
    2 T_n T_k - T_(n - k)."""
    size = len(out)
    out[0] = weight
    torch.mul(weight, x, out=out[1])
    n, twice = 1, 2 * x  # 2 T_n
    while n < _STRIDE and n + 1 < size:
        k = min(n, size - 1 - n)
        torch.mul(out[1 : k + 1], twice, out=out[n + 1 : n + k + 1])
        out[n + 1 : n + k + 1] -= out[n - k : n].flip(0)
        n, twice = 2 * n, twice * twice - 2
    # T_8 is the last so far: from here steps of 8, the first of which looks back at T_1 to T_8
    start = n + 1
    if start < size:
        k = min(n, size - start)
        torch.mul(out[1 : k + 1], twice, out=out[start : start + k])
        out[start : start + k] -= out[n - k : n].flip(0)
        start += k
    while start < size:
        k = min(n, size - start)
        torch.mul(out[start - n : start - n + k], twice, out=out[start : start + k])
        out[start : start + k] -= out[start - 2 * n : start - 2 * n + k]
        start += k


class LowRank:
    """Functions of d in [0, high] as Σ_n T_n(x) `series`[n] `matrix`, x = 2 d / high - 1, by few polynomials
    and few columns of `series`; `slopes` are the coefficients of the slope of the series in x.

    `function` gives two sets of columns: those that count and those that are wanted, of which the first are
    sums. Both are interpolated in Chebyshev points, more of them until the last coefficients of the first
    vanish, and these coefficients are parted by a singular value decomposition; either leaves at most about
    `tolerance` of the largest value in any column. `matrix` gives the wanted columns as far as the others
    need them. What comes out is smooth, and its slope is exactly the slope of what it gives.
    """

    def __init__(
        self,
        function: Callable[[Float[Tensor, " points"]], tuple[Tensor, Tensor]],
        high: float,
        tolerance: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        size = 64
        while True:
            order = torch.arange(size, dtype=torch.float64, device=device)
            angle = torch.pi * (order + 0.5) / size
            counted, wanted = function((torch.cos(angle) + 1) * (high / 2))
            waves = torch.cos(order[:, None] * angle) * (2 / size)
            waves[0] /= 2
            coefficients = waves @ counted
            limit = tolerance * float(counted.abs().max())
            used = _first(coefficients, limit)
            if used <= 0.8 * size or size >= _MOST:
                break
            size *= 2
        self.size = max(used, 2)
        # the left hand of a flat matrix by that of a square one
        q, r = torch.linalg.qr(coefficients[: self.size].T)
        u, s, v = torch.linalg.svd(r.T)
        self.rank = max(1, _first(s[:, None] * (v @ q.T), limit))
        series = u[:, : self.rank] * s[: self.rank].sqrt()
        self.series = series.to(dtype)
        self.slopes = (_derivative(self.size).to(u) @ series).to(dtype)
        back = u[:, : self.rank] / s[: self.rank].sqrt()
        self.matrix = (back.T @ (waves[: self.size] @ wanted)).to(dtype)


def _first(rows: Float[Tensor, "rows columns"], limit: float) -> int:
    """So many rows that in no column the root of the sum of squares of the others is above the limit."""
    left = rows.square().flip(0).cumsum(0).amax(1).sqrt().flip(0)
    return int((left > limit).sum())


def _derivative(size: int) -> Float[Tensor, "size size"]:
    """Coefficients of the slope of a series in T: T_n' = 2 n Σ T_k over k < n of other parity, T_0 halved."""
    n = torch.arange(size, dtype=torch.float64)
    odd = (n[None] - n[:, None]).remainder(2) == 1
    matrix = torch.where(odd & (n[:, None] < n[None]), 2 * n[None], 0.0)
    matrix[0] /= 2
    return matrix


def whole_steps(value: float, step: float) -> float:
    """The next multiple of `step`, so that few tables serve many cutoffs."""
    return math.ceil(value / step) * step
