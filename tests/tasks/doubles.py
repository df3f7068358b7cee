"""A model small enough to check by hand, which can be told to fail."""

from __future__ import annotations

import torch
from torch import nn

from facetry.graph.batch import Batch


class Double(nn.Module):
    """Outputs a · mean atomic number + b · atoms; fails as asked. Embedding: (mean atomic number, atoms)."""

    def __init__(self, outputs=1, poison=None, poison_graph=None, max_atoms=None, nan_for=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.1]))
        self.dropout = nn.Dropout(0.5)
        self.outputs = outputs
        self.poison, self.poison_graph, self.max_atoms, self.nan_for = (
            poison,
            poison_graph,
            max_atoms,
            nan_for,
        )
        self.card = None
        self.domain_reference = None
        self.batches = []

    def graph(self, crystals):
        batch = Batch.from_crystals(crystals)
        if self.poison_graph is not None and (batch.atomic_numbers == self.poison_graph).any():
            raise ValueError("no graph for this one")
        return batch

    def embed_atoms(self, batch):
        return self.dropout(
            torch.stack([batch.atomic_numbers.float(), torch.ones(len(batch.frac_coords))], dim=1)
        )

    def embed(self, batch):
        rows = self.embed_atoms(batch)
        total = torch.zeros(len(batch), 2).index_add(0, batch.crystal_index, rows)
        return torch.stack([total[:, 0] / batch.num_atoms, batch.num_atoms.float()], dim=1)

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        if self.poison is not None and (batch.atomic_numbers == self.poison).any():
            raise RuntimeError("poisoned\nsecond line")
        if self.max_atoms is not None and len(batch.frac_coords) > self.max_atoms:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        self.batches.append(len(batch))
        value = self.embed(batch) @ self.weight
        if self.nan_for is not None:
            value = torch.where(self.embed(batch)[:, 0] == self.nan_for, torch.nan, value)
        return torch.stack([value + i for i in range(self.outputs)], dim=1)
