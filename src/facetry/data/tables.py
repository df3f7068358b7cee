"""Your own data: a folder of structures with a CSV, or one table.

    file,band_gap [eV],split         header; `file` (relative to the CSV) or `cif` (the text itself),
    nacl.cif,5.1,train               then targets, units in brackets; `split` and `id` may be there
    si.vasp,,                        an empty cell is a missing label

A mistake in the table stops with its row, column and value. A structure that cannot be read costs its row,
which is listed in `Splits.skipped`.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from facetry.data.crystals import CrystalTable, TableError
from facetry.data.dataset import Dataset, Splits
from facetry.data.division import group_split
from facetry.data.readings import read_files, read_texts, refusal

if TYPE_CHECKING:
    from facetry.card import Target

__all__ = ["SkippedRow", "own_splits"]

log = logging.getLogger("facetry.data")

MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "-"})
TRUTH = {"true": 1.0, "yes": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "0.0": 0.0}
OPPOSITE = {"true": "false", "yes": "no", "1": "0", "1.0": "0.0"}
OPPOSITE |= {no: yes for yes, no in OPPOSITE.items()}
PARTS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
SOURCES = ("file", "cif")
SHOWN = 5  # bad rows that an error message lists


@dataclass(frozen=True)
class SkippedRow:
    """An input of a table that gave no crystal: which (file or identifier), its row, and why."""

    source: str
    row: int
    reason: str


@dataclass(frozen=True)
class _Table:
    """Cells as text, column by column, with how to name a row in a message."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    crystals: CrystalTable | None = None  # where the table holds them as arrays
    problems: Mapping[int, str] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        return (
            f"{self.path}: row {row + 1} (line {self.lines[row]})"
            if self.lines[row]
            else f"{self.path}: row {row + 1}"
        )


def own_splits(
    path: str | Path,
    target: str | Sequence[str] | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    group: str | None = None,
    tasks: Mapping[str, str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Splits:
    """Crystals and targets of a folder with a CSV, a .csv or a .parquet, divided into train, val and test.

    `target` None takes every column of numbers (or true/false) but that of `group`, an empty list none. Cells
    of 0 and 1 only, true/false or yes/no make a binary target; `tasks` says otherwise, for example {"phase":
    "multiclass"} for a column of names, or "binary" for one of two names. Classes are called as in the table
    and sorted by name (no before yes, false before true); `classes`, such as {"phase": ["hcp", "fcc"]}, fixes
    names and order.
    The division is that of a `split` column, or drawn by seed with `fractions`, keeping
    together what `group` says: "formula", or a column. Rows without a label go to `.unlabelled`.

    Raises TableError naming file, row, column and value.
    """
    table = _read_table(_table_path(Path(path).expanduser()))
    names, info, targets = _targets(table, target, dict(tasks or {}), dict(classes or {}), group)
    crystals, rows, skipped = _crystals(table)
    if not len(crystals):
        listed = "; ".join(f"{s.source}: {s.reason}" for s in skipped[:SHOWN])
        raise TableError(f"{table.path}: none of the {len(table)} structures could be read: {listed}")
    if skipped:
        log.warning(
            "%s: %d of %d structures skipped (%s)", table.path, len(skipped), len(table), skipped[0].reason
        )
    whole = Dataset(crystals, targets[rows], info)
    labelled = whole.labelled if names else np.ones(len(whole), dtype=bool)
    if not labelled.any():
        raise TableError(
            f"{table.path}: no row has a label in {', '.join(names)}; "
            "for unlabelled files there is facetry predict"
        )
    part, notes = _division(table, rows, whole, labelled, fractions, group, seed)
    parts = {name: whole.select(labelled & (part == i)) for i, name in enumerate(("train", "val", "test"))}
    if not len(parts["train"]):
        raise TableError(f"{table.path}: no labelled row is left to train on")
    return Splits(
        table.path.parent.name if table.path.stem in ("targets", "id_prop") else table.path.stem,
        parts,
        complete=not skipped,
        notes=notes,
        unlabelled=whole.select(~labelled) if not labelled.all() else None,
        skipped=tuple(skipped),
    )


# ---------------------------------------------------------------------------------------------------------
# The table


def _table_path(path: Path) -> Path:
    if not path.exists():
        raise TableError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise TableError(f"{path}: expected a folder with a CSV, a .csv or a .parquet file")
        return path
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() == ".csv" and p.is_file())
    if len(tables) == 1:
        return tables[0]
    if not any(path.iterdir()):
        raise TableError(
            f"{path}: the folder is empty; expected structures and a CSV with the columns file and your "
            "target"
        )
    if not tables:
        raise TableError(
            f"{path}: no CSV that says the targets; put one there with the columns file and your target, "
            "such as file,band_gap"
        )
    raise TableError(
        f"{path}: {len(tables)} CSV files ({', '.join(p.name for p in tables[:SHOWN])}); give the path of one"
    )


def _read_table(path: Path) -> _Table:
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)


def _read_csv(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from None
    csv.field_size_limit(min(sys.maxsize, 1 << 30))
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        raw = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: not readable as CSV ({error})") from None
    raw = [(n, [c.strip() for c in cells]) for n, cells in raw if any(c.strip() for c in cells)]
    if not raw:
        raise TableError(
            f"{path}: the table is empty; expected a header such as file,band_gap and a row for each "
            "structure"
        )
    header = raw[0][1]
    plain = [h.lower() for h in header]
    if not any(s in plain for s in SOURCES):
        shown = ",".join(header)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise TableError(
            f"{path}: no header: the first line should name the columns, one of them file or cif (such as "
            f"file,band_gap), it is {shown!r}"
        )
    doubled = sorted({h for h in plain if plain.count(h) > 1})
    if doubled or "" in plain:
        raise TableError(
            f"{path}: every column needs a name of its own; {doubled[0] or 'an empty name'!r} is there twice"
            if doubled
            else f"{path}: column {plain.index('') + 1} has no name"
        )
    for number, cells in raw[1:]:
        if len(cells) != len(header):
            raise TableError(
                f"{path}: line {number} has {len(cells)} cells, the header names {len(header)} columns"
            )
    if len(raw) == 1:
        raise TableError(f"{path}: the table has a header but no rows")
    names = [p if p in (*SOURCES, "split", "id") else h for p, h in zip(plain, header, strict=True)]
    columns = {name: [cells[i] for _, cells in raw[1:]] for i, name in enumerate(names)}
    return _Table(path, columns, [number for number, _ in raw[1:]])


def _read_parquet(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not readable as Parquet ({error})") from None
    if not arrow.num_rows:
        raise TableError(f"{path}: the table has no rows")
    scalar = [n for n in arrow.column_names if not pa.types.is_nested(arrow[n].type)]
    columns = {n: ["" if v is None else str(v) for v in arrow[n].to_pylist()] for n in scalar}
    lines = [0] * arrow.num_rows
    if any(s in columns for s in SOURCES):
        return _Table(path, columns, lines)
    crystals, problems = CrystalTable.from_arrow_checked(arrow, str(path))
    rows = np.setdiff1d(np.arange(len(lines)), list(problems)).tolist()
    refused = {i: reason for i, reason in enumerate(map(refusal, crystals)) if reason}
    problems |= {rows[i]: reason for i, reason in refused.items()}
    crystals = crystals.select(np.setdiff1d(np.arange(len(crystals)), list(refused)))
    return _Table(path, columns, lines, crystals, dict(sorted(problems.items())))


def _crystals(table: _Table) -> tuple[CrystalTable, np.ndarray, list[SkippedRow]]:
    """The crystals, the row of each, and the rows that gave none."""
    ids = table.columns.get("id")
    if table.crystals is not None:
        problems = dict(table.problems or {})
        rows = np.setdiff1d(np.arange(len(table)), list(problems))
        skipped = [SkippedRow(ids[r] or f"row {r + 1}", r + 1, why) for r, why in problems.items()]
        return table.crystals, rows, skipped
    if "file" in table.columns:
        found = read_files(_files(table))
        sources = table.columns["file"]
    else:
        sources = ids or [f"row {r + 1}" for r in range(len(table))]
        found = read_texts(table.columns["cif"])
    rows = [r for r, crystal in enumerate(found) if not isinstance(crystal, str)]
    skipped = [SkippedRow(sources[r], r + 1, c) for r, c in enumerate(found) if isinstance(c, str)]
    crystals = CrystalTable.from_crystals([found[r] for r in rows])
    crystals.names[:] = [(ids or sources)[r] for r in rows]
    return crystals, np.array(rows, dtype=np.int64), skipped


def _files(table: _Table) -> list[Path]:
    folder, seen, missing, paths = table.path.parent, {}, [], []
    for row, name in enumerate(table.columns["file"]):
        path = folder / name
        if name in seen:
            raise TableError(
                f"{table.place(row)}: {name} is already in row {seen[name] + 1}; each file may be there once"
            )
        seen[name] = row
        if not name or not path.is_file():
            missing.append(row)
        paths.append(path)
    if missing:
        shown = "; ".join(
            f"row {r + 1} (line {table.lines[r]}): {table.columns['file'][r] or 'empty'}"
            for r in missing[:SHOWN]
        )
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise TableError(
            f"{table.path}: {len(missing)} of {len(table)} files are not in {folder}: {shown}{more}"
        )
    return paths


# ---------------------------------------------------------------------------------------------------------
# Targets


def _targets(
    table: _Table,
    target: str | Sequence[str] | None,
    tasks: dict[str, str],
    classes: dict[str, Sequence[str]],
    group: str | None,
) -> tuple[list[str], list[Target], Float[np.ndarray, "rows targets"]]:
    from facetry.card import Target

    names = {}
    for header in table.columns:
        if header in (*SOURCES, "split", "id"):
            continue
        match = re.fullmatch(r"(.+?)\s*\[(.*)\]", header)
        names[match[1] if match else header] = (header, match[2].strip() if match else "")
    wanted = [target] if isinstance(target, str) else target
    unknown = [n for n in [*(wanted or []), *tasks, *classes] if n not in names]
    if unknown:
        raise TableError(
            f"{table.path}: no column {unknown[0]!r}; targets there: {', '.join(names) or 'none'}"
        )
    if wanted is None:
        free = {n: header for n, (header, _) in names.items() if group not in (n, header)}
        wanted = [
            n
            for n, header in free.items()
            if n in tasks or n in classes or _has_numbers(table.columns[header])
        ]
    if target is not None and not wanted:
        return [], [], np.zeros((len(table), 0))
    if not wanted:
        raise TableError(
            f"{table.path}: no column of numbers to learn; columns: {', '.join(table.columns)}"
            f"{_first_text(table, names)}"
        )
    info, columns = [], []
    for name in wanted:
        header, unit = names[name]
        task, words, values = _column(table, name, header, tasks.get(name), classes.get(name))
        info.append(Target(name=name, unit=unit, task=task, classes=words))
        columns.append(values)
    return list(wanted), info, np.stack(columns, axis=1)


def _column(
    table: _Table, name: str, header: str, task: str | None, classes: Sequence[str] | None
) -> tuple[str, list[str] | None, np.ndarray]:
    """What a column is, the names of its classes, and its values; NaN where a label is missing."""
    cells = table.columns[header]
    present = [c for c in cells if c.lower() not in MISSING]
    if task not in (None, "regression", "binary", "multiclass"):
        raise TableError(f"{table.path}: {header}: expected regression, binary or multiclass, got {task!r}")
    truth = bool(present) and all(c.lower() in TRUTH for c in present)
    if task is None:
        task = ("binary" if len(classes) == 2 else "multiclass") if classes else None
    if task is None:
        task = "binary" if truth else "regression"
    if task == "regression":
        return task, None, _numbers(table, name, header)
    if task == "binary" and truth and (not classes or all(c.lower() in TRUTH for c in classes)):
        values = [TRUTH.get(c.lower(), math.nan) for c in cells]
        return task, list(classes or _truth_words(present)), np.array(values)
    found = sorted(set(present))
    if task == "binary" and not classes and len(found) > 2:
        raise TableError(
            f"{table.path}: {header}: expected two classes, got {len(found)}: {', '.join(found[:SHOWN])}"
            f'{" ..." if len(found) > SHOWN else ""}; make it "multiclass"'
        )
    if not classes and len(found) < 2:
        raise TableError(
            f"{table.path}: {header}: expected classes to tell apart, every label is {found[0]!r}"
            if found
            else f"{table.path}: {header}: no row has a label"
        )
    place = {str(c): float(i) for i, c in enumerate(classes or found)}
    foreign = [row for row, c in enumerate(cells) if c.lower() not in MISSING and c not in place]
    if foreign:
        raise TableError(
            f"{table.place(foreign[0])}, column {header}: expected one of {', '.join(place)}, "
            f"got {cells[foreign[0]]!r}{_more(foreign)}"
        )
    return task, list(place), np.array([place.get(c, math.nan) for c in cells])


def _numbers(table: _Table, name: str, header: str) -> Float[np.ndarray, " rows"]:
    """A column of numbers; anything else in it is an error that names the first row."""
    cells = table.columns[header]
    values = np.array([math.nan if c.lower() in MISSING else _number(c) for c in cells], dtype=np.float64)
    there = np.array([c.lower() not in MISSING for c in cells])
    wrong = np.nonzero(there & ~np.isfinite(values))[0].tolist()
    if wrong:
        hint = (
            ""
            if _has_numbers(cells)
            else f"; if it names classes, say so: --set data.tasks.{name}=multiclass in a shell, "
            f'tasks={{"{name}": "multiclass"}} in Python'
        )
        raise TableError(
            f"{table.place(wrong[0])}, column {header}: expected a number (or nothing, where it is not "
            f"known), got {cells[wrong[0]]!r}{_more(wrong)}{hint}"
        )
    return values


def _more(rows: Sequence[int]) -> str:
    return f"; {len(rows) - 1} more rows like this" if len(rows) > 1 else ""


def _truth_words(present: Sequence[str]) -> list[str]:
    """How the table calls no and yes: its commonest words; where it has one only, the opposite of that."""
    words = ["", ""]
    for word, _ in Counter(present).most_common():
        words[int(TRUTH[word.lower()])] = words[int(TRUTH[word.lower()])] or word
    known = words[0] or words[1]
    opposite = OPPOSITE[known.lower()]
    opposite = opposite.upper() if known.isupper() else opposite.title() if known.istitle() else opposite
    words = [w or opposite for w in words]
    return ["0", "1"] if set(words) <= {"0", "0.0", "1", "1.0"} else words


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _has_numbers(cells: Sequence[str]) -> bool:
    present = [c.lower() for c in cells if c.lower() not in MISSING]
    return any(math.isfinite(_number(c)) for c in present) or (
        bool(present) and all(c in TRUTH for c in present)
    )


def _first_text(table: _Table, names: dict[str, tuple[str, str]]) -> str:
    for header, _ in names.values():
        for row, cell in enumerate(table.columns[header]):
            if cell.lower() not in MISSING:
                return f"; row {row + 1}, column {header}: {cell!r} is not a number"
    return ""


# ---------------------------------------------------------------------------------------------------------
# Division


def _division(
    table: _Table,
    rows: np.ndarray,
    whole: Dataset,
    labelled: np.ndarray,
    fractions: tuple[float, float, float],
    group: str | None,
    seed: int,
) -> tuple[np.ndarray, tuple[str, ...]]:
    if "split" in table.columns:
        part = np.full(len(rows), -1)
        for i, row in enumerate(rows.tolist()):
            word = table.columns["split"][row].lower()
            if word in PARTS:
                part[i] = PARTS[word]
            elif labelled[i]:
                raise TableError(
                    f"{table.place(row)}, column split: expected train, val or test, "
                    f"got {table.columns['split'][row]!r}"
                )
        return part, ("split by the column split of the table",)
    if len(fractions) != 3 or any(f < 0 for f in fractions) or not fractions[0] > 0:
        raise ValueError(
            f"fractions: expected three shares for train, val, test, the first above 0, got {fractions}"
        )
    if group == "formula":
        groups = whole.crystals.formulas
    elif group is not None:
        if group not in table.columns:
            raise TableError(
                f"{table.path}: no column {group!r} to group by; columns: {', '.join(table.columns)}"
            )
        groups = [table.columns[group][r] for r in rows.tolist()]
    else:
        groups = [f"{i} {name}" for i, name in zip(rows.tolist(), whole.names.tolist(), strict=True)]
    part = np.full(len(rows), -1)
    chosen = [g for g, ok in zip(groups, labelled, strict=True) if ok]
    part[labelled] = group_split(chosen, tuple(fractions), f"own {seed}")
    shares = "/".join(f"{100 * f / sum(fractions):.0f}" for f in fractions)
    kept = f", {group} kept together" if group else ", each row for itself"
    return part, (f"split at random {shares} (seed {seed}{kept})",)
