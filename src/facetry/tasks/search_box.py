"""Where optimisers look for structures: lattice parameters and fractional coordinates in a box.

A point is six numbers for a, b, c and α, β, γ and three for each atom but the first, which is at the origin;
all of them from 0 to 1. No energy is asked for where atoms are nearer than `closest` times the sum of their
covalent radii, and of cells that do not close, are flat, or have more than twice or less than half of the
expected volume.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from facetry.chemistry import Formula, expected_volume
from facetry.chemistry.volume import covalent_radii
from facetry.crystal import Crystal
from facetry.tasks.energies import Energies
from facetry.tasks.random_search import RandomSearch

__all__ = ["BoxSearch", "SearchBox"]

_SHORT, _LONG = 0.4, 2.2  # lengths in units of the cube root of the expected volume
_SHARP, _BLUNT = 50.0, 130.0  # angles in degrees; reduced cells have 60 to 120
_VOLUME = 2.0
_FLATTEST = 0.3  # height of a cell over the cube root of its volume
_IMAGES = np.array(list(np.ndindex(3, 3, 3))) - 1
_AT_ONCE = 1_000_000  # distances


class SearchBox:
    """The box for the atoms of a formula. Points of random search are its starts."""

    def __init__(self, formula: Formula, closest: float = 0.6) -> None:
        self.formula, self.closest = formula, closest
        self.numbers = np.array(formula.numbers())
        self.edge = float(expected_volume(self.numbers)) ** (1 / 3)
        self.size = 6 + 3 * (len(self.numbers) - 1)
        self.periodic = np.arange(self.size) >= 6

    def cells(self, points: Float[np.ndarray, "points size"]) -> Float[np.ndarray, "points 3 3"]:
        """Rows a, b, c: a along x, b in the plane of x and y. NaN where the angles do not close."""
        a, b, c = (self.edge * _SHORT * (_LONG / _SHORT) ** points[:, :3]).T
        angles = np.radians(_SHARP + (_BLUNT - _SHARP) * points[:, 3:6])
        cos = np.cos(angles)
        sin = np.sin(angles[:, 2])
        y = (cos[:, 0] - cos[:, 1] * cos[:, 2]) / sin
        with np.errstate(invalid="ignore"):
            z = np.sqrt(1 - cos[:, 1] ** 2 - y**2)
        zero = np.zeros(len(points))
        rows = [a, zero, zero, b * cos[:, 2], b * sin, zero, c * cos[:, 1], c * y, c * z]
        return np.stack(rows, 1).reshape(-1, 3, 3)

    def coordinates(self, points: Float[np.ndarray, "points size"]) -> Float[np.ndarray, "points atoms 3"]:
        """Fractional, the first atom at the origin."""
        rest = points[:, 6:].reshape(len(points), len(self.numbers) - 1, 3)
        return np.concatenate([np.zeros((len(points), 1, 3)), rest], 1)

    def crystals(self, points: Float[np.ndarray, "points size"]) -> list[Crystal]:
        """The crystals of points that are `allowed`."""
        pairs = zip(self.cells(points), self.coordinates(points), strict=True)
        return [Crystal(cell, frac, self.numbers) for cell, frac in pairs]

    def allowed(self, points: Float[np.ndarray, "points size"]) -> Bool[np.ndarray, " points"]:
        """Whether a point stands for a crystal."""
        cells = np.nan_to_num(self.cells(points))
        volume = np.linalg.det(cells)
        share = volume / self.edge**3
        sound = (share > 1 / _VOLUME) & (share < _VOLUME)
        rows = np.flatnonzero(sound)
        heights = 1 / np.linalg.norm(np.linalg.inv(cells[rows]), axis=1).max(1)
        sound[rows] &= heights > _FLATTEST * volume[rows] ** (1 / 3)
        rows = np.flatnonzero(sound)
        piece = max(_AT_ONCE // (27 * len(self.numbers) ** 2), 1)
        for start in range(0, len(rows), piece):
            chosen = rows[start : start + piece]
            sound[chosen] = self._apart(cells[chosen], self.coordinates(points[chosen]))
        return sound

    def _apart(self, cells: np.ndarray, frac: np.ndarray) -> np.ndarray:
        """Whether all atoms, and images of one atom, keep their distance."""
        delta = frac[:, None] - frac[:, :, None]
        delta -= np.round(delta)
        vectors = (delta[:, :, :, None] + _IMAGES) @ cells[:, None, None]
        squared = (vectors**2).sum(-1)
        own = np.arange(len(self.numbers))
        squared[:, own, own, len(_IMAGES) // 2] = np.inf
        radius = self.closest * covalent_radii()[self.numbers]
        return (squared.min(-1) > (radius[:, None] + radius) ** 2).all((1, 2))

    def points(self, crystals: list[Crystal]) -> Float[np.ndarray, "points size"]:
        """Where crystals with these atoms lie; outside of the box at its border."""
        lengths = np.array([c.lengths for c in crystals])
        angles = np.array([c.angles for c in crystals])
        frac = np.array([(c.frac_coords - c.frac_coords[0])[1:].ravel() for c in crystals])
        by_length = np.log(lengths / (self.edge * _SHORT)) / np.log(_LONG / _SHORT)
        by_angle = (angles - _SHARP) / (_BLUNT - _SHARP)
        fixed = np.clip(np.concatenate([by_length, by_angle], 1), 0, 1)
        return np.concatenate([fixed, frac.reshape(len(crystals), -1) % 1.0], 1)

    def starts(self, count: int, seed: int) -> Float[np.ndarray, "points size"]:
        """Random structures with room for their atoms."""
        found: list[np.ndarray] = []
        drawn = RandomSearch(closest=max(self.closest, 0.75)).candidates(self.formula, count, seed)
        for _ in range(20):
            points = self.points([candidate.crystal for candidate in islice(drawn, count)])
            found += list(points[self.allowed(points)])
            if len(found) >= count:
                break
        if not found:
            raise ValueError(f"{self.formula}: no room for its atoms at closest={self.closest:g}; lower it")
        return np.array((found * count)[:count])


class BoxSearch:
    """What methods share that minimise an energy in a box; `closest` as in `SearchBox`."""

    def __init__(self, energy: Any, closest: float | int, batch_size: int | None, device: Any) -> None:
        if not 0 <= closest <= 1.2:
            raise ValueError(f"closest: expected a share from 0 to 1.2, got {closest}")
        self.energies = Energies(energy, batch_size, device)
        self.closest = float(closest)

    @property
    def energy_unit(self) -> str:
        """Of the energy that is minimised."""
        return self.energies.unit

    def box(self, formula: Formula, atoms: int | None) -> SearchBox:
        """Where structures of a formula are looked for."""
        return SearchBox(formula if atoms is None else formula.with_atoms(atoms), self.closest)

    def nothing(self, formula: Formula, atoms: int | None) -> str:
        """Why there are no candidates for a formula."""
        return "the energy has no value for any structure of it"


def energies_at(box: SearchBox, points: Any, energies: Any) -> Float[np.ndarray, " points"]:
    """One energy a point, infinite where there is none; those that are not allowed are not computed."""
    values = np.full(len(points), np.inf)
    rows = np.flatnonzero(box.allowed(points))
    found = energies(box.crystals(points[rows]))
    values[rows] = [np.inf if value is None else value for value in found]
    return values
