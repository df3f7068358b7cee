"""Chemical formulas that people write: "SrTiO3", "Sr1Ti1O3", "Ca(OH)2", lists of them, columns of tables."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from facetry.elements import ELECTRONEGATIVITIES, SYMBOLS

__all__ = ["Formula", "FormulaError", "parse", "read_formulas"]

_TOKEN = re.compile(
    r"(?P<element>[A-Z][a-z]*)|(?P<number>\d+\.?\d*|\.\d+)|(?P<open>[(\[{])|(?P<close>[)\]}])"
)
_AMOUNT = re.compile(r"[\s_]*(\d+\.?\d*|\.\d+)")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_MANY = 100_000  # atoms; a formula with more is a slip of the pen
_COLUMN = "formula"


class FormulaError(ValueError):
    """What was given is no formula; the text shows the place and says what was expected."""


@dataclass(frozen=True)
class Formula:
    """How many atoms of each element a cell holds.

    `counts` maps atomic number to a whole number, as written: "Ti2O4" has two titanium atoms, its `reduced`
    formula is "TiO2". `text` is what was given. `str()` is the counts in the order of `Crystal.formula`.
    """

    counts: dict[int, int]
    text: str = ""

    def __str__(self) -> str:
        return _written(self.counts)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.counts.items())))

    def __eq__(self, other: object) -> bool:
        """Equal counts; how they were written does not matter."""
        return isinstance(other, Formula) and self.counts == other.counts

    @property
    def atoms(self) -> int:
        """Atoms in the cell as written."""
        return sum(self.counts.values())

    @property
    def units(self) -> int:
        """Reduced formulas in the cell as written: 2 for Ti2O4."""
        return math.gcd(*self.counts.values())

    @cached_property
    def reduced_counts(self) -> dict[int, int]:
        """Atoms of each element in the reduced formula."""
        return {z: n // self.units for z, n in self.counts.items()}

    @cached_property
    def reduced(self) -> str:
        """Reduced formula, electropositive elements first, written as `Crystal.formula` writes it."""
        return _written(self.reduced_counts)

    @cached_property
    def anonymous(self) -> str:
        """Reduced amounts without the elements, in ascending order: "ABC3" for SrTiO3 and for MgSiO3."""
        return anonymous(self.reduced_counts.values())

    def numbers(self, atoms: int | None = None) -> list[int]:
        """Atomic numbers of a cell with so many atoms, element by element; None: the cell as written.

        Raises FormulaError where whole formulas do not make up the number.
        """
        counts = self.counts if atoms is None else self.with_atoms(atoms).counts
        return [z for z in _ordered(counts) for _ in range(counts[z])]

    def with_atoms(self, atoms: int) -> Formula:
        """The same composition in a cell with so many atoms."""
        unit = sum(self.reduced_counts.values())
        if atoms < 1 or atoms % unit:
            below = max(atoms - atoms % unit, unit)
            raise FormulaError(
                f"{self.reduced} has {unit} atoms, so a cell holds {unit}, {2 * unit}, {3 * unit}, ...; "
                f"{atoms} is none of these, {below} and {below + unit} are"
            )
        return Formula({z: n * (atoms // unit) for z, n in self.reduced_counts.items()}, self.text)

    @classmethod
    def of(cls, atomic_numbers: Iterable[int | np.integer] | Int[np.ndarray, " atoms"]) -> Formula:
        """The formula of the atoms of a cell."""
        counts: dict[int, int] = {}
        for number in atomic_numbers:
            counts[int(number)] = counts.get(int(number), 0) + 1
        return cls(counts)


def anonymous(amounts: Iterable[int]) -> str:
    """ "ABC3" for the amounts 1, 1, 3 in any order."""
    letters = (chr(ord("A") + i) if i < 26 else f"[{i + 1}]" for i in range(len(SYMBOLS)))
    return "".join(
        letter + ("" if n == 1 else str(n)) for letter, n in zip(letters, sorted(amounts), strict=False)
    )


def parse(formula: str | Formula) -> Formula:
    """From what is written: "SrTiO3", "Sr1Ti1O3", "Sr Ti O3", "Ca(OH)2", "[Fe(CN)6]2", "CuSO4·5H2O".

    Amounts that are not whole are made so where a factor up to 12 does it: "Li0.5CoO2" is LiCo2O4. Raises
    FormulaError with the place and, for a symbol that is no element, the nearest that are.
    """
    if isinstance(formula, Formula):
        return formula
    if not isinstance(formula, str):
        raise FormulaError(f"expected a formula such as 'SrTiO3', got {formula!r}")
    text = formula.strip()
    if not text:
        raise FormulaError("expected a formula such as 'SrTiO3', got an empty text")
    total: dict[int, float] = {}
    position = 0
    # water of crystallisation and the like: every part has its own leading number
    for part in re.split(r"[·•*]", text):
        for number, amount in _part(text, part, position).items():
            total[number] = total.get(number, 0.0) + amount
        position += len(part) + 1
    return Formula(_whole(total, text), text)


def _part(text: str, part: str, start: int) -> dict[int, float]:
    """Amounts of one part of a formula that begins at `start` of the whole text."""
    leading = re.match(r"\s*(\d+\.?\d*|\.\d+)(?=\s*[A-Z(\[{])", part)
    factor, at = (float(leading[1]), leading.end()) if leading else (1.0, 0)
    stack: list[dict[int, float]] = [{}]
    opened: list[tuple[str, int]] = []
    while at < len(part):
        if part[at].isspace() or part[at] == "_":
            at += 1
            continue
        token = _TOKEN.match(part, at)
        if token is None or token.lastgroup == "number":
            raise _error(text, start + at, "expected an element symbol or a bracket")
        if token.lastgroup == "open":
            opened.append((token[0], start + at))
            stack.append({})
            at = token.end()
            continue
        if token.lastgroup == "close":
            if not opened or _PAIRS[opened[-1][0]] != token[0]:
                raise _error(text, start + at, f"{token[0]!r} closes no bracket that is open")
            opened.pop()
            group, place = stack.pop(), token.end()
        else:
            number, length = _element(text, start + at, token[0])
            group, place = {number: 1.0}, at + length
        amount = _AMOUNT.match(part, place)
        count = float(amount[1]) if amount else 1.0
        if count <= 0:
            raise _error(text, start + place, "an amount must be above 0")
        at = amount.end() if amount else place
        for number, inside in group.items():
            stack[-1][number] = stack[-1].get(number, 0.0) + inside * count
    if opened:
        raise _error(text, opened[-1][1], f"{opened[-1][0]!r} is never closed")
    if not stack[0]:
        raise _error(text, start, "expected an element symbol")
    return {number: amount * factor for number, amount in stack[0].items()}


def _element(text: str, position: int, letters: str) -> tuple[int, int]:
    """Atomic number and length of the symbol at the head of a capital and small letters."""
    for length in (2, 1):
        symbol = letters[:length]
        if len(symbol) == length and symbol in SYMBOLS[1:]:
            if len(letters) > length:  # "Oxide": what follows cannot begin a symbol
                break
            return SYMBOLS.index(symbol), length
        if length == 1 and symbol in ("D", "T") and len(letters) == 1:
            return 1, 1
    near = get_close_matches(letters[:2], SYMBOLS[1:], n=3, cutoff=0.5) or [
        s for s in SYMBOLS[1:] if s[0] == letters[0]
    ]
    hint = f"; near: {', '.join(near[:3])}" if near else ""
    raise _error(text, position, f"{letters!r} is no element{hint}")


def _error(text: str, position: int, what: str) -> FormulaError:
    return FormulaError(f"{text!r} is no formula: at character {position + 1}, {what}")


def _whole(amounts: Mapping[int, float], text: str) -> dict[int, int]:
    for factor in range(1, 13):
        scaled = {z: amount * factor for z, amount in amounts.items()}
        if all(abs(n - round(n)) < 1e-6 * factor and round(n) > 0 for n in scaled.values()):
            counts = {z: round(n) for z, n in scaled.items()}
            if sum(counts.values()) > _MANY:
                raise FormulaError(f"{text!r} has {sum(counts.values())} atoms; expected at most {_MANY}")
            return counts
    raise FormulaError(
        f"{text!r} has amounts that are not whole, and no factor up to 12 makes them so; "
        "write the atoms of a cell, such as Li3Co4O8"
    )


def _ordered(counts: Mapping[int, int]) -> list[int]:
    """Electropositive elements first, as in `Crystal.formula`."""
    return sorted(counts, key=lambda z: (ELECTRONEGATIVITIES[z] or 9.0, z))


def _written(counts: Mapping[int, int]) -> str:
    return "".join(SYMBOLS[z] + ("" if counts[z] == 1 else str(counts[z])) for z in _ordered(counts))


def read_formulas(source: Any, column: str | None = None) -> list[Formula]:
    """Formulas from a formula, a text with several (separated by commas, semicolons or blanks between whole
    formulas on their own lines), a .csv with a column `formula`, a .txt with one a line, or a list of these.

    `column` names another column of the tables. Raises FormulaError, with file and row.
    """
    if isinstance(source, Formula):
        return [source]
    if isinstance(source, str | PathLike):
        text = str(source)
        if Path(text).suffix.lower() in (".csv", ".txt"):
            return _from_file(Path(text), column)
        return [parse(part) for part in re.split(r"[,;\n]", text) if part.strip()] or [parse(text)]
    if isinstance(source, Iterable):
        found = [formula for item in source for formula in read_formulas(item, column)]
        if not found:
            raise FormulaError("expected at least one formula, got an empty list")
        return found
    raise FormulaError(f"expected a formula, a list of them or a table, got {type(source).__name__}")


def _from_file(path: Path, column: str | None) -> list[Formula]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file with formulas")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        if path.suffix.lower() == ".txt":
            rows = [(number, line.strip()) for number, line in enumerate(stream, start=1)]
        else:
            table = csv.reader(stream)
            header = [cell.strip() for cell in next(table, [])]
            wanted = column or _COLUMN
            lower = [name.lower() for name in header]
            if wanted.lower() not in lower:
                near = get_close_matches(wanted, header, n=1, cutoff=0.4)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise FormulaError(
                    f"{path}: no column {wanted!r}{hint}; there are {', '.join(header) or 'none'}"
                )
            at = lower.index(wanted.lower())
            rows = [
                (n, row[at].strip() if at < len(row) else "") for n, row in enumerate(table, start=2) if row
            ]
    found = []
    for number, text in rows:
        if path.suffix.lower() == ".txt" and (not text or text.startswith("#")):
            continue
        try:
            found.append(parse(text))
        except FormulaError as error:
            raise FormulaError(f"{path}, row {number}: {error}") from None
    if not found:
        raise FormulaError(f"{path}: no formulas in it")
    return found
