"""Space groups, found by moyopy."""

from __future__ import annotations

import numpy as np
import pytest

from facetry import Crystal
from facetry.geometry.space_group import space_group
from tests import crystals as zoo


@pytest.mark.parametrize(
    ("crystal", "number"), [(zoo.nacl(), 225), (zoo.si(), 227), (zoo.zno(), 186), (zoo.mg(), 194)]
)
def test_known_crystals_and_their_supercells(crystal, number, capfd):
    assert space_group(crystal) == number
    assert space_group(crystal.supercell(np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]))) == number
    assert capfd.readouterr().err == ""  # no warning that a cell is not primitive


def test_none_where_there_is_no_crystal_to_speak_of():
    assert space_group(Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0]], [29, 29])) is None
    mixed = Crystal(np.eye(3) * 3, [[0, 0, 0]], [29], occupancies=[{29: 0.5, 79: 0.5}])
    assert space_group(mixed) is None
