"""Periodic graphs against ASE, brute force and the cells that break neighbour searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import facetry.graph
from facetry.crystal import Crystal
from facetry.graph import Batch, GraphError, KNearest, LatticeKNearest, Radius
from facetry.graph.neighbors import _pairs_torch, _pairs_vesin, reduced
from tests import crystals as zoo


def hard_cells() -> list[Crystal]:
    """Skewed beyond reason, flat, one atom, unwrapped, left-handed, long and thin."""
    base = zoo.random_crystal(2, atoms=5)
    left = Crystal(base.lattice[[1, 0, 2]], base.frac_coords[:, [1, 0, 2]], base.atomic_numbers)
    shear = np.array([[1, 0, 0], [37, 1, 0], [-12, 5, 1]])
    return [
        zoo.po(), zoo.cu(), zoo.nacl(), zoo.zno(), zoo.layered(), left,
        zoo.unwrapped(base, 1), zoo.shifted(base, 2), zoo.rebased(base, zoo.unimodular(5)),
        zoo.rebased(zoo.cu(), shear), zoo.rebased(base, shear[::-1].copy()),
        Crystal(np.diag([60.0, 2.6, 2.6]), [[0, 0, 0], [0.31, 0.5, 0.5]], [29, 29]),
        Crystal(np.array([[2.5, 0, 0], [1.2, 0.9, 0], [0, 0, 25.0]]), [[0.2, 0.3, 0.4]], [6]),
    ]  # fmt: skip


def as_set(graph, crystal_of_edge, atom_start, c) -> set[tuple[int, ...]]:
    rows = crystal_of_edge == c
    first = int(atom_start[c])
    i, j = graph.center[rows] - first, graph.neighbor[rows] - first
    edges = torch.cat([i[:, None], j[:, None], graph.image[rows]], 1).tolist()
    assert len(edges) == len({tuple(e) for e in edges})
    return {tuple(e) for e in edges}


def edge_sets(graph, crystals) -> list[set[tuple[int, ...]]]:
    owner = torch.repeat_interleave(torch.arange(len(crystals)), graph.num_edges)
    start = np.cumsum([0, *[len(c) for c in crystals]])
    return [as_set(graph, owner, start, c) for c in range(len(crystals))]


@pytest.mark.parametrize("cutoff", [3.0, 4.0])
def test_radius_graph_is_that_of_ase(cutoff):
    from ase import Atoms
    from ase.neighborlist import primitive_neighbor_list

    crystals = hard_cells() + zoo.symmetric()
    ours = edge_sets(facetry.graph.radius(crystals, cutoff), crystals)
    for crystal, edges in zip(crystals, ours, strict=True):
        atoms = Atoms(numbers=crystal.atomic_numbers, cell=crystal.lattice, pbc=True)
        atoms.set_scaled_positions(crystal.frac_coords)
        i, j, s = primitive_neighbor_list(
            "ijS", atoms.pbc, crystal.lattice, crystal.frac_coords @ crystal.lattice, cutoff + 1e-9
        )
        theirs = {(int(a), int(b), *map(int, c)) for a, b, c in zip(i, j, s, strict=True)}
        assert edges == theirs or _only_at_the_cutoff(crystal, edges ^ theirs, cutoff), crystal


def _only_at_the_cutoff(crystal, edges, cutoff) -> bool:
    for i, j, *image in edges:
        vector = (crystal.frac_coords[j] + image - crystal.frac_coords[i]) @ crystal.lattice
        if abs(np.linalg.norm(vector) - cutoff) > 1e-6:
            return False
    return True


def test_vectors_follow_from_the_integers():
    crystals = hard_cells()
    batch = Radius(4.0)(crystals)
    lengths = batch.edge_vectors().norm(dim=1)
    assert float(lengths.max()) < 4.0
    assert (batch.graph.center.diff() >= 0).all()
    assert batch.graph.num_edges.sum() == len(batch.graph)


def test_plain_torch_search_finds_what_vesin_finds():
    crystals = hard_cells() + [zoo.random_crystal(s) for s in range(12)]
    small, _, _ = reduced(Batch.from_crystals(crystals))
    cutoff = torch.linspace(2.5, 6.0, len(crystals), dtype=torch.float64)
    for a, b in [(_pairs_torch(small, cutoff), _pairs_vesin(small, cutoff))]:
        rows = [torch.cat([p.center[:, None], p.neighbor[:, None], p.image], 1) for p in (a, b)]
        assert set(map(tuple, rows[0].tolist())) == set(map(tuple, rows[1].tolist()))
        torch.testing.assert_close(a.distance.sort().values, b.distance.sort().values, rtol=0, atol=1e-10)


def test_k_nearest_by_brute_force():
    crystals = [zoo.random_crystal(s) for s in range(20)] + hard_cells()
    for k in (4, 12):
        graph = facetry.graph.k_nearest(crystals, k)
        for crystal, edges in zip(crystals, edge_sets(graph, crystals), strict=True):
            compact = Batch.from_crystals([crystal])
            small, _, _ = reduced(compact)
            span = np.array(list(np.ndindex(13, 13, 13))) - 6
            frac, cell = small.frac_coords.numpy(), small.lattice[0].numpy()
            delta = frac[None, :, None] + span[None, None] - frac[:, None, None]
            d = np.linalg.norm(delta @ cell, axis=-1).reshape(len(crystal), -1)
            lengths: dict[int, list[float]] = {i: [] for i in range(len(crystal))}
            for i, j, *image in edges:
                r = (crystal.frac_coords[j] + image - crystal.frac_coords[i]) @ crystal.lattice
                lengths[i].append(float(np.linalg.norm(r)))
            for i in range(len(crystal)):
                all_d = np.sort(d[i])[1:]
                last = k - 1
                while all_d[last + 1] - all_d[last] <= 1e-3:
                    last += 1
                np.testing.assert_allclose(np.sort(lengths[i]), all_d[: last + 1], rtol=0, atol=1e-8)


def test_whole_shells_are_kept():
    """Specification §2.2: neighbours per atom and the radius of the last shell."""
    for crystal, k, count, reach in [
        (zoo.po(), 12, 18, 4.7376),
        (zoo.po(), 25, 26, 5.8024),
        (zoo.cu(), 12, 12, 2.5527),
        (zoo.cscl(), 16, 26, 5.8266),
        (zoo.nacl(), 16, 18, 3.9881),
        (zoo.nacl(), 25, 26, 4.8844),
        (zoo.si(), 16, 16, 3.8396),
    ]:
        batch = KNearest(k)([crystal])
        assert (torch.bincount(batch.graph.center) == count).all()
        assert float(batch.edge_vectors().norm(dim=1).max()) == pytest.approx(reach, abs=1e-4)


def test_gradients_reach_coordinates_and_lattice():
    from dataclasses import replace

    batch = KNearest(6)([zoo.random_crystal(1)])
    frac, lattice = batch.frac_coords.requires_grad_(), batch.lattice.requires_grad_()
    replace(batch, frac_coords=frac, lattice=lattice).edge_vectors().square().sum().backward()
    assert float(lattice.grad.abs().max()) > 0
    assert float(frac.grad.abs().max()) > 0


def test_one_batch_is_the_crystals_one_by_one():
    crystals = [zoo.random_crystal(s) for s in range(6)] + hard_cells()
    together = edge_sets(facetry.graph.k_nearest(crystals, 8), crystals)
    for crystal, edges in zip(crystals, together, strict=True):
        assert edges == edge_sets(facetry.graph.k_nearest([crystal], 8), [crystal])[0]


def test_one_crystal_needs_no_list():
    assert len(facetry.graph.radius(zoo.nacl(), 3)) == len(facetry.graph.radius([zoo.nacl()], 3.0)) == 12
    assert len(facetry.graph.k_nearest(zoo.nacl(), 6)) == 12


def test_errors_say_what_to_do():
    double = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 1.00001]], [1, 1], name="double.cif")
    with pytest.raises(GraphError, match=r"double\.cif: sites 1 and 2 are 0\.0000 Å apart.*merge_within"):
        LatticeKNearest(k=4)([double])
    with pytest.raises(GraphError, match="empty list"):
        KNearest(4)([])
    with pytest.raises(GraphError, match="k of at least 1"):
        KNearest(0)([zoo.po()])
    with pytest.raises(GraphError, match="cutoff above 0"):
        facetry.graph.radius([zoo.po()], -1.0)


def test_a_batch_in_parts_and_put_together():
    crystals = [zoo.random_crystal(s) for s in range(5)] + [zoo.nacl(), zoo.zno()]
    builder = LatticeKNearest(k=8)
    whole = builder(crystals)
    parts = Batch.collate([builder(crystals[:3]).compact(), builder(crystals[3:]).compact()])
    again = parts.select(range(7))
    for name in ("center", "neighbor", "image", "num_edges"):
        assert (getattr(whole.graph, name) == getattr(again.graph, name)).all()
    assert (whole.frames.integer == again.frames.integer).all()
    torch.testing.assert_close(whole.lattice, again.lattice, rtol=0, atol=0)
    back = parts.select([6, 2])
    torch.testing.assert_close(back.edge_vectors(), builder([crystals[6], crystals[2]]).edge_vectors())


def test_long_cells_of_vacancies(data_folder):
    """The same lattice once in a cell of 277 x 2.6 x 2.6 Å and once in a compact one."""
    import pyarrow.parquet as pq
    from ase.neighborlist import primitive_neighbor_list

    table = pq.read_table(data_folder / "jarvis_vacancy" / "all.parquet").to_pylist()
    cells = []
    for row in table:
        lattice = np.reshape(row["bulk_lattice"], (3, 3))
        cells.append(
            Crystal(
                lattice,
                np.reshape(row["bulk_frac_coords"], (-1, 3)),
                row["bulk_atomic_numbers"],
                name=row["id"],
            )
        )
    cells.sort(key=lambda c: -np.linalg.norm(c.lattice, axis=1).max())
    longest = cells[:12]
    ours = edge_sets(facetry.graph.radius(longest, 4.0), longest)
    for crystal, edges in zip(longest, ours, strict=True):
        i, j, s = primitive_neighbor_list("ijS", (True,) * 3, crystal.lattice, crystal.cart_coords, 4.0)
        theirs = {(int(a), int(b), *map(int, c)) for a, b, c in zip(i, j, s, strict=True)}
        assert edges == theirs or _only_at_the_cutoff(crystal, edges ^ theirs, 4.0), crystal.name


def test_real_crystals_against_ase(data_folder):
    from ase.neighborlist import primitive_neighbor_list

    from facetry.data import dataset

    crystals = list(dataset("mp20").test.crystals[:60])
    ours = edge_sets(facetry.graph.radius(crystals, 4.0), crystals)
    for crystal, edges in zip(crystals, ours, strict=True):
        i, j, s = primitive_neighbor_list("ijS", (True,) * 3, crystal.lattice, crystal.cart_coords, 4.0)
        theirs = {(int(a), int(b), *map(int, c)) for a, b, c in zip(i, j, s, strict=True)}
        assert edges == theirs or _only_at_the_cutoff(crystal, edges ^ theirs, 4.0), crystal.name


def test_large_frameworks_against_matscipy(data_folder):
    """curated_cofs up to 3992 atoms; matscipy because ASE needs minutes."""
    from matscipy.neighbours import neighbour_list

    from facetry.data import dataset

    table = dataset("curated_cofs")
    crystals = table.test.crystals if table.train is None else table.train.crystals
    largest = crystals.select(np.argsort(crystals.num_atoms)[-2:])
    graph = facetry.graph.radius(largest, 4.0)
    for crystal, count in zip(largest, graph.num_edges.tolist(), strict=True):
        i, j, s = neighbour_list(
            "ijS", positions=crystal.cart_coords, cell=crystal.lattice, pbc=np.array([True] * 3), cutoff=4.0,
            numbers=crystal.atomic_numbers.astype(np.int32),
        )  # fmt: skip
        assert count == len(i)
    ours = edge_sets(graph, list(largest))[-1]
    assert ours == {(int(a), int(b), *map(int, c)) for a, b, c in zip(i, j, s, strict=True)}
