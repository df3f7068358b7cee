from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice

from facetry import units
from facetry.geometry import (
    apply_strain,
    cart_to_frac,
    cell_parameters,
    determinant,
    frac_to_cart,
    inverse,
    lattice_from_parameters,
    metric,
    plane_spacings,
    reciprocal,
    volume,
)


@pytest.fixture
def lattices(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(50, 3, 3)) * 4)


def test_closed_forms_agree_with_linear_algebra(lattices: torch.Tensor):
    assert torch.allclose(determinant(lattices), torch.linalg.det(lattices), rtol=1e-10)
    assert torch.allclose(inverse(lattices) @ lattices, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(lattices @ reciprocal(lattices).mT, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(torch.linalg.det(metric(lattices)), volume(lattices).square())


def test_left_handed_lattice_has_negative_volume():
    assert volume(torch.eye(3)[[1, 0, 2]]) == -1.0


def test_plane_spacings_are_heights(lattices: torch.Tensor):
    faces = torch.linalg.cross(lattices.roll(-1, 1), lattices.roll(-2, 1)).norm(dim=-1)
    assert torch.allclose(plane_spacings(lattices), volume(lattices).abs()[:, None] / faces)


def test_cell_parameters_match_pymatgen(lattices: torch.Tensor):
    for lattice, parameters in zip(lattices.numpy(), cell_parameters(lattices).numpy(), strict=True):
        assert parameters == pytest.approx(Lattice(lattice).parameters, abs=1e-9)


@pytest.mark.parametrize(
    "parameters",
    [(4, 5, 6, 80, 85, 77), (3, 3, 5, 90, 90, 120), (4, 4, 4, 60, 60, 60), (2, 9, 30, 100, 61, 140)],
)
def test_lattice_from_parameters_matches_pymatgen(parameters: tuple[float, ...]):
    ours = lattice_from_parameters(torch.tensor(parameters, dtype=torch.float64))
    assert np.allclose(ours.numpy(), Lattice.from_parameters(*parameters).matrix, atol=1e-12)
    assert volume(ours) > 0
    assert np.allclose(cell_parameters(ours).numpy(), parameters, atol=1e-10)


def test_impossible_angles_are_named():
    good = [4.0, 4, 4, 90, 90, 90]
    with pytest.raises(ValueError, match=r"cell 1: no cell has the angles 60, 60, 150"):
        lattice_from_parameters(torch.tensor([good, [4.0, 4, 4, 60, 60, 150]]))


def test_coordinates_round_trip(lattices: torch.Tensor, rng: np.random.Generator):
    frac = torch.from_numpy(rng.normal(size=(200, 3)))
    crystal = torch.from_numpy(rng.integers(0, 50, 200))
    cart = frac_to_cart(frac, lattices, crystal)
    assert torch.allclose(cart[7], frac[7] @ lattices[crystal[7]])
    assert torch.allclose(cart_to_frac(cart, lattices, crystal), frac, atol=1e-10)


def test_strain_derivative_of_volume_is_its_trace(lattices: torch.Tensor):
    strain = torch.zeros(50, 3, 3, dtype=torch.float64, requires_grad=True)
    volume(apply_strain(lattices, strain)).sum().backward()
    expected = volume(lattices)[:, None, None] * torch.eye(3, dtype=torch.float64)
    assert strain.grad is not None
    assert torch.allclose(strain.grad, expected)


def test_units():
    assert units.ev_per_cubic_angstrom_to_gpa(1.0) == pytest.approx(160.2176634)
    assert units.gpa_to_ev_per_cubic_angstrom(units.ev_per_cubic_angstrom_to_gpa(0.3)) == pytest.approx(0.3)
    assert units.convert(1.0, "eV", "kJ/mol") == pytest.approx(96.48533212, rel=1e-9)
    assert units.convert(1.0, "eV/Å³", "GPa") == pytest.approx(160.2176634)
    assert units.convert(1.0, "hartree/bohr^3", "GPa") == pytest.approx(29421.02, rel=1e-6)
    assert units.convert(np.array([1.0]), "nm", "Å") == pytest.approx([10.0])
    # copper: 4 atoms of 63.546 u in a cube of 3.615 Å
    assert units.density(4 * 63.546, 3.615**3) == pytest.approx(8.935, abs=1e-3)
    assert math.isclose(units.convert(1.0, "kcal/mol", "meV"), 43.3641, rel_tol=1e-5)
    with pytest.raises(ValueError, match="'parsec' is not known"):
        units.convert(1.0, "parsec", "Å")
    with pytest.raises(ValueError, match="different things"):
        units.convert(1.0, "eV", "Å")
