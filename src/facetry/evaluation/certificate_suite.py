"""Crystals on which symmetry is measured: textbook structures, where lattice vectors tie, and hard cells.

Positions are exact: fractions, or one free parameter put through the symmetry of the site, so that equal
distances are equal to the last bits. Cells and parameters are those of the structures at room temperature,
rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from facetry.crystal import Crystal
from facetry.elements import atomic_number

Number = float | int
Rows = Sequence[Sequence[Number]]


def suite() -> list[Crystal]:
    """Forty-odd crystals of 1 to 20 atoms; chiral ones in both hands."""
    return [
        *_cubic(),
        *_hexagonal(),
        *_trigonal(),
        *_lower(),
        *_chiral(),
        *_without_symmetry(),
        *_hard_cells(),
    ]


def cell(
    a: Number, b: Number, c: Number, alpha: Number = 90, beta: Number = 90, gamma: Number = 90
) -> Float[np.ndarray, "3 3"]:
    """Rows for lengths in Å and angles in degrees; right angles and 120° are exact to rounding."""
    exact = {90: 0.0, 120: -0.5, 60: 0.5}
    ca, cb, cg = (exact.get(v, float(np.cos(np.radians(v)))) for v in (alpha, beta, gamma))
    sg = np.sqrt(1 - cg**2)
    y = (ca - cb * cg) / sg
    return np.array([[a, 0, 0], [b * cg, b * sg, 0], [c * cb, c * y, c * np.sqrt(1 - cb**2 - y**2)]])


def fcc(a: Number) -> Float[np.ndarray, "3 3"]:
    """Primitive rows of the face-centred cubic lattice."""
    return a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])


def bcc(a: Number, c: Number | None = None) -> Float[np.ndarray, "3 3"]:
    """Primitive rows of the body-centred cubic lattice, or tetragonal with another c."""
    return np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1.0]]) * np.array([a, a, a if c is None else c]) / 2


def _made(name: str, lattice: Float[np.ndarray, "3 3"], elements: str, positions: Rows) -> Crystal:
    return Crystal(lattice, positions, [atomic_number(s) for s in elements.split()], name=name)


def _cubic() -> list[Crystal]:
    corner, center = [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]
    faces = [corner, [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    u = 0.385  # of pyrite, Pa-3
    pyrite = [[u, u, u], [0.5 - u, -u, 0.5 + u], [-u, 0.5 + u, 0.5 - u], [0.5 + u, 0.5 - u, -u]]
    pyrite += [[-x for x in row] for row in pyrite]
    salt = [*faces, *([x + 0.5 for x in row] for row in faces)]
    return [
        _made("Po, simple cubic", cell(3.35, 3.35, 3.35), "Po", [corner]),
        _made("Cu, fcc", fcc(3.61), "Cu", [corner]),
        _made("Cu, conventional cell", cell(3.61, 3.61, 3.61), "Cu Cu Cu Cu", faces),
        _made("Fe, bcc", bcc(2.87), "Fe", [corner]),
        _made("CsCl", cell(4.12, 4.12, 4.12), "Cs Cl", [corner, center]),
        _made("NaCl", fcc(5.64), "Na Cl", [corner, center]),
        _made("NaCl, conventional cell", cell(5.64, 5.64, 5.64), "Na Na Na Na Cl Cl Cl Cl", salt),
        _made("Si", fcc(5.43), "Si Si", [corner, [0.25, 0.25, 0.25]]),
        _made("ZnS, zincblende", fcc(5.41), "Zn S", [corner, [0.25, 0.25, 0.25]]),
        _made("CaF2", fcc(5.46), "Ca F F", [corner, [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]]),
        _made(
            "Cu2O",
            cell(4.27, 4.27, 4.27),
            "O O Cu Cu Cu Cu",
            [corner, center, [0.25, 0.25, 0.25], [0.75, 0.75, 0.25], [0.75, 0.25, 0.75], [0.25, 0.75, 0.75]],
        ),
        _made("FeS2, pyrite", cell(5.42, 5.42, 5.42), "Fe Fe Fe Fe S S S S S S S S", [*faces, *pyrite]),
        _made("SrTiO3", cell(3.905, 3.905, 3.905), "Sr Ti O O O", [corner, center, *faces[1:]]),
    ]


def _hexagonal() -> list[Crystal]:
    one, two = [1 / 3, 2 / 3], [2 / 3, 1 / 3]

    def hexagonal(a: Number, c: Number) -> Float[np.ndarray, "3 3"]:
        return cell(a, a, c, 90, 90, 120)

    wurtzite = [[*one, 0.0], [*two, 0.5], [*one, 0.375], [*two, 0.875]]
    layers = [[*one, 0.25], [*two, 0.75], [*one, 0.621], [*one, 0.879], [*two, 0.121], [*two, 0.379]]
    return [
        _made("Mg, hcp", hexagonal(3.21, 5.21), "Mg Mg", [[*one, 0.25], [*two, 0.75]]),
        _made("ZnS, wurtzite", hexagonal(3.81, 6.24), "Zn Zn S S", wurtzite),
        _made("WC, c < a", hexagonal(2.906, 2.837), "W C", [[0, 0, 0], [*one, 0.5]]),
        _made("Ti, omega, c < a", hexagonal(4.62, 2.83), "Ti Ti Ti", [[0, 0, 0], [*one, 0.5], [*two, 0.5]]),
        _made("MgB2", hexagonal(3.086, 3.524), "Mg B B", [[0, 0, 0], [*one, 0.5], [*two, 0.5]]),
        _made(
            "C, graphite", hexagonal(2.46, 6.71), "C C C C",
            [[0, 0, 0.25], [0, 0, 0.75], [*one, 0.25], [*two, 0.75]],
        ),
        _made("MoS2, layers", hexagonal(3.16, 12.3), "Mo Mo S S S S", layers),
    ]  # fmt: skip


def _trigonal() -> list[Crystal]:
    def rhombohedral(a: Number, angle: Number) -> Float[np.ndarray, "3 3"]:
        """Three vectors around (1, 1, 1), each obtained from the other by exchange of axes."""
        c = np.cos(np.radians(angle))
        # (p, q, q) with p² + 2 q² = 1 and q² + 2 p q = c
        p = (np.sqrt(1 + 2 * c) + 2 * np.sqrt(1 - c)) / 3
        q = (np.sqrt(1 + 2 * c) - np.sqrt(1 - c)) / 3
        return a * np.array([[p, q, q], [q, p, q], [q, q, p]])

    def along(*values: Number) -> Rows:
        return [[v, v, v] for v in values]

    x = 0.2578 + 0.25  # of calcite
    oxygen = [[x, 0.5 - x, 0.25], [0.25, x, 0.5 - x], [0.5 - x, 0.25, x]]
    oxygen += [[-v for v in row] for row in oxygen]
    return [
        _made("Hg, one atom", rhombohedral(3.005, 70.53), "Hg", along(0.0)),
        _made("As", rhombohedral(4.13, 54.12), "As As", along(0.227, -0.227)),
        _made("Bi2Te3, layers", rhombohedral(10.48, 24.16), "Bi Bi Te Te Te",
              along(0.4, -0.4, 0.0, 0.212, -0.212)),
        _made("rhombohedral, 100°", rhombohedral(4.7, 100), "As Te", along(0.0, 0.23)),
        _made("CaCO3, calcite", rhombohedral(6.375, 46.08), "Ca Ca C C O O O O O O",
              [*along(0.0, 0.5, 0.25, 0.75), *oxygen]),
    ]  # fmt: skip


def _lower() -> list[Crystal]:
    u = 0.305  # of rutile
    rutile = [
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [u, u, 0],
        [-u, -u, 0],
        [0.5 + u, 0.5 - u, 0.5],
        [0.5 - u, 0.5 + u, 0.5],
    ]

    def pnma(x: Number, y: Number, z: Number) -> Rows:
        found = [[x, y, z], [0.5 - x, -y, 0.5 + z], [-x, 0.5 + y, -z], [0.5 + x, 0.5 - y, 0.5 - z]]
        return found if y == 0.25 else [*found, *([-v for v in row] for row in found)]

    def p21c(x: Number, y: Number, z: Number) -> Rows:
        return [[x, y, z], [-x, 0.5 + y, 0.5 - z], [-x, -y, -z], [x, 0.5 - y, 0.5 + z]]

    v = 0.208  # of anatase, in the body-centred cell
    body = bcc(3.785, 9.514)
    cart = np.array(
        [[0, 0, 0], [0, 0.5, 0.25], [0, 0, v], [0, 0, -v], [0, 0.5, 0.25 + v], [0, 0.5, 0.25 - v]]
    )
    anatase = np.linalg.solve(body.T, (cart * [3.785, 3.785, 9.514]).T).T.round(12).tolist()
    ferroelectric = [[0, 0, 0], [0.5, 0.5, 0.5377], [0.5, 0.5, 0.1118], [0.5, 0, 0.6174], [0, 0.5, 0.6174]]
    titanate = [*pnma(0.0359, 0.25, 0.9929), [0, 0, 0.5], [0.5, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0],
                *pnma(0.4838, 0.25, 0.0713), *pnma(0.2889, 0.0372, 0.7111)]  # fmt: skip
    zirconia = [*p21c(0.2754, 0.0395, 0.2083), *p21c(0.0700, 0.3317, 0.3447), *p21c(0.4496, 0.7569, 0.4792)]
    low = np.array([[0.11, 0.23, 0.35], [0.62, 0.31, 0.17], [0.27, 0.71, 0.44]])
    return [
        _made("TiO2, rutile", cell(4.594, 4.594, 2.959), "Ti Ti O O O O", rutile),
        _made("TiO2, anatase", body, "Ti Ti O O O O", anatase),
        _made("PbTiO3, tetragonal", cell(3.904, 3.904, 4.152), "Pb Ti O O O", ferroelectric),
        _made("CaTiO3, orthorhombic", cell(5.44, 7.64, 5.38),
              " ".join(["Ca"] * 4 + ["Ti"] * 4 + ["O"] * 12), titanate),
        _made("ZrO2, monoclinic", cell(5.15, 5.21, 5.32, 90, 99.2, 90), "Zr Zr Zr Zr O O O O O O O O",
              zirconia),
        _made("triclinic with inversion", cell(4.9, 5.6, 6.3, 83, 101, 96), "K K Si Si O O",
              [row for x in low.tolist() for row in (x, [-v for v in x])]),
    ]  # fmt: skip


def _chiral() -> list[Crystal]:
    def screw(u: Number, hand: int) -> Rows:
        """Sites on the two-fold axes of P3121 (hand = 1) or P3221."""
        return [[u, 0, hand / 3], [0, u, 2 * hand / 3], [-u, -u, 0]]

    def general(x: Number, y: Number, z: Number, hand: int) -> Rows:
        t = hand / 3
        return [[x, y, z], [-y, x - y, z + t], [y - x, -x, z + 2 * t],
                [y, x, -z], [x - y, -y, -z + 2 * t], [-x, y - x, -z + t]]  # fmt: skip

    def b20(u: Number) -> Rows:
        return [[u, u, u], [0.5 + u, 0.5 - u, -u], [-u, 0.5 + u, 0.5 - u], [0.5 - u, -u, 0.5 + u]]

    found = []
    for hand, word in ((1, "right"), (-1, "left")):
        quartz = [*screw(0.4697, hand), *general(0.4135, 0.2669, hand * 0.2142, hand)]
        found += [
            _made(f"SiO2, quartz, {word}", cell(4.914, 4.914, 5.405, 90, 90, 120),
                  "Si Si Si O O O O O O", quartz),
            _made(f"Te, {word}", cell(4.456, 4.456, 5.927, 90, 90, 120), "Te Te Te", screw(0.2636, hand)),
            _made(f"FeSi, {word}", cell(4.489, 4.489, 4.489), "Fe Fe Fe Fe Si Si Si Si",
                  [[hand * x for x in row] for row in (*b20(0.137), *b20(0.842))]),
        ]  # fmt: skip
    return found


def _without_symmetry() -> list[Crystal]:
    """One motif without symmetry in lattices that have much: nothing there makes tied frames equal."""
    motif = [[0.017, 0.047, 0.16], [0.516, 0.518, 0.182], [0.7, 0.282, 0.651]]
    lattices = {
        "cubic": cell(4.6, 4.6, 4.6),
        "fcc": fcc(6.8),
        "bcc": bcc(5.9),
        "hexagonal": cell(4.4, 4.4, 5.2, 90, 90, 120),
        "orthorhombic": cell(4.1, 4.9, 6.2),
        "triclinic": cell(4.3, 4.9, 5.6, 81, 97, 104),
    }
    return [_made(f"{n} lattice, P1 motif", lattice, "Li O P", motif) for n, lattice in lattices.items()]


def _hard_cells() -> list[Crystal]:
    skew = np.array([[1, 0, 0], [4, 1, 0], [-3, 5, 1]])
    blende = Crystal(fcc(5.65), [[0, 0, 0], [0.25, 0.25, 0.25]], [31, 33])
    skewed = blende.replace(
        lattice=skew @ blende.lattice,
        frac_coords=blende.frac_coords @ np.rint(np.linalg.inv(skew)),
        name="GaAs, skewed cell",
    )
    heights = np.arange(16) / 16
    long = [[x, x, z] for x, z in zip([0, 0.5] * 8, heights.tolist(), strict=True)]
    plane = [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
    cesium = Crystal(cell(4.12, 4.12, 4.12), [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])
    return [
        skewed,
        cesium.supercell(2).replace(name="CsCl, 2 x 2 x 2"),
        _made("Al and one Ti, long cell", cell(2.86, 2.86, 32.4), " ".join(["Ti"] + ["Al"] * 15), long),
        _made("BN, one layer in vacuum", cell(2.5, 2.5, 15.0, 90, 90, 120), "B N", plane),
        _made("one atom, triclinic", cell(3.1, 3.4, 3.9, 72, 81, 67), "Xe", [[0.3, 0.1, 0.8]]),
        _made("H2 and argon", cell(3.9, 4.1, 4.6, 90, 95, 90), "H H Ar",
              [[0.05, 0.05, 0.08], [-0.05, -0.05, -0.08], [0.5, 0.5, 0.5]]),
    ]  # fmt: skip
