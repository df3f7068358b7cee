"""Fields against the derivatives they are, on straight lines too; losses; the second layer of a graph."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facetry.geometry.lattice import cell_parameters
from facetry.graph import KNearest
from facetry.graph.triplets import triplets
from facetry.nn import lattice_fields, lattice_losses
from facetry.nn.lattice_fields import FIELDS, as_matrix
from tests import crystals as zoo
from tests.reference.plain_empnn import element_wise_limit

EYE = torch.eye(3, dtype=torch.float64)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def length(v, w):
    return v.norm()


def angle(v, w):
    return torch.atan2(torch.linalg.cross(v, w).norm(), v @ w)


def area(v, w):
    return 0.5 * torch.linalg.cross(v, w).norm()


CLOSED = {
    length: lambda v, w: lattice_fields.outer(v) / v.norm(dim=1, keepdim=True),
    angle: lambda v, w: lattice_fields.angle_gradient(unit(v), unit(w)),
    area: lattice_fields.area_gradient,
}


@pytest.fixture
def pairs():
    torch.manual_seed(4)
    return torch.randn(200, 3, dtype=torch.float64) * 2, torch.randn(200, 3, dtype=torch.float64)


@pytest.mark.parametrize("f", CLOSED, ids=lambda f: f.__name__)
def test_gradient_fields_against_autograd(f, pairs):
    """∂f(g v, g w)/∂g at g = 1; symmetric; differentiated by s in g = s + sᵀ it is twice that."""
    closed = as_matrix(CLOSED[f](*pairs))
    g = EYE.clone().requires_grad_()
    s = (EYE / 2).requires_grad_()
    for v, w, field in zip(*pairs, closed, strict=True):
        scale = 1 + field.norm()
        (slope,) = torch.autograd.grad(f(g @ v, g @ w), g)
        assert float((slope - field).abs().max()) <= 1e-12 * scale
        (slope,) = torch.autograd.grad(f((s + s.T) @ v, (s + s.T) @ w), s)
        assert float((slope - 2 * field).abs().max()) <= 1e-12 * scale
    assert {FIELDS[f"gradient_{i}"].scale * 2 for i in range(1, 6)} == {2.0}
    assert {FIELDS[f"gradient_sym_{i}"].scale for i in range(1, 6)} == {2.0}


def test_norms_traces_and_scaling(pairs):
    v, w = pairs
    field = as_matrix(CLOSED[angle](v, w))
    sine, _ = lattice_fields.sine_and_cosine(unit(v), unit(w))
    torch.testing.assert_close(field.flatten(1).norm(dim=1), math.sqrt(2) * sine, rtol=0, atol=1e-12)
    trace = field.diagonal(dim1=1, dim2=2).sum(1)
    assert float(trace.abs().max()) <= 1e-12
    areas = as_matrix(lattice_fields.area_gradient(v, w))
    exact = torch.linalg.cross(v, w).norm(dim=1)  # 2 A
    torch.testing.assert_close(areas.diagonal(dim1=1, dim2=2).sum(1), exact, rtol=1e-12, atol=1e-12)
    for power, f in ((1, length), (0, angle), (2, area)):
        one, three = CLOSED[f](v, w), CLOSED[f](3 * v, 3 * w)
        torch.testing.assert_close(three, 3**power * one, rtol=1e-12, atol=1e-12)


def test_six_numbers_are_a_symmetric_matrix(pairs):
    a, b = pairs
    product = a[:, :, None] * b[:, None, :]
    both = (product + product.transpose(1, 2)) / 2
    torch.testing.assert_close(as_matrix(lattice_fields.mixed_outer(a, b)), both, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        as_matrix(lattice_fields.outer(a)), a[:, :, None] * a[:, None, :], rtol=0, atol=0
    )


STRAIGHT = [
    ([0, 0, 1.0], [0, 0, 2.0]),
    ([0, 0, 1.0], [0, 0, -2.0]),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    ([1.0, 2.0, 3.0], [-0.5, -1.0, -1.5]),
    ([0.1, 0.7, -0.3], [0.2, 1.4, -0.6]),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0 + 1e-12]),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0 + 1e-7]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ends", STRAIGHT)
def test_straight_lines_are_finite_there_and_back(ends, dtype):
    v, w = (torch.tensor([e], dtype=dtype, requires_grad=True) for e in ends)
    for f in (angle, area):
        field = CLOSED[f](v, w)
        assert float(field.detach().abs().max()) <= 1e-5
        for six in range(6):
            for slope in torch.autograd.grad(field[0, six], (v, w), retain_graph=True):
                assert bool(torch.isfinite(slope).all())
                assert float(slope.abs().max()) < 100
    for value in lattice_fields.sine_and_cosine(unit(v), unit(w)):
        for slope in torch.autograd.grad(value, (v, w), retain_graph=True):
            assert bool(torch.isfinite(slope).all())


def test_the_element_wise_limit_depends_on_the_axes():
    """Why the norm is limited instead."""
    from facetry.models.empnn import limited

    torch.manual_seed(0)
    b = torch.randn(3, 3, dtype=torch.float64)
    b = b / b.norm()
    turn = torch.from_numpy(zoo.rotation(1))
    turned = turn @ b @ turn.T
    published = element_wise_limit(turned, 0.5) - turn @ element_wise_limit(b, 0.5) @ turn.T
    assert float(published.abs().max()) > 1e-3
    ours = limited(turned[None], 0.5)[0] - turn @ limited(b[None], 0.5)[0] @ turn.T
    assert float(ours.abs().max()) <= 1e-14
    zero = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    limited(zero, 0.5).sum().backward()
    torch.testing.assert_close(zero.grad, torch.ones_like(zero), rtol=0, atol=1e-12)
    large = 1e3 * torch.randn(100, 3, 3, dtype=torch.float64)
    assert float(limited(large, 0.5).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-12
    assert bool((torch.linalg.det(EYE + limited(large, 0.5)) > 0).all())


def test_exponential_in_batches():
    """Of matrices of very different norms, as scipy has it."""
    from scipy.linalg import expm

    from facetry.models.empnn import exponential

    torch.manual_seed(0)
    b = torch.randn(40, 3, 3, dtype=torch.float64) * torch.logspace(-9, 0.5, 40).double()[:, None, None]
    expected = np.stack([expm(m) for m in b.numpy()])
    np.testing.assert_allclose(exponential(b).numpy(), expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(exponential(torch.zeros(2, 3, 3).double()), EYE.expand(2, 3, 3))


# ------------------------------------------------------------------ triplets


def test_triplets_are_all_ordered_pairs_of_distinct_edges():
    batch = KNearest(k=4, gap=1e-6)([zoo.po(), zoo.random_crystal(3), zoo.nacl(), zoo.si()])
    graph, found = batch.graph, triplets(batch)
    center = graph.center.tolist()
    expected = [
        (a, b) for a in range(len(center)) for b in range(len(center)) if a != b and center[a] == center[b]
    ]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    crystal = batch.edge_crystal[found.first]
    assert torch.equal(found.crystal, crystal)
    assert torch.equal(found.num_triplets, torch.bincount(crystal, minlength=4))
    keep = torch.arange(len(found)) % 3 == 0
    part = found.select(keep)
    assert torch.equal(part.crystal, crystal[keep])
    assert torch.equal(part.second, found.second[keep])


def test_one_edge_has_no_triplets():
    from facetry.graph.batch import Batch, PeriodicGraph

    none = torch.zeros(0, dtype=torch.int64)
    graph = PeriodicGraph(none + 0, none, none.reshape(0, 3), torch.tensor([0]))
    alone = Batch(EYE[None], torch.zeros(1, 3).double(), torch.tensor([3]), torch.tensor([1]), graph)
    assert len(triplets(alone)) == 0
    one = PeriodicGraph(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0, 0, 1]]), torch.tensor([1]))
    single = Batch(EYE[None], torch.zeros(1, 3).double(), torch.tensor([3]), torch.tensor([1]), one)
    assert triplets(single).num_triplets.tolist() == [0]


# ------------------------------------------------------------------ losses


def random_lattices(count=20, seed=0):
    torch.manual_seed(seed)
    return 4 * EYE + 0.6 * torch.randn(count, 3, 3, dtype=torch.float64)


def normalisation():
    return lattice_losses.Normalisation.of(cell_parameters(random_lattices(200, 9)))


@pytest.mark.parametrize("name", lattice_losses.LOSSES)
def test_losses(name):
    """Zero for a turned target, larger elsewhere, blind to rotation and reflection, finite slopes."""
    loss = lattice_losses.LOSSES[name]
    target, other = random_lattices(), random_lattices(seed=1)
    turn = torch.from_numpy(zoo.rotation(5))
    turned = target @ turn.T
    tolerance = 1e-9
    assert float(loss(turned, target, normalisation())) <= tolerance
    assert float(loss(-turned, target, normalisation())) <= tolerance
    far = float(loss(other, target, normalisation()))
    assert far > 0.01
    assert float(loss(other @ turn.T, -target, normalisation())) == pytest.approx(far, rel=1e-9)
    for predicted in (other, target, 1e-3 * other, 5 * EYE.expand(20, 3, 3).clone()):
        predicted = predicted.clone().requires_grad_()
        loss(predicted, target, normalisation()).backward()
        assert bool(torch.isfinite(predicted.grad).all())
    cubic = (5 * EYE.expand(4, 3, 3)).clone().requires_grad_()  # ties everywhere
    loss(cubic, 5 * EYE.expand(4, 3, 3), normalisation()).backward()
    assert bool(torch.isfinite(cubic.grad).all())


def test_riemann_distance_follows_its_definition():
    """Σ log² λ of F^(-1/2) F' F^(-1/2); blind to a common change of basis; smallest at the target."""
    a, b = random_lattices().numpy(), random_lattices(seed=1).numpy()
    expected = []
    for x, y in zip(a, b, strict=True):
        values, vectors = np.linalg.eigh(y @ y.T)
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        expected.append((np.log(np.linalg.eigvalsh(root @ (x @ x.T) @ root)) ** 2).sum())
    found = lattice_losses.riemann_distance(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-10)
    basis = torch.from_numpy(zoo.unimodular(3).astype(float))
    again = lattice_losses.riemann_distance(basis @ torch.from_numpy(a), basis @ torch.from_numpy(b))
    torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-9)
    back = lattice_losses.riemann_distance(torch.from_numpy(b), torch.from_numpy(a))
    torch.testing.assert_close(back, found, rtol=1e-9, atol=1e-9)
    strain = torch.from_numpy(b) * math.exp(0.1)
    torch.testing.assert_close(
        lattice_losses.riemann_distance(strain, torch.from_numpy(b)), torch.full((20,), 3 * 0.04).double()
    )


def test_metric_and_parameter_losses_follow_their_formulas():
    a, b = random_lattices(), random_lattices(seed=1)
    f = a @ a.transpose(1, 2) - b @ b.transpose(1, 2)
    mae, mse = (float(lattice_losses.LOSSES[f"metric_{m}"](a, b)) for m in ("mae", "mse"))
    assert mae == pytest.approx(float(f.abs().sum() / 20), rel=1e-12)
    assert mse == pytest.approx(float((f**2).sum() / 20), rel=1e-12)
    scale = normalisation()
    p = (cell_parameters(a) - cell_parameters(b)) / (scale.std + 1e-6)
    assert float(lattice_losses.parameters_mae(a, b, scale)) == pytest.approx(float(p.abs().mean()), rel=1e-9)
    assert float(lattice_losses.parameters_mse(a, b, scale)) == pytest.approx(float((p**2).mean()), rel=1e-9)


def test_normalisation_of_angles_that_never_vary():
    """Cubic cells: rounding of 1e-12 degrees must not count as a spread."""
    parameters = torch.full((50, 6), 90.0, dtype=torch.float64)
    torch.manual_seed(0)
    parameters[:, :3] = 4 + 0.2 * torch.randn(50, 3)
    parameters[:, 3:] += 1e-7 * torch.randn(50, 3)
    scale = lattice_losses.Normalisation.of(parameters)
    assert scale.std[3:].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(scale.std[:3], parameters[:, :3].std(0))
    alone = lattice_losses.Normalisation.of(parameters[:1])
    assert alone.std.tolist() == [1.0] * 6
