"""Many crystals side by side in flat tensors, with the graph that connects their atoms.

    crystals   0 0 0 0 0 | 1 1 | 2 2 2          atoms of one crystal are consecutive
    edges      sorted by crystal, then by centre
    frames     sorted by crystal

The geometry stays float64 whatever the precision of the network: edges shorter than 1e-3 Å of round-off
would otherwise enter twice. A graph holds integers only; vectors are taken from the current lattice and
coordinates, so that gradients reach both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.crystal import Crystal
from facetry.geometry.frameset import FrameSet
from facetry.geometry.ragged import group_index, items_in, offsets, ranges
from facetry.graph.composition import Composition


@dataclass(frozen=True)
class PeriodicGraph:
    """Directed edges from a centre to an image of a neighbour; integers only.

    `center` and `neighbor` number the atoms of the whole batch, `image` counts lattice vectors, so that
    the edge vector is (frac_coords[neighbor] + image - frac_coords[center]) @ lattice (the convention of
    ASE, matscipy and vesin). Edges are sorted by centre. `weight` scales messages (None: all one).
    """

    center: Int[Tensor, " edges"]
    neighbor: Int[Tensor, " edges"]
    image: Int[Tensor, "edges 3"]
    num_edges: Int[Tensor, " crystals"]
    weight: Float[Tensor, " edges"] | None = None

    def __len__(self) -> int:
        return len(self.center)


@dataclass(frozen=True)
class Batch:
    """Crystals, their graph and their lattice frames in flat tensors.

    `atom_map` (input atoms -> rows of this batch) is there when a graph builder has merged
    translationally equivalent atoms into a primitive cell; `num_input_atoms` counts them per crystal.
    `composition` is there when some crystal is disordered; `atomic_numbers` are then majority species.
    """

    lattice: Float[Tensor, "crystals 3 3"]
    frac_coords: Float[Tensor, "atoms 3"]
    atomic_numbers: Int[Tensor, " atoms"]
    num_atoms: Int[Tensor, " crystals"]
    graph: PeriodicGraph | None = None
    frames: FrameSet | None = None
    atom_map: Int[Tensor, " input_atoms"] | None = None
    num_input_atoms: Int[Tensor, " crystals"] | None = None
    composition: Composition | None = None

    def __len__(self) -> int:
        return len(self.num_atoms)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.lattice.device

    @property
    def crystal_index(self) -> Int[Tensor, " atoms"]:
        """The crystal of every atom."""
        return group_index(self.num_atoms)

    @property
    def edge_crystal(self) -> Int[Tensor, " edges"]:
        """The crystal of every edge."""
        return group_index(self.require_graph().num_edges)

    def require_graph(self) -> PeriodicGraph:
        """The graph, or an error that says how to get one."""
        if self.graph is None:
            raise ValueError("this batch has no graph; build it with model.graph(crystals)")
        return self.graph

    def edge_vectors(self) -> Float[Tensor, "edges 3"]:
        """From each centre to its neighbour's image, in Å; differentiable in lattice and coordinates."""
        graph = self.require_graph()
        frac = self.frac_coords[graph.neighbor] - self.frac_coords[graph.center] + graph.image
        return torch.einsum("ea,eab->eb", frac, self.lattice[self.edge_crystal])

    def frame_vectors(self) -> Float[Tensor, "frames 3 3"]:
        """Rows e1, e2, e3 of every lattice frame, in Å; differentiable in the lattice."""
        if self.frames is None:
            raise ValueError("this batch has no lattice frames; build it with model.graph(crystals)")
        return self.frames.vectors(self.lattice)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device. Apple's MPS has no float64: there the geometry is float32."""
        single = torch.device(device).type == "mps"

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                if single and value.dtype == torch.float64:
                    value = value.float()
                return value.to(device)
            if isinstance(value, PeriodicGraph | FrameSet | Composition):
                return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def from_crystals(crystals: Sequence[Crystal]) -> Batch:
        """Crystals as they are, without a graph. Takes anything that offers flat arrays in one step."""
        flat = getattr(crystals, "flat_arrays", None)
        if flat is not None:
            lattice, frac_coords, atomic_numbers, num_atoms = flat()
            occupancies = getattr(crystals, "occupancies", None)
        else:
            lattice = np.array([c.lattice for c in crystals], dtype=float).reshape(-1, 3, 3)
            empty = np.zeros((0, 3))
            frac_coords = np.concatenate([empty, *(c.frac_coords for c in crystals)])
            numbers = [c.atomic_numbers for c in crystals]
            atomic_numbers = np.concatenate([np.zeros(0, dtype=np.int64), *numbers])
            num_atoms = np.array([len(n) for n in numbers], dtype=np.int64)
            occupancies = {i: c.occupancies for i, c in enumerate(crystals) if c.occupancies is not None}
        return Batch(
            torch.tensor(np.asarray(lattice), dtype=torch.float64),
            torch.tensor(np.asarray(frac_coords), dtype=torch.float64),
            torch.tensor(np.asarray(atomic_numbers), dtype=torch.int64),
            torch.tensor(np.asarray(num_atoms), dtype=torch.int64),
            composition=Composition.of(occupancies, atomic_numbers, num_atoms) if occupancies else None,
        )

    @staticmethod
    def collate(batches: Sequence[Batch]) -> Batch:
        """Batches one after the other as one batch. Raises ValueError where only some carry a graph, frames
        or an atom map; edges without weights count one beside edges with, crystals without a composition are
        ordered."""
        if len(batches) == 1:
            return batches[0]
        present = {f.name: sum(getattr(b, f.name) is not None for b in batches) for f in fields(Batch)}
        disordered = present.pop("composition")
        mixed = [name for name, count in present.items() if 0 < count < len(batches)]
        if mixed or not batches:
            reason = f"{', '.join(mixed)} in only some of them" if batches else "none"
            raise ValueError(f"expected batches that carry the same data, came {reason}; build all alike")
        atoms = [0, *np.cumsum([len(b.frac_coords) for b in batches]).tolist()]

        def cat(parts: Sequence[object], name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            return None if values[0] is None else torch.cat(values)

        def shifted(parts: Sequence[object], name: str) -> Tensor:
            return torch.cat([getattr(p, name).long() + s for p, s in zip(parts, atoms, strict=False)])

        graph = frames = composition = None
        if disordered:
            composition = Composition.concatenate(
                [b.composition or Composition.ordered(b.atomic_numbers, b.lattice) for b in batches]
            )
        if present["graph"]:
            graphs = [b.require_graph() for b in batches]
            if any(g.weight is not None for g in graphs):
                graphs = [
                    replace(g, weight=b.lattice.new_ones(len(g))) if g.weight is None else g
                    for b, g in zip(batches, graphs, strict=True)
                ]
            graph = PeriodicGraph(
                center=shifted(graphs, "center"),
                neighbor=shifted(graphs, "neighbor"),
                image=cat(graphs, "image"),
                num_edges=cat(graphs, "num_edges"),
                weight=cat(graphs, "weight"),
            )
        if present["frames"]:
            frames = FrameSet.concatenate([b.frames for b in batches])
        return Batch(
            lattice=cat(batches, "lattice"),
            frac_coords=cat(batches, "frac_coords"),
            atomic_numbers=cat(batches, "atomic_numbers"),
            num_atoms=cat(batches, "num_atoms"),
            graph=graph,
            frames=frames,
            atom_map=shifted(batches, "atom_map") if present["atom_map"] else None,
            num_input_atoms=cat(batches, "num_input_atoms"),
            composition=composition,
        )

    def select(self, indices: Int[Tensor, " chosen"] | Sequence[int]) -> Batch:
        """The chosen crystals in the given order, as a batch of their own."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        num_atoms, atom_start = self.num_atoms[chosen], offsets(self.num_atoms)[:-1][chosen]
        atoms = ranges(atom_start, num_atoms)
        shift = offsets(num_atoms)[:-1] - atom_start
        graph = atom_map = num_input_atoms = None
        if self.graph is not None:
            num_edges = self.graph.num_edges[chosen]
            edges = items_in(chosen, self.graph.num_edges)
            edge_shift = torch.repeat_interleave(shift, num_edges)
            weight = self.graph.weight
            graph = PeriodicGraph(
                center=self.graph.center[edges].long() + edge_shift,
                neighbor=self.graph.neighbor[edges].long() + edge_shift,
                image=self.graph.image[edges].long(),
                num_edges=num_edges,
                weight=None if weight is None else weight[edges],
            )
        if self.atom_map is not None and self.num_input_atoms is not None:
            num_input_atoms = self.num_input_atoms[chosen]
            rows = items_in(chosen, self.num_input_atoms)
            atom_map = self.atom_map[rows].long() + torch.repeat_interleave(shift, num_input_atoms)
        frames = None if self.frames is None else self.frames.select(chosen)
        return Batch(
            self.lattice[chosen],
            self.frac_coords[atoms],
            self.atomic_numbers[atoms].long(),
            num_atoms,
            graph,
            None if frames is None else replace(frames, integer=frames.integer.long()),
            atom_map,
            num_input_atoms,
            None if self.composition is None else self.composition.select(atoms),
        )

    def compact(self) -> Batch:
        """Integers in the narrowest type that holds them, for keeping a whole set in memory; `select`
        widens them again."""

        def narrow(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            if value is None:
                return None
            limit = torch.iinfo(dtype)
            if value.numel() and (value.min() < limit.min or value.max() > limit.max):
                return value
            return value.to(dtype)

        graph, frames = self.graph, self.frames
        if graph is not None:
            graph = replace(
                graph,
                center=narrow(graph.center, torch.int32),
                neighbor=narrow(graph.neighbor, torch.int32),
                image=narrow(graph.image, torch.int16),
            )
        if frames is not None:
            frames = replace(frames, integer=narrow(frames.integer, torch.int16))
        return replace(
            self,
            atomic_numbers=narrow(self.atomic_numbers, torch.int16),
            atom_map=narrow(self.atom_map, torch.int32),
            graph=graph,
            frames=frames,
            composition=None if self.composition is None else self.composition.compact(),
        )
