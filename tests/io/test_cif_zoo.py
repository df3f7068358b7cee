"""Every file of the collection of odd structure files: its right number of sites, or a named error.

The numbers are not another program's: each follows from the symmetry in the file and, where the file has
them, is confirmed by formula and Z. Where common readers disagree the reason stands beside the number.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from facetry.crystal import Crystal
from facetry.io import ReadError, read_many

# file: (sites of each structure) or (words of the error), then the formula of the first structure
ZOO: dict[str, tuple] = {
    "cgcnn_1000041.cif": ([8], "NaCl"),
    "chemfiles_BN.selective.dynamics.vasp": ([2], "BN"),
    "chemfiles_Cr.velocity.vasp": ([2], "Cr"),
    "chemfiles_MnO.cartesian.vasp": ([24], "MnO"),
    "chemfiles_MnO.misnumbered.vasp": ("ask for 36 positions",),
    "chemfiles_Zr-UiO-66-pressure.cif": ([456] * 3, "Zr3H14C24O16"),
    "cod_1000002-occupancy-questionmarks.cif": ([56], "SrH3C3O7"),  # 14 sites x 4 = formula x Z
    "cod_1000002-test-hall.cif": ([56], "SrH3C3O7"),
    "cod_1000002-unknown-atom-type.cif": ([56], "SrH3C3O7"),  # without the two density peaks
    "cod_1000055-unrecognised-spacegroup.cif": ([7], "LaB6"),
    "cod_1004001.cif": ([1504], "P3H81W3C36S4"),
    "cod_1008954.cif": ([112], "Ce8Fe56B4H14.72"),
    "cod_1010800-no-spcgrp-info.cif": ("atom sites are not given",),
    "cod_1011060-graphite-err.cif": ("neither labels nor type symbols",),
    "cod_1100107-spacegroup-with-underscore.cif": ([100], "Al2P2H9NO11"),
    "cod_1101113-no-atom-site-label.cif": ([36], "FeS2NO8"),  # 3 + 6 + 18 + 6 + 3, as the multiplicities say
    "cod_1101133-wrong-number-of-elements.cif": ([83], "NiH38C18N8O18"),  # the broken loop lists bonds only
    "cod_11678.cif": ([20], "Mn1.96Nb6S12"),
    "cod_19907.cif": ([67], "Ba10Ca2TiMnSi8Cl8O32"),
    "cod_2-entries-AMCSD-global.cif": ([78, 8], "Mg1.8Fe12.2Si16O47F"),
    "cod_2000127-unknown-coordinates.cif": ("atom sites are not given",),
    # I 2/c 1 1 cannot hold for beta = 117; as I 1 2/c 1 the water sits on its twofold axis (1/2, y, 1/4)
    "cod_2000318-r91933.cif": ([180], "P2H24Pt2C6N4Cl4O3"),
    "cod_2002248.cif": ([88], "La2Zr2O7"),
    "cod_2009397-no-data-block-heading.cif": ([249], "H42C31Cl4O6"),
    "cod_2009397-syntax-error.cif": ([249], "H42C31Cl4O6"),
    "cod_2100428-superspacegroup.cif": ("modulated structure",),
    "cod_2100852-no-fract-coordinates.cif": ("no fractional coordinates",),
    "cod_2101499-diamond.cif": ([8], "C"),
    "cod_2103766.cif": ([40], "BaH2O2"),
    "cod_2104374.cif": ([6400], "Ta2336Al3340Cu232"),
    "cod_2107148.cif": ([408], "Na350.6Tl56"),
    "cod_2232489.cif": ([1338], "Cr18H504C540N144Cl53.99O36"),
    "cod_2310225.cif": ([64], "NaPb"),
    # two half-filled ring atoms are listed beside their own images: joined they give the formula
    "cod_4111132.cif": ([1776], "FeAgH36C54N9"),
    "cod_7050234-non-ascii-text-field.cif": ([234], "Ti4H68C29O16"),
    "cod_9000079.cif": ([14], "Cu9S5"),
    "cod_9001205-then-quenched.cif": ([28], "Mg2.16Si4Ni5.84O16"),
    "cod_9003354.cif": ([388], "K0.96Na2.76Ca1.864Al7.824Si40.18O124.7"),
    "cod_cif2_loop_with_mixed_values.cif": ("no valid CIF",),
    "cod_cifdata_7013301.cif": ([62], "Ca11.62Mn0.38Si12O36"),
    "cod_comments_in_text.cif": ("_cell_length_a is missing",),
    "cod_cubic_as_slanted.cif": ([3], "HCS"),
    "cod_discrete-molecules-I432.cif": ([14], "C"),
    "cod_funny-disorder-markups.cif": ([24] * 3, "AlSi3"),
    "cod_irresolvable-symops.cif": ("_cell_length_a is missing",),
    "cod_missing-cell-constants.cif": ("_cell_length_b is missing",),
    "cod_missing_atom_fract_z.cif": ("_atom_site_fract_z is missing",),
    "cod_no-cell-angles.cif": ("_cell_angle_alpha is missing",),
    "cod_no-label.cif": ("neither labels nor type symbols",),
    "cod_unit-cell-translated-sites.cif": ([1], "K0.5Na0.5"),
    "cod_values-as-keywords.cif": ("_cell_length_a is missing",),
    "diffpy_LiCl-bad.cif": ([8], "LiCl"),
    "diffpy_Ni_ref.cif": ([4], "Ni"),  # F m -3 m stands in _space_group_name_H-M_ref: 9 g/cm3 needs four
    "diffpy_PbTe.cif": ([8], "TePb"),
    "diffpy_TeI-unkocc.cif": ([16], "TeI"),
    "diffpy_badspacegroup.cif": ([40], "KMgAl2Si4O12"),
    "diffpy_customsg.cif": ([4], "C"),
    "diffpy_nosites.cif": ("atom sites are not given",),
    "gemmi_1011031.cif": ([8], "SiC"),
    "gemmi_2013551.cif": ([3], "MgI2"),
    "gemmi_eol-test.cif": ("no structure in it",),
    "gemmi_misc.cif": ("no structure in it",),
    "pmg_FePO4.vasp": ([24], "FePO4"),
    "pmg_Li10GeP2S12.cif": ([58], "Li20.2Ge2.06P3.94S24"),
    "pmg_Mn3Ge_IR2.mcif": ([8], "Mn3Ge"),
    "pmg_OneLineSymmP1.cif": ([14], "Ga2PbO4"),
    "pmg_POSCAR_AlN.vasp": ([4], "AlN"),
    "pmg_POSCAR_symbols_natoms_multilines.vasp": ([53], "Cr16Fe35Ni2"),
    "pmg_POSCAR_tricky_symmetry.vasp": ([34], "MnZn4H16I9Cl4"),
    "pmg_bad_superflat_inf_loop.cif.gz": ("flat",),
    "pmg_cif_implicit_hydrogens_cod_1011130.cif": ([8], "NCl"),
    "pmg_nosymm.cif": ([164], "H24C15O2"),
    "pmg_rhomb_3478.cif": ([4], "AlCuO2"),
    "pmg_site_type_symbol_test.cif": ([8], "Ge1.6Sb1.6Te4"),
    "pmg_srycoo.cif": ([80], "Sr11.2Y4.8Co16O42"),
    "pycifrw_ctrl-z-test.cif": ("no atom sites",),  # a reflection list
    "pycifrw_test1.cif": ("no valid CIF: line 154",),
    "raspa_FAU_SI.cif": ([576], "SiO2"),
    "raspa_IRMOF-1.cif": ([424], "Zn4H12C24O13"),
    "raspa_MIL-101-primitive.cif": ([3604], "Cr3H12C24O13F"),
    # 274 sites x 3 less two equivalents listed twice and four atoms on the axes: Zn4O(BTB)2
    "raspa_MOF-177.cif": ([808], "Zn4H30C54O13"),
    "spglib_POSCAR-226.vasp": ([1600], "Xe9F91"),
}

# what a reader has to say about a structure it could only guess at
NOTES = {
    "cod_1000002-occupancy-questionmarks.cif": "occupancy '?' taken as 1",
    "cod_1000002-unknown-atom-type.cif": "without an element left out: max, min",
    "cod_1101113-no-atom-site-label.cif": "N1 (1.237)",
    "cod_19907.cif": "Wat(5) (water)",
    "cod_2000318-r91933.cif": "read as I 1 2/c 1",
    "cod_2009397-no-data-block-heading.cif": "no data_ heading",
    "cod_2009397-syntax-error.cif": "stray text",
    "cod_9000079.cif": "listed more than once",
    "cod_9003354.cif": "water",
    "diffpy_customsg.cif": "completed to 12",
    "diffpy_LiCl-bad.cif": "quotes are not closed",
    "pmg_FePO4.vasp": "no line of element symbols",
    "pmg_cif_implicit_hydrogens_cod_1011130.cif": "16 of 16 hydrogen atoms",
    "raspa_MOF-177.cif": "listed more than once: C7",
}


@pytest.fixture(scope="module")
def zoo(data_folder) -> dict[str, list[Crystal | ReadError]]:
    folder = data_folder / "cif-zoo"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    results: dict[str, list[Crystal | ReadError]] = {}
    start = time.monotonic()
    for source, _, result in read_many(folder):
        results.setdefault(Path(source).name, []).append(result)
    assert time.monotonic() - start < 60
    return results


def test_every_file_is_in_the_table(zoo):
    assert sorted(zoo) == sorted(ZOO)


@pytest.mark.parametrize("file", sorted(ZOO))
def test_zoo(zoo, file):
    results, expected = zoo[file], ZOO[file]
    if isinstance(expected[0], str):
        (error,) = results
        assert isinstance(error, ReadError)
        assert expected[0] in error.reason
        assert file in str(error)
        assert len(str(error).splitlines()) == 1
    else:
        assert [len(crystal) for crystal in results] == expected[0]
        assert results[0].formula == expected[1]
        assert NOTES.get(file, "") in " ".join(results[0].notes)
