"""Crystals at the edge of what the lattice transformers can take: a stated rule or a clear error, never NaN.

Every kind goes through evaluation, a training step with drawn frames, and gradients of positions, lattice and
weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import facetry
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.graph import GraphError
from facetry.models import Crystalformer, CrystalFramer
from tests import crystals as zoo
from tests.reference.test_crystalframer import make

MODELS = [
    (Crystalformer, {}),
    (CrystalFramer, {}),
    (CrystalFramer, {"frames": "static"}),
    (CrystalFramer, {"frames": "weighted_pca"}),
]
_LINE = [[0, 0, 0], [0, 0, 0.4]]


def vacant(crystal: Crystal) -> Crystal:
    """Every site in a share of the cells only, the first one shared with hydrogen."""
    first = {int(crystal.atomic_numbers[0]): 0.5, 2: 0.4}
    return crystal.replace(occupancies=[first, *[0.3] * (len(crystal) - 1)], name=f"{crystal.name}, vacant")


EDGE = [
    Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="one atom alone"),
    Crystal(np.diag([25.0, 27.0, 30.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [18, 36], name="two atoms alone"),
    Crystal(np.diag([3.0, 25.0, 30.0]), [[0, 0, 0]], [6], name="chain of one"),
    Crystal(np.diag([18.0, 19.0, 2.4]), _LINE, [6, 16], name="straight chain of two"),
    Crystal(np.diag([20.0, 21.0, 22.0]), [[0, 0, 0], [0, 0, 0.05]], [7, 7], name="molecule in a box"),
    Crystal(np.diag([2.5, 4.3, 35.0]), [[0, 0, 0], [0.5, 1 / 3, 0]], [6, 6], name="flat sheet"),
    Crystal(np.eye(3) * 4, [[0, 0, 0], [0.03, 0, 0]], [26, 27], name="0.12 Å apart"),
    Crystal(np.diag([2.2, 2.2, 40.0]), [[0, 0, 0]], [29], name="needle-thin square net"),
]
EDGE += [vacant(c) for c in EDGE]


def slopes(model, batch, generator=None):
    """Outputs, and the gradients of positions, lattice and weights; a generator draws frames as training
    does."""
    frac, lattice = batch.frac_coords.clone().requires_grad_(), batch.lattice.clone().requires_grad_()
    leaves = replace(batch, frac_coords=frac, lattice=lattice)
    model.train(generator is not None)
    if generator is not None:
        leaves = model.training_batch(leaves, generator)
    out = model(leaves)
    found = torch.autograd.grad(out.sum(), [frac, lattice, *model.parameters()], allow_unused=True)
    model.eval()
    return [out.detach(), *(g for g in found if g is not None)]


@pytest.mark.parametrize(("cls", "options"), [*MODELS, (Crystalformer, {"reciprocal": "heads"})])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gaps_chains_and_lone_atoms(cls, options, dtype):
    model = make(cls, dtype, **options)
    alone = [model.graph([c]) for c in EDGE]
    batch = model.graph(EDGE)
    for generator in (None, torch.Generator().manual_seed(3)):
        for tensor in slopes(model, batch, generator):
            assert bool(torch.isfinite(tensor).all())
    with torch.no_grad():
        one_by_one = torch.cat([model(b) for b in alone])
        bound = 1e-13 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(model(batch), one_by_one, rtol=0, atol=bound)
        if dtype == torch.float64:
            turned = [zoo.rotated(zoo.permuted(c, 1), zoo.rotation(i)) for i, c in enumerate(EDGE)]
            torch.testing.assert_close(model(model.graph(turned)), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), MODELS)
def test_real_slabs_and_frameworks(cls, options, data_folder):
    """Two-dimensional crystals with the vacuum of their data set, and covalent frameworks with wide pores."""
    slabs = CrystalTable.from_parquet(data_folder / "mb_jdft2d" / "all.parquet")
    height = np.linalg.norm(slabs.lattice, axis=2).max(1)
    thin = slabs.select(np.argsort(-height, kind="stable")[:6])
    frameworks = CrystalTable.from_parquet(data_folder / "curated_cofs" / "all.parquet")
    small = frameworks.select(np.argsort(frameworks.num_atoms, kind="stable")[:2])
    assert height.max() > 30
    crystals = [*thin, *small]
    model = make(cls, torch.float32, **options)
    batch = model.graph(crystals)
    for generator in (None, torch.Generator().manual_seed(3)):
        assert all(bool(torch.isfinite(t).all()) for t in slopes(model, batch, generator))
    assert {r.status for r in facetry.predict(model, crystals)} == {"ok"}


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_errors_name_the_crystal(cls):
    model = make(cls)
    spot = Crystal(np.eye(3) * 4, [[0, 0, 0], [1, 0, 0]], [26, 27], name="two on a spot")
    heavy = Crystal(np.eye(3) * 4, [[0, 0, 0]], [99], name="einsteinium")
    cases = [
        (spot, r"two on a spot: sites 1 and 2 are 0\.0000 Å apart; expected distinct atoms"),
        (spot.replace(occupancies=[1.0, 0.5]), r"two on a spot: 1\.5 atoms on the spot of site 1"),
        (heavy, r"einsteinium: expected elements up to Cf \(98\), came Es"),
    ]
    for crystal, message in cases:
        with pytest.raises(GraphError, match=message):
            model.graph([zoo.nacl(), crystal])
        good, bad, also_good = facetry.predict(model, [zoo.nacl(), crystal, zoo.zno()])
        assert [good.status, bad.status, also_good.status] == ["ok", "failed", "ok"]
        assert bad.value is None
        assert bad.message


def test_a_huge_cell_is_worked_off_or_refused_with_a_reason(monkeypatch):
    """1331 atoms in one cell; and without the memory for it a row that says so."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(11)] * 3, indexing="ij"), -1).reshape(-1, 3) / 11
    grid += 0.005 * rng.normal(size=grid.shape)
    crystal = Crystal(np.eye(3) * 27, grid, rng.choice([8, 14], len(grid)), name="glass")
    model = make(CrystalFramer, torch.float32, blocks=1)
    (result,) = facetry.predict(model, [crystal])
    assert result.status == "ok"
    assert np.isfinite(result.value)
    monkeypatch.setattr("facetry.tasks.inference.free_memory", lambda: 1000)
    (result,) = facetry.predict(model, [crystal])
    assert result.status == "failed"
    assert result.message.startswith("not enough memory for 1331 atoms")


def test_statistics_need_scores_that_differ():
    """One atom and one head have no deviation: an error instead of NaN."""
    model = Crystalformer(channels=8, heads=1, blocks=1)
    with pytest.raises(ValueError, match="tail lengths: expected scores that differ, came 1 without"):
        model.calibrate([zoo.cu()])
    assert not model.calibrated
