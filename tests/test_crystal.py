"""Crystal: what it keeps, what it refuses, how it meets other programs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetry.crystal import Crystal, CrystalError, as_crystal
from facetry.elements import MASSES, SYMBOLS, atomic_number

ROCKSALT = (
    np.array([[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.0]]),
    np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
    np.array([11, 17]),
)


def rocksalt(**changes) -> Crystal:
    arguments = dict(zip(("lattice", "frac_coords", "atomic_numbers"), ROCKSALT, strict=True))
    return Crystal(**{**arguments, "name": "salt", **changes})


def test_element_table_agrees_with_ase():
    from ase.data import atomic_masses, chemical_symbols

    assert len(SYMBOLS) == len(MASSES) == 119
    assert SYMBOLS[1:] == list(chemical_symbols[1:119])
    np.testing.assert_allclose(MASSES[1:], atomic_masses[1:119], rtol=1e-6)


def test_symbols_in_any_case_and_isotopes():
    assert [atomic_number(s) for s in ("Fe", "FE", "fe", "D", "T")] == [26, 26, 26, 1, 1]
    with pytest.raises(ValueError, match="no element symbol"):
        atomic_number("Xx")


def test_plain_facts():
    crystal = rocksalt()
    assert len(crystal) == 2
    assert crystal.formula == "NaCl"
    assert crystal.symbols == ["Na", "Cl"]
    assert crystal.is_ordered
    assert crystal.volume == pytest.approx(2 * 2.8**3)
    np.testing.assert_allclose(crystal.lengths, 2.8 * np.sqrt(2))
    np.testing.assert_allclose(crystal.angles, 60.0)
    np.testing.assert_allclose(crystal.cart_coords[1], [2.8, 2.8, 2.8])
    assert crystal.density == pytest.approx(2.21, abs=0.02)  # CRC: 2.17 at the measured a = 5.64


def test_known_formulas():
    assert Crystal(np.eye(3) * 4, np.arange(15).reshape(5, 3) / 15, [8, 8, 8, 22, 38]).formula == "SrTiO3"
    half = Crystal(np.eye(3) * 4, np.eye(3)[:2] / 2, [3, 8], [0.5, 1.0])
    assert half.formula == "Li0.5O"


def test_frozen_and_own_memory():
    numbers = np.array([11, 17])
    lattice = ROCKSALT[0].copy()
    crystal = Crystal(lattice, ROCKSALT[1], numbers)
    lattice[0, 0] = 9.0
    assert crystal.lattice[0, 0] == 0.0
    with pytest.raises(AttributeError, match="frozen"):
        crystal.name = "other"
    with pytest.raises(ValueError, match="read-only"):
        crystal.frac_coords[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        crystal.cart_coords[0, 0] = 1.0


def test_copies_and_equality():
    crystal = rocksalt(notes=("a guess",))
    for twin in (copy.deepcopy(crystal), pickle.loads(pickle.dumps(crystal))):  # data loaders copy
        assert twin == crystal
        assert hash(twin) == hash(crystal)
        assert (twin.name, twin.notes) == ("salt", ("a guess",))
        assert not twin.lattice.flags.writeable
    assert crystal != rocksalt(atomic_numbers=[11, 35])
    assert crystal == rocksalt(name="elsewhere")
    assert crystal != "salt"
    negative_zero = rocksalt(frac_coords=[[-0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    assert negative_zero == crystal
    assert hash(negative_zero) == hash(crystal)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lattice": np.eye(2)}, "3 x 3"),
        ({"lattice": np.full((3, 3), np.nan)}, "not finite"),
        ({"lattice": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "flat"),
        ({"lattice": np.zeros((3, 3))}, "lattice vectors between 0.001"),
        ({"lattice": "abc"}, "lattice must be numbers"),
        ({"frac_coords": [[0, 0], [1, 1]]}, "n x 3"),
        ({"frac_coords": [[0, 0, 0], [0, 0, np.inf]]}, "site 1 has a coordinate that is not finite"),
        ({"frac_coords": np.zeros((0, 3)), "atomic_numbers": np.zeros(0, int)}, "at least one site"),
        ({"atomic_numbers": [11]}, "2 sites need 2 atomic numbers"),
        ({"atomic_numbers": [11, 119]}, "site 1 has atomic number 119"),
        ({"atomic_numbers": [0, 11]}, "site 0 has atomic number 0"),
        ({"atomic_numbers": [11.5, 17]}, "integers"),
        ({"occupancies": [0.5]}, "2 sites need 2 occupancies"),
        ({"occupancies": [0.0, 1.0]}, "above 0"),
        ({"occupancies": [{11: 0.7, 19: 0.5}, 1.0]}, "sum at most 1"),
        ({"occupancies": [{19: 0.5}, 1.0]}, "not among its species"),
        ({"occupancies": [{11: 0.5, 200: 0.1}, 1.0]}, "elements go from 1"),
    ],
)
def test_what_is_no_crystal(changes, words):
    with pytest.raises(CrystalError, match=words) as caught:
        rocksalt(**changes)
    assert str(caught.value).startswith("salt: ")
    assert "\n" not in str(caught.value)


def test_left_handed_lattice_is_kept():
    lattice = ROCKSALT[0][[1, 0, 2]]
    assert np.linalg.det(lattice) < 0 < np.linalg.det(ROCKSALT[0]) or np.linalg.det(ROCKSALT[0]) < 0
    np.testing.assert_array_equal(rocksalt(lattice=lattice).lattice, lattice)


def test_arrays_of_other_libraries():
    torch = pytest.importorskip("torch")
    crystal = Crystal(4 * torch.eye(3), torch.zeros(1, 3), torch.tensor([29]))
    assert crystal == Crystal(4 * np.eye(3), np.zeros((1, 3)), [29])
    with pytest.raises(CrystalError, match="at least one site"):
        Crystal(4 * np.eye(3), [], [])


def test_occupancies_by_symbol():
    crystal = Crystal(4 * np.eye(3), [[0, 0, 0]], [29], [{"Cu": 0.75, "Au": 0.25}])
    assert crystal.occupancies == ({29: 0.75, 79: 0.25},)
    with pytest.raises(CrystalError, match="'Xx', which is no element"):
        Crystal(4 * np.eye(3), [[0, 0, 0]], [29], [{"Xx": 0.75}])


def test_occupancies():
    assert rocksalt(occupancies=[1.0, 1.0]).occupancies is None
    assert rocksalt(occupancies=[{11: 1.0}, {17: 1.0}]).is_ordered
    mixed = rocksalt(occupancies=[{11: 0.3, 19: 0.6}, 0.9])
    assert mixed.occupancies == ({11: 0.3, 19: 0.6}, {17: 0.9})
    assert mixed.atomic_numbers.tolist() == [19, 17]  # the majority
    assert mixed.composition == pytest.approx({11: 0.3, 19: 0.6, 17: 0.9})
    tie = rocksalt(occupancies=[{19: 0.5, 11: 0.5}, 1.0])
    assert tie.atomic_numbers.tolist() == [11, 17]  # the one that was named


def neighbour_distances(crystal: Crystal, cutoff: float = 6.0) -> np.ndarray:
    from ase.neighborlist import neighbor_list

    return np.sort(neighbor_list("d", crystal.to_ase(), cutoff))


matrices = st.lists(st.integers(-2, 2), min_size=9, max_size=9).map(lambda v: np.array(v).reshape(3, 3))


@settings(max_examples=40, deadline=None)
@given(matrices.filter(lambda m: 0 < abs(round(np.linalg.det(m))) < 7))
def test_supercell_is_the_same_crystal(matrix):
    crystal = rocksalt()
    large = crystal.supercell(matrix)
    count = abs(round(np.linalg.det(matrix)))
    assert len(large) == 2 * count
    assert large.volume == pytest.approx(count * crystal.volume)
    np.testing.assert_allclose(large.lattice, matrix @ crystal.lattice)
    # every atom is an atom of the old crystal, and no two are one
    back = large.cart_coords @ np.linalg.inv(crystal.lattice)
    offset = back - crystal.frac_coords[(large.atomic_numbers == 17).astype(int)]
    np.testing.assert_allclose(offset, np.rint(offset), atol=1e-9)
    np.testing.assert_allclose(
        neighbour_distances(large), np.sort(np.tile(neighbour_distances(crystal), count)), atol=1e-8
    )


def test_supercell_shorthands_and_mistakes():
    crystal = rocksalt(occupancies=[0.5, 1.0])
    assert len(crystal.supercell(2)) == 16
    doubled = crystal.supercell([1, 1, 2])
    assert doubled.occupancies == crystal.occupancies * 2
    with pytest.raises(CrystalError, match="determinant 0"):
        crystal.supercell([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(CrystalError, match="integers"):
        crystal.supercell([1.5, 1.0, 1.0])


def test_pymatgen_there_and_back():
    from pymatgen.core import DummySpecies, Lattice, Structure

    for crystal in (rocksalt(), rocksalt(occupancies=[{11: 0.3, 19: 0.6}, 0.9])):
        structure = crystal.to_pymatgen()
        assert as_crystal(structure) == crystal
        assert as_crystal(structure).name == "salt"
    charged = Structure(Lattice.cubic(4), ["Fe3+", "O2-", "D+"], np.eye(3) / 2)
    assert as_crystal(charged).symbols == ["Fe", "O", "H"]
    with pytest.raises(CrystalError, match="no element"):
        as_crystal(Structure(Lattice.cubic(4), [DummySpecies("X")], [[0, 0, 0]]), "dummy")


def test_ase_there_and_back():
    from ase import Atoms

    crystal = rocksalt()
    back = as_crystal(crystal.to_ase())
    np.testing.assert_allclose(back.frac_coords, crystal.frac_coords, atol=1e-15)
    np.testing.assert_array_equal(back.lattice, crystal.lattice)
    assert back.name == "salt"
    assert back.notes == ()
    with pytest.raises(CrystalError, match="partial occupancy"):
        rocksalt(occupancies=[0.5, 1.0]).to_ase()
    with pytest.raises(CrystalError, match="no three-dimensional cell"):
        as_crystal(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]]))
    slab = as_crystal(Atoms("Cu", cell=np.diag([2.5, 2.5, 20]), pbc=[True, True, False]))
    assert "periodic in all three" in slab.notes[0]


def test_as_crystal_knows_what_it_is_given():
    crystal = rocksalt()
    assert as_crystal(crystal) is crystal
    assert as_crystal(crystal, "new").name == "new"
    with pytest.raises(TypeError, match=r"expected a facetry Crystal.*got int"):
        as_crystal(3)
