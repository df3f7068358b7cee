"""Lattices and crystals for the geometry tests, and plain searches that serve as oracles."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from facetry.geometry import lattice_from_parameters


def from_parameters(*parameters: float) -> torch.Tensor:
    return lattice_from_parameters(torch.tensor(parameters, dtype=torch.float64))


def fcc(a: float) -> torch.Tensor:
    return a / 2 * torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.float64)


def bcc(a: float) -> torch.Tensor:
    return a / 2 * torch.tensor([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], dtype=torch.float64)


# lattice, number of frames, number of different Gram matrices among them
SYMMETRIC = {
    "triclinic": (from_parameters(4, 5, 6.3, 80, 85, 77), 1, 1),
    "monoclinic": (from_parameters(4, 5, 6, 90, 101, 90), 2, 1),
    "monoclinic, axis shortest": (from_parameters(5, 4, 6, 90, 101, 90), 4, 2),
    "orthorhombic": (from_parameters(4, 5, 6, 90, 90, 90), 4, 1),
    "tetragonal": (from_parameters(4, 4, 6, 90, 90, 90), 8, 1),
    "hexagonal, c > a": (from_parameters(3, 3, 5, 90, 90, 120), 12, 1),
    "hexagonal, c < a": (from_parameters(5, 5, 3, 90, 90, 120), 24, 2),
    "rhombohedral 50": (from_parameters(4, 4, 4, 50, 50, 50), 24, 4),
    "rhombohedral 80": (from_parameters(4, 4, 4, 80, 80, 80), 6, 1),
    "rhombohedral 100": (from_parameters(4, 4, 4, 100, 100, 100), 6, 1),
    "simple cubic": (from_parameters(4, 4, 4, 90, 90, 90), 24, 1),
    "bcc": (bcc(3.2), 24, 1),
    "fcc": (fcc(5.64), 144, 6),
}


def symmetric_lattices() -> torch.Tensor:
    return torch.stack([lattice for lattice, _, _ in SYMMETRIC.values()])


def unimodular(rng: np.random.Generator, count: int, factors: int = 4, largest: int = 5) -> torch.Tensor:
    """Products of elementary integer matrices with entries up to ``largest``: determinant 1."""
    result = np.tile(np.eye(3), (count, 1, 1))
    every = np.arange(count)
    for _ in range(factors):
        row = rng.integers(0, 3, count)
        column = (row + rng.integers(1, 3, count)) % 3
        step = np.tile(np.eye(3), (count, 1, 1))
        step[every, row, column] = rng.integers(-largest, largest + 1, count)
        result = step @ result
    return torch.from_numpy(result)


def rotations(rng: np.random.Generator, count: int) -> torch.Tensor:
    q = rng.normal(size=(count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.from_numpy(np.moveaxis(np.array(rows), -1, 0).copy())


def successive_minima(lattice: np.ndarray, reach: int) -> np.ndarray:
    """λ1, λ2, λ3 by going through all coefficients up to ``reach``; independence by rank of integers."""
    n = np.array([v for v in itertools.product(range(-reach, reach + 1), repeat=3) if v > (0, 0, 0)])
    length = np.linalg.norm(n @ lattice, axis=1)
    n, length = n[np.argsort(length)], np.sort(length)
    second = next(i for i in range(1, len(n)) if np.cross(n[0], n[i]).any())
    normal = np.cross(n[0], n[second])
    third = next(i for i in range(1, len(n)) if n[i] @ normal)
    return length[[0, second, third]]


def all_frames(lattice: np.ndarray, tol: float = 1e-4, reach: int = 2) -> set[tuple[int, ...]]:
    """Every frame of a lattice that is not skewed, straight from the definition."""
    n = np.array([v for v in itertools.product(range(-reach, reach + 1), repeat=3) if any(v)])
    v = n @ lattice
    length = np.linalg.norm(v, axis=1)
    minima = successive_minima(lattice, reach)
    slots = [np.flatnonzero(np.abs(length - x) <= tol) for x in minima]
    hand = np.sign(np.linalg.det(lattice))
    found = set()
    for i, j, k in itertools.product(*slots):
        det = round(float(np.linalg.det(n[[i, j, k]])))
        if det == 0:
            continue
        if v[i] @ v[j] < -tol * length[i] * length[j] or v[i] @ v[k] < -tol * length[i] * length[k]:
            continue
        frame = n[[i, j, k]] * int(np.sign(det) * hand)
        found.add(tuple(int(x) for x in frame.ravel()))
    return found


def neighbors(
    lattice: torch.Tensor, frac: torch.Tensor, cutoff: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pairs closer than ``cutoff``: centre, neighbour, vector. Brute force over images."""
    spacing = 1 / torch.linalg.vector_norm(torch.linalg.inv(lattice).T, dim=1)
    spread = (frac.amax(0) - frac.amin(0)).ceil()
    reach = [int(x) for x in (cutoff / spacing).ceil() + spread]
    images = torch.tensor(list(itertools.product(*(range(-m, m + 1) for m in reach))), dtype=lattice.dtype)
    delta = frac[None, :, None] + images[None, None] - frac[:, None, None]  # centre, neighbour, image
    vector = delta @ lattice
    length = torch.linalg.vector_norm(vector, dim=-1)
    center, neighbor, image = ((length < cutoff) & (length > 1e-6)).nonzero().unbind(1)
    return center, neighbor, vector[center, neighbor, image]
