"""What people hand to `predict`, `embed` and `evaluate`, as one stream of inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

from facetry.crystal import Crystal, as_crystal
from facetry.io.errors import one_line
from facetry.tasks.inference import Item

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def items_of(crystals: Any) -> Iterator[Item]:
    """Inputs in order, whatever they came as.

    Accepts a Crystal, a pymatgen Structure, ASE Atoms, a path (file, folder, glob, archive, table), a set of
    crystals with labels (`facetry.dataset(...).test`), and any iterable of these. What cannot be turned into
    a crystal becomes an input with the reason; the others are not touched by it. Files are read in order, by
    worker processes ahead of whoever consumes the stream.
    """
    if isinstance(crystals, str | PathLike):
        yield from items_of_paths([crystals])
    elif isinstance(crystals, Crystal):
        yield Item(crystals.name, crystals)
    elif _is_structure(crystals):
        yield _converted(crystals, 0)
    elif hasattr(crystals, "crystals") and hasattr(crystals, "targets"):
        yield from items_of(crystals.crystals)
    elif isinstance(crystals, Iterable):
        yield from _items_of_many(crystals)
    else:
        raise TypeError(
            "expected a Crystal, pymatgen Structure, ASE Atoms, path, or an iterable of these, "
            f"got {type(crystals).__name__}"
            + ("; take one of its parts, such as .test" if hasattr(crystals, "parts") else "")
        )


def _items_of_many(entries: Iterable[Any]) -> Iterator[Item]:
    paths: list[str | PathLike[str]] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, str | PathLike):
            paths.append(entry)
            continue
        yield from items_of_paths(paths)
        paths = []
        yield Item(entry.name, entry) if isinstance(entry, Crystal) else _converted(entry, index)
    yield from items_of_paths(paths)


def items_of_paths(
    paths: Sequence[str | PathLike[str]], workers: int | None = None, done: Iterable[str] = ()
) -> Iterator[Item]:
    """Inputs read from files, folders, globs, archives and tables, in order.

    `workers` is the number of parsing processes; None is one for every four cores, at most four. `done` are
    the sources of the first inputs, which are left out (see `facetry.io.read_many`).
    """
    if not paths:
        return
    from facetry.io import ReadError, read_many

    count = workers or max(1, min(4, (os.cpu_count() or 1) // 4))
    for source, name, result in read_many(list(paths), workers=count, done=done):
        if isinstance(result, ReadError):
            yield Item(source, None, result.reason, name)
        else:
            yield Item(source, result)


def check_places(paths: Sequence[str | PathLike[str]]) -> None:
    """Raises FileNotFoundError for a path without anything to read: missing, an empty folder, a pattern
    without a match, a table without a header. Bad files among good ones are no mistake, they get rows."""
    from facetry.io import ReadError
    from facetry.io.sources import Ready, find

    for path in map(os.fspath, paths):
        if os.path.isfile(path) and path.lower().endswith(_ARCHIVES):
            continue  # a damaged download is a bad input, not a mistake
        first = next(find(path), None)
        if first is None:
            raise FileNotFoundError(f"{path}: nothing to read there")
        if isinstance(first, Ready) and isinstance(first.result, ReadError) and first.source == path:
            raise FileNotFoundError(str(first.result))


def _is_structure(obj: Any) -> bool:
    return hasattr(obj, "species_and_occu") or (hasattr(obj, "cell") and hasattr(obj, "positions"))


def _converted(obj: Any, index: int) -> Item:
    source = f"input {index}"
    try:
        crystal = as_crystal(obj)
    except (TypeError, ValueError) as error:
        return Item(source, None, one_line(str(error)))
    return Item(crystal.name or source, crystal)
