"""Units: lengths in Å, energies in eV, pressures and moduli in GPa, angles in degrees.

Inside the package stresses and elastic quantities that come from an energy are in eV/Å³; GPa is what people
read. The factors follow from the exact 2019 SI values and, for Bohr, Hartree and the atomic mass, from
CODATA 2018.
"""

from __future__ import annotations

from typing import TypeVar

Quantity = TypeVar("Quantity")

ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact
AVOGADRO = 6.02214076e23  # 1/mol, exact
HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å
ATOMIC_MASS = 1.66053906660  # in 1e-24 g
GPA_PER_EV_PER_CUBIC_ANGSTROM = ELEMENTARY_CHARGE * 1e30 / 1e9  # 160.2176634

# One of each unit, in the base unit of its dimension.
_FACTORS: dict[str, dict[str, float]] = {
    "length": {"Å": 1.0, "A": 1.0, "angstrom": 1.0, "nm": 10.0, "pm": 0.01, "bohr": BOHR},
    "energy": {
        "eV": 1.0,
        "meV": 1e-3,
        "hartree": HARTREE,
        "rydberg": HARTREE / 2,
        "J": 1 / ELEMENTARY_CHARGE,
        "kJ/mol": 1e3 / (ELEMENTARY_CHARGE * AVOGADRO),
        "kcal/mol": 4.184e3 / (ELEMENTARY_CHARGE * AVOGADRO),
    },
    "pressure": {
        "GPa": 1.0,
        "MPa": 1e-3,
        "Pa": 1e-9,
        "bar": 1e-4,
        "kbar": 0.1,
        "eV/Å³": GPA_PER_EV_PER_CUBIC_ANGSTROM,
        "eV/A^3": GPA_PER_EV_PER_CUBIC_ANGSTROM,
        "hartree/bohr^3": GPA_PER_EV_PER_CUBIC_ANGSTROM * HARTREE / BOHR**3,
    },
}


def convert(value: Quantity, source: str, target: str) -> Quantity:
    """``value`` (number, array or tensor) from unit ``source`` to unit ``target``.

    Raises ``ValueError`` for a unit that is not known or for two units of different dimensions.
    """
    for factors in _FACTORS.values():
        if source in factors and target in factors:
            return value * (factors[source] / factors[target])  # type: ignore[operator]
    known = sorted({unit for factors in _FACTORS.values() for unit in factors})
    for unit in (source, target):
        if unit not in known:
            raise ValueError(f"unit {unit!r} is not known; use one of {', '.join(known)}")
    raise ValueError(f"{source!r} and {target!r} measure different things and cannot be converted")


def ev_per_cubic_angstrom_to_gpa(value: Quantity) -> Quantity:
    """Pressure, stress or modulus from eV/Å³ to GPa (1 eV/Å³ = 160.2176634 GPa)."""
    return value * GPA_PER_EV_PER_CUBIC_ANGSTROM  # type: ignore[operator]


def gpa_to_ev_per_cubic_angstrom(value: Quantity) -> Quantity:
    """Pressure, stress or modulus from GPa to eV/Å³."""
    return value / GPA_PER_EV_PER_CUBIC_ANGSTROM  # type: ignore[operator]


def density(mass: Quantity, volume: Quantity) -> Quantity:
    """g/cm³ of a cell that weighs ``mass`` atomic mass units and fills ``volume`` Å³."""
    return mass * ATOMIC_MASS / volume  # type: ignore[operator]
