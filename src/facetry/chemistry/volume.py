"""How much room atoms take before anything is known of the structure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from facetry.nn.element_table import element_properties

__all__ = ["covalent_radii", "expected_volume"]

# Least squares of the relative error on the 9047 crystals of MP-20's validation set. On its test set half
# of all volumes are met within 13 %, of Perov-5 within 16 %.
_PER_CUBE, _PER_ATOM = 5.26, 5.70  # Å³ per Å³, Å³


@cache
def covalent_radii() -> Float[np.ndarray, "rows"]:
    """Single-bond covalent radii in Å (Pyykkö and Atsumi 2009) by atomic number; NaN in row 0."""
    return element_properties("covalent_radius") / 100


def expected_volume(atomic_numbers: Sequence[int] | Int[np.ndarray, " atoms"]) -> float:
    """Volume of a cell with these atoms, in Å³: the sum of 5.26 r³ + 5.70 Å³, r the covalent radius."""
    radius = covalent_radii()[np.asarray(atomic_numbers)]
    return float((_PER_CUBE * radius**3 + _PER_ATOM).sum())
