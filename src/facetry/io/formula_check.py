"""What a file says its cell contains, against what was read."""

from __future__ import annotations

from dataclasses import dataclass

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS, atomic_number
from facetry.io.elements_of import parse_formula

__all__ = ["Expected", "expected_contents"]


@dataclass(frozen=True)
class Expected:
    """The chemical formula and, where stated, how many of it are in the cell."""

    amounts: tuple[tuple[str, float], ...]
    units: float
    symbols: frozenset[str]
    cell: dict[int, float]  # atomic number: count in the cell, empty where Z is unknown

    @property
    def per_cell(self) -> bool:
        """True where the number of formula units in the cell is known."""
        return self.units > 0

    def matches(self, crystal: Crystal) -> bool:
        """True where the cell holds formula times units; hydrogen, often left out, may be short."""
        wanted, found = self._wanted(self.units), _contents(crystal)
        hydrogen = found.pop("H", 0.0), wanted.pop("H", 0.0)
        return _close(wanted, found) and hydrogen[0] <= hydrogen[1] * 1.05 + 0.5

    def remarks(self, crystal: Crystal) -> list[str]:
        """Notes on what the sites lack or have too much of."""
        if crystal.composition == self.cell:
            return []
        found = _contents(crystal)
        units = self.units or self._likely_units(found)
        wanted = self._wanted(units)
        hydrogen = wanted.pop("H", 0.0), found.pop("H", 0.0)
        if not _close(wanted, found):
            if not self.units:
                return []  # without Z a deviating formula says little: mixed sites, guests, rounding
            return [f"contents of the cell ({_text(found)}) differ from formula times Z ({_text(wanted)})"]
        missing = hydrogen[0] - hydrogen[1]
        if missing > max(0.5, 0.05 * hydrogen[0]):
            return [
                f"{missing:.4g} of {hydrogen[0]:.4g} hydrogen atoms of the formula are not among the sites"
            ]
        return []

    def _wanted(self, units: float) -> dict[str, float]:
        wanted: dict[str, float] = {}
        for symbol, amount in self.amounts:
            symbol = "H" if symbol in ("D", "T") else symbol
            wanted[symbol] = wanted.get(symbol, 0.0) + amount * units
        return {symbol: amount for symbol, amount in wanted.items() if amount > 0}

    def _likely_units(self, found: dict[str, float]) -> float:
        heavy = [(s, n) for s, n in self._wanted(1.0).items() if s != "H"]
        total = sum(n for _, n in heavy)
        return sum(n for s, n in found.items() if s != "H") / total if total else 0.0


def expected_contents(formula: str, units: str) -> Expected | None:
    """From _chemical_formula_sum and _cell_formula_units_Z; None where there is no readable formula."""
    amounts = parse_formula(formula) if formula else ()
    if not amounts:
        return None
    try:
        number = float(units)
    except ValueError:
        number = 0.0
    cell: dict[int, float] = {}
    if number > 0:
        for symbol, amount in amounts:
            z = atomic_number(symbol)
            cell[z] = cell.get(z, 0.0) + amount * number
    return Expected(amounts, max(number, 0.0), frozenset(dict(amounts)), cell)


def _contents(crystal: Crystal) -> dict[str, float]:
    return {SYMBOLS[number]: amount for number, amount in crystal.composition.items()}


def _close(wanted: dict[str, float], found: dict[str, float]) -> bool:
    """Equal within 5 per cent, or half an atom."""
    both = set(wanted) | set(found)
    return all(
        abs(wanted.get(s, 0.0) - found.get(s, 0.0)) <= max(0.5, 0.05 * wanted.get(s, 0.0)) for s in both
    )


def _text(amounts: dict[str, float]) -> str:
    return " ".join(f"{symbol}{amount:.4g}" for symbol, amount in sorted(amounts.items()))
