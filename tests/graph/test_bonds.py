"""Bonds by covalent radii and the dimensions of what they connect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.elements import COVALENT_RADII
from facetry.graph import GraphError
from facetry.graph.bonds import Bonds, dimensionality
from tests import crystals as zoo

CHAIN = Crystal(np.diag([9.0, 9.0, 2.5]), [[0, 0, 0], [0, 0, 0.5]], [6, 6], name="chain")
SLANTED_CHAIN = zoo.rebased(CHAIN, np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]]))
MOLECULE = Crystal(np.eye(3) * 8, [[0.95, 0, 0], [0.05, 0, 0]], [7, 7], name="molecule across the border")
BOTH = Crystal(
    np.diag([12.0, 3.0, 3.0]), [[0, 0, 0], [0.4, 0, 0], [0.48, 0, 0]], [26, 1, 1], name="sheet, H2"
)


def dimensions(crystals) -> list[int]:
    return dimensionality(Bonds()(crystals)).tolist()


def test_dimensions_of_known_crystals():
    known = [
        (zoo.nacl(), 3), (zoo.si(), 3), (zoo.srtio3(), 3), (zoo.cu(), 3), (zoo.layered(), 2),
        (CHAIN, 1), (SLANTED_CHAIN, 1), (MOLECULE, 0), (BOTH, 2),
        (Crystal(np.eye(3) * 15, [[0, 0, 0]], [18], name="atom"), 0),
    ]  # fmt: skip
    assert dimensions([c for c, _ in known]) == [d for _, d in known]
    # the cell and the order of atoms do not matter
    other = [
        zoo.unwrapped(zoo.permuted(c.supercell(np.diag([2, 1, 2])), i), i) for i, (c, _) in enumerate(known)
    ]
    assert dimensions(other) == [d for _, d in known]


def test_bonds_are_those_of_the_radii():
    batch = Bonds(0.3)([zoo.random_crystal(3), zoo.zno()])
    graph, d = batch.require_graph(), batch.edge_vectors().norm(dim=1)
    radius = torch.tensor(COVALENT_RADII, dtype=torch.float64)[batch.atomic_numbers]
    limit = radius[graph.center] + radius[graph.neighbor] + 0.3
    assert bool((d <= limit + 1e-9).all())
    assert Bonds(0.3)([zoo.zno()]).require_graph().num_edges.tolist() == [16]  # four each
    with pytest.raises(GraphError, match="heavy: no covalent radius of Bk"):
        Bonds()([zoo.po(), Crystal(np.eye(3) * 4, [[0, 0, 0]], [97], name="heavy")])


def test_dimensions_are_those_of_ase(data_folder):
    """The same bonds given to the implementation of the method's authors, on real crystals of all kinds."""
    from ase.geometry.dimensionality.rank_determination import RDA

    from facetry.data.crystals import CrystalTable

    table = CrystalTable.from_parquet(data_folder / "mb_jdft2d" / "all.parquet").select(range(0, 600, 20))
    more = CrystalTable.from_parquet(data_folder / "mp20" / "val.parquet").select(range(0, 9000, 300))
    crystals = CrystalTable.concatenate([table, more])
    batch = Bonds()(crystals)
    ours = dimensionality(batch).tolist()
    assert len(set(ours)) >= 3
    for row, crystal in enumerate(crystals):
        graph = batch.select([row]).require_graph()
        theirs = RDA(len(crystal))
        for i, j, t in zip(graph.center.tolist(), graph.neighbor.tolist(), graph.image.tolist(), strict=True):
            theirs.insert_bond(i, j, tuple(t))
        counts = theirs.check()
        assert max(d for d in range(4) if counts[d]) == ours[row], crystal.name
