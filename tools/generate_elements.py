"""Writes src/facetry/nn/elements.csv, the physical numbers behind the 92 element features.

    pip install mendeleev        # only for this script, no dependency of the package
    python tools/generate_elements.py

Everything is read from mendeleev (MIT), which compiles public tables, except two kinds of numbers that
its tables do not hold in the form needed: densities of gases are those of the liquid at its boiling point
(below), and group, valence electrons and block follow the conventions of the feature table.
"""

from __future__ import annotations

from pathlib import Path

from mendeleev.fetch import fetch_table

TARGET = Path(__file__).resolve().parents[1] / "src/facetry/nn/elements.csv"

# Liquid at the normal boiling point, g/cm³ (CRC Handbook of Chemistry and Physics; Rn about 4.4).
LIQUID_DENSITY = {
    1: 0.0708, 2: 0.125, 7: 0.807, 8: 1.141, 9: 1.505, 10: 1.207, 17: 1.5625, 18: 1.396, 36: 2.413,
    54: 3.057, 86: 4.4,
}  # fmt: skip

# Densities in mendeleev that nobody measured.
ESTIMATED_DENSITY = {85, 87, *range(99, 119)}

# Energies of metastable anions far below any bin (He, Ar) and a calculation for Og: no electron affinities.
NO_AFFINITY = {2, 18, 118}

HEADER = """\
# Elements: positions in the periodic table and measured numbers; an empty cell means that none is known.
# Written by tools/generate_elements.py from mendeleev {version} (MIT) and the sources named here.
# group: IUPAC number; 0 for La to Yb and Ac to No, so that Lu and Lr are group 3
# valence_electrons: s and p electrons of the outer shell in the s and p blocks; the group number in groups 3
#   to 12, but 12 for Pd (4d10 5s0 and two free s states); 2 in the f block
# electronegativity: Pauling scale, as compiled by mendeleev
# covalent_radius: pm, single bonds; Pyykkö and Atsumi, Chem. Eur. J. 15 (2009) 186
# ionization_energy: eV, first; NIST Atomic Spectra Database (above Z = 100 partly calculated)
# electron_affinity: eV; CRC Handbook, and Andersen, Phys. Rep. 394 (2004) 157 where it is negative
# molar_volume: cm³/mol, standard atomic weight over density at room temperature (CRC Handbook), for gases
#   over that of the liquid at its boiling point
"""
COLUMNS = (
    "atomic_number,symbol,group,period,block,valence_electrons,electronegativity,covalent_radius,"
    "ionization_energy,electron_affinity,molar_volume"
)


def position(z: int) -> tuple[int, int, str, int]:
    """Group (0 in the f block), period, block and valence electrons, from the closed noble-gas shells."""
    closed = [0, 2, 10, 18, 36, 54, 86, 118]
    period = next(p for p in range(1, 8) if z <= closed[p])
    place, left = z - closed[period - 1], closed[period] - z  # from the alkali metal, to the noble gas
    if z == 2:
        return 18, 1, "s", 2
    if place <= 2:
        return place, period, "s", place
    if left <= 5:
        return 18 - left, period, "p", 8 - left
    group = 18 - left
    if group < 3:
        return 0, period, "f", 2
    return group, period, "d", 12 if z == 46 else group


def text(value: float, digits: int) -> str:
    return "" if value != value else f"{value:.{digits}g}"


def main() -> None:
    import mendeleev

    elements = fetch_table("elements").set_index("atomic_number")
    first = fetch_table("ionizationenergies").query("ion_charge == 0").set_index("atomic_number")
    nan = float("nan")
    lines = []
    for z in range(1, 119):
        row = elements.loc[z]
        density = LIQUID_DENSITY.get(z, nan if z in ESTIMATED_DENSITY else row.density)
        group, period, block, valence = position(z)
        numbers = [
            text(row.en_pauling, 4),
            text(round(row.covalent_radius_pyykko), 4),
            text(first.ionization_energy.get(z, nan), 6),
            text(nan if z in NO_AFFINITY else row.electron_affinity, 6),
            text(row.atomic_weight / density, 4),
        ]
        lines.append(",".join([str(z), row.symbol, str(group), str(period), block, str(valence), *numbers]))
    version = mendeleev.__version__
    TARGET.write_text("\n".join([HEADER.format(version=version) + COLUMNS, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
