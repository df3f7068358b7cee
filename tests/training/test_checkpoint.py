from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import facetry
from facetry.card import ModelCard, Target
from facetry.training.checkpoint import ModelError, load, load_model, save_model
from tests.training.tiny import Tiny, tiny_data, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model(channels=4).eval()
    model.card = ModelCard(
        model="tiny",
        options=model.options,
        graph={},
        targets=[Target(name="gap", unit="eV", mean=1, std=2)],
        elements=[1, 8],
        version=facetry.__version__,
    )
    model.domain_reference = torch.arange(10.0).reshape(2, 5)
    return save_model(model, tmp_path / "model")


def failure(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(folder: Path) -> None:
    before = tiny_model(channels=4).eval()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = load(folder)
    assert torch.equal(torch.rand(1), expected), "loading must not draw from the caller's random stream"
    assert not model.training
    assert isinstance(model, Tiny)
    assert model.card is not None
    assert model.card.targets[0].std == 2
    assert torch.equal(model.domain_reference, torch.arange(10.0).reshape(2, 5))
    batch = model.graph(tiny_data(5).train.crystals)
    assert torch.equal(model(batch), before(batch))
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_double_precision_is_kept(folder: Path, tmp_path: Path) -> None:
    model = load(folder).double()
    again = load(save_model(model, tmp_path / "double"))
    assert again.dtype == torch.float64


def test_same_weights_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = save_model(load(folder), tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_model_without_card(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no card"):
        save_model(tiny_model(), tmp_path)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    message = failure(folder)
    assert str(path) in message
    assert "truncated or damaged" in message


def test_changed_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["first.weight"] = torch.zeros(4, 7)
    save_file(tensors, folder / "model.safetensors")
    assert "expected tensor 'first.weight' of shape (4, 5), found (4, 7)" in failure(folder)


def test_missing_and_extra_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop("head.weight")
    save_file(tensors, folder / "model.safetensors")
    assert "expected tensor 'head.weight' (1, 4), found none" in failure(folder)
    save_file(tensors | {"head.weight": weight, "tail": weight.clone()}, folder / "model.safetensors")
    assert "no place for, such as 'tail'" in failure(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "found no such file" in failure(folder)
    (folder / "model.json").unlink()
    assert "found no model.json" in failure(folder)


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_card(folder: Path) -> None:
    whole = (folder / "model.json").read_text()
    (folder / "model.json").write_text(whole[:40])
    assert "expected JSON" in failure(folder)
    (folder / "model.json").write_text("[1, 2]")
    assert "the whole file" in failure(folder)
    (folder / "model.json").write_text(whole)
    rewrite(folder, targets=3)
    assert "targets" in failure(folder)


def test_unknown_class_and_options(folder: Path) -> None:
    rewrite(folder, model="tinny")
    assert "unknown model class 'tinny'; did you mean 'tiny'?" in failure(folder)
    rewrite(folder, model="tiny", options={"chanels": 4})
    assert "options do not fit tiny" in failure(folder)
    rewrite(folder, options={"channels": 6})
    assert "expected tensor 'element.weight' of shape (120, 6), found (120, 4)" in failure(folder)


@pytest.mark.parametrize("changes", [{"model": "future"}, {"options": {"wings": 2}}, {"feathers": 2}])
def test_newer_version(folder: Path, changes: dict) -> None:
    rewrite(folder, version="99.1.0", **changes)
    assert "written by facetry 99.1.0" in failure(folder)
    assert "upgrade facetry" in failure(folder)


def test_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "runs" / "mine")
    assert load("mine").card is not None
    with pytest.raises(ModelError, match="no-such-model: no such folder, nor runs/no-such-model"):
        load("no-such-model")
    with pytest.raises(ModelError, match="this is a file"):
        load(folder / "model.json")
