"""Many crystals in flat arrays: what a data set holds in memory and writes to Parquet.

    names      perov-1     perov-2 ...
    offsets    0           5          10         crystal i owns atoms offsets[i] to offsets[i + 1]
    atoms      . . . . .   . . . . .

The Parquet columns are `id` (string), `atomic_numbers` (list of integers), `frac_coords` (flat list x1, y1,
z1, x2, ...) and `lattice` (nine numbers, rows a, b, c in Å).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from facetry.crystal import Crystal
from facetry.elements import MAX_ATOMIC_NUMBER, SYMBOLS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CrystalTable", "TableError", "column_lists", "gather"]

COLUMNS = ("id", "atomic_numbers", "frac_coords", "lattice")
_GRID = 1e6  # cells of the lattice fingerprint per Å
_SHIFT = 0.3183098861837907  # keeps printed decimals away from the borders of these cells


class TableError(ValueError):
    """A table of crystals that is not in the format described above."""


def gather(
    offsets: Int[np.ndarray, " starts"], rows: Int[np.ndarray, " rows"]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all items of the chosen rows of a ragged array, and the offsets of the result."""
    counts = (offsets[1:] - offsets[:-1])[rows]
    new = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.arange(new[-1]) + np.repeat(offsets[rows] - new[:-1], counts), new


@dataclass(frozen=True, eq=False)
class CrystalTable(Sequence[Crystal]):
    """A sequence of crystals kept in flat float64 and int64 arrays; a `Crystal` is made when asked for.

    `occupancies` maps the few rows that have them to what `Crystal` takes. Rows are lattice vectors in Å.
    """

    lattice: Float[np.ndarray, "crystals 3 3"]
    frac_coords: Float[np.ndarray, "atoms 3"]
    atomic_numbers: Int[np.ndarray, " atoms"]
    offsets: Int[np.ndarray, " crystals_plus_one"]
    names: np.ndarray
    occupancies: dict[int, tuple[dict[int, float], ...]] | None = None

    def __repr__(self) -> str:
        return f"<CrystalTable of {len(self)} crystals, {len(self.atomic_numbers)} sites>"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        """A crystal for an integer; a table for a slice, a list of integers or a mask."""
        if not isinstance(index, int | np.integer):
            return self.select(index)
        row = int(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"crystal {row} of a table of {len(self)}")
        row %= len(self)
        atoms = slice(self.offsets[row], self.offsets[row + 1])
        return Crystal(
            self.lattice[row],
            self.frac_coords[atoms],
            self.atomic_numbers[atoms],
            occupancies=(self.occupancies or {}).get(row),
            name=str(self.names[row]),
        )

    def select(self, rows: Any) -> CrystalTable:
        """The chosen rows in the given order (slice, integers or mask), without making a Crystal."""
        rows = np.arange(len(self))[
            rows if isinstance(rows, slice) else np.asarray(rows, dtype=_index_type(rows))
        ]
        atoms, offsets = gather(self.offsets, rows)
        occupancies = None
        if self.occupancies:
            found = ((new, self.occupancies.get(int(old))) for new, old in enumerate(rows))
            occupancies = {new: value for new, value in found if value is not None} or None
        return CrystalTable(
            self.lattice[rows],
            self.frac_coords[atoms],
            self.atomic_numbers[atoms],
            offsets,
            self.names[rows],
            occupancies,
        )

    @property
    def num_atoms(self) -> Int[np.ndarray, " crystals"]:
        """Sites of every crystal."""
        return np.diff(self.offsets)

    def flat_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """lattice, frac_coords, atomic_numbers, num_atoms: what a batch is built from in one step."""
        return self.lattice, self.frac_coords, self.atomic_numbers, self.num_atoms

    @cached_property
    def formulas(self) -> list[str]:
        """Reduced composition of every crystal, elements in alphabetical order: a key for grouping, not a
        formula for print. Partial occupancies count by their majority element."""
        crystal = np.repeat(np.arange(len(self)), self.num_atoms)
        stride = MAX_ATOMIC_NUMBER + 1
        keys, counts = np.unique(crystal * stride + self.atomic_numbers, return_counts=True)
        owner, number = keys // stride, keys % stride
        starts = np.searchsorted(owner, np.arange(len(self)))
        divisor = np.gcd.reduceat(counts, starts) if len(self) else counts
        parts = [
            f"{SYMBOLS[z]}{n}"
            for z, n in zip(number.tolist(), (counts // divisor[owner]).tolist(), strict=True)
        ]
        ends = [*starts[1:].tolist(), len(parts)]
        return ["".join(sorted(parts[a:b])) for a, b in zip(starts.tolist(), ends, strict=True)]

    def update_hash(self, digest: Any) -> None:
        """Feed the exact content to a hashlib object."""
        for array, kind in (
            (self.lattice, "<f8"),
            (self.frac_coords, "<f8"),
            (self.atomic_numbers, "<i8"),
            (self.offsets, "<i8"),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        digest.update("\n".join(self.names.tolist()).encode())
        if self.occupancies:
            digest.update(repr(sorted(self.occupancies.items())).encode())

    def fingerprint(self) -> str:
        """sha256 of names, elements, coordinates and of the lattices on a grid of 1e-6 Å.

        A lattice computed from lengths and angles differs between machines in its last bits; the grid makes
        the fingerprint the same everywhere, and the Parquet writer does not enter."""
        digest = hashlib.sha256()
        cells = np.floor(self.lattice * _GRID + _SHIFT).astype("<i8")
        coords = (self.frac_coords + 0.0).astype("<f8")  # -0.0 becomes 0.0
        for part in (cells, coords, self.atomic_numbers.astype("<i8"), self.offsets.astype("<i8")):
            digest.update(part.tobytes())
        digest.update("\n".join(self.names.tolist()).encode())
        return digest.hexdigest()

    @staticmethod
    def from_crystals(crystals: Iterable[Crystal]) -> CrystalTable:
        """Flat arrays of crystals that exist already."""
        crystals = list(crystals)
        sizes = [len(c) for c in crystals]
        return CrystalTable(
            np.array([c.lattice for c in crystals], dtype=np.float64).reshape(-1, 3, 3),
            np.concatenate([np.zeros((0, 3)), *(c.frac_coords for c in crystals)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(c.atomic_numbers for c in crystals)]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            _names([c.name for c in crystals]),
            {i: c.occupancies for i, c in enumerate(crystals) if c.occupancies is not None} or None,
        )

    @staticmethod
    def concatenate(tables: Sequence[CrystalTable]) -> CrystalTable:
        """Tables one after the other."""
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tables])]).astype(int).tolist()
        sizes = np.concatenate([np.zeros(0, dtype=np.int64), *(t.num_atoms for t in tables)])
        occupancies = {
            first + row: value
            for first, table in zip(starts, tables, strict=False)
            for row, value in (table.occupancies or {}).items()
        }
        return CrystalTable(
            np.concatenate([np.zeros((0, 3, 3)), *(t.lattice for t in tables)]),
            np.concatenate([np.zeros((0, 3)), *(t.frac_coords for t in tables)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(t.atomic_numbers for t in tables)]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([_names([]), *(t.names for t in tables)]),
            occupancies or None,
        )

    @staticmethod
    def from_arrow(table: pa.Table, source: str, prefix: str = "") -> CrystalTable:
        """The crystals of an Arrow table; `prefix` reads other columns, such as `bulk_lattice`.

        Raises TableError naming the source and the first row that is wrong.
        """
        found, problems = CrystalTable.from_arrow_checked(table, source, prefix)
        if problems:
            row, reason = next(iter(problems.items()))
            more = f" (and {len(problems) - 1} more rows)" if len(problems) > 1 else ""
            raise TableError(f"{source}: row {row + 1}: {reason}{more}")
        return found

    @staticmethod
    def from_arrow_checked(
        table: pa.Table, source: str, prefix: str = ""
    ) -> tuple[CrystalTable, dict[int, str]]:
        """The good crystals of an Arrow table, and what is wrong with the other rows (row -> reason)."""
        wanted = [prefix + c for c in COLUMNS[1:]]
        missing = [c for c in (["id"] if not prefix else []) + wanted if c not in table.column_names]
        if missing:
            have = ", ".join(table.column_names)
            raise TableError(
                f"{source}: expected the columns {', '.join(COLUMNS)}; "
                f"{', '.join(missing)} missing, have {have}"
            )
        numbers, atom_counts = column_lists(table, wanted[0], source)
        coords, coord_counts = column_lists(table, wanted[1], source)
        cells, cell_counts = column_lists(table, wanted[2], source)
        names = _names(["" if v is None else str(v) for v in table["id"].to_pylist()])
        problems = _shape_problems(atom_counts, coord_counts, cell_counts)
        rows = np.setdiff1d(np.arange(len(names)), list(problems)).astype(np.int64)

        def chosen(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
            if not problems:
                return values
            return values[gather(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), rows)[0]]

        arrays = (
            chosen(cells, cell_counts).astype(np.float64, copy=False).reshape(-1, 3, 3),
            chosen(coords, coord_counts).astype(np.float64, copy=False).reshape(-1, 3),
            chosen(numbers, atom_counts).astype(np.int64),
            np.concatenate([[0], np.cumsum(atom_counts[rows])]).astype(np.int64),
        )
        found = CrystalTable(*arrays, names[rows])
        bad = _value_problems(*arrays)
        if bad:
            problems |= {int(rows[i]): f"{names[rows[i]] or 'unnamed'}: {why}" for i, why in bad.items()}
            found = found.select(np.setdiff1d(np.arange(len(found)), list(bad)))
        return found, dict(sorted(problems.items()))

    @staticmethod
    def from_parquet(path: str | Path) -> CrystalTable:
        """All crystals of a Parquet file in the format above."""
        import pyarrow.parquet as pq

        return CrystalTable.from_arrow(pq.read_table(path, columns=list(COLUMNS)), str(path))

    def to_arrow(self) -> pa.Table:
        """The four columns; raises TableError for partial occupancies, which they cannot hold."""
        import pyarrow as pa

        if self.occupancies:
            name = self.names[next(iter(self.occupancies))]
            raise TableError(f"{name}: partial occupancies cannot be kept in Parquet; write it as CIF")

        def lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
            return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.ravel()))

        return pa.table(
            {
                "id": pa.array(self.names.tolist(), pa.string()),
                "atomic_numbers": lists(self.atomic_numbers.astype(np.int16), self.offsets),
                "frac_coords": lists(self.frac_coords, self.offsets * 3),
                "lattice": lists(self.lattice, np.arange(len(self) + 1) * 9),
            }
        )

    def composition(self) -> Counter[str]:
        """How many atoms of each element the whole table has."""
        numbers, counts = np.unique(self.atomic_numbers, return_counts=True)
        return Counter({SYMBOLS[z]: int(n) for z, n in zip(numbers, counts, strict=True)})


def _index_type(rows: Any) -> type | None:
    return np.int64 if np.size(rows) == 0 else None


def _names(values: Sequence[str]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def column_lists(table: pa.Table, name: str, source: str) -> tuple[np.ndarray, Int[np.ndarray, " rows"]]:
    """A list column as one flat array and the length of every row (-1 for null)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name]
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = lists and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    if not number:
        raise TableError(f"{source}: column {name} should hold lists of numbers, it is {kind}")
    counts = pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype(np.int64)
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0), *parts])
    return values, counts


def _shape_problems(atoms: np.ndarray, coords: np.ndarray, cells: np.ndarray) -> dict[int, str]:
    problems = {}
    for row in np.nonzero((atoms < 1) | (coords != 3 * atoms) | (cells != 9))[0].tolist():
        problems[row] = (
            f"expected n >= 1 atomic numbers, 3n fractional coordinates and 9 lattice numbers, got "
            f"{max(atoms[row], 0)}, {max(coords[row], 0)} and {max(cells[row], 0)}"
        )
    # A null row has no items in the flat arrays: its count must not shift the rows behind it.
    for counts in (atoms, coords, cells):
        counts[counts < 0] = 0
    return problems


def _value_problems(
    lattice: Float[np.ndarray, "crystals 3 3"],
    frac_coords: Float[np.ndarray, "atoms 3"],
    atomic_numbers: Int[np.ndarray, " atoms"],
    offsets: Int[np.ndarray, " crystals_plus_one"],
) -> dict[int, str]:
    """Rows whose numbers cannot be a crystal: not finite, no such element, flat cell."""
    if not len(lattice):
        return {}
    first = offsets[:-1]
    finite = np.logical_and.reduceat(np.isfinite(frac_coords).all(1), first)
    element = (atomic_numbers >= 1) & (atomic_numbers <= MAX_ATOMIC_NUMBER)
    known = np.logical_and.reduceat(element, first)
    cell = np.isfinite(lattice).all((1, 2))
    sound = np.where(cell[:, None, None], lattice, 0.0)
    solid = np.abs(np.linalg.det(sound)) > 1e-6 * np.linalg.norm(sound, axis=2).prod(1)
    problems = {}
    for row in np.nonzero(~(finite & known & cell & solid))[0].tolist():
        if not cell[row] or not finite[row]:
            problems[row] = "a lattice entry or coordinate is not a finite number"
        elif not known[row]:
            problems[row] = f"an atomic number lies outside 1 to {MAX_ATOMIC_NUMBER}"
        else:
            problems[row] = "the lattice has no volume"
    return problems
