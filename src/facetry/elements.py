"""Chemical elements: symbols, standard atomic weights, electronegativities."""

from __future__ import annotations

from difflib import get_close_matches

__all__ = ["COVALENT_RADII", "ELECTRONEGATIVITIES", "MASSES", "MAX_ATOMIC_NUMBER", "SYMBOLS", "atomic_number"]

_PERIODS = """
    X
    H He
    Li Be B C N O F Ne
    Na Mg Al Si P S Cl Ar
    K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
    Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe
    Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
    Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
    Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr
    Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

# X holds the place of 0, so that SYMBOLS[z] is the symbol of element z
SYMBOLS: list[str] = _PERIODS.split()
"""Symbols indexed by atomic number; index 0 is no element."""

MAX_ATOMIC_NUMBER: int = len(SYMBOLS) - 1

# fmt: off
# Standard atomic weights (IUPAC 2016, conventional values where a range is given), g/mol; for elements
# without a stable isotope the mass of the longest-lived one known.
MASSES: list[float] = [
    0.0, 1.008, 4.002602, 6.94, 9.012183, 10.81, 12.011, 14.007, 15.999, 18.998403, 20.1797,
    22.989769, 24.305, 26.981538, 28.085, 30.973762, 32.06, 35.45, 39.948, 39.0983, 40.078,
    44.955908, 47.867, 50.9415, 51.9961, 54.938044, 55.845, 58.933194, 58.6934, 63.546, 65.38,
    69.723, 72.63, 74.921595, 78.971, 79.904, 83.798, 85.4678, 87.62, 88.90584, 91.224, 92.90637,
    95.95, 97.90721, 101.07, 102.9055, 106.42, 107.8682, 112.414, 114.818, 118.71, 121.76, 127.6,
    126.90447, 131.293, 132.905452, 137.327, 138.90547, 140.116, 140.90766, 144.242, 144.91276,
    150.36, 151.964, 157.25, 158.92535, 162.5, 164.93033, 167.259, 168.93422, 173.054, 174.9668,
    178.49, 180.94788, 183.84, 186.207, 190.23, 192.217, 195.084, 196.966569, 200.592, 204.38,
    207.2, 208.9804, 208.98243, 209.98715, 222.01758, 223.01974, 226.02541, 227.02775, 232.0377,
    231.03588, 238.02891, 237.04817, 244.06421, 243.06138, 247.07035, 247.07031, 251.07959, 252.083,
    257.09511, 258.09843, 259.101, 262.11, 267.122, 268.126, 271.134, 270.133, 269.1338, 278.156,
    281.165, 281.166, 285.177, 286.182, 289.19, 289.194, 293.204, 293.208, 294.214,
]

# Pauling scale; 0 where none is tabulated. Only used to order the symbols of a formula.
ELECTRONEGATIVITIES: list[float] = [
    0.0, 2.2, 0.0, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 0.0, 0.93, 1.31, 1.61, 1.9, 2.19, 2.58,
    3.16, 0.0, 0.82, 1.0, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.9, 1.65, 1.81, 2.01,
    2.18, 2.55, 2.96, 3.0, 0.82, 0.95, 1.22, 1.33, 1.6, 2.16, 1.9, 2.2, 2.28, 2.2, 1.93, 1.69, 1.78,
    1.96, 2.05, 2.1, 2.66, 2.6, 0.79, 0.89, 1.1, 1.12, 1.13, 1.14, 1.13, 1.17, 1.2, 1.2, 1.1, 1.22,
    1.23, 1.24, 1.25, 1.1, 1.27, 1.3, 1.5, 2.36, 1.9, 2.2, 2.2, 2.28, 2.54, 2.0, 1.62, 2.33, 2.02,
    2.0, 2.2, 2.2, 0.7, 0.9, 1.1, 1.3, 1.5, 1.38, 1.36, 1.28, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3,
    1.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
]
# Covalent radii in Å (Cordero et al., Dalton Trans. 2008, 2832): C sp3; Mn, Fe and Co high spin. Index 0 is
# no element; the list ends with Cm, the last one tabulated.
COVALENT_RADII: list[float] = [
    0.0, 0.31, 0.28, 1.28, 0.96, 0.84, 0.73, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05,
    1.02, 1.06, 2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.50, 1.42, 1.38, 1.24, 1.32, 1.22, 1.22, 1.20, 1.19,
    1.20, 1.20, 1.16, 2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39,
    1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92,
    1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51, 1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40,
    1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87, 1.80, 1.69,
]
# fmt: on

_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS) if z}
_NUMBERS |= {"D": 1, "T": 1}  # hydrogen isotopes: same element, same chemistry
_ANY_CASE: dict[str, int] = {symbol.upper(): z for symbol, z in _NUMBERS.items()}


def atomic_number(symbol: str) -> int:
    """The atomic number of a symbol in any case; D and T are hydrogen.

    Charges and labels are not understood here: "Fe3+" and "Fe1" are refused (`facetry.io` strips them).
    Raises ValueError with the nearest symbols for anything that is no element.
    """
    number = _NUMBERS.get(symbol) or _ANY_CASE.get(symbol.strip().upper())
    if number is None:
        near = get_close_matches(symbol.strip().capitalize(), SYMBOLS[1:], n=2, cutoff=0.5)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"{symbol!r} is no element symbol{hint}; expected one of H to {SYMBOLS[-1]}")
    return number
