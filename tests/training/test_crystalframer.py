"""The models with calibration and drawn frames through training: resumed, averaged, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import facetry
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.models import MODELS
from facetry.training import train
from facetry.training.batches import Order, draw_seed
from tests import crystals as zoo
from tests.training.tiny import Target

OPTIONS = {
    "epochs": 4,
    "batch_size": 5,
    "learning_rate": 5e-4,
    "schedule": "inverse_sqrt",
    "beta2": 0.98,
    "gradient_clip": 1.0,
    "averaging": "mean",
    "averaging_epochs": 2,
    "seed": 1,
}


def data() -> Splits:
    crystals = [*zoo.symmetric()[:15], *(zoo.random_crystal(seed) for seed in range(12))]
    values = torch.tensor([[float(c.volume / len(c))] for c in crystals]).double().numpy()
    whole = Dataset(CrystalTable.from_crystals(crystals), values, [Target(name="volume", unit="Å^3")])
    order = list(range(0, 27, 3)) + list(range(1, 27, 3)) + list(range(2, 27, 3))
    cuts = {"train": order[:17], "val": order[17:22], "test": order[22:]}
    return Splits("zoo", {name: whole.select(rows) for name, rows in cuts.items()})


def model(name: str, channels: int = 16):
    torch.manual_seed(0)
    return MODELS[name](channels=channels, heads=2, blocks=2)


@pytest.mark.parametrize("name", ["crystalformer", "crystalframer"])
def test_a_stopped_run_ends_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    splits = data()
    whole = train(model(name), splits, out=tmp_path / "whole", verbose=False, **OPTIONS)
    steps = 0

    def stop(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt

    broken = model(name)
    hook = broken.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(broken, splits, out=tmp_path / "b", verbose=False, checkpoint_seconds=1e-6, **OPTIONS)
    hook.remove()
    again = train(model(name), splits, resume=tmp_path / "b", verbose=False)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key]), key
    loaded = facetry.load(tmp_path / "b")
    assert loaded.calibrated
    values = [[p.value for p in facetry.predict(m, splits.test.crystals)] for m in (whole.model, loaded)]
    assert values[0] == values[1]


@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-12), ("fp32", 1e-6)])
def test_rates_and_mean_weights_of_a_run(precision: str, bound: float, tmp_path: Path) -> None:
    """The training of the papers in a loop of a few lines: inverse square root, clipped gradients, L1 on
    standardised values, the plain mean of the weights after each step of the last epochs at a frozen rate."""
    splits, options = data(), {**OPTIONS, "decay_steps": 7, "keep": "last", "precision": precision}
    run = train(model("crystalframer"), splits, out=tmp_path, verbose=False, **options)
    network = model("crystalframer").to(torch.float64 if precision == "fp64" else torch.float32).train()
    values = torch.from_numpy(splits.train.targets[:, 0].astype(float))
    labels = ((values - values.mean()) / values.std(correction=0)).to(network.dtype)
    order = Order(len(splits.train), 5, True, 1)
    steps, first = 4 * order.steps_per_epoch, 2 * order.steps_per_epoch
    parameters = list(network.named_parameters())
    groups = [
        {"params": [p for n, p in parameters if "bias" not in n], "weight_decay": 1e-5},
        {"params": [p for n, p in parameters if "bias" in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    crystals, states, rates = list(splits.train.crystals), [], []
    for step in range(steps):
        chosen = order.batch(*divmod(step, order.steps_per_epoch))
        rates.append(5e-4 * (7 / (7 + min(step, first - 1))) ** 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        generator = torch.Generator().manual_seed(draw_seed(1, step, 0, 0))
        batch = network.training_batch(network.graph([crystals[i] for i in chosen]), generator)
        loss = (network(batch)[:, 0] - labels[torch.from_numpy(chosen)]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step >= first:
            states.append({k: v.double().clone() for k, v in network.state_dict().items()})
    ends = rates[order.steps_per_epoch - 1 :: order.steps_per_epoch]
    assert [row["learning_rate"] for row in run.history] == pytest.approx(ends, rel=1e-15)
    for key, tensor in run.model.state_dict().items():
        mean = torch.stack([state[key] for state in states]).mean(0)
        assert float((tensor - mean).abs().max()) <= bound, key


def test_the_recipes_build_what_they_name() -> None:
    from facetry.training.recipe import load_recipe
    from facetry.training.run import build_model

    for name in ("crystalformer-perov5", "crystalframer-perov5", "crystalframer-lightweight-perov5"):
        recipe = load_recipe(name)
        network = build_model(recipe, [Target(name="heat_all")])
        assert network.name == name.split("-")[0]
        assert (recipe.training.schedule, recipe.training.beta2) == ("inverse_sqrt", 0.98)
