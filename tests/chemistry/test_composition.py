"""Features of compositions do not depend on cells or the order of atoms, and are what they are called."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.chemistry.composition import composition_features, element_fractions
from facetry.data.crystals import CrystalTable
from facetry.elements import SYMBOLS
from tests import crystals as zoo


def features(*crystals) -> np.ndarray:
    table = CrystalTable.from_crystals(crystals)
    return composition_features(table.atomic_numbers, table.num_atoms)


def test_equal_for_all_cells_of_a_composition():
    oxide = zoo.zno()
    found = features(oxide, oxide.supercell(2), zoo.nacl(), zoo.nacl_conventional())
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)
    np.testing.assert_allclose(found[2], found[3], atol=1e-12)
    assert np.isfinite(found).all()
    assert not np.allclose(found[0], found[2])


def test_values():
    row = features(zoo.nacl())[0]
    assert row[0] == pytest.approx((11 + 17) / 2)  # mean atomic number
    assert row[10] == pytest.approx(3)  # mean deviation from it
    assert row[20] == 11
    assert row[30] == 17
    assert row[40] == 6
    shares = element_fractions(np.array([8, 8, 22]), np.array([3]))[0]
    assert shares[8] == pytest.approx(2 / 3)
    assert shares[22] == pytest.approx(1 / 3)
    assert shares.sum() == pytest.approx(1)


def test_every_element_has_features():
    numbers = np.arange(1, len(SYMBOLS))
    found = composition_features(numbers, np.ones(len(numbers), dtype=np.int64))
    assert np.isfinite(found).all()
    assert len(np.unique(found.round(9), axis=0)) == len(numbers)
