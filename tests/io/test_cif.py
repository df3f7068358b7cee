"""CIF: cells, sites however they are listed, slips of the text, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.crystal import Crystal
from facetry.io import ReadError, read
from facetry.io.cif import read_cif
from facetry.io.cif_values import lattice_from_parameters
from facetry.io.elements_of import NoElement, element_of_label, element_of_type, parse_formula
from tests.io.cif_text import CUBIC, HEXAGONAL, cif, listed, named, one, refused

# --- cell --------------------------------------------------------------------------------------


def test_lattice_from_parameters():
    lattice = lattice_from_parameters(3.0, 4.0, 5.0, 80.0, 95.0, 110.0)
    lengths = np.linalg.norm(lattice, axis=1)
    np.testing.assert_allclose(lengths, [3, 4, 5])
    cosines = (lattice @ lattice.T) / np.outer(lengths, lengths)
    np.testing.assert_allclose(np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]])), [80, 95, 110])
    assert lattice_from_parameters(1.0, 1.0, 1.0, 90.0, 90.0, 120.0)[1, 0] == -0.5


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ((4, 4, None, 90, 90, 90), "_cell_length_c is missing"),
        ((4, 4, 4, None, 90, 90), "_cell_angle_alpha is missing"),
        ((4, "?", 4, 90, 90, 90), "_cell_length_b is missing"),
        ((4, 4, "four", 90, 90, 90), "'four', which is no positive number"),
        ((4, 4, -4, 90, 90, 90), "no positive number"),
        ((4, 4, "nan", 90, 90, 90), "no positive number"),
        ((4, 4, 4, 30, 90, 130), "close no cell"),
        ((4, 4, 4, 60, 60, 120), "flat"),
        ((4, 4, 4, 20.62112911, 83.61568451, 62.9943924), "flat|close no cell"),
        ((4, 4, 4, 0.0001, 90, 90), "every atom meets its own image"),
        ((0.3, 9, 9, 90, 90, 90), r"translation is only 0\.3 Å"),
        ((1.0, 1.0, 1.0, 90, 90, 90), "too dense"),
    ],
)
def test_bad_cells(cell, words):
    refused(cif(cell, "", "O 0 0 0\nO 0.5 0.5 0.5\nC 0.5 0 0"), words)


def test_uncertainties_in_brackets():
    crystal = one(cif(("4.0(2)", "4.0000(11)", "4.", "90.(0)", 90, 90), "", "O .1(2) 0.25(3) -.3"))
    np.testing.assert_allclose(crystal.lengths, 4.0)
    np.testing.assert_array_equal(crystal.frac_coords, [[0.1, 0.25, -0.3]])


def test_wrong_volume_is_noted():
    assert "volume" in one(cif(CUBIC, "", "O 0 0 0", extra="_cell_volume 100")).notes[0]


def test_skewed_and_sharp_cells_are_read_as_they_are():
    sharp = one(cif((5.9353, 5.9353, 5.9353, 28.05, 28.05, 28.05), "", "Cu 0 0 0\nAl 0.5 0.5 0.5"))
    np.testing.assert_allclose(sharp.angles, 28.05)
    slanted = one(cif((10, 14.142135624, 10, 90, 90, 45), "", "C 0 0 0\nS 0 0.5 0.5\nH 0.5 0.25 0.75"))
    assert len(slanted) == 3


# --- sites -------------------------------------------------------------------------------------

TYPED = "type_symbol fract_x fract_y fract_z"
OCCUPIED = "label fract_x fract_y fract_z occupancy"


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("Fe3+", "Fe"),
        ("O2-", "O"),
        ("O-2", "O"),
        ("FE1", "Fe"),
        ("D", "H"),
        ("T", "H"),
        ("Cval", "C"),
        ("Sival", "Si"),
        ("Na+", "Na"),
        ("Wa", "O"),
        ("OH-", "O"),
        ("H2O", "O"),
        ("W", "W"),
    ],
)
def test_type_symbols(text, symbol):
    assert one(cif(CUBIC, "", f"{text} 0 0 0", TYPED)).symbols == [symbol]


@pytest.mark.parametrize(
    ("label", "formula", "symbol"),
    [
        ("SiT1*", "", "Si"),
        ("O(2)", "", "O"),
        ("O2B", "", "O"),
        ("Cl(1)", "", "Cl"),
        ("K(12MRc)", "", "K"),
        ("CaX", "", "Ca"),
        ("Dw1", "D2 O", "H"),
        ("D1", "H2 O", "H"),
        ("Ow3", "", "O"),
        ("Wat5", "", "O"),
        ("Wat(5)", "Ba O H2", "O"),
        ("W1", "Ca W O4", "W"),
        ("O-H(4)", "", "O"),
        ("NH4", "N H4 Cl", "N"),
        ("CA1", "Ca C O3", None),
        ("CA1", "Ca O", "Ca"),
        ("CA1", "C O2", "C"),
        ("CA1", "", None),
        ("Ca1", "", "Ca"),
        ("Ho1", "H2 O", "H"),
        ("Ho1", "Ho2 O3", "Ho"),
        ("T1", "Si O2", None),
        ("M1", "", None),
        ("?", "", None),
        ("Vac1", "", None),
        ("Du1", "", None),
    ],
)
def test_labels(label, formula, symbol):
    from facetry.elements import SYMBOLS

    symbols = frozenset(dict(parse_formula(formula)))
    if symbol is None:
        with pytest.raises(NoElement):
            element_of_label(label, symbols)
    else:
        assert SYMBOLS[element_of_label(label, symbols)[0]] == symbol


def test_no_element():
    for text in ("?", "X", "Xx2+", "", "1"):
        with pytest.raises(NoElement):
            element_of_type(text)
    refused(cif(CUBIC, "", "Qq 0 0 0", TYPED), "'Qq'|label")
    refused(cif(CUBIC, "", "CA1 0 0 0"), "can mean Ca or C: add a column _atom_site_type_symbol")


def test_formulas():
    assert dict(parse_formula("C3 D3 O7 Sr")) == {"C": 3, "D": 3, "O": 7, "Sr": 1}
    assert dict(parse_formula("(Sr0.7 Y0.3) Co O2.62")) == {"Sr": 0.7, "Y": 0.3, "Co": 1, "O": 2.62}
    assert dict(parse_formula("Ca(OH)2")) == {"Ca": 1, "O": 2, "H": 2}
    assert dict(parse_formula("Mn.98 Nb3")) == {"Mn": 0.98, "Nb": 3}
    assert parse_formula("what is this") == ()


def test_groups_written_as_one_atom_are_noted():
    crystal = one(cif(CUBIC, "", "Na 0 0 0\nWat1 0.5 0.5 0.5"))
    assert crystal.symbols == ["Na", "O"]
    assert "hydrogen missing: Wat1 (water)" in crystal.notes[0]


def test_missing_hydrogen_is_noted():
    extra = "_chemical_formula_sum 'Cl H4 N'\n_cell_formula_units_Z 1"
    crystal = one(cif(CUBIC, "", "N 0 0 0\nCl 0.5 0.5 0.5", extra=extra))
    assert crystal.notes == ("4 of 4 hydrogen atoms of the formula are not among the sites",)


def test_wrong_contents_are_noted():
    extra = "_chemical_formula_sum 'Na2 Cl'\n_cell_formula_units_Z 1"
    assert (
        "differ from formula times Z" in one(cif(CUBIC, "", "Na 0 0 0\nCl 0.5 0.5 0.5", extra=extra)).notes[0]
    )


def test_mixed_site_and_split_site():
    mixed = one(cif(CUBIC, "", "Na -3.5 -3.5 -3.5 0.5\nK 3.5 3.5 3.5 0.5", OCCUPIED))
    assert mixed.occupancies == ({11: 0.5, 19: 0.5},)
    split = one(cif(CUBIC, "", "Li 0 0 0 0.5\nLi 0 0 0.06 0.5", OCCUPIED))
    assert split.occupancies == ({3: 0.5}, {3: 0.5})
    charged = one(
        cif(CUBIC, "", "Fe2+ 0 0 0 0.6\nFe3+ 0 0 0 0.4", "type_symbol fract_x fract_y fract_z occupancy")
    )
    assert charged.is_ordered
    assert len(charged) == 1


def test_split_site_about_a_symmetry_element_stays_split():
    cell, mirror = (9, 8, 7, 90, 90, 90), listed("x,y,z", "-x,y,z")
    assert len(one(cif(cell, mirror, "O 0.02 0.2 0.3 0.5", OCCUPIED))) == 2  # 0.36 Å apart, half filled
    full = one(cif(cell, mirror, "O 0.02 0.2 0.3 1.0", OCCUPIED))  # a full atom cannot be two
    assert len(full) == 1
    np.testing.assert_allclose(full.frac_coords, [[0.0, 0.2, 0.3]], atol=1e-12)
    assert "special position" in full.notes[0]
    rounded = one(cif(HEXAGONAL, named("P 63/m m c"), "Mg 0.3333 0.6667 0.25"))
    assert rounded.notes == ()


@pytest.mark.parametrize(
    ("occupancy", "expected", "note"),
    [
        ("?", None, "taken as 1"),
        (".", None, ""),
        ("1", None, ""),
        ("1.0(2)", None, ""),
        ("0.25(3)", 0.25, ""),
    ],
)
def test_occupancies(occupancy, expected, note):
    crystal = one(cif(CUBIC, "", f"O 0 0 0 {occupancy}", OCCUPIED))
    assert crystal.occupancies == (expected and ({8: expected},))
    assert note in " ".join(crystal.notes)


def test_odd_occupancies():
    crystal = one(cif(CUBIC, "", "O 0 0 0 1\nH 0.5 0.5 0.5 0", OCCUPIED))
    assert len(crystal) == 1
    assert "occupancy 0 left out: H" in crystal.notes[0]
    over = one(cif(CUBIC, "", "N1 0 0 0 1.237(22)", OCCUPIED))
    assert over.is_ordered
    assert "occupancy above 1 taken as 1: N1 (1.237)" in over.notes[0]
    thirds = one(cif(CUBIC, "", "Li 0 0 0 0.34\nNa 0 0 0 0.34\nK 0 0 0 0.34", OCCUPIED))
    assert sum(thirds.occupancies[0].values()) == pytest.approx(1)
    refused(cif(CUBIC, "", "O 0 0 0 -0.1", OCCUPIED), "expected 0 to 1")
    refused(cif(CUBIC, "", "O 0 0 0 many", OCCUPIED), "'many', which is no number")


def test_equivalents_listed_one_by_one_are_merged():
    crystal = one(cif(CUBIC, listed("x,y,z", "-x,-y,-z"), "Cu 0.2 0.2 0.2\nCu -0.2 -0.2 -0.2"))
    assert len(crystal) == 2
    assert "listed more than once: Cu" in crystal.notes[0]


def test_two_atoms_on_one_site():
    message = refused(cif(CUBIC, "", "Na1 0 0 0\nNa2 0 0 0.005"), r"pass merge_within=0\.05")
    assert "sites Na1 and Na2" in message
    message = refused(cif(CUBIC, "", "Na1 0 0 0\nNa2 0 0 0.05"), r"0\.20 Å apart; pass merge_within=0\.25")
    assert "Na1 and Na2" in message
    refused(cif(CUBIC, "", "Na1 0 0 0\nCl1 1 0 0"), "hold 2 atoms together")
    merged = one(cif(CUBIC, "", "Na1 0 0 0\nNa2 0 0 0.05"), merge_within=0.25)
    assert len(merged) == 1
    np.testing.assert_allclose(merged.frac_coords, [[0, 0, 0.025]])


def test_symmetry_copies_that_nearly_meet_across_atoms():
    refused(cif(CUBIC, listed("x,y,z", "-x,-y,-z"), "Na 0.2 0.2 0.2\nCl -0.2 -0.2 -0.25"), "apart")


def test_sites_without_an_element_must_be_confirmed_by_the_formula():
    columns = "label type_symbol fract_x fract_y fract_z"
    extra = "_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 1"
    sites = "Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5\nmax ? 0.7 0.1 0.2"
    crystal = one(cif(CUBIC, "", sites, columns, extra))
    assert len(crystal) == 2
    assert "max" in crystal.notes[0]
    refused(cif(CUBIC, "", sites, columns), "site max holds no element")


def test_dummy_sites_are_left_out():
    crystal = one(
        cif(CUBIC, "", "Na1 0 0 0 d\nCg 0.5 0.5 0.5 dum", "label fract_x fract_y fract_z calc_flag")
    )
    assert crystal.symbols == ["Na"]
    assert "dummy" in crystal.notes[0]


@pytest.mark.parametrize(
    ("sites", "columns", "words"),
    [
        ("Na 0 0", "label fract_x fract_y", "fract_z is missing"),
        ("Na 0 0 0", "label Cartn_x Cartn_y Cartn_z", "no fractional coordinates"),
        ("0 0 0", "fract_x fract_y fract_z", "neither labels nor type symbols"),
        ("Na 0 0 ?", "label fract_x fract_y fract_z", "site Na: _atom_site_fract_z is not given"),
        ("Na 0 0 nan", "label fract_x fract_y fract_z", "not finite"),
        ("Na 0 zero 0", "label fract_x fract_y fract_z", "'zero', which is no number"),
        ("? ? ? ?", "label fract_x fract_y fract_z", "not given"),
        ("Na 0 0 0 7", "label fract_x fract_y fract_z", "Wrong number of values"),
    ],
)
def test_bad_sites(sites, columns, words):
    refused(cif(CUBIC, "", sites, columns), words)


def test_one_atom_as_plain_items():
    values = {"label": "Po", "fract_x": 0, "fract_y": 0, "fract_z": 0}
    items = "\n".join(f"_atom_site_{key} {value}" for key, value in values.items())
    text = cif(CUBIC, "", "").split("loop_")[0] + items + "\n"
    assert one(text).symbols == ["Po"]


def test_column_order_and_case():
    text = cif(CUBIC, "", "0.1 Na 0.2 0.3", "fract_x label fract_y fract_z").replace(
        "_atom_site_", "_ATOM_SITE_"
    )
    np.testing.assert_array_equal(one(text).frac_coords, [[0.1, 0.2, 0.3]])


def test_large_cell_is_quick():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) / 16
    places = grid[:4000] + rng.uniform(-0.005, 0.005, (4000, 3))
    sites = "\n".join(f"C{i} {x:.6f} {y:.6f} {z:.6f}" for i, (x, y, z) in enumerate(places))
    assert len(one(cif((32.0, 32.0, 32.0, 90, 90, 90), "", sites))) == 4000


# --- text --------------------------------------------------------------------------------------


def test_several_blocks(tmp_path):
    good = cif(CUBIC, "", "Na 0 0 0")
    texts = good + "data_about\n_title 'no structure'\n" + good + cif(CUBIC, "", "Qq 0 0 0")
    results = [result for _, result in read_cif(texts)]
    assert [isinstance(result, Crystal) for result in results] == [True, True, False]
    (tmp_path / "many.cif").write_text(texts)
    assert [getattr(r, "name", None) for r in read(tmp_path, errors="return")] == ["many#1", "many#2", None]
    with pytest.raises(ReadError, match="holds 3"):
        one(texts)


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ("data_test\n", "", "no data_ heading"),
        ("_cell_length_a", "_publ_title 'don't 'see\n_cell_length_a", ""),
        ("_cell_length_a", "_publ_title 'a line\n  goes on\n'\n_cell_length_a", "quotes are not closed"),
        ("_cell_length_a", "_publ_title 'fine' but not this\n_cell_length_a", "stray text"),
        ("loop_", "loop_\n_geom_bond_a\n_geom_bond_b\nC O\nC\nloop_", "wrong number of values"),
        ("Na 0", "Na\xb4 0", ""),
        ("\n", "\r\n", ""),
        ("Na 0 0 0", "Na 0 0 0\n\x1a", "Ctrl-Z"),
    ],
)
def test_slips_that_touch_no_structure_are_mended(before, after, note):
    text = cif(CUBIC, "", "Na 0 0 0")
    ((_, crystal),) = read_cif(text.replace(before, after).encode("latin-1"))
    assert crystal.symbols == ["Na"]
    assert note in " ".join(crystal.notes)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("_cell_length_a 4.0", "_cell_length_a '4.0"),
        ("Na 0 0 0", "Na 0 0 'x"),
        ("loop_", "loop_\n;\nopen text\nloop_"),
        ("Na 0 0 0", "Na 0 0"),
    ],
)
def test_slips_in_the_structure_are_not(before, after):
    refused(cif(CUBIC, "", "Na 0 0 0").replace(before, after), "no valid CIF: line")


def test_no_structure():
    refused("data_x\n_title 'nothing'\n", "no structure in it")
    refused("hello", "no valid CIF")
    refused(cif(CUBIC, "", "").split("loop_")[0], "no atom sites")
