"""Lattice groups of supercells: colours of all Bravais lattices, point groups of given lattices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facetry.geometry import niggli_reduce
from facetry.geometry.groups import (
    BRAVAIS,
    automorphisms,
    bravais_colours,
    bravais_gram,
    lattice_permutations,
    own_colours,
    pair_colours,
    point_groups,
    symmetric_permutations,
)
from tests import crystals as zoo

# differences of offsets ν1 ν2 ν3 in orbits; colours for 3 x 3 x 3; order of the point group
TABLE = {
    "aP": ("000|001|010|011|100|101|110|111", 14, 2),
    "mP": ("000|001|010|011|100|101|110|111", 10, 4),
    "mS": ("000|001|010,100|011,101|110|111", 10, 4),
    "oP": ("000|001|010|011|100|101|110|111", 8, 8),
    "oS": ("000|001|010,100|011,101|110|111", 8, 8),
    "oI": ("000|001,010,100,111|011|101|110", 8, 8),
    "oF": ("000|001,110|010,101|011,100|111", 8, 8),
    "tP": ("000|001|010,100|011,101|110|111", 6, 16),
    "tI": ("000|001,010,100,111|011|101,110", 6, 16),
    "hR": ("000|001,010,100|011,101,110|111", 6, 12),
    "hP": ("000|001|010,100,110|011,101,111", 6, 24),
    "cP": ("000|001,010,100|011,101,110|111", 4, 48),
    "cI": ("000|001,010,100,111|011,101,110", 4, 48),
    "cF": ("000|001,010,011,100,101,110|111", 4, 48),
    "S8": ("000|001,010,011,100,101,110,111", 2, None),
}


def orbits(colours) -> str:
    members = [[format(d, "03b") for d in range(8) if colours[d] == k] for k in range(max(colours) + 1)]
    return "|".join(",".join(m) for m in members)


@pytest.mark.parametrize("symbol", TABLE)
def test_colours_of_bravais_lattices(symbol):
    expected, larger, order = TABLE[symbol]
    assert orbits(bravais_colours(symbol)) == expected
    assert bravais_colours(symbol, 3).max() + 1 == larger
    if order is not None:
        lattice = torch.from_numpy(np.linalg.cholesky(bravais_gram(symbol)))[None]
        assert int(point_groups(lattice).sum()) == order


def test_colours_depend_on_the_difference_alone_and_are_symmetric():
    for symbol in BRAVAIS:
        lattice = torch.from_numpy(np.linalg.cholesky(bravais_gram(symbol)))[None]
        group = automorphisms()[0][point_groups(lattice)[0].numpy()]
        colours = pair_colours(lattice_permutations(group))
        cells = np.arange(8)
        assert (colours == bravais_colours(symbol)[cells[:, None] ^ cells]).all()
        assert (colours == colours.T).all()
    assert (pair_colours(symmetric_permutations(8)) == 1 - np.eye(8)).all()


def test_all_automorphisms_are_there():
    matrices, inverses = automorphisms()
    assert len(matrices) == 6960
    assert (matrices[0] == np.eye(3)).all()
    assert (matrices @ inverses == np.eye(3)).all()


@pytest.mark.parametrize("symbol", BRAVAIS)
def test_own_group_in_any_basis(symbol):
    """A Niggli cell of a lattice in a random basis, turned: the sizes of orbits and the whole point group."""
    lattice = np.linalg.cholesky(bravais_gram(symbol))
    cells = [zoo.unimodular(seed, 3) @ lattice @ zoo.rotation(seed).T for seed in range(4)]
    reduced, _ = niggli_reduce(torch.from_numpy(np.array(cells)))
    assert point_groups(reduced).sum(1).tolist() == [TABLE[symbol][2]] * 4
    expected = sorted(len(o.split(",")) for o in TABLE[symbol][0].split("|"))
    for table in own_colours(reduced).tolist():
        assert sorted(np.unique(table, return_counts=True)[1].tolist()) == expected


def test_nearly_symmetric_lattices():
    cube = torch.eye(3, dtype=torch.float64) * 4
    strain = torch.diag(torch.tensor([0.0, 3e-4, 3e-3], dtype=torch.float64))
    cells = torch.stack([cube, cube + 4 * strain.clamp(max=3e-4), cube + 4 * strain])
    assert point_groups(cells).sum(1).tolist() == [48, 48, 16]


def test_unknown_lattice():
    with pytest.raises(ValueError, match="expected one of aP"):
        bravais_colours("xP")
