"""POSCAR and CONTCAR of VASP 4, 5 and 6.

A VASP 4 file does not say its elements. They are taken from the symbols behind the positions, or from a
comment line that is a formula with the same counts; else the file is refused.
"""

from __future__ import annotations

import re

import numpy as np

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS, atomic_number
from facetry.io.elements_of import NoElement, element_of_label, parse_formula
from facetry.io.errors import FormatError
from facetry.io.sites import build_crystal, fractional

__all__ = ["read_poscar", "write_poscar"]

_LARGEST = 1e12  # of vectors before they are scaled, of the scale, and of a volume in its place


def read_poscar(text: str, *, merge_within: float | int | None = None) -> Crystal:
    """The crystal in a POSCAR text. Velocities and what follows them are not read."""
    lines = text.split("\n")
    if len([line for line in lines[:8] if line.strip()]) < 6:
        raise FormatError("no POSCAR: it ends within the header (comment, scale, three vectors, counts, ...)")
    comment = lines[0].strip()
    vectors = np.array([_floats(lines, row, 3, "a lattice vector") for row in (2, 3, 4)])
    lattice, stretch = _scaled(vectors, lines[1])
    symbols, counts, row = _species(lines)
    notes: list[str] = []
    mode = _line(lines, row).strip().lower()
    if mode.startswith("s"):  # selective dynamics
        row += 1
        mode = _line(lines, row).strip().lower()
    if mode[:1] not in ("d", "c", "k"):
        raise FormatError(f"line {row + 1} should say Direct or Cartesian, it says {mode[:40]!r}")
    row += 1
    total = sum(counts)
    if total > len(lines) - row:
        raise FormatError(
            f"the counts {' '.join(map(str, counts))} ask for {total} positions, "
            f"the file has {len(lines) - row} lines left; correct the counts"
        )
    rows, tails = [], []
    for index in range(total):
        words = lines[row + index].split()
        try:
            rows.append([float(word) for word in words[:3]])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != 3:
            raise FormatError(
                f"the counts {' '.join(map(str, counts))} ask for {total} positions, but line "
                f"{row + index + 1} (position {index + 1}) holds no three numbers; correct the counts"
            )
        tails.append([word for word in words[3:] if word not in ("T", "F", ".TRUE.", ".FALSE.", "#", "!")])
    positions = np.array(rows)
    if symbols is None:
        symbols = _symbols_elsewhere(comment, counts, tails, notes)
    if not np.abs(positions).max() <= _LARGEST:
        bad = int(np.flatnonzero(~(np.abs(positions) <= _LARGEST).all(axis=1))[0])
        place = lines[row + bad].strip()
        raise FormatError(f"position {bad + 1} is not finite or beyond {_LARGEST:g}: {place!r}")
    frac = positions if mode.startswith("d") else fractional(lattice, positions * stretch)
    numbers = np.repeat([_number(symbol) for symbol in symbols], counts)
    return build_crystal(lattice, frac, numbers, comment, notes=notes, merge_within=merge_within)


def write_poscar(crystal: Crystal) -> str:
    """VASP 5 text with all digits; atoms keep their order, so a species may appear more than once."""
    if not crystal.is_ordered:
        raise ValueError(
            f"{crystal.name or crystal.formula}: POSCAR cannot hold partial occupancy; use CIF or JSON"
        )
    symbols = crystal.symbols
    starts = [i for i, symbol in enumerate(symbols) if i == 0 or symbol != symbols[i - 1]]
    counts = np.diff([*starts, len(symbols)]).tolist()
    rows = [" ".join(map(repr, row)) for row in crystal.lattice.tolist()]
    sites = [
        f"{' '.join(map(repr, row))} {symbol}"
        for row, symbol in zip(crystal.frac_coords.tolist(), symbols, strict=True)
    ]
    comment = " ".join(crystal.name.split()) or crystal.formula
    header = [
        comment,
        "1.0",
        *rows,
        " ".join(symbols[i] for i in starts),
        " ".join(map(str, counts)),
        "Direct",
    ]
    return "\n".join([*header, *sites]) + "\n"


def _scaled(vectors: np.ndarray, line: str) -> tuple[np.ndarray, np.ndarray]:
    """The lattice and the factors for Cartesian positions."""
    try:
        scale = [float(word) for word in line.split()[:3]]
    except ValueError:
        scale = []
        for word in line.split():  # a comment may follow the number
            try:
                scale.append(float(word))
            except ValueError:
                break
    if len(scale) == 2:
        scale = scale[:1]
    if not scale or 0 in scale or not np.abs(scale).max() <= _LARGEST:
        raise FormatError(
            f"line 2 should be the scale (a number that is neither 0 nor beyond {_LARGEST:g}), "
            f"it is {line.strip()!r}"
        )
    if len(scale) == 3:
        if min(scale) < 0:
            raise FormatError(f"three scale factors must be positive, got {line.strip()!r}")
        stretch = np.array(scale)
        return vectors * stretch, stretch
    factor = scale[0]
    if factor < 0:  # the volume of the cell
        volume = abs(float(np.linalg.det(vectors)))
        if not volume > 0:
            raise FormatError("the three lattice vectors lie in one plane (flat cell); correct them")
        factor = (-factor / volume) ** (1 / 3)
    return vectors * factor, np.full(3, factor)


def _species(lines: list[str]) -> tuple[list[str] | None, list[int], int]:
    """Symbols (None in VASP 4), counts, and the row after them. Long lists may be wrapped."""
    row, symbols = 5, []
    while row < len(lines) and not _counts(lines[row]):
        words = lines[row].split()
        if not words or row > 60:
            raise FormatError(
                f"line {row + 1} should hold element symbols or counts, it is {lines[row].strip()!r}"
            )
        symbols += [re.split(r"[_/.]", word)[0] for word in words]
        row += 1
    for symbol in symbols:
        _number(symbol)
    counts = list(_counts(_line(lines, row)) or [])
    row += 1
    while len(counts) < len(symbols) and (more := _counts(_line(lines, row))):
        counts += more
        row += 1
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise FormatError("no counts of atoms after the lattice vectors")
    if symbols and len(symbols) != len(counts):
        raise FormatError(
            f"{len(symbols)} element symbols but {len(counts)} counts; correct one of the lines"
        )
    return (symbols or None), counts, row


def _counts(line: str) -> list[int] | None:
    words = line.split()
    numbers = []
    for word in words:
        if not word.isdigit():
            break
        numbers.append(int(word))
    rest = words[len(numbers) :]
    return numbers if numbers and (not rest or rest[0][0] in "#!") else None


def _symbols_elsewhere(
    comment: str, counts: list[int], tails: list[list[str]], notes: list[str]
) -> list[str]:
    """Elements of a VASP 4 file."""
    ends = np.cumsum(counts).tolist()
    groups = [tails[end - count : end] for count, end in zip(counts, ends, strict=True)]
    found: list[str] = []
    for group in groups:
        names = set()
        for tail in group:
            try:
                names.add(SYMBOLS[element_of_label(tail[0].lstrip("#!"), frozenset())[0]])
            except (NoElement, IndexError):
                names.add("")
        found.append(names.pop() if len(names) == 1 else "")
    if all(found):
        notes.append(f"no line of element symbols; taken from behind the positions: {' '.join(found)}")
        return found
    # the comment may be the formula, or hold it as one word or as a row of words
    plain = comment.lstrip("#! ")
    for text in (plain, *plain.split()):
        amounts = parse_formula(text)
        if len(amounts) == len(counts):
            units = [count / amount for count, (_, amount) in zip(counts, amounts, strict=True) if amount]
            if len(units) == len(counts) and max(units) == min(units):
                symbols = [symbol for symbol, _ in amounts]
                notes.append(f"no line of element symbols; taken from the comment {comment[:40]!r}")
                return symbols
    raise FormatError(
        "VASP 4 file that does not name its elements; add a line with their symbols above the counts "
        f"({' '.join(map(str, counts))})"
    )


def _number(symbol: str) -> int:
    try:
        return atomic_number(symbol)
    except ValueError as error:
        raise FormatError(str(error)) from None


def _line(lines: list[str], row: int) -> str:
    if row >= len(lines):
        raise FormatError(f"no POSCAR: it ends at line {len(lines)}, before any position")
    return lines[row]


def _floats(lines: list[str], row: int, count: int, what: str) -> list[float]:
    words = _line(lines, row).split()[:count]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not np.abs(values).max() <= _LARGEST:
        raise FormatError(
            f"no POSCAR: line {row + 1} should be {what} ({count} numbers), it is {lines[row][:60]!r}"
        )
    return values
