"""Extended XYZ, and plain XYZ whose comment line carries a lattice. Several frames make several crystals."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from facetry.crystal import Crystal
from facetry.elements import atomic_number
from facetry.io.errors import FormatError
from facetry.io.sites import build_crystal, fractional

__all__ = ["read_xyz", "write_extxyz"]

_PAIR = re.compile(
    r"""([\w.\-:]+)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^}]*\}|\[[^=]*\]|[^\s"'{\[]+)"""
)


def read_xyz(
    text: str, *, merge_within: float | int | None = None
) -> Iterator[tuple[str, Crystal | FormatError]]:
    """Name (the comment's `name`, or "") and crystal of every frame.

    A frame that cannot be read gives a FormatError in its place; where the frames cannot be told apart any
    more, the last item is that error.
    """
    lines = text.split("\n")
    row, frames = 0, 0
    while row < len(lines):
        if not lines[row].strip():
            row += 1
            continue
        words = lines[row].split()
        if len(words) != 1 or not words[0].isdigit() or int(words[0]) == 0:
            error = FormatError(
                f"no XYZ: line {row + 1} should be the number of atoms, it is {lines[row].strip()[:60]!r}"
            )
            if not frames:
                raise error
            yield "", error
            return
        count = int(words[0])
        if row + 2 + count > len(lines):
            error = FormatError(
                f"the frame at line {row + 1} promises {count} atoms, the file ends after "
                f"{max(0, len(lines) - row - 2)} lines"
            )
            if not frames:
                raise error
            yield "", error
            return
        info = {key.lower(): _unquoted(value) for key, value in _PAIR.findall(lines[row + 1])}
        name = info.get("name", "")
        frames += 1
        try:
            yield name, _frame(info, lines[row + 2 : row + 2 + count], row + 3, name, merge_within)
        except FormatError as error:
            yield name, error
        row += 2 + count
    if not frames:
        raise FormatError("the file is empty")


def write_extxyz(crystal: Crystal) -> str:
    """One extended-XYZ frame with all digits; positions are Cartesian, so fractions return rounded."""
    if not crystal.is_ordered:
        raise ValueError(
            f"{crystal.name or crystal.formula}: extxyz cannot hold partial occupancy; use CIF or JSON"
        )
    lattice = " ".join(map(repr, crystal.lattice.ravel().tolist()))
    name = crystal.name.replace("\\", "\\\\").replace('"', '\\"')
    named = f' name="{" ".join(name.split())}"' if name else ""
    rows = [
        f"{symbol} {x!r} {y!r} {z!r}"
        for symbol, (x, y, z) in zip(crystal.symbols, crystal.cart_coords.tolist(), strict=True)
    ]
    comment = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"{named}'
    return "\n".join([str(len(crystal)), comment, *rows]) + "\n"


def _frame(
    info: dict[str, str], rows: list[str], first_line: int, name: str, merge_within: float | int | None
) -> Crystal:
    lattice = _lattice(info)
    species_at, species_kind, position_at = _columns(info.get("properties", ""))
    numbers, positions = [], []
    for offset, row in enumerate(rows):
        words = row.split()
        try:
            species = words[species_at]
            positions.append([float(word) for word in words[position_at : position_at + 3]])
            if len(positions[-1]) != 3:
                raise IndexError
        except (IndexError, ValueError):
            raise FormatError(f"line {first_line + offset} is no atom: {row.strip()[:60]!r}") from None
        numbers.append(_number(species, species_kind, first_line + offset))
    cart = np.array(positions)
    if not np.isfinite(cart).all():
        bad = int(np.flatnonzero(~np.isfinite(cart).all(axis=1))[0])
        raise FormatError(f"line {first_line + bad}: a coordinate is not finite: {rows[bad].strip()[:60]!r}")
    frac = fractional(lattice, cart)
    notes = []
    periodic = info.get("pbc", "").upper().replace(",", " ").strip("[]").split()
    if any(flag in ("F", "FALSE", "0") for flag in periodic):
        notes.append(f"pbc is {info['pbc']!r}; read as periodic in all three directions")
    return build_crystal(lattice, frac, np.array(numbers), name, notes=notes, merge_within=merge_within)


def _lattice(info: dict[str, str]) -> np.ndarray:
    text = info.get("lattice") or info.get("cell")
    if not text:
        raise FormatError(
            'no lattice in the comment line; a crystal needs Lattice="ax ay az bx by bz cx cy cz"'
        )
    try:
        values = [float(word) for word in re.sub(r"[\[\]{},]", " ", text).split()]
    except ValueError:
        values = []
    if len(values) == 3:
        values = np.diag(values).ravel().tolist()
    if len(values) != 9 or not np.isfinite(values).all():
        raise FormatError(f"Lattice must be nine numbers, it is {text[:80]!r}")
    return np.array(values).reshape(3, 3)


def _columns(properties: str) -> tuple[int, str, int]:
    """Where the species and the position stand in a row, and whether the species is S or a number."""
    if not properties:
        return 0, "S", 1
    parts = properties.split(":")
    if len(parts) % 3:
        raise FormatError(f"Properties must be name:type:columns triples, it is {properties[:80]!r}")
    at, places = 0, {}
    for key, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if not width.isdigit():
            raise FormatError(f"Properties must be name:type:columns triples, it is {properties[:80]!r}")
        places[key.lower()] = (at, kind.upper(), int(width))
        at += int(width)
    species = places.get("species") or places.get("element") or places.get("z") or places.get("numbers")
    position = places.get("pos") or places.get("positions")
    if not species or not position or position[2] != 3:
        raise FormatError("Properties names no species and three position columns (species:S:1:pos:R:3)")
    return species[0], species[1], position[0]


def _number(text: str, kind: str, line: int) -> int:
    if kind == "I" or text.isdigit():
        if text.isdigit():
            return int(text)
        raise FormatError(f"line {line}: {text!r} is no atomic number")
    try:
        return atomic_number(text)
    except ValueError as error:
        if match := re.fullmatch(r"([A-Za-z]{1,2})\d+", text):  # Fe1, Fe2: magnetic or labelled species
            try:
                return atomic_number(match.group(1))
            except ValueError:
                pass
        raise FormatError(f"line {line}: {error}") from None


def _unquoted(value: str) -> str:
    if value[0] in "\"'":
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
