"""The geometrically complete graph of ComFormer: neighbours, lattice vectors, and the frames these form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.frames import continuous_frames, published_frame, tied_frames
from facetry.geometry.frameset import FrameSet
from facetry.geometry.ragged import group_index, items_in
from facetry.geometry.ties import Edges, canonical_frames, frame_vector_weights, tie_classes
from facetry.graph import neighbors
from facetry.graph.batch import Batch, PeriodicGraph
from facetry.graph.builders import Builder, primitive_cells
from facetry.graph.connected import disconnected
from facetry.graph.neighbors import SHELL_GAP, GraphError, Pairs, crystal_name, nearest_pairs, reduced

log = logging.getLogger(__name__)
SAME_GRAPH = 1e-4  # Å, or a cosine: frames whose graphs differ by less, root mean square, are one class
MOST_EDGES = 1 << 21  # classes times edges of one crystal: about ten seconds on two cores
_LARGEST_K = 512


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
                    f"{crystal_name(names, first)}: expected an ordered crystal, came shared or"
                    " partly vacant sites; pick one ordering, or use a model that takes mixtures"
                    " (crystalformer, crystalframer)"
                )
            batch = replace(batch, composition=None)
        published = self.frames == "published"
        num_input_atoms = batch.num_atoms
        atom_map = torch.arange(len(batch.frac_coords), device=batch.device)
        frames = published_frame(batch.lattice) if published else None
        if self.primitive and not published:
            batch, atom_map = primitive_cells(batch)
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
                raise GraphError(
                    f"{crystal_name(names, int(split[0]))}: its graph falls into unconnected parts even with"
                    f" {_LARGEST_K} neighbours an atom; expected one crystal; split it into its layers or"
                    " molecules, or reduce the vacuum"
                )
            wanted[split] = k
            part = neighbors.bare(batch).select(split)
            more, more_radius = nearest_pairs(part, k, [names[i] for i in split.tolist()], gap)
            pairs = neighbors.replaced_pairs(batch, pairs, split, more)
            radius = radius.index_copy(0, items_in(split, batch.num_atoms), more_radius)
            keep = _either_end(pairs, radius, gap)
            split = disconnected(batch, pairs.center[keep], pairs.neighbor[keep])
        for crystal in torch.nonzero(wanted > self.k)[:, 0].tolist():
            log.info(
                "%s: %d neighbours instead of %d, to connect its graph",
                crystal_name(names, crystal), int(wanted[crystal]), self.k,
            )  # fmt: skip
        return pairs, radius, keep

    def _classes(self, batch: Batch) -> FrameSet:
        graph, frames = batch.require_graph(), batch.frames
        assert frames is not None
        z = batch.atomic_numbers
        edges = Edges(
            batch.edge_crystal,
            graph.center,
            graph.neighbor,
            z[graph.center],
            z[graph.neighbor],
            batch.edge_vectors(),
        )
        if self.frames == "canonical":
            return canonical_frames(frames, edges, batch.lattice, SAME_GRAPH)
        return tie_classes(frames, edges, batch.lattice, SAME_GRAPH, MOST_EDGES)


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
    vector = group_index(batch.num_atoms[crystal])
    atom = items_in(crystal, batch.num_atoms)
    outside = length[vector] > reach[atom]
    atom, vector = atom[outside], vector[outside]
    image, weight = integer[vector], share[vector].to(batch.lattice.dtype)
    return torch.cat([atom, atom]), torch.cat([image, -image]), torch.cat([weight, weight])
