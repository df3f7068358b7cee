"""Disordered crystals from end to end: predicted, embedded, trained on, or skipped with a reason."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import facetry
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.models import MODELS
from facetry.training import train
from tests import crystals as zoo
from tests.training.tiny import Target

SMALL = {"channels": 8, "heads": 2, "blocks": 1, "reach": 2.5}
ALLOY = Crystal(zoo.fcc(3.8), [[0, 0, 0]], [29], [{29: 0.75, 79: 0.25}], name="alloy", notes=["as read"])
VACANT = zoo.nacl().replace(occupancies=[0.9, 1.0], name="vacant")
NEAR = Crystal(
    np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.49], [0.5, 0.5, 0.51]], [38, 22, 22], [1.0, 0.5, 0.5], name="near"
)


def model(name: str = "crystalframer"):
    torch.manual_seed(0)
    network = MODELS[name](**SMALL)
    network.calibrate([zoo.nacl(), ALLOY])
    return network


def splits(disordered: bool = True) -> Splits:
    crystals = [zoo.random_crystal(seed) for seed in range(12)]
    if disordered:
        share = np.linspace(0.1, 0.9, 9).tolist()
        crystals += [
            Crystal(zoo.fcc(3.6 + x / 2), [[0, 0, 0]], [29], [{29: 1 - x, 46: x}], name=f"CuPd {x:.1f}")
            for x in share
        ]
    values = np.array([[c.volume / len(c)] for c in crystals])
    whole = Dataset(CrystalTable.from_crystals(crystals), values, [Target(name="volume", unit="Å^3")])
    rows = np.arange(len(crystals))
    cuts = {"train": rows[rows % 3 == 0], "val": rows[rows % 3 == 1], "test": rows[rows % 3 == 2]}
    return Splits("mixed", {name: whole.select(chosen) for name, chosen in cuts.items()})


@pytest.mark.parametrize("name", ["crystalformer", "crystalframer"])
def test_predictions_of_disordered_crystals_are_marked(name):
    plain, alloy, vacant, near = facetry.predict(model(name), [zoo.nacl(), ALLOY, VACANT, NEAR])
    assert [r.status for r in (plain, alloy, vacant, near)] == ["ok"] * 4
    assert plain.message == ""
    averaged = "averaged over species by occupancy"
    assert alloy.message == f"disordered (1 of 1 sites shared by several elements): {averaged}; as read"
    assert vacant.message == f"disordered (1 of 2 sites partly occupied): {averaged}"
    assert vacant.value != plain.value


def test_full_atoms_too_close_are_still_failures():
    clash = Crystal(
        np.eye(3) * 4,
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.51], [0.01, 0, 0]],
        [38, 22, 22, 8],
        [1.0, 0.5, 0.5, 1.0],
    )
    (result,) = facetry.predict(model(), [clash])
    assert result.status == "failed"
    assert result.message.startswith("sites 0 and 3 are 0.04 Å apart")


def test_other_models_skip_them_as_before():
    torch.manual_seed(0)
    network = MODELS["icomformer"](layers=1, channels=8, k=6)
    assert not network.accepts_disorder
    results = facetry.predict(network, [zoo.nacl(), ALLOY])
    assert [r.status for r in results] == ["ok", "skipped"]
    assert results[1].message.endswith("this model needs an ordered crystal; pick one ordering first")


def test_atoms_of_a_disordered_crystal_are_embedded():
    found = facetry.embed(model(), [ALLOY.supercell(2), NEAR], atoms=True)
    assert [a.shape for a in found.atoms] == [(8, 8), (3, 8)]
    assert np.isfinite(found.vectors).all()


@pytest.mark.parametrize("stored", [True, False])
def test_training_on_disordered_crystals(stored, tmp_path):
    network = MODELS["crystalframer"](**SMALL)
    options = {"epochs": 2, "batch_size": 4, "store_graphs": stored, "seed": 0, "verbose": False}
    found = train(network, splits(), out=tmp_path / "run", **options)
    card = found.model.card
    assert card.data["train"] == 7
    assert card.data["disordered"] == 3
    assert 46 in card.elements
    scores = facetry.evaluate(tmp_path / "run", splits())
    assert (scores.failed, scores.targets[0].count) == (0, 7)
    (alloy,) = facetry.predict(tmp_path / "run", [ALLOY])
    assert "only" not in alloy.message
    assert np.isfinite(alloy.value)


def test_a_model_that_never_saw_disorder_says_so(tmp_path):
    options = {"epochs": 1, "batch_size": 4, "seed": 0, "verbose": False}
    found = train(MODELS["crystalformer"](**SMALL), splits(disordered=False), **options)
    (result,) = facetry.predict(found.model, [VACANT])
    assert "trained on ordered crystals only; disordered (1 of 2 sites partly occupied)" in result.message
    assert result.in_domain is False


@pytest.mark.parametrize("stored", [True, False])
def test_other_models_train_without_them_and_list_them(stored, tmp_path, capsys):
    network = MODELS["icomformer"](layers=1, channels=8, k=6)
    options = {"epochs": 1, "batch_size": 4, "seed": 0, "verbose": True, "store_graphs": stored}
    found = train(network, splits(), out=tmp_path / "run", **options)
    assert (
        "3 of 7 crystals of train cannot be used and are left out; the first: disordered"
        in capsys.readouterr().err
    )
    assert found.model.card.data["train"] == 4
    assert 46 not in found.model.card.elements
    skipped = json.loads((tmp_path / "run" / "receipt.json").read_text())["skipped"]
    assert [name for name, _ in skipped["train"]] == ["CuPd 0.1", "CuPd 0.4", "CuPd 0.7"]


def test_own_folder_of_disordered_files_and_the_zoo_in_a_shell(data_folder, tmp_path, capsys):
    """Trained on mixed CIFs of one's own, every disordered file of the zoo gets a value."""
    own = tmp_path / "own"
    own.mkdir()
    lines = ["file,volume"]
    for i, share in enumerate(np.linspace(0.05, 0.95, 12)):
        alloy = Crystal(zoo.fcc(3.6 + share / 2), [[0, 0, 0]], [29], [{29: 1 - share, 79: share}])
        alloy.write(own / f"{i}.cif")
        lines.append(f"{i}.cif,{alloy.volume:.4f}")
    (own / "targets.csv").write_text("\n".join(lines) + "\n")
    settings = {"training.epochs": 2, "training.batch_size": 4}
    settings |= {f"model.{key}": value for key, value in SMALL.items()}
    changes = [f"--set={key}={value}" for key, value in settings.items()]
    folder = tmp_path / "run"
    call = ["train", "--model", "crystalframer", "--data", str(own), "--target", "volume", "-o", str(folder)]
    assert run([*call, "-q", *changes]) == 0
    assert run(["evaluate", str(folder), "--split", "all"]) == 0
    out = tmp_path / "out.csv"
    assert run(["predict", str(folder), str(data_folder / "cif-zoo"), "-o", str(out)]) == 3
    with open(out, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    disordered = [row for row in rows if "disordered (" in row["message"]]
    assert len(disordered) == 19
    assert {row["status"] for row in disordered} == {"ok"}
    assert all("averaged over species by occupancy" in row["message"] for row in disordered)
    assert {row["status"] for row in rows} == {"ok", "failed"}
    for row in rows:
        assert (row["value"] != "") == (row["status"] == "ok")
        assert row["value"] != "nan"
