"""Can a composition be a compound? Charges that cancel, with the electrons at the more electronegative atoms.

The rule of SMACT (Davies et al., Chem 1 (2016) 617; J. Open Source Softw. 4 (2019) 1361) in the form in which
CDVAE and DiffCSP count a generated crystal as valid, with a table of oxidation states of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from facetry.elements import ELECTRONEGATIVITIES, SYMBOLS

__all__ = ["METALS", "OXIDATION_STATES", "is_valid_composition"]

# Oxidation states known from compounds, the element itself (0) left out; rare ones too, because a filter
# should not refuse what exists. Elements of which no compound is known are not listed.
_STATES = """
H -1 1; Li 1; Be 2; B 1 2 3; C -4 -3 -2 -1 1 2 3 4; N -3 -2 -1 1 2 3 4 5; O -2 -1 1 2; F -1
Na -1 1; Mg 1 2; Al 1 3; Si -4 -3 -2 -1 1 2 3 4; P -3 -2 -1 1 2 3 4 5; S -2 -1 1 2 3 4 5 6
Cl -1 1 2 3 4 5 6 7; K -1 1; Ca 2; Sc 1 2 3; Ti -1 2 3 4; V -1 1 2 3 4 5; Cr -2 -1 1 2 3 4 5 6
Mn -3 -2 -1 1 2 3 4 5 6 7; Fe -2 -1 1 2 3 4 5 6; Co -1 1 2 3 4 5; Ni -1 1 2 3 4; Cu 1 2 3 4; Zn 1 2
Ga 1 2 3; Ge -4 1 2 3 4; As -3 2 3 5; Se -2 2 4 6; Br -1 1 3 4 5 7; Kr 2; Rb 1; Sr 2; Y 1 2 3; Zr 1 2 3 4
Nb -1 2 3 4 5; Mo -2 -1 1 2 3 4 5 6; Tc -3 -1 1 2 3 4 5 6 7; Ru -2 1 2 3 4 5 6 7 8; Rh -1 1 2 3 4 5 6
Pd 2 4; Ag 1 2 3; Cd 1 2; In 1 2 3; Sn -4 2 4; Sb -3 3 5; Te -2 2 4 5 6; I -1 1 3 5 7; Xe 2 4 6 8; Cs 1
Ba 2; La 2 3; Ce 2 3 4; Pr 2 3 4; Nd 2 3; Pm 3; Sm 2 3; Eu 2 3; Gd 1 2 3; Tb 1 3 4; Dy 2 3; Ho 3; Er 3
Tm 2 3; Yb 2 3; Lu 3; Hf 2 3 4; Ta -1 2 3 4 5; W -2 -1 1 2 3 4 5 6; Re -3 -1 1 2 3 4 5 6 7
Os -2 -1 1 2 3 4 5 6 7 8; Ir -3 -1 1 2 3 4 5 6; Pt -2 2 4 5 6; Au -1 1 2 3 5; Hg 1 2; Tl 1 3; Pb -4 2 4
Bi -3 3 5; Po -2 2 4 6; At -1 1 3 5; Rn 2; Fr 1; Ra 2; Ac 3; Th 2 3 4; Pa 3 4 5; U 3 4 5 6; Np 3 4 5 6 7
Pu 3 4 5 6 7; Am 2 3 4 5 6; Cm 3 4; Bk 3 4; Cf 2 3 4; Es 2 3; Fm 2 3; Md 2 3; No 2 3; Lr 3
"""
_NOT_METALS = "H He B C N O F Ne Si P S Cl Ar As Se Br Kr Te I Xe At Rn"


def _read() -> dict[int, tuple[int, ...]]:
    entries = (entry.split() for line in _STATES.split("\n") for entry in line.split(";") if entry.strip())
    return {SYMBOLS.index(symbol): tuple(map(int, states)) for symbol, *states in entries}


OXIDATION_STATES: dict[int, tuple[int, ...]] = _read()
"""Atomic number -> known oxidation states, without 0."""

METALS: frozenset[int] = frozenset(range(1, len(SYMBOLS))) - {SYMBOLS.index(s) for s in _NOT_METALS.split()}
"""Atomic numbers of what counts as a metal in an alloy; Ge and Sb do."""


def is_valid_composition(counts: Mapping[int, int]) -> bool:
    """Whether atoms (atomic number -> how many) can be a compound.

    True for one element alone and where all are metals. Otherwise every element must find one oxidation
    state such that the charges cancel and every element with a positive one is less electronegative
    (Pauling) than every element with a negative one. An element without a known electronegativity or
    oxidation state makes no compound.
    """
    elements = tuple(sorted(counts))
    if len(elements) == 1 or METALS.issuperset(elements):
        return True
    return _neutral(tuple((z, int(counts[z])) for z in elements))


@cache
def _neutral(amounts: tuple[tuple[int, int], ...]) -> bool:
    # A border on the scale of electronegativities parts the elements: what lies below gives electrons, what
    # lies above takes them. Then the sums that can be reached are few; the choices would be many.
    scale = {z: ELECTRONEGATIVITIES[z] for z, _ in amounts}
    if not all(scale.values()):
        return False
    for border in sorted(set(scale.values()))[1:]:
        sums = {0}
        for z, count in amounts:
            gives = scale[z] < border
            states = [s for s in OXIDATION_STATES.get(z, ()) if (s > 0) == gives]
            sums = {total + count * state for total in sums for state in states}
        if 0 in sums:
            return True
    return False
