"""CIF: symmetry however it is written.

Every expected count follows from International Tables: the multiplicity of the listed positions.
"""

from __future__ import annotations

import numpy as np
import pytest

from facetry.io.symmetry import from_symbols, from_triplets
from tests.io.cif_text import CUBIC, HEXAGONAL, cif, listed, named, one, refused


@pytest.mark.parametrize(
    ("cell", "symbol", "site", "count"),
    [
        (CUBIC, "P m 3 m", "B 0.5 0.5 0.2", 6),  # before 1980: no bar
        (CUBIC, "Pm-3m", "B 0.5 0.5 0.2", 6),
        (CUBIC, "P_m_-3_m", "B 0.5 0.5 0.2", 6),
        (CUBIC, "F 4/m -3 2/m", "Na 0 0 0", 4),  # full symbol
        (CUBIC, "F -4 3 m", "Si 0.25 0.25 0.25", 4),
        (CUBIC, "F 4 3 m", "Si 0.25 0.25 0.25", 4),
        ((8.0,) * 3 + (90,) * 3, "I432", "C 0 0.2 0", 12),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m :1", "C 0 0 0", 8),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m :2", "C 0 0 0", 16),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m S", "C 0 0 0", 8),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m Z", "C 0 0 0", 16),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m {origin @ centre (-3m)}", "C 0 0 0", 16),
        ((8.0,) * 3 + (90,) * 3, "F d -3 m (origin choice 1)", "C 0 0 0", 8),
        ((9, 8, 7, 90, 100, 90), "P2_1/n", "O 0.1 0.2 0.3", 4),
        ((9, 8, 7, 90, 100, 90), "P2(1)/c", "O 0.1 0.2 0.3", 4),
        ((9, 8, 7, 90, 100, 90), "C2:b1", "O 0.1 0.2 0.3", 4),
        ((9, 8, 7, 90, 100, 90), "C 2/m", "O 0.1 0 0.3", 4),
        ((9, 8, 7, 100, 90, 90), "I 2/c 1 1", "O 0.1 0.2 0.3", 8),
        ((9, 8, 7, 90, 90, 90), "P b n m", "O 0.1 0.2 0.3", 8),
        ((9, 8, 7, 90, 90, 90), "P b n m", "O 0.1 0.2 0.25", 4),
        ((9, 8, 7, 80, 100, 95), "C -1", "O 0.1 0.2 0.3", 4),
        (HEXAGONAL, "P 63/m m c", "Mg 0.3333 0.6667 0.25", 2),
        ((4.0, 4.0, 14.0, 90, 90, 120), "R -3 m", "Bi 0 0 0.4", 6),
        ((4.0, 4.0, 14.0, 90, 90, 120), "R -3 m :H", "Bi 0 0 0.4", 6),
        ((5.0, 5.0, 5.0, 50, 50, 50), "R -3 m", "Bi 0.4 0.4 0.4", 2),
        ((5.0, 5.0, 5.0, 50, 50, 50), "R -3 m :R", "Bi 0.4 0.4 0.4", 2),
    ],
)
def test_symbol_alone_is_expanded(cell, symbol, site, count):
    crystal = one(cif(cell, named(symbol), site))
    assert len(crystal) == count
    # listed atoms keep the coordinates of the file
    np.testing.assert_array_equal(crystal.frac_coords[0], [float(x) for x in site.split()[1:]])


@pytest.mark.parametrize("tag", ["_symmetry_space_group_name_Hall", "_space_group_name_Hall"])
def test_hall_symbol_alone(tag):
    cell = (3.56658,) * 3 + (90,) * 3
    assert len(one(cif(cell, f"{tag} '-F 4vw 2vw 3'", "C 0.375 0.375 0.375"))) == 8
    assert len(one(cif((9, 8, 7, 90, 100, 90), f"{tag} -P_2yn", "O 0.1 0.2 0.3"))) == 4


@pytest.mark.parametrize(
    "tag",
    [
        "_space_group_name_H-M_alt",
        "_space_group_name_H-M_ref",
        "_space_group.name_H-M_alt",
        "_space_group_name_H-M_full",
    ],
)
def test_other_names_of_the_symbol(tag):
    assert len(one(cif(CUBIC, f"{tag} 'F m -3 m'", "Ni 0 0 0"))) == 4


def test_group_number_alone():
    assert len(one(cif(CUBIC, "_space_group_IT_number 225", "Ni 0 0 0"))) == 4
    refused(cif(CUBIC, "_space_group_IT_number 999", "Ni 0 0 0"), "'999' is not 1 to 230")


def test_no_symmetry_means_all_atoms_are_listed():
    assert len(one(cif(CUBIC, "", "Ni 0 0 0\nNi 0.5 0.5 0"))) == 2


def test_operators_win_over_symbols():
    text = cif((9, 8, 7, 90, 90, 90), named("P m m m") + "\n" + listed("x,y,z", "-x,-y,z"), "O 0.1 0.2 0.3")
    crystal = one(text)
    assert len(crystal) == 2
    assert "P m m m has 8" in crystal.notes[0]


def test_the_formula_settles_operators_against_symbol():
    extra = "_chemical_formula_sum O8\n_cell_formula_units_Z 1"
    text = cif((9, 8, 7, 90, 90, 90), named("P m m m") + "\n" + listed("x,y,z"), "O 0.1 0.2 0.3", extra=extra)
    crystal = one(text)
    assert len(crystal) == 8
    assert "which gives the formula" in crystal.notes[0]
    assert len(one(text.replace("O8", "O1"))) == 1


def test_identity_alone_with_a_larger_symbol_is_contradictory():
    refused(
        cif((9, 8, 7, 90, 90, 90), named("P m m m") + "\n" + listed("x,y,z"), "O 0.1 0.2 0.3"),
        "contradictory",
    )
    # unless every atom is listed: then both readings are one
    atoms = "Ni 0 0 0\nNi 0.5 0.5 0\nNi 0.5 0 0.5\nNi 0 0.5 0.5"
    crystal = one(cif(CUBIC, named("F m -3 m") + "\n" + listed("x,y,z"), atoms))
    assert len(crystal) == 4
    assert crystal.notes == ()


@pytest.mark.parametrize(
    ("operators", "count"),
    [
        (("x,y,z", "-x,-y,-z"), 2),
        ((" X, Y , Z", "-X,1/2+Y,.5-Z"), 2),
        (("-x,-y,-z",), 2),  # the identity need not be said
        (("+x,+y,+z", "x+1/2,y+0.5,z"), 2),
        (("x,y,z", "x+0.3333,y,z"), 3),  # a third, and its square
    ],
)
def test_ways_to_write_operators(operators, count):
    cell = (9, 8, 7, 90, 90, 90)
    assert len(one(cif(cell, listed(*operators), "O 0.1 0.2 0.3"))) == count


def test_operator_as_a_plain_item():
    for text in ("_symmetry_equiv_pos_as_xyz x,y,z", "_symmetry_equiv_pos_as_xyz 'x,y,z; -x,-y,-z'"):
        assert len(one(cif((9, 8, 7, 90, 90, 90), text, "O 0.1 0.2 0.3"))) == 1 + text.count(";")


def test_unfinished_operator_list_is_completed():
    graphite = ("x,y,z", "-x,-x+y,1/2+z", "x-y,x,1/2+z", "-y,-x,z", "-y,x-y,z", "x-y,-y,1/2+z")
    text = cif((2.456, 2.456, 6.696, 90, 90, 120), listed(*graphite), "C 0 0 0\nC 0.33333 0.66667 0")
    crystal = one(text)
    assert len(crystal) == 4
    assert "completed to 12" in crystal.notes[0]


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        (("-x,-x,-x",), "no rotation or reflection"),
        (("x,y",), "not of the form"),
        (("x,y,2/0",), "divides by zero"),
        (("x,y,q",), "not of the form"),
        (("x,y,z", "-y,x,z"), "do not fit the cell"),
        (("x,y,z", "x+0.01,y+0.003,z"), "generate more than 192"),
    ],
)
def test_bad_operators(operators, words):
    refused(cif((9, 8, 7, 90, 90, 90), listed(*operators), "O 0.1 0.2 0.3"), words)


def test_symbol_that_does_not_fit_the_cell():
    refused(cif((9, 8, 7, 90, 90, 90), named("P m -3 m"), "O 0.1 0.2 0.3"), "does not fit the cell")
    refused(cif((9, 8, 7, 80, 85, 95), named("P 21/c"), "O 0.1 0.2 0.3"), "does not fit the cell")
    # a monoclinic symbol with its axis in the wrong place has one reading that fits
    crystal = one(cif((9, 8, 7, 90, 100, 90), named("I 2/c 1 1"), "O 0.5 0.2 0.25"))
    assert len(crystal) == 4  # on the twofold axis along b
    assert "read as I 1 2/c 1" in crystal.notes[0]


def test_symbols_that_contradict_each_other_or_are_unknown():
    both = named("P m -3 m") + "\n_symmetry_space_group_name_Hall '-F 4 2 3'"
    refused(cif(CUBIC, both, "Ni 0 0 0"), "correct one or give the operators")
    refused(cif(CUBIC, named("Q 1 2 3"), "Ni 0 0 0"), "'Q 1 2 3' is unknown; give the symmetry operators")


def test_unstated_origin():
    cell = (8.0,) * 3 + (90,) * 3
    diamond = one(
        cif(cell, named("F d -3 m"), "C 0 0 0", extra="_chemical_formula_sum C\n_cell_formula_units_Z 8")
    )
    assert len(diamond) == 8
    assert "F d -3 m:1" in one(cif(cell, named("F d -3 m"), "C 0 0 0")).notes[0]
    assert len(one(cif(cell, named("F d -3 m"), "C 0.125 0.125 0.125"))) == 8  # special for origin 2
    refused(cif((9, 8, 7, 90, 90, 90), named("P n n n"), "C 0.1 0.2 0.3"), "the setting is not stated")
    # here one origin would put atoms 0.3 Å from the images of others
    crystal = one(cif((9, 8, 7, 90, 90, 90), named("P n n n"), "C 0.1 0.2 0.3\nO 0.4 0.3 0.22"))
    assert "makes atoms overlap" in crystal.notes[0]


def test_magnetic_operators_move_atoms_without_their_time_reversal():
    symmetry = """loop_
_space_group_symop_magn_operation.xyz
x,y,z,+1
-x,-y,-z,-1
loop_
_space_group_symop_magn_centering.xyz
x,y,z,+1
x+1/2,y+1/2,z+1/2,-1"""
    assert len(one(cif((9, 8, 7, 90, 90, 90), symmetry, "Mn 0.1 0.2 0.3"))) == 4


def test_modulated_structure_is_refused():
    symmetry = "loop_\n_space_group_symop_ssg_operation_algebraic\nx1,x2,x3,x4"
    refused(cif(CUBIC, symmetry, "Nb 0 0 0"), "modulated structure")


def test_group_operations_are_those_of_gemmi():
    import gemmi

    for group in list(gemmi.spacegroup_table())[::23]:
        operations = tuple(op.triplet() for op in group.operations())
        ours = from_triplets(operations)
        assert len(ours) == len(operations)
        assert ours.note == ""
        np.testing.assert_array_equal(ours.rotation[0], np.eye(3))
        (named_group, *_) = from_symbols("", group.xhm(), "", 0.0, 0.0)
        assert len(named_group) == len(operations)
