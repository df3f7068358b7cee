"""Numbers and single values of a CIF block: the cell, coordinates, uncertainties in brackets."""

from __future__ import annotations

import math
import re

import gemmi
import numpy as np
from jaxtyping import Float

from facetry.crystal import FARTHEST, LONGEST
from facetry.io.errors import FormatError

__all__ = [
    "first_value",
    "lattice_from_parameters",
    "lattice_of",
    "numbers_of",
    "positions_of",
    "volume_note",
]

_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_CELL_TAGS = tuple(f"_cell_{part}" for part in _CELL)


def lattice_of(block: gemmi.cif.Block) -> tuple[Float[np.ndarray, "3 3"], list[float]]:
    """Rows of the lattice in Å, and its angles in degrees. Raises FormatError for an incomplete cell."""
    try:
        values = [float(block.find_value(tag)) for tag in _CELL_TAGS]
        if all(0 < value <= LONGEST for value in values):  # false for what is no number
            return lattice_from_parameters(*values), values[3:]
    except (TypeError, ValueError):  # missing, or with an uncertainty in brackets
        pass
    values = []
    for part in _CELL:
        text = first_value(block, (f"_cell_{part}", f"_cell.{part}"))
        if not text:
            raise FormatError(
                f"the cell is incomplete: _cell_{part} is missing; give three lengths and angles"
            )
        value = _number(text)
        if value is None or not value > 0 or not math.isfinite(value):
            raise FormatError(f"_cell_{part} is {text!r}, which is no positive number")
        if value > LONGEST:
            raise FormatError(f"_cell_{part} is {text!r}, more than the {LONGEST:g} this reader takes")
        values.append(value)
    return lattice_from_parameters(*values), values[3:]


def lattice_from_parameters(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> Float[np.ndarray, "3 3"]:
    """Rows a, b, c with a along x and b in the xy plane; lengths in Å, angles in degrees.

    Raises FormatError where the three angles close no cell.
    """
    # cosines of the angles that symmetry fixes are exact
    ca, cb, cg = (_EXACT.get(angle, math.cos(math.radians(angle))) for angle in (alpha, beta, gamma))
    sg = math.sqrt(max(0.0, 1.0 - cg * cg))
    square = 1.0 - ca * ca - cb * cb - cg * cg + 2.0 * ca * cb * cg
    if not (square > 0.0 and sg > 0.0 and max(alpha, beta, gamma) < 180.0):
        raise FormatError(
            f"angles {alpha:g}, {beta:g}, {gamma:g} close no cell of any volume (flat cell); correct them"
        )
    return np.array(
        [[a, 0.0, 0.0], [b * cg, b * sg, 0.0], [c * cb, c * (ca - cb * cg) / sg, c * math.sqrt(square) / sg]]
    )


_EXACT = {90.0: 0.0, 60.0: 0.5, 120.0: -0.5}


def volume_note(block: gemmi.cif.Block, lattice: Float[np.ndarray, "3 3"], notes: list[str]) -> None:
    """Adds a note where the volume that the file states is not that of its cell."""
    stated = _number(first_value(block, ("_cell_volume", "_cell.volume")))
    if stated:
        volume = float(lattice[0, 0] * lattice[1, 1] * lattice[2, 2])
        if abs(volume - stated) > 0.02 * max(volume, abs(stated)):
            notes.append(f"the file says volume {stated:g} Å^3, its cell has {volume:.6g}")


def first_value(block: gemmi.cif.Block, tags: tuple[str, ...]) -> str:
    """The value of the first of these tags that has one, unquoted; "" for none, "?" and "."."""
    for tag in tags:
        values = block.find_values(tag)  # an item, or the first row of a loop
        if values:
            text = values[0]  # empty where the file ends with its tag
            if text and text[0] in "'\";":
                text = gemmi.cif.as_string(text).strip()
            if text and text not in ("?", "."):
                return text
    return ""


_BRACKETS = re.compile(r"\([^)]*\)")


def _number(text: str) -> float | None:
    """A number with or without its uncertainty in brackets; None for anything else."""
    try:
        return float(text)
    except ValueError:
        pass
    plain = _BRACKETS.sub("", text).strip("'\" ")
    try:
        if "/" in plain:
            above, below = plain.split("/")
            return float(above) / float(below)
        return float(plain)
    except (ValueError, ZeroDivisionError):
        return None


def positions_of(columns: list[list[str]], labels: list[str]) -> Float[np.ndarray, "sites 3"]:
    """Fractional coordinates from columns of text. Raises FormatError that names the site."""
    try:
        x, y, z = columns
        positions = np.array(list(map(float, x + y + z))).reshape(3, -1).T
        if np.abs(positions).max() <= FARTHEST:
            return positions
    except ValueError:
        pass
    return np.stack(
        [numbers_of(v, f"fract_{x}", labels, FARTHEST) for x, v in zip("xyz", columns, strict=True)], axis=1
    )


def numbers_of(
    texts: list[str], what: str, labels: list[str], most: float = np.inf
) -> Float[np.ndarray, " sites"]:
    """Numbers of a column, finite and up to `most` in size. Raises FormatError that names the site."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        numbers = [_number(text) for text in texts]
        for label, text, number in zip(labels, texts, numbers, strict=True):
            if number is None:
                unknown = "is not given" if text in ("?", ".") else f"is {text!r}, which is no number"
                raise FormatError(f"site {label}: _atom_site_{what} {unknown}") from None
        values = np.array(numbers, dtype=float)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise FormatError(f"site {labels[bad]}: _atom_site_{what} is {texts[bad]!r}, which is not finite")
    if not np.abs(values).max(initial=0) <= most:
        bad = int(np.argmax(np.abs(values)))
        raise FormatError(f"site {labels[bad]}: _atom_site_{what} is {texts[bad]!r}, beyond {most:g}")
    return values
