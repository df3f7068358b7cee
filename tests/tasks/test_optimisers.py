"""Particle swarm and Bayesian optimisation: the box, energies with known minima, EMT's copper, mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.chemistry import expected_volume, parse
from facetry.chemistry.volume import covalent_radii
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.evaluation.validity import minimum_distances
from facetry.tasks.bayesian import BayesianSearch, GaussianProcess, expected_improvement
from facetry.tasks.energies import Energies
from facetry.tasks.generate import NothingFound, generate
from facetry.tasks.search_box import SearchBox
from facetry.tasks.swarm import ParticleSwarm
from tests import crystals as known
from tests.tasks.test_energy_chains import small

MINIMUM = 0.25  # of `caesium_chloride`


class Counting:
    """An energy in plain numbers: of what it is asked for it keeps the count."""

    unit = "eV"

    def __init__(self, function):
        self.function, self.asked = function, 0

    def __call__(self, crystals):
        self.asked += len(crystals)
        return [self.function(c) for c in crystals]


def caesium_chloride(crystal: Crystal) -> float:
    """Lowest, a quarter, for a cube of 4 Å with the second atom at its centre."""
    apart = crystal.frac_coords[1] - crystal.frac_coords[0] - 0.5
    apart -= np.round(apart)
    by_length = np.log(crystal.lengths / 4.0)
    by_angle = np.radians(crystal.angles - 90)
    return MINIMUM + float((apart**2).sum() + (by_length**2).sum() + (by_angle**2).sum())


def optimiser(kind, function=caesium_chloride, **options):
    """With the energy of this page in the place of a calculator's."""
    from ase.calculators.emt import EMT

    made = kind(EMT(), **options)
    made.energies = Counting(function)
    return made


# --- the box -------------------------------------------------------------------------------------


def test_crystals_to_points_and_back():
    box = SearchBox(parse("SrTiO3"))
    assert box.size == 18
    points = box.starts(30, seed=1)
    assert points.shape == (30, 18)
    assert box.allowed(points).all()
    crystals = box.crystals(points)
    assert np.allclose(box.points(crystals), points)
    assert {c.formula for c in crystals} == {"SrTiO3"}
    ratio = np.array([c.volume for c in crystals]) / expected_volume(crystals[0].atomic_numbers)
    assert ((ratio > 0.5) & (ratio < 2)).all()
    assert len(np.unique(points, axis=0)) > 25


def test_what_is_not_allowed():
    box = SearchBox(parse("NaCl"), closest=0.6)
    rng = np.random.default_rng(0)
    points = rng.random((400, box.size))
    allowed = box.allowed(points)
    assert 0 < allowed.sum() < 200
    crystals = box.crystals(points[allowed])
    assert np.isfinite([c.lattice for c in crystals]).all()
    radius = covalent_radii()
    least = 0.6 * 2 * min(radius[11], radius[17])
    assert float(minimum_distances(crystals).min()) >= least
    for point in points[~allowed][:40]:
        (cell,) = box.cells(point[None])
        if not np.isfinite(cell).all():
            continue  # the angles do not close
        crystal = Crystal(cell, box.coordinates(point[None])[0], box.numbers)
        ratio = crystal.volume / box.edge**3
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        near = float(minimum_distances([crystal])[0]) < 0.6 * 2 * max(radius[11], radius[17])
        assert not 0.5 < ratio < 2 or heights.min() < 0.31 * crystal.volume ** (1 / 3) or near
    with pytest.raises(ValueError, match="no room for its atoms"):
        SearchBox(parse("NaCl"), closest=1.2).starts(2, 0)


# --- known minima --------------------------------------------------------------------------------


def test_a_swarm_finds_the_minimum():
    method = optimiser(ParticleSwarm, particles=14, generations=60, closest=0.3)
    found = list(method.candidates(parse("NaCl"), 3, seed=0))
    assert len(found) == 3
    assert [c.energy for c in found] == sorted(c.energy for c in found)
    assert found[0].energy == pytest.approx(MINIMUM, abs=0.01)
    assert method.energies.asked <= 3 * 14 * 61
    again = list(
        optimiser(ParticleSwarm, particles=14, generations=60, closest=0.3).candidates(parse("NaCl"), 3, 0)
    )
    assert [c.crystal for c in again] == [c.crystal for c in found]


def test_bayesian_search_finds_the_minimum():
    method = optimiser(BayesianSearch, evaluations=90, initial=20, closest=0.3)
    found = list(method.candidates(parse("NaCl"), 5, seed=0))
    assert len(found) <= method.energies.asked == 90
    assert [c.energy for c in found] == sorted(c.energy for c in found)
    random = sorted(c.energy for c in found if int(c.origin.split()[1]) <= 20)
    assert found[0].energy - MINIMUM < 0.3 * (random[0] - MINIMUM)


def test_points_without_energy_are_no_candidates():
    def half(crystal):
        return None if crystal.volume > 45 else crystal.volume

    for kind, options in (
        (ParticleSwarm, {"particles": 4, "generations": 4}),
        (BayesianSearch, {"evaluations": 30, "initial": 20}),
    ):
        found = list(optimiser(kind, half, **options).candidates(parse("NaCl"), 3, seed=0))
        assert found
        assert all(c.crystal.volume <= 45 for c in found)
        nowhere = optimiser(kind, lambda crystal: None, **options)
        assert list(nowhere.candidates(parse("NaCl"), 2, seed=0)) == []


def test_a_gaussian_process_by_hand():
    """One value: the mean falls off as the kernel, the spread rises from the noise to one."""
    features = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    values = np.array([1.0, 3.0, 2.0])
    process = GaussianProcess(features, values, (0.5, 0.5, 1e-6))
    mean, spread = process(features)
    assert mean == pytest.approx(values, abs=1e-4)
    assert (spread < 2e-3).all()
    far, wide = process(np.array([[0.0, 0.0, 40.0]]))
    assert far[0] == pytest.approx(2.0)
    assert wide[0] == pytest.approx(values.std())
    gain = expected_improvement(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1e-9, 1.0]), 1.0)
    draws = np.random.default_rng(0).normal(size=400_000)
    assert gain[0] == pytest.approx(np.maximum(1.0 - draws, 0).mean(), abs=5e-3)
    assert gain[1] == pytest.approx(0, abs=1e-8)
    more = process.believing(np.array([0.0, 0.0, 40.0]), 5.0)
    assert more(np.array([[0.0, 0.0, 40.0]]))[0][0] == pytest.approx(5.0, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("pso", {"particles": 10, "generations": 25}), ("bo", {"evaluations": 70, "initial": 20})],
)
def test_copper_by_emt(name, options):
    from ase.calculators.emt import EMT

    (found,) = generate(name, "Cu", count=1, seed=0, energy=EMT(), **options)
    atoms = known.cu().to_ase()
    atoms.calc = EMT()
    assert found.unit == "eV/atom"
    assert found.energy < atoms.get_potential_energy() / len(atoms) + 0.1
    assert found.crystal.volume == pytest.approx(11.6, abs=0.6)


def test_an_energy_model_is_minimised():
    model = small()
    (found,) = generate("pso", "TiO2", count=1, energy=model, particles=4, generations=6)
    assert found.energy == pytest.approx(Energies(model)([found.crystal])[0], abs=1e-6)
    assert found.unit == ""
    drawn = generate("rs", "TiO2", count=4, energy=model, draws=4)
    assert found.energy < drawn[0].energy
    assert [g.energy for g in drawn] == sorted(g.energy for g in drawn)


# --- mistakes ------------------------------------------------------------------------------------


def test_mistakes():
    from ase.calculators.emt import EMT

    with pytest.raises(ValueError, match="the option 'energy' is needed"):
        generate("pso", "Cu")
    for name, options, words in (
        ("pso", {"particles": 1}, "particles: expected at least 2"),
        ("pso", {"inertia": 1.5}, "where swarms settle"),
        ("pso", {"closest": 2.0}, "closest: expected"),
        ("bo", {"initial": 1}, "initial: expected 2"),
        ("bo", {"batch": 0}, "batch: expected 1"),
        ("bo", {"closest": -1.0}, "closest: expected"),
        ("bo", {"evaluation": 3}, "did you mean 'evaluations'"),
    ):
        with pytest.raises(ValueError, match=words):
            generate(name, "Cu", energy=EMT(), **options)
    with pytest.raises(NothingFound, match="no value for any structure"):
        generate("pso", "NaCl", count=1, energy=EMT(), particles=2, generations=1)


def test_in_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call = ["generate", "CuAu", "--method", "bo", "--energy", "emt", "-n", "2", "-o", "made"]
    assert run([*call, "--set", "evaluations=24", "--set", "initial=14"]) == 0
    assert "2 structures for 1 formulas" in capsys.readouterr().err
    assert run(["generate", "CuAu", "--method", "pso", "-o", "other"]) == 2
    assert "what is minimised? Give --energy" in capsys.readouterr().err
