"""Symmetry operators of a CIF: the listed ones, or those its Hall or Hermann-Mauguin symbol stands for.

A symbol can stand for several settings (two origins, hexagonal or rhombohedral axes, a monoclinic axis
written the wrong way round). `from_symbols` returns all that fit the cell, most likely first; the
caller expands each and lets the formula decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import gemmi
import numpy as np
from jaxtyping import Float

from facetry.io.errors import FormatError

__all__ = ["IDENTITY", "Operators", "fits_cell", "from_symbols", "from_triplets"]

MAX_OPERATORS = 192  # Fm-3m and its like, centring included
METRIC_SLACK = 0.01  # an operator may change a length or an angle by about half a per cent


@dataclass(frozen=True, eq=False)
class Operators:
    """A space group as x' = rotation @ x + translation on fractional columns; the identity comes first."""

    rotation: Float[np.ndarray, "operators 3 3"]
    translation: Float[np.ndarray, "operators 3"]
    source: str
    note: str = ""
    rewritten: bool = (
        False  # the symbol's monoclinic axis was moved; only for a cell it does not fit as written
    )

    def __len__(self) -> int:
        return len(self.translation)


IDENTITY = Operators(np.eye(3)[None], np.zeros((1, 3)), "P 1")


def fits_cell(operators: Operators, lattice: Float[np.ndarray, "3 3"]) -> bool:
    """True where every operator leaves the lengths and angles of the cell alone."""
    metric = lattice @ lattice.T
    scale = np.sqrt(np.outer(metric.diagonal(), metric.diagonal()))
    moved = operators.rotation.transpose(0, 2, 1) @ metric @ operators.rotation
    return bool((np.abs(moved - metric) <= METRIC_SLACK * scale).all())


# --- operators written out ---------------------------------------------------------------------


@lru_cache(maxsize=512)
def from_triplets(triplets: tuple[str, ...], centring: tuple[str, ...] = ()) -> Operators:
    """Operators from "x,y,z" texts, completed to a group where the list is not closed.

    `centring` holds pure translations listed apart (magnetic CIF). A fourth part, as the time reversal
    in "x,y,z,-1", is ignored: it moves no atom. Raises FormatError for what is no group of operators.
    """
    known = _known_group(triplets) if not centring else None
    if known is not None:
        return known
    parsed = [_triplet(text) for text in triplets]
    shifts = [_triplet(text)[1] for text in centring] or [(Fraction(0),) * 3]
    rotation = np.array([r for r, _ in parsed for _ in shifts], dtype=np.int64).reshape(-1, 3, 3)
    translation = np.array(
        [[float((a + b) % 1) for a, b in zip(t, s, strict=True)] for _, t in parsed for s in shifts]
    )
    determinant = np.rint(np.linalg.det(rotation))
    if not (np.abs(determinant) == 1).all():
        bad = triplets[int(np.flatnonzero(np.abs(determinant) != 1)[0]) // len(shifts)]
        raise FormatError(
            f"symmetry operator {bad!r} is no rotation or reflection; correct the operator list"
        )
    given = len(np.unique(_keys(rotation, translation)))
    rotation, translation = _closed(rotation, translation)
    note = ""
    if len(translation) != given:
        note = f"the {given} listed symmetry operators are no group; completed to {len(translation)}"
    return Operators(rotation.astype(float), translation, f"{given} listed operators", note)


def _known_group(triplets: tuple[str, ...]) -> Operators | None:
    """The listed operators where gemmi knows their group, so that nothing need be checked or completed."""
    try:
        operators = [gemmi.Op(text.strip()) for text in triplets]
        group = gemmi.GroupOps(operators)
    except (RuntimeError, ValueError):
        return None
    if len(list(group)) != len(operators) or gemmi.find_spacegroup_by_ops(group) is None:
        return None
    operators.sort(key=lambda op: op != gemmi.Op())  # the identity comes first
    rotation = np.array([op.rot for op in operators]) / gemmi.Op.DEN
    translation = np.array([op.tran for op in operators]) / gemmi.Op.DEN % 1.0
    return Operators(rotation, translation, f"{len(operators)} listed operators")


_TERM = re.compile(r"([+-]?)(?:(\d*\.?\d+|\d+\.)(?:/(\d+))?)?\*?([xyz]?)")


@lru_cache(maxsize=4096)
def _triplet(text: str) -> tuple[tuple[tuple[int, ...], ...], tuple[Fraction, ...]]:
    parts = "".join(text.lower().split()).strip(",").split(",")
    if len(parts) not in (3, 4):
        raise FormatError(f"symmetry operator {text!r} is not of the form 'x,y,z'")
    rows, shifts = [], []
    for part in parts[:3]:
        row, shift, position = [0, 0, 0], Fraction(0), 0
        while position < len(part):
            match = _TERM.match(part, position)
            if match is None or match.end() == position or match.group(0) in "+-":
                raise FormatError(f"symmetry operator {text!r} is not of the form 'x,y,z'")
            sign, number, below, axis = match.groups()
            if below is not None and int(below) == 0:
                raise FormatError(f"symmetry operator {text!r} divides by zero")
            value = Fraction(number or "1") / int(below or 1) * (-1 if sign == "-" else 1)
            if axis:
                if value.denominator != 1:
                    raise FormatError(f"symmetry operator {text!r} is no rotation or reflection")
                row["xyz".index(axis)] += int(value)
            else:
                shift += _neat(value)
            position = match.end()
        rows.append(tuple(row))
        shifts.append(shift)
    return tuple(rows), tuple(shifts)


def _neat(value: Fraction) -> Fraction:
    """0.3333 means 1/3: decimals next to a twenty-fourth are rounded."""
    nearest = Fraction(round(value * 24), 24)
    return nearest if abs(value - nearest) < Fraction(1, 1000) else value


def _keys(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """One integer per operator, equal for equal operators (translations modulo 1)."""
    steps = np.rint(translation * 5040).astype(np.int64) % 5040
    numbers = np.concatenate([rotation.reshape(-1, 9), steps], axis=1).astype(np.uint64)
    odd = np.random.default_rng(20240229).integers(1, 2**63, 12, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    return (numbers * odd).sum(axis=1, dtype=np.uint64)  # wraps around: a hash


def _closed(rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group that the operators generate, identity first, given ones next."""
    rotation = np.concatenate([np.eye(3, dtype=np.int64)[None], rotation])
    translation = np.concatenate([np.zeros((1, 3)), translation])
    count = 0
    while True:
        _, index = np.unique(_keys(rotation, translation), return_index=True)
        index.sort()
        rotation, translation = rotation[index], translation[index]
        if len(index) > MAX_OPERATORS:
            raise FormatError(
                f"the listed symmetry operators generate more than {MAX_OPERATORS}, which no space group "
                "has; correct the operator list"
            )
        if len(index) == count:
            return rotation, translation
        count = len(index)
        products = np.einsum("aij,bjk->abik", rotation, rotation).reshape(-1, 3, 3)
        moved = np.einsum("aij,bj->abi", rotation, translation) + translation[:, None, :]
        rotation = np.concatenate([rotation, products])
        translation = np.concatenate([translation, moved.reshape(-1, 3) % 1.0])


# --- symbols -----------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def from_symbols(
    hall: str, hermann_mauguin: str, number: str, alpha: float = 0.0, gamma: float = 0.0
) -> list[Operators]:
    """Candidate space groups for the symbols a file gives ("" where it gives none), most likely first.

    `alpha` and `gamma` tell a hexagonal from a rhombohedral cell where the symbol does not.
    Empty where there is no symbol at all. Raises FormatError for symbols nobody knows or that contradict
    each other.
    """
    found: list[Operators] = []
    hall_number = None
    if hall:
        try:
            group = gemmi.symops_from_hall(hall.replace("_", " "))
        except (RuntimeError, ValueError):
            group = None
        if group is not None:
            known = gemmi.find_spacegroup_by_ops(group)
            hall_number = known.number if known else None
            found.append(_operators(group, f"Hall symbol {hall}"))
    groups = _named(hermann_mauguin, alpha, gamma) if hermann_mauguin else []
    if groups and hall_number and groups[0].number != hall_number:
        raise FormatError(
            f"the Hall symbol {hall!r} is group {hall_number} but the Hermann-Mauguin symbol "
            f"{hermann_mauguin!r} is group {groups[0].number}; correct one or give the operators"
        )
    if found:
        return found
    if groups:
        first = groups[0].hm
        return [_operators(g.operations(), f"symbol {g.xhm()}", g.hm != first) for g in groups]
    if number:
        if not number.isdigit() or not 1 <= int(number) <= 230:
            raise FormatError(f"space group number {number!r} is not 1 to 230")
        numbered = [g for g in gemmi.spacegroup_table() if g.number == int(number)]
        reference = [g for g in numbered if g.is_reference_setting()] or numbered[:1]
        settings = [g for g in _siblings(reference[0]) if g.hm == reference[0].hm]
        return [_operators(g.operations(), f"group number {number} as {g.xhm()}") for g in settings]
    if hall or hermann_mauguin:
        raise FormatError(
            f"space group {hermann_mauguin or hall!r} is unknown; "
            "give the symmetry operators (_space_group_symop_operation_xyz)"
        )
    return []


def _operators(group: gemmi.GroupOps, source: str, rewritten: bool = False) -> Operators:
    operators = sorted(group, key=lambda op: op != gemmi.Op())  # the identity comes first
    rotation = np.array([op.rot for op in operators]) / gemmi.Op.DEN
    translation = np.array([op.tran for op in operators]) / gemmi.Op.DEN
    return Operators(rotation, translation % 1.0, source, rewritten=rewritten)


def _named(symbol: str, alpha: float, gamma: float) -> list[gemmi.SpaceGroup]:
    """Settings that an H-M symbol can stand for; a qualifier in it narrows them down."""
    symbol = re.sub(r"\((\d)\)", r"\1", symbol)  # P2(1)/c
    bare, opening, rest = symbol.partition(match.group(0) if (match := re.search(r"[{(\[]", symbol)) else "{")
    comment = rest.lower() if opening else ""
    bare = bare.strip()
    choice = ""
    if match := re.search(r":\s*([12hr]|[abc]\d?|-?[abc]\d?)\s*$", bare, re.IGNORECASE):
        choice, bare = match.group(1).lower(), bare[: match.start()]
    elif match := re.search(r"\s([SZHR])\s*$", bare):
        # ICSD: S and Z for the first and second origin, H and R for the axes
        choice = {"S": "1", "Z": "2", "H": "h", "R": "r"}[match.group(1)]
        bare = bare[: match.start()]
    if not choice and "origin" in comment:
        # the second choice is the one with its origin at a centre of symmetry
        choice = "2" if re.search(r"\b(2|-1|-3m|centre|center)", comment) else "1" if "1" in comment else ""
    group = None
    for text in _spellings(bare):
        group = gemmi.find_spacegroup_by_name(text, alpha, gamma)
        if group is not None:
            break
    if group is None:
        return []
    settings = _siblings(group)
    if choice in ("1", "2", "h", "r"):
        settings = [g for g in settings if g.ext.lower() == choice] or settings
    elif choice:
        same = [g for g in gemmi.spacegroup_table() if g.number == group.number]
        letters = group.hm[0]
        settings = (
            [g for g in same if g.qualifier == choice and g.hm[0] == letters]
            or [g for g in same if g.qualifier == choice]
            or settings
        )
    return settings


def _spellings(symbol: str) -> list[str]:
    """Ways to read an H-M symbol: screw axes as 2_1, words joined by underscores, blanks inside words,
    full symbols ("F 4/m -3 2/m")."""
    texts = [symbol, re.sub(r"(\d)_(\d)", r"\1\2", symbol)]
    texts += [text.replace("_", " ") for text in texts] + [text.replace("_", "") for text in texts]
    texts += [re.sub(r"\s*/\s*", "/", texts[1]), re.sub(r"\s+", "", texts[1])]
    joined = re.sub(r"[\s_]+", "", symbol)
    if cubic := re.fullmatch(r"([PIF])-?(4[13]?)3m", joined):  # old books leave out the bar of -43m
        texts.append(f"{cubic.group(1)} -4 3 m")
    words = texts[3].split()
    if len(words) > 2:
        short = [re.sub(r"^\d+/", "", word) for word in words[1:]]
        texts.append(" ".join([words[0], words[1], *short[1:]]))  # 4/m and 6/m keep their axis
        texts.append(" ".join([words[0], *short]))
    return list(dict.fromkeys(texts))


def _siblings(group: gemmi.SpaceGroup) -> list[gemmi.SpaceGroup]:
    """Settings with the same symbol, the given one first: both origins, both axes of a rhombohedral cell,
    and a monoclinic symbol with its unique axis written elsewhere."""
    same = [g for g in gemmi.spacegroup_table() if g.number == group.number]
    settings = [group] + [g for g in same if g.hm == group.hm and g.ext != group.ext]
    if 3 <= group.number <= 15:
        words = sorted(group.hm.split()[1:])
        turned = [g for g in same if g.hm[0] == group.hm[0] and sorted(g.hm.split()[1:]) == words]
        settings += [g for g in turned if g.hm != group.hm]
    return settings
