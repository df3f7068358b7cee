"""Prototypes are those of the textbook, whatever cell and elements."""

from __future__ import annotations

import numpy as np

from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.evaluation.prototypes import identify
from tests import crystals as zoo


def one(crystal: Crystal):
    found = identify(CrystalTable.from_crystals([crystal]))
    return found.formulas[0], int(found.groups[0]), int(found.primitive_atoms[0]), found.prototypes[0]


def test_textbook():
    assert one(zoo.nacl()) == ("ClNa", 225, 2, "AB_cF8_225_m-3m:1_m-3m:1")
    assert one(zoo.nacl_conventional().supercell(2)) == one(zoo.nacl())
    oxide = Crystal(zoo.nacl().lattice * 0.75, zoo.nacl().frac_coords, [12, 8])
    assert one(oxide)[3] == one(zoo.nacl())[3]
    assert one(zoo.cscl())[3] != one(zoo.nacl())[3]
    assert one(zoo.si())[3] == "A_cF8_227_-43m:1"


def test_origin_does_not_matter():
    perovskite = zoo.srtio3()
    moved = Crystal(perovskite.lattice, perovskite.frac_coords + 0.5, perovskite.atomic_numbers)
    assert one(perovskite) == one(moved)
    assert one(perovskite)[3] == "ABC3_cP5_221_m-3m:1_m-3m:1_4/mm.m:3"


def test_both_hands_are_one_prototype():
    lattice = np.array([[4.91, 0, 0], [-2.455, 4.2522, 0], [0, 0, 5.4]])
    u, x, y, z = 0.4697, 0.4135, 0.2669, 0.1191  # quartz, P3_2 21

    def quartz(hand: float) -> Crystal:
        silicon = [[u, 0, 2 / 3], [0, u, 1 / 3], [-u, -u, 0]]
        oxygen = [
            [x, y, z], [-y, x - y, z + 2 / 3], [y - x, -x, z + 1 / 3],
            [y, x, -z], [x - y, -y, 1 / 3 - z], [-x, y - x, 2 / 3 - z],
        ]  # fmt: skip
        coords = np.array(silicon + oxygen) * [1, 1, hand]
        return Crystal(lattice, coords, [14] * 3 + [8] * 6)

    left, right = one(quartz(1)), one(quartz(-1))
    assert left == right
    assert left[1] == 152


def test_no_symmetry_no_prototype():
    broken = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0]], [11, 17])
    assert one(broken)[1] == 0
    assert one(broken)[3] == ""


def test_mixed_sites_have_a_formula_of_their_own():
    alloy = Crystal(np.eye(3) * 3.7, [[0, 0, 0]], [29], occupancies=[{29: 0.75, 79: 0.25}])
    assert one(alloy)[0] == "(Cu0.75Au0.25)"
