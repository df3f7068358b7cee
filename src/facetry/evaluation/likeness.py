"""Which crystals of a large set are the same, or nearly so: from fingerprints to groups, without all pairs.

    composition     only crystals of one reduced formula are compared
    fingerprint     their smeared distances (`duplicates.fingerprints`), near ones found by a tree
    confirmed       every atom has a partner whose 24 nearest distances are the same to 0.05 Å

Fingerprints are the same for mirror images and for all cells of a crystal, and do not depend on its volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from facetry.data.crystals import CrystalTable
from facetry.evaluation.duplicates import SAME, fingerprints
from facetry.geometry.components import connected_components
from facetry.geometry.primitive import primitive_cell
from facetry.graph.batch import Batch
from facetry.graph.neighbors import GraphError, nearest_pairs, reduced

__all__ = ["SAME_DISTANCES", "Likeness", "find_alike"]

SAME_DISTANCES = 0.05
"""Å; two crystals are the same where no one of the 24 nearest distances of an atom differs by more."""

_NEIGHBOURS = 24
_SHRINK = 0.02  # Å that copies of an atom in a supercell may be off
_DIRECTIONS = 12  # in which the tree looks at fingerprints
_CHUNK = 128
_MANY = 200_000  # pairs compared at once
_MOST_ATOMS = 2000  # of a cell that is compared atom by atom

_Atoms = tuple[np.ndarray, np.ndarray]  # kinds, and nearest distances of each


@dataclass(frozen=True, eq=False)
class Likeness:
    """Groups of crystals that are the same, and of those that are nearly the same (which hold the former).

    Numbers of groups for every crystal. `pairs` are links that hold the groups together, for each two rows,
    the distance of their fingerprints and the largest difference of their nearest distances in Å (infinite
    where atoms have no partners); there are fewer links than crystals.
    """

    same: Int[np.ndarray, " crystals"]
    near: Int[np.ndarray, " crystals"]
    pairs: Int[np.ndarray, "links 2"]
    fingerprint: Float[np.ndarray, " links"]
    distances: Float[np.ndarray, " links"]

    @property
    def confirmed(self) -> Bool[np.ndarray, " links"]:
        """Mask of the links whose two crystals are the same."""
        return self.distances <= SAME_DISTANCES


def find_alike(
    crystals: CrystalTable,
    kinds: Int[np.ndarray, " atoms"],
    formulas: Sequence[str],
    tolerance: float = SAME,
) -> Likeness:
    """Groups of the same and of nearly the same crystals among those of one formula.

    `kinds` are what sits on the sites, `formulas` what may be compared at all. A crystal whose
    atoms coincide is like no other.
    """
    _, bucket, size = np.unique(np.array(formulas, dtype=str), return_inverse=True, return_counts=True)
    rows = np.nonzero(size[bucket] > 1)[0]
    renamed, count = _ranked(crystals, kinds)
    found = [(np.zeros((0, 2), dtype=np.int64), np.zeros(0))]
    for number in np.unique(count[rows]).tolist():
        of_size = rows[count[rows] == number]
        found.append(_near(renamed, of_size, bucket, tolerance))
    pairs = np.concatenate([p for p, _ in found])
    fingerprint = np.concatenate([d for _, d in found])
    tree = _tree(pairs, fingerprint, len(crystals))
    pairs, fingerprint = pairs[tree], fingerprint[tree]
    distances = _largest_differences(renamed, pairs)
    same = pairs[distances <= SAME_DISTANCES]
    return Likeness(
        connected_components(same[:, 0], same[:, 1], len(crystals))[1],
        connected_components(pairs[:, 0], pairs[:, 1], len(crystals))[1],
        pairs,
        fingerprint,
        distances,
    )


def _ranked(
    crystals: CrystalTable, kinds: Int[np.ndarray, " atoms"]
) -> tuple[CrystalTable, Int[np.ndarray, " crystals"]]:
    """The crystals with their kinds of sites numbered 1, 2, ... in each, and how many kinds each has.
    Crystals of one formula are renamed alike, so that fingerprints stay short however many elements a set
    has."""
    owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
    stride = int(kinds.max(initial=0)) + 1
    unique, inverse = np.unique(owner * stride + kinds, return_inverse=True)
    first = np.searchsorted(unique // stride, np.arange(len(crystals)))
    rank = np.arange(len(unique)) - first[unique // stride] + 1
    count = np.bincount(unique // stride, minlength=len(crystals))
    renamed = CrystalTable(
        crystals.lattice, crystals.frac_coords, rank[inverse], crystals.offsets, crystals.names
    )
    return renamed, count


def _near(
    crystals: CrystalTable,
    rows: Int[np.ndarray, " chosen"],
    bucket: Int[np.ndarray, " crystals"],
    tolerance: float,
) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Pairs of one bucket whose fingerprints are nearer than the tolerance, and how near."""
    parts = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    vectors = np.concatenate([fingerprints(crystals.select(part)).astype(np.float32) for part in parts])
    # directions in which the fingerprints differ most; shadows are never farther apart than what casts them
    centred = vectors - vectors.mean(0)
    start_directions = np.random.default_rng(0).standard_normal((vectors.shape[1], _DIRECTIONS))
    directions, _ = np.linalg.qr(centred.T @ (centred @ start_directions.astype(np.float32)))
    reach = np.sqrt(2 * tolerance) * 1.001
    place = np.concatenate([bucket[rows, None] * (2 * reach + 1), centred @ directions], axis=1)
    pairs = cKDTree(place).query_pairs(reach, output_type="ndarray").astype(np.int64)
    distance = np.concatenate(
        [np.zeros(0, dtype=np.float32)]
        + [
            1 - np.einsum("pf,pf->p", vectors[part[:, 0]], vectors[part[:, 1]], dtype=np.float64)
            for part in np.array_split(pairs, -(-len(pairs) // _MANY))
        ]
        if len(pairs)
        else [np.zeros(0)]
    )
    keep = distance < tolerance
    return np.sort(rows[pairs[keep]], axis=1), np.maximum(distance[keep], 0.0).astype(np.float64)


def _tree(
    pairs: Int[np.ndarray, "pairs 2"], distance: Float[np.ndarray, " pairs"], count: int
) -> Int[np.ndarray, " links"]:
    """Which pairs hold the groups together: a spanning tree of the nearest ones."""
    if not len(pairs):
        return np.zeros(0, dtype=np.int64)
    weight = coo_array((distance + 1e-9, (pairs[:, 0], pairs[:, 1])), shape=(count, count)).tocsr()
    tree = minimum_spanning_tree(weight).tocoo()
    chosen = tree.row.astype(np.int64) * count + tree.col
    return np.nonzero(np.isin(pairs[:, 0] * count + pairs[:, 1], chosen))[0]


def _largest_differences(
    crystals: CrystalTable, pairs: Int[np.ndarray, "links 2"]
) -> Float[np.ndarray, " links"]:
    """For every pair the largest difference in Å between the nearest distances of two partners; partners
    are atoms of one kind, chosen so that the differences are smallest in sum. Infinite where atoms
    coincide, or where cells are too large to be compared."""
    rows, place = np.unique(pairs, return_inverse=True)
    place = place.reshape(pairs.shape)
    environments: list[_Atoms | None] = []
    for start in range(0, len(rows), _CHUNK):
        environments += _environments(crystals.select(rows[start : start + _CHUNK]))
    result = np.full(len(pairs), np.inf)
    for number, (a, b) in enumerate(place.tolist()):
        first, second = environments[a], environments[b]
        if first is None or second is None:
            continue
        first, second = _of_one_size(first, second)
        if len(first[0]) > _MOST_ATOMS:
            continue
        result[number] = _best_partners(first, second)
    return result


def _best_partners(first: _Atoms, second: _Atoms) -> float:
    """The largest difference that is left when atoms of each kind have found their partners."""
    largest = 0.0
    for kind in np.unique(first[0]).tolist():
        rows, columns = (part[1][part[0] == kind] for part in (first, second))
        if len(rows) != len(columns):
            return np.inf
        cost = cdist(rows, columns, "chebyshev")
        largest = max(largest, float(cost[linear_sum_assignment(cost)].max()))
    return largest


def _of_one_size(first: _Atoms, second: _Atoms) -> tuple[_Atoms, _Atoms]:
    """Both with as many atoms as their smallest common supercell."""
    atoms = math.lcm(len(first[0]), len(second[0]))
    repeat = [np.tile(np.arange(len(kinds)), atoms // len(kinds)) for kinds, _ in (first, second)]
    return tuple((part[0][rows], part[1][rows]) for part, rows in zip((first, second), repeat, strict=True))


def _environments(crystals: CrystalTable) -> list[_Atoms | None]:
    """Kind and nearest distances, sorted, of every atom of the primitive cells; None where atoms coincide."""
    try:
        kinds, table, sizes = _nearest_distances(Batch.from_crystals(crystals))
    except GraphError:
        if len(crystals) == 1:
            return [None]
        half = len(crystals) // 2
        return [
            *_environments(crystals.select(slice(half))),
            *_environments(crystals.select(slice(half, None))),
        ]
    ends = np.cumsum(sizes)[:-1]
    return list(zip(np.split(kinds, ends), np.split(table, ends), strict=True))


def _nearest_distances(
    batch: Batch,
) -> tuple[Int[np.ndarray, " atoms"], Float[np.ndarray, "atoms neighbours"], Int[np.ndarray, " crystals"]]:
    cells = primitive_cell(batch.lattice, batch.frac_coords, batch.atomic_numbers, batch.num_atoms, _SHRINK)
    small = Batch(cells.lattice, cells.frac_coords, cells.atomic_numbers, cells.num_atoms)
    small, _, _ = reduced(small)
    pairs, _ = nearest_pairs(small, _NEIGHBOURS, [""] * len(small))
    atoms = len(small.frac_coords)
    order = torch.argsort(pairs.distance, stable=True)
    order = order[torch.argsort(pairs.center[order], stable=True)]
    counts = torch.bincount(pairs.center, minlength=atoms)
    start = torch.cumsum(counts, 0) - counts
    table = pairs.distance[order[start[:, None] + torch.arange(_NEIGHBOURS)]]
    return small.atomic_numbers.numpy(), table.numpy(), small.num_atoms.numpy()
