"""Structures named by the rows of a table, one crystal a row, each read apart from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from facetry.crystal import Crystal

__all__ = ["read_files", "read_texts", "refusal"]

SECONDS = 20.0  # for one structure
BYTES = 4 << 30  # of memory, for one worker


def read_files(paths: Sequence[Path]) -> list[Crystal | str]:
    """For every file its crystal, or why there is none, in order.

    Files are parsed by a worker process under a time limit, so that one that hangs or crashes the parser
    costs its own row only. A file with several structures is refused: the row does not say which is meant.
    """
    from facetry.io.formats import KNOWN, format_of
    from facetry.io.sources import Task

    formats = [format_of(path.name) for path in paths]
    tasks = [
        Task(str(i), f, path=str(p), name=p.name)
        for i, (p, f) in enumerate(zip(paths, formats, strict=True))
        if f
    ]
    unknown = f"the name says no known format; expected {KNOWN}"
    return _in_order(tasks, [None if f else unknown for f in formats])


def read_texts(texts: Sequence[str]) -> list[Crystal | str]:
    """The same for the texts of CIF files."""
    from facetry.io.sources import Task

    tasks = [
        Task(str(i), "cif", data=text.encode(), name=f"row {i + 1}") for i, text in enumerate(texts) if text
    ]
    return _in_order(tasks, [None if text else "the cell is empty" for text in texts])


def _in_order(tasks: Iterable[object], known: list[str | None]) -> list[Crystal | str]:
    from facetry.io import ReadError
    from facetry.io.pool import parse_in_workers

    found: list[list[Crystal | str]] = [[reason] if reason else [] for reason in known]
    for source, _, result in parse_in_workers(iter(tasks), 1, SECONDS, BYTES, None):
        found[int(source)].append(result.reason if isinstance(result, ReadError) else result)
    return [_only(entries) for entries in found]


def _only(entries: list[Crystal | str]) -> Crystal | str:
    crystals = [e for e in entries if not isinstance(e, str)]
    if len(crystals) > 1:
        return f"holds {len(crystals)} structures; a row of the table needs exactly one"
    if crystals and len(entries) == 1:
        return crystals[0]
    reasons = [e for e in entries if isinstance(e, str)]
    return reasons[0] if reasons else "holds no structure"


def refusal(crystal: Crystal) -> str:
    """Why a crystal that was not read from a file cannot be one (two atoms on one site), or nothing."""
    from facetry.io.errors import FormatError
    from facetry.io.sites import build_crystal

    try:
        build_crystal(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, crystal.name)
    except (FormatError, ValueError) as error:
        return str(error)
    return ""
