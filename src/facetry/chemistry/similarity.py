"""Which elements can take each other's place in a structure."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from facetry.nn.element_table import ELEMENT_ROWS, element_features, element_properties

__all__ = ["element_distances"]

# One unit of distance: about what separates neighbours of one group (Mg and Ca) in each property.
_ELECTRONEGATIVITY, _RADIUS, _VALENCE = 0.3, 0.20, 1.0
_BLOCKS, _SLOTS = slice(78, 82), slice(46, 58)
_D, _F = 2, 3  # blocks
_UNKNOWN = 1.5  # electronegativity of an element of which none is known


@cache
def element_distances() -> Float[np.ndarray, "rows rows"]:
    """How unlike two elements are, by atomic number: 0 for the same, about 1 for close relatives, 5 and more
    for strangers. Row 0 is no element.

    A Euclidean distance of properties of the element table, each in the unit that separates close relatives:
    Pauling electronegativity / 0.3, ln covalent radius / 0.2, valence electrons / 1 (2 in group 12, whose d
    shell is closed; 3 in the f block); elements of different blocks are 1 further apart.
    """
    table = element_features()
    block = table[:, _BLOCKS].argmax(1)
    valence = table[:, _SLOTS].argmax(1) + 1.0
    valence[block == _F] = 3.0
    valence[(block == _D) & (valence == 12) & (table[:, 12] == 1)] = 2.0
    electronegativity = element_properties("electronegativity")
    electronegativity[np.isnan(electronegativity)] = _UNKNOWN
    radius = element_properties("covalent_radius")
    radius[np.isnan(radius)] = 150.0
    place = np.stack(
        [electronegativity / _ELECTRONEGATIVITY, np.log(radius) / _RADIUS, valence / _VALENCE], axis=1
    )
    squares = ((place[:, None] - place[None]) ** 2).sum(-1) + (block[:, None] != block[None])
    assert squares.shape == (ELEMENT_ROWS, ELEMENT_ROWS)
    return np.sqrt(squares)
