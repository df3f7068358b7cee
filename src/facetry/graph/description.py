"""How a crystal is written down, chosen by the crystal itself.

The image T that an edge leads to depends on the basis, and on the cell in which each atom is listed. For
networks that read T modulo 2 both are chosen thus:

    Niggli cell with edges ─► every basis of the same shape, every origin on the rarest kind of atom
    ─► the description whose graph has the smallest signature

A signature is what three rounds of a fixed smooth network on the labelled graph add up to. Descriptions that
a symmetry of the crystal carries into one another give the same graph, and others another number, so what
a network sees of T does not depend on the description that was given.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.groups import automorphisms, cell_actions, point_groups
from facetry.geometry.ragged import group_index, items_in, offsets, ranges, ranks
from facetry.geometry.reduction import working_copy
from facetry.graph.batch import Batch

SAME_SIGNATURE = 1e-9
WRAP = 2.7182e-4  # an atom so close to the upper face of the cell belongs to the lower; no likely decimal
_ROUNDS = 3
_AT_ONCE = 1 << 20  # edges times descriptions


def cell_index(image: Int[Tensor, "edges 3"]) -> Int[Tensor, " edges"]:
    """δ = T modulo 2 of every edge as one number, 4 δ1 + 2 δ2 + δ3."""
    bits = image & 1
    return bits[:, 0] * 4 + bits[:, 1] * 2 + bits[:, 2]


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
    rank = ranks(several)
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
    return -torch.floor(away + WRAP).long(), atom


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
    edge = items_in(crystal, graph.num_edges)
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
