"""Smooth functions of one number as a few polynomials, for functions that are summed over many places."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MOST = 1024  # polynomials; a function that needs more is not smooth
_STRIDE = 8  # polynomials that are made at once


def chebyshev(
    x: Float[Tensor, " items"], weight: Float[Tensor, " items"], out: Float[Tensor, "size items"]
) -> None:
    """weight T_0 to weight T_(size - 1) at x in [-1, 1] into `out`, each with its sign of `chebyshev_signs`:
    with them T_(n + 8) = 2 T_8 T_n - T_(n - 8) is one sum of products for eight of them."""
    size, k, twice = len(out), _STRIDE, 2 * x
    rows = out[: 2 * k].unbind()
    rows[0].copy_(weight)
    if size > 1:
        torch.mul(weight, x, out=rows[1])
    for n in range(2, len(rows)):
        torch.mul(rows[n - 1], twice, out=rows[n]).sub_(rows[n - 2])
    if size <= 2 * k:
        return
    for _ in range(3):  # 2 T_2, 2 T_4, 2 T_8
        twice = twice.square_().sub_(2)
    for n in range(2 * k, size, k):
        m = min(k, size - n)
        value = 1 if (n // k) % 2 else -1
        before, last = out[n - 2 * k : n - 2 * k + m], out[n - k : n - k + m]
        torch.addcmul(before, last, twice, value=value, out=out[n : n + m])


def chebyshev_signs(size: int) -> Float[Tensor, " size"]:
    """+ for the first sixteen polynomials, - for the next sixteen, and so on."""
    block = torch.div(torch.arange(size), 2 * _STRIDE, rounding_mode="floor")
    return (1 - 2 * (block % 2)).double()


class LowRank:
    """Functions of d in [0, high] as Σ_n T_n(x) `series`[n] `matrix`, x = 2 d / high - 1, by few polynomials,
    signed as `chebyshev` gives them, and few columns of `series`; `slopes` are the coefficients of the slope
    of the series in x.

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
        signs = chebyshev_signs(self.size).to(u)[:, None]
        self.series = (signs * series).to(dtype)
        self.slopes = (signs * (_derivative(self.size).to(u) @ series)).to(dtype)
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
