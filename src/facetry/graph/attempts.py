"""Graphs of many crystals of which some have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from facetry.graph.neighbors import GraphError

Result = TypeVar("Result")


def attempts(
    build: Callable[[np.ndarray], Result],
    rows: Int[np.ndarray, " rows"],
    refuse: Callable[[int, Exception], None],
    errors: type[Exception] = ValueError,
) -> Iterator[tuple[Int[np.ndarray, " good"], Result]]:
    """What `build` makes of the rows, without those that fail: `refuse` is told each of them and why.

    An error that knows all crystals it is about (`GraphError.reasons`) takes these out at once; after any
    other the rows are tried in halves.
    """
    try:
        result = build(rows)
    except errors as error:
        reasons = getattr(error, "reasons", None)
        if len(rows) == 1:
            refuse(int(rows[0]), error)
        elif reasons:
            for number, reason in reasons.items():
                refuse(int(rows[number]), GraphError(reason))
            left = np.delete(rows, list(reasons))
            if len(left):
                yield from attempts(build, left, refuse, errors)
        else:
            for half in np.array_split(rows, 2):
                yield from attempts(build, half, refuse, errors)
        return
    yield rows, result
