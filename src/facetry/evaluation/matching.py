"""Are two crystals the same? pymatgen's StructureMatcher, asked only where its answer is open.

A pair costs milliseconds. The reduced primitive cell is made once per crystal here, and a pair goes to the
matcher only if three things that a match implies hold (`Reduced.may_match`):

1. The species occur in the same ratio. The primitive cell divides the count of every species by one number,
   and a match pairs every site with one of its own species.
2. The reduced primitive cells hold the same number of atoms, for the same reason.
3. A match maps a basis of one lattice on the reduced basis of the other, volumes made equal, each vector
   less than 1 + ltol times as long. Three independent vectors, sorted by length, are at least as long as the
   three successive minima of their lattice. So these are less than 1 + ltol times the sorted lengths of the
   other's basis. The lengths of a reduced cell are the minima where it is Minkowski-reduced, which is tested.

No torch here: worker processes import this module.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from facetry.crystal import Crystal

__all__ = ["ANGLE_TOLERANCE", "LENGTH_TOLERANCE", "SITE_TOLERANCE", "Matcher", "Reduced", "species_ratio"]

LENGTH_TOLERANCE, SITE_TOLERANCE, ANGLE_TOLERANCE = 0.3, 0.5, 10.0
"""ltol, stol and angle_tol (degrees) of every published match rate since CDVAE (Xie et al., ICLR 2022)."""

_SLACK = 1e-6  # relative; far above the rounding of lengths


def species_ratio(crystal: Crystal) -> tuple[tuple[str, int], ...]:
    """The elements on each kind of site and how often it occurs, divided by the common divisor: equal for
    all pairs that can match."""
    sites: Counter[Any]
    if crystal.occupancies is None:
        sites = Counter(crystal.atomic_numbers.tolist())
    else:  # of a mixed site the elements; shares are compared with a tolerance, by the matcher
        sites = Counter(tuple(sorted(site)) if len(site) > 1 else min(site) for site in crystal.occupancies)
    divisor = math.gcd(*sites.values())
    return tuple(sorted((str(kind), n // divisor) for kind, n in sites.items()))


@dataclass(frozen=True, eq=False)
class Reduced:
    """A crystal in pymatgen's reduced primitive cell."""

    structure: Any

    @cached_property
    def species(self) -> dict[Any, int]:
        """How often each set of elements shares a site of the primitive cell."""
        return dict(
            Counter(tuple(sorted(e.symbol for e in site.species.elements)) for site in self.structure)
        )

    @cached_property
    def lengths(self) -> Float[np.ndarray, "3"]:
        """Sorted lengths of the cell's vectors over the cube root of its volume."""
        lattice = self.structure.lattice
        return np.sort(lattice.abc) / lattice.volume ** (1 / 3)

    @cached_property
    def minima(self) -> Float[np.ndarray, "3"] | None:
        """The lengths where they are the successive minima of the lattice, else None.

        They are if no sum or difference of vectors is shorter than the longest in it (Minkowski 1905).
        """
        matrix = self.structure.lattice.matrix
        a, b, c = matrix[np.argsort((matrix**2).sum(1))]
        sums = [b + a, b - a, c + a, c - a, c + b, c - b, c + a + b, c + a - b, c - a + b, c - a - b]
        longest = np.linalg.norm([b] * 2 + [c] * 8, axis=1)
        if (np.linalg.norm(sums, axis=1) < longest * (1 - _SLACK)).any():
            return None
        return self.lengths

    def may_match(self, other: Reduced, length_tolerance: float) -> bool:
        """False only where the matcher would find nothing."""
        if len(self.structure) != len(other.structure) or self.species != other.species:
            return False
        bound = (1 + length_tolerance) * (1 + 2 * _SLACK)
        # The matcher looks among the vectors of the first for the basis of the second.
        return self.minima is None or bool((self.minima < bound * other.lengths).all())


class Matcher:
    """Root mean square distances of pairs, equal to those of pymatgen's `StructureMatcher.get_rms_dist`.

    Args:
        length_tolerance: ltol, relative.
        site_tolerance: stol, in units of the cube root of the volume per atom.
        angle_tolerance: angle_tol, in degrees.
        filtered: False sends every pair to pymatgen.

    Raises ImportError with the command to type where pymatgen-core is missing.
    """

    def __init__(
        self,
        length_tolerance: float | int = LENGTH_TOLERANCE,
        site_tolerance: float | int = SITE_TOLERANCE,
        angle_tolerance: float | int = ANGLE_TOLERANCE,
        filtered: bool = True,
    ) -> None:
        self.length_tolerance, self.filtered = float(length_tolerance), filtered
        self._matcher = _matcher_class()(
            ltol=length_tolerance, stol=site_tolerance, angle_tol=angle_tolerance
        )

    def reduce(self, crystal: Crystal) -> Reduced:
        """The cell in which the matcher compares: Niggli-reduced, then primitive within 0.25 Å."""
        return Reduced(self._matcher.reduced(crystal.to_pymatgen()))

    def distance(self, first: Reduced, second: Reduced) -> float | None:
        """Root mean square distance of paired sites over (volume per atom)^(1/3); None for no match."""
        if self.filtered and not first.may_match(second, self.length_tolerance):
            return None
        found = self._matcher.get_rms_dist(first.structure, second.structure)
        return None if found is None else float(found[0])


@cache
def _matcher_class() -> Any:
    """A StructureMatcher that takes structures which are reduced already; made when pymatgen is needed."""
    try:
        try:
            from pymatgen.core.structure_matcher import StructureMatcher
        except ModuleNotFoundError:  # before it moved to the core
            from pymatgen.analysis.structure_matcher import StructureMatcher
    except ImportError as error:
        raise ImportError(
            "matching needs pymatgen: `pip install 'facetry[csp]'`, or `pip install pymatgen-core` (after an "
            "upgrade of an old pymatgen: `pip install --force-reinstall --no-deps pymatgen-core`)"
        ) from error

    class OnReduced(StructureMatcher):
        """Reducing a reduced cell gives it again, so it is left out."""

        @staticmethod
        def reduced(structure: Any) -> Any:
            return StructureMatcher._get_reduced_structure(structure, primitive_cell=True, niggli=True)

        @classmethod
        def _get_reduced_structure(cls, struct: Any, primitive_cell: bool = True, niggli: bool = True) -> Any:
            return struct  # a copy that get_rms_dist has made for itself

    return OnReduced
