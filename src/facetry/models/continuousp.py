"""ContinuouSP: the energy of a crystal as a continuous function, to sample structures from.

ContinuouSP: energy-based crystal structure prediction (arXiv 2502.02026).

    h_i = tanh(element)        R = 3 (V / n)^(1/3)        ω(d) = 1 + cos(π d / R)
    z = (A h_i + B h_j) ⊙ (D φ(d))        h_i ← softplus(h_i + tanh(Σ_j ω σ(z1) ⊙ z2))        three times
    E = Linear(MLP(mean over atoms of h)) + λ ln²(ρ / ρ0)        ρ = n / V

All images within R are neighbours, about 113 whatever the crystal. E is dimensionless and does not depend on
the choice of cell, supercells included. p(structure | atoms) ∝ exp(-E / T).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from facetry.geometry.lattice import volume
from facetry.graph.batch import Batch
from facetry.graph.builders import DensityRadius
from facetry.graph.images import ImageTable
from facetry.models.base import EnergyModel, Evaluation, Landscape
from facetry.nn.chebyshev import LowRank, whole_steps
from facetry.nn.gated_sums import FrozenLayer, GatedSums, image_edges
from facetry.nn.segment import segment_mean, segment_sum

ELEMENTS = 100
REACH = 20.0  # Å, the last centre of the broad Gaussians
NEIGHBOURS = 3.0  # R in units of (V / n)^(1/3)
_PIECE = 24_000  # numbers of channels of pairs worked on at once on the CPU
_PIECE_GPU = 1 << 24


def cutoffs(
    lattice: Float[Tensor, "crystals 3 3"], num_atoms: Int[Tensor, " crystals"]
) -> Float[Tensor, " crystals"]:
    """R = 3 (V / n)^(1/3) in Å; differentiable in the lattice."""
    return NEIGHBOURS * (volume(lattice).abs() / num_atoms).pow(1 / 3)


class DistanceFilter(nn.Module):
    """φ: "broad" is exp(-(d - μ)² / 2 (3Δ)²) with μ from 0 to 20 Å, Δ apart, as published; "narrow" is
    exp(-(d - μ)² / 2 Δ²) with μ from 0 to R, in units of R, so that no Gaussian lies beyond the cutoff."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        self.high = REACH if kind == "broad" else 1.0
        self.width = (3.0 if kind == "broad" else 1.0) * self.high / (size - 1)

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items size"]:
        """x is d in Å, or d / R for the narrow kind."""
        centers = torch.linspace(0.0, self.high, self.size, dtype=x.dtype, device=x.device)
        return torch.exp(-0.5 * ((x[:, None] - centers) / self.width).square())


class GatedLayer(nn.Module):
    """h_i ← softplus(h_i + tanh(Σ_j ω σ(z1) ⊙ z2)). Parameters: 2 (F 2F + 2F) + K 2F + 2F."""

    def __init__(self, channels: int, basis: int) -> None:
        super().__init__()
        self.center = nn.Linear(channels, 2 * channels)
        self.neighbor = nn.Linear(channels, 2 * channels)
        self.edge = nn.Linear(basis, 2 * channels)

    def forward(
        self,
        h: Float[Tensor, "atoms channels"],
        phi: Float[Tensor, "edges basis"],
        omega: Float[Tensor, " edges"],
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms channels"]:
        s = self.center(h).index_select(0, center) + self.neighbor(h).index_select(0, neighbor)
        gate, core = (s * self.edge(phi)).chunk(2, dim=1)
        message = omega[:, None] * torch.sigmoid(gate) * core
        return softplus(h + torch.tanh(segment_sum(message, center, len(h)).to(h.dtype)))


class ContinuouSP(EnergyModel):
    """Energy-based structure prediction: CGCNN made continuous.

    Defaults are the network published for Perov-5, 23 297 parameters; 64 channels, 6 layers and 4 linear maps
    behind the mean (`head_layers`) are that for MP-20 and MPTS-52, 168 705. `basis` is "broad" as published
    or "narrow" (`DistanceFilter`), of `basis_size` Gaussians (None: as many as channels). `density_weight` is
    λ and `density` ρ0 in atoms/Å³.

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell, and
    continuous with its slopes where atoms cross the cutoff.

    Departure from the published code: pairs nearer than 0.01 Å are neighbours too; only an atom itself is not
    its own.
    """

    name = "continuousp"

    def __init__(
        self,
        *,
        channels: int = 32,
        layers: int = 3,
        head_layers: int = 2,
        basis: Literal["broad", "narrow"] = "broad",
        basis_size: int | None = None,
        density_weight: float | int = 1.0,
        density: float | int = 0.05,
    ) -> None:
        super().__init__()
        for what, number in (("layers", layers), ("head_layers", head_layers), ("channels", channels)):
            if number < 1:
                raise ValueError(f"continuousp: expected {what} of at least 1, came {number}")
        if basis not in ("broad", "narrow"):
            raise ValueError(f"continuousp: expected basis of broad, narrow, came {basis!r}")
        size = channels if basis_size is None else basis_size
        if size < 2:
            raise ValueError(f"continuousp: expected basis_size of at least 2, came {size}")
        if not density > 0:
            raise ValueError(f"continuousp: expected a density above 0, came {density}")
        self.channels, self.density, self.density_weight = channels, float(density), float(density_weight)
        self.graph = DensityRadius(NEIGHBOURS)
        self.elements = nn.Embedding(ELEMENTS, channels)
        self.filter = DistanceFilter(basis, size)
        self.layers = nn.ModuleList(GatedLayer(channels, size) for _ in range(layers))
        self.hidden = nn.ModuleList(
            spectral_norm(nn.Linear(channels, channels)) for _ in range(head_layers - 1)
        )
        self.out = nn.Linear(channels, 1)

    @property
    def continuous(self) -> bool:
        return True

    def check_elements(self, atomic_numbers: Int[Tensor, " atoms"]) -> None:
        """Raises ValueError for elements that the network has no vector for."""
        wrong = sorted({int(z) for z in atomic_numbers[(atomic_numbers < 1) | (atomic_numbers > ELEMENTS)]})
        if wrong:
            raise ValueError(
                f"continuousp: expected elements 1 (H) to {ELEMENTS} (Fm), came atomic numbers {wrong}; leave"
                " these crystals out"
            )

    def head(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, " crystals"]:
        """Energies from the means over atoms."""
        for layer in self.hidden:
            pooled = softplus(layer(pooled))
        return self.out(pooled)[:, 0]

    def penalty(
        self, lattice: Float[Tensor, "crystals 3 3"], num_atoms: Int[Tensor, " crystals"]
    ) -> Float[Tensor, " crystals"]:
        """λ ln²(ρ / ρ0) in float64."""
        ratio = num_atoms / (volume(lattice).abs() * self.density)
        return self.density_weight * torch.log(ratio).square()

    def forward(self, batch: Batch) -> Float[Tensor, " crystals"]:
        """Energies; differentiable in weights, lattices and coordinates, twice."""
        self.check_elements(batch.atomic_numbers)
        graph = batch.require_graph()
        distance = batch.edge_vectors().square().sum(1).sqrt()
        ratio = distance / cutoffs(batch.lattice, batch.num_atoms)[batch.edge_crystal]
        # an edge of a graph that was built for other coordinates may have left the sphere
        omega = torch.where(ratio < 1, 1 + torch.cos(math.pi * ratio), 0.0).to(self.dtype)
        phi = self.filter(distance if self.filter.kind == "broad" else ratio).to(self.dtype)
        h = torch.tanh(self.elements(batch.atomic_numbers - 1))
        for layer in self.layers:
            h = layer(h, phi, omega, graph.center, graph.neighbor)
        pooled = segment_mean(h, batch.crystal_index, len(batch)).to(self.dtype)
        return self.head(pooled).to(batch.lattice.dtype) + self.penalty(batch.lattice, batch.num_atoms)

    def landscape(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        num_atoms: Int[Tensor, " crystals"],
        skin: float = 1.0,
    ) -> ContinuouSPLandscape:
        """Energies and slopes for these atoms with the weights of this moment."""
        return ContinuouSPLandscape(self, atomic_numbers, num_atoms, skin)


class ContinuouSPLandscape(Landscape):
    """Energy and slopes of many crystals, atoms given and weights frozen, for the steps of a chain.

    Neighbours are kept between calls (`facetry.graph.images`); what is written down anew must be named in
    `forget`. The filter D φ(d) is tabulated to the network's precision (`facetry.nn.chebyshev`).
    """

    def __init__(
        self,
        model: ContinuouSP,
        atomic_numbers: Int[Tensor, " atoms"],
        num_atoms: Int[Tensor, " crystals"],
        skin: float = 1.0,
    ) -> None:
        model.check_elements(atomic_numbers)
        self.model, self.num_atoms = model, num_atoms
        self.table = ImageTable(num_atoms, skin)
        self.crystal = self.table.atom_crystal
        self.dtype = model.dtype
        with torch.no_grad():
            self.start = torch.tanh(model.elements(atomic_numbers - 1))
            self.nodes = []
            for layer in model.layers:
                weight = torch.stack(
                    [
                        layer.center.weight.view(2, -1, model.channels),
                        layer.neighbor.weight.view(2, -1, model.channels),
                    ],
                    1,
                )
                bias = torch.zeros_like(weight[..., 0])
                bias[:, 0] = (layer.center.bias + layer.neighbor.bias).view(2, -1)
                self.nodes.append((weight.flatten(0, 2).T.contiguous(), bias.flatten()))
            self.filters = (
                torch.cat([layer.edge.weight for layer in model.layers]).double(),
                torch.cat([layer.edge.bias for layer in model.layers]).double(),
            )
            training = model.training
            model.eval()  # spectral norms do not iterate
            self.hidden = [(layer.weight.clone(), layer.bias.clone()) for layer in model.hidden]
            self.out = (model.out.weight.clone(), model.out.bias.clone())
            model.train(training)
        self.tables: dict[float, tuple[LowRank, list[FrozenLayer]]] = {}
        self.pieces = self._pieces()

    def forget(self, crystals: Bool[Tensor, " crystals"]) -> None:
        """These are described anew: another cell of the same lattice, atoms wrapped."""
        self.table.forget(crystals)

    def __call__(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        use: Bool[Tensor, " crystals"] | None = None,
    ) -> Evaluation:
        """Lattices and coordinates in float64. Crystals where `use` is False are left out: their energies are
        infinite."""
        cutoff = cutoffs(lattice, self.num_atoms)
        if use is not None:
            cutoff = torch.where(use, cutoff, 0.0)
        self.table.update(lattice, frac_coords, cutoff, use)
        highest = self._highest(cutoff)
        parts = [
            self._piece(lattice, frac_coords, cutoff, piece, self._layers(high))
            for piece, high in zip(self.pieces, highest, strict=True)
        ]
        energy, by_position, by_strain = (torch.cat(values) for values in zip(*parts, strict=True))
        density = self.num_atoms / (volume(lattice).abs() * self.model.density)
        log = torch.log(density)
        energy += self.model.density_weight * log.square()
        by_strain.diagonal(dim1=1, dim2=2).sub_((2 * self.model.density_weight * log)[:, None])
        if use is not None:
            energy = torch.where(use, energy, torch.inf)
        return Evaluation(energy, by_position, by_strain)

    def _highest(self, cutoff: Float[Tensor, " crystals"]) -> list[float]:
        """How far the tables of each piece must reach: few different values."""
        if self.model.filter.kind == "narrow":
            return [1.0] * len(self.pieces)
        return [whole_steps(float(cutoff[piece[0] : piece[1]].max()), 1.0) for piece in self.pieces]

    def _layers(self, high: float) -> tuple[LowRank, list[FrozenLayer]]:
        """The tabulated filter up to `high`, and the layers that read it."""
        if high not in self.tables:
            weight, bias = self.filters
            tolerance = 3e-7 if self.dtype == torch.float32 else 1e-13
            low_rank = LowRank(
                lambda d: self.model.filter(d) @ weight.T + bias, high, tolerance, self.dtype, weight.device
            )
            blocks = low_rank.matrix.split(self.model.channels, 1)
            self.tables[high] = (
                low_rank,
                [
                    FrozenLayer(nodes, shift, inner.contiguous(), outer.contiguous())
                    for (nodes, shift), inner, outer in zip(
                        self.nodes, blocks[::2], blocks[1::2], strict=True
                    )
                ],
            )
        return self.tables[high]

    def _pieces(self) -> list[tuple[int, int, int, int, int, int]]:
        """First and last crystal, atom and pair of stretches of crystals."""
        pairs = self.table.pairs.start.cpu()
        atoms = torch.cat([pairs.new_zeros(1), torch.cumsum(self.num_atoms.cpu(), 0)])
        limit = (_PIECE if self.crystal.device.type == "cpu" else _PIECE_GPU) // self.model.channels
        pieces, start, total = [], 0, len(self.num_atoms)
        while start < total:
            end = int(torch.searchsorted(pairs, pairs[start] + limit, right=True)) - 1
            end = min(max(end, start + 1), total)
            bounds = (start, end, *(int(x) for x in (atoms[start], atoms[end], pairs[start], pairs[end])))
            pieces.append(bounds)
            start = end
        return pieces

    @torch.no_grad()
    def _piece(
        self,
        lattice: Tensor,
        frac_coords: Tensor,
        cutoff: Tensor,
        piece: tuple[int, int, int, int, int, int],
        network: tuple[LowRank, list[FrozenLayer]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        c0, c1, a0, a1, p0, p1 = piece
        table, (low_rank, layers) = self.table, network
        reach, numbers = cutoff[c0:c1], self.num_atoms[c0:c1]
        edges = image_edges(
            lattice[c0:c1],
            frac_coords[a0:a1],
            reach,
            table.pairs.first[p0:p1] - a0,
            table.pairs.second[p0:p1] - a0,
            table.pairs.crystal[p0:p1] - c0,
            table.image[:, p0:p1],
            table.count[p0:p1],
            self.model.channels,
        )
        crystal = (table.pairs.crystal[p0:p1] - c0)[edges.order]
        radius = reach[crystal][edges.pair]
        ratio = edges.distance / radius
        angle = (math.pi * ratio).to(self.dtype)
        omega = torch.where(edges.real, 1 + torch.cos(angle), 0.0)
        slope = torch.where(edges.real, -torch.sin(angle), 0.0)  # in units of π / R
        broad = self.model.filter.kind == "broad"
        psi, by_x = low_rank.basis(edges.distance if broad else ratio)
        chi = psi * omega[:, None]
        sums = GatedSums(layers, edges, psi, chi)
        h = sums.forward(self.start[a0:a1])
        owner = self.crystal[a0:a1] - c0
        share = numbers.to(self.dtype).reciprocal()
        pooled = h.new_zeros((c1 - c0, h.shape[1])).index_add_(0, owner, h) * share[:, None]
        energy, by_pooled = self._head(pooled)
        by_psi, by_chi = sums.backward((by_pooled * share[:, None]).index_select(0, owner))
        # dE = by_chi (ω ψ' + ω' ψ) dx + by_psi ψ' dx
        by_omega = (by_chi * psi).sum(1)
        by_basis = by_psi.addcmul_(by_chi, omega[:, None]).mul_(by_x).sum(1)
        by_ratio = (by_omega * slope).double() * math.pi
        if broad:
            by_distance = by_basis.double() + by_ratio / radius
            by_radius = -by_ratio * ratio / radius
        else:
            by_distance = (by_basis.double() + by_ratio) / radius
            by_radius = -by_distance * ratio
        pull = torch.where(edges.real, by_distance / edges.distance, 0.0)
        force = pull * edges.vector
        pairs = len(edges.first)
        by_vector = force.new_zeros((pairs, 3)).index_add_(0, edges.pair, force.T)
        by_position = by_vector.new_zeros((a1 - a0, 3))
        by_position.index_add_(0, edges.second, by_vector).index_add_(0, edges.first, by_vector, alpha=-1)
        products = force[[0, 0, 0, 1, 1, 2]] * edges.vector[[0, 1, 2, 1, 2, 2]]
        products = torch.cat([products, by_radius[None] * (radius / 3)])
        by_pair = force.new_zeros((pairs, 7)).index_add_(0, edges.pair, products.T)
        by_crystal = force.new_zeros((c1 - c0, 7)).index_add_(0, crystal, by_pair)
        by_strain = by_crystal[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
        by_strain.diagonal(dim1=1, dim2=2).add_(by_crystal[:, 6:])
        return energy.double(), by_position, by_strain

    def _head(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and their slopes in the means over atoms."""
        kept, x = [], pooled
        for weight, bias in self.hidden:
            kept.append(torch.addmm(bias, x, weight.T))
            x = softplus(kept[-1])
        weight, bias = self.out
        energy = torch.addmm(bias, x, weight.T)[:, 0]
        by_x = weight.expand(len(x), -1)
        for (weight, _), z in zip(reversed(self.hidden), reversed(kept), strict=True):
            by_x = (by_x * torch.sigmoid(z)) @ weight
        return energy, by_x
