"""Published rows: each has a valid recipe; runs go on, are compared, and leave a receipt of both numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facetry.cli import run
from facetry.training import reproduce as module
from facetry.training.recipe import RecipeError, load_recipe
from facetry.training.reproduce import MEASURES, Row, load_rows, ours, reproduce

ROWS = load_rows()


def row(**changes) -> Row:
    """A row of three epochs on a few alloys."""
    known = {
        "name": "toy-row", "paper": "Nobody, 1999", "table": "Table 1", "what": "energy of alloys",
        "published": {"mae": 0.5, "rmse": 0.7}, "spread": {}, "units": {"mae": "eV/atom", "rmse": "eV/atom"},
        "recipe": "demo", "short": "",
        "overrides": (
            "model.channels=8", "model.layers=1", "data.limit.train=60", "data.limit.val=20",
            "data.limit.test=20", "training.epochs=2", "training.published_epochs=10",
        ),
        "folds": 0, "measure": "test", "data": "complete", "comparable": True, "budget": "s", "note": "",
    }  # fmt: skip
    return Row(**known | changes)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    def put(**changes) -> Row:
        made = row(**changes)
        monkeypatch.setattr(module, "load_rows", lambda: {made.name: made})
        return made

    monkeypatch.chdir(tmp_path)
    return put


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_recipe_that_holds(name):
    chosen = ROWS[name]
    for source in filter(None, (chosen.recipe, chosen.short)):
        overrides = [*chosen.overrides, *(["data.fold=1"] if chosen.folds else [])]
        load_recipe(source, overrides)
    assert set(chosen.published) == set(chosen.units)
    assert chosen.measure in MEASURES
    assert chosen.data
    assert chosen.budget
    assert chosen.comparable or "at hand" in chosen.data


def test_our_numbers_belong_to_rows():
    assert ours()
    assert set(ours()) <= set(ROWS)
    for name, runs in ours().items():
        for entry in runs:
            assert set(ROWS[name].published) <= set(entry["metrics"])


def test_train_compare_receipt(toy):
    wanted = toy(short="demo")
    found = reproduce(wanted.name, short=True, overrides=["training.batch_size=16"], verbose=False)
    assert found.folder == Path("runs/toy-row")
    content = json.loads((found.folder / "receipt.json").read_text())
    inner = json.loads((found.folder / "run" / "receipt.json").read_text())
    mine = inner["metrics"]["test"][0]["mae"]
    assert content["metrics"]["mae"]["ours"] == mine[0] == found.numbers["mae"][0]
    assert content["metrics"]["mae"]["published"] == 0.5
    assert content["metrics"]["mae"]["difference"] == pytest.approx(mine[0] - 0.5)
    assert content["runs"] == [inner]
    assert content["shortened"][:2] == ["the short recipe demo", "changed: training.batch_size=16"]
    assert any("of 10 published epochs" in reason for reason in content["shortened"])
    assert "published 0.5 eV/atom, ours" in str(found)
    # again: nothing is trained, the numbers stay
    before = (found.folder / "run" / "receipt.json").stat().st_mtime_ns
    assert reproduce(wanted.name, short=True, overrides=["training.batch_size=16"]).numbers == found.numbers
    assert (found.folder / "run" / "receipt.json").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match=r"holds a run with training\.batch_size = 16, asked for is 64"):
        reproduce(wanted.name, short=True, overrides=["training.batch_size=64"])


def test_a_killed_run_goes_on(toy, monkeypatch):
    wanted = toy()
    from facetry.training import run as runs

    said = []
    original = runs.Training._epoch_ended

    def stop(self, fitting, chosen):
        original(self, fitting, chosen)
        said.append(fitting.progress.epoch)
        if len(said) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Training, "_epoch_ended", stop)
    with pytest.raises(KeyboardInterrupt):
        reproduce(wanted.name, verbose=False)
    assert not Path("runs/toy-row/receipt.json").exists()
    found = reproduce(wanted.name, verbose=False)
    inner = json.loads((found.folder / "run" / "receipt.json").read_text())
    assert inner["starts"] == 2
    assert inner["epochs"] == 2


def test_folds_are_averaged(toy, data_folder, monkeypatch):
    monkeypatch.setenv("FACETRY_DATA", str(data_folder))
    short = ("training.epochs=1", "model.channels=8", "model.layers=1")
    short += ("data.limit.train=20", "data.limit.val=10", "data.limit.test=10")
    wanted = toy(recipe="icomformer-jdft2d", overrides=short, folds=2)
    found = reproduce(wanted.name, "here", verbose=False)
    inner = [json.loads(Path(f"here/fold-{i}/receipt.json").read_text()) for i in range(2)]
    values = [r["metrics"]["test"][0]["mae"][0] for r in inner]
    assert found.numbers["mae"][0] == pytest.approx(sum(values) / 2)
    assert [r["data"]["fold"] for r in inner] == [0, 1]
    assert json.loads(Path("here/receipt.json").read_text())["interval"] == "value ± deviation over folds"


def test_mistakes(capsys):
    assert run(["reproduce", "ecn-perov5-cgcn"]) == 2
    assert "did you mean 'ecn-perov5-cgcnn'" in capsys.readouterr().err
    assert run(["reproduce", "comformer-jdft2d-icomformer", "--short"]) == 2
    assert "no short recipe" in capsys.readouterr().err
    assert run(["reproduce", "list", "--short"]) == 2
    assert "takes no" in capsys.readouterr().err


def test_list(capsys):
    assert run(["reproduce", "list", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(ROWS)
    assert rows["ecn-perov5-cgcnn"]["ours"][0]["shortened"]
    assert rows["empnn-denoise-mp20-k1"]["comparable"] is False
    assert run(["reproduce", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ROWS)
