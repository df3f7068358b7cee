"""Other descriptions of one crystal, and what a model's answer must become under each.

A change turns, shifts, renumbers and re-cells in one formula that holds for a crystal and for what a model
makes of it:

    C' = M C Qᵀ        x' = (x[source] + step) M⁻¹

with M integers, Q a rotation (or, for a mirror image, its negative), and whole or real steps. A model is
equivariant where f(g·crystal) = g·f(crystal), invariant where numbers stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from facetry.crystal import Crystal
from facetry.geometry.primitive import primitive_cell
from facetry.geometry.space_group import has_mirror_operation

MOST_ATOMS = 400  # of a supercell; larger ones are not tried
EXACT, LOOSE = 1e-9, 1e-2  # Å; within the first a crystal is its mirror image, beyond the second it is not
_DIAGONAL = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (1, 2, 2), (2, 2, 2)]
_SLANTED = [
    [[1, 1, 0], [-1, 1, 0], [0, 0, 1]],
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
    [[1, 0, 0], [1, 2, 0], [0, 1, 1]],
    [[1, 1, 0], [-1, 1, 0], [0, 1, 2]],
]


@dataclass(frozen=True)
class Change:
    """One other description: lattice' = matrix @ lattice @ turnᵀ, x' = (x[source] + step) @ matrix⁻¹."""

    turn: Float[np.ndarray, "3 3"]
    matrix: Int[np.ndarray, "3 3"]
    source: Int[np.ndarray, " changed_atoms"]
    step: Float[np.ndarray, "changed_atoms 3"]  # in the old basis

    def lattice(self, lattice: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
        """Lattice rows in the new description, Å."""
        return self.matrix @ lattice @ self.turn.T

    def frac_coords(self, frac_coords: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "changed_atoms 3"]:
        """Fractional coordinates in the new description."""
        adjugate, determinant = _inverse(self.matrix)
        return (frac_coords[self.source] + self.step) @ adjugate / determinant

    def lattice_back(self, lattice: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
        """Lattice rows in the old description, Å."""
        adjugate, determinant = _inverse(self.matrix)
        return adjugate @ lattice @ self.turn / determinant

    def frac_coords_back(
        self, frac_coords: Float[np.ndarray, "changed_atoms 3"]
    ) -> Float[np.ndarray, "changed_atoms 3"]:
        """Fractional coordinates in the old description, of each atom of the new one beside its `source`."""
        return frac_coords @ self.matrix - self.step

    def __call__(self, crystal: Crystal) -> Crystal:
        """The same crystal (or its mirror image), described anew."""
        shares = crystal.occupancies
        return Crystal(
            self.lattice(crystal.lattice),
            self.frac_coords(crystal.frac_coords),
            crystal.atomic_numbers[self.source],
            None if shares is None else [shares[i] for i in self.source.tolist()],
            crystal.name,
        )


def _inverse(matrix: Int[np.ndarray, "3 3"]) -> tuple[Int[np.ndarray, "3 3"], int]:
    """Adjugate and determinant, in integers."""
    a, b, c = matrix
    adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    return adjugate, int(a @ adjugate[:, 0])


def _same(
    crystal: Crystal,
    *,
    turn: Float[np.ndarray, "3 3"] | None = None,
    matrix: Int[np.ndarray, "3 3"] | None = None,
    source: Int[np.ndarray, " atoms"] | None = None,
    step: Float[np.ndarray, "atoms 3"] | None = None,
) -> Change:
    return Change(
        np.eye(3) if turn is None else turn,
        np.eye(3, dtype=np.int64) if matrix is None else matrix,
        np.arange(len(crystal)) if source is None else source,
        np.zeros((len(crystal), 3)) if step is None else step,
    )


def random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Evenly distributed over all proper rotations."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def random_unimodular(rng: np.random.Generator, bound: int = 5) -> Int[np.ndarray, "3 3"]:
    """Integers up to ± bound with determinant ±1, evenly among all such matrices."""
    while True:
        drawn = rng.integers(-bound, bound + 1, size=(2000, 3, 3))
        good = np.flatnonzero(np.rint(np.abs(np.linalg.det(drawn))) == 1)
        if len(good):
            return drawn[good[0]]


def rotation(crystal: Crystal, rng: np.random.Generator) -> Change:
    """Turned by any rotation."""
    return _same(crystal, turn=random_rotation(rng))


def translation(crystal: Crystal, rng: np.random.Generator) -> Change:
    """Another origin, up to two cells away."""
    return _same(crystal, step=np.tile(rng.uniform(-2, 2, 3), (len(crystal), 1)))


def permutation(crystal: Crystal, rng: np.random.Generator) -> Change:
    """Atoms in another order."""
    return _same(crystal, source=rng.permutation(len(crystal)))


def lattice_vectors(crystal: Crystal, rng: np.random.Generator) -> Change:
    """Single atoms moved by up to three cells."""
    return _same(crystal, step=rng.integers(-3, 4, size=(len(crystal), 3)).astype(float))


def cell_choice(crystal: Crystal, rng: np.random.Generator) -> Change:
    """Another basis of the lattice, entries up to ±5, either handedness of the vectors."""
    return _same(crystal, matrix=random_unimodular(rng))


def mirror(crystal: Crystal, rng: np.random.Generator) -> Change:
    """The mirror image, turned."""
    return _same(crystal, turn=-random_rotation(rng))


def supercell_change(crystal: Crystal, matrix: Int[np.ndarray, "3 3"]) -> Change:
    """The supercell whose vectors are matrix @ lattice."""
    big = crystal.supercell(matrix)
    source = np.tile(np.arange(len(crystal)), len(big) // len(crystal))
    step = np.rint(big.frac_coords @ matrix - crystal.frac_coords[source])
    return Change(np.eye(3), np.asarray(matrix, dtype=np.int64), source, step)


def diagonal_supercell(crystal: Crystal, rng: np.random.Generator) -> Change | None:
    """Two to eight cells along the axes; None where it would be too large."""
    return _supercell(crystal, [np.diag(d) for d in _DIAGONAL], rng)


def slanted_supercell(crystal: Crystal, rng: np.random.Generator) -> Change | None:
    """Two to four cells along diagonals; None where it would be too large."""
    return _supercell(crystal, [np.array(m) for m in _SLANTED], rng)


def _supercell(
    crystal: Crystal, matrices: list[Int[np.ndarray, "3 3"]], rng: np.random.Generator
) -> Change | None:
    small = [m for m in matrices if abs(_inverse(m)[1]) * len(crystal) <= MOST_ATOMS]
    return supercell_change(crystal, small[rng.integers(len(small))]) if small else None


def primitive(crystal: Crystal) -> tuple[Crystal, Change] | None:
    """The primitive cell, and the change that leads from it back to the cell that was given; None for a
    crystal whose cell is primitive or whose sites are mixed. Atoms lie at the average of their copies."""
    if not crystal.is_ordered:
        return None
    found = primitive_cell(
        torch.tensor(crystal.lattice)[None],
        torch.tensor(crystal.frac_coords),
        torch.tensor(crystal.atomic_numbers),
        torch.tensor([len(crystal)]),
    )
    if int(found.multiplicity[0]) == 1:
        return None
    small = Crystal(
        found.lattice[0].numpy(), found.frac_coords.numpy(), found.atomic_numbers.numpy(), name=crystal.name
    )
    matrix = np.rint(crystal.lattice @ np.linalg.inv(small.lattice)).astype(np.int64)
    source = found.atom_map.numpy()
    step = np.rint(crystal.frac_coords @ matrix - small.frac_coords[source])
    return small, Change(np.eye(3), matrix, source, step)


def is_chiral(crystal: Crystal) -> bool | None:
    """Whether a crystal differs from its mirror image; None where it nearly is one (an operation that turns
    hands fits within 0.01 Å but not within 1e-9 Å) or where no symmetry is found."""
    if has_mirror_operation(crystal, EXACT):
        return False
    near = has_mirror_operation(crystal, LOOSE)
    return None if near is None or near else True


Draw = Callable[[Crystal, np.random.Generator], Change | None]
