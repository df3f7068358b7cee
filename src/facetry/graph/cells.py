"""Graphs whose edges know which of the 2 x 2 x 2 cells they lead to: Voronoi bonds, and all atoms in a
sphere.

An edge from atom p to the image T of atom q leads, in every cell c of the supercell, to the cell c + T
modulo 2; one tessellation of the primitive cell serves all eight. T depends on how the crystal is written
down; `facetry.graph.description` chooses that by the crystal itself.
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
from facetry.geometry.components import connected_components
from facetry.geometry.groups import cell_offsets
from facetry.geometry.lattice import metric
from facetry.geometry.ragged import items_in
from facetry.geometry.reduction import niggli_reduce, working_copy
from facetry.graph import neighbors
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import Builder, primitive_cells
from facetry.graph.description import WRAP, cell_index, chosen_description
from facetry.graph.neighbors import GraphError, crystal_name

log = logging.getLogger(__name__)
LARGEST_CELL = 50  # atoms of a primitive cell; larger ones are outside of what was published
LEAST_FACE = 1e-6  # Å²; smaller faces of a Voronoi cell are an edge or a corner, blurred by rounding
_NEAR = 2.0  # times the cube root of the volume of an atom: how far the first tessellation looks


@dataclass(frozen=True)
class CellGraph(Builder):
    """What both graphs share: primitive cell, choice of the description."""

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Primitive cell in the description that the crystal chooses, with edges; -T follows from both
        ends."""
        num_input_atoms = batch.num_atoms
        batch, atom_map = primitive_cells(replace(batch, composition=None))
        lattice, transform = niggli_reduce(batch.lattice)
        back = torch.linalg.inv(transform.to(lattice.dtype)).round()
        frac = torch.einsum("na,nab->nb", batch.frac_coords, back[batch.crystal_index])
        frac = frac - torch.floor(frac.detach() + WRAP)
        batch = self.connect(replace(batch, lattice=lattice, frac_coords=frac), names)
        return replace(chosen_description(batch), atom_map=atom_map, num_input_atoms=num_input_atoms)

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
        pairs = neighbors.pairs_within(batch, self.cutoff + neighbors.SHELL_GAP / 2)
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
        pairs = neighbors.pairs_within(batch, self.cutoff)
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
            raise GraphError.of(
                {crystal: f"{crystal_name(names, crystal)}: {reason}" for crystal in open_cells}
            )
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
        atoms = items_in(again, batch.num_atoms)
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


def _check_radii(batch: Batch, names: Sequence[str]) -> None:
    wrong = torch.nonzero(batch.atomic_numbers >= len(COVALENT_RADII))[:, 0].flip(0)  # the first stays
    if len(wrong):
        pairs = zip(batch.crystal_index[wrong].tolist(), batch.atomic_numbers[wrong].tolist(), strict=True)
        last = SYMBOLS[len(COVALENT_RADII) - 1]
        known = f"expected elements up to {last} for Voronoi bonds; use a radius graph"
        raise GraphError.of(
            {c: f"{crystal_name(names, c)}: {SYMBOLS[z]} has no covalent radius; {known}" for c, z in pairs}
        )


def _tell_of_large_cells(batch: Batch, names: Sequence[str]) -> None:
    for crystal in torch.nonzero(batch.num_atoms > LARGEST_CELL)[:, 0].tolist():
        count = int(batch.num_atoms[crystal])
        log.warning(
            "%s: %d atoms in the primitive cell, %d in the supercell; published networks saw at most %d."
            " Training needs about %.0f MB for it (100 channels, 6 layers), evaluation a sixth",
            crystal_name(names, crystal), count, 8 * count, LARGEST_CELL, count * 8 * _ATOM_BYTES / 1e6,
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
    graph = batch.require_graph()
    lonely = torch.nonzero(torch.bincount(graph.center, minlength=len(batch.frac_coords)) == 0)[:, 0].flip(0)
    owners, numbers = batch.crystal_index[lonely].tolist(), batch.atomic_numbers[lonely].tolist()
    reasons = {
        crystal: f"{crystal_name(names, crystal)}: an atom of {SYMBOLS[z]} has no bond; expected one at least"
        "; use a larger slack or a radius graph, or leave this crystal out"
        for crystal, z in zip(owners, numbers, strict=True)
    }
    cells = np.arange(8)
    delta = cell_index(graph.image).cpu().numpy()
    center, neighbor = (t.cpu().numpy()[:, None] * 8 for t in (graph.center, graph.neighbor))
    rows, columns = (center + cells).ravel(), (neighbor + (cells ^ delta[:, None])).ravel()
    parts, label = connected_components(rows, columns, 8 * len(batch.frac_coords))
    if parts > len(batch):
        owner = np.empty(parts, dtype=np.int64)
        owner[label] = np.repeat(batch.crystal_index.cpu().numpy(), 8)
        pieces = np.bincount(owner, minlength=len(batch))
        for crystal in np.flatnonzero(pieces > 1).tolist():
            message = (
                f"its bonds leave the 2 x 2 x 2 supercell in {pieces[crystal]} parts; expected a network"
            )
            message += " in three dimensions; use a larger slack or a radius graph, or leave this crystal out"
            reasons.setdefault(crystal, f"{crystal_name(names, crystal)}: {message}")
    if reasons:
        raise GraphError.of(reasons)
