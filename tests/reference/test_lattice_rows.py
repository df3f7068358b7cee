"""Crystalformer and CrystalFramer on low-symmetry crystals, property by property and in both precisions.

The table at the top of `test_crystalframer.py` says where every property is tested.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph import Sphere
from facetry.models import Crystalformer, CrystalFramer
from facetry.nn.angular import AngularBasis, angular_sums
from facetry.nn.dynamic_frames import MaxFrames, strongest_axes
from facetry.nn.lattice_attention import (
    LARGEST_WIDTH,
    LatticeAttention,
    LatticeBlock,
    distance_basis,
    surroundings,
    t_fixup,
    tail,
)
from tests import crystals as zoo
from tests.reference import plain_crystalframer as plain
from tests.reference.test_crystalframer import SMALL, make, outputs

RANDOM = [zoo.random_crystal(seed, atoms=atoms) for seed, atoms in ((0, 5), (1, 3), (2, 6), (3, 5), (4, 4))]
PRECISIONS = [(torch.float64, 1e-13), (torch.float32, 1e-6)]
SKEW = np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])
CHANGES = {
    "rotation": lambda c, i: zoo.rotated(c, zoo.rotation(i)),
    "translation": zoo.shifted,
    "lattice shifts of single atoms": zoo.unwrapped,
    "permutation": zoo.permuted,
    "unimodular": lambda c, i: zoo.rebased(c, zoo.unimodular(17 * i)),
    "left-handed": lambda c, i: zoo.rebased(c, np.diag([1, 1, -1])),
    "doubled": lambda c, i: c.supercell(np.roll(np.diag([2, 1, 1]), (i, i), (0, 1))),
    "skew supercell": lambda c, i: c.supercell(SKEW) if len(c) < 5 else c.supercell(np.diag([1, 2, 1])),
}


def pair(cls, dtype, **options):
    """A model in a precision with its usual start, statistics measured in float64."""
    torch.manual_seed(5)
    model = cls(**{**SMALL, **options}).double().eval()
    model.calibrate(RANDOM)
    return model.to(dtype)


def ties(model, crystals) -> int:
    """Frames beyond one an atom and head, over all layers."""
    more = []
    original = MaxFrames.__call__

    class Counting(MaxFrames):
        def __call__(self, part, logits, p, generator):
            axes = original(self, part, logits, p, generator)
            more.append(len(axes.owner) - p.shape[0] * p.shape[1])
            return axes

    for block in model.blocks:
        block.attention.frames = Counting()
    outputs(model, crystals)
    return sum(more)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_descriptions_of_the_same_crystal(cls, dtype, bound):
    """Without any reduction to a primitive cell: the sphere alone makes the sums independent of the cell."""
    model = pair(cls, dtype)
    model.graph = replace(model.graph, primitive=False)
    before = outputs(model, RANDOM)
    assert before.std() > 1e-4
    measured = {
        what: float(np.abs(before - outputs(model, [change(c, i + 1) for i, c in enumerate(RANDOM)])).max())
        for what, change in CHANGES.items()
    }
    assert max(measured.values()) <= bound, measured


def test_these_crystals_have_one_frame():
    assert ties(pair(CrystalFramer, torch.float64), RANDOM) == 0


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_cells_bent_to_five(cls):
    """Entries to ±5, several bases a crystal, both hands."""
    model = make(cls)
    before = outputs(model, RANDOM)
    hands = set()
    for seed in range(3):
        matrices = [zoo.unimodular(31 * i + seed) for i in range(len(RANDOM))]
        hands |= {round(float(np.linalg.det(m))) for m in matrices}
        after = outputs(model, [zoo.rebased(c, m) for c, m in zip(RANDOM, matrices, strict=True)])
        assert np.abs(before - after).max() <= 1e-13
    assert hands == {-1, 1}


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_batches_in_any_order(cls, dtype, bound):
    model, crystals = pair(cls, dtype), [*RANDOM, zoo.nacl(), zoo.tellurium(), zoo.zno()]
    together = outputs(model, crystals)
    order = np.random.default_rng(0).permutation(len(crystals))
    assert np.abs(outputs(model, [crystals[i] for i in order]) - together[order]).max() <= bound
    single = np.array([outputs(model, [c])[0] for c in crystals])
    assert np.abs(single - together).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("frames", ["max", "static", "weighted_pca"])
def test_evaluation_draws_nothing(frames, dtype):
    crystals = [*RANDOM, zoo.nacl(), zoo.si()]
    model = make(CrystalFramer, dtype, frames=frames)
    outputs_of_a_step = model(model.training_batch(model.graph(crystals), torch.Generator().manual_seed(3)))
    assert torch.isfinite(outputs_of_a_step).all()  # its draws are spent
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        found.append(outputs(model, crystals))
    assert (found[0] == found[1]).all()


def pseudo_finite(attention: LatticeAttention, x: torch.Tensor, around: list) -> torch.Tensor:
    """The layer as attention over the atoms of one cell: log-sums α of the Gaussians and means β of ψ."""
    shape = (len(x), attention.heads, -1)
    q, k, v = (layer(x).view(shape) for layer in (attention.query, attention.key, attention.value))
    scores = ((q * attention.score).sum(2) - attention.mean) / attention.deviation
    half = tail(scores) / 2
    rows = []
    for i, (sender, vectors) in enumerate(around):
        squared = vectors.square().sum(1).to(x.dtype)
        basis = distance_basis(vectors.norm(dim=1).to(x.dtype))
        psi = attention.distance_scale * torch.einsum("ek,hwk->ehw", basis, attention.distance)
        alpha, beta = [], []
        for j in range(len(x)):
            mine = sender == j
            exponent = -squared[mine][:, None] * half[i]
            alpha.append(torch.logsumexp(exponent, 0))
            beta.append((torch.exp(exponent - alpha[-1])[:, :, None] * psi[mine]).sum(0))
        logits = (k * q[i]).sum(2) / math.sqrt(q.shape[2]) + torch.stack(alpha)
        rows.append((torch.softmax(logits, 0)[:, :, None] * (v + torch.stack(beta))).sum(0))
    return attention.out(torch.stack(rows).flatten(1))


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_pseudo_finite_attention(dtype, bound):
    model = make(Crystalformer, dtype)
    for crystal in RANDOM[:3]:
        builder = replace(model.graph, primitive=False)
        batch = builder([crystal])
        # the cell that the batch holds, so that atoms and images mean the same
        same = Crystal(batch.lattice[0].numpy(), batch.frac_coords.numpy(), crystal.atomic_numbers)
        x = torch.randn(len(crystal), 16, generator=torch.Generator().manual_seed(2)).to(dtype)
        with torch.no_grad():
            ours = model.blocks[0].attention(x, surroundings(batch, dtype))
            theirs = pseudo_finite(model.blocks[0].attention, x, plain.images(same, builder.cutoff, False))
        assert float((ours - theirs).abs().max()) <= bound


@pytest.mark.parametrize("angles", ["default", "lightweight"])
def test_float32_stays_near_the_plain_formula(angles):
    """One ψ an image and projected before the sum, in float64, against the network of daily use. RANDOM[0]
    has logits that float32 counts as tied (1e-4) and float64 does not; it is left out."""
    crystals = RANDOM[1:3]
    exact = pair(CrystalFramer, torch.float64, reach=2.5, angles=angles)
    with torch.no_grad():
        slow = np.array([float(plain.forward(exact, c)) for c in crystals])
    assert np.abs(outputs(exact.float(), crystals) - slow).max() <= 1e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_tail_length_and_bases_in_both_precisions(dtype, bound):
    zero = torch.zeros(1, dtype=dtype)
    assert float(tail(zero).rsqrt()) == pytest.approx(1.4, abs=bound)
    x = torch.linspace(-300, 50, 7001, dtype=dtype)
    sigma = tail(x).rsqrt()
    assert float(sigma.max()) == pytest.approx(1.4 * math.sqrt(2), abs=2 * bound)
    assert float(sigma.max()) == pytest.approx(1.979899, abs=1e-6)
    assert bool((sigma.diff() <= bound).all())
    for side in (-1e-30, 1e-30):  # both branches of ELU have the same value and slope at zero
        near = torch.full((1,), side, dtype=dtype, requires_grad=True)
        value = tail(near) * 1.4**2
        (slope,) = torch.autograd.grad(value, near)
        assert float(value.detach()) == pytest.approx(1, abs=bound)
        assert float(slope) == pytest.approx(0.1, abs=bound)
    peaks = distance_basis(torch.arange(1, 65, dtype=dtype) * 0.21875)
    assert float((peaks.diagonal() - 1).abs().max()) <= bound
    assert float((peaks.diagonal(1) - math.exp(-0.5)).abs().max()) <= max(bound, 2e-14)
    for basis, deviation in ((AngularBasis(64, 4.0, 1.0), 8 / 63), (AngularBasis(16, 1.0, 6.0), 2 / 15)):
        centers = torch.linspace(-1, 1, basis.size, dtype=torch.float64).to(dtype)
        values = basis(centers)
        assert float((values.diagonal() - 1).abs().max()) <= bound
        step = 2 / (basis.size - 1)
        expected = math.exp(-(step**2) / (2 * deviation**2))
        assert float((values.diagonal(1) - expected).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_atom_itself_has_no_angles(dtype):
    """An atom that attends to itself alone gathers an angular part of exactly zero."""
    (part,) = surroundings(Sphere(5.0)([RANDOM[0]]), dtype).parts
    axes = strongest_axes(part, -part.squared[:, None, :].to(dtype), None)
    own = part.present & ~part.candidate
    assert own.sum(1).tolist() == [1] * len(own)
    assert not part.direction[own].any()
    for basis in (AngularBasis(64, 4.0, 1.0), AngularBasis(16, 1.0, 6.0)):
        assert not angular_sums(own[:, None, :].to(dtype), part, axes, basis).any()
        rest = angular_sums(part.candidate[:, None, :].to(dtype), part, axes, basis)
        everyone = angular_sums(part.present[:, None, :].to(dtype), part, axes, basis)
        assert (rest == everyone).all()


def test_statistics_of_initial_weights():
    """Within 3 % where one model has too few numbers for that."""
    torch.manual_seed(0)
    basis = AngularBasis(16, 1.0, 6.0)
    blocks = [
        LatticeBlock(LatticeAttention(128, 8, angles=basis, frames=MaxFrames()), 128) for _ in range(64)
    ]
    t_fixup(blocks)
    attention = [block.attention.requires_grad_(False) for block in blocks]
    score = torch.stack([a.score for a in attention])
    assert float(score.std()) == pytest.approx(0.25, rel=0.03)
    assert abs(float(score.mean())) <= 4 * 0.25 / math.sqrt(score.numel())
    distance = torch.stack([a.distance for a in attention])
    assert float(distance.std()) == pytest.approx(0.02210 / math.sqrt(3), rel=0.03)
    for axis in range(3):
        angular = torch.stack([a.angular[axis] for a in attention])
        assert float(angular.std()) == pytest.approx(0.05103 / math.sqrt(3), rel=0.03)
        assert float(angular.abs().max()) <= 16**-0.5 * math.sqrt(6 / 144)


def test_the_baseline_within():
    """No angular basis at all, or one whose scale is zero, is Crystalformer to the last bit."""
    framer, former = make(CrystalFramer), make(Crystalformer)
    former.graph = framer.graph
    weights = {k: v for k, v in framer.state_dict().items() if "angular" not in k}
    former.load_state_dict(weights)
    expected = outputs(former, RANDOM)
    assert (outputs(framer, RANDOM) != expected).any()
    for angles in (replace(framer.blocks[0].attention.angles, scale=0.0), None):
        for block in framer.blocks:
            block.attention.angles = angles
        assert (outputs(framer, RANDOM) == expected).all()


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_calibration_is_kept_by_state_dicts(cls):
    model = cls(**SMALL).double().eval()
    with pytest.raises(ValueError, match="no statistics yet"):
        model(model.graph(RANDOM))
    with pytest.raises(ValueError, match="no statistics yet"):
        model.embed_atoms(model.graph(RANDOM))
    model.calibrate(RANDOM)
    again = cls(**SMALL).double().eval()
    again.load_state_dict(model.state_dict())
    for one, two in zip(model.blocks, again.blocks, strict=True):
        assert one.attention.mean == two.attention.mean
        assert one.attention.deviation == two.attention.deviation
    assert (outputs(again, RANDOM) == outputs(model, RANDOM)).all()


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_five_tails_are_enough_when_trained(cls):
    """Training moves the tails away from 1.4 Å; the sphere of five longest tails still holds all."""
    crystals = [*RANDOM, zoo.nacl(), zoo.srtio3(), zoo.zno(), zoo.tellurium()]
    labels = torch.tensor([c.volume / len(c) for c in crystals], dtype=torch.float64)
    labels = (labels - labels.mean()) / labels.std()
    torch.manual_seed(3)
    model = cls(**SMALL).double().train()
    generator = torch.Generator().manual_seed(0)
    batch = model.graph(crystals)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = (model(model.training_batch(batch, generator))[:, 0] - labels).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.6
    model.eval()
    values = []
    for reach in (5.0, 8.5):
        model.graph = replace(model.graph, cutoff=reach * LARGEST_WIDTH)
        values.append(outputs(model, crystals[:6]))
    assert np.abs(values[0] - values[1]).max() <= 1e-4 * values[1].std()
