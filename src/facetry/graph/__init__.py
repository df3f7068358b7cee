"""Who neighbours whom: periodic graphs of whole batches, in integers."""

from __future__ import annotations

from collections.abc import Sequence

from facetry.crystal import Crystal
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import Builder, DensityRadius, KNearest, Radius
from facetry.graph.complete import LatticeKNearest
from facetry.graph.neighbors import SHELL_GAP, GraphError
from facetry.graph.spheres import Box, Sphere


def radius(crystals: Crystal | Sequence[Crystal], cutoff: float | int) -> PeriodicGraph:
    """Every pair closer than `cutoff` (Å, exclusive, as ASE counts), as edges in the given cells."""
    if not cutoff > 0:
        raise GraphError(f"radius graph: expected a cutoff above 0 Å, came {cutoff}")
    return Radius(float(cutoff))(_several(crystals)).require_graph()


def k_nearest(crystals: Crystal | Sequence[Crystal], k: int, gap: float = SHELL_GAP) -> PeriodicGraph:
    """Each atom's k nearest neighbours and the whole shell of the k-th, directed from the atom to them.

    `gap` (Å) is the largest step between two distances of one shell, so that a rounding error never
    decides which of several equally distant neighbours is kept.
    """
    return KNearest(k, gap)(_several(crystals)).require_graph()


def _several(crystals: Crystal | Sequence[Crystal]) -> Sequence[Crystal]:
    return [crystals] if isinstance(crystals, Crystal) else crystals


__all__ = [
    "Batch",
    "Box",
    "Builder",
    "DensityRadius",
    "GraphError",
    "KNearest",
    "LatticeKNearest",
    "PeriodicGraph",
    "Radius",
    "Sphere",
    "k_nearest",
    "radius",
]
