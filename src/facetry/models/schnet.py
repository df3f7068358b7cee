"""SchNet: continuous filters of distance.

Schütt, Kindermans, Sauceda, Chmiela, Tkatchenko, Müller: SchNet: a continuous-filter convolutional neural
network for modeling quantum interactions, NeurIPS 2017 (arXiv 1706.08566); for crystals J. Chem. Phys. 148
(2018) 241722 (arXiv 1712.06113).

    W(d) = L₂ ssp(L₁ g(d)) ω(d)        ω(d) = ½ (1 + cos(π d / r_c))
    h_i ← h_i + L_b ssp(L_a M_i)        M_i: mean over the neighbours j of (L h_j) ⊙ W(d_ij)        six times
    output = mean over atoms of Linear(ssp(Linear(h)))

g are 25 Gaussians from 0 to 5 Å, ssp is the shifted softplus. Neighbours are all images within the cutoff,
without a largest number.

Departures: with y = L h_j the mean is Σ y ⊙ W / √(1 + (Σ ω)²), not Σ y ⊙ W over the number of neighbours,
which jumps where one crosses the cutoff. This sum fades in and out with it, to nothing when the last
neighbour leaves. `smooth=False` has the filter without ω and the plain mean of the first code. The primitive
cell, so that a supercell costs no more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.graph.batch import Batch
from facetry.graph.builders import Radius
from facetry.graph.neighbors import SHELL_GAP
from facetry.models.base import PropertyModel
from facetry.nn.basis import GaussianBasis, at_precision, distinct, shifted_softplus
from facetry.nn.embedding import LearnedElements
from facetry.nn.segment import segment_mean, segment_sum

ELEMENTS = 99


class Interaction(nn.Module):
    """A convolution with a filter of distance, and a layer on every atom (Schütt 2017, Sec. 4.1)."""

    def __init__(self, channels: int, gaussians: int) -> None:
        super().__init__()
        self.filter_in = nn.Linear(gaussians, channels)
        self.filter_out = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels, bias=False)
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        h: Float[Tensor, "atoms channels"],
        lengths: Float[Tensor, "rows gaussians"],
        envelope: Float[Tensor, " rows"],
        row: Int[Tensor, " edges"],
        share: Float[Tensor, " atoms"],
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms channels"]:
        """`row` names the row of `lengths` and `envelope` an edge reads; `share` scales an atom's sum."""
        filters = self.filter_out(shifted_softplus(self.filter_in(lengths))) * envelope[:, None]
        messages = self.project(h).index_select(0, neighbor) * filters.index_select(0, row)
        total = segment_sum(messages, center, len(h)) * share[:, None]
        return h + self.out(shifted_softplus(self.hidden(total)))


class SchNet(PropertyModel):
    """Continuous-filter convolutional network (Schütt 2017, 2018).

    Defaults are the settings of the authors for the Materials Project, 117 953 parameters, embeddings for the
    elements 1 to 99. `cutoff` in Å; `smooth=False` is the first published form, without envelope.

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell; with
    `smooth` also continuous in positions and lattice, with continuous forces.
    """

    name = "schnet"

    def __init__(
        self,
        outputs: int = 1,
        *,
        layers: int = 6,
        channels: int = 64,
        gaussians: int = 25,
        cutoff: float | int = 5.0,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"schnet: expected layers of at least 1, came {layers}")
        if not cutoff > 0:
            raise ValueError(f"schnet: expected a cutoff above 0 Å, came {cutoff}")
        self.outputs, self.channels = outputs, channels
        self.cutoff, self.smooth = float(cutoff), smooth
        # without an envelope rounding must not decide about neighbours at a round distance
        self.graph = Radius(self.cutoff + (0.0 if smooth else SHELL_GAP / 2), primitive=True)
        # exp(-(d - μ)² / (2 Δ²)), Δ the spacing
        self.basis = GaussianBasis(0.0, self.cutoff, gaussians, width=2**0.5 * cutoff / (gaussians - 1))
        self.atoms = LearnedElements(channels, ELEMENTS + 1)
        self.layers = nn.ModuleList(Interaction(channels, gaussians) for _ in range(layers))
        self.hidden = nn.Linear(channels, channels // 2)
        self.out = nn.Linear(channels // 2, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def continuous(self) -> bool:
        return self.smooth

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        graph = batch.require_graph()
        unique, row = distinct(batch.edge_vectors().norm(dim=1), self.dtype)
        lengths = at_precision(self.basis, unique, self.dtype)
        if self.smooth:
            envelope = 0.5 + 0.5 * torch.cos(torch.pi / self.cutoff * unique)
            weight = segment_sum(envelope.index_select(0, row), graph.center, len(batch.frac_coords))
            share = (1.0 + weight.square()).rsqrt()
        else:
            envelope = torch.ones_like(unique)
            count = torch.bincount(graph.center, minlength=len(batch.frac_coords))
            share = count.clamp(min=1).to(unique.dtype).reciprocal()
        envelope, share = envelope.to(self.dtype), share.to(self.dtype)
        h = self.atoms(batch.atomic_numbers)
        for layer in self.layers:
            h = layer(h, lengths, envelope, row, share, graph.center, graph.neighbor)
        return h

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        return segment_mean(self.embed_atoms(batch), batch.crystal_index, len(batch))

    def forward(self, batch: Batch) -> Float[Tensor, "crystals outputs"]:
        return self.forward_with_embedding(batch)[0]

    def forward_with_embedding(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "crystals outputs"], Float[Tensor, "crystals channels"]]:
        """Outputs and mean atom vectors in one pass; the output layers act on every atom before the mean."""
        h = self.embed_atoms(batch)
        each = self.out(shifted_softplus(self.hidden(h)))
        crystal, count = batch.crystal_index, len(batch)
        return segment_mean(each, crystal, count), segment_mean(h, crystal, count)
