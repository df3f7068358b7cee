"""Every image of every atom, the atom itself included: in a sphere, or in a box of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from facetry.elements import MAX_ATOMIC_NUMBER, SYMBOLS
from facetry.geometry.frames import tied_frames
from facetry.geometry.lattice import plane_spacings
from facetry.geometry.ragged import grids, group_index, items_in, offsets, ranks
from facetry.graph import neighbors
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import Builder, primitive_cells
from facetry.graph.neighbors import COINCIDE, SHELL_GAP, GraphError, Pairs, crystal_name, reduced

_MOST_IMAGES = 1 << 22  # edges of one crystal in a box of cells
_NEAR = 0.5  # Å; sites that may be one are looked for this far, which costs no more than 1e-3
SLACK = 0.05  # occupancies on one spot that add up to 1.05 are rounded numbers


@dataclass(frozen=True)
class Sphere(Builder):
    """All images of all atoms within a sphere around each atom, the atom itself (at distance zero) included,
    in the primitive reduced cell: a set that no choice of cell, origin or supercell changes.

    `spanning` widens the sphere of crystals with large gaps, those where all neighbours of an atom lie on one
    line or there are none, to the second shortest translation: then they span a plane and a frame exists.
    `primitive=False` keeps the atoms of the given cell, `as_listed` with it the given cell itself and the
    images in which the atoms are listed. `lattice_frames` adds the tied frames of the lattice.
    Elements beyond `heaviest` are refused.

    A site of a disordered crystal is one atom with a composition. Sites on one spot are joined, if together
    they hold one atom at most: however a file distributes the species of a spot over lines, the graph is one.
    """

    cutoff: float = 7.0  # Å
    primitive: bool = True
    spanning: bool = False
    heaviest: int = MAX_ATOMIC_NUMBER
    as_listed: bool = False
    lattice_frames: bool = False

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise ValueError(f"sphere of neighbours: expected a cutoff above 0 Å, came {self.cutoff}")
        if self.as_listed and self.primitive:
            raise ValueError(
                "sphere of neighbours: as_listed keeps the given cell; pass primitive=False with it"
            )

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Primitive cell, neighbours within the sphere, and one edge of every atom to itself."""
        _check_elements(batch, names, self.heaviest)
        num_input_atoms = batch.num_atoms
        batch, atom_map = _joined(batch, names)
        if self.primitive:
            batch, copy_of = primitive_cells(batch)
            atom_map = copy_of[atom_map]
        listed = batch
        batch, transform, wrap = reduced(batch)
        pairs = neighbors.pairs_within(batch, self.cutoff)
        if self.spanning:
            pairs = _widened(batch, pairs, self.cutoff)
        neighbors.check_distinct(batch, pairs, names)
        own = torch.arange(len(batch.frac_coords), device=batch.device)
        pairs = neighbors.sorted_pairs(
            torch.cat([own, pairs.center]),
            torch.cat([own, pairs.neighbor]),
            torch.cat([pairs.image.new_zeros((len(own), 3)), pairs.image]),
            torch.cat([pairs.distance.new_zeros(len(own)), pairs.distance]),
        )
        if self.as_listed:
            every = torch.ones_like(pairs.center, dtype=torch.bool)
            graph, batch = neighbors.in_given_cell(batch, pairs, every, transform, wrap), listed
        else:
            counts = neighbors.edge_counts(batch, pairs.center)
            graph = PeriodicGraph(pairs.center, pairs.neighbor, pairs.image, counts)
        frames = tied_frames(batch.lattice) if self.lattice_frames else None
        return replace(batch, graph=graph, frames=frames, atom_map=atom_map, num_input_atoms=num_input_atoms)


def _check_elements(batch: Batch, names: Sequence[str], heaviest: int) -> None:
    composition = batch.composition
    element = batch.atomic_numbers if composition is None else composition.atomic_numbers
    beyond = torch.nonzero(element > heaviest)[:, 0]
    if not len(beyond):
        return
    site = beyond if composition is None else composition.site[beyond]
    crystal = batch.crystal_index[site]
    first = int(crystal[0])
    found = sorted({SYMBOLS[z] for z in element[beyond[crystal == first]].tolist()})
    raise GraphError(
        f"{crystal_name(names, first)}: expected elements up to {SYMBOLS[heaviest]}"
        f" ({heaviest}), came {', '.join(found)}; leave this crystal out or use another model"
    )


def _joined(batch: Batch, names: Sequence[str]) -> tuple[Batch, Int[Tensor, " atoms"]]:
    """Partly occupied sites on one spot as one site with all their species, and the site that each became.

    Raises GraphError naming the crystal where more than one atom would be on a spot.
    """
    root = torch.arange(len(batch.frac_coords), device=batch.device)
    if batch.composition is None:
        return batch, root
    occupancy = batch.composition.occupancy()
    vacant = torch.unique(batch.crystal_index[occupancy < 1])
    if not len(vacant):
        return batch, root
    part, _, _ = reduced(neighbors.bare(batch).select(vacant))
    pairs = neighbors.pairs_within(part, _NEAR)
    atoms = items_in(vacant, batch.num_atoms)
    close = (pairs.distance < COINCIDE) & (pairs.center != pairs.neighbor)
    first, second = atoms[pairs.center[close]], atoms[pairs.neighbor[close]]
    if not len(first):
        return batch, root
    while not torch.equal(root[first], root[second]):  # the lowest number goes round
        root = root.scatter_reduce(0, first, root[second], "amin")
    kept, into = torch.unique(root, return_inverse=True)
    total = occupancy.new_zeros(len(kept)).index_add(0, into, occupancy)
    crowded = torch.nonzero((total > 1 + SLACK) & (torch.bincount(into) > 1))[:, 0]
    if len(crowded):
        site, crystal = int(kept[crowded[0]]), int(batch.crystal_index[kept[crowded[0]]])
        number = site - int(offsets(batch.num_atoms)[crystal]) + 1
        raise GraphError(
            f"{crystal_name(names, crystal)}: {float(total[crowded[0]]):.3g} atoms on the spot of"
            f" site {number}; expected one at most; remove one of them or give occupancies that add up to 1"
        )
    weight = occupancy[:, None]
    apart = batch.frac_coords - batch.frac_coords[root]
    apart = (apart - apart.detach().round()) * weight
    apart = torch.zeros_like(apart[: len(kept)]).index_add(0, into, apart) / total[:, None]
    return replace(
        batch,
        frac_coords=batch.frac_coords[kept] + apart,
        atomic_numbers=batch.atomic_numbers[kept],
        num_atoms=torch.bincount(batch.crystal_index[kept], minlength=len(batch)),
        composition=batch.composition.joined(into),
    ), into


@dataclass(frozen=True)
class Box(Builder):
    """All images in a box of cells around the cell of every atom, the atom itself included: the published
    construction of Crystalformer, for comparison.

    The cell, its atoms and their images are taken as given, so each of them matters. The box goes as far
    along every lattice vector as a sphere of `cutoff` needs between opposite faces, two cells at least.
    Elements, disordered sites and `lattice_frames`: as in `Sphere`.
    """

    cutoff: float = 6.94  # Å
    lattice_frames: bool = False
    heaviest: int = MAX_ATOMIC_NUMBER

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise ValueError(f"box of neighbours: expected a cutoff above 0 Å, came {self.cutoff}")

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Every ordered pair of atoms with every cell of the box."""
        _check_elements(batch, names, self.heaviest)
        num_input_atoms = batch.num_atoms
        batch, atom_map = _joined(batch, names)
        half = torch.ceil(self.cutoff / plane_spacings(batch.lattice)).long().clamp(min=2)
        cells, n = (2 * half + 1).prod(1), batch.num_atoms
        counts = n * n * cells
        most = int(counts.argmax())
        if int(counts[most]) > _MOST_IMAGES:
            raise GraphError(
                f"{crystal_name(names, most)}: expected {_MOST_IMAGES} images in its box of cells at"
                f" most, came {int(counts[most])}; use construction='sphere', or a reduced or smaller cell"
            )
        crystal = group_index(counts)
        _, point = grids(-half, half)
        rank = ranks(counts)
        pair = torch.div(rank, cells[crystal], rounding_mode="floor")
        image = point[offsets(cells)[:-1][crystal] + rank - pair * cells[crystal]]
        own = torch.div(pair, n[crystal], rounding_mode="floor")
        start = offsets(n)[:-1][crystal]
        center, neighbor = start + own, start + pair - own * n[crystal]
        frames = None
        if self.lattice_frames:
            small, transform, _ = reduced(batch)
            frames = tied_frames(small.lattice)
            exact = batch.lattice.dtype
            integer = torch.bmm(frames.integer.to(exact), transform.to(exact)[frames.crystal])
            frames = replace(frames, integer=integer.round().long())
        batch = replace(
            batch,
            frames=frames,
            graph=PeriodicGraph(center, neighbor, image, counts),
            atom_map=atom_map,
            num_input_atoms=num_input_atoms,
        )
        distance = batch.edge_vectors().norm(dim=1)
        other = (center != neighbor) | (image != 0).any(1)
        pairs = Pairs(center[other], neighbor[other], image[other], distance[other])
        neighbors.check_distinct(batch, pairs, names)
        return batch


def _widened(batch: Batch, pairs: Pairs, cutoff: float) -> Pairs:
    """The pairs, out to the second shortest translation for crystals where some atom sees no plane."""
    vector = batch.frac_coords[pairs.neighbor] - batch.frac_coords[pairs.center] + pairs.image
    vector = torch.einsum("ea,eab->eb", vector, batch.lattice[batch.crystal_index[pairs.center]])
    direction = vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-12)
    counts = torch.bincount(pairs.center, minlength=len(batch.frac_coords))
    first = offsets(counts)[:-1][pairs.center]
    aside = (direction * direction[first]).sum(1).abs() < 0.999
    sees = torch.zeros(len(counts), dtype=torch.bool, device=batch.device)
    sees[pairs.center[aside]] = True
    apart = torch.unique(batch.crystal_index[~sees])
    if not len(apart):
        return pairs
    part = neighbors.bare(batch).select(apart)
    second = part.lattice.norm(dim=2).sort(dim=1).values[:, 1]
    more = neighbors.pairs_within(part, (second + SHELL_GAP).clamp(min=cutoff))
    return neighbors.replaced_pairs(batch, pairs, apart, more)
