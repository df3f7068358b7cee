"""Connected components of a graph that is a list of pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def connected_components(
    first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"], nodes: int
) -> tuple[int, Int[np.ndarray, " nodes"]]:
    """How many there are, and the number of that of every node."""
    from scipy.sparse import coo_array, csgraph

    links = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(nodes, nodes))
    count, label = csgraph.connected_components(links, directed=False)
    return count, label.astype(np.int64)
