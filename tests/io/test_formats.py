"""Writing and reading again: CIF, POSCAR, extxyz, JSON."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetry.crystal import Crystal
from facetry.io import ReadError, from_text, read, to_text, write

MIXED = Crystal(
    np.diag([4.0, 5.0, 6.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [26, 8], [{26: 0.7, 28: 0.3}, 0.25], "mixed"
)
ORDERED_FORMATS = ("cif", "poscar", "extxyz", "json")

numbers = st.floats(-1.5, 1.5, allow_nan=False, width=64)


@st.composite
def crystal_arguments(draw) -> tuple:
    """Up to five atoms that keep their distance, in a cell of any shape and handedness."""
    count = draw(st.integers(1, 5))
    lattice = np.array(draw(st.lists(numbers, min_size=9, max_size=9))).reshape(3, 3)
    lattice = lattice + np.diag(draw(st.lists(st.sampled_from([6.0, -6.0, 7.5]), min_size=3, max_size=3)))
    shift = np.array(draw(st.lists(numbers, min_size=3, max_size=3)))
    places = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]])[:count]
    jitter = np.array(draw(st.lists(st.floats(-0.05, 0.05), min_size=3 * count, max_size=3 * count)))
    elements = draw(st.lists(st.integers(1, 118), min_size=count, max_size=count))
    return lattice, places + shift + jitter.reshape(-1, 3), elements


@settings(max_examples=60, deadline=None)
@given(crystal_arguments())
def test_round_trip(arguments):
    crystal = Crystal(*arguments, name="any")
    assert from_text(to_text(crystal, "json"), "json") == crystal
    assert from_text(to_text(crystal, "poscar"), "poscar") == crystal
    xyz = from_text(to_text(crystal, "extxyz"), "extxyz")
    np.testing.assert_array_equal(xyz.lattice, crystal.lattice)
    np.testing.assert_allclose(xyz.frac_coords, crystal.frac_coords, atol=1e-13)
    cif = from_text(to_text(crystal, "cif"), "cif")
    sign = np.sign(np.linalg.det(crystal.lattice))
    np.testing.assert_array_equal(cif.frac_coords, sign * crystal.frac_coords)
    np.testing.assert_allclose(cif.lattice @ cif.lattice.T, crystal.lattice @ crystal.lattice.T, atol=1e-11)
    for other in (xyz, cif):
        np.testing.assert_array_equal(other.atomic_numbers, crystal.atomic_numbers)
        assert other.name == "any"
        assert other.notes == ()


def test_left_handed_cell_keeps_its_chirality_in_cif():
    lattice = np.array([[0, 5.0, 0], [4.0, 0, 0], [0, 0, 6.0]])  # det < 0
    spiral = Crystal(lattice, [[0, 0, 0], [0.25, 0, 0.1], [0.25, 0.3, 0.2], [0, 0.2, 0.3]], [6, 7, 8, 9])

    def handedness(crystal: Crystal) -> float:
        return float(np.linalg.det(crystal.cart_coords[1:] - crystal.cart_coords[0]))

    assert handedness(from_text(to_text(spiral, "cif"), "cif")) == pytest.approx(handedness(spiral))


@pytest.mark.parametrize("format", ["cif", "json"])
def test_partial_occupancy_is_kept(format):
    back = from_text(to_text(MIXED, format), format)
    assert back.occupancies == MIXED.occupancies
    np.testing.assert_array_equal(back.frac_coords, MIXED.frac_coords)


@pytest.mark.parametrize("format", ["poscar", "extxyz"])
def test_partial_occupancy_is_refused(format):
    with pytest.raises(ValueError, match=r"mixed: .* cannot hold partial occupancy"):
        to_text(MIXED, format)


@pytest.mark.parametrize("suffix", [".cif", ".vasp", ".extxyz", ".xyz", ".json", ".cif.gz", ".json.gz"])
def test_files(tmp_path, suffix):
    crystal = Crystal(np.diag([4.0, 5.0, 6.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [26, 8], name="iron oxide")
    path = tmp_path / f"slab{suffix}"
    crystal.write(path)
    (back,) = read(path)
    assert back == crystal
    # extended XYZ and JSON carry the name, in the others the file is the name
    assert back.name == ("iron oxide" if "xyz" in suffix or "json" in suffix else "slab")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_poscar_by_name(tmp_path):
    folder = tmp_path / "relaxation"
    folder.mkdir()
    MIXED.replace(occupancies=None).write(folder / "POSCAR")
    (back,) = read(folder)
    assert back.name == "relaxation/POSCAR"


def test_unknown_suffix_and_format(tmp_path):
    with pytest.raises(ValueError, match="no known format"):
        MIXED.write(tmp_path / "slab.pdb")
    with pytest.raises(ValueError, match="format 'pdb' is unknown"):
        MIXED.to_text("pdb")
    with pytest.raises(ValueError, match="format 'pdb' is unknown"):
        Crystal.from_text("", "pdb")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "slab.vasp"
    path.write_text("precious")
    with pytest.raises(ValueError, match="partial occupancy"):
        MIXED.write(path)
    assert path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk():
    with pytest.raises(OSError, match=r".*"):
        MIXED.write("/proc/nowhere.cif")


def test_several_in_one_file(tmp_path):
    pair = [MIXED.replace(occupancies=None, name=name) for name in ("first", "second")]
    for suffix in (".cif", ".extxyz", ".json"):
        write(pair, tmp_path / f"pair{suffix}")
        back = read(tmp_path / f"pair{suffix}")
        assert back == pair
        expected = ["pair#first", "pair#second"] if suffix == ".cif" else ["first", "second"]
        assert [crystal.name for crystal in back] == expected
    with pytest.raises(ValueError, match="a POSCAR holds one structure"):
        write(pair, tmp_path / "pair.vasp")


def test_others_read_what_we_write():
    from ase.io import read as ase_read
    from pymatgen.core import Structure

    crystal = Crystal(
        [[4.0, 0, 0.1], [0.3, 5.0, 0], [0, -0.2, 6.0]], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]], [26, 8], name="x"
    )
    assert Crystal.from_pymatgen(Structure.from_str(crystal.to_text("json"), fmt="json")) == crystal
    np.testing.assert_allclose(
        Structure.from_str(crystal.to_text("poscar"), fmt="poscar").frac_coords,
        crystal.frac_coords,
        atol=1e-12,
    )
    extxyz = ase_read(io.StringIO(crystal.to_text("extxyz")), format="extxyz")
    np.testing.assert_allclose(extxyz.positions, crystal.cart_coords, atol=1e-12)
    np.testing.assert_allclose(extxyz.cell.array, crystal.lattice)
    cif = ase_read(io.StringIO(crystal.to_text("cif")), format="cif")
    np.testing.assert_allclose(cif.get_all_distances(mic=True), crystal.to_ase().get_all_distances(mic=True))


# --- POSCAR --------------------------------------------------------------------------------------

POSCAR = """{comment}
{scale}
4.0 0.0 0.0
0.0 4.0 0.0
0.0 0.0 4.0
{species}{counts}
{mode}
0.0 0.0 0.0{tails[0]}
0.5 0.5 0.5{tails[1]}
{after}"""


def poscar(**changes) -> str:
    parts = {"comment": "a comment", "scale": "1.0", "species": "Cs Cl\n", "counts": "1 1", "mode": "Direct"}
    return POSCAR.format(**{**parts, "tails": ["", ""], "after": "", **changes})


@pytest.mark.parametrize(
    ("changes", "formula", "volume"),
    [
        ({}, "CsCl", 64.0),
        ({"scale": "2.0"}, "CsCl", 512.0),
        ({"scale": "-125.0"}, "CsCl", 125.0),
        ({"scale": "1.0 2.0 3.0"}, "CsCl", 384.0),
        ({"scale": "1.0 ! scale"}, "CsCl", 64.0),
        ({"mode": "Selective dynamics\nDirect", "tails": [" T T F", " F F F"]}, "CsCl", 64.0),
        ({"after": "\n0.1 0.1 0.1\n0.2 0.2 0.2\n"}, "CsCl", 64.0),
        ({"species": "Cs_sv Cl\n"}, "CsCl", 64.0),
        ({"species": "Cs/4f3a Cl/99ab\n"}, "CsCl", 64.0),
        ({"species": "Cs\nCl\n", "counts": "1\n1"}, "CsCl", 64.0),
        ({"species": "", "tails": [" Cs", " Cl"]}, "CsCl", 64.0),
        ({"species": "", "tails": [" # Cs1", " # Cl1"]}, "CsCl", 64.0),
        ({"species": "", "comment": "Cs1 Cl1"}, "CsCl", 64.0),
        ({"species": "", "comment": "cubic CsCl from 1990"}, "CsCl", 64.0),
    ],
)
def test_poscar_dialects(changes, formula, volume):
    crystal = from_text(poscar(**changes), "poscar")
    assert crystal.formula == formula
    assert crystal.volume == pytest.approx(volume)
    np.testing.assert_allclose(crystal.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_poscar_cartesian_positions_are_scaled_too():
    text = poscar(mode="Cartesian", scale="2.0").replace("0.5 0.5 0.5", "2.0 2.0 2.0")
    np.testing.assert_allclose(from_text(text, "poscar").frac_coords[1], 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"species": ""}, "does not name its elements; add a line"),
        ({"species": "", "comment": "Cs2 Cl1"}, "does not name its elements"),
        ({"counts": "1 2"}, "ask for 3 positions"),
        ({"species": "Cs\n"}, "1 element symbols but 2 counts"),
        ({"species": "Cs Qq\n"}, "'Qq' is no element"),
        ({"scale": "0.0"}, "line 2 should be the scale"),
        ({"scale": "abc"}, "line 2 should be the scale"),
        ({"mode": "Fractional"}, "Direct or Cartesian"),
        ({"counts": "0 0"}, "no counts of atoms"),
    ],
)
def test_bad_poscar(changes, words):
    with pytest.raises(ReadError, match=words) as caught:
        from_text(poscar(**changes), "poscar", "POSCAR.bad")
    assert str(caught.value).startswith("POSCAR.bad: ")


def test_poscar_cut_short():
    for end in (0, 20, 40, 60):
        with pytest.raises(ReadError):
            from_text(poscar()[:end], "poscar")


# --- extxyz --------------------------------------------------------------------------------------

LATTICE = 'Lattice="4 0 0 0 4 0 0 0 4"'


@pytest.mark.parametrize(
    ("comment", "rows"),
    [
        (LATTICE, "Cs 0 0 0\nCl 2 2 2"),
        (f'{LATTICE} Properties=species:S:1:pos:R:3 pbc="T T T" energy=-1.0', "Cs 0 0 0\nCl 2 2 2"),
        (f"{LATTICE} Properties=id:I:1:species:S:1:pos:R:3:forces:R:3", "1 Cs 0 0 0 1 1 1\n2 Cl 2 2 2 1 1 1"),
        (f"{LATTICE} Properties=Z:I:1:pos:R:3", "55 0 0 0\n17 2 2 2"),
        ("Lattice=[[4,0,0],[0,4,0],[0,0,4]]", "Cs 0 0 0\nCl 2 2 2"),
        ("lattice='4 0 0 0 4 0 0 0 4' note=\"a b = c\"", "Cs1 0 0 0\nCl1 2 2 2"),
    ],
)
def test_extxyz_dialects(comment, rows):
    crystal = from_text(f"2\n{comment}\n{rows}\n", "extxyz")
    assert crystal.formula == "CsCl"
    np.testing.assert_allclose(crystal.frac_coords[1], 0.5)


def test_extxyz_partly_periodic_is_noted():
    assert "pbc" in from_text(f'1\n{LATTICE} pbc="T T F"\nCs 0 0 0\n', "extxyz").notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2\njust a molecule\nH 0 0 0\nH 0 0 0.74\n", "no lattice in the comment"),
        (f"3\n{LATTICE}\nCs 0 0 0\n", "promises 3 atoms"),
        (f"1\n{LATTICE}\nCs 0 0\n", "line 3 is no atom"),
        (f"1\n{LATTICE}\nXx 0 0 0\n", "'Xx' is no element"),
        (f"1\n{LATTICE}\nCs 0 0 nan\n", "not finite"),
        (f"1\n{LATTICE} Properties=pos:R:3\n0 0 0\n", "Properties names no species"),
        ('1\nLattice="1 0 0 2 0 0 0 0 1"\nCs 0 0 0\n', "flat"),
        ('1\nLattice="1 0 0"\nCs 0 0 0\n', "lattice vectors between 0.001"),
        ("hello\n", "should be the number of atoms"),
    ],
)
def test_bad_extxyz(text, words):
    with pytest.raises(ReadError, match=words):
        from_text(text, "extxyz")


def test_one_bad_frame_among_good_ones(tmp_path):
    good = f"1\n{LATTICE}\nCs 0 0 0\n"
    (tmp_path / "path.xyz").write_text(good + f"1\n{LATTICE}\nXx 0 0 0\n" + good + "rubbish\n")
    results = read(tmp_path / "path.xyz", errors="return")
    assert [isinstance(result, Crystal) for result in results] == [True, False, True, False]
    assert "structure 2: line" in str(results[1])


# --- JSON ----------------------------------------------------------------------------------------


def test_json_of_ase(tmp_path):
    from ase import Atoms
    from ase.io import write as ase_write

    atoms = Atoms("CsCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[4, 4, 4], pbc=True)
    ase_write(tmp_path / "one.json", atoms)
    ase_write(tmp_path / "two.json", [atoms, atoms])
    assert [crystal.name for crystal in read(tmp_path / "one.json")] == ["one"]
    assert [crystal.name for crystal in read(tmp_path / "two.json")] == ["two#1", "two#2"]
    assert all(crystal.formula == "CsCl" for crystal in read(tmp_path))


def test_json_of_pymatgen(tmp_path):
    import json

    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice.cubic(4), [{"Cs+": 0.5, "Rb+": 0.5}, "Cl-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "entry.json").write_text(json.dumps({"entries": [{"structure": structure.as_dict()}]}))
    (crystal,) = read(tmp_path / "entry.json")
    assert crystal.occupancies == ({55: 0.5, 37: 0.5}, {17: 1.0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no valid JSON"),
        ("[1, 2]", "no structure in the JSON"),
        ('{"lattice": {}, "sites": []}', "matrix"),
        ('{"lattice": {"matrix": [[4,0,0],[0,4,0],[0,0,4]]}, "sites": []}', "no sites"),
        (
            '{"lattice": {"matrix": [[4,0,0],[0,4,0],[0,0,4]]}, '
            '"sites": [{"species": [{"element": "Xx"}], "abc": [0,0,0]}]}',
            "'Xx', which is no element",
        ),
        (
            '{"cell": [[0,0,0],[0,0,0],[0,0,0]], "positions": [[0,0,0]], "numbers": [1]}',
            "lattice vectors between 0.001",
        ),
    ],
)
def test_bad_json(text, words):
    with pytest.raises(ReadError, match=words):
        from_text(text, "json")


# --- any format ----------------------------------------------------------------------------------


def test_bytes_that_are_no_structure(tmp_path):
    (tmp_path / "empty.cif").write_bytes(b"")
    (tmp_path / "blank.vasp").write_bytes(b"\n \n")
    (tmp_path / "garbage.cif").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "garbage.vasp").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "half.cif.gz").write_bytes(gzip.compress(b"data_x" * 99)[:20])
    results = {str(e.file).rsplit("/", 1)[-1]: e.reason for e in read(tmp_path, errors="return")}
    assert results["empty.cif"] == "the file is empty"
    assert results["blank.vasp"] == "the file is empty"
    assert "binary" in results["garbage.cif"]
    assert "binary" in results["garbage.vasp"]
    assert "damaged gzip" in results["half.cif.gz"]


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
@pytest.mark.parametrize("format", ORDERED_FORMATS)
def test_line_ends_and_marks(tmp_path, format, newline):
    crystal = MIXED.replace(occupancies=None)
    suffix = {"poscar": "vasp"}.get(format, format)
    text = to_text(crystal, format).replace("\n", newline)
    (tmp_path / f"x.{suffix}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path) == [crystal]


def test_two_atoms_on_one_site_and_merging():
    twice = MIXED.replace(occupancies=None, atomic_numbers=[8, 8], frac_coords=[[0, 0, 0], [0.005, 1.0, 0]])
    for format in ORDERED_FORMATS:
        with pytest.raises(ReadError, match=r"merge_within=0\.05"):
            from_text(to_text(twice, format), format)
        (merged,) = [from_text(to_text(twice, format), format, merge_within=0.05)]
        assert len(merged) == 1
        assert "joined" in merged.notes[0]
