"""Contacts and volumes against plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from facetry.chemistry.volume import covalent_radii, expected_volume
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.evaluation.plausibility import plausibility
from tests import crystals as zoo


def plain_contact(crystal: Crystal) -> float:
    radii, best = covalent_radii(), np.inf
    cart = crystal.frac_coords @ crystal.lattice
    for image in itertools.product(range(-3, 4), repeat=3):
        for i, j in itertools.product(range(len(crystal)), repeat=2):
            d = np.linalg.norm(cart[j] + np.array(image) @ crystal.lattice - cart[i])
            if d > 1e-9:
                best = min(best, d / (radii[crystal.atomic_numbers[i]] + radii[crystal.atomic_numbers[j]]))
    return best


def test_contacts_are_those_of_all_pairs():
    crystals = [zoo.random_crystal(seed, atoms=4) for seed in range(8)]
    found = plausibility(CrystalTable.from_crystals(crystals))
    for row, crystal in enumerate(crystals):
        wanted = plain_contact(crystal)
        assert found.contact[row] == (pytest.approx(wanted) if wanted < 0.9 else np.inf)
        assert found.volume_ratio[row] == pytest.approx(
            crystal.volume / expected_volume(crystal.atomic_numbers)
        )


def test_density_and_elements():
    close = Crystal(np.eye(3) * 4, [[0, 0, 0], [0.25, 0, 0]], [6, 8])
    found = plausibility(CrystalTable.from_crystals([zoo.si(), close]))
    assert found.density[0] == pytest.approx(2.33, abs=0.01)  # g/cm³
    assert found.distance[1] == pytest.approx(1.0)
    assert sorted(found.elements[1].tolist()) == [6, 8]
    assert found.contact[0] == np.inf  # 2.35 Å is all of two radii
