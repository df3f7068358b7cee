"""Compositions as numbers: how much of which element, and how the elements' properties spread."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int

from facetry.elements import MASSES
from facetry.nn.element_table import ELEMENT_ROWS, element_features, element_properties

__all__ = ["composition_features", "element_fractions"]

_MEASURED = ("electronegativity", "covalent_radius", "ionization_energy", "electron_affinity", "molar_volume")
_GROUP, _PERIOD, _VALENCE, _BLOCK = slice(0, 19), slice(19, 26), slice(46, 58), slice(78, 82)


def element_fractions(
    atomic_numbers: Int[np.ndarray, " atoms"], num_atoms: Int[np.ndarray, " crystals"]
) -> Float[np.ndarray, "crystals elements"]:
    """The share of every element in the atoms of every crystal; the column is the atomic number."""
    owner = np.repeat(np.arange(len(num_atoms)), num_atoms)
    place = owner * ELEMENT_ROWS + atomic_numbers
    counts = np.bincount(place, minlength=len(num_atoms) * ELEMENT_ROWS).reshape(-1, ELEMENT_ROWS)
    return counts / np.maximum(num_atoms, 1)[:, None]


@cache
def _properties() -> Float[np.ndarray, "elements properties"]:
    """Atomic number, mass, group, period, valence electrons and measured numbers; the middle where none is
    known."""
    table = element_features()
    columns = [np.arange(ELEMENT_ROWS, dtype=np.float64), np.array(MASSES[:ELEMENT_ROWS], dtype=np.float64)]
    columns += [
        table[:, part].argmax(1) + first for part, first in ((_GROUP, 0), (_PERIOD, 1), (_VALENCE, 1))
    ]
    columns += [element_properties(name) for name in _MEASURED]
    values = np.stack([np.resize(c, ELEMENT_ROWS).astype(np.float64) for c in columns], axis=1)
    return np.where(np.isnan(values), np.nanmedian(values[1:], axis=0), values)


def composition_features(
    atomic_numbers: Int[np.ndarray, " atoms"], num_atoms: Int[np.ndarray, " crystals"]
) -> Float[np.ndarray, "crystals features"]:
    """What a composition says of itself, in the manner of Ward et al. (npj Comput. Mater. 2 (2016) 16028).

    Of ten properties of the elements the mean, mean deviation, least, largest and their difference, and the
    value of the most frequent element; shares of s, p, d and f elements; number of elements and norms of the
    fractions; the fractions themselves. Equal for all cells and all structures of a composition.
    """
    fractions = element_fractions(atomic_numbers, num_atoms)
    values = _properties()
    there = fractions > 0
    mean = fractions @ values
    low = np.stack([np.where(there, v, np.inf).min(1) for v in values.T], axis=1)
    high = np.stack([np.where(there, v, -np.inf).max(1) for v in values.T], axis=1)
    spread = np.stack(
        [(fractions * np.abs(v - m[:, None])).sum(1) for v, m in zip(values.T, mean.T, strict=True)], axis=1
    )
    # of equally frequent elements the most electronegative counts: the order of atoms must not matter
    most = (np.round(fractions, 9) + 1e-6 * values[:, 5]).argmax(1)
    blocks = fractions @ element_features()[:, _BLOCK]
    norms = [there.sum(1), np.sqrt((fractions**2).sum(1)), np.cbrt((fractions**3).sum(1)), fractions.max(1)]
    used = fractions[:, 1:]
    return np.concatenate(
        [mean, spread, low, high, high - low, values[most], blocks, np.stack(norms, axis=1), used], axis=1
    )
