"""Which image of which atom lies near which atom.

The cell that is searched is the reduced one with every atom wrapped into it, whatever cell was given:
    x_given = (x + wrap) @ transform,      image_given = (image + wrap_center - wrap_neighbor) @ transform
so skewed, flat, tiny or unwrapped cells cost no more than others and no image is missed.
Small cells are searched all at once, in plain torch on any device; on the CPU vesin's cell lists take the
large ones. All that follows (shells, unions, sorting) is batched.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import vesin
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from facetry.geometry.ragged import grids, group_index, items_in, offsets, ranges, ranks
from facetry.geometry.reduction import minkowski_reduce
from facetry.graph.batch import Batch, PeriodicGraph

SHELL_GAP = 1e-3  # Å; neighbours closer together than this belong to one coordination shell
COINCIDE = 1e-3  # Å; two atoms nearer than this are one atom written twice
_IN_CACHE, _IN_MEMORY = 1 << 16, 1 << 22  # candidate pairs enumerated at once on the CPU, elsewhere
_SMALL = 30_000  # candidate pairs of a crystal below which enumerating them is faster than a call of vesin
_VESIN_OPTIONS = {"n_threads": 1} if "n_threads" in inspect.signature(vesin.NeighborList).parameters else {}


class GraphError(ValueError):
    """A crystal whose graph cannot be built; the message names the crystal and what to do.

    `reasons` has the messages of all crystals of the list that were found to have none, by their number in
    it, where all were looked at.
    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of(cls, reasons: Mapping[int, str]) -> GraphError:
        """The error of several crystals; its message is that of the first."""
        return cls(reasons[min(reasons)], reasons)

    def shifted(self, first: int) -> GraphError:
        """The same where `first` more crystals come before."""
        return GraphError(str(self), {first + number: reason for number, reason in self.reasons.items()})


def crystal_name(names: Sequence[str], crystal: int) -> str:
    """For messages: its name, or its number where it has none."""
    return names[crystal] or f"crystal {crystal}"


@dataclass(frozen=True)
class Pairs:
    """All pairs within reach of a batch, sorted by centre, in the cell that was searched."""

    center: Int[Tensor, " edges"]
    neighbor: Int[Tensor, " edges"]
    image: Int[Tensor, "edges 3"]
    distance: Float[Tensor, " edges"]


def reduced(batch: Batch) -> tuple[Batch, Int[Tensor, "crystals 3 3"], Int[Tensor, "atoms 3"]]:
    """The same crystals in Minkowski-reduced cells with wrapped atoms; also what undoes it: the integer
    transform (reduced lattice = transform @ lattice) and the wrapping of every atom (in reduced cells)."""
    lattice, transform = minkowski_reduce(batch.lattice)
    inverse = torch.linalg.inv(transform.to(lattice.dtype)).round()
    frac = torch.einsum("na,nab->nb", batch.frac_coords, inverse[batch.crystal_index])
    wrap = torch.floor(frac)
    frac = frac - wrap
    # a coordinate of -1e-17 wraps to exactly 1.0; it belongs to the next cell
    over = frac >= 1.0
    wrap, frac = wrap + over, torch.where(over, torch.zeros_like(frac), frac)
    return replace(batch, lattice=lattice, frac_coords=frac), transform, wrap.long()


def pairs_within(batch: Batch, cutoff: Float[Tensor, " crystals"] | float | int) -> Pairs:
    """Every ordered pair (atom, image of an atom) closer than the cutoff in Å, one for all or each crystal's.

    Expects reduced cells with wrapped atoms (`reduced`). The atom itself (distance 0, image 0) is not
    its own neighbour; its images are.
    """
    if not isinstance(cutoff, Tensor):
        cutoff = batch.lattice.new_full((len(batch),), cutoff)
    if batch.device.type != "cpu":
        return _pairs_torch(batch, cutoff)
    # atoms in the cell times atoms in reach of the cell: what enumeration would look at
    width = cutoff + batch.lattice.norm(dim=2).sum(1) / 2
    candidates = batch.num_atoms**2 * (4.2 * width**3 / torch.linalg.det(batch.lattice).abs())
    large = candidates > _SMALL
    if not bool(large.any()):
        return _pairs_torch(batch, cutoff)
    if bool(large.all()):
        return _pairs_vesin(batch, cutoff)
    parts = []
    for search, chosen in ((_pairs_torch, ~large), (_pairs_vesin, large)):
        crystals = torch.nonzero(chosen)[:, 0]
        atoms = items_in(crystals, batch.num_atoms)
        found = search(bare(batch).select(crystals), cutoff[crystals])
        parts.append((atoms[found.center], atoms[found.neighbor], found.image, found.distance))
    return sorted_pairs(*(torch.cat(values) for values in zip(*parts, strict=True)))


def bare(batch: Batch) -> Batch:
    """The crystals of a batch without what was built on them."""
    return replace(batch, graph=None, frames=None, atom_map=None, num_input_atoms=None)


def sorted_pairs(
    center: Int[Tensor, " edges"],
    neighbor: Int[Tensor, " edges"],
    image: Int[Tensor, "edges 3"],
    distance: Float[Tensor, " edges"],
) -> Pairs:
    """Pairs in the order of their centres."""
    order = torch.argsort(center, stable=True)
    return Pairs(center[order], neighbor[order], image[order], distance[order])


def _pairs_vesin(batch: Batch, cutoff: Float[Tensor, " crystals"]) -> Pairs:
    lattice = batch.lattice.detach().numpy()
    start = offsets(batch.num_atoms).numpy()
    cart = torch.einsum("na,nab->nb", batch.frac_coords, batch.lattice[batch.crystal_index]).detach().numpy()
    radii = cutoff.detach().numpy()
    rows, shifts, lengths, counts = [], [], [], np.zeros(len(batch), dtype=np.int64)
    lists: dict[float, vesin.NeighborList] = {}
    for c in range(len(batch)):
        radius = float(radii[c])
        if radius not in lists:
            lists[radius] = vesin.NeighborList(cutoff=radius, full_list=True, **_VESIN_OPTIONS)
        found, shift, length = lists[radius].compute(
            points=cart[start[c] : start[c + 1]], box=lattice[c], periodic=True, quantities="PSd"
        )
        counts[c] = len(length)
        rows.append(found)
        shifts.append(shift)
        lengths.append(length)
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *rows], dtype=np.int64, casting="unsafe")
    pairs += np.repeat(start[:-1], counts)[:, None]
    image = np.concatenate([np.zeros((0, 3), np.int64), *shifts], dtype=np.int64, casting="unsafe")
    distance = np.concatenate([np.zeros(0), *lengths])
    return sorted_pairs(*map(torch.from_numpy, (pairs[:, 0], pairs[:, 1], image, distance)))


def _pairs_torch(batch: Batch, cutoff: Float[Tensor, " crystals"]) -> Pairs:
    """All pairs times all lattice points in reach, for all crystals at once, on any device."""
    device, dtype = batch.device, batch.lattice.dtype
    # ordered pairs, sorted by crystal and centre; differences brought near the origin
    n = batch.num_atoms
    owner = group_index(n * n)
    rank = ranks(n * n)
    start = offsets(n)[:-1][owner]
    i, j = start + torch.div(rank, n[owner], rounding_mode="floor"), start + rank % n[owner]
    frac = batch.frac_coords[j] - batch.frac_coords[i]
    shift = torch.round(frac)
    delta = torch.einsum("pa,pab->pb", frac - shift, batch.lattice[owner])
    longest = torch.zeros(len(batch), dtype=dtype, device=device)
    longest.scatter_reduce_(0, owner, delta.norm(dim=1), "amax")
    # lattice points R with |R| <= cutoff + longest difference
    reach = cutoff + longest + 1e-6
    heights = 1.0 / torch.linalg.inv(batch.lattice).norm(dim=1)
    half = torch.floor(reach[:, None] / heights + 1e-9).long()
    crystal, point = grids(-half, half)
    vector = torch.einsum("pa,pab->pb", point.to(dtype), batch.lattice[crystal])
    near = torch.nonzero(vector.norm(dim=1) <= reach[crystal])[:, 0]
    point, vector = point[near], vector[near]
    points = torch.bincount(crystal[near], minlength=len(batch))
    first_point = offsets(points)[:-1]
    # every pair with every lattice point of its crystal, a bounded number at once
    per_pair = points[owner]
    columns, vectors = delta.T.contiguous(), vector.T.contiguous()
    most, shift = cutoff.square()[owner], shift.long()
    least = torch.where(i == j, 0.0, -1.0).to(dtype)  # an atom is not its own neighbour
    limit = _IN_CACHE if device.type == "cpu" else _IN_MEMORY
    piece = torch.div(torch.cumsum(per_pair, 0), limit, rounding_mode="floor")
    sizes = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    first = 0
    for size in sizes:
        rows = torch.arange(first, first + size, device=device)
        first += size
        counts = per_pair[rows]
        row = torch.repeat_interleave(rows, counts)
        at = ranges(first_point[owner[rows]], counts)
        squared = torch.zeros(len(row), dtype=dtype, device=device)
        for axis in range(3):
            squared += (columns[axis].index_select(0, row) + vectors[axis].index_select(0, at)).square_()
        inside = (squared < most.index_select(0, row)) & (squared > least.index_select(0, row))
        keep = torch.nonzero(inside)[:, 0]
        row = row[keep]
        found.append((i[row], j[row], point[at[keep]] - shift[row], squared[keep].sqrt()))
    if len(found) == 1:
        return Pairs(*found[0])
    if not found:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Pairs(empty, empty, empty.reshape(0, 3), torch.zeros(0, dtype=dtype, device=device))
    return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def check_distinct(batch: Batch, pairs: Pairs, names: Sequence[str]) -> None:
    """Raises GraphError when two sites of a crystal coincide: no direction leads from one to the other."""
    close = torch.nonzero(pairs.distance < COINCIDE)[:, 0]
    if len(close):
        e = int(close[0])
        i, j = int(pairs.center[e]), int(pairs.neighbor[e])
        c = int(batch.crystal_index[i])
        first = int(offsets(batch.num_atoms)[c])
        raise GraphError(
            f"{crystal_name(names, c)}: sites {i - first + 1} and {j - first + 1} are"
            f" {float(pairs.distance[e]):.4f} Å apart; expected distinct atoms; remove one of them or join"
            " them when reading (merge_within=0.05)"
        )


def shell_radii(
    pairs: Pairs, num_atoms: int, k: int, gap: float = SHELL_GAP
) -> tuple[Float[Tensor, " atoms"], Int[Tensor, " atoms"]]:
    """Radius of the sphere around each atom that holds its k nearest neighbours and, whole, the shell of
    the k-th; also the number of neighbours inside. A radius of infinity says that the list is too short.

    A shell goes on while the step to the next distance is at most `gap` (comformer specification §2.1).
    """
    center, distance = pairs.center, pairs.distance
    counts = torch.bincount(center, minlength=num_atoms)
    start = offsets(counts)[:-1]
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(center[order], stable=True)]
    d = distance[order]
    step = torch.full_like(d, torch.inf)
    step[:-1] = d[1:] - d[:-1]
    last = start + counts - 1
    step[last[counts > 0]] = torch.inf
    ends = torch.nonzero(step > gap)[:, 0]  # rows where a shell is complete
    kth = start + k - 1
    radius = torch.full((num_atoms,), torch.inf, dtype=d.dtype, device=d.device)
    inside = counts.clone()
    enough = counts >= k
    if bool(enough.any()):
        end = ends[torch.searchsorted(ends, kth[enough])]
        radius[enough] = d[end]
        inside[enough] = end - start[enough] + 1
    return radius, inside


def nearest_pairs(
    batch: Batch, k: int, names: Sequence[str], gap: float = SHELL_GAP
) -> tuple[Pairs, Float[Tensor, " atoms"]]:
    """All pairs of a reduced batch out to at least the k-th shell of every atom, and those shells' radii.

    The search radius is guessed from the density and grown for the crystals where it was too small.
    """
    if k < 1:
        raise GraphError(f"k nearest neighbours: expected k of at least 1, came {k}")
    volume = torch.linalg.det(batch.lattice).abs()
    # a sphere that holds 1.15 k + 5 atoms at the crystal's mean density
    cutoff = ((1.15 * k + 5) * volume / (batch.num_atoms * (4 / 3 * torch.pi))) ** (1 / 3)
    cutoff = (cutoff * 4).ceil() / 4  # quarters of an Å: few distinct cutoffs, few search objects
    pairs = pairs_within(batch, cutoff)
    radius, _ = shell_radii(pairs, len(batch.frac_coords), k, gap)
    for _ in range(40):
        short = (radius + 2 * gap >= cutoff[batch.crystal_index]).to(torch.int64)
        redo = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        redo.index_add_(0, batch.crystal_index, short)
        if not bool(redo.any()):
            check_distinct(batch, pairs, names)
            return pairs, radius
        again = torch.nonzero(redo)[:, 0]
        cutoff = cutoff.clone()
        cutoff[again] = cutoff[again] * 1.3
        pairs, radius = _search_again(batch, pairs, radius, again, cutoff, k, gap)
    worst = int(torch.nonzero(redo)[0, 0])
    raise GraphError(
        f"{crystal_name(names, worst)}: no {k} neighbours within {float(cutoff[worst]):.0f} Å;"
        " expected a crystal that repeats in three dimensions; check its lattice"
    )


def _search_again(
    batch: Batch,
    pairs: Pairs,
    radius: Float[Tensor, " atoms"],
    again: Int[Tensor, " crystals_again"],
    cutoff: Float[Tensor, " crystals"],
    k: int,
    gap: float,
) -> tuple[Pairs, Float[Tensor, " atoms"]]:
    """Replaces the pairs of some crystals by those of a wider search."""
    wider = pairs_within(bare(batch).select(again), cutoff[again])
    atoms = items_in(again, batch.num_atoms)
    new_radius, _ = shell_radii(wider, len(atoms), k, gap)
    return replaced_pairs(batch, pairs, again, wider), radius.index_copy(0, atoms, new_radius)


def replaced_pairs(batch: Batch, pairs: Pairs, again: Int[Tensor, " crystals_again"], found: Pairs) -> Pairs:
    """The pairs of a batch with those of some crystals as `found` for `batch.select(again)`."""
    atoms = items_in(again, batch.num_atoms)
    keep = torch.ones(len(batch.frac_coords), dtype=torch.bool, device=batch.device)
    keep[atoms] = False
    keep = keep[pairs.center]
    return sorted_pairs(
        torch.cat([pairs.center[keep], atoms[found.center]]),
        torch.cat([pairs.neighbor[keep], atoms[found.neighbor]]),
        torch.cat([pairs.image[keep], found.image]),
        torch.cat([pairs.distance[keep], found.distance]),
    )


def edge_counts(batch: Batch, center: Int[Tensor, " edges"]) -> Int[Tensor, " crystals"]:
    """How many edges each crystal has."""
    return torch.bincount(batch.crystal_index[center], minlength=len(batch))


def in_given_cell(
    batch: Batch,
    pairs: Pairs,
    keep: Shaped[Tensor, " chosen"],
    transform: Int[Tensor, "crystals 3 3"],
    wrap: Int[Tensor, "atoms 3"],
) -> PeriodicGraph:
    """Pairs that were found in the reduced cells (`reduced`) as a graph of the cells that were given."""
    center, neighbor = pairs.center[keep], pairs.neighbor[keep]
    image = pairs.image[keep] + wrap[center] - wrap[neighbor]
    # integers below 2^53 are exact in float64 (2^24 in MPS's float32); batched integer products are slow
    exact = batch.lattice.dtype
    image = torch.einsum("ea,eab->eb", image.to(exact), transform.to(exact)[batch.crystal_index[center]])
    return PeriodicGraph(center, neighbor, image.round().long(), edge_counts(batch, center))
