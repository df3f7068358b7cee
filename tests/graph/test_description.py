"""A graph does not depend on how its crystal was written down."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from facetry.graph.cells import CellRadius, Voronoi
from facetry.graph.description import cell_index
from tests import crystals as zoo


def test_descriptions_do_not_matter():
    """Edges, with δ, of any description of a crystal: the same multiset of (elements, δ, Å)."""

    def labels(batch):
        z, g = batch.atomic_numbers, batch.graph
        d = batch.edge_vectors().norm(dim=1)
        rows = torch.stack([z[g.center], z[g.neighbor], cell_index(g.image)], 1).tolist()
        return Counter((*row, round(x, 6)) for row, x in zip(rows, d.tolist(), strict=True))

    for builder in (CellRadius(4.0), Voronoi(valid=False)):
        for i, c in enumerate([zoo.zno(), zoo.tellurium(), zoo.random_crystal(3), zoo.srtio3()]):
            other = zoo.permuted(zoo.shifted(zoo.rotated(c, -zoo.rotation(i)), i), i)
            other = zoo.rebased(other, zoo.unimodular(i)).supercell(np.diag([1, 2, 1]))
            assert labels(builder([c])) == labels(builder([other]))
