"""Reading and writing crystals: CIF, POSCAR, extxyz, JSON; folders, archives and tables of them.

`read` for a handful, `read_many` for a stream of any length. Both parse in a separate process with a time
and a memory limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from facetry.crystal import Crystal
from facetry.io.errors import ReadError
from facetry.io.formats import FORMATS, from_text, parse, to_text, write
from facetry.io.pool import parse_in_workers
from facetry.io.sources import Ready, Task, find, without

__all__ = ["FORMATS", "ReadError", "Reading", "from_text", "parse", "read", "read_many", "to_text", "write"]


class Reading(NamedTuple):
    """One structure of a stream: which file, what it is called, and the crystal or what is wrong."""

    source: str
    name: str
    result: Crystal | ReadError


def read(
    places: Any,
    *,
    errors: Literal["raise", "skip", "return"] = "raise",
    merge_within: float | int | None = None,
    time_limit: float | int | None = 20.0,
) -> list[Crystal] | list[Crystal | ReadError]:
    """Every crystal in a file, folder, pattern, archive, table, or a list of these.

    Args:
        places: a path: CIF or mCIF, POSCAR or .vasp, .extxyz or .xyz with a lattice, JSON of pymatgen or ASE
            (each also .gz); a folder (with its subfolders, sorted; files that are by their names neither
            structures nor archives nor .parquet are left alone); a pattern such as "mine/*.cif"; a .zip or
            .tar.gz; a .csv with a column `cif` (text) or `file` (path from the table's folder); a .parquet
            with id, atomic_numbers, frac_coords, lattice. Or a Crystal, a pymatgen Structure, ASE Atoms.
            Or a list of any of these.
        errors: "raise" at the first structure that cannot be read, "skip" it, or "return" its ReadError in
            its place.
        merge_within: join full atoms of one element closer than this, in Å, instead of refusing the file.
        time_limit: seconds allowed for one file (for one structure in a file of many); None for no limit.

    What a reader had to assume (an unknown occupancy, a missing hydrogen) is in `Crystal.notes`. Raises
    ReadError, whose text is one line: file, what is wrong, what to do.
    """
    if errors not in ("raise", "skip", "return"):
        raise ValueError(f"errors must be 'raise', 'skip' or 'return', got {errors!r}")
    crystals: list[Crystal | ReadError] = []
    for reading in read_many(places, merge_within=merge_within, time_limit=time_limit):
        if isinstance(reading.result, ReadError):
            if errors == "raise":
                raise reading.result
            if errors == "skip":
                continue
        crystals.append(reading.result)
    return crystals


def read_many(
    places: Any,
    *,
    workers: int = 1,
    time_limit: float | int | None = 20.0,
    memory_limit: int = 4 * 1024**3,
    merge_within: float | int | None = None,
    done: Iterable[str] = (),
) -> Iterator[Reading]:
    """The same as a stream, in the order of the input, never stopped by a bad file.

    Args:
        places: as for `read`; may be a generator of paths.
        workers: parsing processes; 0 parses in this process, without limits.
        time_limit: seconds allowed for one file (for one structure in a file of many); its worker is then
            killed and replaced. None for no limit. A suspended or crowded machine is given more.
        memory_limit: bytes a worker may use (where the system can enforce it).
        merge_within: as for `read`.
        done: the sources of the first readings, of an earlier call with the same places: they are not given
            again, and files behind which others stand are not parsed again. Raises ValueError, before the
            first reading, where the places hold something else by now.

    Memory stays bounded: only a few batches are under way at any time.
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit must be above 0 or None, got {time_limit}")
    return _read(find(places, merge_within), workers, time_limit, memory_limit, merge_within, done)


def _read(
    items: Iterator[Task | Ready],
    workers: int,
    time_limit: float | int | None,
    memory_limit: int,
    merge_within: float | int | None,
    done: Iterable[str],
) -> Iterator[Reading]:
    items, source, given = without(items, done)
    readings = (
        _read_here(items, merge_within)
        if workers == 0
        else (Reading(*r) for r in parse_in_workers(items, workers, time_limit, memory_limit, merge_within))
    )
    for reading in readings:
        if given and reading.source == source:  # the first structures of a file that holds more
            given -= 1
            continue
        given = 0
        yield reading


def _read_here(items: Iterator[Task | Ready], merge_within: float | int | None) -> Iterator[Reading]:
    for item in items:
        if isinstance(item, Ready):
            yield Reading(item.source, item.name, item.result)
            continue
        data = item.data
        if data is None:
            try:
                with open(item.path, "rb") as stream:
                    data = stream.read()
            except OSError as error:
                yield Reading(item.source, item.name, ReadError(item.source, f"cannot be opened: {error}"))
                continue
        for name, result in parse(data, item.source, item.format, merge_within, item.name):
            yield Reading(item.source, name, result)
