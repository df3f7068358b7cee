"""EMPNN: a network that acts on the lattice, and the feed-forward network it is compared with.

Klipfel, Peltre, Harrati, Fregier, Sayede, Bouraoui: Equivariant message passing neural network for crystal
material discovery, AAAI 2023.

    h_i ← GRU(W' mean_γ silu(W [h_i ∥ h_j ∥ RBF(r_γ)]), h_i)                     6 layers on the given lattice
    then 4 times: one more layer, and with numbers w from perceptrons on edges γ and triplets (γ, γ')
    B = mean_γ Σ w λ_γ + mean_(γ,γ') Σ w λ_γγ'          ρ ← (1 + B) ρ          λ: facetry.nn.lattice_fields

Edges lead from every atom to its 8 nearest neighbours with whole shells; they are found once, in the lattice
that is given, and keep their ends while it changes. A lattice is rows here, A = ρᵀ, so A ← A (1 + Bᵀ).

Departures:

- the paper's limit on B, element by element a hyperbolic tangent, depends on how the crystal is turned; here
  the norm of B is limited, B ← B β tanh(‖B‖/β) / ‖B‖, which also keeps det(1 + B) > 0;
- angles by sines and cosines that are finite on a straight line, with their slopes;
- messages are averaged over the edges of an atom, as in the published code (the paper has a sum), and the
  fields over the edges and triplets of a crystal;
- triplets are pairs of edges that leave one atom, as in the published code;
- a half of the symmetrised ket-bra field, which the paper omits;
- `positions=True` moves atoms too: x_i ← x_i + mean_γ w_γ (x_j + image - x_i), without the mean over the
  atoms of the crystal; its last weights start a hundred times smaller;
- the last weights of what acts on the lattice start ten times smaller, since a random deformation must first
  be unlearned: after 120 steps on 16 cells 14 % of the error are left instead of 45 %, each at the better of
  two rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import KNearest
from facetry.graph.triplets import Triplets, triplets
from facetry.models.base import LatticeModel, Relaxation, Symmetry
from facetry.nn.basis import LearnedGaussians, distinct
from facetry.nn.embedding import LearnedElements
from facetry.nn.lattice_fields import FIELDS, Fields, field_mean, sine_and_cosine
from facetry.nn.lattice_losses import Normalisation
from facetry.nn.segment import segment_mean
from facetry.nn.weights import perceptron_of_pairs

ELEMENTS = 99
GAUSSIANS, SPACING = 100, 0.1  # centres from 0 to 9.9 Å
HIDDEN = 256
SHELL = 1e-6  # Å; the lattices are noisy, so only true ties are one shell

FieldNames = Literal[
    "ket_bra_1",
    "ket_bra_2",
    "ket_bra_3",
    "ket_bra_4",
    "ket_bra_5",
    "gradient_1",
    "gradient_2",
    "gradient_3",
    "gradient_4",
    "gradient_5",
    "gradient_sym_1",
    "gradient_sym_2",
    "gradient_sym_3",
    "gradient_sym_4",
    "gradient_sym_5",
]


@dataclass(frozen=True)
class _Geometry:
    """Edges and triplets in one lattice."""

    graph: PeriodicGraph
    crystal: Int[Tensor, " edges"]
    frac: Float[Tensor, "edges 3"]  # edges in lattice vectors
    vectors: Float[Tensor, "edges 3"]
    lengths: Float[Tensor, " lengths"]
    row: Int[Tensor, " edges"]  # of `lengths`
    triplets: Triplets | None
    half: bool  # heads multiply in bfloat16

    @staticmethod
    def of(
        batch: Batch,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        pairs: Triplets | None,
        dtype: torch.dtype,
        half: bool = False,
    ) -> _Geometry:
        graph, crystal = batch.require_graph(), batch.edge_crystal
        frac = frac_coords.index_select(0, graph.neighbor) - frac_coords.index_select(0, graph.center)
        frac = frac + graph.image
        vectors = torch.einsum("ea,eab->eb", frac, lattice.index_select(0, crystal))
        lengths, row = distinct(vectors.norm(dim=1), dtype)
        return _Geometry(graph, crystal, frac, vectors, lengths, row, pairs, half)


class MessageLayer(nn.Module):
    """Mean of the messages over the edges of an atom, into a recurrent cell (Klipfel 2023, Eq. 7 and 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.basis = LearnedGaussians(GAUSSIANS, SPACING)
        self.inner = _linear(2 * channels + GAUSSIANS, channels)
        self.outer = _linear(channels, channels)
        self.cell = nn.GRUCell(channels, channels)

    def forward(
        self, h: Float[Tensor, "atoms channels"], geometry: _Geometry
    ) -> Float[Tensor, "atoms channels"]:
        """Projections before gathering; the outer matrix after the mean, which it commutes with."""
        graph, channels = geometry.graph, h.shape[1]
        own, other, length = self.inner.weight.split([channels, channels, GAUSSIANS], dim=1)
        hidden = linear(h, own).index_select(0, graph.center)
        hidden = hidden + linear(h, other).index_select(0, graph.neighbor)
        hidden = hidden + linear(self.basis(geometry.lengths), length).index_select(0, geometry.row)
        mean = segment_mean(nn.functional.silu(hidden), graph.center, len(h))
        return self.cell(self.outer(mean.to(h.dtype)), h)


class EdgeHead(nn.Module):
    """Numbers for an edge from h_i ∥ h_j ∥ RBF(r), through two hidden layers."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.basis = LearnedGaussians(GAUSSIANS, SPACING)
        self.inner = _linear(2 * channels + GAUSSIANS, HIDDEN)
        self.second = _linear(HIDDEN, HIDDEN)
        self.last = _linear(HIDDEN, outputs, bias=True)

    def forward(
        self, h: Float[Tensor, "atoms channels"], geometry: _Geometry
    ) -> Float[Tensor, "edges outputs"]:
        graph, channels = geometry.graph, h.shape[1]
        own, other, length = self.inner.weight.split([channels, channels, GAUSSIANS], dim=1)
        edge = linear(self.basis(geometry.lengths), length).index_select(0, geometry.row)
        edge = edge + linear(h, other).index_select(0, graph.neighbor)
        none = edge.new_zeros((len(edge), 0)), edge.new_zeros((0, HIDDEN))
        every = torch.arange(len(edge), device=edge.device)
        ends = graph.center, every
        return perceptron_of_pairs(linear(h, own), edge, *none, self.second, self.last, *ends, geometry.half)


class TripletHead(nn.Module):
    """Numbers for a triplet from h_i ∥ h_j ∥ h_k ∥ RBF(r_ij) ∥ RBF(r_ik) ∥ cos θ ∥ sin θ."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.basis = LearnedGaussians(GAUSSIANS, SPACING)
        self.inner = _linear(3 * channels + 2 * GAUSSIANS + 2, HIDDEN)
        self.second = _linear(HIDDEN, HIDDEN)
        self.last = _linear(HIDDEN, outputs, bias=True)

    def forward(
        self, h: Float[Tensor, "atoms channels"], geometry: _Geometry
    ) -> Float[Tensor, "triplets outputs"]:
        """All that belongs to one of the edges is projected for each edge, the centre with the first."""
        graph, pairs, channels = geometry.graph, geometry.triplets, h.shape[1]
        assert pairs is not None
        own, j, k, r_j, r_k, angle = self.inner.weight.split([channels] * 3 + [GAUSSIANS] * 2 + [2], dim=1)
        lengths = self.basis(geometry.lengths)
        first = linear(lengths, r_j).index_select(0, geometry.row)
        first = first + linear(h, own).index_select(0, graph.center)
        first = first + linear(h, j).index_select(0, graph.neighbor)
        second = linear(lengths, r_k).index_select(0, geometry.row)
        second = second + linear(h, k).index_select(0, graph.neighbor)
        directions = geometry.vectors / geometry.vectors.norm(dim=1, keepdim=True)
        ends = (directions.index_select(0, e) for e in (pairs.first, pairs.second))
        sine, cosine = sine_and_cosine(*ends)
        features = torch.stack([cosine, sine], 1).to(first.dtype)
        ends = pairs.first, pairs.second
        return perceptron_of_pairs(
            first, second, features, angle.T, self.second, self.last, *ends, geometry.half
        )


class Deformation(nn.Module):
    """A message layer, and what acts on the lattice (and the atoms) after it."""

    def __init__(self, channels: int, fields: Fields, positions: bool) -> None:
        super().__init__()
        self.messages = MessageLayer(channels)
        self.edges = EdgeHead(channels, 1) if fields.edge else None
        self.pairs = TripletHead(channels, len(fields.triplet)) if fields.triplet else None
        self.moves = EdgeHead(channels, 1) if positions else None
        with torch.no_grad():  # starts near the lattice and the positions that are given
            for head, share in ((self.edges, 0.1), (self.pairs, 0.1), (self.moves, 0.01)):
                if head is not None:
                    head.last.weight.mul_(share)


class EMPNN(LatticeModel):
    """Equivariant network that deforms a lattice step by step (Klipfel 2023).

    Defaults are the paper's main configuration, 3 117 848 parameters. `fields` names a row of the paper's
    Table 2: "ket_bra_1" to "ket_bra_5", "gradient_1" to "gradient_5" (∇1 to ∇5), "gradient_sym_1" to
    "gradient_sym_5". `repeated` uses the weights of one block for all. `weight_clamp` κ > 0 replaces each
    number w by κ tanh w; `limit` β > 0 keeps the norm of each B below β, 0 lets it grow;
    `exponential="exact"` takes the matrix exponential of B in place of 1 + B; `positions` moves atoms too.
    Triplets whose sine in the given lattice is not above `min_sin` are left out. Elements 1 to 99.

    Lattice and positions turn, mirror, permute, shift and change their basis with the input; a supercell
    deforms as its cell does.
    """

    name = "empnn"
    mixed_precision = True

    def __init__(
        self,
        *,
        fields: FieldNames = "gradient_5",
        layers: int = 6,
        blocks: int = 4,
        channels: int = 128,
        k: int = 8,
        repeated: bool = False,
        weight_clamp: float | int = 0.0,
        limit: float | int = 0.5,
        exponential: Literal["first_order", "exact"] = "first_order",
        positions: bool = False,
        min_sin: float | int = 0.0,
    ) -> None:
        super().__init__()
        if fields not in FIELDS:
            raise ValueError(f"empnn: expected fields of {', '.join(FIELDS)}, came {fields!r}")
        if exponential not in ("first_order", "exact"):
            raise ValueError(f"empnn: expected exponential of first_order or exact, came {exponential!r}")
        if layers < 0 or blocks < 1 or channels < 1:
            raise ValueError(
                f"empnn: expected layers of at least 0, blocks and channels of at least 1, came {layers},"
                f" {blocks} and {channels}"
            )
        if k < 1 or (FIELDS[fields].triplet and k < 2):
            raise ValueError(f"empnn: expected k of at least 2 for triplets, 1 for edges, came {k}")
        if weight_clamp < 0 or limit < 0 or not 0 <= min_sin < 1:
            raise ValueError(
                "empnn: expected weight_clamp and limit of at least 0 and min_sin from 0 to 1, came"
                f" {weight_clamp}, {limit} and {min_sin}"
            )
        self.graph = KNearest(k=k, gap=SHELL)
        self.fields = FIELDS[fields]
        self.weight_clamp, self.limit, self.min_sin = float(weight_clamp), float(limit), float(min_sin)
        self.exact = exponential == "exact"
        self.atoms = LearnedElements(channels, ELEMENTS + 1)
        self.layers = nn.ModuleList(MessageLayer(channels) for _ in range(layers))
        self.count = blocks
        kinds = 1 if repeated else blocks
        self.blocks = nn.ModuleList(Deformation(channels, self.fields, positions) for _ in range(kinds))

    def forward(self, batch: Batch) -> Relaxation:
        """Under autocast to bfloat16 only the products that cost most are rounded, and only in training."""
        device = batch.lattice.device.type
        half = self.training and torch.is_autocast_enabled(device)
        half = half and torch.get_autocast_dtype(device) == torch.bfloat16
        with torch.autocast(device, enabled=False):
            return self._relaxed(batch, half)

    def _relaxed(self, batch: Batch, half: bool) -> Relaxation:
        lattice, frac_coords = batch.lattice, batch.frac_coords
        pairs = self._triplets(batch) if self.fields.triplet else None
        geometry = _Geometry.of(batch, lattice, frac_coords, pairs, self.dtype, half)
        h = self.atoms(batch.atomic_numbers)
        for layer in self.layers:
            h = layer(h, geometry)
        lattices, positions = [lattice], [frac_coords]
        for number in range(self.count):
            block = self.blocks[number % len(self.blocks)]
            if number:
                geometry = _Geometry.of(batch, lattice, frac_coords, pairs, self.dtype, half)
            h = block.messages(h, geometry)
            lattice = self._deformed(block, h, geometry, lattice)
            if block.moves is not None:
                frac_coords = self._moved(block.moves, h, geometry, frac_coords, batch)
            lattices.append(lattice)
            positions.append(frac_coords)
        return Relaxation(tuple(lattices), tuple(positions))

    def _triplets(self, batch: Batch) -> Triplets:
        pairs = triplets(batch)
        if not self.min_sin:
            return pairs
        with torch.no_grad():
            v = nn.functional.normalize(batch.edge_vectors(), dim=1)
            sine, _ = sine_and_cosine(v.index_select(0, pairs.first), v.index_select(0, pairs.second))
            return pairs.select(sine > self.min_sin)

    def _clamped(self, weights: Tensor) -> Tensor:
        return self.weight_clamp * torch.tanh(weights) if self.weight_clamp else weights

    def _deformed(self, block: Deformation, h: Tensor, geometry: _Geometry, lattice: Tensor) -> Tensor:
        edge_weights = None if block.edges is None else self._clamped(block.edges(h, geometry))
        pair_weights = None if block.pairs is None else self._clamped(block.pairs(h, geometry))
        b = field_mean(
            self.fields,
            geometry.vectors,
            geometry.graph.num_edges,
            geometry.triplets,
            edge_weights,
            pair_weights,
        )
        if self.limit:
            b = limited(b, self.limit)
        if self.exact:
            return lattice @ exponential(b).transpose(1, 2)
        return lattice + lattice @ b.transpose(1, 2)

    def _moved(
        self, head: EdgeHead, h: Tensor, geometry: _Geometry, frac_coords: Tensor, batch: Batch
    ) -> Tensor:
        weights = self._clamped(head(h, geometry)).to(geometry.frac.dtype)
        move = segment_mean(weights * geometry.frac, geometry.graph.center, len(frac_coords))
        crystal = batch.crystal_index
        return frac_coords + move - segment_mean(move, crystal, len(batch)).index_select(0, crystal)


class FeedForward(LatticeModel):
    """Cell parameters from the mean of the atoms' vectors: the baseline of Klipfel 2023.

    The same message layers on the given lattice, then a perceptron of four hidden layers that ends in six
    standardised cell parameters; `set_targets` takes those of the training crystals. The lattice that is
    returned has them, turned to lie as close as possible on the one given; where six numbers close no cell,
    it is the nearest in γ that does.

    Turns, mirrors, permutes and shifts with the input, but reads another basis of the same lattice as another
    crystal.
    """

    name = "lattice_ff"

    def __init__(self, *, layers: int = 6, channels: int = 128, k: int = 8) -> None:
        super().__init__()
        if layers < 0 or channels < 1 or k < 1:
            raise ValueError(
                f"lattice_ff: expected layers of at least 0, channels and k of at least 1, came {layers},"
                f" {channels} and {k}"
            )
        self.graph = KNearest(k=k, gap=SHELL)
        self.atoms = LearnedElements(channels, ELEMENTS + 1)
        self.layers = nn.ModuleList(MessageLayer(channels) for _ in range(layers))
        self.hidden = nn.ModuleList(nn.Linear(channels, channels) for _ in range(4))
        self.out = nn.Linear(channels, 6)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([5.0, 5.0, 5.0, 90.0, 90.0, 90.0]))
        self.register_buffer("std", torch.tensor([1.0, 1.0, 1.0, 10.0, 10.0, 10.0]))

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry(lattice_basis=False, supercell=False)

    def set_targets(self, parameters: Float[Tensor, "crystals 6"]) -> None:
        """Cell parameters (Å, degrees) of the crystals to learn from: what outputs of zero and one mean."""
        normalisation = Normalisation.of(parameters)
        self.mean.copy_(normalisation.mean)
        self.std.copy_(normalisation.std)

    def forward(self, batch: Batch) -> Relaxation:
        geometry = _Geometry.of(batch, batch.lattice, batch.frac_coords, None, self.dtype)
        h = self.atoms(batch.atomic_numbers)
        for layer in self.layers:
            h = layer(h, geometry)
        x = segment_mean(h, batch.crystal_index, len(batch)).to(self.dtype)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        exact = batch.lattice.dtype
        parameters = self.out(x).to(exact) * self.std.to(exact) + self.mean.to(exact)
        lattice = _laid_on(_closed(parameters), batch.lattice)
        return Relaxation((batch.lattice, lattice), (batch.frac_coords,) * 2, parameters)


def limited(b: Float[Tensor, "crystals 3 3"], limit: float) -> Float[Tensor, "crystals 3 3"]:
    """Matrices with their Frobenius norm n brought to β tanh(n/β): no other change, so they turn alike."""
    n = (b.square().sum((1, 2), keepdim=True) / limit**2 + 1e-24).sqrt()  # the root has no slope at zero
    return b * (torch.tanh(n) / n)


def exponential(b: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """exp(B) by its series on B / 2ˢ, then s squarings; PyTorch's own is good to nine digits only."""
    largest = float(b.detach().square().sum((1, 2)).max().sqrt()) if len(b) else 0.0
    halvings = max(0, math.ceil(math.log2(2 * largest))) if 0 < largest < math.inf else 0
    small = b / 2**halvings  # norms of ½ at most: 0.5¹⁵ / 15! is below the last digit
    unit = torch.eye(3, dtype=b.dtype, device=b.device)
    total = unit.expand_as(b)
    for n in range(14, 0, -1):
        total = unit + small @ total / n
    for _ in range(halvings):
        total = total @ total
    return total


def _linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    return layer


def _closed(parameters: Float[Tensor, "crystals 6"]) -> Float[Tensor, "crystals 3 3"]:
    """A lattice for any six numbers: lengths of 0.1 Å at least, angles from 10 to 170 degrees, γ such that
    the three close."""
    a, b, c = parameters[:, :3].clamp(min=0.1).unbind(1)
    cosine = torch.deg2rad(parameters[:, 3:].clamp(10.0, 170.0)).cos()
    alpha, beta, gamma = cosine.unbind(1)
    sines = ((1 - alpha.square()) * (1 - beta.square())).sqrt()
    turn = ((gamma - alpha * beta) / sines).clamp(-0.999, 0.999)  # cosine of the dihedral angle at c
    zero = torch.zeros_like(a)
    sin_alpha, sin_beta = (1 - alpha.square()).sqrt(), (1 - beta.square()).sqrt()
    rows = (
        (a * sin_beta, zero, a * beta),
        (b * sin_alpha * turn, b * sin_alpha * (1 - turn.square()).sqrt(), b * alpha),
        (zero, zero, c),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _laid_on(
    lattice: Float[Tensor, "crystals 3 3"], given: Float[Tensor, "crystals 3 3"]
) -> Float[Tensor, "crystals 3 3"]:
    """Turned (and mirrored) to be as near as possible to the given lattice; the turn carries no gradient."""
    with torch.no_grad():
        u, _, v = torch.linalg.svd(lattice.transpose(1, 2) @ given)
        turn = u @ v
    return lattice @ turn
