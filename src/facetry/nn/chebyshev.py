"""Smooth functions of one number as a few polynomials, for filters that are read millions of times."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MOST = 1024  # polynomials; a function that needs more is not smooth


def chebyshev(x: Float[Tensor, " items"], size: int) -> Float[Tensor, "size items"]:
    """T_0 to T_(size - 1) at x in [-1, 1], by T_(n + k) = 2 T_n T_k - T_(n - k)."""
    table = x.new_empty((max(size, 2), len(x)))
    table[0] = 1.0
    table[1] = x
    n = 1
    while n + 1 < size:
        k = min(n, size - 1 - n)
        torch.mul(table[1 : k + 1], 2 * table[n], out=table[n + 1 : n + k + 1])
        table[n + 1 : n + k + 1] -= table[n - k : n].flip(0)
        n += k
    return table[:size]


class LowRank:
    """A function of d in [0, high] with many columns as `basis(d) @ matrix`, both with few columns.

    The function is interpolated in Chebyshev points, more of them until the last coefficients vanish, and its
    coefficients are parted by a singular value decomposition; both leave at most about `tolerance` of the
    largest value. The basis is smooth, and its slope is exactly the slope of what it gives.
    """

    def __init__(
        self,
        function: Callable[[Float[Tensor, " points"]], Float[Tensor, "points columns"]],
        high: float,
        tolerance: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.high = high
        size = 32
        while True:
            angle = torch.pi * (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
            values = function((torch.cos(angle) + 1) * (high / 2)).double()
            waves = torch.cos(torch.arange(size, dtype=torch.float64, device=device)[:, None] * angle)
            coefficients = waves @ values * (2 / size)
            coefficients[0] /= 2
            scale = float(values.abs().max())
            seen = torch.nonzero(coefficients.abs().amax(1) > 0.1 * tolerance * scale)
            used = int(seen[-1]) + 1 if len(seen) else 1
            if used <= 0.8 * size or size >= _MOST:
                break
            size *= 2
        coefficients = coefficients[: max(used, 2)]
        u, s, v = torch.linalg.svd(coefficients, full_matrices=False)
        # what is left out of a sum of squares bounds the error in every column
        left = s.square().flip(0).cumsum(0).flip(0).sqrt()
        rank = max(1, int((left > tolerance * scale).sum()))
        weight = s[:rank].sqrt()
        slopes = _derivative(len(coefficients)).to(u) @ (u[:, :rank] * weight) * (2 / high)
        self.polynomials = torch.cat([u[:, :rank] * weight, slopes], 1).to(dtype)
        self.matrix = (weight[:, None] * v[:rank]).to(dtype)
        self.rank = rank

    def basis(
        self, d: Float[Tensor, " items"]
    ) -> tuple[Float[Tensor, "items rank"], Float[Tensor, "items rank"]]:
        """The basis and its slope at d, in the precision of the matrix."""
        x = (d * (2 / self.high) - 1.0).to(self.matrix.dtype)
        both = chebyshev(x, len(self.polynomials)).T @ self.polynomials
        return both[:, : self.rank], both[:, self.rank :]


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
