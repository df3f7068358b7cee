"""emt-alloys: the set that ships. Made here, the same on every machine, and physical.

Ordered alloys of seven metals (the pure metals too) on the lattices such alloys really take, and random
decorations of small supercells; each at rest by Vegard's rule, and strained, sheared and with its atoms
displaced. Labels are energies, forces and stresses of effective medium theory (`facetry.data.emt`).

Coordinates come from a raw random stream by additions, products and quotients alone, and are rounded to 1e-8:
equal to the last bit on every machine. Labels are rounded to 1e-8.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from facetry.data.crystals import CrystalTable
from facetry.data.division import group_split
from facetry.data.emt import ELEMENTS, label, lattice_constant
from facetry.elements import atomic_number

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PROTOTYPES", "crystals", "official_split", "table", "write"]

VARIANTS = 5  # crystals of every parent: one at rest, the others disturbed
STRAIN = 0.05  # largest change of all lengths
SHEAR = 0.03  # largest entry of the symmetric strain besides
DISPLACEMENT = 0.15  # Å, largest along each axis, for the most disturbed
DECORATIONS = 25  # of every supercell, at random
SEED = 1996

BCC = 0.7937  # edge of bcc over that of fcc at the same volume per atom, 2^(-1/3)
HCP = 0.7071  # edge a of hcp over that of fcc at the same distances
IDEAL = 1.6330  # c over a of packed spheres
ROOT3 = 1.7320508


@dataclass(frozen=True)
class Prototype:
    """Lattice rows in units of `edge`, itself in units of the edge of an fcc cube of the same metals;
    fractional coordinates of the sites; which species (A, B, C) is on each."""

    lattice: Sequence[Sequence[float | int]]
    sites: Sequence[Sequence[float | int]]
    species: str
    edge: float = 1.0


_CUBE = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_FCC = ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
_BCC = ((-0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, -0.5))
_DOUBLE = ((0, 1, 1), (1, 0, 1), (1, 1, 0))  # the fcc cell of ordered bcc alloys, four atoms
_QUARTERS = ((0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.75, 0.75, 0.75))
_HEX = ((1, 0, 0), (-0.5, ROOT3 / 2, 0), (0, 0, IDEAL))
_HCP = ((0, 0, 0), (1 / 3, 2 / 3, 0.5))
_FACES = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))

PROTOTYPES: dict[str, Prototype] = {
    "fcc": Prototype(_FCC, ((0, 0, 0),), "A"),
    "bcc": Prototype(_BCC, ((0, 0, 0),), "A", BCC),
    "hcp": Prototype(_HEX, _HCP, "AA", HCP),
    "L10": Prototype(((0.5, 0.5, 0), (-0.5, 0.5, 0), (0, 0, 1)), _QUARTERS[:2], "AB"),
    "L11": Prototype(((1, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1)), _QUARTERS[:2], "AB"),
    "B2": Prototype(_CUBE, _QUARTERS[:2], "AB", BCC),
    "B32": Prototype(_DOUBLE, _QUARTERS, "ABAB", BCC),
    "B19": Prototype(
        ((1, 0, 0), (0, ROOT3, 0), (0, 0, IDEAL)),
        ((0, 0, 0), (0, 2 / 3, 0.5), (0.5, 0.5, 0), (0.5, 1 / 6, 0.5)),
        "AABB",
        HCP,
    ),
    "C11b": Prototype(
        ((1, 0, 0), (0, 1, 0), (0.5, 0.5, 1.5)),
        ((0, 0, 0), (1 / 3, 1 / 3, 1 / 3), (2 / 3, 2 / 3, 2 / 3)),
        "BAA",
        BCC,
    ),
    "L12": Prototype(_CUBE, _FACES, "BAAA"),
    "D022": Prototype(
        ((1, 0, 0), (0, 1, 0), (0.5, 0.5, 1)),
        ((0, 0, 0), (0.5, 0.5, 0), (0.25, 0.75, 0.5), (0.75, 0.25, 0.5)),
        "BAAA",
    ),
    "D03": Prototype(_DOUBLE, _QUARTERS, "BAAA", BCC),
    "D019": Prototype(
        ((2, 0, 0), (-1, ROOT3, 0), (0, 0, IDEAL)),
        (
            *((0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0.5, 0.5, 0)),
            *((2 / 3, 1 / 3, 0.5), (1 / 6, 1 / 3, 0.5), (1 / 6, 5 / 6, 0.5), (2 / 3, 5 / 6, 0.5)),
        ),
        "BAAABAAA",
        HCP,
    ),
    "L21": Prototype(_DOUBLE, _QUARTERS, "BCAA", BCC),
}
"""Strukturbericht names of the ordered alloys."""

_SUPERCELLS = {
    "fcc-3x1x1": ("fcc", (3, 1, 1)),
    "fcc-2x2x1": ("fcc", (2, 2, 1)),
    "fcc-2x2x2": ("fcc", (2, 2, 2)),
    "bcc-2x2x1": ("bcc", (2, 2, 1)),
    "hcp-2x1x1": ("hcp", (2, 1, 1)),
    "hcp-2x2x1": ("hcp", (2, 2, 1)),
}


class _Uniform:
    """Numbers in [0, 1) from the raw stream of PCG64, which numpy promises never to change."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def signed(self, size: float, *shape: int) -> np.ndarray:
        """Between -size and size."""
        return (2.0 * self(*shape) - 1.0) * size


def _supercell(prototype: Prototype, repeats: tuple[int, int, int]) -> Prototype:
    shifts = list(itertools.product(*(range(n) for n in repeats)))
    sites = [
        [(x + s) / n for x, s, n in zip(xyz, shift, repeats, strict=True)]
        for xyz in prototype.sites
        for shift in shifts
    ]
    lattice = [[x * n for x in row] for row, n in zip(prototype.lattice, repeats, strict=True)]
    return Prototype(lattice, sites, "", prototype.edge)


def _parents() -> Iterator[tuple[str, Prototype, tuple[str, ...]]]:
    """Every prototype with every choice of metals that it distinguishes, then the random decorations."""
    for name, prototype in PROTOTYPES.items():
        letters = sorted(set(prototype.species))
        shares = [prototype.species.count(x) for x in letters]
        for metals in itertools.permutations(ELEMENTS, len(letters)):
            # B and C of a Heusler alloy, A and B of an equal mixture: exchanging them changes nothing
            pairs = itertools.combinations(range(len(letters)), 2)
            if any(shares[i] == shares[j] and metals[i] > metals[j] for i, j in pairs):
                continue
            yield name, prototype, tuple(metals[letters.index(x)] for x in prototype.species)
    draw, known = _Uniform(SEED), list(ELEMENTS)
    for name, (base, repeats) in _SUPERCELLS.items():
        prototype = _supercell(PROTOTYPES[base], repeats)
        for _ in range(DECORATIONS):
            # two to four metals, at least two of them present
            palette = [known[int(i)] for i in np.argsort(draw(len(known)))[: 2 + int(3 * draw(1)[0])]]
            species = [palette[int(i)] for i in (draw(len(prototype.sites)) * len(palette)).astype(int)]
            if len(set(species)) == 1:
                species[0] = palette[(palette.index(species[0]) + 1) % len(palette)]
            yield name, prototype, tuple(species)


def _dot(rows: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "n 3"]:
    """rows @ matrix in a fixed order of operations: BLAS may fuse or reorder them."""
    return rows[:, :1] * matrix[0] + rows[:, 1:2] * matrix[1] + rows[:, 2:] * matrix[2]


@cache
def crystals() -> tuple[CrystalTable, tuple[str, ...]]:
    """The crystals and the prototype of each; a name ends in the number of the parent and of the variant."""
    draw = _Uniform(SEED + 1)
    lattices, coords, numbers, names, prototypes = [], [], [], [], []
    for count, (name, prototype, species) in enumerate(_parents()):
        # not sum(): from Python 3.12 on it compensates round-off, which moves the last bit
        edge = prototype.edge * reduce(operator.add, map(lattice_constant, species)) / len(species)
        rest = np.array(prototype.lattice, dtype=float) * edge
        sites = np.array(prototype.sites, dtype=float)
        for variant in range(VARIANTS):
            lattice, frac = rest, sites
            if variant:
                strain = draw.signed(SHEAR, 6)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
                strain += (1.0 + draw.signed(STRAIN, 1)) * np.eye(3)
                lattice = _dot(rest, strain)
                shift = draw.signed(1.0, len(sites), 3) * (DISPLACEMENT * draw(1)) / edge
                frac = sites + _dot(shift, _inverse(np.array(prototype.lattice, dtype=float)))
            lattices.append(lattice)
            coords.append(frac)
            numbers += [atomic_number(s) for s in species]
            names.append(f"{_formula(species)}-{name}-{count:03d}-{variant}")
            prototypes.append(name)
    sizes = [len(c) for c in coords]
    table = CrystalTable(
        np.round(np.array(lattices), 8) + 0.0,
        np.round(np.concatenate(coords), 8) + 0.0,
        np.array(numbers, dtype=np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array(names, dtype=object),
    )
    return table, tuple(prototypes)


def _inverse(m: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """By the adjugate: the same bits everywhere, unlike LAPACK's."""
    i, j = [1, 2, 0], [2, 0, 1]
    adjugate = (m[i][:, i] * m[j][:, j] - m[i][:, j] * m[j][:, i]).T
    return adjugate / (m[0, 0] * adjugate[0, 0] + m[0, 1] * adjugate[1, 0] + m[0, 2] * adjugate[2, 0])


def _formula(species: Sequence[str]) -> str:
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in sorted(Counter(species).items()))


def official_split(table: CrystalTable) -> Int[np.ndarray, " crystals"]:
    """0, 1, 2 for train, val, test: 80/10/10, compositions kept together, the pure metals in train.

    A random split would put the same parent, a little displaced, on both sides."""
    formulas = np.array(table.formulas)
    pure = np.isin(formulas, [f"{s}1" for s in ELEMENTS])
    part = np.zeros(len(table), dtype=np.int64)
    part[~pure] = group_split(formulas[~pure].tolist(), (0.8, 0.1, 0.1), "emt-alloys")
    return part


def table() -> pa.Table:
    """The whole set with its labels, as Arrow table in the common format."""
    import pyarrow as pa

    found, prototypes = crystals()
    labels = label(found)
    arrow = found.to_arrow()
    forces = np.round(labels.forces, 8) + 0.0
    stress = np.round(labels.stress, 8) + 0.0
    parts = np.array(["train", "val", "test"])[official_split(found)]
    for name, column in {
        "energy_per_atom": pa.array(np.round(labels.energy_per_atom, 8) + 0.0),
        "forces": pa.ListArray.from_arrays((found.offsets * 3).astype(np.int32), forces.ravel()),
        "stress": pa.ListArray.from_arrays(np.arange(len(found) + 1, dtype=np.int32) * 6, stress.ravel()),
        "prototype": pa.array(prototypes),
        "split": pa.array(parts.tolist()),
    }.items():
        arrow = arrow.append_column(name, column)
    return arrow


def write(path: Path) -> Path:
    """The set as a Parquet file, written completely or not at all."""
    import pyarrow.parquet as pq

    from facetry.data.vault import atomic_write

    arrow = table()
    with atomic_write(path) as stream:
        pq.write_table(arrow, stream, compression="zstd", write_page_checksum=True)
    return path
