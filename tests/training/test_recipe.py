from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tests.training.tiny  # noqa: F401  (registers the model "tiny")
from facetry import data
from facetry.training.recipe import (
    Recipe,
    RecipeError,
    apply_overrides,
    load_recipe,
    make_options,
    make_recipe,
    recipe_names,
)

GOOD = '[model]\nname = "tiny"\nchannels = 4\n[data]\nname = "perov5"\n[training]\nepochs = 2\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_read_and_write_again(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD), ["training.learning_rate=5e-4", "data.target=heat_all"])
    assert recipe.training.epochs == 2
    assert recipe.training.learning_rate == 5e-4
    assert recipe.data.target == "heat_all"
    text = recipe.to_toml()
    assert make_recipe(tomllib.loads(text)) == recipe
    for name in ("batch_size", "precision", "patience", "weight_decay"):  # complete: unset keys as comments
        assert name in text


def test_a_limit_of_every_part_is_written_where_it_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD), ["data.limit={train=9, val=4}"])
    assert recipe.data.limit == {"train": 9, "val": 4}
    assert make_recipe(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs", "epoch"), "unknown key 'training.epoch'; did you mean 'epochs'?"),
        (("epochs = 2", "epochs = 0"), "training.epochs: expected at least 1, got 0"),
        (("epochs = 2", "epochs = 'x'"), "training.epochs: expected a whole number, got 'x'"),
        (("epochs = 2", "epochs = 2.5"), "training.epochs: expected a whole number, got 2.5"),
        (("epochs = 2", "lr = 2"), "unknown key 'training.lr'; did you mean 'learning_rate'?"),
        (("epochs = 2", "learning_rate = -1"), "training.learning_rate: expected more than 0, got -1"),
        (("epochs = 2", "beta2 = 1.0"), "training.beta2: expected less than 1"),
        (("epochs = 2", "drop_last = 'x'"), "training.drop_last: expected true or false, got 'x'"),
        (
            ("epochs = 2", 'schedule = "onecicle"'),
            "schedule: expected 'onecycle', 'polynomial', 'inverse_sqrt' or 'constant', got 'onecicle'; did"
            " you mean 'onecycle'?",
        ),
        (
            ('name = "perov5"', 'name = "perov5"\nlimit = "few"'),
            "data.limit: expected crystals of train and val, or one number for each of train, val, test",
        ),
        (("channels = 4", "channels = -4"), "model.channels: expected a number above 0, got -4"),
        (('name = "tiny"\n', ""), "model.name is missing; add it: one of "),
        (("[model]", "[modell]"), "model is missing; add a table [model] with a name, such as name = "),
        (("epochs = 2", "epochs = 2\nsteps = 3"), "training: give epochs or steps, not both"),
        (("[training]", "[trainning]"), "unknown key 'trainning'; did you mean 'training'?"),
        (("channels", "chanels"), "unknown key 'model.chanels'; did you mean 'channels'?"),
        (('"tiny"', '"tyny"'), "model.name: unknown model 'tyny'; did you mean 'tiny'?"),
        (("channels = 4", "outputs = 4"), "model.outputs follows from data.target; leave it out"),
        (
            ('name = "perov5"', 'nam = "perov5"'),
            "data.name is missing; add it: a named set (`facetry dataset list`)",
        ),
        (
            ('name = "perov5"', 'name = "perov5"\ntargets = "a"'),
            "unknown key 'data.targets'; did you mean 'target'?",
        ),
        (("[data]", "[data"), "not valid TOML"),
    ],
)
def test_mistakes_take_one_line_and_name_the_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = written(
        tmp_path, GOOD.replace(*change, 1) if change[0] != 'name = "perov5"' else GOOD.replace(*change)
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(tmp_path / "none.toml")


def test_overrides() -> None:
    tables = {"training": {"epochs": 2}}
    changed = apply_overrides(
        tables,
        ["training.steps=7", "data.name=mp20", "model.k=16", 'data.target=["a", "b"]', "data.limit=none"],
    )
    assert changed == {
        "training": {"steps": 7},
        "data": {"name": "mp20", "target": ["a", "b"]},
        "model": {"k": 16},
    }
    assert tables == {"training": {"epochs": 2}}
    deep = {"data": {"limit": {"train": 5, "val": 2}}}
    inside = apply_overrides(deep, ["data.limit.train=9", "data.limit.val=none", "data.tasks.a=binary"])
    assert inside == {"data": {"limit": {"train": 9}, "tasks": {"a": "binary"}}}
    assert deep == {"data": {"limit": {"train": 5, "val": 2}}}
    for wrong in ("training.epochs", "epochs=3", "=3"):
        with pytest.raises(RecipeError, match="expected TABLE\\.KEY=VALUE"):
            apply_overrides({}, [wrong])
    with pytest.raises(RecipeError, match="unknown table"):
        apply_overrides({}, ["relaks.steps=3"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.channels=x", "model.channels: expected a whole number, got 'x'"),
        ("model.channels=1.5", "model.channels: expected a whole number, got 1.5"),
        ("model.construction=3", "model.construction: expected a word, got 3"),
    ],
)
def test_kinds_of_model_options(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("demo", [override])


def test_options_from_keywords() -> None:
    assert make_options({"epochs": 3}).epochs == 3
    with pytest.raises(RecipeError, match=r"unknown key 'training.batchsize'; did you mean 'batch_size'\?"):
        make_options({"batchsize": 3})


def test_recipes_that_ship_are_valid() -> None:
    assert "demo" in recipe_names()
    for name in recipe_names():
        recipe = load_recipe(name)
        assert isinstance(recipe, Recipe)
        known = data.info(recipe.data.name).targets
        of_values = recipe.relax is None and recipe.generate is None
        assert recipe.data.target in known if of_values else recipe.data.target is None
        length = recipe.training.epochs or recipe.training.steps
        assert length is not None, f"{name}: says how long it trains"


def test_recipes_need_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, facetry.training.recipe, facetry.training as t; t.apply_overrides; "
        "print([m for m in ('torch', 'lightning', 'ase', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
