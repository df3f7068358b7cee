"""What a model reads: builders turn crystals into a batch with a graph.

A model names its builder (`self.graph = LatticeKNearest(k=25)`); loaders and tasks call it, so no loader
knows a model. Builders are frozen, and `describe()` says all that decides their result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from facetry.crystal import Crystal
from facetry.geometry.primitive import primitive_cell
from facetry.graph import neighbors
from facetry.graph.batch import Batch
from facetry.graph.neighbors import SHELL_GAP, GraphError, nearest_pairs, reduced

_CHUNK = 256  # crystals searched at once


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


def primitive_cells(batch: Batch) -> tuple[Batch, Int[Tensor, " atoms"]]:
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


def _in_primitive(batch: Batch) -> Batch:
    """The primitive, reduced cells of the crystals, with the map from the atoms that were given."""
    cells, copy_of = primitive_cells(batch)
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
        pairs = neighbors.pairs_within(small, self.cutoff)
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
