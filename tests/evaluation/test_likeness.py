"""Same crystals are found whatever cell they are in; groups are those that all pairs would give."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.evaluation.duplicates import SAME, fingerprints
from facetry.evaluation.likeness import SAME_DISTANCES, Likeness, find_alike
from facetry.evaluation.prototypes import identify
from tests import crystals as zoo


def alike(crystals: list[Crystal], tolerance: float = SAME) -> Likeness:
    table = CrystalTable.from_crystals(crystals)
    identity = identify(table)
    return find_alike(table, identity.kinds, identity.formulas, tolerance)


def groups(numbers: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.nonzero(numbers == g)[0].tolist()) for g in np.unique(numbers)}


def shaken(crystal: Crystal, by: float, seed: int) -> Crystal:
    moves = np.random.default_rng(seed).uniform(-by, by, crystal.frac_coords.shape)
    return Crystal(
        crystal.lattice,
        crystal.frac_coords + moves @ np.linalg.inv(crystal.lattice),
        crystal.atomic_numbers,
        name="shaken",
    )


def test_cells_turns_mirrors_and_small_moves_are_the_same():
    salt, low = zoo.nacl(), zoo.random_crystal(5, atoms=6)
    skewed = low.supercell(np.array([[1, 3, 0], [0, 1, -2], [0, 0, 1]]))
    found = alike(
        [
            salt,
            zoo.nacl_conventional(),
            zoo.rotated(salt.supercell(2), zoo.rotation(1)),
            shaken(zoo.nacl_conventional(), 0.005, 3),
            low,
            zoo.mirrored(low),
            skewed,
            zoo.cscl(),
        ]
    )
    assert groups(found.same) == {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6}), frozenset({7})}
    assert (found.distances[found.confirmed] <= SAME_DISTANCES).all()
    assert len(found.pairs) == 5  # a tree: fewer links than crystals


def test_strained_is_near_and_another_structure_is_not():
    salt = zoo.nacl()
    wider = Crystal(salt.lattice * 1.05, salt.frac_coords, salt.atomic_numbers)
    caesium_like = Crystal(zoo.cscl().lattice, zoo.cscl().frac_coords, [11, 17])
    found = alike([salt, wider, caesium_like])
    assert groups(found.same) == {frozenset({0}), frozenset({1}), frozenset({2})}
    assert groups(found.near) == {frozenset({0, 1}), frozenset({2})}
    # Na-Cl 2.82 and Na-Na 3.99 Å are among the 24 nearest; the farthest of these grows by a twentieth
    assert found.distances[0] == pytest.approx(0.05 * 5.64 * np.sqrt(3) / 2, rel=0.02)


def test_elements_that_change_places_make_another_crystal():
    oxide = zoo.zno()
    swapped = Crystal(oxide.lattice, oxide.frac_coords, [8, 8, 30, 30])
    polar = Crystal(oxide.lattice, -oxide.frac_coords, oxide.atomic_numbers)
    found = alike([oxide, swapped, polar])
    assert groups(found.same) == {frozenset({0, 1, 2})}  # wurtzite: the same but for direction
    perovskite = zoo.srtio3()
    swap = {38: 22, 22: 38}
    inverse = Crystal(
        perovskite.lattice,
        perovskite.frac_coords,
        [swap.get(int(z), int(z)) for z in perovskite.atomic_numbers],
    )
    found = alike([perovskite, inverse])
    assert groups(found.near) == {frozenset({0}), frozenset({1})}


def test_mixed_sites_are_told_apart():
    def alloy(share: float) -> Crystal:
        return Crystal(np.eye(3) * 3.7, [[0, 0, 0]], [29], occupancies=[{29: share, 79: 1 - share}])

    found = alike([alloy(0.6), alloy(0.6), alloy(0.7)])
    assert groups(found.same) == {frozenset({0, 1}), frozenset({2})}


def test_coinciding_atoms_are_like_nothing():
    broken = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0]], [11, 17])
    found = alike([zoo.nacl(), broken, zoo.nacl_conventional(), broken])
    assert groups(found.same) == {frozenset({0, 2}), frozenset({1}), frozenset({3})}


def test_groups_are_those_of_all_pairs():
    """The tree of fingerprints loses no pair: compared with every pair of 60 carbons."""
    rng = np.random.default_rng(4)
    parents = [zoo.random_crystal(seed, atoms=4) for seed in range(12)]
    crystals = [
        shaken(Crystal(p.lattice, p.frac_coords, [6] * 4), rng.choice([0.0, 0.02, 0.1]), i)
        for i, p in enumerate(parents * 5)
    ]
    found = alike(crystals)
    vectors = fingerprints(crystals)
    near = 1 - vectors @ vectors.T < SAME
    from scipy.sparse.csgraph import connected_components

    wanted = connected_components(near, directed=False)[1]
    assert groups(found.near) == groups(wanted)


def test_confirmed_pairs_match_by_pymatgen(data_folder):
    """Of Carbon-24, whose duplicates are many: what counts as the same is so for another matcher too."""
    matching = pytest.importorskip("pymatgen.core.structure_matcher")
    table = CrystalTable.from_parquet(data_folder / "carbon24" / "val.parquet").select(slice(0, 300))
    identity = identify(table)
    found = find_alike(table, identity.kinds, identity.formulas)
    pairs = found.pairs[found.confirmed][:60].tolist()
    matcher = matching.StructureMatcher()
    assert len(pairs) == 60
    assert all(matcher.fit(table[a].to_pymatgen(), table[b].to_pymatgen()) for a, b in pairs)
