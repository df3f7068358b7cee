"""ECN: networks that are equivariant to the lattice group of a 2 x 2 x 2 supercell.

Kaba and Ravanbakhsh: Equivariant networks for crystal structures, NeurIPS 2022 (arXiv 2211.15420).

    atoms p in cells c ─► h ─► [ h + MLP(messages over all edges + over those of equal p ‖ h) ] × layers
    δ and d of edges ────────────────────┘                   ─► MLP ─► mean over p and c ─► head

Weights are shared among the edges that the group G_L x S_n carries into one another: G_L permutes the eight
cells, S_n the atoms in all cells at once. "p1" has weights for each of the eight δ, "s8" for δ = 0 and δ ≠ 0,
and "bravais" those of "p1", averaged for each crystal over the orbits of its own lattice.

Departures from the published code: the Niggli cell of the primitive cell, in a description that the crystal
chooses itself (`facetry.graph.description`), so that no description that was given matters; equal edges are
evaluated once. "bravais", the choice of a group for each crystal, goes beyond the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.geometry.groups import own_colours
from facetry.graph.batch import Batch
from facetry.graph.cells import CellRadius, Voronoi
from facetry.graph.description import cell_index
from facetry.models.base import PooledModel, Symmetry
from facetry.nn.basis import GaussianBasis, at_precision, distinct
from facetry.nn.lattice_messages import ColourMessages, Colours, EdgeSet, LatticeMessages
from facetry.nn.readout import Head

ELEMENTS = 103
GAUSSIANS, REACH = 20, 6.0  # edge features, and the last centre in Å
GROUPS = {  # the colour of the weights for each δ
    "s8": (0, 1, 1, 1, 1, 1, 1, 1),
    "p1": (0, 1, 2, 3, 4, 5, 6, 7),
    "bravais": (0, 1, 2, 3, 4, 5, 6, 7),
}
FEATURES = {"atomic_number": ELEMENTS, "hubbard": ELEMENTS + 1, "group_period": 7 + 32}
_HUBBARD_METALS = (23, 24, 25, 26, 27, 28, 42, 74)  # V Cr Mn Fe Co Ni Mo W
_PERIOD_ENDS = (2, 10, 18, 36, 54, 86)


def _checked(what: str, given: str, known: Iterable[str]) -> str:
    if given not in known:
        raise ValueError(f"ecn: expected {what} of {', '.join(known)}, came {given!r}")
    return given


def _builder(graph: str, cutoff: float | int) -> Voronoi | CellRadius:
    _checked("graph", graph, ("voronoi", "radius"))
    return Voronoi() if graph == "voronoi" else CellRadius(float(cutoff))


def group_and_period(
    atomic_numbers: Int[Tensor, " atoms"],
) -> tuple[Int[Tensor, " atoms"], Int[Tensor, " atoms"]]:
    """Column (1 to 32) and period (1 to 7) of elements in the long form of the table: the f block has the
    columns 3 to 16, La and Ac first, and Sc, Y, Lu and Lr begin the d block in column 17."""
    z = atomic_numbers
    ends = torch.tensor(_PERIOD_ENDS, device=z.device)
    period = torch.searchsorted(ends, z) + 1
    before = torch.tensor((0, *_PERIOD_ENDS), device=z.device)[period - 1]
    after = torch.tensor((*_PERIOD_ENDS, 118), device=z.device)[period - 1]
    # s block from the left, all others from the right; long periods fill all 32 columns
    return torch.where(z - before <= 2, z - before, 32 - (after - z)).where(z != 2, 32), period


def hubbard(batch: Batch) -> Float[Tensor, " crystals"]:
    """1 for crystals that the Materials Project computes with a Hubbard U: oxides and fluorides with V, Cr,
    Mn, Fe, Co, Ni, Mo or W; else 0. The rule stands for the label, so that crystals from elsewhere have
    it."""
    z, owner = batch.atomic_numbers, batch.crystal_index
    kinds = torch.zeros((len(batch), 2), dtype=torch.float64, device=z.device)
    metal = torch.isin(z, torch.tensor(_HUBBARD_METALS, device=z.device))
    anion = (z == 8) | (z == 9)
    kinds.index_add_(0, owner, torch.stack([metal, anion], 1).double())
    return (kinds > 0).all(1).double()


class NodeFeatures(nn.Module):
    """One-hot features of atom and cell and a Linear: the rows of its weight are added up.

    "atomic_number" has 103 elements, "hubbard" one flag more (`hubbard`), "group_period" 7 periods and 32
    columns. `cells` adds the eight cells, which is what tells the copies of an atom apart.
    """

    def __init__(self, kind: str, channels: int, cells: bool) -> None:
        super().__init__()
        self.kind, self.cells = kind, cells
        self.width = FEATURES[kind]
        self.linear = nn.Linear(self.width + 8 * cells, channels)

    def forward(self, batch: Batch) -> Float[Tensor, "atoms copies channels"]:
        """Features of every atom in every cell, or in one for all where cells are not told apart. Raises
        ValueError for elements beyond Lr."""
        z = batch.atomic_numbers
        wrong = sorted({int(x) for x in z[(z < 1) | (z > ELEMENTS)]})
        if wrong:
            raise ValueError(
                f"ecn: expected elements 1 (H) to {ELEMENTS} (Lr), came atomic numbers {wrong};"
                " leave these crystals out or use another model"
            )
        rows = self.linear.weight.T
        if self.kind == "group_period":
            column, period = group_and_period(z)
            x = rows[period - 1] + rows[6 + column]
        else:
            x = rows[z - 1]
        if self.kind == "hubbard":
            x = x + hubbard(batch)[batch.crystal_index, None].to(x) * rows[ELEMENTS]
        x = (x + self.linear.bias)[:, None]
        return x + rows[self.width :] if self.cells else x


class EdgeFeatures(nn.Module):
    """exp(-(d - μ)²/w²) at 20 centres from 0 to 6 Å with w = 0.6 Å, then a Linear without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = GaussianBasis(0.0, REACH, GAUSSIANS, width=2 * REACH / GAUSSIANS)
        self.linear = nn.Linear(GAUSSIANS, GAUSSIANS)

    def forward(self, d: Float[Tensor, " rows"]) -> Float[Tensor, "rows gaussians"]:
        return self.linear(at_precision(self.basis, d, self.linear.weight.dtype))


@dataclass(frozen=True)
class _Part:
    """Crystals of one batch with the same lattice group: their nodes (None: all) and edges between these.

    `edges` are sorted by the colours of δ; where edges between images of one atom have first matrices of
    their own, those edges come after the others. `same` holds them alone.
    """

    colours: Colours
    nodes: Int[Tensor, " nodes"] | None
    edges: EdgeSet
    same: EdgeSet


@dataclass(frozen=True)
class _Groups:
    """The colour of each δ in each lattice group of a batch, and the group of each crystal."""

    tables: Int[Tensor, "groups 8"]
    of_crystal: Int[Tensor, " crystals"]

    @staticmethod
    def of(batch: Batch, group: str) -> _Groups:
        """Colours are numbered as they appear."""
        if group != "bravais":
            table = torch.tensor([GROUPS[group]], device=batch.device)
            return _Groups(table, torch.zeros(len(batch), dtype=torch.int64, device=batch.device))
        smallest, which = torch.unique(own_colours(batch.lattice), dim=0, return_inverse=True)
        smallest, which = smallest.to(batch.device), which.to(batch.device)
        leads = smallest == torch.arange(8, device=batch.device)
        return _Groups((torch.cumsum(leads, 1) - 1).gather(1, smallest), which)


def _ends(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, neighbour and δ of all edges, then of one from each atom to itself."""
    graph = batch.require_graph()
    own = torch.arange(len(batch.frac_coords), device=batch.device)
    delta = cell_index(graph.image)
    return (
        torch.cat([graph.center, own]),
        torch.cat([graph.neighbor, own]),
        torch.cat([delta, delta.new_zeros(own.shape)]),
    )


def _unfold(
    batch: Batch,
    groups: _Groups,
    weights: Int[Tensor, "8"],
    row: Int[Tensor, " edges"],
    copies: int,
    kinds: int,
) -> list[_Part]:
    """The supercell: nodes p copies + c, edges sorted by colour, equal ones as one with a weight.

    `row` numbers the distances of the graph's edges and then those of the self-loops. Copies are eight cells,
    or one for all. `kinds=2` keeps edges between images of one atom apart.
    """
    center, neighbor, delta = _ends(batch)
    atoms, rows = len(batch.frac_coords), int(row.max()) + 1
    group = groups.of_crystal[batch.crystal_index[center]]
    colour = groups.tables[group, delta]
    product = colour + 8 * (center == neighbor) if kinds == 2 else colour
    label = delta if copies == 8 else colour
    key = group * 16 + product
    for value, size in ((center, atoms), (neighbor, atoms), (label, 8), (row, rows)):
        key = key * size + value
    key, count = torch.unique(key, return_counts=True)
    found = []
    for size in (rows, 8, atoms, atoms):
        found.append(key % size)
        key = torch.div(key, size, rounding_mode="floor")
    row, label, neighbor, center = found
    weight = count.to(batch.lattice.dtype)
    if copies == 8:
        cells = torch.arange(8, device=batch.device)
        center = (center[:, None] * 8 + cells).flatten()
        neighbor = (neighbor[:, None] * 8 + (cells ^ label[:, None])).flatten()
        row, weight, key = (t.repeat_interleave(8) for t in (row, weight, key))
    parts = []
    many = len(groups.tables) > 1
    node_group = groups.of_crystal[batch.crystal_index].repeat_interleave(copies)
    for g, table in enumerate(groups.tables):
        nodes = local = None
        chosen = slice(None)
        if many:
            nodes = torch.nonzero(node_group == g)[:, 0]
            local = torch.empty_like(node_group)
            local[nodes] = torch.arange(len(nodes), device=batch.device)
            chosen = slice(
                *torch.searchsorted(key, torch.tensor([16 * g, 16 * g + 16], device=key.device)).tolist()
            )
        i, j, r, w, k = (t[chosen] for t in (center, neighbor, row, weight, key % 16))
        if local is not None:
            i, j = local[i], local[j]
        colours = Colours.of(table, weights)
        count = len(colours.mix)
        if kinds == 2:
            k = torch.where(k >= 8, k - 8 + count, k)
        atom = torch.div(torch.stack([i, j]), copies, rounding_mode="floor")
        own = torch.nonzero(atom[0] == atom[1])[:, 0]
        edges = EdgeSet(i, j, r, w, _bounds(k, kinds * count))
        same = EdgeSet(i[own], j[own], r[own], w[own], _bounds(k[own], kinds * count))
        parts.append(_Part(colours, nodes, edges, same))
    return parts


def _bounds(sorted_colours: Int[Tensor, " edges"], colours: int) -> list[int]:
    """Where each colour starts, and the end."""
    steps = torch.arange(colours + 1, device=sorted_colours.device)
    return torch.searchsorted(sorted_colours, steps).tolist()


class _Layer(nn.Module):
    """h + MLP(M_all + M_same ‖ h)."""

    def __init__(self, colours: int, channels: int, edge_fn: str, hierarchical: bool) -> None:
        super().__init__()
        if edge_fn == "per_colour":
            self.every = ColourMessages(colours, channels, GAUSSIANS, 1 if hierarchical else 2)
            self.same = None
        else:
            self.every = LatticeMessages(colours, channels, GAUSSIANS)
            self.same = None if hierarchical else LatticeMessages(colours, channels, GAUSSIANS)
        self.hidden = nn.Linear(2 * channels, channels)
        self.out = nn.Linear(channels, channels)

    def messages(self, h: Tensor, e: Tensor, part: _Part) -> Tensor:
        """Sums of messages at the nodes of one part."""
        total = self.every(h, e, part.edges, part.colours)
        return total if self.same is None else total + self.same(h, e, part.same, part.colours)

    def forward(
        self, h: Float[Tensor, "nodes channels"], e: Float[Tensor, "rows gaussians"], parts: list[_Part]
    ) -> Float[Tensor, "nodes channels"]:
        """The next features of all nodes."""
        if parts[0].nodes is None:
            total = self.messages(h, e, parts[0])
        else:
            found = torch.cat([self.messages(h.index_select(0, p.nodes), e, p) for p in parts])
            total = torch.zeros_like(found).index_copy(0, torch.cat([p.nodes for p in parts]), found)
        return h + self.out(nn.functional.silu(self.hidden(torch.cat([total, h], 1))))


class ECN(PooledModel):
    """Equivariant crystal network (Kaba and Ravanbakhsh 2022).

    Defaults are the published ECN-S8, 994 833 parameters; `group="p1"` has 3 298 833. `features="hubbard"`
    adds 100, "group_period" has 6 400 fewer. `break_symmetry=False` drops the one-hot cell, which leaves all
    copies of an atom equal: an eighth of the work. `edge_fn="code"` is the function of the published code,
    "per_colour" that of the paper's appendix. `hierarchical=True` drops the messages between images of one
    atom. `graph="radius"` joins all atoms within `cutoff` (Å), as published for Perov-5; "voronoi" those
    that share a Voronoi face and are bonded (`facetry.graph.cells.Voronoi`).

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell, because the
    crystal chooses its description; not continuous where another description takes the lead or a bond breaks.
    """

    name = "ecn"

    def __init__(
        self,
        outputs: int = 1,
        *,
        group: Literal["s8", "p1", "bravais"] = "s8",
        layers: int = 6,
        channels: int = 100,
        features: Literal["atomic_number", "hubbard", "group_period"] = "atomic_number",
        break_symmetry: bool = True,
        edge_fn: Literal["code", "per_colour"] = "code",
        hierarchical: bool = False,
        graph: Literal["voronoi", "radius"] = "voronoi",
        cutoff: float | int = 5.0,
    ) -> None:
        super().__init__()
        _checked("features", features, FEATURES)
        _checked("edge_fn", edge_fn, ("code", "per_colour"))
        if layers < 1 or channels < 1:
            raise ValueError(f"ecn: expected at least one layer and channel, came {layers} and {channels}")
        self.outputs, self.channels = outputs, channels
        self.group, self.graph = _checked("group", group, GROUPS), _builder(graph, cutoff)
        self.copies = 8 if break_symmetry else 1
        self.kinds = 2 if edge_fn == "per_colour" and not hierarchical else 1
        self.nodes = NodeFeatures(features, channels, break_symmetry)
        self.edges = EdgeFeatures()
        colours = len(set(GROUPS[group]))
        self.layers = nn.ModuleList(_Layer(colours, channels, edge_fn, hierarchical) for _ in range(layers))
        self.last_hidden = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, channels)
        self.head = Head(channels, outputs)

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry()

    def cell_vectors(self, batch: Batch) -> Float[Tensor, "atoms copies channels"]:
        """Final vectors of every atom in every cell (one for all where they are not told apart)."""
        d = batch.edge_vectors().norm(dim=1)
        unique_d, row = distinct(d, self.dtype)
        atoms = len(batch.frac_coords)
        row = torch.cat([row, row.new_full((atoms,), len(unique_d))])
        e = self.edges(torch.cat([unique_d, unique_d.new_zeros(1)]))
        weights = torch.tensor(GROUPS[self.group], device=batch.device)
        groups = _Groups.of(batch, self.group)
        parts = _unfold(batch, groups, weights, row, self.copies, self.kinds)
        h = self.nodes(batch).flatten(0, 1)
        for layer in self.layers:
            h = layer(h, e, parts)
        h = self.last(nn.functional.silu(self.last_hidden(h)))
        return h.view(atoms, self.copies, self.channels)

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        """One vector an atom, averaged over the cells. Atoms that a symmetry makes equal may differ, because
        the description does not have that symmetry."""
        return self.cell_vectors(batch).mean(1)

    def outputs_of(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        return self.head(pooled)


class _VectorLayer(nn.Module):
    """u - C Σ r φ(m) for displacements, and h + MLP(Σ s m ‖ h) for features, with the messages of
    `_Layer`."""

    def __init__(self, colours: int, channels: int) -> None:
        super().__init__()
        self.messages = nn.ModuleList(LatticeMessages(colours, channels, GAUSSIANS) for _ in range(2))
        self.push = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)) for _ in range(2)
        )
        self.hidden = nn.Linear(2 * channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(
        self, h: Tensor, u: Tensor, r: Tensor, embed: nn.Module, part: _Part
    ) -> tuple[Tensor, Tensor]:
        """Next features and displacements of the nodes of a part; `r` are the edge vectors without
        displacements, `embed` what turns distances into edge features."""
        total, pull = torch.zeros_like(h), torch.zeros_like(u)
        for messages, push, edges in zip(self.messages, self.push, (part.edges, part.same), strict=True):
            away = r[edges.row] + u[edges.neighbor] - u[edges.center]
            squared = away.square().sum(1)
            there = squared > 0  # the root has no slope at zero, where an atom sees itself
            d = squared.where(there, 1.0).sqrt() * there
            own = replace(edges, row=torch.arange(len(d), device=d.device))
            m, s = messages.rows(h, embed(d), own, part.colours)
            total = total.index_add(0, edges.center, (s * m).to(total))
            pull = pull.index_add(0, edges.center, (away * push(m)).to(pull))
        degree = torch.bincount(part.edges.center, minlength=len(h))[:, None].to(pull)
        return h + self.out(nn.functional.silu(self.hidden(torch.cat([total, h], 1)))), u - pull / degree


class EquivariantECN(nn.Module):
    """ECN with vectors: a displacement (Å) for each atom, which turns with the crystal (Kaba and Ravanbakhsh
    2022, appendix A.5; the formula is EGNN's with a function for each colour of an edge).

    Displacements u start at zero and edge vectors are r + u_j - u_i, so the images that edges lead to stay.
    The lattice does not move. Equivariant under rotation and reflection, invariant under translation. Atoms
    that a symmetry of the crystal exchanges need not move alike where the description lacks that symmetry.
    """

    def __init__(
        self,
        *,
        group: Literal["s8", "p1", "bravais"] = "s8",
        layers: int = 4,
        channels: int = 100,
        break_symmetry: bool = False,
        graph: Literal["voronoi", "radius"] = "voronoi",
        cutoff: float | int = 5.0,
    ) -> None:
        super().__init__()
        self.group, self.channels = _checked("group", group, GROUPS), channels
        self.graph = _builder(graph, cutoff)
        self.copies = 8 if break_symmetry else 1
        self.nodes = NodeFeatures("atomic_number", channels, break_symmetry)
        self.edges = EdgeFeatures()
        self.layers = nn.ModuleList(_VectorLayer(len(set(GROUPS[group])), channels) for _ in range(layers))

    def forward(self, batch: Batch) -> Float[Tensor, "atoms 3"]:
        """Displacement of every atom of the batch in Å, averaged over the cells."""
        atoms = len(batch.frac_coords)
        h = self.nodes(batch).flatten(0, 1)
        u = h.new_zeros((len(h), 3))
        r = torch.cat([batch.edge_vectors(), batch.lattice.new_zeros((atoms, 3))]).to(h)
        weights = torch.tensor(GROUPS[self.group], device=batch.device)
        row = torch.arange(len(r), device=batch.device)
        for part in _unfold(batch, _Groups.of(batch, self.group), weights, row, self.copies, 1):
            nodes = torch.arange(len(h), device=h.device) if part.nodes is None else part.nodes
            x, moved = h[nodes], u[nodes]
            for layer in self.layers:
                x, moved = layer(x, moved, r, self.edges, part)
            u = u.index_copy(0, nodes, moved)
        return u.view(atoms, self.copies, 3).mean(1)
