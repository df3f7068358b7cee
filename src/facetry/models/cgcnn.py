"""CGCNN: gated convolutions on the graph of nearest neighbours.

Xie, Grossman: Crystal graph convolutional neural networks for an accurate and interpretable prediction of
material properties, Phys. Rev. Lett. 120 (2018) 145301 (arXiv 1710.10324).

    z = [h_i ∥ h_j ∥ g(d_ij)]        filter ∥ core = BN(W z + b)
    h_i ← sp(h_i + BN(Σ_j σ(filter) ⊙ sp(core)))        three times
    output = Linear(sp(Linear(sp(mean over atoms of h))))        sp: softplus

g are 41 Gaussians from 0 to 8 Å; elements enter as the 92 binary features of `facetry.nn.element_table`.

Departures from the published code: of neighbours that are equally far all are kept, where it cuts the list at
twelve in the order of the search; an atom with fewer than twelve neighbours within 8 Å sums over those it
has, where it fills up with atom 0 at 9 Å; the primitive cell, so that a supercell costs no more.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from facetry.graph.batch import Batch
from facetry.graph.builders import KNearest
from facetry.models.base import PooledModel
from facetry.nn.basis import GaussianBasis, at_precision, distinct
from facetry.nn.embedding import ElementTable
from facetry.nn.segment import linear_of_parts, segment_sum

STEP = 0.2  # Å, between the centres of the Gaussians and their width


class GatedConvolution(nn.Module):
    """What an atom takes from its neighbours (Xie 2018, Eq. 5).

    The running statistics of the sum start from its size at z = 0 with `k` neighbours, not from 0 and 1, so
    that an untrained network does not grow from layer to layer; training replaces them.
    """

    def __init__(self, channels: int, edge_channels: int, k: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * channels + edge_channels, 2 * channels)
        self.edge_norm = nn.BatchNorm1d(2 * channels)
        self.norm = nn.BatchNorm1d(channels)
        self.norm.running_mean.fill_(0.5 * math.log(2.0) * k)
        self.norm.running_var.fill_(k)

    def forward(
        self,
        h: Float[Tensor, "atoms channels"],
        lengths: Float[Tensor, "rows edge_channels"],
        row: Int[Tensor, " edges"],
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms channels"]:
        """`row` names the row of `lengths` that an edge reads."""
        z = linear_of_parts(self.mix, [(h, center), (h, neighbor), (lengths, row)])
        gate, core = self.edge_norm(z).chunk(2, dim=1)
        total = segment_sum(torch.sigmoid(gate) * softplus(core), center, len(h))
        return softplus(h + self.norm(total))


class CGCNN(PooledModel):
    """Crystal graph convolutional network (Xie and Grossman 2018).

    Defaults are the published network, 80 833 parameters. `k` neighbours within `cutoff` Å are read;
    `hidden_layers` is the number of layers of `hidden` channels between pooling and output, `dropout` follows
    the first of them (0.5 in the published classifiers).

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell. An atom
    without neighbours within the cutoff receives nothing. Not continuous where neighbours trade places.
    """

    name = "cgcnn"

    def __init__(
        self,
        outputs: int = 1,
        *,
        layers: int = 3,
        channels: int = 64,
        hidden: int = 128,
        hidden_layers: int = 1,
        k: int = 12,
        cutoff: float | int = 8.0,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        for what, number in (("layers", layers), ("hidden_layers", hidden_layers), ("k", k)):
            if number < 1:
                raise ValueError(f"cgcnn: expected {what} of at least 1, came {number}")
        if not cutoff > STEP:
            raise ValueError(f"cgcnn: expected a cutoff above {STEP} Å, came {cutoff}")
        self.outputs, self.channels = outputs, channels
        self.graph = KNearest(k=k, cutoff=float(cutoff), primitive=True)
        size = round(cutoff / STEP) + 1
        self.basis = GaussianBasis(0.0, STEP * (size - 1), size, width=STEP)
        self.atoms = ElementTable(channels)
        self.layers = nn.ModuleList(GatedConvolution(channels, size, k) for _ in range(layers))
        widths = [channels, *[hidden] * hidden_layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, outputs)

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        graph = batch.require_graph()
        unique, row = distinct(batch.edge_vectors().norm(dim=1), self.dtype)
        lengths = at_precision(self.basis, unique, self.dtype)
        h = self.atoms(batch.atomic_numbers)
        for layer in self.layers:
            h = layer(h, lengths, row, graph.center, graph.neighbor)
        return h

    def outputs_of(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        x = softplus(pooled)
        for number, layer in enumerate(self.hidden):
            x = softplus(layer(x))
            if number == 0:
                x = self.dropout(x)
        return self.out(x)
