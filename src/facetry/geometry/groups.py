"""Lattice groups as permutations of the cells of an N x N x N supercell, and the orbits of pairs of cells.

Cell c of a supercell has the offset ν = (ν1, ν2, ν3) in 0 ... N-1, with c = N² ν1 + N ν2 + ν3. A lattice
group holds the translations and a point group of integer matrices M with M G Mᵀ = G for the Gram matrix G; ν
goes to ν M modulo N. Pairs of cells in one orbit share a colour (Kaba and Ravanbakhsh 2022). The
translations act regularly, so the colour of a pair depends on the difference of its offsets alone: a table
of N³ entries.

In a 2 x 2 x 2 supercell -1 is 1. Inversion and mirrors along the axes then do nothing, and a group is its
image in GL(3, 2), which has 168 elements.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from facetry.geometry.components import connected_components
from facetry.geometry.lattice import metric
from facetry.geometry.reduction import working_copy

TOLERANCE = 1e-3  # of lengths, relative, and of cosines: how far a lattice may be from its symmetry

# A lattice of each Bravais type: the primitive basis in units of conventional vectors, and the lengths of
# these vectors and the cosines of their angles, general within the type.
_CENTRED = {
    "P": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "C": [[0.5, 0.5, 0], [0.5, -0.5, 0], [0, 0, 1]],
    "I": [[0.5, 0.5, -0.5], [0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]],
    "F": [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
}
_SHAPE = {  # a, b, c, cos α, cos β, cos γ
    "a": (4.1, 4.9, 6.2, 0.21, 0.13, 0.29),
    "m": (4.1, 4.9, 6.2, 0, -0.23, 0),
    "o": (4.1, 4.9, 6.2, 0, 0, 0),
    "t": (4.1, 4.1, 6.2, 0, 0, 0),
    "r": (4.1, 4.1, 4.1, 0.23, 0.23, 0.23),
    "h": (4.1, 4.1, 6.2, 0, 0, -0.5),
    "c": (4.1, 4.1, 4.1, 0, 0, 0),
}
BRAVAIS = {  # symbol: shape of the conventional cell, centring
    "aP": "aP", "mP": "mP", "mS": "mC", "oP": "oP", "oS": "oC", "oI": "oI", "oF": "oF", "tP": "tP",
    "tI": "tI", "hR": "rP", "hP": "hP", "cP": "cP", "cI": "cI", "cF": "cF",
}  # fmt: skip
"""The 14 Bravais lattices (hR in rhombohedral axes)."""


def bravais_gram(symbol: str) -> Float[np.ndarray, "3 3"]:
    """Gram matrix (Å²) of the primitive basis of a general lattice of this Bravais type. Raises ValueError
    for an unknown symbol."""
    if symbol not in BRAVAIS:
        raise ValueError(f"Bravais lattice: expected one of {', '.join(BRAVAIS)}, came {symbol!r}")
    shape, centring = BRAVAIS[symbol]
    a, b, c, bc, ac, ab = _SHAPE[shape]
    gram = np.array(
        [[a * a, a * b * ab, a * c * ac], [a * b * ab, b * b, b * c * bc], [a * c * ac, b * c * bc, c * c]]
    )
    basis = np.array(_CENTRED[centring], dtype=float)
    return basis @ gram @ basis.T


def cell_offsets(size: int) -> Int[np.ndarray, "cells 3"]:
    """ν1, ν2, ν3 of every cell, in the order of the cells."""
    return np.stack(np.unravel_index(np.arange(size**3), (size,) * 3), 1)


def lattice_permutations(
    point_group: Int[np.ndarray, "elements 3 3"], size: int = 2
) -> Int[np.ndarray, "generators cells"]:
    """Generators of a lattice group: one step along each axis, and the elements of its point group."""
    cells = cell_offsets(size)
    moved = np.concatenate([cells + step for step in np.eye(3, dtype=np.int64)[:, None]])
    turned = (cells @ point_group).reshape(-1, 3)
    images = np.concatenate([moved, turned]) % size
    return np.ravel_multi_index(images.T, (size,) * 3).reshape(-1, size**3)


def symmetric_permutations(cells: int) -> Int[np.ndarray, "generators cells"]:
    """Generators of the symmetric group: the exchange of two cells, and the cycle of all."""
    exchange = np.arange(cells)
    exchange[:2] = exchange[1::-1]
    return np.stack([exchange, np.roll(np.arange(cells), 1)])


def pair_colours(permutations: Int[np.ndarray, "generators cells"]) -> Int[np.ndarray, "cells cells"]:
    """Orbits of ordered pairs of cells under the group that the permutations generate, numbered in the order
    in which they appear; the diagonal is colour 0 of a transitive group."""
    cells = permutations.shape[1]
    image = (permutations[:, :, None] * cells + permutations[:, None, :]).ravel()
    pair = np.tile(np.arange(cells**2), len(permutations))
    return _by_appearance(connected_components(pair, image, cells**2)[1]).reshape(cells, cells)


def _by_appearance(labels: Shaped[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """The same classes, numbered 0, 1, ... as they appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def bravais_colours(symbol: str, size: int = 2) -> Int[np.ndarray, " cells"]:
    """Colour of each difference of offsets for a Bravais type, or for all permutations of cells ("S8")."""
    if symbol == "S8":
        return pair_colours(symmetric_permutations(size**3))[0]
    allowed = point_groups(torch.from_numpy(np.linalg.cholesky(bravais_gram(symbol)))[None])[0]
    return pair_colours(lattice_permutations(automorphisms()[0][allowed.numpy()], size))[0]


@cache
def automorphisms() -> tuple[Int[np.ndarray, "matrices 3 3"], Int[np.ndarray, "matrices 3 3"]]:
    """All integer matrices with entries -1, 0, 1 and determinant ±1, and their inverses.

    They are all that can carry a Niggli-reduced cell to another basis of the same shape, 6960.
    """
    entries = np.stack(np.unravel_index(np.arange(3**9), (3,) * 9), 1) - 1
    matrices = entries.reshape(-1, 3, 3)
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    matrices = matrices[np.abs((a * np.cross(b, c)).sum(1)) == 1]
    # the identity first: a crystal that leaves the choice open keeps the cell it has
    order = np.argsort(np.abs(matrices - np.eye(3, dtype=np.int64)).sum((1, 2)), kind="stable")
    matrices = matrices[order]
    return matrices, np.rint(np.linalg.inv(matrices)).astype(np.int64)


@cache
def _rows() -> tuple[np.ndarray, np.ndarray]:
    """The 26 rows that occur in `automorphisms`, and the three row numbers of each."""
    matrices = automorphisms()[0]
    code = (matrices + 1) @ np.array([9, 3, 1])
    used, number = np.unique(code, return_inverse=True)
    rows = np.stack(np.unravel_index(used, (3,) * 3), 1) - 1
    return rows, number.reshape(-1, 3)


@cache
def cell_actions() -> Int[np.ndarray, "elements 8"]:
    """What each of `automorphisms` does to the differences of offsets modulo 2: δ goes to δ M."""
    return lattice_permutations(automorphisms()[0])[3:]


def point_groups(
    lattice: Shaped[Tensor, "crystals 3 3"], tolerance: float = TOLERANCE
) -> Bool[Tensor, "crystals elements"]:
    """Which of `automorphisms` are in the point group of each lattice, for the basis at hand.

    A matrix counts when lengths (relative) and cosines of the basis stay within `tolerance`. For
    Niggli-reduced cells this is the whole point group.
    """
    gram = metric(working_copy(lattice))
    rows, number = _rows()
    rows = torch.from_numpy(rows).to(gram)
    number = torch.from_numpy(number).to(gram.device)
    products = rows @ gram @ rows.T
    length = gram.diagonal(dim1=1, dim2=2).sqrt()
    bound = tolerance * length[:, :, None] * length[:, None, :]
    found = torch.ones((len(gram), len(number)), dtype=torch.bool, device=gram.device)
    for i in range(3):
        for j in range(i, 3):
            # twice the bound for squares: they change twice as fast as lengths
            near = (products - gram[:, i, j, None, None]).abs() <= bound[:, i, j, None, None] * (1 + (i == j))
            found &= near.flatten(1)[:, number[:, i] * len(rows) + number[:, j]]
    return found


def own_colours(
    lattice: Shaped[Tensor, "crystals 3 3"], tolerance: float = TOLERANCE
) -> Int[Tensor, "crystals 8"]:
    """Colour of each difference of offsets modulo 2 under the point group of each crystal's lattice.

    The lattice must be Niggli-reduced. Colours are the smallest member of each orbit, not consecutive.
    """
    found = point_groups(lattice, tolerance)
    actions = torch.from_numpy(cell_actions()).to(found.device)
    classes, which = torch.unique(actions, dim=0, return_inverse=True)  # 168
    present = torch.zeros((len(found), len(classes)), dtype=torch.float64, device=found.device)
    crystal, element = torch.nonzero(found).unbind(1)
    present[crystal, which[element]] = 1.0
    reach = torch.nn.functional.one_hot(classes, 8).to(present).flatten(1)
    linked = (present @ reach).view(-1, 8, 8) > 0
    for _ in range(3):  # the set is a group but for the tolerance
        linked = (linked.to(present) @ linked.to(present)) > 0
    return linked.to(torch.int8).argmax(2)
