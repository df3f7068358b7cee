"""Bases, sums and the axial vectors of the pseudoscalar path, each used alone."""

from __future__ import annotations

import pytest
import torch

from facetry.models import MODELS, of_job
from facetry.nn.basis import GaussianBasis, ScalarEmbedding
from facetry.nn.convolution import commutator, spherical_harmonics
from facetry.nn.segment import segment_mean, segment_sum
from tests import crystals as zoo
from tests.contract.test_symmetry import make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_and_means_in_any_precision(dtype):
    """4001 ones: bfloat16 by itself stops at 256, in some layouts at 4000."""
    index = torch.cat([torch.zeros(4001, dtype=torch.int64), torch.full((3,), 2)])
    values = torch.ones((4004, 2), dtype=dtype)
    assert segment_sum(values, index, 3).tolist() == [[4001, 4001], [0, 0], [3, 3]]
    assert segment_sum(values[:, 0], index, 3).tolist() == [4001, 0, 3]
    assert segment_mean(values, index, 3).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert segment_sum(values[:0], index[:0], 2).tolist() == [[0, 0], [0, 0]]


def test_a_basis_survives_other_precisions():
    basis = GaussianBasis(-4.0, 0.0, 256)
    x = torch.linspace(-4, 0, 50, dtype=torch.float64)
    before = basis(x)
    assert torch.equal(basis.to(torch.bfloat16).to(torch.float64)(x), before)
    with pytest.raises(ValueError, match="low < high"):
        GaussianBasis(1.0, 0.0, 4)


def test_embedded_lengths_in_bfloat16():
    torch.manual_seed(0)
    embedding = ScalarEmbedding(GaussianBasis(-4.0, 0.0, 256), 16)
    x = -0.75 / torch.linspace(1.0, 8.0, 200, dtype=torch.float64)
    exact = embedding(x)
    coarse = embedding.to(torch.bfloat16)(x)
    assert coarse.dtype == torch.bfloat16
    assert float(((coarse.float() - exact).abs().max() / exact.abs().max()).detach()) < 0.02


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_network_in_float32_holds_nothing_in_float64(name):
    """Else it could not move to Apple's MPS."""
    model = MODELS[name]()
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not [key for key, value in held.items() if value.dtype == torch.float64]


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_bfloat16_stays_near_float32(name):
    model = make(name, torch.float32, amplify=1.0)
    batch = model.graph([zoo.si(), zoo.zno(), zoo.random_crystal(3)])
    with torch.no_grad():
        exact = model.embed(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = model.embed(batch).float()
    assert float((coarse - exact).abs().max() / exact.abs().max()) < 0.02


def test_commutator_is_an_axial_vector():
    """From its definition on matrices, and turned with the crystal; inversion leaves it as it is."""
    torch.manual_seed(1)
    turn = torch.from_numpy(zoo.rotation(3))
    probe = torch.nn.functional.normalize(torch.randn(80, 3, dtype=torch.float64), dim=1)
    d2 = torch.linalg.lstsq(
        spherical_harmonics(probe)[:, 3:], spherical_harmonics(probe @ turn.T)[:, 3:]
    ).solution
    a, b = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(commutator(a @ d2, b @ d2), commutator(a, b) @ turn.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(commutator(a, b), -commutator(b, a), rtol=0, atol=0)
    assert float(commutator(a, a).abs().max()) == 0
    # x² - y² and xy: [diag(1, -1, 0), xy] turns about z
    x2y2 = torch.tensor([0, 0, -(3**0.5) / 2, 0, -0.5], dtype=torch.float64)
    xy = torch.tensor([0, 1, 0, 0, 0], dtype=torch.float64)
    axis = commutator(x2y2[None, None], xy[None, None])[0, 0]
    assert axis.tolist()[:2] == [0, 0]
    assert abs(float(axis[2])) > 0.1
