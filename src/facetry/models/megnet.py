"""MEGNet: atoms, bonds and a state of the crystal update one another.

Chen, Ye, Zuo, Zheng, Ong: Graph networks as a universal machine learning framework for molecules and
crystals, Chem. Mater. 31 (2019) 3564 (arXiv 1812.05055).

    e ← e + φ_e(v_i ∥ v_j ∥ e ∥ u)
    v ← v + φ_v(mean over the bonds of an atom of e ∥ v ∥ u)
    u ← u + φ_u(mean of e ∥ mean of v ∥ u)        three times
    output = MLP(Set2Set(v) ∥ Set2Set(e) ∥ u)

Bonds are all pairs within 4 Å, expanded in 100 Gaussians from 0 to 5 Å. Every layer but the last ends in the
shifted softplus ln(1 + eˣ) - ln 2. Sizes are those of the later PyTorch code (matgl), the width of the
Gaussians that of the paper.

Departures: where the published code refuses a crystal with an isolated atom, the mean over no bonds is zero,
as is the summary of no bonds at all; the cutoff counts 0.0005 Å further, lest rounding decide about bonds of
a round length; the primitive cell, so that a supercell costs no more. Elements without a row of their own
read that of the element above them in the periodic table.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.graph.batch import Batch
from facetry.graph.builders import Radius
from facetry.graph.neighbors import SHELL_GAP
from facetry.models.base import PooledModel
from facetry.nn.basis import GaussianBasis, at_precision, distinct, shifted_softplus
from facetry.nn.embedding import check_elements
from facetry.nn.readout import Set2Set
from facetry.nn.segment import linear_of_parts, segment_mean

ELEMENT_CHANNELS, GAUSSIANS, STATE = 16, 100, 2
MARGIN = 1.0  # Å from the cutoff to the last centre of the Gaussians
LONG_PERIOD = 32  # from an element of the heaviest rows to the one above it
ROWS = 94  # Pu; the published network knows the elements up to it but for Po to Ra
ABSENT = range(84, 89)


class Perceptron(nn.Module):
    """Linear and shifted softplus, once for each size after the first. Reads several parts side by side,
    each with the rows that an item takes from it (None: one after the other)."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, *parts: tuple[Tensor, Tensor | None]) -> Float[Tensor, "items channels"]:
        first, *others = self.layers
        x = shifted_softplus(linear_of_parts(first, parts))
        for layer in others:
            x = shifted_softplus(layer(x))
        return x


class Block(nn.Module):
    """One update of bonds, atoms and state (Chen 2019, Eq. 1 to 7); `dense` layers come before it in all but
    the first block, and what is added to is their input."""

    def __init__(self, channels: int, dense: bool) -> None:
        super().__init__()
        wide = 2 * channels
        self.dense = nn.ModuleList(Perceptron(channels, wide, channels) for _ in range(3)) if dense else None
        self.edge = Perceptron(4 * channels, wide, wide, channels)
        self.atom = Perceptron(3 * channels, wide, wide, channels)
        self.state = Perceptron(3 * channels, wide, wide, channels)

    def forward(
        self,
        v: Float[Tensor, "atoms channels"],
        e: Float[Tensor, "edges channels"],
        u: Float[Tensor, "crystals channels"],
        batch: Batch,
    ) -> tuple[
        Float[Tensor, "atoms channels"], Float[Tensor, "edges channels"], Float[Tensor, "crystals channels"]
    ]:
        graph, crystal, edge_crystal = batch.require_graph(), batch.crystal_index, batch.edge_crystal
        before = v, e, u
        if self.dense is not None:
            v, e, u = (layer((x, None)) for layer, x in zip(self.dense, before, strict=True))
        e = self.edge((v, graph.center), (v, graph.neighbor), (e, None), (u, edge_crystal))
        bonds = segment_mean(e, graph.center, len(v))
        v = self.atom((bonds, None), (v, None), (u, crystal))
        bonds, atoms = segment_mean(e, edge_crystal, len(u)), segment_mean(v, crystal, len(u))
        u = self.state((bonds, None), (atoms, None), (u, None))
        return before[0] + v, before[1] + e, before[2] + u


class MEGNet(PooledModel):
    """MatErials Graph Network (Chen 2019).

    Defaults have 189 521 parameters: the sizes of matgl with its 89 elements, H to Pu without Po to Ra, which
    read the row of the element above them as do those beyond Pu; with `elements=118` each has a row of its
    own. `width` (Å) is where a Gaussian has fallen to 1/e; matgl's code uses √2. `passes` are the rounds of
    Set2Set. The state starts from zeros, as in the paper's models of crystals.

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell. Not
    continuous where a bond crosses the cutoff.
    """

    name = "megnet"

    def __init__(
        self,
        outputs: int = 1,
        *,
        layers: int = 3,
        channels: int = 32,
        cutoff: float | int = 4.0,
        width: float | int = 0.5,
        passes: int = 2,
        elements: int = 89,
    ) -> None:
        super().__init__()
        for what, number in (("layers", layers), ("passes", passes)):
            if number < 1:
                raise ValueError(f"megnet: expected {what} of at least 1, came {number}")
        if not cutoff > 0:
            raise ValueError(f"megnet: expected a cutoff above 0 Å, came {cutoff}")
        if elements not in (89, 118):
            raise ValueError(f"megnet: expected elements of 89 or 118, came {elements}")
        self.outputs, self.channels = outputs, channels
        self.graph = Radius(cutoff + SHELL_GAP / 2, primitive=True)
        self.register_buffer("element_row", _rows(elements), persistent=False)
        self.elements = nn.Embedding(elements, ELEMENT_CHANNELS)
        self.basis = GaussianBasis(0.0, cutoff + MARGIN, GAUSSIANS, width=width)
        wide = 2 * channels
        self.atom_in = Perceptron(ELEMENT_CHANNELS, wide, channels)
        self.edge_in = Perceptron(GAUSSIANS, wide, channels)
        self.state_in = Perceptron(STATE, wide, channels)
        self.layers = nn.ModuleList(Block(channels, dense=number > 0) for number in range(layers))
        self.pool_atoms = Set2Set(channels, passes)
        self.pool_edges = Set2Set(channels, passes)
        self.hidden = Perceptron(5 * channels, channels, channels // 2)
        self.out = nn.Linear(channels // 2, outputs)

    def _streams(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms, bonds and states after the last block."""
        check_elements(batch.atomic_numbers)
        unique, row = distinct(batch.edge_vectors().norm(dim=1), self.dtype)
        e = self.edge_in((at_precision(self.basis, unique, self.dtype), None)).index_select(0, row)
        v = self.atom_in((self.elements(self.element_row[batch.atomic_numbers]), None))
        u = self.state_in((v.new_zeros((len(batch), STATE)), None))
        for layer in self.layers:
            v, e, u = layer(v, e, u, batch)
        return v, e, u

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        return self._streams(batch)[0]

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        v, e, u = self._streams(batch)
        atoms = self.pool_atoms(v, batch.crystal_index, len(batch))
        return torch.cat([atoms, self.pool_edges(e, batch.edge_crystal, len(batch)), u], 1)

    def outputs_of(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        return self.out(self.hidden((pooled, None)))


def _rows(elements: int) -> Int[Tensor, " numbers"]:
    """The row of every atomic number; that of 0 is never read."""
    rows = [0]
    for z in range(1, 119):
        if elements == 118:
            rows.append(z - 1)
        elif z in ABSENT or z > ROWS:
            rows.append(rows[z - LONG_PERIOD])
        else:
            rows.append(z - 1 - (len(ABSENT) if z >= ABSENT.stop else 0))
    return torch.tensor(rows)
