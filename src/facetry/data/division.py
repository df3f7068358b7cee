"""Dividing rows so that what belongs together stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

__all__ = ["group_split"]


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
