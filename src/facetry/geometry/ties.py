"""Which of a crystal's tied frames see the same graph.

Frames that a symmetry operation of the crystal carries into one another give identical graphs, that is the
same distances and the same cosines to e1, e2, e3, so one of them stands for all: 24 frames of a cubic
perovskite become one, 144 of rock salt become 6.

How two graphs are compared. Each edge gets the positive number φ = exp(w·r/d) b(Z_i, Z_j, d), where w is a
fixed irrational combination of the unit vectors of the frame: a number that depends on Z_i, Z_j, d and the
three cosines and on nothing else. Sums of it do not depend on how atoms, edges or cells were listed. Three
are taken: over all edges, over the squares of the sums at every atom, and over the products of these at both
ends of an edge. The last two are needed. As a bare list of edges the graph of a crystal of one element looks
centrosymmetric, every bond being there from both ends; in a polar one a mirror plane then makes frames look
alike that are not.

Two frames are equal when the lengths and angles of their vectors and all three sums agree. The tolerance of
the sums is what a random error of ``quantum`` in every distance and cosine would cause. This is why sums of
smooth numbers are used and not a hash of rounded ones: coordinates written with seven digits would fall on
both sides of some rounding boundary nearly always. A class is represented by its member with the smallest
sum. Where its members are equal to the last digits the choice does not matter; where they only agree within
the tolerance it depends on the crystal alone, not on its cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.frameset import FrameSet
from facetry.geometry.ragged import ranges
from facetry.geometry.reduction import working_copy

# Weights of the cosines and species: irrational, so that no symmetric arrangement adds up by chance.
_COSINE = (0.7320508075688772, 1.1892071150027210, 1.5874010519681994)
_CENTER, _NEIGHBOR = 0.6180339887498949, 0.7548776662466927
_PAIRS_AT_ONCE = 1 << 17  # frames times edges worked on together: 1 MB an array


@dataclass(frozen=True)
class Edges:
    """Edges of the graphs of all crystals, sorted by crystal; `center` and `neighbor` number the atoms.

    `species` are any integers that tell atoms apart; `vector` (Å) points from centre to neighbour.
    """

    crystal: Int[Tensor, " edges"]
    center: Int[Tensor, " edges"]
    neighbor: Int[Tensor, " edges"]
    center_species: Int[Tensor, " edges"]
    neighbor_species: Int[Tensor, " edges"]
    vector: Float[Tensor, "edges 3"]


def tie_classes(
    frames: FrameSet,
    edges: Edges,
    lattice: Float[Tensor, "crystals 3 3"],
    quantum: float = 1e-5,
    most_edges: int | None = None,
) -> FrameSet:
    """One frame for each class of frames that see the same graph, with the summed weight of its class.

    `quantum` (Å, or a cosine): graphs that differ by less, root mean square, count as equal. `most_edges`
    bounds classes times edges of a crystal: beyond it only the classes with the smallest signatures stay, a
    choice that depends on the crystal alone.
    """
    rep, key = _representatives(frames, edges, lattice, quantum)
    weight = torch.zeros_like(frames.weight).index_add_(0, rep, frames.weight)
    keep = rep == torch.arange(len(rep), device=rep.device)
    classes = _subset(frames, keep, weight)
    if most_edges is None:
        return classes
    num_edges = torch.bincount(edges.crystal, minlength=len(frames.num_frames))
    allowed = (most_edges // num_edges.clamp_min(1)).clamp_min(1)
    if not bool((classes.num_frames > allowed).any()):
        return classes
    # rank of every class within its crystal, by signature
    order = torch.argsort(key[keep], stable=True)
    order = order[torch.argsort(classes.crystal[order], stable=True)]
    first = classes.num_frames.cumsum(0) - classes.num_frames
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[classes.crystal[order]]
    few = _subset(classes, rank < allowed[classes.crystal], classes.weight)
    total = torch.zeros(len(allowed), dtype=few.weight.dtype, device=rep.device)
    total.index_add_(0, few.crystal, few.weight)
    return FrameSet(few.crystal, few.integer, few.weight / total[few.crystal], few.num_frames)


def canonical_frames(
    frames: FrameSet, edges: Edges, lattice: Float[Tensor, "crystals 3 3"], quantum: float = 1e-5
) -> FrameSet:
    """The one frame of each crystal whose graph has the smallest signature; arguments as in ``tie_classes``.

    Depends on the crystal alone, like the average over all classes, but jumps where two signatures change
    places.
    """
    rep, key = _representatives(frames, edges, lattice, quantum)
    least = torch.full((len(frames.num_frames),), torch.inf, dtype=key.dtype, device=key.device)
    least.scatter_reduce_(0, frames.crystal, key, "amin")
    candidates = torch.where(key == least[frames.crystal], rep, len(rep))
    first = torch.full_like(frames.num_frames, len(rep)).scatter_reduce_(
        0, frames.crystal, candidates, "amin"
    )
    keep = first[frames.crystal] == torch.arange(len(rep), device=rep.device)
    return _subset(frames, keep, torch.ones_like(frames.weight))


def frame_vector_weights(
    frames: FrameSet,
) -> tuple[Int[Tensor, " vectors"], Int[Tensor, "vectors 3"], Float[Tensor, " vectors"]]:
    """Every lattice vector that occurs in a frame: crystal, coefficients, share of frames that contain it.

    ±v counts once, with its first non-zero coefficient positive; shares of one crystal add up to 3.
    """
    vector = frames.integer.reshape(-1, 3).to(torch.int64)
    sign = vector.sign()
    leading = torch.where(sign[:, 0] != 0, sign[:, 0], torch.where(sign[:, 1] != 0, sign[:, 1], sign[:, 2]))
    vector = vector * leading[:, None]
    crystal = frames.crystal.to(torch.int64).repeat_interleave(3)
    largest = int(vector.abs().max()) if len(vector) else 0
    base = 2 * largest + 1
    if base**3 * max(len(frames.num_frames), 1) < 2**62:
        digits = vector + largest
        key = ((crystal * base + digits[:, 0]) * base + digits[:, 1]) * base + digits[:, 2]
        unique, index = torch.unique(key, return_inverse=True)
        rest, z = unique // base, unique % base - largest
        rest, y = rest // base, rest % base - largest
        rows = torch.stack((rest // base, rest % base - largest, y, z), 1)
    else:
        rows, index = torch.unique(torch.cat((crystal[:, None], vector), 1), dim=0, return_inverse=True)
    weight = frames.weight.new_zeros(len(rows)).index_add_(0, index, frames.weight.repeat_interleave(3))
    return rows[:, 0], rows[:, 1:], weight


def _subset(frames: FrameSet, keep: Tensor, weight: Tensor) -> FrameSet:
    crystal = frames.crystal[keep]
    count = torch.zeros_like(frames.num_frames).index_add_(0, crystal, torch.ones_like(crystal))
    return FrameSet(crystal, frames.integer[keep], weight[keep], count)


@dataclass(frozen=True)
class _Graph:
    """Edges of all crystals as the signature needs them."""

    direction: Float[Tensor, "edges 3"]
    weight: Float[Tensor, " edges"]  # logarithm of b(Z_i, Z_j, d)
    center: Int[Tensor, " edges"]
    neighbor: Int[Tensor, " edges"]
    num_edges: Int[Tensor, " crystals"]
    first_edge: Int[Tensor, " crystals"]
    num_atoms: Int[Tensor, " crystals"]
    first_atom: Int[Tensor, " crystals"]


def _representatives(
    frames: FrameSet, edges: Edges, lattice: Float[Tensor, "crystals 3 3"], quantum: float
) -> tuple[Int[Tensor, " frames"], Float[Tensor, " frames"]]:
    """For every frame the one that stands for its class, and the number frames are ordered by."""
    home = frames.crystal.device
    lattice = working_copy(lattice)
    device = lattice.device
    owner, counts = frames.crystal.to(device, torch.int64), frames.num_frames.to(device, torch.int64)
    rep = torch.arange(len(owner), device=device)
    key = torch.zeros(len(owner), dtype=torch.float64, device=device)
    several = counts > 1
    if not bool(several.any()):
        return rep.to(home), key.to(home, lattice.dtype if home == device else torch.float32)
    graph = _graph(edges, len(counts), device)
    axes = frames.integer.to(device, torch.float64) @ lattice[owner]
    first_frame = counts.cumsum(0) - counts
    for count, crystals in _chunks(counts, graph.num_edges, several):
        rows = first_frame[crystals, None] + torch.arange(count, device=device)
        chosen, smallest = _classes(axes[rows], crystals, graph, quantum)
        rep[rows] = rows.gather(1, chosen)
        key[rows] = smallest
    return rep.to(home), key.to(home, lattice.dtype if home == device else torch.float32)


def _graph(edges: Edges, crystals: int, device: torch.device) -> _Graph:
    owner = edges.crystal.to(device, torch.int64)
    vector = edges.vector.detach().to(device, torch.float64)
    length = torch.linalg.vector_norm(vector, dim=-1).clamp_min(1e-12)
    species = (edges.center_species.to(device, torch.float64) * _CENTER).frac()
    species += (edges.neighbor_species.to(device, torch.float64) * _NEIGHBOR).frac()
    num_edges = torch.bincount(owner, minlength=crystals)
    center, neighbor = edges.center.to(device, torch.int64), edges.neighbor.to(device, torch.int64)
    first_atom = torch.full_like(num_edges, torch.iinfo(torch.int64).max)
    first_atom.scatter_reduce_(0, owner, torch.minimum(center, neighbor), "amin")
    last_atom = torch.full_like(num_edges, -1)
    last_atom.scatter_reduce_(0, owner, torch.maximum(center, neighbor), "amax")
    num_atoms = torch.where(num_edges > 0, last_atom - first_atom + 1, 0)
    return _Graph(
        vector / length[:, None],
        0.8 * species - length.log(),
        center,
        neighbor,
        num_edges,
        num_edges.cumsum(0) - num_edges,
        num_atoms,
        first_atom,
    )


def _chunks(counts: Tensor, num_edges: Tensor, several: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Crystals with equally many frames, as many as keep an array of frames times edges small."""
    for count in torch.unique(counts[several]).tolist():
        crystals = (counts == count).nonzero().squeeze(1)
        # frames are also compared with one another
        cost = (num_edges[crystals] * count + count * count).cumsum(0)
        _, sizes = torch.unique_consecutive(cost // _PAIRS_AT_ONCE, return_counts=True)
        for part in crystals.split(sizes.tolist()):
            yield count, part


def _classes(
    axes: Float[Tensor, "chunk frames 3 3"], crystals: Int[Tensor, " chunk"], graph: _Graph, quantum: float
) -> tuple[Int[Tensor, "chunk frames"], Float[Tensor, "chunk frames"]]:
    """For each frame of each crystal the number of its representative within the crystal, and its key."""
    lengths = torch.linalg.vector_norm(axes, dim=-1)
    unit = axes / lengths[..., None]
    direction = (unit * axes.new_tensor(_COSINE)[:, None]).sum(-2)
    sums = _sums(direction, crystals, graph)

    # Relative error of a sum of E terms when every term has a random relative error of about 2 quantum.
    error = 2.0 * quantum / graph.num_edges[crystals].clamp_min(1).to(axes.dtype).sqrt()
    equal = torch.ones(*axes.shape[:2], axes.shape[1], dtype=torch.bool, device=axes.device)

    def compare(values: Tensor, tolerance: Tensor | float) -> None:
        equal.logical_and_((values[:, :, None] - values[:, None, :]).abs_() <= tolerance)

    cosines = (unit[..., (0, 0, 1), :] * unit[..., (1, 2, 2), :]).sum(-1)
    for values in (*lengths.unbind(-1), *cosines.unbind(-1)):
        if bool((values.amax(1) - values.amin(1) > quantum).any()):  # most crystals: nothing to compare
            compare(values, 2.0 * quantum)
    key = torch.zeros_like(lengths[..., 0])
    for power, values in enumerate(sums, 1):
        values = values / values.mean(1, keepdim=True)
        key = key + values
        compare(values, power * error[:, None, None])
    rep = torch.where(equal, key[:, None, :], torch.inf).argmin(-1)
    for _ in range(rep.shape[1].bit_length()):  # closeness need not be transitive: to the end of the chain
        rep = rep.gather(1, rep)
    return rep, key


def _sums(
    direction: Float[Tensor, "chunk frames 3"], crystals: Int[Tensor, " chunk"], graph: _Graph
) -> list[Float[Tensor, "chunk frames"]]:
    """The sums of φ over the edges of each crystal, for each frame; see the head of this file."""
    counts = graph.num_edges[crystals]
    pieces = counts.tolist()
    edges = ranges(graph.first_edge[crystals], counts)
    which = torch.arange(len(crystals), device=edges.device).repeat_interleave(counts)
    r = graph.direction.index_select(0, edges)
    weight = graph.weight.index_select(0, edges)[:, None]
    atoms = graph.num_atoms[crystals]
    owner = torch.arange(len(crystals), device=edges.device).repeat_interleave(atoms)
    shift = (atoms.cumsum(0) - atoms - graph.first_atom[crystals])[which]
    center, neighbor = graph.center[edges] + shift, graph.neighbor[edges] + shift
    parts = []
    # a crystal too large for one go is cut by frames
    width = max(1, 16 * _PAIRS_AT_ONCE // max(len(edges), 1))
    for w in direction.split(width, dim=1):
        phi = r.new_empty(len(edges), w.shape[1])
        # crystal by crystal: to gather w for every edge costs more than all the rest, and a matrix product
        # would round equal frames differently
        for out, vectors, logarithm, of in zip(
            phi.split(pieces), r.split(pieces), weight.split(pieces), w, strict=True
        ):
            x, y, z = of.unbind(1)
            torch.addcmul(logarithm, vectors[:, :1], x, out=out)
            out.addcmul_(vectors[:, 1:2], y).addcmul_(vectors[:, 2:], z)
        phi.exp_()
        total = torch.zeros_like(w[..., 0])
        around = phi.new_zeros(len(owner), phi.shape[1])
        at_atom = around.index_add(0, center, phi)
        beyond = around.index_add_(0, center, phi.mul_(at_atom.index_select(0, neighbor)))
        parts.append(
            [
                total.index_add(0, owner, at_atom),
                total.index_add(0, owner, at_atom.square()),
                total.index_add_(0, owner, at_atom.mul_(beyond)),
            ]
        )
    return [torch.cat(columns, 1) for columns in zip(*parts, strict=True)]
