"""Graphs whose edges know which of the 2 x 2 x 2 cells they lead to: Voronoi bonds, and all atoms in a
sphere.

An edge from atom p to the image T of atom q leads, in every cell c of the supercell, to the cell c + T
modulo 2; one tessellation of the primitive cell serves all eight. T depends on how the crystal is written
down: on the basis, and on the cell in which each atom is listed. Both are chosen here by the crystal itself:

    primitive cell ─► Niggli cell ─► edges ─► every basis of the same shape, every origin on the rarest kind
    of atom ─► the description whose graph has the smallest signature

A signature is what three rounds of a fixed smooth network on the labelled graph add up to. Descriptions that
a symmetry of the crystal carries into one another give the same graph, and others another number, so what
a network sees of T does not depend on the description that was given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.elements import COVALENT_RADII, SYMBOLS
from facetry.geometry.groups import automorphisms, cell_actions, cell_offsets, point_groups
from facetry.geometry.lattice import metric
from facetry.geometry.primitive import primitive_cell
from facetry.geometry.ragged import group_index, offsets, ranges
from facetry.geometry.reduction import niggli_reduce, working_copy
from facetry.graph import neighbors
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import Builder
from facetry.graph.neighbors import GraphError

log = logging.getLogger(__name__)
LARGEST_CELL = 50  # atoms of a primitive cell; larger ones are outside of what was published
LEAST_FACE = 1e-6  # Å²; smaller faces of a Voronoi cell are an edge or a corner, blurred by rounding
SAME_SIGNATURE = 1e-9
_WRAP = 2.7182e-4  # an atom so close to the upper face of the cell belongs to the lower; no likely decimal
_ROUNDS = 3
_NEAR = 2.0  # times the cube root of the volume of an atom: how far the first tessellation looks
_AT_ONCE = 1 << 20  # edges times descriptions


@dataclass(frozen=True)
class CellGraph(Builder):
    """What both graphs share: primitive cell, choice of the description."""

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Primitive cell in the description that the crystal chooses, with edges; -T follows from both
        ends."""
        num_input_atoms = batch.num_atoms
        cells = primitive_cell(batch.lattice, batch.frac_coords, batch.atomic_numbers, batch.num_atoms)
        lattice, transform = niggli_reduce(cells.lattice)
        owner = group_index(cells.num_atoms)
        back = torch.linalg.inv(transform.to(lattice.dtype)).round()
        frac = torch.einsum("na,nab->nb", cells.frac_coords, back[owner])
        frac = frac - torch.floor(frac.detach() + _WRAP)
        batch = Batch(lattice, frac, cells.atomic_numbers, cells.num_atoms)
        batch = self.connect(batch, names)
        return replace(chosen_description(batch), atom_map=cells.atom_map, num_input_atoms=num_input_atoms)

    def connect(self, batch: Batch, names: Sequence[str]) -> Batch:
        """The batch with its edges; raises GraphError for a crystal without a valid graph."""
        raise NotImplementedError


@dataclass(frozen=True)
class CellRadius(CellGraph):
    """All atoms closer than `cutoff` (Å)."""

    cutoff: float = 5.0

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise ValueError(f"radius graph: expected a cutoff above 0 Å, came {self.cutoff}")

    def connect(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Every pair within the cutoff; an atom without any keeps none. Rounding must not decide about
        neighbours at a round distance: those up to half a gap of shells beyond belong to it."""
        cutoff = self.cutoff + neighbors.SHELL_GAP / 2
        reach = torch.full((len(batch),), cutoff, dtype=batch.lattice.dtype, device=batch.device)
        pairs = neighbors.pairs_within(batch, reach)
        neighbors.check_distinct(batch, pairs, names)
        counts = neighbors.edge_counts(batch, pairs.center)
        return replace(batch, graph=PeriodicGraph(pairs.center, pairs.neighbor, pairs.image, counts))


@dataclass(frozen=True)
class Voronoi(CellGraph):
    """Bonds: atoms whose Voronoi cells share a face and that are at most the sum of their covalent radii
    (Cordero 2008) and `slack` apart (Isayev et al. 2017, with the slack of Kaba and Ravanbakhsh 2022).

    The cells are those among all atoms within `cutoff` (Å) of an atom of the primitive cell. A crystal is
    refused where an element has no covalent radius, a Voronoi cell is open, an atom has no bond, or the
    bonds leave the 2 x 2 x 2 supercell in parts, as in molecular, chain and most layer crystals.
    `valid=False` keeps the last two.
    """

    slack: float = 0.5  # Å
    cutoff: float = 6.0  # Å
    valid: bool = True

    def __post_init__(self) -> None:
        if self.slack < 0 or not self.cutoff > 0:
            raise ValueError(
                "Voronoi graph: expected slack >= 0 Å and a cutoff above 0 Å,"
                f" came {self.slack} and {self.cutoff}"
            )

    def connect(self, batch: Batch, names: Sequence[str]) -> Batch:
        """One tessellation a crystal, the rest for all at once."""
        _check_radii(batch, names)
        _tell_of_large_cells(batch, names)
        reach = torch.full((len(batch),), self.cutoff, dtype=batch.lattice.dtype, device=batch.device)
        pairs = neighbors.pairs_within(batch, reach)
        neighbors.check_distinct(batch, pairs, names)
        # points near the atoms suffice where no corner of a cell is farther than half of their distance
        near = _NEAR * (torch.linalg.det(batch.lattice.detach()).abs() / batch.num_atoms) ** (1 / 3)
        near = near.clamp(max=self.cutoff)
        chosen = pairs.distance <= near[batch.crystal_index[pairs.center]]
        *found, reach = _bonds(batch, pairs.neighbor[chosen], pairs.image[chosen], self.slack)
        unsure = torch.nonzero((2 * reach > near) & (near < self.cutoff) | reach.isinf())[:, 0]
        if len(unsure):
            found, reach = self._again(batch, pairs, unsure, found, 1)
        still_open = torch.nonzero(reach.isinf())[:, 0]
        if len(still_open):
            found, reach = self._again(batch, pairs, still_open, found, 2)
        if bool(reach.isinf().any()):
            reason = (
                f"an open Voronoi cell: some atom has nothing on one side within {self.cutoff:g} Å; expected"
                " a crystal without large gaps; leave out slabs and molecules in boxes, or use a radius graph"
            )
            open_cells = torch.nonzero(reach.isinf())[:, 0].tolist()
            raise GraphError.of({crystal: f"{_name(names, crystal)}: {reason}" for crystal in open_cells})
        center, neighbor, image = found
        order = torch.argsort(center, stable=True)
        center, neighbor, image = center[order], neighbor[order], image[order]
        counts = neighbors.edge_counts(batch, center)
        batch = replace(batch, graph=PeriodicGraph(center, neighbor, image, counts))
        if self.valid:
            _check_bonds(batch, names)
        return batch

    def _again(
        self,
        batch: Batch,
        pairs: neighbors.Pairs,
        again: Int[Tensor, " crystals_again"],
        found: Sequence[Tensor],
        copies: int,
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, " crystals"]]:
        """The bonds, with those of some crystals from all points within the cutoff of the atoms of so many
        cells along each axis; and the reach of these crystals, 0 for the others."""
        part = neighbors.bare(batch).select(again)
        atoms = ranges(offsets(batch.num_atoms)[:-1][again], part.num_atoms)
        local = torch.full((len(batch.frac_coords),), -1, dtype=torch.int64, device=batch.device)
        local[atoms] = torch.arange(len(atoms), device=batch.device)
        mine = local[pairs.center] >= 0
        cells = torch.from_numpy(cell_offsets(copies)).to(batch.device)
        image = (pairs.image[mine][:, None] + cells).reshape(-1, 3)
        neighbor = local[pairs.neighbor[mine]].repeat_interleave(len(cells))
        *bonds, part_reach = _bonds(part, neighbor, image, self.slack, copies)
        rest = local[found[0]] < 0
        new = (atoms[bonds[0]], atoms[bonds[1]], bonds[2])
        reach = part_reach.new_zeros(len(batch)).index_copy(0, again, part_reach)
        return tuple(torch.cat([old[rest], more]) for old, more in zip(found, new, strict=True)), reach


def _name(names: Sequence[str], crystal: int) -> str:
    return names[crystal] or f"crystal {crystal}"


def _check_radii(batch: Batch, names: Sequence[str]) -> None:
    wrong = torch.nonzero(batch.atomic_numbers >= len(COVALENT_RADII))[:, 0].flip(0)  # the first stays
    if len(wrong):
        pairs = zip(batch.crystal_index[wrong].tolist(), batch.atomic_numbers[wrong].tolist(), strict=True)
        last = SYMBOLS[len(COVALENT_RADII) - 1]
        known = f"expected elements up to {last} for Voronoi bonds; use a radius graph"
        raise GraphError.of(
            {c: f"{_name(names, c)}: {SYMBOLS[z]} has no covalent radius; {known}" for c, z in pairs}
        )


def _tell_of_large_cells(batch: Batch, names: Sequence[str]) -> None:
    for crystal in torch.nonzero(batch.num_atoms > LARGEST_CELL)[:, 0].tolist():
        count = int(batch.num_atoms[crystal])
        log.warning(
            "%s: %d atoms in the primitive cell, %d in the supercell; published networks saw at most %d."
            " Training needs about %.0f MB for it (100 channels, 6 layers), evaluation a sixth",
            _name(names, crystal), count, 8 * count, LARGEST_CELL, count * 8 * _ATOM_BYTES / 1e6,
        )  # fmt: skip


# atoms of the supercell: in each of 6 layers about 60 rows of 100 float32, kept for the way back
_ATOM_BYTES = 6 * 60 * 400


def _bonds(
    batch: Batch,
    neighbor: Int[Tensor, " pairs"],
    image: Int[Tensor, "pairs 3"],
    slack: float,
    copies: int = 1,
) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"], Int[Tensor, "edges 3"], Float[Tensor, " crystals"]]:
    """Bonds among atoms and the given images, and the largest distance (Å) from an atom of each crystal to a
    corner of its Voronoi cell: infinite where a cell is open or missing, among those of the atoms in so many
    cells along each axis.
    """
    atoms = len(batch.frac_coords)
    own = np.zeros((atoms, 4), dtype=np.int64)
    own[:, 0] = np.arange(atoms)
    rows = np.concatenate([own, np.column_stack([neighbor.cpu().numpy(), image.cpu().numpy()])])
    low, high = rows.min(0), rows.max(0)
    key = np.unique(np.ravel_multi_index((rows - low).T, high - low + 1))
    points = np.stack(np.unravel_index(key, high - low + 1), 1) + low
    atom, shift = points[:, 0], points[:, 1:]
    home = ((shift >= 0) & (shift < copies)).all(1)
    first = (shift == 0).all(1)
    crystal_of = batch.crystal_index.cpu().numpy()
    # the cell in a fixed orientation: how the crystal is turned must not decide about degenerate corners
    cell = torch.linalg.cholesky(metric(working_copy(batch.lattice))).cpu().numpy()
    frac = batch.frac_coords.detach().cpu().double().numpy()
    cart = np.einsum("pa,pab->pb", frac[atom] + shift, cell[crystal_of[atom]])
    bounds = np.searchsorted(crystal_of[atom], np.arange(len(batch) + 1))
    ends, size, corner, corners = _tessellate(cart, bounds)

    touches = home[ends].any(1)
    start = np.concatenate([[0], np.cumsum(size)])
    lowest = np.minimum.reduceat(corner, start[:-1]) if len(size) else size
    seen = np.zeros(len(points), dtype=bool)
    seen[ends.ravel()] = True
    reach = _reach(cart, corners, corner, start, np.flatnonzero(touches), ends, crystal_of[atom], len(batch))
    reach[crystal_of[atom[home & ~seen]]] = np.inf
    reach[crystal_of[atom[ends[touches & (lowest < 0), 0]]]] = np.inf

    radius = np.array(COVALENT_RADII)[batch.atomic_numbers.cpu().numpy()]
    distance = np.linalg.norm(cart[ends[:, 0]] - cart[ends[:, 1]], axis=1)
    keep = first[ends].any(1) & (lowest >= 0) & np.isfinite(reach[crystal_of[atom[ends[:, 0]]]])
    keep &= distance <= radius[atom[ends]].sum(1) + slack
    keep[keep] = _areas(corners, corner, start, np.flatnonzero(keep)) > LEAST_FACE
    both = np.concatenate([ends[keep], ends[keep][:, ::-1]])
    both = both[first[both[:, 0]]]
    result = (atom[both[:, 0]], atom[both[:, 1]], shift[both[:, 1]], reach)
    return tuple(torch.from_numpy(x).to(batch.device) for x in result)


def _tessellate(
    cart: Float[np.ndarray, "points 3"], bounds: Int[np.ndarray, " crystals_plus_one"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Faces of the Voronoi cells of the points of each crystal: the two points of each, its number of
    corners, and these corners one face after the other (negative: at infinity) with their positions. Points
    in a plane or on a line have none."""
    from scipy.spatial import QhullError, Voronoi

    ends, size, corner, corners, shift = [], [], [], [], 0
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        try:
            cells = Voronoi(cart[first:last])
        except (QhullError, ValueError):
            continue
        faces = cells.ridge_vertices
        number = np.fromiter(chain.from_iterable(faces), dtype=np.int64)
        ends.append(cells.ridge_points.astype(np.int64) + first)
        size.append(np.fromiter(map(len, faces), dtype=np.int64, count=len(faces)))
        corner.append(np.where(number < 0, -1, number + shift))
        corners.append(cells.vertices)
        shift += len(cells.vertices)
    if not ends:
        none = np.zeros(0, dtype=np.int64)
        return none.reshape(0, 2), none, none, np.zeros((0, 3))
    return np.concatenate(ends), np.concatenate(size), np.concatenate(corner), np.concatenate(corners)


def _reach(
    cart: Float[np.ndarray, "points 3"],
    corners: Float[np.ndarray, "corners 3"],
    corner: Int[np.ndarray, " items"],
    start: Int[np.ndarray, " faces_plus_one"],
    chosen: Int[np.ndarray, " chosen"],
    ends: Int[np.ndarray, "faces 2"],
    crystal: Int[np.ndarray, " points"],
    crystals: int,
) -> Float[np.ndarray, " crystals"]:
    """Largest distance (Å) from an atom to a corner of its cell. Both ends of a face are equally far from its
    corners. Corners at infinity are left to the caller."""
    reach = np.zeros(crystals)
    if len(chosen):
        count = start[chosen + 1] - start[chosen]
        begin = np.cumsum(count) - count
        item = corner[np.arange(count.sum()) + np.repeat(start[chosen] - begin, count)]
        away = np.linalg.norm(corners[item] - np.repeat(cart[ends[chosen, 0]], count, axis=0), axis=1)
        np.maximum.at(reach, crystal[ends[chosen, 0]], np.maximum.reduceat(away, begin))
    return reach


def _areas(
    corners: Float[np.ndarray, "corners 3"],
    corner: Int[np.ndarray, " items"],
    start: Int[np.ndarray, " faces_plus_one"],
    chosen: Int[np.ndarray, " chosen"],
) -> Float[np.ndarray, " chosen"]:
    """Areas (Å²) of chosen faces, polygons whose corners are listed in turn."""
    if not len(chosen):
        return np.zeros(0)
    count = start[chosen + 1] - start[chosen]
    begin = np.concatenate([[0], np.cumsum(count)])
    item = np.arange(begin[-1]) - np.repeat(begin[:-1] - start[chosen], count)
    point = corners[corner[item]] - np.repeat(corners[corner[start[chosen]]], count, axis=0)
    following = np.arange(begin[-1]) + 1
    following[begin[1:] - 1] = begin[:-1]
    return np.linalg.norm(np.add.reduceat(np.cross(point, point[following]), begin[:-1]), axis=1) / 2


def _check_bonds(batch: Batch, names: Sequence[str]) -> None:
    """Raises GraphError for an atom without bond, or a supercell that falls into parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = batch.require_graph()
    lonely = torch.nonzero(torch.bincount(graph.center, minlength=len(batch.frac_coords)) == 0)[:, 0].flip(0)
    owners, numbers = batch.crystal_index[lonely].tolist(), batch.atomic_numbers[lonely].tolist()
    reasons = {
        crystal: f"{_name(names, crystal)}: an atom of {SYMBOLS[z]} has no bond; expected one at least; use a"
        " larger slack or a radius graph, or leave this crystal out"
        for crystal, z in zip(owners, numbers, strict=True)
    }
    cells = np.arange(8)
    delta = cell_index(graph.image).cpu().numpy()
    center, neighbor = (t.cpu().numpy()[:, None] * 8 for t in (graph.center, graph.neighbor))
    rows, columns = (center + cells).ravel(), (neighbor + (cells ^ delta[:, None])).ravel()
    nodes = 8 * len(batch.frac_coords)
    links = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(nodes, nodes))
    parts, label = connected_components(links, directed=False)
    if parts > len(batch):
        owner = np.empty(parts, dtype=np.int64)
        owner[label] = np.repeat(batch.crystal_index.cpu().numpy(), 8)
        pieces = np.bincount(owner, minlength=len(batch))
        for crystal in np.flatnonzero(pieces > 1).tolist():
            message = (
                f"its bonds leave the 2 x 2 x 2 supercell in {pieces[crystal]} parts; expected a network"
            )
            message += " in three dimensions; use a larger slack or a radius graph, or leave this crystal out"
            reasons.setdefault(crystal, f"{_name(names, crystal)}: {message}")
    if reasons:
        raise GraphError.of(reasons)


def cell_index(image: Int[Tensor, "edges 3"]) -> Int[Tensor, " edges"]:
    """δ = T modulo 2 of every edge as one number, 4 δ1 + 2 δ2 + δ3."""
    bits = image & 1
    return bits[:, 0] * 4 + bits[:, 1] * 2 + bits[:, 2]


# --- the description that the crystal chooses ------------------------------------------------------------


def chosen_description(batch: Batch) -> Batch:
    """The same crystals and edges with basis, cells of the atoms and images as the crystal chooses them.

    Expects Niggli cells. Edges stay where they are; only integers change.
    """
    lattice = working_copy(batch.lattice)
    work = replace(
        batch.to(lattice.device), lattice=lattice, frac_coords=batch.frac_coords.detach().to(lattice)
    )
    transform, wrap = (t.to(batch.device) for t in _descriptions(work))
    graph, owner = batch.require_graph(), batch.crystal_index
    back = torch.linalg.inv(transform.to(batch.lattice)).round()
    image = torch.einsum("ea,eab->eb", graph.image.to(back), back[batch.edge_crystal]).round().long()
    image = image + wrap[graph.center] - wrap[graph.neighbor]
    return replace(
        batch,
        lattice=transform.to(batch.lattice) @ batch.lattice,
        frac_coords=torch.einsum("na,nab->nb", batch.frac_coords, back[owner]) + wrap,
        graph=replace(graph, image=image),
    )


def _descriptions(batch: Batch) -> tuple[Int[Tensor, "crystals 3 3"], Int[Tensor, "atoms 3"]]:
    """New basis (rows in units of the old one) and the cells that atoms move by in it, for each crystal."""
    graph, frac = batch.require_graph(), batch.frac_coords
    device = batch.device
    matrices = torch.from_numpy(automorphisms()[0]).to(device)
    found = point_groups(batch.lattice)
    distance = batch.edge_vectors().norm(dim=1)
    kind = _kind(batch.atomic_numbers)
    start = offsets(batch.num_atoms)[:-1]

    # origins: the atoms of the rarest environment
    bare = torch.zeros(len(graph), dtype=torch.int64, device=device)
    atom = _network(kind, distance, bare, graph.center, graph.neighbor).sum(1)
    origin = _rarest(atom, batch.crystal_index, len(batch))

    group = found.sum(1)
    origins = torch.bincount(batch.crystal_index[origin], minlength=len(batch))
    several = group * origins
    crystal = group_index(several)
    rank = ranges(torch.zeros_like(several), several)
    which = torch.div(rank, origins[crystal], rounding_mode="floor")
    element = torch.nonzero(found)[:, 1][offsets(group)[:-1][crystal] + which]
    root = origin[offsets(origins)[:-1][crystal] + rank - which * origins[crystal]]

    work = torch.cumsum(several * graph.num_edges, 0)
    piece = torch.div(work, _AT_ONCE, rounding_mode="floor")
    counts = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    first = offsets(several)
    value = torch.empty(len(crystal), dtype=torch.float64, device=device)
    done = 0
    for count in counts:
        rows = slice(int(first[done]), int(first[done + count]))
        value[rows] = _signatures(
            batch, distance, kind, crystal[rows], matrices[element[rows]], element[rows], root[rows]
        )
        done += count
    best = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=device)
    best.scatter_reduce_(0, crystal, value, "amin")
    good = torch.nonzero(value <= best[crystal] + SAME_SIGNATURE)[:, 0]
    chosen = torch.full((len(batch),), len(crystal), dtype=torch.int64, device=device)
    chosen.scatter_reduce_(0, crystal[good], good, "amin")
    transform = matrices[element[chosen]]
    return transform, _wraps(frac, start, batch.num_atoms, transform, root[chosen])[0]


def _wraps(
    frac: Float[Tensor, "atoms 3"],
    start: Int[Tensor, " descriptions"],
    count: Int[Tensor, " descriptions"],
    transform: Int[Tensor, "descriptions 3 3"],
    root: Int[Tensor, " descriptions"],
) -> tuple[Int[Tensor, "rows 3"], Int[Tensor, " rows"]]:
    """Cells that bring every atom of a description within one cell above its root, and which atoms these
    are."""
    atom = ranges(start, count)
    owner = group_index(count)
    back = torch.linalg.inv(transform.to(frac)).round()
    away = torch.einsum("na,nab->nb", frac[atom] - frac[root][owner], back[owner])
    return -torch.floor(away + _WRAP).long(), atom


def _signatures(
    batch: Batch,
    distance: Float[Tensor, " edges"],
    kind: Float[Tensor, "atoms 2"],
    crystal: Int[Tensor, " descriptions"],
    transform: Int[Tensor, "descriptions 3 3"],
    element: Int[Tensor, " descriptions"],
    root: Int[Tensor, " descriptions"],
) -> Float[Tensor, " descriptions"]:
    """What the graph of each description adds up to."""
    graph = batch.require_graph()
    atom_start, atom_count = offsets(batch.num_atoms)[:-1][crystal], batch.num_atoms[crystal]
    wrap, atom = _wraps(batch.frac_coords, atom_start, atom_count, transform, root)
    shift = offsets(atom_count)[:-1] - atom_start
    edge_count = graph.num_edges[crystal]
    edge = ranges(offsets(graph.num_edges)[:-1][crystal], edge_count)
    owner = group_index(edge_count)
    center, neighbor = graph.center[edge] + shift[owner], graph.neighbor[edge] + shift[owner]
    # T M⁻¹ modulo 2 moves δ as the inverse does
    actions = torch.from_numpy(_inverse_actions()).to(batch.device)
    bits = cell_index(wrap)
    label = actions[element[owner], cell_index(graph.image)[edge]] ^ bits[center] ^ bits[neighbor]
    x = _network(kind[atom], distance[edge], label, center, neighbor)
    weight = torch.tensor([1.0, 0.6180339887498949], dtype=torch.float64, device=batch.device)
    total = torch.zeros(len(crystal), dtype=torch.float64, device=batch.device)
    return total.index_add_(0, group_index(atom_count), x @ weight)


def _inverse_actions() -> np.ndarray:
    return np.argsort(cell_actions(), axis=1)


def _kind(atomic_numbers: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms 2"]:
    """Two numbers that tell elements apart."""
    steps = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    return torch.frac(atomic_numbers[:, None].double() * steps.to(atomic_numbers.device)) * 6


def _network(
    x: Float[Tensor, "atoms 2"],
    distance: Float[Tensor, " edges"],
    label: Int[Tensor, " edges"],
    center: Int[Tensor, " edges"],
    neighbor: Int[Tensor, " edges"],
) -> Float[Tensor, "atoms 2"]:
    """Smooth numbers of atoms that depend on their surroundings, edge labels included, and on nothing else.

    The constants are irrational and have no other meaning.
    """
    phases = torch.arange(8, dtype=torch.float64)[:, None] * torch.tensor(
        [2.3999632297286535, 1.1283791670955126]
    )
    phase = (phases + torch.sin(phases)).to(x.device)[label]
    phase += distance[:, None] * torch.tensor([1.7724538509055159, 2.6651441426902251]).to(x)
    for _ in range(_ROUNDS):
        message = torch.sin(x[neighbor] + phase)
        x = torch.sin(1.3 * x.flip(1) + torch.zeros_like(x).index_add_(0, center, message) + x)
    return x


def _rarest(
    value: Float[Tensor, " atoms"], crystal: Int[Tensor, " atoms"], crystals: int
) -> Int[Tensor, " origins"]:
    """The atoms of the smallest class of equal values of each crystal; of the lowest value where classes
    tie."""
    order = torch.argsort(value, stable=True)
    order = order[torch.argsort(crystal[order], stable=True)]
    v, c = value[order], crystal[order]
    new = torch.ones(len(v), dtype=torch.bool, device=v.device)
    new[1:] = (c[1:] != c[:-1]) | (v[1:] - v[:-1] > 1e3 * SAME_SIGNATURE)
    label = torch.cumsum(new, 0) - 1
    size = torch.bincount(label)
    owner = c[new]
    least = torch.full((crystals,), len(v), dtype=torch.int64, device=v.device)
    least.scatter_reduce_(0, owner, size, "amin")
    smallest = torch.nonzero(size == least[owner])[:, 0]
    first = torch.full((crystals,), len(size), dtype=torch.int64, device=v.device)
    first.scatter_reduce_(0, owner[smallest], smallest, "amin")
    return torch.sort(order[label == first[c]]).values
