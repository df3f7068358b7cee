"""iComFormer and eComFormer: transformers on geometrically complete crystal graphs.

Yan, Fu, Qian, Qian, Ji: Complete and efficient graph transformers for crystal material property
prediction, ICLR 2024 (arXiv 2403.11857).

    atoms ──────────────► node layer 1 ─► node layers 2 ... L ─► mean over atoms ─► head
    edge lengths ─► f ───────┘   │              ▲
    e1, e2, e3 and angles ─► edge layer: f' ────┘       iComFormer: invariant, tells mirror images apart
    edge directions ─────► equivariant update (on x)    eComFormer: invariant under reflections too

Departures from the published code, all in the graph (`facetry.graph.LatticeKNearest`): the primitive
reduced cell whatever was given, whole coordination shells, every edge once, and all tied lattice frames
instead of the first one found: a random one of them in each training step, all classes averaged in
evaluation. `construction="published"` switches back for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.geometry.ragged import group_index, items_in, offsets, ranges
from facetry.graph.batch import Batch
from facetry.graph.complete import LatticeKNearest
from facetry.graph.neighbors import SHELL_GAP
from facetry.models.base import PropertyModel, Symmetry
from facetry.nn.attention import EdgewiseTransformer, NodewiseTransformer
from facetry.nn.basis import GaussianBasis, ScalarEmbedding, distinct
from facetry.nn.convolution import EquivariantUpdate, spherical_harmonics
from facetry.nn.embedding import ElementTable, LearnedElements
from facetry.nn.readout import Head
from facetry.nn.segment import segment_mean, segment_sum

Construction = Literal["average", "canonical", "continuous", "published"]
BASIS_SIZE = 256
_WIDEST_GAP = 0.2  # Å; shells would run into one another without end
_VIEW_EDGES = 65536  # edges times frames evaluated at once


class _ComFormer(PropertyModel):
    """What both share: embeddings, node layers, readout."""

    def __init__(
        self,
        outputs: int,
        layers: int,
        channels: int,
        atom_features: Literal["table", "learned"],
        graph: LatticeKNearest,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"ComFormer: expected at least one node layer, came layers={layers}")
        if not 0 <= graph.gap <= _WIDEST_GAP:
            raise ValueError(f"ComFormer: expected a gap from 0 to {_WIDEST_GAP} Å, came {graph.gap}")
        kinds = {"table": ElementTable, "learned": LearnedElements}
        if atom_features not in kinds:
            raise ValueError(f"ComFormer: expected atom_features of table or learned, came {atom_features!r}")
        self.outputs = outputs
        self.channels = channels
        self.graph = graph
        self.atoms = kinds[atom_features](channels)
        # -0.75 / d: fine for bonds, coarse for far neighbours; lattice lengths use the same weights
        self.length = ScalarEmbedding(GaussianBasis(-4.0, 0.0, BASIS_SIZE), channels)
        self.layers = nn.ModuleList(NodewiseTransformer(channels) for _ in range(layers))
        self.head = Head(channels, outputs)

    def _symmetry(self, reflection: bool) -> Symmetry:
        """The published construction lets round-off decide ties: of lattice vectors, and of the k-th
        neighbour, which a shift of the origin changes too."""
        if self.graph.frames == "published":
            return Symmetry(
                rotation=False, translation=False, lattice_basis=False, supercell=False, reflection=False
            )
        return Symmetry(reflection=reflection)

    def lengths(self, d: Float[Tensor, " items"]) -> Float[Tensor, "items channels"]:
        """Embedded lengths in Å, of edges and of lattice vectors."""
        return self.length(-0.75 / d)

    def forward(self, batch: Batch) -> Float[Tensor, "crystals outputs"]:
        return self._over_frames(batch, self.head)[0]

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        return self._over_frames(batch, lambda pooled: pooled)[0]

    def forward_with_embedding(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "crystals outputs"], Float[Tensor, "crystals channels"]]:
        """Outputs and pooled vectors, each averaged over the frames of its crystal."""
        return self._over_frames(batch, self.head, lambda pooled: pooled)

    def _over_frames(self, batch: Batch, *functions: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        """Functions of the pooled vector, averaged over frames."""
        parts = self._evaluate(batch)
        weights, crystals = [p.weight for p in parts], [p.crystal for p in parts]
        return tuple(_average([f(p.pooled) for p in parts], weights, crystals, len(batch)) for f in functions)

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        parts = self._evaluate(batch)
        return _average(
            [p.x for p in parts],
            [p.weight.index_select(0, p.view) for p in parts],
            [p.atom for p in parts],
            len(batch.frac_coords),
        )

    def _evaluate(self, batch: Batch) -> list[_Views]:
        raise NotImplementedError


class _Views:
    """Final atom vectors of (crystal, frame) pairs: `view` of a row, `crystal` and `weight` of a view."""

    def __init__(self, x: Tensor, atom: Tensor, view: Tensor, crystal: Tensor, weight: Tensor) -> None:
        self.x, self.atom, self.view, self.crystal, self.weight = x, atom, view, crystal, weight
        self.pooled = segment_mean(x, view, len(crystal))


def _average(
    values: list[Tensor], weights: list[Tensor], index: list[Tensor], size: int
) -> Float[Tensor, "rows channels"]:
    """Σ weight · value over the rows that share an index; the weights of a crystal's frames sum to one."""
    value, weight, row = torch.cat(values), torch.cat(weights), torch.cat(index)
    if len(value) == size:  # one frame a crystal
        return value
    return segment_sum(value * weight.to(value.dtype)[:, None], row, size)


class IComFormer(_ComFormer):
    """Invariant ComFormer: angles between edges and lattice vectors (Yan 2024, Sec. 3.3).

    Defaults are the published configuration, 4 892 417 parameters (4 966 497 as published, with 74 080
    that nothing reads). `edge_layer=False` is the paper's ablation. `atom_features="learned"` replaces the
    table of element properties by a learned row for each element. `construction` chooses the lattice frames
    where several are equally good (see `LatticeKNearest`). `gap` (Å): a step between distances that is no
    longer leaves neighbours in one shell, kept or left out whole. Wider gaps hold the shells of distorted
    crystals together, so that the answer does not jump where they split ("published" knows none).

    Invariant under rotation, translation, atom order, choice of cell and supercell; not under reflection.
    """

    name = "icomformer"

    def __init__(
        self,
        outputs: int = 1,
        *,
        layers: int = 4,
        channels: int = 256,
        k: int = 25,
        edge_layer: bool = True,
        atom_features: Literal["table", "learned"] = "table",
        construction: Construction = "average",
        gap: float | int = SHELL_GAP,
    ) -> None:
        graph = LatticeKNearest(k=k, frames=construction, angles=edge_layer, gap=float(gap))
        super().__init__(outputs, layers, channels, atom_features, graph)
        self.edge_layer = EdgewiseTransformer(channels) if edge_layer else None
        if edge_layer:
            self.angle = ScalarEmbedding(GaussianBasis(-1.0, 1.0, BASIS_SIZE), channels)

    @property
    def symmetry(self) -> Symmetry:
        # what the edge layer makes of the angles is read by the node layers after the first
        return self._symmetry(reflection=self.edge_layer is None or len(self.layers) == 1)

    def one_frame_graph(self) -> LatticeKNearest:
        """The class of frames with the smallest signature: as invariant as the average, in one pass."""
        if self.edge_layer is None:
            raise ValueError("icomformer without edge layer reads no lattice frames; leave one_frame away")
        return replace(self.graph, frames="canonical")

    def training_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """One frame for each crystal, drawn by weight."""
        frames = batch.frames
        if frames is None or len(frames.crystal) == len(batch):
            return batch
        # drawn on the CPU: the same frames on every device, and MPS has no float64
        draw = torch.rand(len(batch), generator=generator, dtype=torch.float64)
        first = offsets(frames.num_frames.cpu())
        reached = torch.nn.functional.pad(torch.cumsum(frames.weight.cpu().double(), 0), (1, 0))
        total = reached[first[1:]] - reached[first[:-1]]
        chosen = torch.searchsorted(reached[1:], reached[first[:-1]] + draw * total, right=True)
        chosen = torch.maximum(torch.minimum(chosen, first[1:] - 1), first[:-1]).to(batch.device)
        drawn = replace(
            frames,
            crystal=frames.crystal[chosen],
            integer=frames.integer[chosen],
            weight=torch.ones_like(frames.weight[chosen]),
            num_frames=torch.ones_like(frames.num_frames),
        )
        return replace(batch, frames=drawn)

    def _evaluate(self, batch: Batch) -> list[_Views]:
        graph = batch.require_graph()
        vectors = batch.edge_vectors()
        d = vectors.norm(dim=1)
        unique_d, row = distinct(d, self.dtype)
        f = self.lengths(unique_d)
        x = self.atoms(batch.atomic_numbers)
        x = self.layers[0](x, f, row, graph.center, graph.neighbor, graph.weight)
        if self.edge_layer is None:
            for layer in self.layers[1:]:
                x = layer(x, f, row, graph.center, graph.neighbor, graph.weight)
            every = torch.arange(len(batch), device=batch.device)
            atoms = torch.arange(len(x), device=batch.device)
            return [_Views(x, atoms, batch.crystal_index, every, torch.ones(len(batch), device=batch.device))]
        if batch.frames is None:
            raise ValueError("IComFormer reads lattice frames; build the batch with model.graph(crystals)")
        direction = vectors / d[:, None]
        frames = batch.frame_vectors()
        lengths = frames.norm(dim=2)
        axes = frames / lengths[:, :, None]
        unique_length, length_row = distinct(lengths, self.dtype)
        slots = self.lengths(unique_length).index_select(0, length_row.reshape(-1))
        slots = slots.view(len(frames), 3, self.channels)
        views = []
        for first, last in self._chunks(batch):
            views.append(self._views(batch, x, f, row, direction, axes, slots, first, last))
        return views

    def _chunks(self, batch: Batch) -> list[tuple[int, int]]:
        """Runs of frames whose edges fit in memory together; in training all at once, for the batch norm."""
        assert batch.frames is not None
        total = len(batch.frames.crystal)
        if self.training or torch.is_grad_enabled():
            return [(0, total)]
        edges = torch.cumsum(batch.require_graph().num_edges[batch.frames.crystal], 0)
        chunk = torch.div(edges - 1, _VIEW_EDGES, rounding_mode="floor").cpu()
        counts = torch.unique_consecutive(chunk, return_counts=True)[1].tolist()
        bounds, first = [], 0
        for count in counts:
            bounds.append((first, first + count))
            first += count
        return bounds

    def _views(
        self,
        batch: Batch,
        x: Float[Tensor, "atoms channels"],
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"],
        direction: Float[Tensor, "edges 3"],
        axes: Float[Tensor, "frames 3 3"],
        slots: Float[Tensor, "frames 3 channels"],
        first: int,
        last: int,
    ) -> _Views:
        """The rest of the network on frames first ... last - 1, each with a copy of its crystal."""
        graph, frames = batch.require_graph(), batch.frames
        assert frames is not None
        assert self.edge_layer is not None
        crystal = frames.crystal[first:last]
        weight = frames.weight[first:last]
        num_atoms, num_edges = batch.num_atoms[crystal], graph.num_edges[crystal]
        atom_start = offsets(batch.num_atoms)[:-1][crystal]
        atom = ranges(atom_start, num_atoms)
        edge = items_in(crystal, graph.num_edges)
        view_of_edge = group_index(num_edges)
        shift = (offsets(num_atoms)[:-1] - atom_start)[view_of_edge]
        center, neighbor = graph.center[edge] + shift, graph.neighbor[edge] + shift
        edge_weight = None if graph.weight is None else graph.weight[edge]
        cosines = torch.einsum("ea,ema->em", direction[edge], axes[first:last][view_of_edge]).clamp(-1, 1)
        unique_c, cosine_row = distinct(cosines, self.dtype)
        f = self.edge_layer(f, row[edge], slots[first:last], view_of_edge, self.angle(unique_c), cosine_row)
        x = x.index_select(0, atom)
        for layer in self.layers[1:]:
            x = layer(x, f, None, center, neighbor, edge_weight)
        return _Views(x, atom, group_index(num_atoms), crystal, weight)


class EComFormer(_ComFormer):
    """Equivariant ComFormer: edge directions through tensor products up to degree 2 (Yan 2024, Sec. 3.4).

    Defaults are the published configuration, 12 459 137 parameters; `scalars=64` is the "half" model.
    `degree` 0 (no equivariant update), 1 and 2 are the paper's ablation. Its output consists of inner
    products only, so it cannot tell mirror images apart; `pseudoscalar=True` adds a path that can. `gap` as
    for IComFormer.

    Invariant under rotation, reflection (without the pseudoscalar path), translation, atom order, choice of
    cell and supercell.
    """

    name = "ecomformer"

    def __init__(
        self,
        outputs: int = 1,
        *,
        layers: int = 3,
        channels: int = 256,
        scalars: int = 128,
        degree: Literal[0, 1, 2] = 2,
        pseudoscalar: bool = False,
        k: int = 25,
        atom_features: Literal["table", "learned"] = "table",
        construction: Construction = "average",
        gap: float | int = SHELL_GAP,
    ) -> None:
        graph = LatticeKNearest(k=k, frames=construction, angles=False, gap=float(gap))
        super().__init__(outputs, layers, channels, atom_features, graph)
        if degree == 0 and pseudoscalar:
            raise ValueError("EComFormer: pseudoscalar=True needs degree 1 or 2, came degree=0")
        self.pseudoscalar = pseudoscalar
        self.update = EquivariantUpdate(channels, scalars, degree, pseudoscalar) if degree else None

    @property
    def symmetry(self) -> Symmetry:
        return self._symmetry(reflection=not self.pseudoscalar)

    def _evaluate(self, batch: Batch) -> list[_Views]:
        graph = batch.require_graph()
        center, neighbor, weight = graph.center, graph.neighbor, graph.weight
        vectors = batch.edge_vectors()
        d = vectors.norm(dim=1)
        unique_d, row = distinct(d, self.dtype)
        f = self.lengths(unique_d)
        x = self.atoms(batch.atomic_numbers)
        x = self.layers[0](x, f, row, center, neighbor, weight)
        if self.update is not None:
            harmonics = spherical_harmonics(vectors / d[:, None]).to(x.dtype)
            x = self.update(x, f, row, harmonics, center, neighbor, weight)
        for layer in self.layers[1:]:
            x = layer(x, f, row, center, neighbor, weight)
        every = torch.arange(len(batch), device=batch.device)
        atoms = torch.arange(len(x), device=batch.device)
        return [_Views(x, atoms, batch.crystal_index, every, torch.ones(len(batch), device=batch.device))]
