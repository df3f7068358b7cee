"""Random search: random cells of the expected volume with atoms that keep their distance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from facetry.chemistry import Formula, expected_volume
from facetry.chemistry.volume import covalent_radii
from facetry.crystal import Crystal
from facetry.geometry.reduction import minkowski_reduce
from facetry.tasks.generate import Candidate

__all__ = ["RandomSearch"]

_FLATTEST = 0.45  # of the cube root of the volume: distance of opposite faces below which a cell is redrawn
_SWEEPS, _YIELD, _GIVES = 60, 0.93, 12  # tries before the distances that are asked for shrink, how often
_NUMBERS = 2_000_000  # distances at once
_IMAGES = np.array(list(np.ndindex(3, 3, 3))) - 1


class RandomSearch:
    """The method `rs`.

    Args:
        closest: least distance of two atoms in units of the sum of their covalent radii; smaller where atoms
            find no room.
        volume_spread: standard deviation of the logarithm of the volume around the expected one.

    Cells are Gaussian matrices, reduced, and drawn again where they are flat; atoms are drawn uniformly, and
    those too near to another again.
    """

    energy_unit = ""

    def __init__(self, closest: float | int = 0.75, volume_spread: float | int = 0.1) -> None:
        if not 0 <= closest <= 1.2:
            raise ValueError(f"closest: expected a share from 0 to 1.2, got {closest}")
        if not 0 <= volume_spread <= 1:
            raise ValueError(f"volume_spread: expected a number from 0 to 1, got {volume_spread}")
        self.closest, self.volume_spread = float(closest), float(volume_spread)

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]:
        """Candidates without end; the same seed gives the same."""
        numbers = np.array(formula.numbers(atoms))
        rng = np.random.default_rng(seed)
        at_once = max(1, min(count, _NUMBERS // (len(numbers) ** 2 * len(_IMAGES))))
        drawn = 0
        while True:
            for lattice, frac in zip(*self._draw(numbers, at_once, rng), strict=True):
                drawn += 1
                yield Candidate(Crystal(lattice, frac, numbers), None, f"draw {drawn}")

    def nothing(self, formula: Formula, atoms: int | None) -> str:
        """Why there are no candidates for a formula."""
        return f"no room for the atoms of {formula}"

    def _draw(
        self, numbers: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "crystals 3 3"], Float[np.ndarray, "crystals atoms 3"]]:
        volume = expected_volume(numbers) * np.exp(self.volume_spread * rng.normal(size=count))
        lattice = _cells(volume, rng)
        radius = covalent_radii()[numbers]
        least = np.repeat(self.closest * (radius[:, None] + radius)[None], count, axis=0)
        # an atom's own images are as far as the cell is wide, wherever it lies
        least[:, np.arange(len(numbers)), np.arange(len(numbers))] = 0.0
        frac = rng.random((count, len(numbers), 3))
        open_ = np.arange(count)
        for sweep in range(_SWEEPS * _GIVES):
            if sweep and sweep % _SWEEPS == 0:
                least[open_] *= _YIELD
            bad = self._too_near(lattice[open_], frac[open_], least[open_])
            open_, bad = open_[bad.any(1)], bad[bad.any(1)]
            if not len(open_):
                break
            frac[open_] = np.where(bad[:, :, None], rng.random((len(open_), len(numbers), 3)), frac[open_])
        return lattice, frac

    @staticmethod
    def _too_near(lattice: np.ndarray, frac: np.ndarray, least: np.ndarray) -> np.ndarray:
        """Atoms that are too near to one before them."""
        apart = frac[:, None] - frac[:, :, None]
        apart -= np.round(apart)
        vectors = (apart[:, :, :, None] + _IMAGES) @ lattice[:, None, None]
        near = ((vectors**2).sum(-1).min(-1)) < least**2
        return np.triu(near, 1).any(1)


def _cells(volume: Float[np.ndarray, " cells"], rng: np.random.Generator) -> Float[np.ndarray, "cells 3 3"]:
    """Minkowski-reduced random cells of these volumes, none of them flat."""
    lattice = np.zeros((len(volume), 3, 3))
    missing = np.arange(len(volume))
    while len(missing):
        drawn = rng.normal(size=(len(missing), 3, 3))
        size = np.abs(np.linalg.det(drawn))
        drawn *= ((volume[missing] / np.maximum(size, 1e-12)) ** (1 / 3))[:, None, None]
        sound = size > 1e-3
        chosen, drawn = missing[sound], drawn[sound]
        compact = minkowski_reduce(torch.from_numpy(drawn))[0].numpy()
        height = 1 / np.linalg.norm(np.linalg.inv(compact), axis=1).max(1)
        good = height > _FLATTEST * volume[chosen] ** (1 / 3)
        lattice[chosen[good]] = compact[good]
        missing = np.setdiff1d(missing, chosen[good])
    return lattice
