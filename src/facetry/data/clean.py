"""Clean: a set of crystals in, the part fit for training out, with a count at every stage.

    a  all                 every crystal that could be read
    b  no duplicates       of one formula and space group the lowest energy
    c  small               at most so many atoms
    d  three-dimensional   bonds go on in three dimensions
    e  valid graphs        a graph exists, every atom has a neighbour, all are connected
    f  insulators          among (e), where a band gap is known

The stages of Kaba and Ravanbakhsh, NeurIPS 2022 (Sec. 5.1). Formula and atoms are counted in the primitive
cell, so that the cell in which a crystal is written down does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from facetry.card import Target
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.geometry.space_group import SYMPREC, find_symmetry
from facetry.graph.attempts import attempts
from facetry.graph.batch import Batch
from facetry.graph.bonds import Bonds, dimensionality
from facetry.graph.builders import Builder
from facetry.graph.cells import Voronoi
from facetry.graph.connected import disconnected
from facetry.graph.neighbors import GraphError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Cleaned", "Rejected", "Stage", "clean"]

ENERGIES = ("formation_energy_per_atom", "energy_per_atom", "energy_above_hull", "e_above_hull")
GAPS = ("band_gap",)
METAL = 1e-5  # eV; a larger gap is that of an insulator (Kaba 2022)
_CHUNK = 512
_SMALL_CHUNK = 64  # where a graph is dear and one that fails costs its chunk again


@dataclass(frozen=True)
class Stage:
    """How many crystals are left after a stage, and how many it took away."""

    key: str
    what: str
    count: int
    removed: int


@dataclass(frozen=True)
class Rejected:
    """A crystal that was taken out: at which stage and why."""

    name: str
    stage: str
    reason: str


@dataclass(frozen=True, eq=False)
class Cleaned:
    """What `clean` returns: the crystals that are left with their columns, the stages, the rejected.

    `unreadable` are inputs that gave no crystal; they come before stage (a).
    """

    name: str
    data: Dataset
    stages: tuple[Stage, ...]
    rejected: tuple[Rejected, ...]
    unreadable: tuple[Rejected, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(len(s.what) for s in self.stages)
        lines = [f"{self.name}", f"   {'stage':{width}s}  crystals  removed"]
        lines += [f"{s.key}  {s.what:{width}s}  {s.count:8d}  {s.removed:7d}" for s in self.stages]
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} inputs gave no crystal")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain content for JSON: settings, stages, a reason for every rejected crystal."""
        return {
            "name": self.name,
            "settings": self.settings,
            "stages": [asdict(s) for s in self.stages],
            "rejected": [asdict(r) for r in self.rejected],
            "unreadable": [asdict(r) for r in self.unreadable],
        }

    def to_arrow(self) -> pa.Table:
        """Crystals and columns in the format of the package, units in brackets behind the names."""
        import pyarrow as pa

        table = self.data.crystals.to_arrow()
        for values, target in zip(self.data.targets.T, self.data.target_info, strict=True):
            name = f"{target.name} [{target.unit}]" if target.unit else target.name
            table = table.append_column(name, pa.array(_cells(values, target)))
        return table

    def write(self, path: str | PathLike[str]) -> Path:
        """The crystals that are left as a Parquet file, which `facetry.dataset` and `facetry train` read."""
        import pyarrow.parquet as pq

        from facetry.data.vault import atomic_write

        target = Path(path)
        with atomic_write(target) as stream:
            pq.write_table(self.to_arrow(), stream, compression="zstd")
        return target


def clean(
    data: str | PathLike[str] | Dataset | Splits,
    *,
    energy: str | None = None,
    gap: str | None = None,
    most_atoms: int = 50,
    tolerance: float = 0.45,
    graph: Builder | None = None,
    insulators: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Cleaned:
    """The crystals of a set that are fit for training, stage by stage.

    Args:
        data: the name of a named set (all its parts together), the path of your own table, or data.
        energy: the column that decides between duplicates (None: the first of the usual names).
        gap: the column of band gaps in eV (None: `band_gap` where there is one).
        most_atoms: of the primitive cell.
        tolerance: Å beyond the sum of two covalent radii that still make a bond, for the dimensionality.
        graph: what a valid graph is: its errors are the reasons (None: the Voronoi bonds of ECN).
        insulators: keep the insulators only.
        progress: called with numbers of crystals whose symmetry has been found.

    The result also has the binary column `insulator` where there are gaps. Raises ValueError where the column
    of energies or gaps is missing.
    """
    name, whole, unreadable = _load(data)
    columns = {t.name: i for i, t in enumerate(whole.target_info)}
    energies = whole.targets[:, _column(columns, energy, ENERGIES, name)]
    gap_column = None
    if gap is not None or any(g in columns for g in GAPS):
        gap_column = _column(columns, gap, GAPS, name)
    builder = Voronoi() if graph is None else graph
    keep = np.arange(len(whole))
    stages = [Stage("a", "all", len(keep), 0)]
    rejected: list[Rejected] = []

    def pass_on(key: str, what: str, reasons: Sequence[str | None]) -> None:
        """Go on with the crystals that have no reason against them."""
        nonlocal keep
        names = whole.names[keep]
        bad = np.array([r is not None for r in reasons], dtype=bool)
        rejected.extend(Rejected(str(n), key, r) for n, r in zip(names, reasons, strict=True) if r)
        keep = keep[~bad]
        stages.append(Stage(key, what, len(keep), int(bad.sum())))

    symmetry = _symmetry(whole.crystals, progress)
    pass_on("b", "no duplicates", _duplicates(symmetry, energies, whole.names))
    sizes = np.array([s.atoms for s in symmetry])
    small = [None if n <= most_atoms else f"{n} atoms, at most {most_atoms} are wanted" for n in sizes[keep]]
    pass_on("c", f"at most {most_atoms} atoms", small)
    pass_on("d", "three-dimensional", _flat(whole.crystals.select(keep), Bonds(tolerance)))
    pass_on("e", "valid graphs", _valid_graphs(whole.crystals.select(keep), builder))
    if gap_column is not None:
        gaps = whole.targets[keep, gap_column]
        count = int((gaps > METAL).sum())
        if insulators:
            metal = ["metal" if g <= METAL else "no band gap known" for g in gaps]
            pass_on("f", "insulators", [None if g > METAL else m for g, m in zip(gaps, metal, strict=True)])
        else:
            stages.append(Stage("f", "of these insulators", count, len(keep) - count))
    elif insulators:
        raise ValueError(f"{name}: no column of band gaps to find insulators by; name one (gap=)")
    left = whole.select(keep)
    if gap_column is not None and "insulator" not in columns:
        left = _with_insulator(left, gap_column)
    settings = {"most_atoms": most_atoms, "tolerance": tolerance, "symprec": SYMPREC}
    settings |= {"graph": builder.describe()}
    return Cleaned(name, left, tuple(stages), tuple(rejected), unreadable, settings)


# ---------------------------------------------------------------------------------------------------------
# Input and output


def _load(data: Any) -> tuple[str, Dataset, tuple[Rejected, ...]]:
    """Name, all crystals with all columns, and what could not be read."""
    from facetry.data import dataset, info, is_named

    if isinstance(data, Dataset):
        return "data", data, ()
    if isinstance(data, str | PathLike):
        path = data if isinstance(data, str) else str(data)
        if is_named(path):
            from facetry.data.named import whole_set

            manifest = info(path)
            return manifest.name, whole_set(manifest), ()
        data = dataset(path, fractions=(1.0, 0.0, 0.0))  # in the order of the table
    parts = [part for splits in (data.folds[:1] or [data]) for part in splits.parts.values()]
    parts += [data.unlabelled] if data.unlabelled is not None else []
    skipped = tuple(Rejected(s.source, "read", s.reason) for s in data.skipped)
    return data.name, Dataset.concatenate(parts), skipped


def _column(columns: dict[str, int], wanted: str | None, usual: Sequence[str], name: str) -> int:
    for candidate in [wanted] if wanted is not None else usual:
        if candidate in columns:
            return columns[candidate]
    expected = repr(wanted) if wanted is not None else f"one of {', '.join(usual)}"
    raise ValueError(
        f"{name}: expected the column {expected}, came {', '.join(columns) or 'none'}; name the right one"
    )


def _with_insulator(data: Dataset, gap: int) -> Dataset:
    gaps = data.targets[:, gap]
    value = np.where(np.isnan(gaps), np.nan, (gaps > METAL).astype(np.float64))
    target = Target(name="insulator", task="binary", classes=["metal", "insulator"])
    return Dataset(
        data.crystals, np.column_stack([data.targets, value]), [*data.target_info, target], data.extras
    )


def _cells(values: Float[np.ndarray, " crystals"], target: Target) -> list[Any]:
    missing = np.isnan(values)
    if target.task == "regression":
        return [None if m else v for v, m in zip(values.tolist(), missing, strict=True)]
    if target.task == "binary":
        return [None if m else bool(v) for v, m in zip(values, missing, strict=True)]
    classes = target.classes or []
    return [None if m else classes[int(v)] for v, m in zip(values, missing, strict=True)]


# ---------------------------------------------------------------------------------------------------------
# Stages


@dataclass(frozen=True)
class _Symmetry:
    """Space group, formula and number of atoms of the primitive cell; group 0 where none was found."""

    group: int
    formula: tuple[tuple[int, int], ...]
    atoms: int


def _symmetry(crystals: CrystalTable, progress: Callable[[int], None] | None) -> list[_Symmetry]:
    """By moyopy, one crystal after the other: there is no call for many."""
    found = []
    for row in range(len(crystals)):
        atoms = slice(crystals.offsets[row], crystals.offsets[row + 1])
        numbers = crystals.atomic_numbers[atoms]
        symmetry = find_symmetry(crystals.lattice[row], crystals.frac_coords[atoms], numbers)
        group = 0
        if symmetry is not None:
            group, numbers = symmetry.number, symmetry.prim_std_cell.numbers
        kinds, counts = np.unique(numbers, return_counts=True)
        formula = tuple(zip(kinds.tolist(), counts.tolist(), strict=True))
        found.append(_Symmetry(group, formula, len(numbers)))
        if progress is not None:
            progress(1)
    return found


def _duplicates(
    symmetry: Sequence[_Symmetry], energies: Float[np.ndarray, " crystals"], names: np.ndarray
) -> list[str | None]:
    """All but the lowest in energy of those that share formula and space group; the first of equals stays.
    A crystal whose symmetry was not found is nobody's duplicate."""
    order = np.argsort(np.where(np.isnan(energies), np.inf, energies), kind="stable")
    lowest: dict[tuple[int, tuple], int] = {}
    reasons: list[str | None] = [None] * len(symmetry)
    for row in order.tolist():
        s = symmetry[row]
        if s.group == 0:
            continue
        first = lowest.setdefault((s.group, s.formula), row)
        if first != row:
            reasons[row] = f"formula and space group {s.group} of {names[first]}, which is lower in energy"
    return reasons


def _chunks(crystals: CrystalTable, size: int = _CHUNK) -> list[Int[np.ndarray, " rows"]]:
    count = len(crystals)
    return np.array_split(np.arange(count), -(-count // size)) if count else []


def _built(
    crystals: CrystalTable, builder: Builder, rows: Int[np.ndarray, " rows"], reasons: list[str | None]
) -> Iterator[tuple[Int[np.ndarray, " good"], Batch]]:
    """Batches of rows with their graphs; one that fails gets the reason."""

    def refuse(row: int, error: Exception) -> None:
        reasons[row] = str(error)

    return attempts(lambda rows: builder(crystals.select(rows)), rows, refuse, GraphError)


def _flat(crystals: CrystalTable, builder: Builder) -> list[str | None]:
    """Crystals whose bonds do not go on in three dimensions."""
    words = {0: "molecules or single atoms", 1: "chains", 2: "layers"}
    reasons: list[str | None] = [None] * len(crystals)
    for chunk in _chunks(crystals):
        for rows, batch in _built(crystals, builder, chunk, reasons):
            for row, dimension in zip(rows.tolist(), dimensionality(batch).tolist(), strict=True):
                if dimension < 3:
                    reasons[row] = f"{dimension}-dimensional: {words[dimension]}"
    return reasons


def _valid_graphs(crystals: CrystalTable, builder: Builder) -> list[str | None]:
    """Reasons against graphs. Voronoi bonds are bonds with the same slack: what those do not connect need not
    be divided into cells."""
    if not isinstance(builder, Voronoi):
        return _invalid(crystals, builder)
    reasons = _invalid(crystals, Bonds(builder.slack))
    left = np.array([row for row, reason in enumerate(reasons) if reason is None], dtype=np.int64)
    for row, reason in zip(left.tolist(), _invalid(crystals.select(left), builder), strict=True):
        reasons[row] = reason
    return reasons


def _invalid(crystals: CrystalTable, builder: Builder) -> list[str | None]:
    """Crystals without a graph, with an atom that has no neighbour, or whose graph falls apart."""
    reasons: list[str | None] = [None] * len(crystals)
    for chunk in _chunks(crystals, _SMALL_CHUNK):
        for rows, batch in _built(crystals, builder, chunk, reasons):
            graph = batch.require_graph()
            apart = set(disconnected(batch, graph.center, graph.neighbor).tolist())
            degree = torch.bincount(graph.center, minlength=len(batch.frac_coords))
            alone = set(batch.crystal_index[degree == 0].tolist())
            for number in sorted(apart | alone):
                lonely = number in alone
                reasons[int(rows[number])] = (
                    "an atom without neighbours" if lonely else "a graph of several parts"
                )
    for row in crystals.occupancies or {}:
        reasons[row] = "partial occupancies"
    return reasons
