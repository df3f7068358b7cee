"""The same CIF texts read by pymatgen and ASE: real rows, written by pymatgen with and without symmetry."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

from facetry.crystal import Crystal
from facetry.io import from_text, read_many

SETS = [
    ("mp20", "test.parquet", 110),
    ("jarvis_dft3d_subset", "all.parquet", 110),
    ("perov5", "test.parquet", 80),
]


def rows(folder, name: str, file: str, count: int) -> list[Crystal]:
    path = folder / name / file
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = []
    for index, reading in enumerate(read_many(path)):
        if index % 3 == 0:
            found.append(reading.result)
        if len(found) == count:
            break
    assert all(isinstance(crystal, Crystal) for crystal in found)
    return found


def distances(lattice: np.ndarray, frac: np.ndarray) -> np.ndarray:
    from ase import Atoms
    from ase.neighborlist import neighbor_list

    atoms = Atoms("H" * len(frac), scaled_positions=frac, cell=lattice, pbc=True)
    return np.sort(neighbor_list("d", atoms, 4.0))


@pytest.mark.parametrize(("name", "file", "count"), SETS)
def test_plain_cif(data_folder, name, file, count):
    from ase.io import read as ase_read
    from pymatgen.io.cif import CifParser

    for crystal in rows(data_folder, name, file, count):
        text = crystal.to_text("cif")
        ours = from_text(text, "cif")
        atoms = ase_read(io.StringIO(text), format="cif")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (theirs,) = CifParser.from_str(text, site_tolerance=1e-6).parse_structures(primitive=False)
        np.testing.assert_allclose(ours.lattice, atoms.cell.array, atol=1e-9)
        np.testing.assert_allclose(ours.lengths, theirs.lattice.abc, rtol=1e-12)
        assert ours.atomic_numbers.tolist() == atoms.numbers.tolist()
        assert sorted(ours.atomic_numbers.tolist()) == sorted(theirs.atomic_numbers)
        for frac in (atoms.get_scaled_positions(wrap=False), crystal.frac_coords):
            shift = ours.frac_coords - frac
            np.testing.assert_allclose(shift, np.rint(shift), atol=1e-9)


@pytest.mark.parametrize(("name", "file", "count"), [("mp20", "test.parquet", 40)])
def test_cif_with_symmetry(data_folder, name, file, count):
    """pymatgen finds the symmetry and writes the asymmetric unit; expanding it gives the crystal back."""
    from pymatgen.io.cif import CifWriter

    for crystal in rows(data_folder, name, file, count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = str(CifWriter(crystal.to_pymatgen(), symprec=0.01, significant_figures=12))
        ours = from_text(text, "cif")
        assert ours.formula == crystal.formula
        ratio = len(ours) / len(crystal)  # the conventional cell may hold several
        assert ratio == round(ratio)
        assert ours.volume == pytest.approx(ratio * crystal.volume, rel=1e-3)
        found = distances(ours.lattice, ours.frac_coords)
        wanted = np.sort(np.tile(distances(crystal.lattice, crystal.frac_coords), round(ratio)))
        # symmetrised within 0.01 Å, so pairs at the edge of the cutoff may fall either way
        inside = min(len(found), len(wanted))
        np.testing.assert_allclose(found[:inside], wanted[:inside], atol=0.05)
        assert abs(len(found) - len(wanted)) <= 0.1 * len(wanted) + 2
