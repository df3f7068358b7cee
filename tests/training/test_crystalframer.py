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


def test_the_recipes_build_what_they_name() -> None:
    from facetry.training.recipe import load_recipe
    from facetry.training.run import build_model

    for name in ("crystalformer-perov5", "crystalframer-perov5", "crystalframer-lightweight-perov5"):
        recipe = load_recipe(name)
        network = build_model(recipe, [Target(name="heat_all")])
        assert network.name == name.split("-")[0]
        assert (recipe.training.schedule, recipe.training.beta2) == ("inverse_sqrt", 0.98)
