"""Formula units, the gradient of contrastive divergence, and runs that end the same after a kill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import facetry
from facetry.chemistry import Formula
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.geometry.lattice import volume
from facetry.graph.batch import Batch
from facetry.graph.builders import Builder
from facetry.models import AngularContinuouSP, ContinuouSP
from facetry.models.base import EnergyModel
from facetry.samplers import Mover, evaluated, random_start
from facetry.samplers.streams import normals, uniforms
from facetry.tasks.energy_chains import EnergyChains, Job
from facetry.training import RecipeError
from facetry.training.contrast import (
    Buffer,
    Compositions,
    denoising_loss,
    formula_units,
    geometric,
    negatives,
    noised,
)
from facetry.training.recipe import GenerateOptions, make_recipe
from facetry.training.state import Keeper
from tests import crystals as zoo
from tests.samplers.test_chains import Toy
from tests.training.tiny import killed_at_save

CRYSTALS = [zoo.po(), zoo.nacl_conventional(), zoo.zno(), zoo.tellurium(), zoo.srtio3()]
OPTIONS = {"steps": 4, "validate_every": 2, "batch_size": 3, "threads": 1, "accelerator": "cpu"}


def small(**options):
    torch.manual_seed(0)
    return ContinuouSP(**{"channels": 8, "layers": 1, "head_layers": 2, **options})


def splits() -> Splits:
    def part(first: int) -> Dataset:
        found = [zoo.random_crystal(first + i, atoms=2).replace(name=f"c{first + i}") for i in range(7)]
        return Dataset(CrystalTable.from_crystals(found), np.zeros((7, 0)), [])

    return Splits("cells", {"train": part(0), "val": part(100), "test": part(200)})


def test_reduced_formulas():
    found = Compositions.of(Batch.from_crystals(CRYSTALS))
    assert found.units.tolist() == [1, 4, 2, 3, 1]
    assert found.num_atoms.tolist() == [1, 2, 2, 1, 5]
    assert found.atomic_numbers.tolist() == [84, 11, 17, 8, 30, 52, 8, 8, 8, 22, 38]
    atoms, count = found.select(torch.tensor([4, 1])).times(torch.tensor([1, 2]))
    assert count.tolist() == [5, 4]
    assert atoms.tolist() == [8, 8, 8, 22, 38, 11, 17, 11, 17]
    rutile = Crystal(np.eye(3) * 4, np.random.default_rng(0).uniform(size=(6, 3)), [8, 22, 8, 8, 22, 8])
    one = Compositions.of(Batch.from_crystals([rutile]))
    assert (one.units.tolist(), one.atomic_numbers.tolist()) == ([2], [8, 8, 22])


def test_geometric_multiplicity():
    chain = torch.arange(20_000)
    alone = Compositions(torch.full((20_000,), 6), torch.ones_like(chain), torch.full_like(chain, 3))
    k = formula_units(alone, GenerateOptions(), 0, chain, 5)
    seen = [int((k == i).sum()) for i in range(1, 5)] + [int((k > 4).sum())]
    expected = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]) * len(k)
    assert stats.chisquare(seen, expected).pvalue > 0.01
    assert geometric(torch.tensor([0.999, 0.51, 0.49, 0.26, 0.24])).tolist() == [1, 1, 2, 2, 3]
    assert (formula_units(alone, GenerateOptions(multiplicity="data"), 0, chain, 5) == 3).all()
    mixed = formula_units(alone, GenerateOptions(multiplicity="mixed"), 0, chain, 5)
    assert float((mixed == 3).double().mean()) == pytest.approx(0.5 + 0.5 / 8, abs=0.015)
    assert int(formula_units(alone, GenerateOptions(most_atoms=2), 0, chain, 5).max()) == 2


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_gradient_against_the_partition_function(power):
    """E = θ ln²(V ρ0): ln V is normal with variance T / 2θ around (a + 3) T / 2θ, so ln Z is known, and the
    chains' mean of ∂E/∂θ is its slope."""
    theta, temperature, count = 1.5, 0.5, 1500
    land = Toy(lambda _, c: theta * torch.log(torch.linalg.det(c).abs() * 0.05).square(), count)
    chain, one = torch.arange(count), torch.ones(count, dtype=torch.float64)
    lattice, frac = random_start(0, chain, land.num_atoms)
    state, mover, seen = evaluated(land, lattice, frac), Mover(land, volume_power=power), []
    for step in range(90):
        noise = frac, normals(1, chain, step, 1, 9), uniforms(1, chain, step, 2, 1)[:, 0]
        state, _ = mover(state, "strain", 0.02 * one, temperature * one, *noise)
        if step >= 25:
            seen.append(float(torch.log(volume(state.lattice).abs() * 0.05).square().mean()))
    spread = temperature / (2 * theta)
    exact = spread + ((power + 3) * spread) ** 2  # -T d ln Z / dθ
    assert np.mean(seen) == pytest.approx(exact, rel=0.02)


def test_chains_of_a_batch_and_those_that_go_on():
    batch = Batch.from_crystals(CRYSTALS)
    compositions, rows = Compositions.of(batch), torch.tensor([3, 1, 4])
    options = GenerateOptions(chain_steps=6, buffer_steps=2, refresh=0.0, multiplicity="data", per_atom=True)
    buffer = Buffer(5, 60)
    model = small()
    one = negatives(model, compositions.select(rows), rows, options, 0, 0, buffer)
    assert one.num_atoms.tolist() == [3, 8, 5]
    assert sorted(one.atomic_numbers[3:11].tolist()) == [11] * 4 + [17] * 4
    assert buffer.units.tolist() == [0, 4, 0, 3, 1]
    assert torch.equal(buffer.lattice[rows], one.lattice)
    two = negatives(model, compositions.select(rows), rows, options, 0, 1, buffer)
    ratio = volume(two.lattice) / volume(one.lattice)
    assert ((ratio > 0.9) & (ratio < 1.1)).all()
    assert (two.lattice != one.lattice).any()
    again = negatives(model, compositions.select(rows), rows, options, 0, 0, None)
    assert torch.equal(again.lattice, one.lattice)


def test_noise_and_the_wells_it_is_compared_with():
    batch = Batch.from_crystals(CRYSTALS * 40)
    chain = torch.arange(len(batch))
    given, move, strain, sigma = noised(batch, GenerateOptions(), 0, chain, 3)
    assert float(sigma.log().mean()) == pytest.approx(math.log(0.1 * 0.8) / 2, abs=0.2)
    undone = given.lattice @ torch.matrix_exp(-strain)
    assert torch.allclose(undone, batch.lattice)
    sheared = torch.einsum("na,nab->nb", batch.frac_coords, given.lattice[batch.crystal_index])
    assert torch.allclose(
        torch.einsum("na,nab->nb", given.frac_coords, given.lattice[batch.crystal_index]) - sheared, move
    )

    class Wells(EnergyModel):
        """Knows where every atom belongs, and the strain to first order."""

        name = "wells"

        def forward(self, at):
            apart = at.frac_coords - batch.frac_coords
            apart = torch.einsum("na,nab->nb", apart, given.lattice[batch.crystal_index].detach())
            total = torch.zeros(len(batch), dtype=torch.float64)
            total = total.index_add(0, batch.crystal_index, apart.square().sum(1) / 2)
            change = torch.linalg.inv(given.lattice) @ at.lattice - torch.eye(3, dtype=torch.float64)
            size = (volume(given.lattice).abs() / batch.num_atoms).pow(2 / 3) * batch.num_atoms
            return (total + size * ((change * strain).sum((1, 2)))) / batch.num_atoms

    class Same(Builder):
        def build(self, batch, names):
            return batch

    loss = denoising_loss(Wells(), Same(), batch, GenerateOptions(), 0, chain, 3)
    assert float(loss.detach().abs().max()) < 1e-18
    real = small().double()
    loss = denoising_loss(real, real.graph, Batch.from_crystals(CRYSTALS), GenerateOptions(), 0, chain[:5], 3)
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in real.parameters() if p.grad is not None)


CHAINS = {"chain_steps": 5, "per_atom": True, "multiplicity": "mixed", "most_atoms": 8}


@pytest.mark.parametrize("more", [{}, {"buffer": True, "buffer_steps": 3, "pretrain_steps": 1}])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, more):
    options = {**OPTIONS, **CHAINS, **more, "checkpoint_seconds": 1e-6}
    facetry.train(small(), splits(), out=tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="killed"), killed_at_save(4):
        facetry.train(small(), splits(), out=tmp_path / "cut", **options)
    run = facetry.train(small(), splits(), resume=tmp_path / "cut")
    ends = [Keeper(tmp_path / f).points()[-1] / "state.safetensors" for f in ("cut", "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert set(run.metrics["test"]) == {"energy", "noise_gap", "noise_raised"}
    model = facetry.load(tmp_path / "cut")
    assert model.card.generate["chain_steps"] == 5
    assert model.card.targets == []


def test_wells_beside_contrast():
    """The two losses are added: with a weight the slopes of wells are in the gradient."""
    losses = {}
    for weight in (0.0, 2.0):
        model = AngularContinuouSP(channels=8, angular=4, layers=1, basis=6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.05)
        options = {"objective": "contrastive", "chain_steps": 3, "denoise_weight": weight}
        run = facetry.train(model, splits(), **options, **OPTIONS)
        losses[weight] = run.history[0]["train_loss"]
    assert losses[2.0] > losses[0.0] + 0.5


def test_wells_are_learned():
    """Nothing but denoising: noise raises the energy of crystals that were seen."""
    cells = [zoo.cscl(), zoo.srtio3()]
    part = Dataset(CrystalTable.from_crystals(cells * 2), np.zeros((4, 0)), [])
    data = Splits("cells", dict.fromkeys(("train", "val", "test"), part))
    model = small(channels=16, layers=2, density_weight=0.0, basis="sharp")
    settings = {"batch_size": 4, "learning_rate": 1e-2, "threads": 1, "accelerator": "cpu"}
    noise = {"objective": "denoise", "noise_low": 0.2, "noise_high": 0.5}
    run = facetry.train(model, data, steps=160, validate_every=80, **noise, **settings)
    first, last = (row["train_loss"] for row in run.history)
    assert last < 0.9 * first
    assert run.metrics["test"]["noise_raised"] > 0.9
    assert run.metrics["test"]["noise_gap"] > 0.005


def test_published_scheme_trains():
    run = facetry.train(small(), splits(), scheme="published", **{**OPTIONS, **CHAINS, "per_atom": False})
    assert math.isfinite(run.metrics["val"]["energy"])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"name": "perov5", "target": "heat_all"}}, "data.target: a model that generates"),
        ({"training": {"loss": "mse"}}, "training.loss: has no meaning"),
        ({"training": {"precision": "bf16"}}, "training.precision: continuousp has no use for 'bf16'"),
        ({"generate": {"chain_step": 5}}, "did you mean 'chain_steps'"),
        ({"generate": {"noise_high": 0.05}}, "noise_high must not be below noise_low"),
        ({"generate": {"hot": 1e-4}}, "hot must not be below cold"),
        ({"relax": {"noise": 0.1}}, "relax: continuousp does not relax crystals"),
        ({"model": {"name": "cgcnn"}, "generate": {"hot": 1.0}}, "generate: cgcnn does not generate"),
    ],
)
def test_wrong_recipes(tables, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe({"model": {"name": "continuousp"}, "data": {"name": "perov5"}, **tables})


@pytest.mark.timeout(900)  # a minute of training, more where neighbours work
def test_perovskites_learned_by_heart(data_folder):
    """Fifty crystals, trained and found again from their formulas: at least 90 % among eight candidates."""
    crystals = facetry.dataset("perov5", target=[]).train.crystals.select(slice(0, 50))
    part = Dataset(crystals, np.zeros((50, 0)), [])
    data = Splits("perovskites", {"train": part, "val": part})
    torch.manual_seed(0)
    model = AngularContinuouSP(channels=32, angular=8, basis=12)
    run = facetry.train(
        model,
        data,
        steps=900,
        batch_size=25,
        learning_rate=5e-3,
        gradient_clip=5.0,
        validate_every=900,
        averaging="ema",
        averaging_decay=0.98,
        objective="denoise",
        noise_low=0.03,
        noise_high=1.0,
        threads=1,
        accelerator="cpu",
    )
    chains = EnergyChains(run.model, steps=120, hot=0.5, cold=1e-3, per_atom=True, quench=10)
    jobs = [Job(Formula.of(c.atomic_numbers), 8, number) for number, c in enumerate(crystals)]
    found = [[s.crystal for s in few] for few in chains.sample(jobs, 0)]
    rate = facetry.match(list(crystals), found, workers=1, everyone=False).match_rate(8)
    assert rate >= 0.9, rate
