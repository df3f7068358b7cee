"""Dividing rows so that what belongs together stays together."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Int

from facetry.data.crystals import TableError
from facetry.data.dataset import Dataset, Splits

__all__ = ["PARTS", "divide_by", "group_split"]

PARTS = ("train", "val", "test")


def group_split(
    groups: Sequence[str], fractions: tuple[float, float, float], salt: str
) -> Int[np.ndarray, " rows"]:
    """0, 1 or 2 (train, val, test) for every row; rows of one group stay together.

    Groups are laid end to end in the order of sha256(salt, group) and the line is cut at the fractions, so
    the outcome depends neither on the order of the rows nor on a random generator's version. A part that
    should have rows but got none takes the last group of the largest part.
    """
    unique, inverse, counts = np.unique(np.array(groups, dtype=str), return_inverse=True, return_counts=True)
    digests = [hashlib.sha256(f"{salt}\0{group}".encode()).digest() for group in unique.tolist()]
    order = np.array(sorted(range(len(unique)), key=digests.__getitem__), dtype=np.int64)
    ends = np.cumsum(counts[order])
    middle = (ends - counts[order] / 2) / max(len(inverse), 1)
    borders = np.cumsum(fractions)[:2] / sum(fractions)
    part = np.searchsorted(borders, middle, side="right")
    for empty in (i for i in range(3) if fractions[i] > 0 and i not in part):
        largest = np.bincount(part, minlength=3).argmax()
        if (part == largest).sum() > 1:
            part[np.nonzero(part == largest)[0][-1]] = empty
    by_group = np.empty(len(unique), dtype=np.int64)
    by_group[order] = part
    return by_group[inverse]


def divide_by(splits: Splits, path: str | PathLike[str]) -> Splits:
    """The set divided as a CSV says, with the columns `id` (names of crystals) and `split` (train, val,
    test).

    All its crystals with a label take part, those of all folds together; a crystal without a row stops, a row
    without a crystal does not. Raises TableError naming file, line and value.
    """
    file = Path(path).expanduser()
    part_of = _read_division(file)
    content = (splits.folds[0] if splits.folds else splits).parts
    whole = Dataset.concatenate(list(content.values()))
    missing = [n for n in whole.names.tolist() if n not in part_of]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise TableError(
            f"{file}: expected a row for every crystal of {splits.name}, {len(missing)} of"
            f" {len(whole)} have none:"
            f" {shown}"
        )
    part = np.array([part_of[n] for n in whole.names.tolist()], dtype=np.int64)
    parts = {name: whole.select(part == i) for i, name in enumerate(PARTS)}
    if not len(parts["train"]):
        raise TableError(f"{file}: no crystal of {splits.name} is left to train on")
    kept = tuple(note for note in splits.notes if not note.startswith("split "))
    note = f"divided by {file.name}, not as published" if splits.official else f"divided by {file.name}"
    return replace(splits, parts=parts, folds=[], official=False, notes=(*kept, note))


def _read_division(file: Path) -> dict[str, int]:
    """Names and the numbers of their parts."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"id", "split"} <= set(reader.fieldnames or ()):
                raise TableError(
                    f"{file}: expected the columns id and split, has"
                    f" {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            found: dict[str, int] = {}
            for row in reader:
                place = f"{file}: line {reader.line_num}"
                if row["split"] not in PARTS:
                    raise TableError(f"{place}: expected train, val or test in split, got {row['split']!r}")
                part = PARTS.index(row["split"])
                if found.setdefault(row["id"], part) != part:
                    raise TableError(f"{place}: {row['id']} is in {PARTS[found[row['id']]]} already")
    except UnicodeDecodeError:
        raise TableError(f"{file}: not UTF-8 text; save it as CSV UTF-8") from None
    except OSError as error:
        raise TableError(f"{file}: cannot be read ({error.strerror})") from None
    return found
