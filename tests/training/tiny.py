"""A network of a few weights and a physical-looking data set: training itself is tested, not the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from facetry.card import Target
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.graph.batch import Batch
from facetry.graph.builders import NoGraph
from facetry.models import MODELS
from facetry.models.base import PropertyModel
from facetry.training.state import Keeper


class Tiny(PropertyModel):
    """Mean of element vectors and the volume per atom through one hidden layer with BatchNorm and dropout."""

    name = "tiny"

    def __init__(self, channels: int = 8, dropout: float = 0.1, outputs: int = 1):
        super().__init__()
        self.outputs, self.graph = outputs, NoGraph()
        self.element = nn.Embedding(120, channels)
        self.first = nn.Linear(channels + 1, channels)
        self.normal = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, outputs)

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        x = self.element(batch.atomic_numbers)
        pooled = x.new_zeros(len(batch), x.shape[1]).index_add(0, batch.crystal_index, x)
        volume = torch.linalg.det(batch.lattice).abs().to(x.dtype) / 50
        counts = batch.num_atoms[:, None].to(x.dtype)
        return torch.cat([pooled / counts, volume[:, None] / counts], dim=1)

    def forward(self, batch: Batch) -> Float[Tensor, "crystals outputs"]:
        return self.head(self.dropout(torch.tanh(self.normal(self.first(self.embed(batch))))))


MODELS["tiny"] = Tiny


def tiny_data(
    count: int = 90,
    seed: int = 0,
    targets: Sequence[Target] = (Target(name="energy", unit="eV"),),
    missing: float = 0.0,
) -> Splits:
    """Boxes of 1 to 4 atoms; every target is a function of volume and elements, NaN with a probability."""
    rng = np.random.default_rng(seed)
    crystals, values = [], []
    for index in range(count):
        atoms = int(rng.integers(1, 5))
        numbers = rng.integers(1, 9, atoms)
        edge = rng.uniform(3, 5)
        crystals.append(Crystal(np.eye(3) * edge, rng.random((atoms, 3)), numbers, name=f"box-{index}"))
        base = 0.05 * edge**3 / atoms + 0.3 * numbers.mean()
        row = []
        for target in targets:
            label = base * 2 + 7
            if target.task == "binary":
                label = float(base > 2.6)
            elif target.task == "multiclass":
                label = float(np.digitize(base, [2.2, 3.2]))
            row.append(np.nan if rng.random() < missing else label)
        values.append(row)
    table = CrystalTable.from_crystals(crystals)
    whole = Dataset(table, np.array(values), list(targets))
    cuts = [0, int(count * 0.6), int(count * 0.8), count]
    parts = {
        n: whole.select(slice(a, b))
        for n, a, b in zip(("train", "val", "test"), cuts, cuts[1:], strict=False)
    }
    return Splits("boxes", parts)


def tiny_model(seed: int = 0, **options: object) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**options)


@contextmanager
def killed_at_save(count: int) -> Iterator[None]:
    """Here a training raises RuntimeError right after it has kept its resume point for the count-th time."""
    save, left = Keeper.save, [count]

    def die(self: Keeper, *arguments: object) -> None:
        save(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "save", die)
        yield
