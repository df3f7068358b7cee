"""Bonds by covalent radii, and in how many dimensions they go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from facetry.elements import COVALENT_RADII, SYMBOLS
from facetry.geometry.components import connected_components
from facetry.graph import neighbors
from facetry.graph.batch import Batch
from facetry.graph.builders import Builder
from facetry.graph.neighbors import GraphError, crystal_name, reduced

__all__ = ["Bonds", "dimensionality"]


@dataclass(frozen=True)
class Bonds(Builder):
    """All pairs of atoms no farther apart than the sum of their covalent radii (Cordero 2008) and `tolerance`
    (Å), in the cell as given."""

    tolerance: float = 0.45

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Raises GraphError naming the crystal whose element has no radius or whose atoms coincide."""
        wrong = torch.nonzero((batch.atomic_numbers < 1) | (batch.atomic_numbers >= len(COVALENT_RADII)))
        if len(wrong):
            atom = int(wrong[0, 0])
            crystal = int(batch.crystal_index[atom])
            symbol, last = SYMBOLS[int(batch.atomic_numbers[atom])], SYMBOLS[len(COVALENT_RADII) - 1]
            raise GraphError(
                f"{crystal_name(names, crystal)}: no covalent radius of {symbol} is known; expected"
                f" elements up to {last}"
            )
        small, transform, wrap = reduced(batch)
        radius = torch.tensor(COVALENT_RADII, dtype=batch.lattice.dtype, device=batch.device)
        radius = radius[batch.atomic_numbers]
        largest = radius.new_zeros(len(batch)).scatter_reduce_(0, batch.crystal_index, radius, "amax")
        pairs = neighbors.pairs_within(small, 2 * largest + self.tolerance + 1e-9)
        neighbors.check_distinct(small, pairs, names)
        keep = pairs.distance <= radius[pairs.center] + radius[pairs.neighbor] + self.tolerance
        return replace(batch, graph=neighbors.in_given_cell(batch, pairs, keep, transform, wrap))


def dimensionality(batch: Batch) -> Int[Tensor, " crystals"]:
    """In how many dimensions the largest connected part of each crystal's graph goes on: 3 for a framework, 2
    for layers, 1 for chains, 0 for molecules and atoms (Larsen et al., Phys. Rev. Materials 3 (2019) 034003).

    A part goes on along the lattice translations that lead from an atom along edges to its own image; its
    dimension is their rank.
    """
    graph, atoms = batch.require_graph(), len(batch.frac_coords)
    center, neighbor, image = (t.cpu().numpy() for t in (graph.center, graph.neighbor, graph.image))
    parts, part = connected_components(center, neighbor, atoms)
    # unfold every part from its first atom: the cell in which each atom is met
    cell = np.zeros((atoms, 3), dtype=np.int64)
    met = np.zeros(atoms, dtype=bool)
    met[np.unique(part, return_index=True)[1]] = True
    while True:
        ahead = np.nonzero(met[center] & ~met[neighbor])[0]
        if not len(ahead):
            break
        found, first = np.unique(neighbor[ahead], return_index=True)
        edge = ahead[first]
        cell[found] = cell[center[edge]] + image[edge]
        met[found] = True
    # an edge that leads elsewhere than where its end was met closes a loop around the lattice
    loop = (cell[center] + image - cell[neighbor]).astype(np.float64)
    gram = np.zeros((parts, 3, 3))
    np.add.at(gram, part[center], loop[:, :, None] * loop[:, None, :])
    # integers: the rank of Σ v vᵀ is read off its principal minors, exactly
    trace = np.trace(gram, axis1=1, axis2=2)
    minors = 0.5 * (trace**2 - np.trace(gram @ gram, axis1=1, axis2=2))
    volume = np.linalg.det(gram)
    rank = np.select([volume > 0.5, minors > 0.5, trace > 0.5], [3, 2, 1], 0)
    result = np.zeros(len(batch), dtype=np.int64)
    np.maximum.at(result, batch.crystal_index.cpu().numpy(), rank[part])
    return torch.from_numpy(result).to(batch.device)
