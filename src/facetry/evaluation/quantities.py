"""Numbers that cannot be right: beyond what a quantity can be, far from all others, or in another unit.

Three questions, each to a column of numbers:

    impossible   a negative bulk modulus, a Poisson's ratio of 2, a tensor that no stable crystal has
    outlier      far from what crystals of such compositions have in this column
    slip         an outlier that a usual factor (1000: eV and meV; atoms: per cell and per atom; ...) explains
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "Quantity",
    "Slip",
    "find_slips",
    "impossible",
    "outlying",
    "quantity_of",
    "unstable_tensors",
    "whole_column",
]


@dataclass(frozen=True)
class Quantity:
    """What is known of a quantity: the `unit` it is usually given in, what it can be (`low` to `high`), and
    what the middle of a set of crystals usually lies between (of magnitudes, zeros left out)."""

    name: str
    pattern: str
    unit: str
    low: float
    high: float
    usual: tuple[float, float]


_QUANTITIES = (
    Quantity("bulk modulus", r"bulk_?mod|k_v|k_?vrh|\bbulk\b", "GPa", 0.0, 1000.0, (20.0, 300.0)),
    Quantity("shear modulus", r"shear_?mod|g_v|g_?vrh|\bshear\b", "GPa", 0.0, 800.0, (8.0, 200.0)),
    Quantity("Poisson's ratio", r"poisson", "", -1.0, 0.5, (0.1, 0.45)),
    Quantity("band gap", r"gap", "eV", 0.0, 25.0, (0.05, 9.0)),
    Quantity("energy above the hull", r"hull", "eV/atom", -0.001, 20.0, (1e-4, 2.0)),
    Quantity("formation energy per atom", r"form\w*energ|^e_?form", "eV/atom", -10.0, 20.0, (0.02, 4.0)),
    Quantity("exfoliation energy", r"exfol", "meV/atom", -1000.0, 5000.0, (10.0, 600.0)),
    Quantity("Debye temperature", r"debye", "K", 0.0, 2500.0, (80.0, 900.0)),
    Quantity("refractive index", r"refractive|^n$", "", 1.0, 40.0, (1.2, 6.0)),
    Quantity("dielectric constant", r"^poly_|dielectric|permittivity", "", 1.0, 1e5, (1.5, 60.0)),
    Quantity("critical temperature", r"^tc\b|^tc_|supercon", "K", 0.0, 400.0, (0.05, 100.0)),
)

# factor by which a value is too large -> what was mixed up, for units in which such a mistake makes sense
_FACTORS: tuple[tuple[float, str, str], ...] = (
    (1000.0, "eV", "meV and eV"),
    (1 / 1000.0, "eV", "keV and eV, or eV where meV is meant"),
    (96.4853, "eV", "kJ/mol and eV"),
    (23.0605, "eV", "kcal/mol and eV"),
    (1 / 27.2114, "eV", "Hartree and eV"),
    (1 / 13.6057, "eV", "Rydberg and eV"),
    (10.0, "GPa", "kbar and GPa"),
    (0.1, "GPa", "GPa and kbar"),
    (1000.0, "GPa", "MPa and GPa"),
    (160.2177, "GPa", "GPa and eV/Å³"),
    (1 / 160.2177, "GPa", "eV/Å³ and GPa"),
)
_EXTREME = 10.0  # robust deviations that make an outlier
_HEAP = 0.2  # share of a column that is one value
_CLEAR, _FAR, _NEAR, _HUGE = 3.0, 4.0, 2.0, 30.0  # see `find_slips`


@dataclass(frozen=True)
class Slip:
    """A row whose value is `factor` times what such crystals have; `what` names the units mixed up."""

    row: int
    factor: float
    what: str


def quantity_of(name: str, description: str = "") -> Quantity | None:
    """What is known of a column of this name; the description may say it where the name does not."""
    for text in (name.lower(), description.lower().split(";")[0].split(",")[0].replace(" ", "_")):
        for quantity in _QUANTITIES:
            if text and re.search(quantity.pattern, text):
                return quantity
    return None


def outlying(
    values: Float[np.ndarray, " rows"], expected: Float[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " rows"], float]:
    """How far every value is from what is expected, in robust deviations of all differences, and one such
    deviation. NaN where a label is missing.

    Where many values are one and the same, as band gaps are zero, the others say what a deviation is. It is
    at least a thousandth of the spread of the column, so that a column which composition says exactly has
    no outliers by round-off.
    """
    off = values - expected
    there = ~np.isnan(off)
    if there.sum() < 10:
        return np.full(len(values), np.nan), math.nan
    kinds, counts = np.unique(values[there], return_counts=True)
    heaped = counts.max() > _HEAP * counts.sum()
    known = off[there & (values != kinds[counts.argmax()])] if heaped else off[there]
    if len(known) < 10:
        return np.full(len(values), np.nan), math.nan
    middle = np.median(known)
    spread = np.subtract(*np.percentile(values[~np.isnan(values)], [84, 16])) / 2
    scale = max(_deviation(known - middle), 1e-3 * float(spread), 1e-12)
    return (off - middle) / scale, scale


def _deviation(off: Float[np.ndarray, " rows"]) -> float:
    """What the standard deviation would be if the inner 90 % were normal, or if the inner half were; the
    larger."""
    half, most = np.percentile(np.abs(off), [50, 90])
    return max(float(half) / 0.6745, float(most) / 1.6449)


def find_slips(
    values: Float[np.ndarray, " rows"],
    expected: Float[np.ndarray, " rows"],
    deviation: Float[np.ndarray, " rows"],
    scale: float,
    unit: str,
    num_atoms: Int[np.ndarray, " rows"],
) -> list[Slip]:
    """Outliers that come back among the others when a usual factor is divided out.

    A factor is tried where the unit allows the mistake; the number of atoms where it is an energy. It must
    be far outside what ratios of values and expectations are anyway (four robust deviations of their
    logarithms), and what is left must be well inside (two); what is expected must stand clear of zero, else
    every factor would fit. A value thirty times as large as nine tenths of the column needs no expectation:
    a factor that brings it among the others is enough.
    """
    magnitude = np.abs(values)
    low, most, high = np.nanpercentile(magnitude, [5, 90, 95])
    huge = magnitude > _HUGE * most if most > 0 else np.zeros(len(values), dtype=bool)
    clear = (np.abs(expected) > _CLEAR * scale) & (np.sign(values) == np.sign(expected))
    if clear.sum() < 10 and not huge.any():
        return []
    ratio = np.log(np.where(clear, values / np.where(clear, expected, 1.0), 1.0))
    spread = max(_deviation(ratio[clear]), 0.02) if clear.any() else 0.0
    usable = [(f, what) for f, kind, what in _FACTORS if kind in unit]
    per_atom = "atom" in unit
    found = []
    for row in np.nonzero((clear | huge) & (np.abs(deviation) > _EXTREME))[0].tolist():
        trials = list(usable)
        if "eV" in unit and num_atoms[row] > 1:
            atoms = float(num_atoms[row])
            trials.append(
                (atoms, "per cell and per atom") if per_atom else (1 / atoms, "per atom and per cell")
            )
        if huge[row]:
            wanted = math.log(max(abs(float(expected[row])), float(low), 1e-300))
            fits = [(f, what) for f, what in trials if low / 2 <= magnitude[row] / f <= 2 * high]
            if fits:
                best = min(fits, key=lambda t: abs(math.log(magnitude[row] / t[0]) - wanted))
                found.append(Slip(row, *best))
            continue
        off = [
            (abs(ratio[row] - math.log(factor)), factor, what)
            for factor, what in trials
            if abs(math.log(factor)) > _FAR * spread
        ]
        if off and (nearest := min(off))[0] < _NEAR * spread:
            found.append(Slip(row, nearest[1], nearest[2]))
    return found


def whole_column(
    quantity: Quantity | None,
    values: Float[np.ndarray, " rows"],
    unit: str,
    num_atoms: Int[np.ndarray, " rows"],
) -> list[str]:
    """What is odd about a column as a whole, in words: its middle is that of another unit, or values grow
    with the number of atoms though they are said to be per atom."""
    known = np.isfinite(values) & (values != 0)
    if known.sum() < 20:
        return []
    said = []
    middle = float(np.median(np.abs(values[known])))
    if quantity is not None and (not unit or unit == quantity.unit):
        low, high = quantity.usual
        if not low / 3 <= middle <= high * 3:
            mixed = [
                what
                for factor, kind, what in _FACTORS
                if kind in quantity.unit and low <= middle / factor <= high
            ]
            guess = f"; looks like a mix-up of {mixed[0]}" if mixed else ""
            where = f" {quantity.unit}".rstrip()
            said.append(
                f"the middle of all magnitudes is {middle:.4g}, for a {quantity.name} expected {low:g}"
                f" to {high:g}"
                f"{where}{guess}"
            )
    if "eV" in unit and np.ptp(np.log(num_atoms[known])) > np.log(3):
        x, y = np.log(num_atoms[known]), np.log(np.abs(values[known]))
        slope, correlation = float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1])
        if "atom" in unit and slope > 0.7 and correlation > 0.7:
            said.append(
                f"values grow with the number of atoms (power {slope:.2f}, correlation"
                f" {correlation:.2f}): they look"
                " like energies per cell"
            )
    return said


def unstable_tensors(
    tensors: Float[np.ndarray, "rows size size"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """The smallest eigenvalue of every symmetric tensor, and the largest difference between entries that
    should be the same. An elastic tensor without only positive eigenvalues is that of a crystal that is not
    stable (Born), or of a calculation that failed. NaN where a tensor is missing."""
    skew = np.abs(tensors - np.swapaxes(tensors, 1, 2)).max((1, 2)) if len(tensors) else np.zeros(0)
    known = np.isfinite(tensors).all((1, 2))
    least = np.full(len(tensors), np.nan)
    if known.any():
        halves = (tensors[known] + np.swapaxes(tensors[known], 1, 2)) / 2
        least[known] = np.linalg.eigvalsh(halves)[:, 0]
    return least, skew


def impossible(quantity: Quantity | None, values: Float[np.ndarray, " rows"]) -> Mapping[int, str]:
    """Rows whose value the quantity cannot have, and why."""
    if quantity is None:
        return {}
    wrong = np.nonzero((values < quantity.low) | (values > quantity.high))[0].tolist()
    return {
        row: f"a {quantity.name} of {values[row]:.4g}, expected {quantity.low:g} to {quantity.high:g}"
        f"{' ' + quantity.unit if quantity.unit else ''}"
        for row in wrong
    }
