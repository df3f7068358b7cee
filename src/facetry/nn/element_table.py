"""92 binary features per element: position in the periodic table and binned measured numbers.

    0..18    group                  one-hot; 0 = La to Yb and Ac to No, Lu and Lr are group 3
    19..25   period                 1 to 7
    26..35   electronegativity      10 bins of 0.35 on 0.5 to 4.0 (Pauling)
    36..45   covalent radius        10 bins of 22.5 on 25 to 250 pm
    46..57   valence electrons      1 to 12
    58..67   ionisation energy      10 bins of 0.2 of ln(E/eV) on 1.3 to 3.3
    68..77   electron affinity      10 bins of 0.67 on -3 to 3.7 eV
    78..81   block                  s, p, d, f; He counts as s, La and Ac as f
    82..91   molar volume           10 bins of 0.28 of ln(V / cm³/mol) on 1.5 to 4.3

This is the layout of the element table of CGCNN (Xie and Grossman, Phys. Rev. Lett. 120 (2018) 145301),
filled anew from public numbers (elements.csv, which names their sources). A number that nobody knows leaves
its ten slots zero. A number on the border of two bins belongs to the lower one.

Of the 100 rows that were published 88 agree entirely. The others differ in one property: Mn and Xe
(electronegativity) and Ac (electron affinity) lie on a border and are one bin higher there; He, F, Br and Np
have another molar volume (newer densities), and Pm, Rn, Pu, Bk and Cf have one, which are empty there.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["ELEMENT_FEATURES", "ELEMENT_ROWS", "element_features", "element_properties"]

ELEMENT_ROWS = 119
"""Rows of the table: one for every atomic number from 1 to 118 after an empty row 0."""

ELEMENT_FEATURES = 92
"""Columns of the table."""


class _Bins(NamedTuple):
    """Ten bins from `low` on, of the logarithm where `log` is set; `start` is the first slot."""

    start: int
    low: float
    width: float
    log: bool


_BINNED = {
    "electronegativity": _Bins(26, 0.5, 0.35, False),
    "covalent_radius": _Bins(36, 25.0, 22.5, False),
    "ionization_energy": _Bins(58, 1.3, 0.2, True),
    "electron_affinity": _Bins(68, -3.0, 0.67, False),
    "molar_volume": _Bins(82, 1.5, 0.28, True),
}
_GROUP, _PERIOD, _VALENCE, _BLOCK = 0, 19 - 1, 46 - 1, 78  # the slot of the number 0
_COUNT = 10


@cache
def _rows() -> list[dict[str, str]]:
    text = files("facetry.nn").joinpath("elements.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def element_properties(name: str) -> Float[np.ndarray, "rows"]:
    """A measured property of all elements, indexed by atomic number; NaN where none is known.

    Names: electronegativity (Pauling), covalent_radius (pm), ionization_energy (eV),
    electron_affinity (eV), molar_volume (cm³/mol). Sources: the head of elements.csv.
    """
    if name not in _BINNED:
        raise ValueError(f"no element property {name!r}; known are {', '.join(_BINNED)}")
    values = np.full(ELEMENT_ROWS, np.nan)
    for row in _rows():
        if row[name]:
            values[int(row["atomic_number"])] = float(row[name])
    return values


def element_features() -> Float[np.ndarray, "rows features"]:
    """The features of all elements, (119, 92) zeros and ones; the row is the atomic number, row 0 is zero."""
    table = np.zeros((ELEMENT_ROWS, ELEMENT_FEATURES))
    for row in _rows():
        z = int(row["atomic_number"])
        table[z, _GROUP + int(row["group"])] = 1
        table[z, _PERIOD + int(row["period"])] = 1
        table[z, _VALENCE + int(row["valence_electrons"])] = 1
        table[z, _BLOCK + "spdf".index(row["block"])] = 1
    for name, (start, low, width, log) in _BINNED.items():
        values = element_properties(name)
        known = np.flatnonzero(np.isfinite(values))
        scaled = np.log(values[known]) if log else values[known]
        # Borders are decimal fractions: the tolerance makes "on the border" independent of their round-off.
        place = np.ceil((scaled - low) / width - 1e-9).astype(int) - 1
        inside = (place >= 0) & (place < _COUNT)
        table[known[inside], start + place[inside]] = 1
    return table
