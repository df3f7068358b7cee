"""Attention over all periodic images, with positions in the values (Taniai 2024; Ito 2025).

    y_i = Σ_e p_e (v_j + ψ_e),    p_e = softmax over all images e = (j, n) of  q_i·k_j/√d - r_e²/(2σ_i²)

plus log o_j where site j is filled in a share o_j of the cells only: disordered crystals.

ψ is linear in its bases and the sum is linear in ψ, so bases are summed first and projected once an atom:

    Σ_e p_e ψ_e = W_dist (Σ_e p_e b(r_e)) + Σ_m W_m (Σ_e p_e b(r̂_e · e_m))

q_i·k_j and v_j depend on the pair of atoms only, not on the image: they are taken once a pair. Entries of
the neighbour list stand in padded rows, one an atom, atoms with similar counts together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.geometry.lattice import plane_spacings
from facetry.graph.batch import Batch, offsets
from facetry.nn.angular import AngularBasis, angular_sums
from facetry.nn.dynamic_frames import Axes, Frames, Part
from facetry.nn.reciprocal import Waves, fourier_attention
from facetry.nn.segment import segment_sum

BASE_WIDTH = 1.4  # Å; r0, the tail length of an average query
LEAST, SLOPE = 0.5, 0.1  # b and β of the tail length
LARGEST_WIDTH = BASE_WIDTH / math.sqrt(LEAST)  # Å; no tail is longer
FOURIER_WIDTH = 2.2  # Å; r̃0, the tail length of an average query in a Fourier head
NARROWEST_FOURIER = FOURIER_WIDTH * math.sqrt(LEAST)  # Å; no tail is shorter there
BOX_MARGIN = 0.01  # Å; added to the reach of the published box
DISTANCES, FARTHEST = 64, 10 * BASE_WIDTH  # number of distance Gaussians, centre of the last in Å
_ROW_ENTRIES = 1 << 13  # entries of the neighbour list that are worked on at once on the CPU
_ROW_ENTRIES_GPU = 1 << 18


@dataclass(frozen=True)
class Surroundings:
    """The neighbour list of a batch in padded rows, and its distinct pairs of atoms."""

    parts: list[Part]
    row: Int[Tensor, " atoms"]  # where the rows of the parts, one after the other, hold each atom
    pair_center: Int[Tensor, " pairs"]
    pair_neighbor: Int[Tensor, " pairs"]
    presence: Float[Tensor, " atoms"] | None = None  # logarithm of occupancies; None: all sites are full
    waves: Waves | None = None  # for Fourier heads


def distance_basis(r: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries basis"]:
    """Gaussians of width Δ at Δ, 2Δ, ... 14 Å with Δ = 14/64 Å: none at zero (Taniai 2024, Eq. 13)."""
    step = FARTHEST / DISTANCES
    centers = torch.arange(1, DISTANCES + 1, dtype=r.dtype, device=r.device) * step
    return torch.exp((r[..., None] - centers).square_() * (-0.5 / step**2))


def _box(batch: Batch, reach: float) -> Float[Tensor, " edges"]:
    """The tail length in Å above which the published box of cells holds each edge.

    The box of σ reaches ⌈(reach σ + 0.01 Å)/height⌉ cells in each direction, at least 2.
    """
    graph = batch.require_graph()
    height = plane_spacings(batch.lattice.detach())[batch.edge_crystal]
    cells = graph.image.abs()
    least = ((cells - 1) * height - BOX_MARGIN) / reach
    return least.masked_fill(cells <= 2, 0.0).amax(1)


def surroundings(
    batch: Batch,
    dtype: torch.dtype,
    frames: Frames | None = None,
    generator: torch.Generator | None = None,
    box: float | None = None,
) -> Surroundings:
    """Padded rows of a batch's graph; differentiable in coordinates and lattice.

    The rows hold float64 directions for choosing frames and bases in the precision of the network. `frames`
    that belong to crystals are chosen here, once for all layers; the generator draws one of several tied.
    `box` (in tail lengths) lets every atom and head see the published box of cells for its tail.
    """
    graph = batch.require_graph()
    atoms = len(batch.frac_coords)
    vectors = batch.edge_vectors()
    own = (graph.center == graph.neighbor) & (graph.image == 0).all(1)
    squared = vectors.square().sum(1).masked_fill(own, 0.0)
    # the root has no slope at zero; there the distance is zero and the direction too
    distance = squared.masked_fill(own, 1.0).sqrt()
    direction = vectors / distance[:, None]
    distance = distance.masked_fill(own, 0.0)
    basis = distance_basis(distance.to(dtype))
    least = None if box is None else _box(batch, box).to(dtype)
    key, pair = torch.unique(graph.center * atoms + graph.neighbor, return_inverse=True)
    counts = torch.bincount(graph.center, minlength=atoms)
    start = offsets(counts)[:-1]
    order = torch.argsort(counts, stable=True)
    entries = _ROW_ENTRIES if batch.device.type == "cpu" else _ROW_ENTRIES_GPU
    piece = torch.div(torch.cumsum(counts[order], 0), entries, rounding_mode="floor")
    sizes = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    crystal = batch.crystal_index
    of_crystals = None if frames is None else frames.of_crystals(batch, generator)
    parts = []
    for atom in order.split(sizes):
        slot = torch.arange(int(counts[atom].max()), device=batch.device)
        present = slot < counts[atom][:, None]
        entry = torch.where(present, start[atom][:, None] + slot, start[atom][:, None])
        parts.append(
            Part(
                atom=atom,
                entry=entry,
                pair=pair[entry],
                present=present,
                candidate=present & ~own[entry],
                squared=squared[entry],
                direction=direction[entry],
                basis=basis[entry],
                crystal=crystal[atom],
                of_crystals=of_crystals,
                least=None if least is None else least[entry],
            )
        )
    row = torch.empty_like(order)
    row[order] = torch.arange(atoms, device=batch.device)
    center = torch.div(key, max(atoms, 1), rounding_mode="floor")
    presence = None if batch.composition is None else batch.composition.occupancy().log().to(dtype)
    return Surroundings(parts, row, center, key - center * atoms, presence)


def _factor(scaled: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """ρ of a standardised query score, one at zero and never below a half (Taniai 2024, Eq. 9)."""
    return (1 - LEAST) * nn.functional.elu(scaled * (SLOPE / (1 - LEAST))) + 1


def tail(scaled: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """1/σ² in 1/Å² of a standardised query score; σ never exceeds 1.98 Å (Taniai 2024, Eq. 9)."""
    return _factor(scaled) / BASE_WIDTH**2


def fourier_variance(scaled: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """σ² in Å² of a standardised query score in a Fourier head, where ρ multiplies; σ is 1.56 Å at least."""
    return _factor(scaled) * FOURIER_WIDTH**2


class LatticeAttention(nn.Module):
    """Multi-head attention of every atom to all images of all atoms within the graph's sphere.

    `angles` and `frames` (both or none) add the angular part. The scores that set the tail length are
    standardised by `mean` and `deviation`, which are measured once and stay; deviation 0 says not yet.
    The last `fourier_heads` heads sum over images in reciprocal space; their values have no positions, nor
    have the others' without `positions`.
    A `watcher` is shown the weights p of every part, (rows, heads, slots), and the axes chosen by them.
    """

    watcher: Callable[[Part, Tensor, Axes | None], None] | None = None

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        distance_scale: float = 1.0,
        angles: AngularBasis | None = None,
        frames: Frames | None = None,
        positions: bool = True,
        fourier_heads: int = 0,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention: expected channels divisible by heads, came {channels} and {heads}")
        self.heads, width = heads, channels // heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.score = nn.Parameter(torch.empty(heads, width))
        self.real_heads = heads - fourier_heads
        self.distance = None
        if positions and self.real_heads:
            self.distance = nn.Parameter(torch.empty(self.real_heads, width, DISTANCES))
        self.distance_scale = distance_scale
        self.angles, self.frames = angles, frames
        if angles is not None:
            self.angular = nn.Parameter(torch.empty(3, heads, width, angles.size))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.zeros(()))

    def measure(self, scores: Float[Tensor, "atoms heads"]) -> None:
        """Takes the statistics of the scores from these. Raises ValueError where they are all the same."""
        deviation = scores.std() if scores.numel() > 1 else scores.new_zeros(())
        if not deviation > 0:
            raise ValueError(
                f"tail lengths: expected scores that differ, came {scores.numel()} without a finite"
                " deviation; calibrate with more crystals"
            )
        self.mean.copy_(scores.mean())
        self.deviation.copy_(deviation)

    def forward(
        self,
        x: Float[Tensor, "atoms channels"],
        around: Surroundings,
        generator: torch.Generator | None = None,
        measure: bool = False,
    ) -> Float[Tensor, "atoms channels"]:
        """What every atom gathers. A generator draws one of several tied frames, None averages them."""
        # the parameters' precision, also where autocast makes the linear layers coarser
        q, k, v = (
            layer(x).to(self.score.dtype).unflatten(1, (self.heads, -1))
            for layer in (self.query, self.key, self.value)
        )
        with torch.autocast(x.device.type, enabled=False):
            scores = (q * self.score).sum(2)
            if measure:
                self.measure(scores)
            scores = (scores - self.mean) / self.deviation
            real, gathered = self.real_heads, []
            if real:
                near = (t[:, :real] for t in (q, k, v, scores))
                gathered.append(self._gather(*near, around, generator))
            if around.waves is not None and real < self.heads:
                q, k, v, scores = (t[:, real:] for t in (q, k, v, scores))
                variance = fourier_variance(scores)
                gathered.append(fourier_attention(q, k, v, variance, around.waves, around.presence))
            y = torch.cat(gathered, 1)
        return self.out(y.flatten(1))

    def _gather(
        self,
        q: Float[Tensor, "atoms heads width"],
        k: Float[Tensor, "atoms heads width"],
        v: Float[Tensor, "atoms heads width"],
        scores: Float[Tensor, "atoms heads"],
        around: Surroundings,
        generator: torch.Generator | None,
    ) -> Float[Tensor, "atoms heads width"]:
        steepness = tail(scores) / 2
        i, j = around.pair_center, around.pair_neighbor
        dots = (q.index_select(0, i) * k.index_select(0, j)).sum(2) / math.sqrt(q.shape[2])
        if around.presence is not None:
            dots = dots + around.presence.index_select(0, j)[:, None]
        share = torch.zeros_like(dots)
        positions = []
        for part in around.parts:
            logits = _rows(dots, part.pair)
            decay = steepness.index_select(0, part.atom)[:, :, None] * part.squared.to(q.dtype)[:, None, :]
            logits = (logits - decay).masked_fill(~part.present[:, None, :], -torch.inf)
            if part.least is not None:
                beyond = 2 * steepness[part.atom][:, :, None] * part.least.square()[:, None, :] >= 1
                logits = logits.masked_fill(beyond, -torch.inf)
            p = torch.softmax(logits, 2)
            share = share.index_add(0, part.pair.flatten(), p.transpose(1, 2).flatten(0, 1))
            axes = psi = None
            if self.distance is not None:
                sums = torch.bmm(p, part.basis)
                psi = self.distance_scale * torch.einsum("nhk,hwk->nhw", sums, self.distance)
            if self.frames is not None and self.angles is not None:
                axes = self.frames(part, logits, p, generator)
                sums = angular_sums(p, part, axes, self.angles)
                psi = psi + self.angles.scale * torch.einsum("nhmk,mhwk->nhw", sums, self.angular)
            if self.watcher is not None:
                self.watcher(part, p, axes)
            if psi is not None:
                positions.append(psi)
        values = segment_sum(share[:, :, None] * v.index_select(0, j), i, len(q))
        return values + torch.cat(positions).index_select(0, around.row) if positions else values


def _rows(dots: Float[Tensor, "pairs heads"], pair: Int[Tensor, "rows slots"]) -> Tensor:
    """(rows, heads, slots): every entry of the neighbour list takes the number of its pair."""
    return dots.index_select(0, pair.flatten()).unflatten(0, pair.shape).transpose(1, 2)


class LatticeBlock(nn.Module):
    """x + attention(x), then x + W₂ ReLU(W₁ x): no normalisation anywhere."""

    def __init__(self, attention: LatticeAttention, channels: int) -> None:
        super().__init__()
        self.attention = attention
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(
        self,
        x: Float[Tensor, "atoms channels"],
        around: Surroundings,
        generator: torch.Generator | None = None,
        measure: bool = False,
    ) -> Float[Tensor, "atoms channels"]:
        x = x + self.attention(x, around, generator, measure)
        return x + self.narrow(torch.relu(self.wide(x)))


@torch.no_grad()
def t_fixup(blocks: Sequence[LatticeBlock]) -> None:
    """Initial weights that train without normalisation (Huang 2020), scaled by the number of blocks."""
    shrink = 0.67 * len(blocks) ** -0.25
    for block in blocks:
        attention = block.attention
        for layer in (
            attention.query,
            attention.key,
            attention.value,
            attention.out,
            block.wide,
            block.narrow,
        ):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (attention.value, attention.out, block.wide, block.narrow):
            layer.weight.mul_(shrink)
        nn.init.normal_(attention.score, std=attention.score.shape[1] ** -0.5)
        positions = [] if attention.distance is None else [attention.distance]
        if attention.angles is not None:
            positions += list(attention.angular)
        for weight in positions:  # fans of the matrix of all heads
            heads, width, size = weight.shape
            bound = size**-0.5 * math.sqrt(6 / (heads * width + size))
            weight.uniform_(-bound, bound)
