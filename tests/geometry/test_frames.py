from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facetry.geometry import (
    FrameSet,
    continuous_frames,
    determinant,
    frame_vector_weights,
    metric,
    minkowski_reduce,
    published_frame,
    tied_frames,
)

from .cells import (
    SYMMETRIC,
    all_frames,
    from_parameters,
    rotations,
    successive_minima,
    symmetric_lattices,
    unimodular,
)
from .test_reduction import random_lattices


def gram_matrices(frames: FrameSet, lattice: torch.Tensor) -> list[int]:
    rounded = (metric(frames.vectors(lattice)) * 1e4).round().reshape(-1, 9)
    return [len(torch.unique(rounded[frames.crystal == i], dim=0)) for i in range(len(lattice))]


def check(frames: FrameSet, lattice: torch.Tensor, tol: float = 1e-4) -> None:
    """What every frame must be: a right-handed basis with e1·e2 >= 0 and e1·e3 >= 0; and the bookkeeping."""
    vectors = frames.vectors(lattice)
    length = torch.linalg.vector_norm(vectors, dim=-1)
    assert bool((determinant(frames.integer.double()).abs() == 1).all())
    assert bool((determinant(vectors) > 0).all())
    for m in (1, 2):
        cosine = (vectors[:, 0] * vectors[:, m]).sum(-1) / (length[:, 0] * length[:, m])
        assert bool((cosine >= -tol).all())
    assert torch.equal(frames.num_frames, torch.bincount(frames.crystal, minlength=len(lattice)))
    assert bool((frames.crystal.diff() >= 0).all())
    total = torch.zeros(len(lattice), dtype=torch.float64).index_add_(0, frames.crystal, frames.weight)
    assert torch.allclose(total, torch.ones_like(total))
    rows = torch.cat((frames.crystal[:, None], frames.integer.flatten(1)), 1)
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.parametrize("mirror", [1, -1])
def test_table_of_frames_and_gram_matrices_in_any_cell(mirror: int, rng: np.random.Generator):
    lattice = symmetric_lattices()
    for _ in range(5):
        change = unimodular(rng, len(lattice), factors=5)
        skewed = mirror * (change @ lattice @ rotations(rng, len(lattice)))
        frames = tied_frames(skewed)
        check(frames, skewed)
        assert frames.num_frames.tolist() == [count for _, count, _ in SYMMETRIC.values()]
        assert gram_matrices(frames, skewed) == [count for _, _, count in SYMMETRIC.values()]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_lengths_are_successive_minima_of_any_cell(seed: int):
    rng = np.random.default_rng(seed)
    reduced, _ = minkowski_reduce(random_lattices(rng, 8))
    skewed = unimodular(rng, 8, factors=6) @ reduced
    frames = tied_frames(skewed)
    check(frames, skewed)
    length = torch.linalg.vector_norm(frames.vectors(skewed), dim=-1)
    for ours, crystal in zip(length.numpy(), frames.crystal.tolist(), strict=True):
        # a frame that is a tie by chance may be longer by the tolerance
        exact = int(frames.num_frames[crystal]) == 1
        assert ours == pytest.approx(
            successive_minima(reduced[crystal].numpy(), 3), abs=1e-9 if exact else 1e-4
        )


def test_same_frames_as_the_definition(rng: np.random.Generator):
    """Every reduced cell, symmetric, near a tie or not: the set found by going through all triples."""
    lattice, _ = minkowski_reduce(torch.cat((symmetric_lattices(), random_lattices(rng, 20))))
    shift = torch.from_numpy(rng.normal(size=lattice.shape))
    lattice = torch.cat((lattice, lattice + 4e-5 * shift, lattice + 1e-3 * shift))
    frames = tied_frames(lattice)
    check(frames, lattice)
    for i, one in enumerate(lattice.numpy()):
        rows = frames.integer[frames.crystal == i].flatten(1).tolist()
        assert {tuple(row) for row in rows} == all_frames(one), f"lattice {i}: {one.tolist()}"


def test_very_long_cell():
    lattice = torch.tensor([[1, 50, -31], [0, 1, 0], [0, 7, 1]], dtype=torch.float64) @ torch.diag(
        torch.tensor([277.0, 2.56, 2.56], dtype=torch.float64)
    )
    for choose in (tied_frames, continuous_frames):
        frames = choose(lattice[None])
        check(frames, lattice[None])
        assert int(frames.num_frames) == 8


def test_select_and_concatenate():
    lattice = symmetric_lattices()
    frames = tied_frames(lattice)
    order = torch.tensor([5, 0, 5, 12])
    chosen = frames.select(order)
    check(chosen, lattice[order])
    joined = FrameSet.concatenate([frames.select(torch.tensor([5])), frames.select(torch.tensor([0, 5, 12]))])
    for name in ("crystal", "integer", "weight", "num_frames"):
        assert torch.equal(getattr(joined, name), getattr(chosen, name))
    assert tied_frames(lattice[:0]).crystal.shape == (0,)


def test_vectors_carry_gradients_to_the_lattice():
    lattice = SYMMETRIC["triclinic"][0][None].clone().requires_grad_()
    frames = tied_frames(lattice)
    frames.vectors(lattice).sum().backward()
    assert torch.allclose(lattice.grad[0], frames.integer[0].sum(0).double()[:, None].expand(3, 3))


def test_published_frame_is_one_of_the_ties_and_depends_on_the_cell(rng: np.random.Generator):
    lattice = symmetric_lattices()
    tied = tied_frames(lattice)
    published = published_frame(lattice)
    check(published, lattice, tol=1e-10)
    for i in range(len(lattice)):
        members = tied.integer[tied.crystal == i]
        assert bool((members == published.integer[i]).all((1, 2)).any())
    # 144 frames of fcc with 6 Gram matrices: which one comes out is an accident
    change = unimodular(rng, 50)
    skewed = change @ SYMMETRIC["fcc"][0]
    found = published_frame(skewed)
    assert len(torch.unique((metric(found.vectors(skewed)) * 1e4).round(), dim=0)) > 1
    # without ties there is no accident
    generic = SYMMETRIC["triclinic"][0].expand(50, 3, 3)
    skewed = change @ generic
    found = published_frame(skewed).vectors(skewed)
    assert torch.allclose(found, tied_frames(generic).vectors(generic), atol=1e-10)


def test_vector_weights_are_shares_of_frames():
    lattice = symmetric_lattices()
    frames = tied_frames(lattice)
    crystal, vector, weight = frame_vector_weights(frames)
    names = list(SYMMETRIC)
    shares = {name: sorted(weight[crystal == i].tolist()) for i, name in enumerate(names)}
    assert all(sum(x) == pytest.approx(3.0) for x in shares.values())
    assert shares["triclinic"] == pytest.approx([1, 1, 1])
    assert shares["hexagonal, c > a"] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1])
    assert shares["fcc"] == pytest.approx([0.5] * 6)
    assert shares["bcc"] == pytest.approx([0.75] * 4)
    leading = [next(x for x in row if x) for row in vector.tolist()]
    assert min(leading) > 0
    # the slow way round for coefficients too large to be packed into one number
    shear = torch.tensor([[1, 3_000_000, 0], [0, 1, 0], [0, 0, 1]])
    large = FrameSet(frames.crystal, frames.integer @ shear, frames.weight, frames.num_frames)
    assert torch.allclose(frame_vector_weights(large)[2].sort()[0], weight.sort()[0])


def average(choose, lattice: torch.Tensor) -> torch.Tensor:
    """A property of the frames that tells all of them apart, averaged: what a model would make of them.

    Two fixed bonds give the crystal an orientation, so that frames related by a lattice symmetry differ.
    """
    frames = choose(lattice)
    e = frames.vectors(lattice)
    e = e / torch.linalg.vector_norm(e, dim=-1, keepdim=True)
    bonds = torch.tensor([[0.3, -0.5, 0.81], [-0.62, 0.11, 0.4]], dtype=torch.float64)
    cosines = (e[:, None] * bonds[None, :, None]).sum(-1)
    value = (cosines * torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)).sum(-1).exp().log1p().prod(-1)
    value = value + (metric(frames.vectors(lattice))[:, 1, 2] / 50).sin()
    return torch.zeros(len(lattice), dtype=torch.float64).index_add(0, frames.crystal, value * frames.weight)


def path(start: torch.Tensor, direction: torch.Tensor, step: float, count: int) -> torch.Tensor:
    steps = torch.arange(-count, count + 1, dtype=torch.float64) * step
    return start @ (torch.eye(3, dtype=torch.float64) + steps[:, None, None] * direction)


@pytest.mark.parametrize(
    "start",
    [
        "orthorhombic",
        "tetragonal",
        "hexagonal, c < a",
        "hexagonal, c > a",
        "rhombohedral 80",
        "simple cubic",
        "fcc",
    ],
)
def test_continuous_frames_have_no_jump_along_a_strain(start: str, rng: np.random.Generator):
    """Through every tie at the middle of the path, where the tied set itself jumps."""
    direction = torch.from_numpy(rng.normal(size=(3, 3)))
    lattices = path(SYMMETRIC[start][0], direction + direction.T, 1e-4, 300)
    check(continuous_frames(lattices), lattices, tol=0.06)
    values = average(continuous_frames, lattices)
    spread = values.max() - values.min()
    jumps = values.diff().abs()
    assert jumps.max() < 0.05 * spread
    # finer steps make smaller differences: continuous, not only steep
    finer = average(continuous_frames, path(SYMMETRIC[start][0], direction + direction.T, 1e-6, 300))
    assert finer.diff().abs().max() < 0.02 * jumps.max() + 1e-12
    tied = average(tied_frames, lattices)
    assert tied.diff().abs().max() > 20 * jumps.max()


def test_continuous_frames_of_a_symmetric_lattice_weigh_alike():
    for name in ("simple cubic", "bcc", "tetragonal", "rhombohedral 80"):
        lattice = SYMMETRIC[name][0][None]
        frames = continuous_frames(lattice)
        assert int(frames.num_frames) == SYMMETRIC[name][1]
        assert torch.allclose(frames.weight, frames.weight.mean())


def test_continuous_frames_do_not_depend_on_the_cell(rng: np.random.Generator):
    lattice = symmetric_lattices() + 0.01 * torch.from_numpy(rng.normal(size=(len(SYMMETRIC), 3, 3)))
    skewed = unimodular(rng, len(lattice)) @ lattice
    assert torch.allclose(average(continuous_frames, lattice), average(continuous_frames, skewed), atol=1e-10)


def test_right_angle_within_the_tolerance_keeps_both_signs():
    for angle, count in ((90.0, 4), (90.0 + 4e-3, 4), (90.0 + 1e-2, 2)):
        assert int(tied_frames(from_parameters(4, 5, 6, 90, 90, angle)[None]).num_frames) == count
