"""Space groups, found by moyopy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from facetry.crystal import Crystal

SYMPREC = 0.01  # Å


def find_symmetry(
    lattice: Float[np.ndarray, "3 3"],
    frac_coords: Float[np.ndarray, "sites 3"],
    atomic_numbers: Int[np.ndarray, " sites"],
    within: float = SYMPREC,
) -> Any | None:
    """The `moyopy.MoyoDataset` of a crystal, whose operations fit `within` so many Å; None for sites that
    coincide or a cell that is no lattice."""
    import moyopy

    # it warns of every supercell; its primitive cell is right
    logging.getLogger("moyo").setLevel(logging.ERROR)
    try:
        cell = moyopy.Cell(lattice.tolist(), frac_coords.tolist(), atomic_numbers.tolist())
        return moyopy.MoyoDataset(cell, symprec=within)
    except ValueError:
        return None


def space_group(crystal: Crystal) -> int | None:
    """Number of the space group within 0.01 Å; None where none is found or sites are mixed."""
    if not crystal.is_ordered:
        return None
    found = find_symmetry(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    return None if found is None else int(found.number)


def has_mirror_operation(crystal: Crystal, within: float = SYMPREC) -> bool | None:
    """Whether an operation that turns left hands into right ones (an inversion, a mirror, an improper axis)
    maps the crystal on itself `within` so many Å: whether it is its own mirror image. Mixed sites count as
    species of their own. None where no symmetry is found."""
    species = crystal.atomic_numbers
    if crystal.occupancies is not None:
        kinds: dict[tuple[tuple[int, float], ...], int] = {}
        mixtures = [tuple(sorted(site.items())) for site in crystal.occupancies]
        species = np.array([kinds.setdefault(m, len(kinds) + 1) for m in mixtures])
    found = find_symmetry(crystal.lattice, crystal.frac_coords, species, within)
    if found is None:
        return None
    return any(round(float(np.linalg.det(turn))) < 0 for turn in found.operations.rotations)
