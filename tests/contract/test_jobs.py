"""Models of one job given to the verbs of another, and what models of all jobs share."""

from __future__ import annotations

import json

import pytest
import torch

import facetry
from facetry.models import MODELS, EnergyModel, LatticeModel, ModelCard, PropertyModel, of_job
from facetry.training.checkpoint import load_model, save_model
from tests import crystals as zoo

CRYSTALS = [zoo.po(), zoo.random_crystal(1), zoo.nacl(), zoo.tellurium()]


def small(name: str) -> LatticeModel:
    torch.manual_seed(3)
    return MODELS[name](channels=16, layers=1).eval()


def saved(name, folder):
    model = small(name)
    model.card = ModelCard(model=name, options=model.options, graph=model.graph.describe(), targets=[])
    save_model(model, folder)
    return model


def test_every_model_has_a_job():
    parents = {"predict": PropertyModel, "relax": LatticeModel, "generate": EnergyModel}
    for job, parent in parents.items():
        assert of_job(job)
        assert all(issubclass(model, parent) for model in of_job(job).values())
    assert {"empnn", "lattice_ff"} <= set(of_job("relax"))


@pytest.mark.parametrize("name", sorted(of_job("relax")))
def test_lattice_models_to_a_folder_and_back(name, tmp_path):
    model = saved(name, tmp_path)
    again = load_model(tmp_path)
    assert again.options == model.options == json.loads(json.dumps(model.options))
    with torch.no_grad():
        one, two = (m(m.graph(CRYSTALS)).lattices[-1] for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{}, {"channels": 64, "layers": 6, "head_layers": 4}])
def test_energies_to_a_folder_and_back(options, tmp_path):
    torch.manual_seed(3)
    model = MODELS["continuousp"](**options).eval()
    model.card = ModelCard(model=model.name, options=model.options, graph=model.graph.describe(), targets=[])
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    with torch.no_grad():
        one, two = (m(m.graph(CRYSTALS)) for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", sorted(of_job("relax")))
def test_properties_of_a_lattice_model(name, tmp_path):
    saved(name, tmp_path)
    with pytest.raises(ValueError, match=f"{name}: expected a model that predicts properties"):
        facetry.predict(tmp_path, CRYSTALS)
    with pytest.raises(ValueError, match="facetry relax"):
        facetry.embed(str(tmp_path), CRYSTALS)


@pytest.mark.parametrize("name", sorted(of_job("relax")))
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_step_in_mixed_precision(name, precision):
    model = small(name).train()
    batch = model.graph(CRYSTALS)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        relaxed = model(batch)
    loss = relaxed.lattices[-1].square().mean()
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    assert relaxed.lattices[0] is batch.lattice
    assert relaxed.frac_coords[0] is batch.frac_coords
    assert relaxed.lattices[-1].dtype == torch.float64
