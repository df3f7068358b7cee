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


@functools.lru_cache(maxsize=256)
def gate_nodes(reach: float, tolerance: float) -> Float[Tensor, " nodes"]:
    """t_k for |s y| <= `reach`, so many that the gates are off by at most about `tolerance`."""
    points = torch.cat([_grid(_POINTS), torch.ones(1, dtype=torch.float64)])
    left = torch.tanh(reach / 2 * points[:, None] * points)
    chosen = []
    while len(chosen) < len(points):
        size = left.abs().amax(0)
        size[chosen] = 0.0
        pivot = int(size.argmax())
        if chosen and size[pivot] < tolerance:
            break
        chosen.append(pivot)
        direction = left[:, pivot] / left[:, pivot].norm()
        for _ in range(2):  # once more for what rounding left
            left = left - direction[:, None] * (direction @ left)
    return points[chosen]


def gate_weights(
    nodes: Float[Tensor, " nodes"], reach: float, t: Float[Tensor, " points"]
) -> Float[Tensor, "nodes points"]:
    """l_k(t) for t in [-1, 1]."""
    grid = _grid(2 * len(nodes) + 8).to(t)
    half = reach / 2 * grid[:, None]
    q, r = torch.linalg.qr(torch.tanh(half * nodes.to(t)))
    return torch.linalg.solve_triangular(r, q.T @ torch.tanh(half * t), upper=True)
