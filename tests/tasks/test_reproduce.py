"""Published rows: each has a valid recipe; runs go on, are compared, and leave a receipt of both numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facetry.cli import run
from facetry.tasks import published as module
from facetry.tasks.published import Row, Search, load_rows, not_at_hand, ours
from facetry.tasks.reproduce import MEASURES, planned, reproduce
from facetry.training.recipe import RecipeError, load_recipe

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


def test_every_row_has_its_data(data_folder, monkeypatch):
    """Of what is at hand, each part that a row needs has crystals, and labels where there is a target."""
    from facetry.training.checks import check_divided, labelled_parts, whole_parts
    from facetry.training.run import load_data

    monkeypatch.setenv("FACETRY_DATA", str(data_folder))
    seen = {}
    for chosen in ROWS.values():
        for source in filter(None, (chosen.recipe, chosen.short)):
            recipe = load_recipe(source, [*chosen.overrides, *(["data.fold=1"] if chosen.folds else [])])
            seen.setdefault(recipe.data.model_dump_json(), (chosen.name, recipe))
    for name, recipe in seen.values():
        data = load_data(recipe)
        check_divided(data)
        parts = (whole_parts if recipe.relax or recipe.generate else labelled_parts)(data, recipe)
        assert {"train", "val", "test"} <= set(parts), name


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


ENERGY = (
    "data.name=emt-alloys", "data.limit={ train = 40, val = 10 }", "model.channels=8", "model.angular=4",
    "training.steps=4", "training.batch_size=8", "generate.validate_every=2",
)  # fmt: skip


def found_row(**changes) -> dict:
    """Changes that make the row one of structures from formulas: an energy on a few alloys, short chains."""
    search = Search(count=3, short_crystals=2, options={"steps": 12}, beside=["rs", "template"])
    return {
        "published": {"match_rate": 50.0, "rmse": 0.1}, "units": {"match_rate": "%", "rmse": ""},
        "recipe": "continuousp-angular-perov5-cpu", "overrides": ENERGY, "measure": "found", "search": search,
    } | changes  # fmt: skip


def test_structures_from_formulas(toy, monkeypatch):
    """Train, draw, match, templates and random search beside; what is there is not made again."""
    pytest.importorskip("pymatgen.core")
    from facetry.tasks import rediscover

    wanted = toy(**found_row())
    said = []
    asked = {"crystals": 3, "count": 2, "verbose": False, "progress": lambda *told: said.append(told)}
    found = reproduce(wanted.name, **asked)
    folder = Path("runs/toy-row")
    inside = {path.name for path in folder.iterdir()}
    assert inside == {"run", "found-3x2", "rs-3x2", "template-3x2", "receipt.json"}
    assert {what for what, _, _ in said} == {"steps of chains", "pairs matched", "crystals asked for"}
    content = json.loads((folder / "receipt.json").read_text())
    score = content["found"]["scores"][-2]
    assert (score["k"], score["valid_only"]) == (2, False)
    assert content["metrics"]["match_rate"]["ours"] == pytest.approx(100 * score["match_rate"])
    assert content["metrics"]["match_rate"]["published"] == 50
    assert content["found"]["method"]["sampler"]["steps"] == 12
    assert content["found"]["data"]["part"] == content["beside"]["rs"]["data"]["part"]
    assert content["beside"]["template"]["counts"]["samples"] > 0
    assert "2 of 3 candidates" in found.shortened
    assert any("test crystals, drawn at random" in reason for reason in found.shortened)
    assert "beside it, templates from the training part: match_rate" in str(found)
    # again: nothing is drawn; with other numbers the training stays
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/receipt.json")}
    monkeypatch.setattr(rediscover, "rediscover", None)
    assert reproduce(wanted.name, **asked).numbers == found.numbers
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/receipt.json")}


def test_a_predictor_as_the_energy_of_a_method(toy, monkeypatch):
    """Killed while structures are made, the command goes on with what is made."""
    pytest.importorskip("pymatgen.core")
    from facetry.tasks import rediscover
    from facetry.tasks.generate import Maker

    search = Search(method="rs", count=2, options={"draws": 4, "volume_spread": 0.2})
    wanted = toy(**found_row(recipe="demo", overrides=row().overrides, search=search))
    monkeypatch.setattr(rediscover, "_BLOCK", 2)
    original, made = Maker.over, []

    def over(self, *args):
        made.append(self)
        if len(made) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Maker, "over", over)
    with pytest.raises(KeyboardInterrupt):
        reproduce(wanted.name, crystals=5, verbose=False)
    found = reproduce(wanted.name, crystals=5, verbose=False)
    assert len(made) == 4 + 3  # the first two crystals are not asked for again
    receipt = json.loads(Path("runs/toy-row/found-5x2/receipt.json").read_text())
    assert receipt["starts"] == 2
    assert receipt["counts"]["samples"] == 10
    assert receipt["method"]["draws"] == 4
    assert receipt["method"]["options"] == {"volume_spread": 0.2}
    assert receipt["method"]["trained"]["model"] == "icomformer"
    assert not Path("runs/toy-row/found-5x2/resume").exists()
    assert found.beside[0].startswith("of candidates that could be real")


def test_plan_trains_nothing(toy, capsys):
    wanted = toy(
        **found_row(short="continuousp-angular-mp20-cpu", short_note="another model", budget="a minute")
    )
    assert planned(wanted.name).crystals is None
    short = planned(wanted.name, short=True, overrides=["training.seed=1"], count=1)
    assert (short.crystals, short.count, short.source) == (2, 1, "continuousp-angular-mp20-cpu")
    assert short.changes == (
        "the short recipe continuousp-angular-mp20-cpu", "another model", "changed: training.seed=1",
        "1 of 3 candidates",
    )  # fmt: skip
    assert run(["reproduce", wanted.name, "--plan"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for part in (
        "cost a minute", "published match_rate 50 %, rmse 0.1", "nothing there yet",
        "4 steps of 8 crystals", "3 candidates for each of all test crystals", "steps = 12",
    ):  # fmt: skip
        assert part in words
    assert not Path("runs").exists()
    assert run(["reproduce", wanted.name, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["search"]["count"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ecn-perov5-cgcn"], "did you mean 'ecn-perov5-cgcnn'"),
        (["ecn-perov5"], "has 3 published rows; choose one: ecn-perov5-cgcnn, ecn-perov5-megnet, "),
        (["nothing at all"], "`facetry reproduce list` shows them"),
        (["comformer-jdft2d-icomformer", "--short"], "no short recipe"),
        (["list", "--short"], "takes no other option"),
        (["list", "--plan"], "takes no other option"),
        (["ecn-perov5-cgcnn", "--crystals", "5"], "makes no structures from formulas"),
        (["ecn-perov5-cgcnn", "-n", "5"], "measure less with --set data.limit.test=100"),
        (["ecn-perov5-cgcnn", "--plan", "--set", "training.epoch=3"], "did you mean 'epochs'?"),
    ],
)  # fmt: skip
def test_mistakes(words, said, capsys):
    assert run(["reproduce", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_list(columns, capsys, monkeypatch):
    assert run(["reproduce", "list", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(ROWS)
    assert rows["ecn-perov5-cgcnn"]["ours"][0]["shortened"]
    assert rows["empnn-denoise-mp20-k1"]["comparable"] is False
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["reproduce", "list"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= max(columns, 99)
    assert "{" not in text
    words = " ".join(text.split())
    for row in ROWS.values():
        assert f"{row.name} {row.numbers()}" in words
        assert f"{row.what} {row.table} of {row.paper} data: " in words
        assert f": {row.budget} " in words
    for paper, reasons in not_at_hand().items():
        assert f"Not listed of {paper}: {'; '.join(reasons)}." in words
    assert "ecn-perov5-cgcnn 0.047 eV/cell 0.04289 short 72 min" in words
