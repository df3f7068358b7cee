"""Voronoi bonds and their filter, against textbook counts and pymatgen."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch

from facetry import Crystal
from facetry.graph import GraphError
from facetry.graph.cells import CellRadius, Voronoi
from facetry.graph.description import cell_index
from tests import crystals as zoo

TUNGSTEN = Crystal(zoo.bcc(3.16), [[0, 0, 0]], [74], name="W")


@pytest.mark.parametrize(
    ("crystal", "edges"),
    [
        (zoo.nacl(), 12), (zoo.srtio3(), 36), (zoo.si(), 8), (zoo.cu(), 12), (TUNGSTEN, 14),
        (zoo.cscl(), 22), (zoo.zno(), 16),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)  # fmt: skip
def test_counts(crystal, edges):
    assert len(Voronoi()([crystal]).graph) == edges


def bonds(batch, index):
    """Multiset of (centre, neighbour, Å) on the 2 x 2 x 2 supercell, atoms as 8 p + c."""
    part = batch.select([index])
    d = part.edge_vectors().norm(dim=1).tolist()
    delta = cell_index(part.graph.image).tolist()
    rows = zip(part.graph.center.tolist(), part.graph.neighbor.tolist(), delta, d, strict=True)
    return Counter((8 * p + c, 8 * q + (c ^ t), round(x, 3)) for p, q, t, x in rows for c in range(8))


def pymatgen_bonds(batch, index):
    """The same from pymatgen's IsayevNN on the supercell."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.core.local_env import IsayevNN

    part = batch.select([index])
    cells = np.array(list(np.ndindex(2, 2, 2)))
    frac = part.frac_coords.numpy()
    frac = frac - np.floor(frac)
    sites = ((frac[:, None] + cells) / 2).reshape(-1, 3)
    species = np.repeat(part.atomic_numbers.numpy(), 8)
    structure = Structure(Lattice(part.lattice[0].numpy() * 2), species, sites)
    shift = np.floor(part.frac_coords.numpy()).astype(int)
    finder = IsayevNN(tol=0.5, cutoff=6.0, compute_adj_neighbors=False)
    found = Counter()
    for i, nn in enumerate(finder.get_all_nn_info(structure)):
        for entry in nn:
            d = np.linalg.norm(structure[i].coords - entry["site"].coords)
            found[(i, entry["site_index"], round(float(d), 3))] += 1
    # cells of our description start at the atoms' own cells
    number = {}
    for p in range(len(frac)):
        for c, v in enumerate(cells):
            w = (v + shift[p]) % 2
            number[8 * p + int(w @ [4, 2, 1])] = 8 * p + c
    back = {v: k for k, v in number.items()}
    return Counter({(back[i], back[j], d): n for (i, j, d), n in found.items()})


def test_against_pymatgen():
    """Small and skewed cells; 200 crystals of mp20 are compared by benchmarks/speed/voronoi.py."""
    crystals = [zoo.nacl(), zoo.zno(), zoo.random_crystal(2), zoo.random_crystal(3), zoo.rhombohedral(50)]
    batch = Voronoi(valid=False)(crystals)
    for index in range(len(crystals)):
        assert bonds(batch, index) == pymatgen_bonds(batch, index)


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (Crystal(np.diag([3.6, 3.6, 18.0]), [[0, 0, 0], [0.5, 0.5, 0.1]], [29, 29], name="slab"), "open"),
        (Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="box"), "open"),
        (zoo.po(), "an atom of Po has no bond"),
        (zoo.layered(), "4 parts"),
        (Crystal(np.eye(3) * 3, [[0, 0, 0]], [98], name="Cf"), "Cf has no covalent radius"),
    ],
    ids=["slab", "box", "lonely", "layers", "Cf"],
)
def test_refused(crystal, reason):
    with pytest.raises(GraphError, match=reason) as error:
        Voronoi()([zoo.nacl(), crystal])
    assert crystal.name in str(error.value)


def test_open_cells_are_tried_again_with_the_supercell(monkeypatch):
    """Images around eight cells instead of one; for a sound crystal the bonds are the same."""
    from facetry.graph import cells

    crystals = [zoo.nacl(), zoo.zno(), zoo.random_crystal(2)]
    expected, original = Voronoi()(crystals).graph, cells._bonds

    def suspicious(batch, *arguments):
        *found, reach = original(batch, *arguments)
        if arguments[-1] != 2:
            reach[-1] = torch.inf
        return *found, reach

    monkeypatch.setattr(cells, "_bonds", suspicious)
    again = Voronoi()(crystals).graph
    assert again.num_edges.tolist() == expected.num_edges.tolist()
    order, other = (np.lexsort(np.column_stack([g.center, g.neighbor, g.image]).T) for g in (expected, again))
    for name in ("center", "neighbor", "image"):
        assert torch.equal(getattr(expected, name)[order], getattr(again, name)[other])


def test_large_cells_are_allowed_with_a_warning(caplog):
    rng = np.random.default_rng(0)
    big = zoo.si().supercell(np.diag([3, 3, 3]))
    big = Crystal(
        big.lattice, big.frac_coords + rng.normal(size=(54, 3)) * 2e-3, big.atomic_numbers, name="big"
    )
    with caplog.at_level(logging.WARNING):
        batch = Voronoi()([big])
    assert len(batch.frac_coords) == 54
    assert "big: 54 atoms in the primitive cell" in caplog.text
    assert "MB" in caplog.text


def test_wrong_settings():
    with pytest.raises(ValueError, match="slack >= 0"):
        Voronoi(slack=-1.0)
    with pytest.raises(ValueError, match="cutoff above 0"):
        CellRadius(0.0)


def test_a_near_look_is_enough_or_is_not_trusted(monkeypatch):
    """Points near the atoms give the bonds that all within 6 Å give, on crystals where they do not suffice
    too: without the check of the corners these would differ."""
    from facetry.graph import cells

    crystals = [*(zoo.random_crystal(seed) for seed in range(12)), *zoo.symmetric()]
    crystals = [c for c in crystals if len(c) and _sound(c)]

    def edges():
        graph = Voronoi(valid=False)(crystals).graph
        return sorted(
            map(tuple, torch.cat([graph.center[:, None], graph.neighbor[:, None], graph.image], 1).tolist())
        )

    looks, original = [], cells._bonds

    def counted(batch, *arguments):
        looks.append(len(batch))
        return original(batch, *arguments)

    monkeypatch.setattr(cells, "_bonds", counted)
    near = edges()
    assert len(looks) > 1
    assert sum(looks[1:]) < looks[0]  # some crystals need a second look, not all
    monkeypatch.setattr(cells, "_NEAR", 99.0)
    assert edges() == near


def _sound(crystal) -> bool:
    try:
        Voronoi(valid=False)([crystal])
    except GraphError:
        return False
    return True


def test_rounding_does_not_decide_at_a_round_distance():
    """A layer of boron nitride with a = 2.5 Å: its third neighbours are 5 Å away, the cutoff itself."""
    lattice = np.array([[2.5, 0, 0], [-1.25, 2.5 * 0.75**0.5, 0], [0, 0, 15.0]])
    layer = Crystal(lattice, [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]], [5, 7])
    turned = [zoo.rebased(zoo.rotated(layer, zoo.rotation(i)), zoo.unimodular(i)) for i in range(20)]
    counts = CellRadius(5.0)([layer, *turned]).require_graph().num_edges
    assert len(set(counts.tolist())) == 1
