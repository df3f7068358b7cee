"""CIF to Crystal: gemmi splits the text, everything with a meaning is decided here.

Every block that describes a structure is read. The cell is set up with a along x and b in the xy plane.
Listed atoms keep their coordinates; symmetry copies are put inside the cell. Symmetry comes from the listed
operators, else the Hall symbol, else the Hermann-Mauguin symbol, else the group number; without any of them
the listed atoms are the whole cell. Whatever had to be assumed is in `Crystal.notes`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import gemmi
import numpy as np

from facetry.crystal import Crystal
from facetry.io.cif_repair import read_document
from facetry.io.cif_values import first_value, lattice_of, numbers_of, positions_of, volume_note
from facetry.io.elements_of import NoElement, element_of_label, element_of_type
from facetry.io.errors import FormatError
from facetry.io.formula_check import Expected, expected_contents
from facetry.io.sites import MAX_SITES, build_crystal
from facetry.io.symmetry import IDENTITY, Operators, fits_cell, from_symbols, from_triplets

__all__ = ["read_cif"]

_OPERATORS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop.operation_xyz",
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop.magn_operation_xyz",
)
_CENTRINGS = ("_space_group_symop_magn_centering.xyz", "_space_group_symop_magn_centering_xyz")
_HALL = ("_symmetry_space_group_name_Hall", "_space_group_name_Hall", "_space_group.name_Hall")
_HERMANN_MAUGUIN = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group.name_H-M_alt",
    "_symmetry.space_group_name_H-M",
    "_space_group_name_H-M_full",
    "_space_group.name_H-M_full",
    "_space_group_name_H-M_ref",
    "_space_group.name_H-M_ref",
    "_space_group_name_H-M",
)
_NUMBER = (
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
    "_space_group.IT_number",
    "_symmetry.Int_Tables_number",
)
_MODULATED = (
    "_space_group_symop_ssg_operation_algebraic",
    "_space_group_symop_magn_ssg_operation.algebraic",
    "_space_group_ssg_name",
    "_cell_modulation_dimension",
)


def read_cif(
    text: str | bytes, *, merge_within: float | int | None = None
) -> Iterator[tuple[str, Crystal | FormatError]]:
    """Block name and crystal (or what is wrong with it) for every structure in the text.

    The name is "" where several blocks share it.

    Raises FormatError where the text is no CIF or holds no structure at all.
    """
    document, notes = read_document(text)
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    modulated = b"_ssg" in raw or b"_modulation_dimension" in raw
    found = 0
    names = Counter(block.name for block in document) if len(document) > 1 else {}
    for block in document:
        columns = _sites(block)
        if columns or block.find_values("_cell_length_a") or block.find_values("_cell.length_a"):
            found += 1
            key = block.name.strip() if names.get(block.name, 1) == 1 else ""
            try:
                if modulated:
                    _refuse_modulated(block)
                yield key, _crystal(block, columns, notes, merge_within)
            except FormatError as error:
                yield key, error
    if not found:
        raise FormatError("no structure in it: no block has a cell and atom sites")


def _refuse_modulated(block: gemmi.cif.Block) -> None:
    if first_value(block, _MODULATED):
        raise FormatError(
            "modulated structure (superspace group): its atoms repeat in no three-dimensional cell; "
            "give the average structure or a commensurate approximant"
        )


def _crystal(
    block: gemmi.cif.Block, columns: dict[str, list[str]], notes: list[str], merge_within: float | int | None
) -> Crystal:
    notes = list(notes)
    lattice, angles = lattice_of(block)
    volume_note(block, lattice, notes)
    expected = expected_contents(
        first_value(block, ("_chemical_formula_sum", "_chemical_formula.sum")),
        first_value(block, ("_cell_formula_units_Z", "_cell.formula_units_Z")),
    )
    atoms = _Atoms(columns, expected, notes)
    candidates = _symmetry(block, lattice, angles, notes)
    read: list[tuple[Operators, Crystal]] = []
    failure: FormatError | None = None
    for operators in candidates:
        try:
            read.append((operators, atoms.expand(lattice, operators, block.name, notes, merge_within)))
        except FormatError as error:
            failure = failure or error
    if failure is not None and not read:
        raise failure
    operators, crystal = read[0] if len(read) == 1 else _choose(read, expected)
    more = [operators.note] if operators.note else []
    if operators is not candidates[0] and len(read) == 1:
        more.append(f"symmetry taken as {operators.source}: {candidates[0].source} makes atoms overlap")
    if atoms.dropped and not (expected and expected.matches(crystal)):
        raise FormatError(
            f"site {atoms.dropped[0]} holds no element, and what is left does not match the formula; "
            "name its element in _atom_site_type_symbol or remove it"
        )
    if expected:
        more += expected.remarks(crystal)
    return crystal.replace(notes=crystal.notes + tuple(more)) if more else crystal


# --- symmetry ----------------------------------------------------------------------------------


def _symmetry(
    block: gemmi.cif.Block, lattice: np.ndarray, angles: list[float], notes: list[str]
) -> list[Operators]:
    """Operators to try, best first. More than one only where the file leaves a choice."""
    triplets: tuple[str, ...] = ()
    for tag in _OPERATORS:
        values = block.find_values(tag)
        if values:
            texts = [gemmi.cif.as_string(value) for value in values]
            if len(texts) == 1 and (";" in texts[0] or "\n" in texts[0]):
                texts = re.split(r"[;\n]", texts[0])
            triplets = tuple(text.strip() for text in texts if text.strip() not in ("", "?", "."))
            if triplets:
                break
    symbol = first_value(block, _HERMANN_MAUGUIN)
    if len(triplets) == 1 and symbol in ("P 1", "P1"):
        listed = from_triplets(triplets)
        if len(listed) == 1:
            return [listed]
    hall, number = first_value(block, _HALL), first_value(block, _NUMBER)
    if not triplets and not (hall or symbol or number):
        return [IDENTITY]
    centring = next(
        (tuple(map(gemmi.cif.as_string, v)) for t in _CENTRINGS if (v := block.find_values(t))), ()
    )
    listed = from_triplets(triplets, centring) if triplets else None
    try:
        # only a rhombohedral symbol needs the cell to be read
        shape = (
            () if symbol[:1] not in "RrHh" else (90.0, 120.0) if abs(angles[2] - 120) < 1 else (80.0, 80.0)
        )
        named = from_symbols(hall, symbol, number, *shape)
    except FormatError:
        if listed is None:
            raise
        named = []
    if listed is not None:
        if not fits_cell(listed, lattice):
            raise FormatError(
                "the listed symmetry operators do not fit the cell: they would change its lengths or angles; "
                "correct the cell or the operators"
            )
        larger = [g for g in named if len(g) > len(listed) and not g.rewritten and fits_cell(g, lattice)]
        return [listed, *larger]
    if len(named) == 1 and len(named[0]) == 1:
        return named
    fitting = [g for g in named if fits_cell(g, lattice)]
    if not fitting:
        shape = ", ".join(f"{angle:g}" for angle in angles)
        raise FormatError(
            f"space group {hall or symbol or number!r} does not fit the cell (angles {shape}); "
            "correct one of them or give the operators"
        )
    plain = [g for g in fitting if not g.rewritten]
    if not plain:
        notes.append(f"the cell does not fit {symbol!r}; read as {fitting[0].source.removeprefix('symbol ')}")
        return fitting[:1]
    return plain


def _choose(read: list[tuple[Operators, Crystal]], expected: Expected | None) -> tuple[Operators, Crystal]:
    """One of several readings of the symmetry: the one whose contents match the formula."""
    first, crystal = read[0]
    same_size = [r for r in read if len(r[1]) == len(crystal)]
    listed = first.source.endswith("listed operators")
    if listed and len(same_size) == len(read):
        return read[0]  # all sites of the larger group are listed: nothing to decide
    if expected and expected.per_cell:
        matching = [r for r in read if expected.matches(r[1])]
        if len({len(r[1]) for r in matching}) == 1 and (listed or len(matching) == 1):
            chosen, crystal = matching[0]
            if chosen is not first:
                reason = (
                    f"symmetry taken as {chosen.source}, which gives the formula; {first.source} does not"
                )
                crystal = crystal.replace(notes=(*crystal.notes, reason))
            return chosen, crystal
    if listed and len(first) > 1:
        reason = f"{first.source} used, though {read[1][0].source} has {len(read[1][0])}"
        return first, crystal.replace(notes=(*crystal.notes, reason))
    options = " or ".join(f"{operators.source} ({len(found)} sites)" for operators, found in read)
    if listed:
        raise FormatError(
            f"contradictory symmetry: {options}; remove the symbol if all atoms are listed, "
            "else give all operators"
        )
    fewest = min(len(found) for _, found in read)
    smallest = [r for r in read if len(r[1]) == fewest]
    if len(smallest) == 1:
        chosen, crystal = smallest[0]
        reason = f"setting not stated: {chosen.source} puts atoms on special positions ({options})"
        return chosen, crystal.replace(notes=(*crystal.notes, reason))
    raise FormatError(
        f"the setting is not stated: {options}; add ':1' or ':2' to the symbol or give operators"
    )


# --- sites -------------------------------------------------------------------------------------


def _sites(block: gemmi.cif.Block) -> dict[str, list[str]]:
    """Columns of the atom site loop by their name after _atom_site, in lower case."""
    for tag in ("_atom_site_fract_x", "_atom_site.fract_x", "_atom_site_Cartn_x", "_atom_site_label",
                "_atom_site_type_symbol", "_atom_site.label"):  # fmt: skip
        column = block.find_values(tag)
        if not column:
            continue
        loop = column.get_loop()
        if loop is None:  # one atom, written as plain items
            pairs = [item.pair for item in block if item.pair is not None]
            return {
                t[11:].lower(): [v] for t, v in pairs if t.lower().startswith(("_atom_site_", "_atom_site."))
            }
        values, width = loop.values, loop.width()
        return {tag[11:].lower(): values[k::width] for k, tag in enumerate(loop.tags)}
    return {}


class _Atoms:
    """The atom site loop as arrays, ready to be expanded by any symmetry."""

    def __init__(self, columns: dict[str, list[str]], expected: Expected | None, notes: list[str]) -> None:
        if not columns:
            raise FormatError("no atom sites (_atom_site_fract_x and so on)")
        labels = columns.get("label")
        types = columns.get("type_symbol")
        coordinates = [columns.get(f"fract_{axis}") for axis in "xyz"]
        if all(values is None for values in coordinates):
            raise FormatError("no fractional coordinates (_atom_site_fract_x, _y, _z) in the atom sites")
        for axis, values in zip("xyz", coordinates, strict=True):
            if values is None:
                raise FormatError(f"the column _atom_site_fract_{axis} is missing")
        if labels is None and types is None:
            raise FormatError("the atom sites have neither labels nor type symbols, so no elements")
        self.labels: list[str] = labels if labels is not None else types  # type: ignore[assignment]
        self.dropped: list[str] = []
        count = len(self.labels)
        if all(label in ("?", ".") for label in self.labels):
            raise FormatError("the atom sites are not given (all '?')")
        keep = self._keep(columns, notes)
        occupancy = self._occupancy(columns.get("occupancy"), keep, notes)
        formula = expected.symbols if expected else frozenset()
        numbers = self._elements(types, labels, formula, keep, notes)
        rows = [i for i in range(count) if keep[i]]
        if not rows:
            raise FormatError("no atom sites are left: all are empty, dummies or no elements")
        every = len(rows) == count
        self.labels = self.labels if every else [self.labels[i] for i in rows]
        frac = [v if every else [v[i] for i in rows] for v in coordinates]  # type: ignore[index]
        self.frac = positions_of(frac, self.labels)
        self.numbers = np.array(numbers if every else [numbers[i] for i in rows])
        self.occupancy = None if occupancy is None else occupancy[rows]
        groups = columns.get("disorder_group")
        if groups and self.occupancy is None and any(g not in (".", "?", "1", "0") for g in groups):
            notes.append("disorder groups are given without partial occupancies; all alternatives were kept")

    def _keep(self, columns: dict[str, list[str]], notes: list[str]) -> list[bool]:
        flags = columns.get("calc_flag")
        keep = [True] * len(self.labels)
        if flags and "dum" in flags:
            keep = [flag != "dum" for flag in flags]
            dummies = [label for label, kept in zip(self.labels, keep, strict=True) if not kept]
            notes.append(f"dummy sites left out: {', '.join(dummies[:5])}")
        return keep

    def _occupancy(self, column: list[str] | None, keep: list[bool], notes: list[str]) -> np.ndarray | None:
        if column is None or all(text in ("1", "1.0", "1.", "1.00", "1.000", "1.00000") for text in column):
            return None
        known = [text if text not in ("?", ".") else "1" for text in column]
        if "?" in column:
            notes.append(f"occupancy '?' taken as 1 for {column.count('?')} sites")
        occupancy = numbers_of(known, "occupancy", self.labels)
        if (occupancy < 0).any() or (occupancy > 1.5).any():
            bad = int(np.flatnonzero((occupancy < 0) | (occupancy > 1.5))[0])
            raise FormatError(f"site {self.labels[bad]} has occupancy {occupancy[bad]:g}; expected 0 to 1")
        empty = np.flatnonzero(occupancy == 0)
        if len(empty):
            for index in empty.tolist():
                keep[index] = False
            notes.append(f"sites with occupancy 0 left out: {', '.join(self.labels[i] for i in empty[:5])}")
        return occupancy

    def _elements(
        self,
        types: list[str] | None,
        labels: list[str] | None,
        formula: frozenset[str],
        keep: list[bool],
        notes: list[str],
    ) -> list[int]:
        numbers, groups = [], {}
        for index, label in enumerate(self.labels):
            number = 0
            if keep[index]:
                try:
                    number, group = _element(types and types[index], labels and labels[index], formula)
                    if group:
                        groups[gemmi.cif.as_string(label)] = group
                except NoElement as error:
                    if not (types and types[index] in ("?", ".")):
                        raise FormatError(f"site {label}: {error}") from None
                    # a density peak: left out, and the formula must confirm it
                    keep[index] = False
                    self.dropped.append(label)
            numbers.append(number)
        if self.dropped:
            notes.append(f"sites without an element left out: {', '.join(self.dropped[:5])}")
        if groups:
            named = ", ".join(f"{label} ({group})" for label, group in list(groups.items())[:5])
            notes.append(f"groups read as their heavy atom, hydrogen missing: {named}")
        return numbers

    def expand(
        self,
        lattice: np.ndarray,
        operators: Operators,
        name: str,
        notes: list[str],
        merge_within: float | int | None,
    ) -> Crystal:
        """The full cell by these operators."""
        count, copies = len(self.numbers), len(operators)
        if count * copies > 4 * MAX_SITES:
            raise FormatError(f"{count} sites times {copies} operators is more than this reader takes")
        if copies == 1:
            return build_crystal(
                lattice,
                self.frac,
                self.numbers,
                name,
                occupancy=self.occupancy,
                label=self.labels.__getitem__,
                notes=notes,
                merge_within=merge_within,
            )
        frac = np.einsum("oij,nj->noi", operators.rotation, self.frac) + operators.translation
        frac -= np.floor(frac)
        frac[:, 0] = self.frac  # the identity comes first: listed atoms stay where the file puts them
        origin = np.repeat(np.arange(count), copies)
        listed = np.zeros((count, copies), dtype=bool)
        listed[:, 0] = True
        return build_crystal(
            lattice,
            frac.reshape(-1, 3),
            self.numbers[origin],
            name,
            occupancy=None if self.occupancy is None else self.occupancy[origin],
            origin=origin,
            listed=listed.ravel(),
            label=self.labels.__getitem__,
            notes=notes,
            merge_within=merge_within,
        )


def _element(type_text: str | None, label: str | None, formula: frozenset[str]) -> tuple[int, str]:
    if type_text and type_text not in ("?", "."):
        return element_of_type(type_text)
    if label is None:
        raise NoElement(f"{type_text!r} is no element")
    return element_of_label(label, formula)
