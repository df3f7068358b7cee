"""Noise as it is described, gains as they are defined, and runs that end the same after a kill."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import facetry
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.evaluation.relaxation import Cells, changes_at_rest, means, relax_scores
from facetry.geometry.lattice import cell_parameters, volume
from facetry.graph.batch import Batch
from facetry.models import EMPNN, FeedForward, Relaxation
from facetry.models.base import LatticeModel
from facetry.nn.lattice_losses import Normalisation
from facetry.tasks.evaluate import learned_task
from facetry.training import RecipeError, TrainingError, load_recipe
from facetry.training.batches import Order, Rounds
from facetry.training.noise import displacement_from, disturb, draw_noise, in_cubes, niggli_cells, varied
from facetry.training.recipe import RelaxOptions, make_recipe
from facetry.training.relaxing import Disturbed, relaxation_loss, relaxed_cells, rest_limits
from facetry.training.state import Keeper
from tests import crystals as zoo
from tests.training.tiny import killed_at_save

CRYSTALS = [zoo.po(), zoo.nacl(), zoo.zno(), zoo.mg(), zoo.random_crystal(3)]
OPTIONS = {"steps": 6, "validate_every": 2, "batch_size": 4, "threads": 1, "accelerator": "cpu"}


def small(**options: object) -> EMPNN:
    torch.manual_seed(0)
    return EMPNN(**{"fields": "ket_bra_1", "layers": 1, "blocks": 2, "channels": 8, "k": 4, **options})


def splits(count: int = 8) -> Splits:
    def part(first: int) -> Dataset:
        crystals = [zoo.random_crystal(first + i) for i in range(count)]
        table = CrystalTable.from_crystals([replace_name(c, f"c{first + i}") for i, c in enumerate(crystals)])
        return Dataset(table, np.zeros((count, 0)), [])

    return Splits("cells", {"train": part(0), "val": part(100), "test": part(200)})


def replace_name(crystal: facetry.Crystal, name: str) -> facetry.Crystal:
    return crystal.replace(name=name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(LatticeModel):
    """Knows the answers, or gives back what it got."""

    name = "oracle"

    def __init__(self, answers: Batch | None = None) -> None:
        super().__init__()
        self.answers, self.graph = answers, EMPNN(layers=0, blocks=1, channels=1).graph
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Relaxation:
        answer = batch if self.answers is None else self.answers
        return Relaxation((batch.lattice, answer.lattice), (batch.frac_coords, answer.frac_coords))


# --- noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_volumes_under_noise(sigma: float) -> None:
    """log det exp(N) is the trace of N: normal with mean 0 and deviation σ√3."""
    count = 20_000
    batch = Batch.from_crystals([zoo.po()]).select([0] * count)
    noise = draw_noise(RelaxOptions(noise=sigma), count, count, generator())
    change = (volume(disturb(batch, noise).lattice) / volume(batch.lattice)).log()
    spread = sigma * 3**0.5
    assert abs(float(change.mean())) < 3 * spread / count**0.5
    assert abs(float(change.std()) - spread) < 3 * spread / (2 * count) ** 0.5
    assert noise.displacement is None


def test_noise_acts_as_an_exponential_and_leaves_fractions_alone() -> None:
    batch = Batch.from_crystals(CRYSTALS)
    noise = draw_noise(RelaxOptions(noise=0.3), len(batch), len(batch.frac_coords), generator())
    noisy = disturb(batch, noise)
    for row in range(len(batch)):
        power, exponential = torch.eye(3).double(), torch.eye(3).double()
        for order in range(1, 30):
            power = power @ noise.strain[row] / order
            exponential = exponential + power
        columns = exponential @ batch.lattice[row].T
        assert torch.allclose(noisy.lattice[row].T, columns, atol=1e-12)
    assert torch.equal(noisy.frac_coords, batch.frac_coords)


def test_atoms_move_by_as_many_angstroms_as_said() -> None:
    options = RelaxOptions(task="relax", noise=0.2, displacement=0.05)
    batch = Batch.from_crystals([zoo.nacl()]).select([0] * 4000)
    noise = draw_noise(options, 4000, 8000, generator())
    noisy = disturb(batch, noise)
    moved = ((noisy.frac_coords - batch.frac_coords)[:, None] @ noisy.lattice[noisy.crystal_index])[:, 0]
    assert torch.allclose(moved, noise.displacement, atol=1e-12)
    assert abs(float(moved.std()) - 0.05) < 0.05 * 3 / (2 * 24000) ** 0.5


def test_varied_noise_leaves_some_at_rest_and_stretches_some() -> None:
    """Every crystal has one share for lattice and atoms, uniform from 0 to 1, or 0."""
    options = RelaxOptions(task="relax", vary_noise=True)
    batch = Batch.from_crystals([zoo.nacl()]).select([0] * 4000)
    noise = draw_noise(options, 4000, 8000, generator())
    own = varied(noise, batch.num_atoms, generator())
    by_atom = (own.displacement / noise.displacement).reshape(4000, 6)
    share = by_atom[:, :1]
    assert torch.allclose(by_atom, share.expand_as(by_atom), rtol=1e-12)
    away = share[share > 0]
    assert abs(len(away) / 4000 - 0.75) < 3 * (0.1875 / 4000) ** 0.5
    assert abs(float(away.mean()) - 0.5) < 3 * (1 / 12 / len(away)) ** 0.5
    assert float(away.max()) <= 1
    assert not own.strain[share[:, 0] == 0].any()
    trace = own.strain.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, share[:, 0] * noise.strain.diagonal(dim1=1, dim2=2).sum(1))
    stretched = (own.strain - trace[:, None, None] / 3 * torch.eye(3)).abs().amax((1, 2)) < 1e-15
    assert abs(float(stretched[share[:, 0] > 0].double().mean()) - 0.25) < 3 * (0.1875 / len(away)) ** 0.5
    others = ~stretched
    assert torch.allclose(own.strain[others], share[others][:, :, None] * noise.strain[others], rtol=1e-12)


def test_training_varies_its_noise_and_validation_does_not() -> None:
    rows = np.arange(5)
    lattices = {}
    for vary in (False, True):
        source = Disturbed(small(), CRYSTALS, RelaxOptions(vary_noise=vary))
        fixed = source.task(rows, torch.device("cpu"), source.noise(3))[0].lattice
        drawn = source.task(rows, torch.device("cpu"), generator())[0].lattice
        lattices[vary] = fixed, drawn
    assert torch.equal(lattices[False][0], lattices[True][0])
    apart = [(lattices[vary][1] - Batch.from_crystals(CRYSTALS).lattice).norm(dim=(1, 2)) for vary in (0, 1)]
    assert bool((apart[1] < apart[0]).all())


def test_noise_of_a_crystal_does_not_depend_on_its_batch() -> None:
    source = Disturbed(small(), CRYSTALS, RelaxOptions(task="relax"))
    whole = source.noise(5)
    rows = np.array([1, 3])
    part = whole.select(torch.from_numpy(rows), source.atoms(rows))
    given, true = source.task(rows, torch.device("cpu"), part)
    every, _ = source.task(np.arange(5), torch.device("cpu"), whole)
    assert torch.allclose(given.lattice, every.lattice[[1, 3]], atol=1e-14)
    assert torch.allclose(given.frac_coords, every.select([1, 3]).frac_coords, atol=1e-14)
    assert torch.equal(true.lattice, Batch.from_crystals(CRYSTALS).lattice[[1, 3]])
    assert given.graph is not None


def test_displacement_forgets_origin_and_images() -> None:
    batch = Batch.from_crystals(CRYSTALS)
    torch.manual_seed(0)
    shift = torch.rand(len(batch), 3, dtype=torch.float64)[batch.crystal_index]
    image = torch.randint(-2, 3, batch.frac_coords.shape)
    where = batch.lattice, batch.crystal_index
    assert displacement_from(batch.frac_coords + shift + image, batch.frac_coords, *where).abs().max() < 1e-9
    step = torch.zeros_like(batch.frac_coords)
    step[1] = torch.tensor([0.02, 0.0, 0.0])  # the first atom of NaCl
    moved = displacement_from(batch.frac_coords + shift + step, batch.frac_coords, *where)
    assert torch.allclose(moved[1], 0.01 * batch.lattice[1, 0], atol=1e-9)


def test_cubes_hold_niggli_cells() -> None:
    left = zoo.random_crystal(7)
    left = left.replace(lattice=left.lattice * [1, 1, -1])
    batch = Batch.from_crystals([*CRYSTALS, left])
    right = niggli_cells(batch)
    assert (volume(right.lattice) > 0).all()
    assert torch.allclose(volume(right.lattice), volume(batch.lattice).abs(), rtol=1e-12)
    cart = (right.frac_coords[:, None] @ right.lattice[right.crystal_index])[:, 0]
    back = (cart[:, None] @ torch.linalg.inv(batch.lattice)[batch.crystal_index])[:, 0] - batch.frac_coords
    assert (back - back.round()).abs().max() < 1e-9  # the same points
    cubes = in_cubes(right)
    assert torch.equal(cubes.lattice[2], torch.eye(3).double())
    source = Disturbed(small(), CRYSTALS, RelaxOptions(task="reconstruct"))
    given, true = source.task(np.array([2, 0]), torch.device("cpu"), generator())
    assert torch.equal(given.lattice, torch.eye(3).double().expand(2, 3, 3))
    assert torch.allclose(true.lattice, right.lattice[[2, 0]], atol=1e-12)


# --- gains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["denoise", "relax"])
def test_identity_gains_nothing_and_an_oracle_all(task: str) -> None:
    source = Disturbed(small(), CRYSTALS, RelaxOptions(task=task))
    where = 64, torch.device("cpu")
    none = means(relaxed_cells(Oracle(), source, *where), task)
    truth = replace(source.batch(np.arange(5), where[1]), lattice=source.lattice)
    every = means(relaxed_cells(Oracle(truth), source, *where), task)
    for name in ("length", "angle"):
        assert abs(none[f"{name}_gain"]) < 1e-6
        assert abs(every[f"{name}_gain"] - none[f"noisy_{name}_mae"]) < 1e-6
        assert none[f"noisy_{name}_mae"] == every[f"noisy_{name}_mae"] > 0.01
    if task == "relax":
        assert abs(none["position_gain"]) < 1e-6
        assert abs(every["position_gain"] - none["noisy_position_rmsd"]) < 1e-6


def test_gains_by_hand() -> None:
    true = np.array([[4.0, 4, 4, 90, 90, 90], [3, 3, 5, 90, 90, 120]])
    noisy = true + np.array([[0.3, 0, 0, 3, 0, 0], [0, 0.6, 0, 0, 0, -6]])
    answer = true + np.array([[0.1, 0, 0, 0, 0, 0], [0, 0.9, 0, 0, 0, -6]])
    scores = relax_scores(Cells(true, noisy, answer), "denoise")
    assert scores.length_gain == pytest.approx(((0.3 - 0.1) / 3 + (0.6 - 0.9) / 3) / 2)
    assert scores.angle_gain == pytest.approx(0.5)
    assert scores.length_mae == pytest.approx(1.0 / 6)
    assert scores["length_gain"].lower <= scores.length_gain <= scores["length_gain"].upper
    assert "length_gain" in str(scores)
    assert json.dumps(scores.to_dict())
    broken = answer.copy()
    broken[0, 0] = np.nan
    scores = relax_scores(Cells(true, noisy, broken), "denoise")
    assert (scores.count, scores.failed) == (1, 1)
    assert means(Cells(true, noisy, answer * np.nan), "denoise")["length_mae"] == np.inf


@pytest.mark.parametrize("loss", ["parameters_mae", "parameters_mse", "metric_mae", "metric_mse", "riemann"])
@pytest.mark.parametrize("model", [small(positions=True), FeedForward(layers=1, channels=8, k=4)])
def test_losses_have_finite_slopes(model: LatticeModel, loss: str) -> None:
    options = RelaxOptions(task="relax", loss=loss)
    source = Disturbed(model, CRYSTALS, options)
    given, true = source.task(np.arange(5), torch.device("cpu"), generator())
    value = relaxation_loss(model(given), true, options, Normalisation.of(cell_parameters(source.lattice)))
    model.zero_grad()
    value.backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    assert slopes
    assert all(torch.isfinite(g).all() for g in slopes)


# --- runs -------------------------------------------------------------------------------------------------


def test_rounds_are_the_batches_of_the_order() -> None:
    order, rounds = Order(10, 3, True, 1), Rounds(Order(10, 3, True, 1), 5)
    steps = [order.batch(epoch, step).tolist() for epoch in range(4) for step in range(3)]
    again = [rounds.batch(number, step).tolist() for number in range(2) for step in range(5)]
    assert again == steps[:10]
    assert rounds.steps_per_pass == 3


def test_a_run_leaves_what_it_should(tmp_path) -> None:
    run = facetry.train(small(), splits(), out=tmp_path / "run", noise=0.2, loss="riemann", **OPTIONS)
    assert [row["step"] for row in run.history] == [2, 4, 6]
    assert [row["epoch"] for row in run.history] == [1.0, 2.0, 3.0]
    assert set(run.metrics["test"]) >= {"length_gain", "angle_mae"}
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert receipt["metrics"]["test"]["length_gain"][0] == run.metrics["test"]["length_gain"]
    assert receipt["steps"] == 6
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert recipe.relax == RelaxOptions(noise=0.2, loss="riemann", validate_every=2)
    model = facetry.load(tmp_path / "run")
    assert model.card.relax["noise"] == 0.2
    scores = facetry.evaluate(model, splits())
    assert model.card.metrics["rest"] == run.metrics["rest"]
    assert model.card.metrics["rest"]["stretch"] > 0
    assert scores.length_gain == pytest.approx(run.metrics["test"]["length_gain"], abs=1e-9)
    still = facetry.evaluate(model, splits(), noise=0.0)
    assert still["noisy_length_mae"].value < 1e-12
    before, after = still.cells.noisy[:, :3], still.cells.answer[:, :3]
    assert still.largest_change == pytest.approx((100 * np.abs(after / before - 1).max(1)).mean())
    assert "left_alone" not in scores.metrics


def test_another_noise_moves_atoms_in_proportion() -> None:
    run = facetry.train(small(positions=True), splits(), task="relax", noise=0.2, displacement=0.1, **OPTIONS)
    half, none = (learned_task(run.model, noise) for noise in (0.1, 0))
    assert (half.noise, half.displacement) == (0.1, 0.05)
    assert (none.noise, none.displacement) == (0, 0)
    still = facetry.evaluate(run.model, splits(), noise=0)
    assert still.noisy_position_rmsd < 1e-12
    assert still.largest_change >= 0


def test_limits_of_crystals_at_rest() -> None:
    """95 of 100 are within: the largest stretch, and the distance of atoms for a task that moves them."""
    count = 100
    crystals = [zoo.nacl()] * count
    still = Disturbed(Oracle(), crystals, RelaxOptions(task="relax"))
    true = Batch.from_crystals(crystals)
    by = 0.001 * torch.arange(1, count + 1).double()
    stretch = torch.eye(3).double() - by.flip(0)[:, None, None] * torch.tensor([1.0, 0, 0]).double().diag()
    frac = true.frac_coords.clone().reshape(count, 2, 3)
    frac[:, 0, 0] += 0.01 * by
    answers = replace(true, lattice=true.lattice @ stretch, frac_coords=frac.reshape(-1, 3))
    found = rest_limits(Oracle(answers), still, count, torch.device("cpu"))
    assert found["stretch"] == pytest.approx(1 / (1 - 0.099) - 1)
    half = 0.01 * 0.099 / 2 * true.lattice[0, 0].norm()  # two atoms, without their common shift
    assert found["displacement"] == pytest.approx(float(half), rel=1e-6)
    still.options = RelaxOptions()
    found = rest_limits(Oracle(answers), still, count, torch.device("cpu"))
    assert found == {"stretch": pytest.approx(1 / (1 - 0.096) - 1)}


def test_at_rest_nothing_is_moved_and_little_counts_as_alone() -> None:
    cells = np.array([[4.0, 5, 6, 90, 90, 90], [4, 5, 6, 90, 90, 90], [4, 5, 6, 90, 90, 90]])
    answer = cells * [[1, 1, 1.009, 1, 1, 1], [1, 0.985, 1.005, 1, 1, 1], [np.nan] * 6]
    found = changes_at_rest(Cells(cells, cells, answer))
    np.testing.assert_allclose(found["largest_change"], [0.9, 1.5, np.nan])
    np.testing.assert_array_equal(found["left_alone"], [100, 0, np.nan])


@pytest.mark.parametrize("task", ["denoise", "reconstruct", "relax"])
def test_a_stopped_run_ends_like_one_that_was_not(task: str, tmp_path) -> None:
    options = {**OPTIONS, "task": task, "averaging": "ema", "seed": 3, "checkpoint_seconds": 1e-6}
    facetry.train(small(positions=task == "relax"), splits(), out=tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="killed"), killed_at_save(3):
        facetry.train(small(positions=task == "relax"), splits(), out=tmp_path / "cut", **options)
    facetry.train(small(positions=task == "relax"), splits(), resume=tmp_path / "cut")
    for name in ("model.safetensors", "recipe.toml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ends = [Keeper(tmp_path / f).points()[-1] / "state.safetensors" for f in ("cut", "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_small_network_learns_to_undo_noise() -> None:
    cells = [zoo.po(), zoo.nacl(), zoo.mg(), zoo.si()]
    table = CrystalTable.from_crystals(cells)
    part = Dataset(table, np.zeros((4, 0)), [])
    data = Splits("cells", dict.fromkeys(("train", "val", "test"), part))
    torch.manual_seed(0)
    model = EMPNN(fields="ket_bra_1", layers=1, blocks=2, channels=16, k=6)
    options = {**OPTIONS, "steps": 60, "validate_every": 20, "drop_last": False}
    settings = {"learning_rate": 3e-3, "gradient_clip": 1.0, "noise": 0.1}
    last = facetry.train(model, data, **options, **settings).history[-1]
    assert last["val_length_gain"] > 0.15 * last["val_noisy_length_mae"]


@pytest.mark.parametrize("data", ["carbon24", "mp20", "perov5"])
@pytest.mark.parametrize("kind", ["", "-cpu"])
def test_cubes_can_grow_to_any_cell(data: str, kind: str) -> None:
    """Blocks that multiply lengths by exp(β/√3) at most go from 1 Å to 40; 1 + B and β = 0.5 end at 2.8."""
    model = load_recipe(f"empnn-reconstruct-{data}{kind}").model
    assert model["exponential"] == "exact"
    assert np.exp(model["limit"] / 3**0.5) ** model.get("blocks", 4) > 40


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"name": "perov5", "target": "heat_all"}}, "data.target: a model that relaxes"),
        ({"training": {"loss": "mse"}}, "training.loss: has no meaning .* set relax.loss"),
        (
            {"model": {"name": "lattice_ff"}, "training": {"precision": "bf16"}},
            "lattice_ff has no use for 'bf16'; take fp32 or fp64",
        ),
        ({"relax": {"task": "denoize"}}, "relax.task"),
        ({"relax": {"nois": 0.1}}, "unknown key 'relax.nois'; did you mean 'noise'"),
        ({"model": {"name": "schnet"}, "relax": {}}, "schnet does not relax crystals"),
    ],
)
def test_mistakes_in_recipes(tables: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe({"model": {"name": "empnn"}, "data": {"name": "perov5"}, **tables})


def test_parts_change_places_and_names_choose() -> None:
    plain = facetry.dataset("emt-alloys", target=[])
    swapped = facetry.dataset("emt-alloys", target=[], parts={"train": "val", "val": "train"})
    assert swapped.counts["train"] == plain.counts["val"]
    assert not swapped.official
    assert "train is val" in swapped.notes[-1]
    with pytest.raises(ValueError, match="can serve once"):
        facetry.dataset("emt-alloys", parts={"train": "val"})
    rest = facetry.dataset("emt-alloys", target=[], match="*-0")
    assert all(str(name).endswith("-0") for name in rest.train.names)
    assert rest.counts["train"] * 5 == plain.counts["train"]
    with pytest.raises(ValueError, match="no crystal"):
        facetry.dataset("emt-alloys", match="nothing")


def test_training_asks_for_crystals_and_evaluation_for_a_trained_model() -> None:
    empty = splits()
    empty.parts["train"] = empty.parts["train"].select([])
    with pytest.raises(TrainingError, match="no crystal in the training split"):
        facetry.train(small(), empty, **OPTIONS)
    with pytest.raises(ValueError, match="learned no task"):
        facetry.evaluate(small(), splits())
