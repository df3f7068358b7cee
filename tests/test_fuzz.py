"""Ten thousand broken files, each read or refused with a reason; more by `python -m benchmarks.fuzz`."""

from __future__ import annotations

import gzip
import re
import sys

import numpy as np
import pytest
from benchmarks import fuzz, mutants

from facetry.io import ReadError, parse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the children are bounded by POSIX limits")
MOST = 2000  # mutants in one test
COUNTS = {"structures": 8000, "containers": 800, "models": 1200}
PARTS = [(k, n, min(n + MOST, COUNTS[k])) for k in fuzz.KINDS for n in range(0, COUNTS[k], MOST)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "last"), PARTS)
def test_mutants(kind, first, last):
    ends = list(fuzz.ends(kind, 0, range(first, last)))
    assert [end.number for end in ends] == list(range(first, last))
    faults = [f"{kind} --replay {e.number}: {e.file}: {e.message}" for e in ends if e.outcome == fuzz.FAULT]
    assert faults == []
    read = sum(end.outcome == fuzz.READ for end in ends)
    assert 0.03 * len(ends) < read < 0.6 * len(ends)  # neither all harmless nor all hopeless


def test_a_mutant_is_the_same_everywhere():
    seeds = [b"loop_\n_atom_site_label\nNa1 0 0.5 1/2\n" * 9, gzip.compress(b"Na 0.25", mtime=0), b""]
    found = [mutants.mutant(seeds, 3, number) for number in range(200)]
    assert found == [mutants.mutant(seeds, 3, number) for number in range(200)]
    assert len(set(found)) > 100


def test_faults_are_told(monkeypatch, tmp_path):
    """A child that dies, one that stands still: each is blamed on its mutant, and the rest goes on."""
    monkeypatch.setattr(fuzz, "SECONDS", 2)
    script = (
        "import os, sys, time\n"
        "first, last = map(int, sys.argv[-1].split(':'))\n"
        "print('ready', flush=True)\n"
        "for n in range(first, last):\n"
        "    print(f'{n}\\tfile', end='\\t', flush=True)\n"
        "    if n == 2: os._exit(1)\n"
        "    if n == 4: time.sleep(60)\n"
        "    print('read\\t', flush=True)\n"
    )
    (tmp_path / "fake.py").write_text(script)
    monkeypatch.setattr(fuzz, "COMMAND", [sys.executable, str(tmp_path / "fake.py")])
    ends = list(fuzz.apart("models", 0, range(7)))
    assert [e.number for e in ends] == list(range(7))
    assert [e.number for e in ends if e.outcome == fuzz.FAULT] == [2, 4]


# --- what it found ------------------------------------------------------------------------------------------

CELL = "".join(
    f"_cell_length_{a} {{{a}}}\n_cell_angle_{g} 90\n"
    for a, g in zip("abc", ("alpha", "beta", "gamma"), strict=True)
)
LOOP = "loop_\n" + "".join(f"_atom_site_{c}\n" for c in ("label", "fract_x", "fract_y", "fract_z"))
OPERATORS = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,-z\n"


def cif(sites="Na1 0 0 0\nCl1 0.5 0.5 0.5\n", a="4.0", more=""):
    return ("data_x\n" + CELL.format(a=a, b="4.0", c="4.0") + more + LOOP + sites).encode()


def reason(content, name):
    """The one error of a file, in words that are not those of a fault."""
    ((_, result),) = parse(content, name)
    assert isinstance(result, ReadError)
    assert not any(text in result.reason for text in fuzz.FAULTS), result.reason
    return result.reason


XYZ = '1\nLattice="{0} 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa {1} 0 0\n'
POSCAR = "x\n{0}\n{1} 0 0\n0 4 0\n0 0 4\nNa\n1\n{2}\n{3} 0 0\n"
ASE = '{{"cell": [[{0}, 0, 0], [0, 4, 0], [0, 0, 4]], "positions": [[{1}, 0, 0]], "numbers": [{2}]}}'


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (cif(a="1e308"), "a.cif", "_cell_length_a is '1e308', more than"),
        (cif(a="1e-200"), "a.cif", "expected lattice vectors between"),
        (cif("Na1 1e308 0 0\n", more=OPERATORS), "a.cif", "site Na1: _atom_site_fract_x is '1e308', beyond"),
        (cif("Na1 1e308(1) 0 0\n"), "a.cif", "site Na1: _atom_site_fract_x"),
        (cif("Na1 0.1 0 0\n" * 9000), "a.cif", "the same sites are listed over and over"),
        (XYZ.format("1e200", 0).encode(), "a.xyz", "expected lattice vectors between"),
        (XYZ.format("4", "1e300").encode(), "a.xyz", "position 1 is .* beyond any cell"),
        (XYZ.format("0", "0").encode(), "a.xyz", "expected lattice vectors .* whether it is there at all"),
        (POSCAR.format("1e300", "4", "Direct", "0").encode(), "a.vasp", "line 2 should be the scale"),
        (POSCAR.format("1", "1e300", "Direct", "0").encode(), "a.vasp", "line 3 should be a lattice vector"),
        (POSCAR.format("1e12", "1e12", "Direct", "0").encode(), "a.vasp", "expected lattice vectors"),
        (POSCAR.format("1", "4", "Direct", "1e300").encode(), "a.vasp", "position 1 is not finite or beyond"),
        (POSCAR.format("1e-99", "4", "Cartesian", "1").encode(), "a.vasp", "expected lattice vectors"),
        (ASE.format("1e300", 0, 11).encode(), "a.json", "expected lattice vectors"),
        (ASE.format(4, 0, "1e300").encode(), "a.json", "atomic_numbers must be integers 1 to 118"),
    ],
)
def test_numbers_beyond_all_crystals(content, name, words):
    with np.errstate(all="raise"):
        found = reason(content, name)
    assert re.search(words, found), found


def test_bytes_that_are_no_text():
    for at in (b"Na", b"Cl1 0.5", b"_cell_length_b"):
        content = cif().replace(at, b"\xb1" + at)
        ((_, result),) = parse(content, "a.cif")
        assert not any(text in str(result) for text in fuzz.FAULTS), result
    more = "_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 1\n"
    ((_, result),) = parse(cif(more=more).replace(b"'Na Cl'", b"'\xb1Na Cl'"), "a.cif")
    assert not any(text in str(result) for text in fuzz.FAULTS), result


def test_a_file_that_ends_with_a_tag():
    assert reason(cif() + b"_cell_volume", "a.cif")
    assert reason(b"data_x\n_cell_length_a 4\n_cell_length_b", "a.cif")
