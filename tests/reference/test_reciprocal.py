"""Heads in reciprocal space against sums in real space, and what their sphere of waves promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.geometry.ragged import grids
from facetry.graph.batch import Batch
from facetry.models import Crystalformer
from facetry.nn import reciprocal
from facetry.nn.lattice_attention import NARROWEST_FOURIER, fourier_variance
from facetry.nn.reciprocal import fourier_attention, gaussian_sums, plane_waves, wave_cutoff
from facetry.nn.segment import segment_mean
from tests import crystals as zoo
from tests.reference.test_crystalframer import make, outputs

CRYSTALS = [
    zoo.random_crystal(1, atoms=3),
    zoo.tellurium(),
    zoo.nacl(),
    zoo.po(),
    zoo.random_crystal(7, atoms=2),
]
CUTOFF = wave_cutoff(NARROWEST_FOURIER)


def real_space(crystal, sigma: torch.Tensor, radius: float) -> torch.Tensor:
    """Σ_n exp(-|x_j + nL - x_i|²/2σ_h²) for all heads h, receivers i, senders j."""
    lattice, frac = torch.tensor(np.array(crystal.lattice)), torch.tensor(np.array(crystal.frac_coords))
    bound = [int(radius * float(h.norm()) + 3) for h in torch.linalg.inv(lattice).T]
    n = torch.cartesian_prod(*[torch.arange(-b, b + 1) for b in bound]).double()
    r = (n[:, None, None] + frac[None, None] - frac[None, :, None]) @ lattice
    return torch.exp(-r.square().sum(-1)[None] / (2 * sigma[:, None, None, None] ** 2)).sum(1)


@pytest.mark.parametrize(
    ("dtype", "smallest", "bound"), [(torch.float64, 1e-16, 1e-10), (torch.float32, 1e-9, 1e-4)]
)
def test_sums_over_waves_are_sums_over_images(dtype, smallest, bound):
    """Checklist row 23: the logarithms, at equal tail length, both converged."""
    sigma = torch.tensor([NARROWEST_FOURIER, 2.2, 3.1], dtype=torch.float64)
    for crystal in CRYSTALS:
        batch = Batch.from_crystals([crystal])
        (part,) = plane_waves(batch, wave_cutoff(NARROWEST_FOURIER, smallest), dtype).parts
        variance = (sigma**2)[None, :, None].expand(1, 3, len(crystal)).to(dtype)
        (sums,) = gaussian_sums(variance, part).double()
        volume = torch.linalg.det(batch.lattice).abs()
        alpha = sums.log() + 1.5 * torch.log(2 * torch.pi * sigma**2)[:, None, None] - volume.log()
        torch.testing.assert_close(alpha, real_space(crystal, sigma, 27.0).log(), rtol=0, atol=bound)


def test_the_default_sphere_is_converged():
    """For the narrowest tail, whose weight is 1 at its centre; a shell beyond has up to 48 waves of 1e-9."""
    sigma = torch.tensor([NARROWEST_FOURIER], dtype=torch.float64)
    for crystal in CRYSTALS:
        batch = Batch.from_crystals([crystal])
        (part,) = plane_waves(batch, CUTOFF, torch.float64).parts
        variance = (sigma**2)[None, :, None].expand(1, 1, len(crystal))
        scale = (2 * torch.pi * sigma**2) ** 1.5 / torch.linalg.det(batch.lattice).abs()
        error = scale * gaussian_sums(variance, part)[0] - real_space(crystal, sigma, 27.0)
        assert float(error.abs().max()) <= 48 * 1e-9 * max(1.0, float(scale))


def test_tail_length():
    scaled = torch.tensor([-300.0, 0.0, 10.0], dtype=torch.float64)
    sigma = fourier_variance(scaled).sqrt().tolist()
    assert sigma[0] == pytest.approx(1.556, abs=1e-3)
    assert pytest.approx(sigma[0], abs=1e-12) == NARROWEST_FOURIER
    assert sigma[1] == pytest.approx(2.2, abs=1e-14)
    assert sigma[2] == pytest.approx(2.2 * 2**0.5, abs=1e-13)
    assert pytest.approx(4.14, abs=0.01) == CUTOFF


def test_one_of_each_pair_of_waves():
    """G = 0 and half of the others, in a sphere, of every crystal of a batch."""
    waves = plane_waves(Batch.from_crystals(CRYSTALS), CUTOFF, torch.float64)
    found = sorted(int((row[0] ** 2).sum(0).gt(0.5).sum()) for part in waves.parts for row in part.wave)
    expected = []
    for crystal in CRYSTALS:
        cell = 2 * np.pi * np.linalg.inv(crystal.lattice).T
        m = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), -1).reshape(-1, 3)
        expected.append((int((np.linalg.norm(m @ cell, axis=1) <= CUTOFF).sum()) + 1) // 2)
    assert found == sorted(expected)


def test_grids():
    low, high = torch.tensor([[-1, 0, 2], [0, 0, 0]]), torch.tensor([[1, 1, 2], [0, 2, 0]])
    group, point = grids(low, high)
    assert group.tolist() == [0] * 6 + [1] * 3
    assert point[:3].tolist() == [[-1, 0, 2], [-1, 1, 2], [0, 0, 2]]
    assert point[6:].tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0]]


def gathered(crystals, seed: int = 0) -> torch.Tensor:
    """Sums and sums of squares over the cell, an atom, of what atoms gather in the cells as given."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, w = torch.randn(4, 100, 2, 8, generator=generator, dtype=torch.float64)
    batch = Batch.from_crystals(crystals)
    z = batch.atomic_numbers
    waves = plane_waves(batch, CUTOFF, torch.float64)
    y = fourier_attention(q[z], k[z], v[z], NARROWEST_FOURIER**2 + w[z][:, :, 0].square(), waves)
    return segment_mean(torch.cat([y, y.square()], 1), batch.crystal_index, len(batch))


def test_no_cell_matters():
    """Skewed bases, images and supercells, without any reduction."""
    before = gathered(CRYSTALS)
    for seed in range(2):
        other = [
            zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(17 * i + seed)) for i, c in enumerate(CRYSTALS)
        ]
        other = [zoo.permuted(zoo.rotated(c, zoo.rotation(i)), i) for i, c in enumerate(other)]
        torch.testing.assert_close(gathered(other), before, rtol=0, atol=1e-13)
    for matrix in (np.diag([2, 1, 1]), np.diag([1, 2, 6]), np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])):
        large = [c.supercell(matrix) for c in CRYSTALS]
        torch.testing.assert_close(gathered(large), before, rtol=0, atol=1e-13)


def test_a_maximum_for_a_floor_would_know_the_cell(monkeypatch):
    """Why the published floor became an addend."""
    monkeypatch.setattr(reciprocal, "BACKGROUND", 0.0)
    monkeypatch.setattr(torch.Tensor, "clamp_min", lambda sums, _: torch.clamp(sums, min=1e-6))
    small, large = ([zoo.nacl()], [zoo.nacl().supercell(np.diag([1, 2, 9]))])
    assert float((gathered(small) - gathered(large)).abs().max()) > 1e-8


def test_the_model_needs_no_primitive_cell():
    for mode in ("heads", "blocks"):
        model = make(Crystalformer, reciprocal=mode)
        model.graph = replace(model.graph, primitive=False)
        small = outputs(model, [zoo.nacl(), CRYSTALS[0]])
        large = outputs(model, [zoo.nacl_conventional(), CRYSTALS[0].supercell(np.diag([3, 1, 2]))])
        assert np.abs(small - large).max() <= 1e-13


def test_pieces_and_padding_change_nothing(monkeypatch):
    model = make(Crystalformer, reciprocal="heads")
    crystals = [*CRYSTALS, zoo.srtio3(), zoo.po().supercell(np.diag([1, 2, 3]))]
    model.graph = replace(model.graph, primitive=False)
    batch = model.graph(crystals)
    results = []
    for part, chunk in ((1 << 30, 1 << 30), (1 << 14, 1 << 20), (1, 1)):
        monkeypatch.setattr(reciprocal, "_PART_NUMBERS", part)
        monkeypatch.setattr(reciprocal, "_CHUNK_NUMBERS", chunk)
        value = model(batch)
        results.append([value.detach(), *torch.autograd.grad(value.sum(), list(model.parameters()))])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-13)


def test_first_and_second_derivatives_of_the_sums():
    batch = Batch.from_crystals([zoo.random_crystal(7, atoms=2), zoo.nacl()])
    generator = torch.Generator().manual_seed(0)
    (part,) = plane_waves(batch, 1.6, torch.float64).parts
    variance = 2 + torch.rand(2, 2, 2, generator=generator, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (variance, part.squared, part.wave, part.wave)]
    assert torch.autograd.gradcheck(reciprocal._Sums.apply, inputs)
    assert torch.autograd.gradgradcheck(reciprocal._Sums.apply, inputs)


@pytest.mark.parametrize("mode", ["heads", "blocks"])
def test_gradients_of_positions_lattice_and_weights(mode):
    """Against central differences, in the model; forces add up to zero and stress is symmetric."""
    model = make(Crystalformer, reciprocal=mode)
    batch = model.graph([zoo.random_crystal(4, atoms=4), zoo.tellurium()])
    score = "blocks.1.attention.score"
    start = [batch.frac_coords, batch.lattice, dict(model.named_parameters())[score].detach()]

    def energy(frac, lattice, weight):
        moved = replace(batch, frac_coords=frac, lattice=lattice)
        return torch.func.functional_call(model, {score: weight}, (moved,)).sum()

    values = [t.clone().requires_grad_() for t in start]
    gradients = torch.autograd.grad(energy(*values), values)
    generator = torch.Generator().manual_seed(0)
    for which in range(3):
        along = torch.randn(start[which].shape, generator=generator, dtype=torch.float64)
        step = 2e-6 * along
        up, down = ([*start[:which], start[which] + s, *start[which + 1 :]] for s in (step, -step))
        with torch.no_grad():
            slope = float(energy(*up) - energy(*down)) / 4e-6
        assert abs(slope) > 1e-6
        assert float((gradients[which] * along).sum()) == pytest.approx(slope, rel=1e-6)
    net = torch.zeros((2, 3), dtype=torch.float64).index_add(0, batch.crystal_index, gradients[0])
    assert float(net.abs().max()) <= 1e-12
    stress = batch.lattice.transpose(1, 2) @ gradients[1]
    assert float((stress - stress.transpose(1, 2)).abs().max()) <= 1e-12


def test_look_shows_the_heads_of_real_space():
    model = make(Crystalformer, reciprocal="heads")
    batch = model.graph(CRYSTALS)
    look = model.look(batch)
    for layer in look.layers:
        assert layer.attention.shape == (len(batch.graph), 1)
        total = (
            torch.zeros(len(batch.frac_coords))
            .double()
            .index_add(0, batch.graph.center, layer.attention[:, 0])
        )
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-13)
    shapes = [
        layer.attention.shape[1] for layer in make(Crystalformer, reciprocal="blocks").look(batch).layers
    ]
    assert shapes == [2, 0]
