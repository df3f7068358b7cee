"""What a model reads: builders turn crystals into a batch with a graph.

A model names its builder (`self.graph = LatticeKNearest(k=25)`); loaders and tasks call it, so no loader
knows a model. Builders are frozen, and `describe()` says all that decides their result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.crystal import Crystal
from facetry.elements import MAX_ATOMIC_NUMBER, SYMBOLS
from facetry.geometry.frames import continuous_frames, published_frame, tied_frames
from facetry.geometry.frameset import FrameSet
from facetry.geometry.lattice import plane_spacings
from facetry.geometry.primitive import primitive_cell
from facetry.geometry.ragged import grids, group_index, offsets, ranges
from facetry.geometry.ties import canonical_frames, frame_vector_weights, tie_classes
from facetry.graph import neighbors
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.neighbors import COINCIDE, SHELL_GAP, GraphError, Pairs, nearest_pairs, reduced

log = logging.getLogger(__name__)
SAME_GRAPH = 1e-4  # Å, or a cosine: frames whose graphs differ by less, root mean square, are one class
MOST_EDGES = 1 << 21  # classes times edges of one crystal: about ten seconds on two cores
_CHUNK = 256  # crystals searched at once
_LARGEST_K = 512
_MOST_IMAGES = 1 << 22  # edges of one crystal in a box of cells
_NEAR = 0.5  # Å; sites that may be one are looked for this far, which costs no more than 1e-3
SLACK = 0.05  # occupancies on one spot that add up to 1.05 are rounded numbers
_STEPS = 3


class Builder:
    """Turns crystals into a batch with a graph, a few hundred crystals at a time."""

    def __call__(self, crystals: Sequence[Crystal]) -> Batch:
        """Crystals with their graph; raises GraphError naming the crystal that has none."""
        if not len(crystals):
            raise GraphError("expected at least one crystal, came an empty list")
        parts = []
        for first in range(0, len(crystals), _CHUNK):
            chosen = crystals[first : first + _CHUNK]
            names = getattr(chosen, "names", None)  # a table knows them without making crystals
            names = [c.name for c in chosen] if names is None else [str(n) for n in names]
            try:
                parts.append(self.build(Batch.from_crystals(chosen), names))
            except GraphError as error:
                raise error.shifted(first) from None
        return Batch.collate(parts)

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """The graph of crystals that are in a batch already, on the batch's device."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Class and settings, for `model.json` and cache keys."""
        return {"builder": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class NoGraph(Builder):
    """Crystals as they are: for models that search neighbours themselves."""

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        return batch


@dataclass(frozen=True)
class LatticeKNearest(Builder):
    """The geometrically complete graph of ComFormer: k nearest neighbours with whole shells, joined from
    both ends, the lattice vectors e1, e2, e3 as self-edges, and the frames they form (Yan 2024, Sec. 3).

    Crystals are brought to their primitive, reduced cell with wrapped atoms first, so that every
    description of one crystal gives one graph. `frames` says what happens where several triples
    e1, e2, e3 are equally short, as in most crystals of high symmetry:

    - "average": one frame for each class of inequivalent graphs, weighted by its share (exactly invariant);
      beyond two million edges times classes only the classes with the smallest signatures;
    - "canonical": the class with the smallest signature (exactly invariant, one pass, not continuous);
    - "continuous": triples up to 0.1 Å longer too, with weights that vanish continuously;
    - "published": the first in the order of the search, ties decided by round-off, exact k-th distance,
      the cell as given, self-image bonds twice: the published code's construction, for comparison.

    A graph that is not connected does not determine its crystal; there k is raised until it is, and the
    log says so.
    """

    k: int = 25
    frames: Literal["average", "canonical", "continuous", "published"] = "average"
    reference_duplicates: bool = False
    primitive: bool = True
    gap: float = SHELL_GAP
    angles: bool = True  # False: lattice vectors as self-edges only, no frames kept

    def __post_init__(self) -> None:
        if self.frames not in ("average", "canonical", "continuous", "published"):
            raise ValueError(
                f"frames: expected average, canonical, continuous or published, came {self.frames!r}"
            )

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Primitive cell, neighbours, frames, self-edges, tie classes."""
        if batch.composition is not None:
            disordered = batch.crystal_index[batch.composition.mixed()]
            if len(disordered):
                first = int(disordered[0])
                raise GraphError(
                    f"{names[first] or f'crystal {first}'}: expected an ordered crystal, came shared or"
                    " partly vacant sites; pick one ordering, or use a model that takes mixtures"
                    " (crystalformer, crystalframer)"
                )
            batch = replace(batch, composition=None)
        published = self.frames == "published"
        num_input_atoms = batch.num_atoms
        atom_map = torch.arange(len(batch.frac_coords), device=batch.device)
        frames = published_frame(batch.lattice) if published else None
        if self.primitive and not published:
            cells = primitive_cell(batch.lattice, batch.frac_coords, batch.atomic_numbers, batch.num_atoms)
            batch = Batch(cells.lattice, cells.frac_coords, cells.atomic_numbers, cells.num_atoms)
            atom_map = cells.atom_map
        batch, transform, _ = reduced(batch)
        if frames is None:
            choose = continuous_frames if self.frames == "continuous" else tied_frames
            frames = choose(batch.lattice)
        else:
            frames = _in_reduced_cell(frames, transform)
        graph = self._graph(batch, frames, names)
        batch = replace(
            batch,
            graph=graph,
            frames=frames if self.angles else None,
            atom_map=atom_map,
            num_input_atoms=num_input_atoms,
        )
        if self.angles and not published:
            batch = replace(batch, frames=self._classes(batch))
        return batch

    def _graph(self, batch: Batch, frames: FrameSet, names: Sequence[str]) -> PeriodicGraph:
        gap = 0.0 if self.frames == "published" else self.gap
        pairs, radius = nearest_pairs(batch, self.k, names, gap)
        keep = _either_end(pairs, radius, gap)
        pairs, radius, keep = self._connect(batch, pairs, radius, keep, names, gap)
        center, neighbor, image = pairs.center[keep], pairs.neighbor[keep], pairs.image[keep]
        weight = torch.ones(len(center), dtype=batch.lattice.dtype, device=batch.device)
        if self.reference_duplicates or self.frames == "published":
            own = center == neighbor
            center, neighbor, image, weight = (
                torch.cat([t, t[own]]) for t in (center, neighbor, image, weight)
            )
        extra = _self_edges(batch, frames, radius + gap / 2)
        center = torch.cat([center, extra[0]])
        neighbor = torch.cat([neighbor, extra[0]])
        image = torch.cat([image, extra[1]])
        weight = torch.cat([weight, extra[2]])
        order = torch.argsort(center, stable=True)
        center = center[order]
        return PeriodicGraph(
            center,
            neighbor[order],
            image[order],
            neighbors.edge_counts(batch, center),
            weight[order] if bool((weight != 1).any()) else None,
        )

    def _connect(
        self,
        batch: Batch,
        pairs: Pairs,
        radius: Float[Tensor, " atoms"],
        keep: Tensor,
        names: Sequence[str],
        gap: float,
    ) -> tuple[Pairs, Float[Tensor, " atoms"], Tensor]:
        """Raises k, crystal by crystal, until every graph is connected."""
        split = disconnected(batch, pairs.center[keep], pairs.neighbor[keep])
        if not len(split):
            return pairs, radius, keep
        k = self.k
        wanted = torch.full((len(batch),), k, dtype=torch.int64, device=batch.device)
        while len(split):
            k = int(k * 1.5) + 1
            if k > _LARGEST_K:
                name = names[int(split[0])] or f"crystal {int(split[0])}"
                raise GraphError(
                    f"{name}: its graph falls into unconnected parts even with {_LARGEST_K} neighbours an"
                    " atom; expected one crystal; split it into its layers or molecules, or reduce the vacuum"
                )
            wanted[split] = k
            part = neighbors.bare(batch).select(split)
            atoms = ranges(offsets(batch.num_atoms)[:-1][split], part.num_atoms)
            more, more_radius = nearest_pairs(part, k, [names[i] for i in split.tolist()], gap)
            stale = torch.zeros(len(batch.frac_coords), dtype=torch.bool, device=batch.device)
            stale[atoms] = True
            rest = ~stale[pairs.center]
            pairs = Pairs(
                torch.cat([pairs.center[rest], atoms[more.center]]),
                torch.cat([pairs.neighbor[rest], atoms[more.neighbor]]),
                torch.cat([pairs.image[rest], more.image]),
                torch.cat([pairs.distance[rest], more.distance]),
            )
            radius = radius.clone()
            radius[atoms] = more_radius
            keep = _either_end(pairs, radius, gap)
            split = disconnected(batch, pairs.center[keep], pairs.neighbor[keep])
        for crystal in torch.nonzero(wanted > self.k)[:, 0].tolist():
            name = names[crystal] or f"crystal {crystal}"
            log.info(
                "%s: %d neighbours instead of %d, to connect its graph", name, int(wanted[crystal]), self.k
            )
        return pairs, radius, keep

    def _classes(self, batch: Batch) -> FrameSet:
        graph, frames = batch.require_graph(), batch.frames
        assert frames is not None
        edges = (
            batch.edge_crystal,
            batch.atomic_numbers[graph.center],
            batch.atomic_numbers[graph.neighbor],
            batch.edge_vectors(),
            batch.lattice,
            SAME_GRAPH,
        )
        ends = {"center": graph.center, "neighbor": graph.neighbor}
        if self.frames == "canonical":
            return canonical_frames(frames, *edges, **ends)
        return tie_classes(frames, *edges, **ends, most_edges=MOST_EDGES)


def _either_end(pairs: Pairs, radius: Float[Tensor, " atoms"], gap: float) -> Tensor:
    """Bonds inside the sphere of one of their ends; the list of pairs holds both directions."""
    reach = torch.maximum(radius[pairs.center], radius[pairs.neighbor])
    return pairs.distance <= reach + gap / 2


def _in_reduced_cell(frames: FrameSet, transform: Int[Tensor, "crystals 3 3"]) -> FrameSet:
    """Frame coefficients of the given cell in the reduced one (reduced lattice = transform @ lattice)."""
    exact = frames.weight.dtype
    inverse = torch.linalg.inv(transform.to(exact))[frames.crystal]
    return replace(frames, integer=(frames.integer.to(exact) @ inverse).round().long())


def _self_edges(
    batch: Batch, frames: FrameSet, reach: Float[Tensor, " atoms"]
) -> tuple[Tensor, Tensor, Tensor]:
    """+e and -e of every frame vector at every atom whose sphere does not hold them already.

    Weighted by the share of frames that contain the vector (comformer specification §1.5).
    """
    crystal, integer, share = frame_vector_weights(frames)
    length = torch.einsum("va,vab->vb", integer.to(batch.lattice.dtype), batch.lattice[crystal]).norm(dim=1)
    count = batch.num_atoms[crystal]
    vector = group_index(count)
    atom = ranges(offsets(batch.num_atoms)[:-1][crystal], count)
    outside = length[vector] > reach[atom]
    atom, vector = atom[outside], vector[outside]
    image, weight = integer[vector], share[vector].to(batch.lattice.dtype)
    return torch.cat([atom, atom]), torch.cat([image, -image]), torch.cat([weight, weight])


def disconnected(
    batch: Batch, center: Int[Tensor, " edges"], neighbor: Int[Tensor, " edges"]
) -> Int[Tensor, " crystals_apart"]:
    """The crystals whose graph falls into several parts (lattice translations count as connections)."""
    n = len(batch.frac_coords)
    # nearly always a few steps from the first atom reach all; cheaper than a matrix
    seen = torch.zeros(n, dtype=torch.bool, device=batch.device)
    seen[offsets(batch.num_atoms)[:-1]] = True
    for _ in range(_STEPS):
        seen[neighbor[seen[center]]] = True
        if bool(seen.all()):
            return center[:0]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = center.cpu().numpy(), neighbor.cpu().numpy()
    links = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    parts, label = connected_components(links, directed=False)
    if parts == len(batch):
        return torch.zeros(0, dtype=torch.int64, device=batch.device)
    label = torch.from_numpy(label).long().to(batch.device)
    lowest = torch.full((len(batch),), n, dtype=torch.int64, device=batch.device)
    highest = torch.zeros_like(lowest)
    lowest.scatter_reduce_(0, batch.crystal_index, label, "amin")
    highest.scatter_reduce_(0, batch.crystal_index, label, "amax")
    return torch.nonzero(lowest != highest)[:, 0]


def _in_primitive(batch: Batch) -> Batch:
    """The primitive, reduced cells of the crystals, with the map from the atoms that were given."""
    cells, copy_of = _primitive(batch)
    return replace(reduced(cells)[0], atom_map=copy_of, num_input_atoms=batch.num_atoms)


@dataclass(frozen=True)
class KNearest(Builder):
    """Each atom's k nearest neighbours with whole shells, directed, in the cell as given.

    `cutoff` (Å) leaves out what is farther, so that an atom in a gap may have fewer neighbours or none; a
    shell that begins within the gap beyond the cutoff belongs to it, lest rounding decide at round numbers.
    `primitive` works in the primitive cell: fewer atoms where a supercell was given.
    """

    k: int = 12
    gap: float = SHELL_GAP
    cutoff: float | None = None
    primitive: bool = False

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Neighbours searched in the reduced cell, images counted in the given one."""
        if self.primitive:
            batch = _in_primitive(batch)
        small, transform, wrap = reduced(batch)
        pairs, radius = nearest_pairs(small, self.k, names, self.gap)
        if self.cutoff is not None:
            radius = radius.clamp(max=self.cutoff)
        keep = pairs.distance <= radius[pairs.center] + self.gap / 2
        return replace(batch, graph=neighbors.in_given_cell(batch, pairs, keep, transform, wrap))


@dataclass(frozen=True)
class Radius(Builder):
    """All neighbours closer than `cutoff` (Å), in the cell as given; with `primitive` in the primitive cell,
    which has fewer atoms where a supercell was given."""

    cutoff: float = 5.0
    primitive: bool = False

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Neighbours searched in the reduced cell, images counted in the given one."""
        if self.primitive:
            batch = _in_primitive(batch)
        small, transform, wrap = reduced(batch)
        reach = torch.full((len(batch),), self.cutoff, dtype=batch.lattice.dtype, device=batch.device)
        pairs = neighbors.pairs_within(small, reach)
        neighbors.check_distinct(small, pairs, names)
        keep = torch.ones(len(pairs.center), dtype=torch.bool, device=batch.device)
        return replace(batch, graph=neighbors.in_given_cell(batch, pairs, keep, transform, wrap))


@dataclass(frozen=True)
class DensityRadius(Builder):
    """All neighbours closer than `factor` (V / n)^(1/3), in the cell as given: about 4/3 π factor³ an atom,
    whatever the crystal."""

    factor: float = 3.0

    def build(self, batch: Batch, names: Sequence[str]) -> Batch:
        """Neighbours searched in the reduced cell, images counted in the given one."""
        small, transform, wrap = reduced(batch)
        volume = torch.linalg.det(small.lattice).abs()
        pairs = neighbors.pairs_within(small, self.factor * (volume / batch.num_atoms) ** (1 / 3))
        neighbors.check_distinct(small, pairs, names)
        keep = torch.ones(len(pairs.center), dtype=torch.bool, device=batch.device)
        return replace(batch, graph=neighbors.in_given_cell(batch, pairs, keep, transform, wrap))


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
            batch, copy_of = _primitive(batch)
            atom_map = copy_of[atom_map]
        listed = batch
        batch, transform, wrap = reduced(batch)
        reach = torch.full((len(batch),), self.cutoff, dtype=batch.lattice.dtype, device=batch.device)
        pairs = neighbors.pairs_within(batch, reach)
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
    element = batch.atomic_numbers if composition is None else composition.element
    beyond = torch.nonzero(element > heaviest)[:, 0]
    if not len(beyond):
        return
    site = beyond if composition is None else composition.site[beyond]
    crystal = batch.crystal_index[site]
    first = int(crystal[0])
    found = sorted({SYMBOLS[z] for z in element[beyond[crystal == first]].tolist()})
    raise GraphError(
        f"{names[first] or f'crystal {first}'}: expected elements up to {SYMBOLS[heaviest]}"
        f" ({heaviest}), came {', '.join(found)}; leave this crystal out or use another model"
    )


def _primitive(batch: Batch) -> tuple[Batch, Int[Tensor, " atoms"]]:
    """Primitive cells, and the atom of these that each atom is a copy of."""
    composition = batch.composition
    kinds = batch.atomic_numbers if composition is None else composition.kinds(batch.atomic_numbers)
    cells = primitive_cell(batch.lattice, batch.frac_coords, kinds, batch.num_atoms)
    small = Batch(cells.lattice, cells.frac_coords, cells.atomic_numbers, cells.num_atoms)
    if composition is not None:
        every = torch.arange(len(kinds), device=kinds.device)
        kept = torch.full_like(cells.atomic_numbers, len(kinds))
        kept = kept.scatter_reduce(0, cells.atom_map, every, "amin")
        small = replace(
            small, atomic_numbers=batch.atomic_numbers[kept], composition=composition.select(kept)
        )
    return small, cells.atom_map


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
    pairs = neighbors.pairs_within(part, part.lattice.new_full((len(part),), _NEAR))
    atoms = ranges(offsets(batch.num_atoms)[:-1][vacant], part.num_atoms)
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
            f"{names[crystal] or f'crystal {crystal}'}: {float(total[crowded[0]]):.3g} atoms on the spot of"
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
                f"{names[most] or f'crystal {most}'}: expected {_MOST_IMAGES} images in its box of cells at"
                f" most, came {int(counts[most])}; use construction='sphere', or a reduced or smaller cell"
            )
        crystal = group_index(counts)
        _, point = grids(-half, half)
        rank = ranges(torch.zeros_like(counts), counts)
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
    atoms = ranges(offsets(batch.num_atoms)[:-1][apart], part.num_atoms)
    second = part.lattice.norm(dim=2).sort(dim=1).values[:, 1]
    more = neighbors.pairs_within(part, (second + SHELL_GAP).clamp(min=cutoff))
    keep = ~torch.isin(pairs.center, atoms)
    return neighbors.sorted_pairs(
        torch.cat([pairs.center[keep], atoms[more.center]]),
        torch.cat([pairs.neighbor[keep], atoms[more.neighbor]]),
        torch.cat([pairs.image[keep], more.image]),
        torch.cat([pairs.distance[keep], more.distance]),
    )
