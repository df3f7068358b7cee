from __future__ import annotations

import moyopy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facetry.geometry import determinant, metric, minkowski_reduce, niggli_reduce

from .cells import SYMMETRIC, rotations, successive_minima, symmetric_lattices, unimodular


def random_lattices(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Ordinary cells: random vectors of 2 to 12 Å with a volume that is not tiny."""
    found = np.empty((0, 3, 3))
    while len(found) < count:
        vectors = rng.normal(size=(count, 3, 3))
        vectors *= rng.uniform(2, 12, (count, 3, 1)) / np.linalg.norm(vectors, axis=2, keepdims=True)
        shape = np.abs(np.linalg.det(vectors)) / np.linalg.norm(vectors, axis=2).prod(1)
        found = np.concatenate((found, vectors[shape > 0.1]))
    return torch.from_numpy(found[:count])


def lengths(lattice: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(lattice, dim=-1)


@pytest.mark.parametrize("reduce", [minkowski_reduce, niggli_reduce])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_reduced_cell_depends_on_the_lattice_alone(reduce, seed: int):
    rng = np.random.default_rng(seed)
    lattice = random_lattices(rng, 20)
    skewed = unimodular(rng, 20, factors=6) @ lattice
    reduced, transform = reduce(skewed)
    assert transform.dtype == torch.int64
    assert bool((determinant(transform.double()) == 1).all())
    assert torch.equal(reduced, transform.double() @ skewed)
    reference, _ = reduce(lattice)
    assert torch.allclose(lengths(reduced), lengths(reference), atol=1e-7)
    again, change = reduce(reduced)
    assert torch.allclose(metric(again), metric(reduced), atol=1e-9)
    assert bool((change.abs() <= 1).all())


def test_row_lengths_are_the_successive_minima(rng: np.random.Generator):
    lattice = torch.cat((random_lattices(rng, 100), symmetric_lattices()))
    reduced, _ = minkowski_reduce(unimodular(rng, len(lattice)) @ lattice)
    for given_, found in zip(minkowski_reduce(lattice)[0].numpy(), lengths(reduced).numpy(), strict=True):
        assert found == pytest.approx(successive_minima(given_, 3), abs=1e-8)


def test_transforms_with_large_entries(rng: np.random.Generator):
    lattice = random_lattices(rng, 500)
    change = unimodular(rng, 500, factors=12)
    assert change.abs().max() > 1e4
    reduced, transform = minkowski_reduce(change @ lattice)
    assert torch.allclose(lengths(reduced), lengths(minkowski_reduce(lattice)[0]), atol=1e-6)
    assert bool((determinant((transform.double() @ change).round()).abs() == 1).all())


def test_very_long_and_very_flat_cells():
    long = torch.diag(torch.tensor([277.0, 2.56, 2.56], dtype=torch.float64))
    sheared = torch.tensor([[1, 50, -31], [0, 1, 0], [0, 7, 1]], dtype=torch.float64) @ long
    reduced, _ = minkowski_reduce(torch.stack((long, sheared)))
    assert torch.allclose(lengths(reduced), torch.tensor([2.56, 2.56, 277.0], dtype=torch.float64))


def test_handedness_is_kept(rng: np.random.Generator):
    lattice = random_lattices(rng, 50)
    for reduce in (minkowski_reduce, niggli_reduce):
        reduced, _ = reduce(lattice)
        assert torch.allclose(determinant(reduced), determinant(lattice), rtol=1e-9)


def test_niggli_cell_agrees_with_moyopy(rng: np.random.Generator):
    lattice = torch.cat((random_lattices(rng, 200), symmetric_lattices()))
    lattice = unimodular(rng, len(lattice)) @ lattice @ rotations(rng, len(lattice))
    reduced, _ = niggli_reduce(lattice)
    for theirs, ours in zip(lattice.tolist(), metric(reduced).numpy(), strict=True):
        other = np.array(moyopy.niggli_reduce(theirs)[0])
        assert ours == pytest.approx(other @ other.T, abs=1e-6)
        assert moyopy.is_niggli_reduced(np.linalg.cholesky(ours).tolist())


@pytest.mark.parametrize("name", SYMMETRIC)
def test_niggli_cell_of_symmetric_lattices_is_unique(name: str, rng: np.random.Generator):
    lattice = SYMMETRIC[name][0].expand(40, 3, 3)
    reduced, _ = niggli_reduce(unimodular(rng, 40) @ lattice @ rotations(rng, 40))
    assert torch.allclose(metric(reduced), metric(niggli_reduce(lattice[:1])[0]), atol=1e-8)


def test_gradient_goes_through_the_integers(rng: np.random.Generator):
    lattice = (unimodular(rng, 5) @ random_lattices(rng, 5)).requires_grad_()
    reduced, transform = minkowski_reduce(lattice)
    reduced.sum().backward()
    expected = transform.double().sum(1)[..., None].expand(5, 3, 3)
    assert torch.allclose(lattice.grad, expected)


def test_single_precision_and_empty_batches(rng: np.random.Generator):
    lattice = random_lattices(rng, 10)
    reduced, _ = minkowski_reduce(lattice.float())
    assert reduced.dtype == torch.float32
    assert torch.allclose(lengths(reduced).double(), lengths(minkowski_reduce(lattice)[0]), rtol=1e-5)
    for reduce in (minkowski_reduce, niggli_reduce):
        reduced, transform = reduce(torch.zeros(0, 3, 3))
        assert reduced.shape == transform.shape == (0, 3, 3)


def test_lattice_without_volume_is_named():
    flat = torch.tensor([[3.0, 0, 0], [0, 4, 0], [3, 4, 0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="lattice 1 of the batch has no usable volume"):
        minkowski_reduce(torch.stack((torch.eye(3, dtype=torch.float64), flat)))
