"""What a crystal is, without its cell: composition, space group, and prototype for many crystals.

A prototype is the pattern without the elements: NaCl and MgO share one, CsCl has another. Two crystals have
one prototype where the anonymous formula, the Pearson symbol, the space group and the site symmetries of
every element agree. Wyckoff letters are left out: which of them a site gets depends on the choice of the
origin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from facetry.data.crystals import CrystalTable
from facetry.elements import SYMBOLS
from facetry.geometry.space_group import find_symmetry

__all__ = ["Identity", "identify", "site_kinds"]

# Space groups that are mirror images of one another; the left hand counts as the right one.
_HANDS = {
    78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180, 213: 212,
}  # fmt: skip
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MIXED = 1000  # kinds of sites above this are mixtures


@dataclass(frozen=True, eq=False)
class Identity:
    """For every crystal its reduced formula, the space group (0 where none was found), the atoms of the
    primitive cell and the prototype (empty where there is no space group). `kinds` tells the sites apart:
    atomic numbers, and numbers above 1000 for mixed sites."""

    formulas: Sequence[str]
    groups: Int[np.ndarray, " crystals"]
    primitive_atoms: Int[np.ndarray, " crystals"]
    prototypes: Sequence[str]
    kinds: Int[np.ndarray, " atoms"]


def identify(crystals: CrystalTable, progress: Callable[[int], None] | None = None) -> Identity:
    """Symmetry within 0.01 Å by moyopy, one crystal after the other: there is no call for many."""
    kinds, words = site_kinds(crystals)
    formulas, groups, sizes, prototypes = [], [], [], []
    for row in range(len(crystals)):
        atoms = slice(crystals.offsets[row], crystals.offsets[row + 1])
        here = kinds[atoms]
        formulas.append(_formula(Counter(here.tolist()), words))
        found = find_symmetry(crystals.lattice[row], crystals.frac_coords[atoms], here)
        group = 0 if found is None else _HANDS.get(int(found.number), int(found.number))
        groups.append(group)
        sizes.append(len(here) if found is None else len(found.prim_std_cell.numbers))
        prototypes.append("" if found is None else _prototype(found, group, here))
        if progress is not None:
            progress(1)
    counts = (np.array(values, dtype=np.int64) for values in (groups, sizes))
    return Identity(formulas, *counts, prototypes, kinds)


def site_kinds(crystals: CrystalTable) -> tuple[Int[np.ndarray, " atoms"], dict[int, str]]:
    """A number for what sits on every site, and what each number stands for."""
    kinds = crystals.atomic_numbers.copy()
    words = {z: symbol for z, symbol in enumerate(SYMBOLS) if z}
    mixtures: dict[str, int] = {}
    for row, sites in (crystals.occupancies or {}).items():
        for site, content in enumerate(sites):
            if len(content) == 1 and abs(next(iter(content.values())) - 1) < 1e-6:
                continue
            parts = sorted((z, round(share, 3)) for z, share in content.items())
            word = f"({''.join(f'{SYMBOLS[z]}{share:g}' for z, share in parts)})"
            kind = mixtures.setdefault(word, _MIXED + len(mixtures))
            words[kind] = word
            kinds[crystals.offsets[row] + site] = kind
    return kinds, words


def _formula(counts: Counter[int], words: dict[int, str]) -> str:
    """The reduced composition, sorted by name: a key for grouping."""
    divisor = math.gcd(*counts.values())
    parts = sorted(f"{words[kind]}{n // divisor if n > divisor else ''}" for kind, n in counts.items())
    return "".join(parts)


def _prototype(found: Any, group: int, kinds: Int[np.ndarray, " sites"]) -> str:
    """`AB3C_cP5_221_m-3m:1_4/mm.m:3_m-3m:1`; letters by amount, then by their sites."""
    sites: dict[int, dict[str, list[int]]] = {}
    for kind, symmetry, orbit in zip(kinds.tolist(), found.site_symmetry_symbols, found.orbits, strict=True):
        sites.setdefault(kind, {}).setdefault(symmetry, []).append(orbit)
    amounts = {kind: sum(map(len, content.values())) for kind, content in sites.items()}
    divisor = math.gcd(*(len(orbits) for content in sites.values() for orbits in content.values()))
    total = math.gcd(*amounts.values())
    words = []
    for kind, content in sites.items():
        described = sorted(
            (symmetry, len(orbits) // divisor, len(set(orbits))) for symmetry, orbits in content.items()
        )
        text = "+".join(f"{s}:{n}" + (f"/{orbits}" if orbits > 1 else "") for s, n, orbits in described)
        words.append((amounts[kind] // total, text))
    words.sort()
    letters = [_LETTERS[i] if i < len(_LETTERS) else f"X{i}" for i in range(len(words))]
    anonymous = "".join(
        letter + (str(n) if n > 1 else "") for letter, (n, _) in zip(letters, words, strict=True)
    )
    return "_".join([anonymous, found.pearson_symbol, str(group), *(text for _, text in words)])
