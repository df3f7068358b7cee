"""Every model: to a folder and back, in any precision, on one-atom cells, on any number of outputs."""

from __future__ import annotations

import json

import pytest
import torch

import facetry
from facetry.models import MODELS, ModelCard, Target, of_job
from facetry.training.checkpoint import load_model, save_model
from tests import crystals as zoo
from tests.contract.test_symmetry import make, predict

CRYSTALS = [zoo.po(), zoo.random_crystal(1), zoo.nacl(), zoo.tellurium()]


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_to_a_folder_and_back(name, tmp_path):
    model = make(name)
    model.card = ModelCard(
        model=name,
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="y", unit="eV", mean=1.5, std=2.0)],
    )
    save_model(model, tmp_path)
    again = load_model(tmp_path).to(torch.float64)
    assert (predict(model, CRYSTALS) == predict(again, CRYSTALS)).all()
    assert again.options == model.options
    assert json.loads((tmp_path / "model.json").read_text())["graph"] == json.loads(
        json.dumps(model.graph.describe())
    )


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_options_are_json(name):
    model = make(name)
    assert json.loads(json.dumps(model.options)) == model.options


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_several_outputs(name):
    model = make(name, outputs=3)
    with torch.no_grad():
        assert model(model.graph(CRYSTALS)).shape == (4, 3)
        assert model.embed(model.graph(CRYSTALS)).shape[0] == 4


@pytest.mark.parametrize("name", sorted(of_job("predict")))
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_step_in_mixed_precision(name, precision):
    model = make(name, torch.float32).train()
    batch = model.training_batch(model.graph(CRYSTALS), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        loss = model(batch).float().square().mean()
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_untrained_models_predict_in_standardised_units(name):
    model = make(name, torch.float32, amplify=1.0)
    results = facetry.predict(model, CRYSTALS)
    assert [r.status for r in results] == ["ok"] * 4
    assert results[0].value == pytest.approx(float(predict(model, CRYSTALS[:1])[0]), abs=1e-5)
    assert results[0].lower is None


def test_every_listed_name_is_the_name_of_its_class():
    assert all(cls.name == name for name, cls in MODELS.items())
