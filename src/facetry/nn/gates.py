"""Gates σ(s y) of any y by those of a few: σ(s y) - 1/2 = Σ_k (σ(s y_k) - 1/2) l_k(y).

    tanh(z σ t / 2) = Σ_k tanh(z σ t_k / 2) l_k(t),    0 < t_k <= 1,    -1 <= σ, t <= 1

The nodes t_k are found by elimination with pivots, l_k by least squares; some eight of them are enough for
seven digits at |s y| <= z = 10, and their number grows with the logarithm of z. l_k(t_j) is 1 where j = k,
0 elsewhere, and |l_k| hardly exceeds 1, so no digits are lost.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

_POINTS = 200


def _grid(points: int) -> Float[Tensor, " points"]:
    """Points in (0, 1), dense at both ends."""
    angle = math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return (1 - torch.cos(angle)) / 2


def _pivots(kernel: Float[Tensor, "points candidates"], left: Tensor, tolerance: float) -> list[int]:
    """Candidates by elimination until nothing above `tolerance` is left of the columns of `left`, the first
    of which are those of `kernel`."""
    chosen: list[int] = []
    size = kernel.shape[1]
    while len(chosen) < size:
        norm = left.abs().amax(0)
        if chosen and norm.amax() < tolerance:
            break
        norm = norm[:size]
        norm[chosen] = 0.0
        chosen.append(int(norm.argmax()))
        direction = left[:, chosen[-1]] / left[:, chosen[-1]].norm()
        for _ in range(2):  # once more for what rounding left
            left = left - direction[:, None] * (direction @ left)
    return chosen


@functools.lru_cache(maxsize=256)
def gate_nodes(reach: float, tolerance: float) -> tuple[float, ...]:
    """t_k for |s y| <= `reach`, so many that the gates are off by at most about `tolerance`."""
    points = torch.cat([_grid(_POINTS), torch.ones(1, dtype=torch.float64)])
    kernel = torch.tanh(reach / 2 * points[:, None] * points)
    return tuple(points[_pivots(kernel, kernel, tolerance)].tolist())


@functools.lru_cache(maxsize=1024)
def gate_choice(nodes: tuple[float, ...], reach: float, tolerance: float) -> tuple[int, ...]:
    """Which of these nodes are enough for a smaller reach, the most needed ones first."""
    points, candidates = _grid(_POINTS), torch.tensor(nodes, dtype=torch.float64)
    half = reach / 2 * points[:, None]
    kernel = torch.tanh(half * candidates)
    return tuple(_pivots(kernel, torch.cat([kernel, torch.tanh(half * points)], 1), tolerance))


def gate_weights(
    nodes: Float[Tensor, " nodes"], reach: float, t: Float[Tensor, " points"]
) -> Float[Tensor, "nodes points"]:
    """l_k(t) for t in [-1, 1]."""
    grid = _grid(2 * len(nodes) + 8).to(t)
    half = reach / 2 * grid[:, None]
    q, r = torch.linalg.qr(torch.tanh(half * nodes.to(t)))
    return torch.linalg.solve_triangular(r, q.T @ torch.tanh(half * t), upper=True)
