"""Crystal to CIF, in P 1 with every site."""

from __future__ import annotations

import re

import numpy as np

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS

__all__ = ["write_cif"]


def write_cif(crystal: Crystal) -> str:
    """CIF text with all digits of the fractional coordinates, and partial occupancies.

    A CIF holds six cell parameters and no orientation: read again, a lies along x and b in the xy plane. A
    left-handed lattice is written with its three vectors and all coordinates reversed, which is the same
    arrangement of atoms in a right-handed cell.
    """
    sign = 1.0 if np.linalg.det(crystal.lattice) > 0 else -1.0
    frac = (crystal.frac_coords * sign + 0.0).tolist()  # + 0.0: no -0.0
    lengths, angles = crystal.lengths.tolist(), crystal.angles.tolist()
    block = re.sub(r"[^!-~]", "_", crystal.name or crystal.formula)[:70]
    species = (
        [{z: 1.0} for z in crystal.atomic_numbers.tolist()]
        if crystal.occupancies is None
        else crystal.occupancies
    )
    rows, counts = [], dict[str, int]()
    for position, site in zip(frac, species, strict=True):
        for number, share in site.items():
            symbol = SYMBOLS[number]
            counts[symbol] = counts.get(symbol, 0) + 1
            x, y, z = position
            rows.append(f"{symbol} {symbol}{counts[symbol]} {x!r} {y!r} {z!r} {share!r}")
    cell = [f"_cell_length_{axis} {value!r}" for axis, value in zip("abc", lengths, strict=True)]
    cell += [f"_cell_angle_{n} {v!r}" for n, v in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    content = " ".join(f"{SYMBOLS[z]}{n:.6g}" for z, n in crystal.composition.items())
    head = [
        f"data_{block}",
        f"_chemical_formula_sum '{content}'",
        "_cell_formula_units_Z 1",
        *cell,
        f"_cell_volume {crystal.volume!r}",
        "_symmetry_space_group_name_H-M 'P 1'",
        "_symmetry_Int_Tables_number 1",
        "loop_",
        "_symmetry_equiv_pos_as_xyz",
        "'x, y, z'",
        "loop_",
        "_atom_site_type_symbol",
        "_atom_site_label",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
    ]
    return "\n".join([*head, *rows]) + "\n"
