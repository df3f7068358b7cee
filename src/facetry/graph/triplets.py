"""Pairs of edges that leave one atom: the second layer of a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from facetry.geometry.ragged import group_index, offsets, ranges
from facetry.graph.batch import Batch


@dataclass(frozen=True)
class Triplets:
    """Ordered pairs (first, second) of distinct edges with the same centre, sorted by the first.

      j
     /  first        An atom with n edges has n (n - 1) of them. Both ends may be images of one atom,
    i                and of the centre itself.
     \\  second
      k
    """

    first: Int[Tensor, " triplets"]
    second: Int[Tensor, " triplets"]
    num_triplets: Int[Tensor, " crystals"]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def crystal(self) -> Int[Tensor, " triplets"]:
        """The crystal of every triplet."""
        return group_index(self.num_triplets)

    def select(self, keep: Bool[Tensor, " triplets"]) -> Triplets:
        """Those that are kept, in their order."""
        counts = torch.bincount(self.crystal[keep], minlength=len(self.num_triplets))
        return Triplets(self.first[keep], self.second[keep], counts)


def triplets(batch: Batch) -> Triplets:
    """All triplets of a batch whose graph is sorted by centre, as builders make it."""
    graph = batch.require_graph()
    degree = torch.bincount(graph.center, minlength=len(batch.frac_coords))
    others = (degree - 1)[graph.center]
    first = group_index(others)
    second = ranges(offsets(degree)[:-1][graph.center], others)
    second = second + (second >= first)
    counts = torch.zeros_like(graph.num_edges).index_add(0, batch.edge_crystal, others)
    return Triplets(first, second, counts)
