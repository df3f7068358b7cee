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
from facetry.models.base import EnergyModel, Evaluation, Landscape, evaluating
from facetry.nn.chebyshev import chebyshev
from facetry.nn.gated_sums import FilterTables, FrozenLayer, GatedSums, Memory
from facetry.nn.segment import segment_mean, segment_sum

ELEMENTS = 100
REACH = {"broad": 20.0, "sharp": 12.0, "narrow": 1.0}  # the last centre of the Gaussians: Å, Å, R
NEIGHBOURS = 3.0  # R in units of (V / n)^(1/3)
_PIECE = 80_000  # numbers of channels of pairs worked on at once on the CPU
_PIECE_GPU = 1 << 24
_SPREADS = (4.0, 8.0)  # gates are tabulated for s1 so far from its middle, for all there can be if that fails
_TOLERANCE = 5e-7  # of the largest message, in single precision
_STEP = 1.2  # factor between cutoffs up to which filters are tabulated
_ROOM = 1.06  # the first of them in units of the cutoff at the density where chains start


def cutoffs(
    lattice: Float[Tensor, "crystals 3 3"], num_atoms: Int[Tensor, " crystals"]
) -> Float[Tensor, " crystals"]:
    """R = 3 (V / n)^(1/3) in Å; differentiable in the lattice."""
    return NEIGHBOURS * (volume(lattice).abs() / num_atoms).pow(1 / 3)


class EnergyWithDensity(EnergyModel):
    """What both ContinuouSP energies share: which elements they know, and a term that keeps the density near
    that of the training."""

    density_weight: float  # λ

    @property
    def continuous(self) -> bool:
        return True

    def check_elements(self, atomic_numbers: Int[Tensor, " atoms"]) -> None:
        """Raises ValueError for elements that the network has no vector for."""
        wrong = sorted({int(z) for z in atomic_numbers[(atomic_numbers < 1) | (atomic_numbers > ELEMENTS)]})
        if wrong:
            raise ValueError(
                f"{self.name}: expected elements 1 (H) to {ELEMENTS} (Fm), came atomic numbers {wrong}; leave"
                " these crystals out"
            )

    def density_term(
        self, lattice: Float[Tensor, "crystals 3 3"], num_atoms: Int[Tensor, " crystals"]
    ) -> tuple[Float[Tensor, " crystals"], Float[Tensor, " crystals"]]:
        """λ ln²(ρ / ρ0), and its slope by ln V."""
        log = torch.log(num_atoms / (volume(lattice).abs() * self.density))
        return self.density_weight * log.square(), -2 * self.density_weight * log


class DistanceFilter(nn.Module):
    """φ: Gaussians exp(-(d - μ)² / 2 w²) with centres Δ apart. "broad": μ from 0 to 20 Å, w = 3Δ, as
    published; "sharp": μ from 0 to 12 Å, w = Δ; "narrow": μ from 0 to R, in units of R, w = Δ, so that no
    Gaussian lies beyond the cutoff and only the density term knows what an Å is."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        self.high = REACH[kind]
        self.width = (3.0 if kind == "broad" else 1.0) * self.high / (size - 1)

    @property
    def absolute(self) -> bool:
        """Whether it reads distances in Å, not in units of R."""
        return self.kind != "narrow"

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


class ContinuouSP(EnergyWithDensity):
    """Energy-based structure prediction: CGCNN made continuous.

    Defaults are the network published for Perov-5, 23 297 parameters; 64 channels, 6 layers and 4 linear maps
    behind the mean (`head_layers`) are that for MP-20 and MPTS-52, 168 705. `basis` is "broad" as published,
    "sharp" or "narrow" (`DistanceFilter`), of `basis_size` Gaussians (None: as many as channels).
    `density_weight` is λ and `density` ρ0 in atoms/Å³.

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
        basis: Literal["broad", "sharp", "narrow"] = "broad",
        basis_size: int | None = None,
        density_weight: float | int = 1.0,
        density: float | int = 0.05,
    ) -> None:
        super().__init__()
        for what, number in (("layers", layers), ("head_layers", head_layers), ("channels", channels)):
            if number < 1:
                raise ValueError(f"continuousp: expected {what} of at least 1, came {number}")
        if basis not in REACH:
            raise ValueError(f"continuousp: expected basis of {', '.join(REACH)}, came {basis!r}")
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

    def head(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, " crystals"]:
        """Energies from the means over atoms."""
        for layer in self.hidden:
            pooled = softplus(layer(pooled))
        return self.out(pooled)[:, 0]

    def forward(self, batch: Batch) -> Float[Tensor, " crystals"]:
        """Energies; differentiable in weights, lattices and coordinates, twice."""
        self.check_elements(batch.atomic_numbers)
        graph = batch.require_graph()
        distance = batch.edge_vectors().square().sum(1).sqrt()
        ratio = distance / cutoffs(batch.lattice, batch.num_atoms)[batch.edge_crystal]
        # an edge of a graph that was built for other coordinates may have left the sphere
        omega = torch.where(ratio < 1, 1 + torch.cos(math.pi * ratio), 0.0).to(self.dtype)
        phi = self.filter(distance if self.filter.absolute else ratio).to(self.dtype)
        h = torch.tanh(self.elements(batch.atomic_numbers - 1))
        for layer in self.layers:
            h = layer(h, phi, omega, graph.center, graph.neighbor)
        pooled = segment_mean(h, batch.crystal_index, len(batch)).to(self.dtype)
        energy = self.head(pooled).to(batch.lattice.dtype)
        return energy + self.density_term(batch.lattice, batch.num_atoms)[0]

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
    `forget`. Filters and gates are tabulated to the network's precision (`facetry.nn.gated_sums`).
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
            elements = torch.tanh(model.elements.weight)
            self.start = elements[atomic_numbers - 1]
            self.layers = [_frozen(layer) for layer in model.layers]
            self.bounds = self._bounds(elements[torch.unique(atomic_numbers) - 1])
            with evaluating(model):  # spectral norms do not iterate
                self.hidden = [(layer.weight.clone(), layer.bias.clone()) for layer in model.hidden]
                self.out = (model.out.weight.clone(), model.out.bias.clone())
        self.tables: dict[tuple[float, int], FilterTables] = {}
        self.memory = Memory(self.start)
        self.pieces = self._pieces()

    def forget(self, crystals: Bool[Tensor, " crystals"]) -> None:
        """These are described anew: another cell of the same lattice, atoms wrapped."""
        self.table.forget(crystals)

    @torch.no_grad()
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
        parts = [self._piece(lattice, frac_coords, cutoff, piece) for piece in self.pieces]
        energy, by_position, by_strain = (torch.cat(values) for values in zip(*parts, strict=True))
        of_density, by_log_volume = self.model.density_term(lattice, self.num_atoms)
        energy += of_density
        by_strain.diagonal(dim1=1, dim2=2).add_(by_log_volume[:, None])
        if use is not None:
            energy = torch.where(use, energy, torch.inf)
        return Evaluation(energy, by_position, by_strain)

    def _bounds(self, elements: Float[Tensor, "elements channels"]) -> list[list[Tensor]]:
        """The largest |s1| of every layer, tight and wider and, at last, of any h that may come."""
        a, b = self.layers[0].gates(elements)
        high, low = a.amax(0) + b.amax(0), a.amin(0) + b.amin(0)
        bounds = [[torch.maximum(high, -low)] for _ in range(len(_SPREADS) + 1)]
        low, high = elements.amin(0), elements.amax(0)
        for layer in self.layers[1:]:
            low, high = softplus(low - 1), softplus(high + 1)
            middle, deviation, most = layer.spread(low, high)
            for found, spread in zip(bounds, _SPREADS, strict=False):
                found.append(torch.minimum(middle + spread * deviation, most))
            bounds[-1].append(most)
        return bounds

    def _tables(self, high: float, level: int) -> FilterTables:
        """Filters up to `high`, for |s1| up to one of the bounds."""
        if (high, level) not in self.tables:
            tolerance = _TOLERANCE if self.dtype == torch.float32 else 1e-13
            self.tables[high, level] = FilterTables(
                self.layers, self.model.filter, high, self.bounds[level], tolerance, self.dtype
            )
        return self.tables[high, level]

    def _high(self, cutoff: float) -> float:
        """How far filters are tabulated: few different values, one for most densities of solids."""
        usual = _ROOM * NEIGHBOURS * self.model.density ** (-1 / 3)
        steps = math.log(max(cutoff, 0.1) / usual) / math.log(_STEP)
        return usual * _STEP ** max(math.ceil(steps), -2)

    def _pieces(self) -> list[tuple[int, int, int, int]]:
        """First and last crystal and atom of stretches of crystals."""
        pairs = self.table.pairs.start.cpu()
        atoms = torch.cat([pairs.new_zeros(1), torch.cumsum(self.num_atoms.cpu(), 0)])
        threads = torch.get_num_threads()  # share a piece, so that it must be larger
        numbers = _PIECE * max(1, 2 * (threads - 1)) if self.crystal.device.type == "cpu" else _PIECE_GPU
        limit = numbers // self.model.channels
        pieces, start, total = [], 0, len(self.num_atoms)
        while start < total:
            end = int(torch.searchsorted(pairs, pairs[start] + limit, right=True)) - 1
            end = min(max(end, start + 1), total)
            pieces.append((start, end, int(atoms[start]), int(atoms[end])))
            start = end
        return pieces

    def _piece(
        self, lattice: Tensor, frac_coords: Tensor, cutoff: Tensor, piece: tuple[int, int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies of some crystals and their slopes; the density has no part in them."""
        c0, c1, a0, a1 = piece
        images, reach = self.table.blocks(c0, c1), cutoff[c0:c1]
        pairs, slots, dtype = len(images.first), images.image.shape[1], self.dtype
        radius = reach.index_select(0, images.crystal)
        vector = images.vectors(lattice[c0:c1], frac_coords[a0:a1])
        squared = vector[0].square().addcmul_(vector[1], vector[1]).addcmul_(vector[2], vector[2])
        inverse_square = radius.square().reciprocal_()
        for start, end, most, low, up in images.blocks:
            squared[low:up].view(most, -1).mul_(inverse_square[start:end])
        ratio = squared.to(dtype).sqrt_().clamp_(max=1.0)
        absolute = self.model.filter.absolute
        high = self._high(float(reach.max())) if absolute else 1.0
        scale = radius if absolute else torch.ones_like(radius)
        scale = scale.mul(2 / high).to(dtype)  # x = scale ratio - 1
        x = self.memory.take("x", slots)
        for start, end, most, low, up in images.blocks:
            torch.mul(ratio[low:up].view(most, -1), scale[start:end], out=x[low:up].view(most, -1))
        x -= 1
        half = ratio * (math.pi / 2)
        cosine = torch.cos(half)
        omega = (2 * cosine.square()).mul_(ratio < 1)
        for level in range(len(self.bounds)):
            tables = self._tables(high, level)
            waves = self.memory.take("waves", tables.series.size, slots)
            chebyshev(x, omega, waves)
            moments = x.new_zeros((tables.series.size, pairs))
            for start, end, most, low, up in images.blocks:
                torch.sum(waves[:, low:up].view(-1, most, end - start), 1, out=moments[:, start:end])
            sums = GatedSums(
                tables.layers,
                images.first,
                images.second,
                moments.T @ tables.series.series,
                self.memory,
            )
            h = sums.forward(self.start[a0:a1])
            if not sums.beyond():
                break
        owner = self.crystal[a0:a1] - c0
        share = self.num_atoms[c0:c1].to(dtype).reciprocal()
        pooled = h.new_zeros((c1 - c0, h.shape[1])).index_add_(0, owner, h) * share[:, None]
        energy, by_pooled = self._head(pooled)
        by_moments = sums.backward((by_pooled * share[:, None]).index_select(0, owner))
        # dE / d ratio = ω' Σ c T + ω Σ c' T scale with ω = 2 cos², ω' = -π tan ω
        series = torch.cat([tables.series.series, tables.series.slopes]) @ by_moments.T
        series = series.view(2, -1, 1, pairs)
        product = self.memory.take("product", waves.numel())
        by_omega, by_ratio = self.memory.take("by", 2, slots)
        for start, end, most, low, up in images.blocks:
            width = end - start
            part = product[: len(waves) * (up - low)].view(-1, most, width)
            rows = waves[:, low:up].view(-1, most, width)
            for kind, out in enumerate((by_omega, by_ratio)):
                torch.mul(rows, series[kind, :, :, start:end], out=part)
                torch.sum(part, 0, out=out[low:up].view(most, width))
            by_ratio[low:up].view(most, width).mul_(scale[start:end])
        by_omega.mul_(torch.sin(half).div_(cosine)).mul_(-math.pi)
        by_ratio += by_omega
        # force and force ⊗ vector, both times R², and R dE / dR
        rows = self.memory.take("rows", 10, slots)
        pull = by_ratio / ratio
        near = vector.to(dtype)
        torch.mul(near, pull, out=rows[:3])
        for row, (i, j) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)), 3):
            torch.mul(rows[i], near[j], out=rows[row])
        torch.mul(by_omega if absolute else by_ratio, ratio, out=rows[9])
        total = x.new_zeros((10, pairs))
        for start, end, most, low, up in images.blocks:
            torch.sum(rows[:, low:up].view(10, most, -1), 1, out=total[:, start:end])
        total = total.double()
        total[:9] *= torch.where(radius > 0, inverse_square, 0.0)
        by_vector = total[:3].T
        by_position = by_vector.new_zeros((a1 - a0, 3))
        by_position.index_add_(0, images.second, by_vector).index_add_(0, images.first, by_vector, alpha=-1)
        by_crystal = total.new_zeros((c1 - c0, 7)).index_add_(0, images.crystal, total[3:].T)
        by_strain = by_crystal[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
        by_strain.diagonal(dim1=1, dim2=2).sub_(by_crystal[:, 6:] / 3)
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


def _frozen(layer: GatedLayer) -> FrozenLayer:
    """A layer's weights as gated sums read them."""
    channels = layer.center.in_features
    weight = torch.stack(
        [layer.center.weight.view(2, -1, channels), layer.neighbor.weight.view(2, -1, channels)], 1
    )
    bias = torch.zeros_like(weight[..., 0])
    bias[:, 0] = (layer.center.bias + layer.neighbor.bias).view(2, -1)
    inner, outer = layer.edge.weight.double().chunk(2)
    inner_bias, outer_bias = layer.edge.bias.double().chunk(2)
    return FrozenLayer(
        weight.flatten(0, 2).T.contiguous(), bias.flatten(), inner, inner_bias, outer, outer_bias
    )
