"""Forces and stress against differences of the values of displaced and strained crystals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facetry.card import ModelCard, Target
from facetry.crystal import Crystal
from facetry.tasks.gradients import gradients
from tests import crystals as zoo
from tests.contract.test_symmetry import make

STEP = 1e-5  # Å


def displaced(crystal: Crystal) -> list[Crystal]:
    """Every coordinate of every site up and down, then every entry of the strain."""
    inverse = np.linalg.inv(crystal.lattice)
    found = []
    for site in range(len(crystal)):
        for axis in range(3):
            for sign in (1, -1):
                frac = np.array(crystal.frac_coords)
                frac[site] += sign * STEP * inverse[axis]
                found.append(Crystal(crystal.lattice, frac, crystal.atomic_numbers))
    for a in range(3):
        for b in range(3):
            for sign in (1, -1):
                lattice = np.array(crystal.lattice)
                lattice[:, b] += sign * STEP * lattice[:, a]
                found.append(Crystal(lattice, crystal.frac_coords, crystal.atomic_numbers))
    return found


def differences(model, crystal: Crystal, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Forces and stress by central differences, each graph built anew."""
    with torch.no_grad():
        values = model(model.graph(displaced(crystal)))[:, 0].numpy() * scale
    slope = (values[::2] - values[1::2]) / (2 * STEP)
    return -slope[:-9].reshape(-1, 3), slope[-9:].reshape(3, 3) / abs(np.linalg.det(crystal.lattice))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crystalformer", {"reach": 8.5}),
        ("crystalframer", {"reach": 8.5}),
        ("crystalframer", {"reach": 8.5, "angles": "lightweight"}),
        ("crystalframer", {"reach": 8.5, "frames": "static"}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_forces_and_stress_are_slopes(name, options):
    crystal = zoo.rotated(zoo.random_crystal(4, atoms=4), zoo.rotation(1))
    model = make(name, **options, channels=16, heads=2)
    (found,) = gradients(model, [crystal])
    forces, stress = differences(model, crystal)
    assert np.abs(found.forces - forces).max() <= 1e-6 * np.abs(forces).max()
    assert np.abs(found.stress - stress).max() <= 1e-6 * np.abs(stress).max()
    assert np.abs(found.forces.sum(0)).max() <= 1e-12
    assert np.abs(found.stress - found.stress.T).max() <= 1e-12
    assert np.abs(forces).max() >= 1e-6
    (coarse,) = gradients(model.float(), [crystal])
    assert np.abs(coarse.forces - forces).max() <= 1e-4 * np.abs(forces).max()
    assert np.abs(coarse.stress - stress).max() <= 1e-4 * np.abs(stress).max()
    assert np.abs(coarse.forces.sum(0)).max() <= 1e-4 * np.abs(forces).max()


@pytest.mark.parametrize("name", ["crystalformer", "icomformer"])
def test_units_and_copies(name):
    """Physical units, and sites of a supercell that the graph has merged."""
    model = make(name)
    card = {"model": name, "options": model.options, "graph": model.graph.describe()}
    model.card = ModelCard(**card, targets=[Target(name="y", unit="eV", mean=3.0, std=2.0)])
    crystal = zoo.random_crystal(4, atoms=4)
    large = zoo.permuted(crystal.supercell(np.diag([1, 2, 1])), 3)
    one, two = gradients(model.train(), [crystal, large])
    assert model.training
    forces, _ = differences(model.eval(), crystal, scale=2.0)
    with torch.no_grad():
        assert one.value == pytest.approx(float(model(model.graph([crystal]))) * 2 + 3, abs=1e-12)
    assert np.abs(one.forces - forces).max() <= 1e-5 * np.abs(forces).max()
    assert two.value == pytest.approx(one.value, abs=1e-12)
    assert np.abs(two.stress * 2 - one.stress).max() <= 1e-12
    assert two.forces.shape == (8, 3)
    for z in set(crystal.atomic_numbers.tolist()):
        rows = one.forces[crystal.atomic_numbers == z]
        apart = np.abs(2 * two.forces[large.atomic_numbers == z][:, None] - rows).max(2)
        assert apart.min(1).max() <= 1e-12
        assert apart.min(0).max() <= 1e-12


def test_classes_have_no_slope():
    model = make("crystalformer")
    card = {"model": model.name, "options": model.options, "graph": model.graph.describe()}
    model.card = ModelCard(**card, targets=[Target(name="metal", task="binary")])
    with pytest.raises(ValueError, match=r"expected a regression target, came metal \(binary\)"):
        gradients(model, [zoo.nacl()])
