"""Gated sums over all images of all pairs of atoms, and their slopes, without a network's tape.

    M_i = Σ_j ω(d) σ(z1) ⊙ z2,    z1 ∥ z2 = (A h_i + B h_j) ⊙ D(d),    h_i ← softplus(h_i + tanh(M_i))

What depends on the pair leaves the sum over its images, and D = ψ(d) U is a product of a few smooth functions
with a matrix:

    M_i = Σ_j s2_ij ⊙ Σ_T σ(s1_ij ⊙ ψ U1) ⊙ (ω ψ U2),    s_ij = A h_i + B h_j

so an edge costs F sigmoids, and both directions of a pair share ψ U1 and ω ψ U2. Rows are images, columns
pairs: s_ij then repeats along rows and the sum over T is a sum of rows. Pairs are sorted by how many images
they have and worked on in blocks that fit the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BLOCK = 40_000  # numbers of one direction's edges of a block on the CPU
_BLOCK_GPU = 1 << 27
_WASTE = 0.9  # a block ends where a pair has less than this share of its first pair's images


@dataclass(frozen=True)
class ImageEdges:
    """Edges in blocks: block after block, in each images x pairs, padded with edges of weight zero.

    `first`, `second` are atoms of the pairs in their order; `blocks` lists first pair, last pair and images;
    `pair` and `slot` say for every edge its pair and where it came from, images x pairs of the table.
    """

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    order: Int[Tensor, " pairs"]
    blocks: list[tuple[int, int, int]]
    pair: Int[Tensor, " edges"]
    vector: Float[Tensor, "3 edges"]
    distance: Float[Tensor, " edges"]
    real: Bool[Tensor, " edges"]


def image_edges(
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "atoms 3"],
    cutoff: Float[Tensor, " crystals"],
    first: Int[Tensor, " pairs"],
    second: Int[Tensor, " pairs"],
    crystal: Int[Tensor, " pairs"],
    image: Float[Tensor, "images pairs 3"],
    count: Int[Tensor, " pairs"],
    channels: int,
) -> ImageEdges:
    """What of a table of images (`facetry.graph.images`) lies within the cutoff now."""
    device = lattice.device
    cell = lattice[crystal]
    delta = torch.einsum("pa,pab->pb", frac_coords[second] - frac_coords[first], cell)
    rows = image.unbind(2)
    vectors = []
    for axis in range(3):
        v = torch.addcmul(delta[:, axis], rows[0], cell[:, 0, axis])
        vectors.append(v.addcmul_(rows[1], cell[:, 1, axis]).addcmul_(rows[2], cell[:, 2, axis]))
    vector = torch.stack(vectors)
    squared = vector.square().sum(0)
    reach = cutoff[crystal]
    inside = (squared < reach.square()) & (torch.arange(len(image), device=device)[:, None] < count)
    number = inside.sum(0)
    sorted_number, order = torch.sort(number, descending=True, stable=True)
    blocks, base, width = _blocks(sorted_number, channels)
    in_order = torch.empty_like(order)
    in_order[order] = torch.arange(len(order), device=device)
    base, width = base[in_order], width[in_order]
    target = (torch.cumsum(inside, 0) - 1).mul_(width).add_(base).reshape(-1)
    source = torch.nonzero(inside.reshape(-1))[:, 0]
    target = target.index_select(0, source)
    pair = torch.cat(
        [torch.arange(a, b, device=device).repeat(images) for a, b, images in blocks] or [order.new_zeros(0)]
    )
    packed = vector.new_zeros((3, len(pair)))
    packed[:, target] = vector.reshape(3, -1).index_select(1, source)
    real = torch.zeros(len(pair), dtype=torch.bool, device=device)
    real[target] = True
    distance = reach.index_select(0, order).index_select(0, pair)
    distance[target] = squared.reshape(-1).index_select(0, source).sqrt_()
    return ImageEdges(first[order], second[order], order, blocks, pair, packed, distance, real)


def _blocks(
    number: Int[Tensor, " pairs"], channels: int
) -> tuple[list[tuple[int, int, int]], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Cuts pairs, sorted by falling number of images, into blocks; also where each pair's first edge lies and
    how far apart its edges are."""
    numbers = number.cpu()
    limit = (_BLOCK if number.device.type == "cpu" else _BLOCK_GPU) // channels
    falling = -numbers
    blocks, start, edges, total = [], 0, 0, len(numbers)
    base, width = torch.empty_like(numbers), torch.empty_like(numbers)
    while start < total:
        images = int(numbers[start])
        if images == 0:  # pairs without images: in no block
            base[start:], width[start:] = 0, 0
            break
        least = int(images * _WASTE)
        end = int(torch.searchsorted(falling, -least, right=True)) if least else total
        end = min(end, start + max(8, limit // images))
        base[start:end] = torch.arange(edges, edges + end - start)
        width[start:end] = end - start
        blocks.append((start, end, images))
        edges += images * (end - start)
        start = end
    return blocks, base.to(number.device), width.to(number.device)


@dataclass(frozen=True)
class FrozenLayer:
    """Weights of one layer: `nodes` takes h to a1 ∥ b1 ∥ a2 ∥ b2 with s_ij = a_i + b_j, `inner` and `outer`
    are U1 and U2."""

    nodes: Float[Tensor, "channels four_channels"]
    bias: Float[Tensor, " four_channels"]
    inner: Float[Tensor, "rank channels"]
    outer: Float[Tensor, "rank channels"]


@dataclass
class _Kept:
    """What the way back needs of one layer."""

    s1: Tensor
    s2: Tensor
    total: Tensor
    x: Tensor
    t: Tensor


class _Block:
    """Views of one block: its rows of ψ and ω ψ and of their slopes, its columns of pairs, and memory that
    all blocks share, images x directions x pairs x channels."""

    def __init__(
        self, tables: tuple[Tensor, ...], memory: list[Tensor], first: int, block: tuple[int, int, int]
    ) -> None:
        start, end, images = block
        edges, channels = images * (end - start), memory[0].shape[1]
        self.last = first + edges
        self.psi, self.chi, self.by_psi, self.by_chi = (t[first : self.last] for t in tables)
        self.columns = slice(start, end)
        both = (images, 2, end - start, channels)
        one = (images, 1, end - start, channels)
        self.inner, self.outer, self.part = (m[:edges] for m in memory[:3])
        self.inner_rows, self.outer_rows = self.inner.view(one), self.outer.view(one)
        self.part_rows = self.part.view(images, end - start, channels)
        self.gate, self.slope = (m[: 2 * edges].view(both) for m in memory[3:])
        self.outer_both = self.outer_rows.expand(both)
        self.gates, self.slopes = self.gate.unbind(1), self.slope.unbind(1)


class GatedSums:
    """The layers at one configuration: `forward` to the vectors of atoms, `backward` to slopes in ψ and
    ω ψ."""

    def __init__(
        self,
        layers: list[FrozenLayer],
        edges: ImageEdges,
        psi: Float[Tensor, "edges rank"],
        chi: Float[Tensor, "edges rank"],
    ) -> None:
        self.layers, self.pairs = layers, len(edges.first)
        self.center = torch.cat([edges.first, edges.second])
        self.neighbor = torch.cat([edges.second, edges.first])
        self.kept: list[_Kept] = []
        self.by_psi, self.by_chi = torch.zeros_like(chi), torch.zeros_like(chi)
        largest = max((images * (end - start) for start, end, images in edges.blocks), default=0)
        channels = layers[0].inner.shape[1]
        memory = [psi.new_empty((size * largest, channels)) for size in (1, 1, 1, 2, 2)]
        self.blocks: list[_Block] = []
        first = 0
        for block in edges.blocks:
            self.blocks.append(_Block((psi, chi, self.by_psi, self.by_chi), memory, first, block))
            first = self.blocks[-1].last

    def forward(self, h: Float[Tensor, "atoms channels"]) -> Float[Tensor, "atoms channels"]:
        atoms, f = h.shape
        for layer in self.layers:
            a1, b1, a2, b2 = torch.addmm(layer.bias, h, layer.nodes).split(f, 1)
            s1 = a1.index_select(0, self.center).add_(b1.index_select(0, self.neighbor)).view(2, -1, f)
            s2 = a2.index_select(0, self.center).add_(b2.index_select(0, self.neighbor)).view(2, -1, f)
            total = torch.zeros_like(s1)
            for b in self.blocks:
                self._gates(layer, s1, b)
                torch.mul(b.gate, b.outer_rows, out=b.slope)
                torch.sum(b.slope, 0, out=total[:, b.columns])
            m = h.new_zeros((atoms, f)).index_add_(0, self.center, (s2 * total).view(-1, f))
            t = torch.tanh(m)
            x = h + t
            self.kept.append(_Kept(s1, s2, total, x, t))
            h = torch.nn.functional.softplus(x)
        return h

    def backward(
        self, by_h: Float[Tensor, "atoms channels"]
    ) -> tuple[Float[Tensor, "edges rank"], Float[Tensor, "edges rank"]]:
        """Slopes in ψ and ω ψ of every edge from those in the vectors of atoms."""
        atoms, f = by_h.shape
        sigmoid_slope = torch.ops.aten.sigmoid_backward.grad_input
        for number in reversed(range(len(self.layers))):
            layer, kept = self.layers[number], self.kept[number]
            inner_columns, outer_columns = layer.inner.T, layer.outer.T
            by_x = by_h * torch.sigmoid(kept.x)
            by_m = by_x * (1 - kept.t.square())
            by_message = by_m.index_select(0, self.center).view_as(kept.s1)
            q = by_message * kept.s2
            qs = q * kept.s1
            by_s1 = torch.zeros_like(q) if number else None
            for b in self.blocks:
                self._gates(layer, kept.s1, b)
                sigmoid_slope(b.outer_both, b.gate, grad_input=b.slope)
                part, part_s = q[:, b.columns], qs[:, b.columns]
                torch.mul(b.gates[0], part[0], out=b.part_rows)
                b.part_rows.addcmul_(b.gates[1], part[1])
                b.by_chi.addmm_(b.part, outer_columns)
                torch.mul(b.slopes[0], part_s[0], out=b.part_rows)
                b.part_rows.addcmul_(b.slopes[1], part_s[1])
                b.by_psi.addmm_(b.part, inner_columns)
                if by_s1 is not None:
                    b.slope.mul_(b.inner_rows)
                    torch.sum(b.slope, 0, out=by_s1[:, b.columns])
            by_h = by_x
            if by_s1 is not None:
                by_pair = torch.stack([by_s1 * q, by_message * kept.total], 2).view(-1, 2 * f)
                by_a = by_h.new_zeros((atoms, 2 * f)).index_add_(0, self.center, by_pair)
                by_b = by_h.new_zeros((atoms, 2 * f)).index_add_(0, self.neighbor, by_pair)
                by_nodes = torch.stack([by_a.view(-1, 2, f), by_b.view(-1, 2, f)], 2).view(atoms, 4 * f)
                by_h = torch.addmm(by_h, by_nodes, layer.nodes.T)
        return self.by_psi, self.by_chi

    def _gates(self, layer: FrozenLayer, s1: Tensor, b: _Block) -> None:
        """σ(s1 ψ U1) for both directions, ψ U1 and ω ψ U2."""
        torch.mm(b.psi, layer.inner, out=b.inner)
        torch.mm(b.chi, layer.outer, out=b.outer)
        torch.mul(b.inner_rows, s1[:, b.columns], out=b.gate)
        b.gate.sigmoid_()
