"""ContinuouSP with angles: its plain formula, every symmetry, slopes, and losses on slopes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.models import MODELS, AngularContinuouSP, EnergyModel
from facetry.nn.pair_moments import HARMONICS, monomial_changes, monomial_slopes, monomials
from tests import crystals as zoo
from tests.reference.test_continuousp import (
    OPERATIONS,
    RANDOM,
    check_kept_neighbours,
    check_left_out,
    energies,
    evaluate,
    slopes,
)


def make(amplify: float = 1.5, dtype=torch.float64, **options) -> AngularContinuouSP:
    """Random weights, larger than usual, so that a broken symmetry shows."""
    torch.manual_seed(5)
    model = AngularContinuouSP(**{"channels": 12, "angular": 6, "basis": 8, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(amplify)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return make()


def plain(model: AngularContinuouSP, crystal: Crystal) -> float:
    """Atom by atom, degree by degree."""
    lattice, n = torch.tensor(crystal.lattice), len(crystal)
    frac = torch.tensor(crystal.frac_coords)
    volume = float(torch.det(lattice).abs())
    reach = 3 * (volume / n) ** (1 / 3)
    images = torch.cartesian_prod(*[torch.arange(-7.0, 8.0, dtype=torch.float64)] * 3)
    spacing = math.log(13) / (model.basis - 1)
    centers = torch.arange(model.basis, dtype=torch.float64)
    moments = {}
    for i, j in itertools.product(range(n), range(n)):
        v = (frac[j] - frac[i] + images) @ lattice
        d = v.norm(dim=1)
        near = (d < reach) & ~((i == j) & (images == 0).all(1))
        v, d = v[near], d[near, None]
        chi = (1 + torch.cos(math.pi * d / reach)) * torch.exp(
            -0.5 * (torch.log1p(d) / spacing - centers) ** 2
        )
        moments[i, j] = HARMONICS @ monomials((v / (d * d + 0.25).sqrt()).T) @ chi
    h = model.elements(torch.tensor(crystal.atomic_numbers) - 1)
    for layer in model.layers:
        change = []
        for i in range(n):
            read = [h[i]]
            for degree, f in enumerate(layer.filters):
                start = h.shape[1] + (degree - 1) * layer.left.shape[1] if degree else 0
                columns, rows = slice(start, start + f.shape[1]), slice(degree**2, (degree + 1) ** 2)
                a = sum(moments[i, j][rows] @ f * layer.neighbor(h[j])[columns] for j in range(n)) / 10
                read.append(
                    a[0]
                    if not degree
                    else ((a @ layer.left[degree - 1]) * (a @ layer.right[degree - 1])).sum(0)
                )
            x = torch.cat(read)
            change.append(layer.outer(silu(layer.inner(x / (1 + x**2 / 25).sqrt()))))
        h = h + torch.stack(change)
    e = model.out(silu(model.hidden(h))).mean()
    return float(e.detach()) + model.density_weight * math.log(n / volume / model.density) ** 2


def test_plain_formula(model):
    crystals = [zoo.random_crystal(seed, atoms=2) for seed in (1, 2)] + [zoo.po()]
    expected = torch.tensor([plain(model, c) for c in crystals], dtype=torch.float64)
    assert torch.allclose(energies(model, crystals), expected, rtol=0, atol=1e-12)


def test_harmonics_by_the_addition_theorem():
    """Σ_m Y_lm(a) Y_lm(b) = (|a| |b|)^l P_l(cos)."""
    rng = np.random.default_rng(0)
    a, b = torch.tensor(rng.normal(size=(2, 3, 50)))
    product = (HARMONICS @ monomials(a)) * (HARMONICS @ monomials(b))
    lengths = a.norm(dim=0) * b.norm(dim=0)
    c = (a * b).sum(0) / lengths
    legendre = torch.ones_like(c), c, (3 * c**2 - 1) / 2, (5 * c**3 - 3 * c) / 2
    for degree in range(4):
        expected = legendre[degree] * lengths**degree
        assert torch.allclose(product[degree**2 : (degree + 1) ** 2].sum(0), expected, atol=1e-12)


def test_slopes_of_monomials():
    rng = np.random.default_rng(1)
    w, dw = torch.tensor(rng.normal(size=(2, 3, 7)))
    by = torch.tensor(rng.normal(size=(20, 7)))
    w.requires_grad_()
    value, change = torch.autograd.functional.jvp(monomials, w, dw)
    assert torch.allclose(monomial_changes(w, dw), change, atol=1e-13)
    (expected,) = torch.autograd.grad((value * 0 + monomials(w) * by).sum(), w)
    assert torch.allclose(monomial_slopes(w.detach(), by), expected, atol=1e-13)


def test_slopes_by_hand_and_by_autograd(model):
    """Landscape, `evaluate` and the differentiable formula are one function."""
    total, by_position, by_strain = slopes(model, RANDOM)
    for found in (evaluate(model, RANDOM), model.evaluate(model.graph(RANDOM))):
        assert torch.allclose(found.energy, total, rtol=0, atol=1e-12)
        assert torch.allclose(found.by_position, by_position, rtol=0, atol=1e-11)
        assert torch.allclose(found.by_strain, by_strain, rtol=0, atol=1e-10)
    assert by_position.abs().max() > 1e-3


def test_gradients_of_a_loss_on_slopes(model):
    """With the second derivatives of the network alone, beside those of everything."""
    batch = model.graph(RANDOM[:4])
    weights = list(model.parameters())
    gradients = []
    for at in (model.evaluate(batch), EnergyModel.evaluate(model, batch)):
        loss = at.by_position.square().sum() + at.by_strain.square().sum() + at.energy.sum()
        gradients.append(torch.autograd.grad(loss, weights))
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12 * float(two.abs().max() + 1))


def test_landscape_in_single_precision(model):
    exact, single = evaluate(model, RANDOM), evaluate(make(dtype=torch.float32), RANDOM)
    assert torch.allclose(single.energy, exact.energy, rtol=0, atol=1e-5)
    scale = exact.by_position.abs().max()
    assert torch.allclose(single.by_position / scale, exact.by_position / scale, rtol=0, atol=2e-5)


def test_no_net_force_and_no_torque(model):
    batch, found = Batch.from_crystals(RANDOM), evaluate(model, RANDOM)
    net = torch.zeros(len(batch), 3, dtype=torch.float64)
    net.index_add_(0, batch.crystal_index, found.by_position)
    assert net.abs().max() < 1e-9
    assert (found.by_strain - found.by_strain.transpose(1, 2)).abs().max() < 1e-9


@pytest.mark.parametrize("name", OPERATIONS)
def test_symmetry(model, name):
    crystals = RANDOM[:4]
    changed = [OPERATIONS[name](c, i) for i, c in enumerate(crystals)]
    assert (energies(model, crystals) - energies(model, changed)).abs().max() < 1e-10
    assert (evaluate(model, crystals).energy - evaluate(model, changed).energy).abs().max() < 1e-10
    single = make(amplify=1.0, dtype=torch.float32)
    assert (evaluate(single, crystals).energy - evaluate(single, changed).energy).abs().max() < 1e-5


def test_other_angles_are_another_energy():
    """Two crystals of one atom with the same shortest distance and volume."""
    model = make()
    cells = [
        np.diag([4.0, 4.0, 4.0]),
        np.array([[4.0, 0, 0], [2.0, math.sqrt(12), 0], [0, 0, 64 / (4 * math.sqrt(12))]]),
    ]
    found = energies(model, [Crystal(cell, [[0, 0, 0]], [14]) for cell in cells])
    assert abs(found[0] - found[1]) > 1e-4


def test_continuous_where_atoms_cross_the_cutoff():
    """1500 steps over 0.3 Å, neighbours kept between them or not."""
    model, count = make(), 1500
    batch = Batch.from_crystals([zoo.random_crystal(2, atoms=3)] * count)
    along = torch.linspace(0, 1, count, dtype=torch.float64)[:, None] * torch.tensor([[0.3, 0.1, -0.05]])
    frac = batch.frac_coords.view(count, 3, 3).clone()
    frac[:, 0] += along @ torch.linalg.inv(batch.lattice[0])
    change = model.landscape(batch.atomic_numbers, batch.num_atoms)(
        batch.lattice, frac.view(-1, 3)
    ).energy.diff()
    second = change.diff().abs()
    assert second.max() / second.median() < 20
    assert second.max() < 0.1 * change.abs().max()


def test_atoms_that_meet_have_finite_slopes(model):
    crystal = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]], [8, 22, 38])
    found = evaluate(model, [crystal])
    assert all(torch.isfinite(x).all() for x in (found.energy, found.by_position, found.by_strain))


def test_neighbour_table_serves_moved_atoms_and_strained_cells(model):
    check_kept_neighbours(model)


def test_left_out_crystals_have_infinite_energy(model):
    check_left_out(model)


def test_wrong_options_and_elements():
    assert MODELS["continuousp_angular"] is AngularContinuouSP
    for options, words in (
        ({"layers": 0}, "layers of at least 1"),
        ({"basis": 1}, "basis of at least 2"),
        ({"density": 0}, "density above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            AngularContinuouSP(**options)
    heavy = Crystal(np.eye(3) * 4, [[0, 0, 0]], [101], name="heavy")
    model = make()
    with pytest.raises(ValueError, match=r"atomic numbers \[101\]"):
        model(model.graph([heavy]))
