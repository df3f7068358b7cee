"""Impossible values, outliers, slips of units: planted ones are found, clean columns stay clean."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.evaluation.quantities import (
    find_slips,
    impossible,
    outlying,
    quantity_of,
    unstable_tensors,
    whole_column,
)


def column(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Formation energies with what is expected of them, and numbers of atoms."""
    rng = np.random.default_rng(seed)
    expected = -rng.uniform(0.5, 4.0, count)
    return expected + 0.05 * rng.standard_normal(count), expected, rng.integers(2, 20, count)


@pytest.mark.parametrize(("factor", "unit", "what"), [
    (1000.0, "eV/atom", "meV and eV"), (96.4853, "eV/atom", "kJ/mol and eV"), (10.0, "GPa", "kbar and GPa"),
])  # fmt: skip
def test_slips_of_units(factor, unit, what):
    values, expected, atoms = column()
    values[[5, 77]] *= factor
    deviation, scale = outlying(values, expected)
    found = find_slips(values, expected, deviation, scale, unit, atoms)
    assert [(s.row, s.what) for s in found] == [(5, what), (77, what)]
    assert found[0].factor == pytest.approx(factor)


def test_per_cell_and_per_atom():
    values, expected, atoms = column()
    atoms[:] = 8
    values[9] *= 8
    deviation, scale = outlying(values, expected)
    found = find_slips(values, expected, deviation, scale, "eV/atom", atoms)
    assert [(s.row, s.what) for s in found] == [(9, "per cell and per atom")]
    assert not find_slips(values, expected, deviation, scale, "GPa", atoms)  # of a pressure no such mistake


def test_clean_columns_stay_clean():
    for seed in range(5):
        values, expected, atoms = column(seed=seed)
        deviation, scale = outlying(values, expected)
        assert scale == pytest.approx(0.05, rel=0.25)
        assert np.abs(deviation).max() < 6
        assert not find_slips(values, expected, deviation, scale, "eV/atom", atoms)


def test_heaps_of_one_value_do_not_make_outliers():
    rng = np.random.default_rng(1)
    gaps = np.where(rng.uniform(size=500) < 0.9, 0.0, rng.uniform(0.5, 6, 500))
    deviation, _ = outlying(gaps, np.zeros(500))
    assert np.nanmax(np.abs(deviation)) < 10


def test_missing_labels_and_short_columns():
    values, expected, _ = column()
    values[3] = np.nan
    assert np.isnan(outlying(values, expected)[0][3])
    assert np.isnan(outlying(values[:5], expected[:5])[0]).all()


def test_what_a_name_says():
    assert quantity_of("K_Voigt").name == "bulk modulus"
    assert quantity_of("G_VRH").name == "shear modulus"
    assert quantity_of("n", "refractive index").name == "refractive index"
    assert quantity_of("band_gap").name == "band gap"
    assert quantity_of("e_above_hull").name == "energy above the hull"
    assert quantity_of("my_column") is None


def test_impossible_values():
    poisson = quantity_of("poisson_ratio")
    assert list(impossible(poisson, np.array([0.3, 2.0, -0.5, np.nan, -1.5]))) == [1, 4]
    assert impossible(quantity_of("band_gap"), np.array([-0.1]))[0].startswith("a band gap of -0.1")
    assert not impossible(None, np.array([-1e9]))


def test_whole_columns():
    rng = np.random.default_rng(0)
    atoms = rng.integers(1, 30, 200)
    per_atom = rng.normal(-5, 0.5, 200)
    gap = quantity_of("band_gap")
    assert not whole_column(None, per_atom, "eV/atom", atoms)
    (said,) = whole_column(None, per_atom * atoms, "eV/atom", atoms)
    assert "per cell" in said
    assert not whole_column(None, per_atom * atoms, "eV/cell", atoms)
    (said,) = whole_column(gap, rng.uniform(500, 6000, 200), "eV", atoms)
    assert "meV and eV" in said
    (said,) = whole_column(quantity_of("bulk_modulus"), rng.uniform(1000, 3000, 200), "GPa", atoms)
    assert "kbar and GPa" in said


def test_tensors():
    good = np.diag([200.0, 200, 200, 80, 80, 80])
    good[:3, :3] += 90
    soft, skew = good.copy(), good.copy()
    soft[5, 5] = -3
    skew[0, 1] += 20
    least, off = unstable_tensors(np.stack([good, soft, skew, np.full((6, 6), np.nan)]))
    assert least[0] == pytest.approx(80)
    assert least[1] == pytest.approx(-3)
    assert off[2] == pytest.approx(20)
    assert np.isnan(least[3])
