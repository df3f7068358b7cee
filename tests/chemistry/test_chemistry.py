"""Oxidation states, likeness of elements, expected volumes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from facetry.chemistry import Formula, element_distances, expected_volume, is_valid_composition, parse
from facetry.chemistry.oxidation import METALS, OXIDATION_STATES
from facetry.elements import ELECTRONEGATIVITIES, SYMBOLS


def brute_force(counts):
    """Every choice of oxidation states, tried."""
    elements = list(counts)
    if len(elements) == 1 or all(z in METALS for z in elements):
        return True
    scale = [ELECTRONEGATIVITIES[z] for z in elements]
    if not all(scale):
        return False
    for states in product(*(OXIDATION_STATES.get(z, ()) for z in elements)):
        if sum(s * counts[z] for s, z in zip(states, elements, strict=True)):
            continue
        gives = [x for s, x in zip(states, scale, strict=True) if s > 0]
        takes = [x for s, x in zip(states, scale, strict=True) if s < 0]
        if max(gives) < min(takes):
            return True
    return False


@pytest.mark.parametrize(
    ("formula", "valid"),
    [("NaCl", True), ("SrTiO3", True), ("NaCl2", False), ("NaO3", False), ("Fe3O4", False), ("Fe2O3", True),
     ("CuZn", True), ("Si", True), ("GaAs", True), ("MgF3", False), ("HeO", False), ("CaH2", True),
     ("KNO3", True)],
)  # fmt: skip
def test_known_compounds(formula, valid):
    assert is_valid_composition(parse(formula).counts) is valid


def test_the_short_way_agrees_with_all_choices(rng):
    for _ in range(400):
        elements = rng.choice(np.arange(1, 97), size=rng.integers(2, 5), replace=False)
        counts = {int(z): int(n) for z, n in zip(elements, rng.integers(1, 7, len(elements)), strict=True)}
        assert is_valid_composition(counts) == brute_force(counts), counts


def test_most_real_crystals_are_valid(data_folder):
    import pyarrow.parquet as pq

    numbers = pq.read_table(data_folder / "mp20" / "test.parquet", columns=["atomic_numbers"])[
        "atomic_numbers"
    ]
    valid = [is_valid_composition(Formula.of(z).counts) for z in numbers.to_pylist()[:2000]]
    assert 0.85 < np.mean(valid) < 0.97


def test_likeness_is_a_metric_that_chemists_know():
    distance = element_distances()
    assert np.array_equal(distance, distance.T)
    assert (np.diagonal(distance) == 0).all()
    z = SYMBOLS.index
    for element, near, far in [("Sr", "Ba", "Ti"), ("Ti", "Zr", "Sr"), ("O", "S", "Si"), ("Cl", "Br", "O"),
                               ("Na", "K", "Mg"), ("La", "Nd", "Al"), ("Fe", "Co", "Na"), ("Mg", "Zn", "Al"),
                               ("Ca", "Sr", "Zn")]:  # fmt: skip
        assert distance[z(element), z(near)] < distance[z(element), z(far)]
    nearest = distance[z("Sr"), 1:96].argsort()[1] + 1
    assert SYMBOLS[nearest] in ("Ca", "Ba")


def test_expected_volume_of_real_crystals(data_folder):
    import pyarrow.parquet as pq

    for name, bound in (("perov5", 0.17), ("mp20", 0.15)):
        table = pq.read_table(
            data_folder / name / "test.parquet", columns=["atomic_numbers", "lattice"]
        ).slice(0, 1000)
        volume = np.abs(np.linalg.det(np.array(table["lattice"].to_pylist()).reshape(-1, 3, 3)))
        expected = np.array([expected_volume(z) for z in table["atomic_numbers"].to_pylist()])
        assert np.median(np.abs(np.log(volume / expected))) < bound
    assert expected_volume([38, 22, 8, 8, 8] * 2) == pytest.approx(2 * expected_volume([38, 22, 8, 8, 8]))
