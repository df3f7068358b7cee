"""Does a graph determine its crystal? The crystal is rebuilt from the graph alone and compared.

The invariant graph of iComFormer holds species, for each edge (i, j) its length d and three cosines
c_m = r·e_m / (d‖e_m‖), and for the crystal ‖e_1‖, ‖e_2‖, ‖e_3‖ and the cosines c12, c13, c23 between them.
No vector, no coordinate, no image index. From these (Yan 2024, Sec. 3 and App. A):

1. Frame directions u_m, the rows of U, in axes of their own:

       u1 = (1,   0,             0)
       u2 = (c12, √(1 - c12²),   0)                       y = (c23 - c12 c13) / √(1 - c12²)
       u3 = (c13, y, +√(1 - c13² - y²))                   e_m = ‖e_m‖ u_m

   The positive root makes the frame right-handed, as it is by construction; here alone handedness enters.
2. The direction of an edge solves U r̂ = (c1, c2, c3)ᵀ; then r = d r̂ / ‖r̂‖.
3. Atom 0 lies at the origin, and x_j = x_i + r along the tree of paths with the smallest Σ d². An edge
   rounded to a relative precision ε is wrong by ε d, so these paths have the smallest expected error.
4. The crystal is {x_i + n1 e_1 + n2 e_2 + n3 e_3}, since e_1, e_2, e_3 generate all lattice translations.

The equivariant graph of eComFormer stores r and e_m as vectors, and steps 1 and 2 fall away.

Precision: a graph may be given in float32, as the model sees it; the sums are always in float64. A crystal
whose coordinates are themselves float32 is already wrong by 1e-6 Å in a cell of 50 Å, so float32 sums would
measure the number format and not the graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.graph.complete import LatticeKNearest
from facetry.graph.neighbors import GraphError

__all__ = [
    "Displacement",
    "EquivariantGraph",
    "InvariantGraph",
    "completeness_error",
    "equivariant_graph",
    "invariant_graph",
    "reconstruct",
    "reconstruct_equivariant",
]


class InvariantGraph(NamedTuple):
    """All that the invariant graph of one crystal holds; `reconstruct(*graph)` rebuilds the crystal."""

    atomic_numbers: Int[np.ndarray, " atoms"]
    center: Int[np.ndarray, " edges"]
    neighbor: Int[np.ndarray, " edges"]
    distance: Float[np.ndarray, " edges"]  # Å
    cosines: Float[np.ndarray, "edges 3"]  # to e1, e2, e3
    lengths: Float[np.ndarray, "3"]  # Å, of e1, e2, e3
    frame_cosines: Float[np.ndarray, "3"]  # between e1 and e2, e1 and e3, e2 and e3


class EquivariantGraph(NamedTuple):
    """All that the equivariant graph of one crystal holds; `reconstruct_equivariant(*graph)` rebuilds it."""

    atomic_numbers: Int[np.ndarray, " atoms"]
    center: Int[np.ndarray, " edges"]
    neighbor: Int[np.ndarray, " edges"]
    vectors: Float[np.ndarray, "edges 3"]  # Å, from the centre to its neighbour
    frame: Float[np.ndarray, "3 3"]  # Å, rows e1, e2, e3


class Displacement(NamedTuple):
    """How far a rebuilt crystal is from the original, after the best proper rotation and translation."""

    rms: float
    """Root mean square of the atoms' displacements, Å."""
    largest: float
    """The largest displacement of an atom, Å."""
    lattice: float
    """The largest component of the error of e1, e2, e3, Å. In float32 it grows with ‖e‖, as rounding does."""
    merging: float = 0.0
    """The part of `rms` that arose before the graph: a builder that divides out translations puts an atom at
    the average of its copies. 0 where the given cell was primitive."""


def equivariant_graph(
    batch: Batch, index: int = 0, dtype: type[np.floating] = np.float64
) -> EquivariantGraph:
    """Edge vectors and first frame of crystal `index`, computed in float64 and rounded to `dtype`."""
    if batch.frames is None:
        raise ValueError("this batch has no lattice frames; build it with LatticeKNearest")
    one = batch if len(batch) == 1 and index == 0 else batch.select([index])
    graph = one.require_graph()
    return EquivariantGraph(
        one.atomic_numbers.cpu().numpy(),
        graph.center.cpu().numpy(),
        graph.neighbor.cpu().numpy(),
        one.edge_vectors().detach().cpu().double().numpy().astype(dtype),
        one.frame_vectors()[0].detach().cpu().double().numpy().astype(dtype),
    )


def invariant_graph(batch: Batch, index: int = 0, dtype: type[np.floating] = np.float64) -> InvariantGraph:
    """Lengths and cosines of crystal `index` in its first frame, computed in float64, rounded to `dtype`."""
    return _invariants(equivariant_graph(batch, index), dtype)


def _invariants(graph: EquivariantGraph, dtype: type[np.floating]) -> InvariantGraph:
    distance = np.linalg.norm(graph.vectors, axis=1)
    lengths = np.linalg.norm(graph.frame, axis=1)
    directions = graph.frame / lengths[:, None]
    cosines = np.clip(graph.vectors / distance[:, None] @ directions.T, -1, 1)
    mutual = np.clip(np.sum(directions[[0, 0, 1]] * directions[[1, 2, 2]], axis=1), -1, 1)
    return InvariantGraph(
        graph.atomic_numbers,
        graph.center,
        graph.neighbor,
        distance.astype(dtype),
        cosines.astype(dtype),
        lengths.astype(dtype),
        mutual.astype(dtype),
    )


def reconstruct(
    atomic_numbers: Int[np.ndarray, " atoms"],
    center: Int[np.ndarray, " edges"],
    neighbor: Int[np.ndarray, " edges"],
    distance: Float[np.ndarray, " edges"],
    cosines: Float[np.ndarray, "edges 3"],
    lengths: Float[np.ndarray, "3"],
    frame_cosines: Float[np.ndarray, "3"],
    name: str = "",
) -> Crystal:
    """The crystal that an invariant graph describes (steps 1 to 4 above), in the axes of its own frame.

    Its lattice rows are e1, e2, e3, its atoms keep their order, and atom 0 is the origin. Each atom lies in
    the image that the tree has reached, not wrapped into the cell. Raises GraphError where the graph is not
    strongly connected and ValueError where the three frame vectors lie in a plane.
    """
    directions = _frame_directions(np.asarray(frame_cosines, dtype=np.float64), name)
    unit = np.linalg.solve(directions, np.asarray(cosines, dtype=np.float64).T).T
    # (c1, c2, c3) holds one number more than a direction; dividing by ‖r̂‖ removes a third of its rounding
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    vectors = unit * np.asarray(distance, dtype=np.float64)[:, None]
    frame = directions * np.asarray(lengths, dtype=np.float64)[:, None]
    return reconstruct_equivariant(atomic_numbers, center, neighbor, vectors, frame, name)


def reconstruct_equivariant(
    atomic_numbers: Int[np.ndarray, " atoms"],
    center: Int[np.ndarray, " edges"],
    neighbor: Int[np.ndarray, " edges"],
    vectors: Float[np.ndarray, "edges 3"],
    frame: Float[np.ndarray, "3 3"],
    name: str = "",
) -> Crystal:
    """The crystal that an equivariant graph describes (steps 3 and 4 above), in the axes of its vectors.

    Raises GraphError where the graph is not strongly connected.
    """
    vectors, frame = np.asarray(vectors, dtype=np.float64), np.asarray(frame, dtype=np.float64)
    _check_strongly_connected(len(atomic_numbers), center, neighbor, name)
    before, edge = _shortest_paths(len(atomic_numbers), center, neighbor, np.sum(vectors**2, axis=1))
    steps = np.where(edge[:, None] >= 0, vectors[edge], 0.0)
    cart = _sum_along_tree(before, steps)
    return Crystal(frame, np.linalg.solve(frame.T, cart.T).T, atomic_numbers, name=name)


def _frame_directions(cosines: Float[np.ndarray, "3"], name: str) -> Float[np.ndarray, "3 3"]:
    """Rows u1, u2, u3 of a right-handed triple with the mutual cosines c12, c13, c23."""
    c12, c13, c23 = cosines
    sine = np.sqrt(max(1 - c12**2, 0.0))
    y = (c23 - c12 * c13) / sine if sine else np.inf
    height = 1 - c13**2 - y**2
    if not height > 0:
        raise ValueError(
            f"{name or 'graph'}: cosines {c12:.6g}, {c13:.6g}, {c23:.6g} put the three frame vectors into one"
            " plane; expected three independent lattice vectors"
        )
    return np.array([[1, 0, 0], [c12, sine, 0], [c13, y, np.sqrt(height)]])


def _check_strongly_connected(
    atoms: int, center: Int[np.ndarray, " edges"], neighbor: Int[np.ndarray, " edges"], name: str
) -> None:
    links = csr_array((np.ones(len(center), dtype=np.int32), (center, neighbor)), shape=(atoms, atoms))
    parts, label = connected_components(links, directed=True, connection="strong")
    if parts > 1:
        sizes = np.sort(np.bincount(label))[::-1]
        shown = ", ".join(map(str, sizes[:5])) + (", ..." if parts > 5 else "")
        raise GraphError(
            f"{name or 'graph'}: {parts} parts ({shown} atoms) are not strongly connected, so their relative"
            " positions are not in the graph; raise k until every atom can be reached from every other"
        )


def _shortest_paths(
    atoms: int,
    center: Int[np.ndarray, " edges"],
    neighbor: Int[np.ndarray, " edges"],
    cost: Float[np.ndarray, " edges"],
) -> tuple[Int[np.ndarray, " atoms"], Int[np.ndarray, " atoms"]]:
    """For each atom the one before it on the cheapest path from atom 0, and the edge between the two.

    Atom 0 comes before itself, by edge -1.
    """
    order = np.lexsort((cost, neighbor, center))
    pair = center[order].astype(np.int64) * atoms + neighbor[order]
    pair, first = np.unique(pair, return_index=True)  # the cheapest of several images of one neighbour
    cheapest = order[first]
    links = csr_array((cost[cheapest], (center[cheapest], neighbor[cheapest])), shape=(atoms, atoms))
    _, before = dijkstra(links, indices=0, return_predecessors=True)
    before = before.astype(np.int64)
    before[0] = 0
    edge = cheapest[np.searchsorted(pair, before * atoms + np.arange(atoms)).clip(max=len(pair) - 1)]
    edge[0] = -1
    return before, edge


def _sum_along_tree(
    before: Int[np.ndarray, " atoms"], steps: Float[np.ndarray, "atoms 3"]
) -> Float[np.ndarray, "atoms 3"]:
    """The sum of the steps from the root to each atom, x_j = x_before(j) + step_j with x_root = 0.

    Pointer doubling: after n rounds every atom has the last 2ⁿ steps of its path, so that the rounds grow
    with the logarithm of the depth and the rounding errors with it.
    """
    total = steps.copy()
    while before.any():
        total += total[before]
        before = before[before]
    return total


def completeness_error(
    crystal: Crystal,
    batch: Batch | None = None,
    index: int = 0,
    dtype: type[np.floating] = np.float64,
    equivariant: bool = False,
    *,
    k: int | None = None,
) -> Displacement:
    """How far the crystal rebuilt from a graph alone is from `crystal`, from which the graph was built.

    The graph is number `index` of a batch, or, with `k` in place of a batch, that of the k nearest neighbours
    of all atoms of the cell as it is given, not of its primitive cell. It is rounded to `dtype` first, as a
    model of that precision reads it. The atoms correspond by their order (through `batch.atom_map` where the
    builder has merged atoms into a primitive cell). The rebuilt frame is turned onto the true one by a proper
    rotation, never a reflection, so that a crystal of the wrong handedness is far off; differences are
    reduced by the lattice of e1, e2, e3, the mean offset is removed, and rotation and offset are refined once
    on frame and atoms together (Kabsch 1976).

    Raises GraphError where the graph is not strongly connected, ValueError where the crystal has another
    number of atoms than the graph was built from, or where neither batch nor k is given, or both.
    """
    if (batch is None) == (k is None):
        raise ValueError("completeness_error: give the batch that holds the graph, or k to build it with")
    if batch is None:
        batch, index = LatticeKNearest(k=k, primitive=False)([crystal]), 0
    one = batch if len(batch) == 1 and index == 0 else batch.select([index])
    exact = equivariant_graph(one)
    frame = exact.frame
    rows = np.arange(len(one.frac_coords)) if one.atom_map is None else one.atom_map.cpu().numpy()
    if len(rows) != len(crystal):
        raise ValueError(
            f"{crystal.name or 'crystal'}: {len(crystal)} atoms, but the graph was built from {len(rows)};"
            " give the crystal that the graph was built from"
        )
    if equivariant:
        rounded = exact._replace(vectors=exact.vectors.astype(dtype), frame=frame.astype(dtype))
        rebuilt = reconstruct_equivariant(*rounded, name=crystal.name)
    else:
        rebuilt = reconstruct(*_invariants(exact, dtype), name=crystal.name)
    distance, lattice = _superpose(rebuilt.cart_coords[rows], rebuilt.lattice, crystal.cart_coords, frame)
    rms, merging = _rms(distance), 0.0
    if len(rows) != len(one.frac_coords):
        merged = (one.frac_coords @ one.lattice[0]).detach().cpu().double().numpy()
        merging = _rms(_superpose(merged[rows], frame, crystal.cart_coords, frame)[0])
    return Displacement(
        rms=rms,
        largest=float(distance.max()),
        lattice=lattice,
        merging=merging,
    )


def _superpose(
    found: Float[np.ndarray, "atoms 3"],
    found_frame: Float[np.ndarray, "3 3"],
    true: Float[np.ndarray, "atoms 3"],
    true_frame: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, " atoms"], float]:
    """Displacement of every atom, and the largest error of a frame component, both in Å."""
    shift = found @ _proper_rotation(found_frame, true_frame) - true
    shift -= shift[0]
    whole = np.rint(np.linalg.solve(true_frame.T, shift.T).T) @ true_frame
    target = true + whole  # the images that the tree has reached
    found, target = found - found.mean(axis=0), target - target.mean(axis=0)
    rotation = _proper_rotation(np.concatenate([found_frame, found]), np.concatenate([true_frame, target]))
    distance = np.linalg.norm(found @ rotation - target, axis=1)
    return distance, float(np.abs(found_frame @ rotation - true_frame).max())


def _rms(distance: Float[np.ndarray, " atoms"]) -> float:
    return float(np.sqrt(np.mean(distance**2)))


def _proper_rotation(
    moved: Float[np.ndarray, "points 3"], fixed: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "3 3"]:
    """The rotation R, det R = +1, with the smallest ‖moved R - fixed‖ (Kabsch 1976)."""
    left, _, right = np.linalg.svd(moved.T @ fixed)
    sign = np.sign(np.linalg.det(left @ right))
    return left * np.array([1, 1, sign]) @ right
