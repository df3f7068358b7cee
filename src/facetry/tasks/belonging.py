"""Which candidate belongs to which reference: by its name or folder, its formula, or the order."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

from facetry.crystal import Crystal
from facetry.evaluation.matching import species_ratio
from facetry.tasks.inference import Item
from facetry.tasks.inputs import items_of

By = Literal["name", "formula", "order"]
Owners = list[list[tuple[int, int]]]  # of every reference the candidates and their ranks
_SEPARATORS = " _-.#@:+~"


def candidates_of(known: Sequence[Item], candidates: Any, by: By) -> tuple[list[Item], Owners]:
    """All candidates, and for every reference its own with their ranks.

    Takes what `facetry.match` takes. Raises ValueError where it is not clear which belong to one.
    """
    if isinstance(candidates, Mapping):
        places = _by_name(known)
        strange = [name for name in candidates if name not in places]
        if strange:
            raise ValueError(f"candidates: {strange[0]!r} is the name of no reference")
        return _grouped([(places[name], group) for name, group in candidates.items()], known)
    if _is_nested(candidates):
        groups = list(candidates)
        if len(groups) != len(known):
            raise ValueError(
                f"candidates: {len(groups)} lists for {len(known)} references; expected one for each, or "
                "crystals with names"
            )
        return _grouped(list(enumerate(groups)), known)
    found = list(items_of(candidates))
    if by == "order":
        return found, _in_order(found, known)
    if by == "formula":
        return found, _of_formula(found, known)
    return found, _of_name(candidates, found, known)


def _is_nested(candidates: Any) -> bool:
    if isinstance(candidates, str | PathLike | Crystal) or not isinstance(candidates, Sequence):
        return False
    return len(candidates) > 0 and all(isinstance(group, list | tuple) for group in candidates)


def _grouped(groups: Iterable[tuple[int, Any]], known: Sequence[Item]) -> tuple[list[Item], Owners]:
    found: list[Item] = []
    owners: Owners = [[] for _ in known]
    for place, group in groups:
        for rank, item in enumerate(items_of(group), start=1):
            owners[place].append((len(found), rank))
            found.append(item)
    return found, owners


def _by_name(known: Sequence[Item]) -> dict[str, int]:
    """The references by name. Raises ValueError where two share one."""
    places: dict[str, int] = {}
    for i, item in enumerate(known):
        if not item.name:
            continue
        if item.name in places:
            raise ValueError(
                f"two references are called {item.name!r} ({known[places[item.name]].source} and"
                f" {item.source}); names must differ, or use by='order' or by='formula'"
            )
        places[item.name] = i
    return places


def _in_order(found: Sequence[Item], known: Sequence[Item]) -> Owners:
    each, rest = divmod(len(found), max(len(known), 1))
    if rest or not each:
        raise ValueError(
            f"{len(found)} candidates for {len(known)} references: by order, all need equally many"
        )
    return [[(i * each + rank - 1, rank) for rank in range(1, each + 1)] for i in range(len(known))]


def _of_formula(found: Sequence[Item], known: Sequence[Item]) -> Owners:
    alike: dict[Any, list[int]] = defaultdict(list)
    for c, item in enumerate(found):
        if item.crystal is not None:
            alike[species_ratio(item.crystal)].append(c)
    own = [alike[species_ratio(i.crystal)] if i.crystal is not None else [] for i in known]
    if not any(own):
        raise ValueError("no candidate has the reduced formula of a reference")
    return [[(c, rank) for rank, c in enumerate(group, start=1)] for group in own]


def _of_name(candidates: Any, found: Sequence[Item], known: Sequence[Item]) -> Owners:
    places = _by_name(known)
    column = _reference_column(candidates)
    groups: list[list[tuple[int, int | None]]] = [[] for _ in known]
    for c, item in enumerate(found):
        told = column.get(item.source) or column.get(f"{item.source}\0{item.name}")
        name, number = _owner(item, places) if told is None else (told, None)
        if name in places:
            groups[places[name]].append((c, number))
    if not any(groups):
        some = ", ".join(item.name for item in found[:2])
        raise ValueError(
            f"no candidate belongs to a reference by its name ({some}, ...; references: "
            f"{', '.join(list(places)[:2])}, ...); name them REFERENCE_1, REFERENCE_2, put them into folders "
            "called as the references, give their table a column 'reference', or choose by='formula' or "
            "by='order'"
        )
    for group in groups:
        if all(number is not None for _, number in group):
            group.sort(key=lambda entry: (entry[1], entry[0]))
    return [[(c, rank) for rank, (c, _) in enumerate(group, start=1)] for group in groups]


def _owner(item: Item, places: Mapping[str, int]) -> tuple[str | None, int | None]:
    """The reference in whose folder a candidate lies, or that its name begins with, and its number."""
    number = re.search(r"(\d+)$", item.name)
    rank = int(number[1]) if number else None
    name = item.name
    if name in places:
        return name, None
    for at in range(len(name) - 1, 0, -1):
        if name[at] in _SEPARATORS and name[:at] in places:
            return name[:at], rank
    for folder in reversed(re.split(r"[/\\:]", item.source)[:-1]):
        if folder in places:
            return folder, rank
    return None, None


def _reference_column(candidates: Any) -> dict[str, str]:
    """What the column `reference` of tables says, by the source of a row (and its name, for Parquet)."""
    found: dict[str, str] = {}
    paths = [candidates] if isinstance(candidates, str | PathLike) else candidates
    if not isinstance(paths, Sequence):
        return found
    for place in paths:
        if not isinstance(place, str | PathLike):
            continue
        path = os.fspath(place)
        if path.lower().endswith(".csv") and os.path.isfile(path):
            found |= _csv_column(path)
        elif path.lower().endswith(".parquet") and os.path.isfile(path):
            import pyarrow.parquet as pq

            if {"reference", "id"} <= set(pq.read_schema(path).names):
                table = pq.read_table(path, columns=["id", "reference"])
                for name, reference in zip(*(table[c].to_pylist() for c in ("id", "reference")), strict=True):
                    found[f"{path}\0{name}"] = str(reference)
    return found


def _csv_column(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream:
        table = csv.reader(stream)
        header = [cell.strip().lower() for cell in next(table, [])]
        if "reference" not in header:
            return {}
        at, file = header.index("reference"), header.index("file") if "file" in header else None
        by_text = "cif" in header
        found = {}
        for number, row in enumerate(table, start=2):
            if at >= len(row):
                continue
            source = f"{path}:row {number}"
            if not by_text and file is not None and file < len(row):
                source = os.path.join(os.path.dirname(path), row[file].strip())
            found[source] = row[at].strip()
    return found
