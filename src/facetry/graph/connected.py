"""Which atoms a graph joins."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from facetry.geometry.components import connected_components
from facetry.geometry.ragged import offsets
from facetry.graph.batch import Batch

_STEPS = 3  # from the first atom, before a matrix is made


def disconnected(
    batch: Batch, center: Int[Tensor, " edges"], neighbor: Int[Tensor, " edges"]
) -> Int[Tensor, " crystals_apart"]:
    """The crystals whose graph falls into several parts (lattice translations count as connections)."""
    n = len(batch.frac_coords)
    # nearly always a few steps from the first atom reach all; cheaper than a matrix
    seen = torch.zeros(n, dtype=torch.bool, device=batch.device)
    seen[offsets(batch.num_atoms)[:-1]] = True
    for _ in range(_STEPS):
        seen[neighbor[seen[center]]] = True
        if bool(seen.all()):
            return center[:0]
    parts, label = connected_components(center.cpu().numpy(), neighbor.cpu().numpy(), n)
    if parts == len(batch):
        return torch.zeros(0, dtype=torch.int64, device=batch.device)
    label = torch.from_numpy(label).to(batch.device)
    lowest = torch.full((len(batch),), n, dtype=torch.int64, device=batch.device)
    highest = torch.zeros_like(lowest)
    lowest.scatter_reduce_(0, batch.crystal_index, label, "amin")
    highest.scatter_reduce_(0, batch.crystal_index, label, "amax")
    return torch.nonzero(lowest != highest)[:, 0]
