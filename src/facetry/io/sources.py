"""From what a user names (file, folder, glob, archive, table, object) to structures still to be parsed.

In a folder, its subfolders included and in sorted order, these are taken: structure files by their names,
archives, and .parquet tables. Everything else is left alone: it is no structure (a README, an image, a CSV
with the targets). Hidden files and folders are skipped. In an archive the same names are taken, in the
archive's order; nothing is unpacked to disk, and member names are only used as labels.
"""

from __future__ import annotations

import csv
import glob
import gzip
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from facetry.crystal import Crystal, CrystalError, as_crystal
from facetry.io.errors import FormatError, ReadError, one_line
from facetry.io.formats import KNOWN, MAX_BYTES, format_of
from facetry.io.sites import build_crystal

__all__ = ["Ready", "Task", "find", "without"]

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TABLES = (".csv", ".csv.gz")
_SAME = "to go on, name the same files as before"


@dataclass(frozen=True)
class Task:
    """A text to parse: bytes at hand, or a path the parser opens itself."""

    source: str
    format: str
    data: bytes | None = None
    path: str = ""
    name: str = ""


@dataclass(frozen=True)
class Ready:
    """A structure, or an error, that needs no parser."""

    source: str
    name: str
    result: Crystal | ReadError


def find(places: Any, merge_within: float | int | None = None) -> Iterator[Task | Ready]:
    """Everything to read in `places`: a path, a pattern, a structure object, or an iterable of these."""
    if isinstance(places, str | PathLike):
        yield from _place(os.fspath(places), merge_within)
    elif (
        isinstance(places, Crystal)
        or not isinstance(places, Iterable)
        or hasattr(places, "cell")
        or hasattr(places, "lattice")
    ):
        yield _object(places, "0")
    else:
        for index, place in enumerate(places):
            if isinstance(place, str | PathLike):
                yield from _place(os.fspath(place), merge_within)
            else:
                yield _object(place, str(index))


def without(items: Iterator[Task | Ready], done: Iterable[str]) -> tuple[Iterator[Task | Ready], str, int]:
    """The items behind those that gave the first results, of which `done` are the sources.

    A text may hold more structures than it gave results: the last source is handed out again, with its name
    and the number of results to leave out. Raises ValueError where the items are not those of `done`.
    """
    groups = ((source, sum(1 for _ in same)) for source, same in groupby(map(one_line, done)))
    source, count = next(groups, ("", 0))
    behind = next(groups, None)
    before, position = "", 0
    while count:
        item = next(items, None)
        position += 1
        if item is None:
            raise ValueError(f"{source} was input {position} before and is not there now; {_SAME}")
        name = one_line(item.source)
        if name == source and isinstance(item, Task) and behind is None:
            return chain([item], items), item.source, count
        if name == source:
            before = source
            count = count - 1 if isinstance(item, Ready) else 0
        elif name != before:  # one source may be named several times in a row
            raise ValueError(f"input {position} was {source} before and is {name} now; {_SAME}")
        if not count and behind is not None:
            (source, count), behind = behind, next(groups, None)
    return items, "", 0


def _object(value: Any, label: str) -> Ready:
    try:
        crystal = as_crystal(value)
    except (CrystalError, TypeError) as error:
        return Ready(label, label, ReadError(f"item {label}", str(error)))
    return Ready(crystal.name or label, crystal.name or label, crystal)


def _place(path: str, merge_within: float | int | None) -> Iterator[Task | Ready]:
    if os.path.isdir(path):
        yield from _folder(path, merge_within)
    elif os.path.exists(path):
        yield from _file(path, merge_within)
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            yield _error(path, "no file matches this pattern")
        for match in matches:
            yield from _place(match, merge_within)
    else:
        yield _error(path, "no such file or folder")


def _file(path: str, merge_within: float | int | None) -> Iterator[Task | Ready]:
    lower = path.lower()
    if lower.endswith(_ARCHIVES):
        yield from _archive(path)
    elif lower.endswith(_TABLES):
        yield from _csv(path)
    elif lower.endswith(".parquet"):
        yield from _parquet(path, merge_within)
    elif format := format_of(path):
        yield Task(path, format, path=path)
    else:
        yield _error(path, f"the name says no known format; expected {KNOWN}, an archive or a table")


def _folder(path: str, merge_within: float | int | None) -> Iterator[Task | Ready]:
    found = False
    for folder, inner, files in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (_is_wanted(name) or name.lower().endswith(".parquet")):
                found = True
                yield from _file(os.path.join(folder, name), merge_within)
    if not found:
        yield _error(path, f"no structure file in this folder; expected names with {KNOWN}")


def _is_wanted(name: str) -> bool:
    return bool(format_of(name)) or name.lower().endswith(_ARCHIVES)


def _error(file: str, reason: str, name: str = "") -> Ready:
    return Ready(file, name or Path(file).name, ReadError(file, reason))


# --- archives ----------------------------------------------------------------------------------


def _archive(path: str) -> Iterator[Task | Ready]:
    members = _zip(path) if path.lower().endswith(".zip") else _tar(path)
    found = False
    try:
        for name, size, read in members:
            base = name.replace("\\", "/").rsplit("/", 1)[-1]
            if base.startswith(".") or "__MACOSX" in name or not _is_wanted(base):
                continue
            found = True
            source = f"{path}:{name}"
            if not format_of(base):
                yield _error(source, "an archive inside an archive is not opened; unpack it first", base)
            elif size > MAX_BYTES:
                yield _error(source, f"{size} bytes, more than the {MAX_BYTES} this reader takes", base)
            else:
                try:
                    yield Task(source, format_of(base), data=read())
                except (RuntimeError, OSError, EOFError, zlib.error, zipfile.BadZipFile,
                        NotImplementedError) as error:  # fmt: skip
                    yield _error(source, f"this member cannot be unpacked: {error}", base)
    except (
        OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError
    ) as error:  # fmt: skip
        yield _error(path, f"damaged archive: {error}")
        return
    if not found:
        yield _error(path, f"no structure file in this archive; expected names with {KNOWN}")


def _zip(path: str) -> Iterator[tuple[str, int, Any]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():

                def read(info: zipfile.ZipInfo = info) -> bytes:
                    with archive.open(info) as stream:
                        return stream.read(MAX_BYTES + 1)  # the size in the header may lie

                yield info.filename, info.file_size, read


def _tar(path: str) -> Iterator[tuple[str, int, Any]]:
    with tarfile.open(path, "r|*") as archive:  # a stream: members come one after another
        for info in archive:
            if info.isreg():

                def read(info: tarfile.TarInfo = info) -> bytes:
                    stream = archive.extractfile(info)
                    return stream.read(MAX_BYTES + 1) if stream else b""

                yield info.name, info.size, read


# --- tables ------------------------------------------------------------------------------------


def _csv(path: str) -> Iterator[Task | Ready]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    opened = gzip.open if path.lower().endswith(".gz") else open
    found = False
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as stream:
            rows = csv.reader(stream)
            header = [cell.strip() for cell in next(rows, [])]
            places = {cell.lower(): index for index, cell in reversed(list(enumerate(header)))}
            wanted = next((places[key] for key in ("cif", "file") if key in places), None)
            if wanted is None:
                shown = ", ".join(header)[:60] or "nothing"
                yield _error(path, f"no column 'cif' or 'file' in its header ({shown}); add a header line")
                return
            is_text = header[wanted].lower() == "cif"
            label = next((places[k] for k in ("id", "name", "material_id") if k in places), None)
            for number, row in enumerate(rows, start=2):
                if not any(cell.strip() for cell in row):
                    continue
                found = True
                cell = row[wanted].strip() if wanted < len(row) else ""
                name = row[label].strip() if label is not None and label < len(row) else ""
                where = f"{path}:row {number}"
                if not cell:
                    yield _error(where, f"the column {header[wanted]!r} is empty in this row", name)
                elif is_text:
                    name = name or f"{Path(path).stem}#{number}"
                    yield Task(where, "cif", data=cell.encode(), name=name)
                else:
                    file = os.path.join(os.path.dirname(path), cell)
                    if not os.path.isfile(file):
                        yield _error(where, f"no such file: {cell} (looked for beside the table)", name)
                    elif not (format := format_of(cell)):
                        yield _error(where, f"{cell}: the name says no known format; expected {KNOWN}", name)
                    else:
                        yield Task(file, format, path=file, name=name)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        yield _error(path, f"cannot be read as CSV: {error}")
        return
    if not found:
        yield _error(path, "the table has a header but no rows")


_COLUMNS = ("atomic_numbers", "frac_coords", "lattice")


def _parquet(path: str, merge_within: float | int | None) -> Iterator[Ready]:
    """Rows of a table with id, atomic_numbers, frac_coords (flat) and lattice (flat), a batch at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = set(table.schema_arrow.names)
            missing = [column for column in _COLUMNS if column not in names]
            if missing:
                yield _error(path, f"no column {', '.join(missing)}; expected id, {', '.join(_COLUMNS)}")
                return
            row = 0
            for batch in table.iter_batches(2048, columns=[*_COLUMNS, *({"id"} & names)]):
                labels = batch.column("id").to_pylist() if "id" in names else [None] * batch.num_rows
                columns = [_rows(batch.column(column)) for column in _COLUMNS]
                for label, numbers, frac, lattice in zip(labels, *columns, strict=True):
                    name = str(label) if label is not None else f"{Path(path).stem}#{row}"
                    yield _parquet_row(path, row, name, numbers, frac, lattice, merge_within)
                    row += 1
            if not row:
                yield _error(path, "the table has no rows")
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        yield _error(path, f"cannot be read as Parquet: {error}")


def _rows(column: Any) -> list[np.ndarray | None]:
    """The entries of a column of lists as arrays (views of one), None for null."""
    offsets = np.asarray(column.offsets)
    values = np.asarray(column.values.to_numpy(zero_copy_only=False))
    parts = [values[start:stop] for start, stop in pairwise(offsets)]
    if column.null_count:
        return [
            part if valid else None for part, valid in zip(parts, column.is_valid().to_pylist(), strict=True)
        ]
    return list(parts)


def _parquet_row(
    path: str,
    row: int,
    name: str,
    numbers: np.ndarray | None,
    frac: np.ndarray | None,
    lattice: np.ndarray | None,
    merge_within: float | int | None,
) -> Ready:
    where = f"{path}:row {row} ({name})"
    try:
        if numbers is None or frac is None or lattice is None:
            raise FormatError("a column is empty in this row")
        if len(lattice) != 9 or len(frac) != 3 * len(numbers) or len(numbers) == 0:
            raise FormatError(
                f"{len(numbers)} atoms need {3 * len(numbers)} coordinates and 9 lattice numbers, "
                f"got {len(frac)} and {len(lattice)}"
            )
        if not np.isfinite(numbers).all():
            raise FormatError("an atomic number is missing")
        crystal = build_crystal(
            lattice.reshape(3, 3), frac.reshape(-1, 3), numbers, name, merge_within=merge_within
        )
    except (FormatError, TypeError, ValueError) as error:
        return Ready(where, name, ReadError(where, str(error)))
    return Ready(path, name, crystal)
