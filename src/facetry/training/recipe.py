"""A recipe: one TOML file with the tables `model`, `data` and `training`.

    [model]                [data]                  [training]
    name = "icomformer"    name = "perov5"         epochs = 500
    k = 25                 target = "heat_all"     learning_rate = 1e-3

Every key is checked: an unknown one fails and the nearest is named. Recipes that ship are found by name.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_FREE_ARGUMENTS = ("self", "outputs")  # `outputs` follows from the targets


class RecipeError(ValueError):
    """A recipe that cannot be used; one line that names the key."""


class TrainingError(RuntimeError):
    """A training that cannot start or go on; one line with what to do."""


class DataOptions(BaseModel):
    """Which crystals and which of their numbers."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="a named set, or the path of a folder, table or archive")
    target: str | list[str] | None = Field(
        default=None, description="target column(s); None: the set's first"
    )
    limit: int | dict[str, int] | None = Field(
        default=None, description="crystals of train and val, or one number for each of train, val, test"
    )
    fold: int | None = Field(default=None, ge=0, description="which official fold, from 0")
    divide: str | None = Field(
        default=None, description="named set: the official file that trains and validates, 'val' for instance"
    )
    seed: int = Field(default=0, ge=0, description="of the draw that limit makes, and of an own random split")
    tasks: dict[str, Literal["regression", "binary", "multiclass"]] | None = Field(
        default=None, description="own data: what a column is, where its cells do not say it"
    )
    classes: dict[str, list[str]] | None = Field(
        default=None, description="own data: names of the classes of a column, in order"
    )
    group: str | None = Field(default=None, description="own data: 'formula' or a column, kept together")
    fractions: tuple[float, float, float] | None = Field(
        default=None, description="own data: shares of train, val and test"
    )
    hash: str | None = Field(default=None, description="Splits.hash; training refuses other data")


class TrainingOptions(BaseModel):
    """Everything that shapes the training; the defaults follow Yan et al. 2024 for ComFormer."""

    model_config = ConfigDict(extra="forbid")

    epochs: int | None = Field(default=None, ge=1, description="passes over the training split (100)")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(default=64, ge=1, description="crystals per optimiser step, over all devices")
    accumulate: int = Field(default=1, ge=1, description="parts a batch is worked off in, to save memory")
    drop_last: bool = Field(default=True, description="leave out the last incomplete batch of an epoch")
    learning_rate: float = Field(default=1e-3, gt=0, description="highest of the schedule")
    schedule: Literal["onecycle", "polynomial", "inverse_sqrt", "constant"] = "onecycle"
    final_learning_rate: float = Field(default=1e-5, ge=0, description="where `polynomial` ends")
    decay_steps: int = Field(default=4000, ge=1, description="of inverse_sqrt: rate / √2 after so many steps")
    beta2: float = Field(default=0.999, gt=0, lt=1, description="of AdamW")
    weight_decay: float = Field(default=1e-5, ge=0, description="of AdamW; none on biases and norms")
    loss: Literal["l1", "mse", "huber"] = Field(default="l1", description="of regression targets")
    huber_delta: float = Field(default=1.0, gt=0, description="where huber turns linear, in target std")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="of classification targets: every class counts the same, or every label"
    )
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    averaging: Literal["none", "ema", "mean"] = Field(
        default="none", description="of weights: exponential, or plain over the last epochs"
    )
    averaging_decay: float = Field(default=0.999, gt=0, lt=1, description="of ema, per step")
    averaging_epochs: int = Field(default=10, ge=1, description="how many last epochs `mean` averages")
    patience: int | None = Field(default=None, ge=1, description="stop after epochs without improvement")
    keep: Literal["best", "last"] = Field(default="best", description="weights the run ends with")
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    compile: bool = Field(default=False, description="torch.compile the network (slow start, faster steps)")
    store_graphs: bool = Field(
        default=True, description="build every graph once and keep it; false: rebuild per batch, less memory"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(default=1, ge=1, description="per node")
    nodes: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1, description="of torch on the CPU; None: as they are")
    seed: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="time between resume points")
    published_epochs: int | None = Field(
        default=None, ge=1, description="of the published run; fewer are called shortened in the receipt"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class Recipe(BaseModel):
    """A whole recipe. `model` holds `name` and constructor arguments of that class."""

    model_config = ConfigDict(extra="forbid")

    model: dict[str, Any]
    data: DataOptions
    training: TrainingOptions = TrainingOptions()

    def to_toml(self) -> str:
        """The complete recipe: every key with its value; keys without one as comments."""
        import tomli_w

        tables: list[str] = []
        for name in type(self).model_fields:
            table = getattr(self, name)
            values = dict(table) if isinstance(table, dict) else table.model_dump()
            inner = {k: v for k, v in values.items() if isinstance(v, dict)}  # a table ends the keys above it
            plain = {k: v for k, v in values.items() if v is not None and k not in inner}
            lines = [f"[{name}]\n", tomli_w.dumps(plain)]
            lines += [f"# {k} is not set\n" for k, v in values.items() if v is None]
            lines += [f"\n[{name}.{k}]\n{tomli_w.dumps(v)}" for k, v in inner.items()]
            tables.append("".join(lines))
        return "\n".join(tables)


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for an unknown key, else the keys there are."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def first_error(error: ValidationError, schema: type[BaseModel], where: str = "") -> str:
    """The first complaint of pydantic as one line that names key, value and the nearest key."""
    detail = error.errors()[0]
    path = [str(part) for part in detail["loc"]]
    key = ".".join([*([where] if where else []), *path])
    if detail["type"] == "extra_forbidden":
        for part in path[:-1]:
            schema = schema.model_fields[part].annotation  # type: ignore[assignment]
        return f"unknown key {key!r}; {nearest(path[-1], schema.model_fields)}"
    if detail["type"] == "missing":
        return f"{key} is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict | BaseModel) else f", got {detail['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{value}" if key else message


def check_model_options(model: Mapping[str, Any]) -> None:
    """The `model` table against the signature of the class it names."""
    from facetry.models import MODELS

    name = model.get("name")
    if not isinstance(name, str) or name not in MODELS:
        raise RecipeError(f"model.name: unknown model {name!r}; {nearest(str(name), MODELS)}")
    arguments = inspect.signature(MODELS[name].__init__).parameters
    known = [a for a in arguments if a not in _FREE_ARGUMENTS]
    for key in model:
        if key == "outputs":
            raise RecipeError("model.outputs follows from data.target; leave it out")
        if key != "name" and key not in known:
            raise RecipeError(f"unknown key 'model.{key}'; {nearest(key, ['name', *known])}")
        if key != "name":
            _check_kind(f"model.{key}", model[key], arguments[key].default)


def _check_kind(key: str, value: Any, default: Any) -> None:
    """A model option is of the kind of its default; numbers without a fraction serve as such with one."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    kind = type(default)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if kind in kinds and not fits:
        raise RecipeError(f"{key}: expected {kinds[kind]}, got {value!r}")


def make_options(options: Mapping[str, Any]) -> TrainingOptions:
    """Training options from keywords; a wrong one fails with one line."""
    try:
        return TrainingOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, TrainingOptions, "training")) from None


def make_data_options(options: Mapping[str, Any]) -> DataOptions:
    """Data options from keywords; a wrong one fails with one line."""
    try:
        return DataOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, DataOptions, "data")) from None


def make_recipe(tables: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A checked recipe from its tables."""
    try:
        recipe = Recipe.model_validate(dict(tables))
    except ValidationError as error:
        raise RecipeError(f"{source}: {first_error(error, Recipe)}") from None
    try:
        check_model_options(recipe.model)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    return recipe


def apply_overrides(tables: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`training.epochs=3`, `data.target="heat_all"`: values are TOML; a bare word counts as a string.

    A key may lead into a table: `data.limit.train=100`, `data.tasks.phase=multiclass`.
    """
    result = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for override in overrides:
        path, sign, text = override.partition("=")
        table, dot, key = path.strip().partition(".")
        if not (sign and dot and key):
            raise RecipeError(f"--set {override!r}: expected TABLE.KEY=VALUE, such as training.epochs=3")
        if table not in Recipe.model_fields:
            raise RecipeError(
                f"--set {override!r}: unknown table {table!r}; {nearest(table, Recipe.model_fields)}"
            )
        result.setdefault(table, {})
        inside = result[table]
        *outer, key = key.split(".")
        for name in outer:  # data.limit.train=100: a key within a value that is a table
            value = inside.get(name)
            inside[name] = dict(value) if isinstance(value, dict) else {}
            inside = inside[name]
        if text.strip() == "none":
            inside.pop(key, None)
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        if table == "training" and key in ("epochs", "steps"):  # one replaces the other
            inside.pop("steps" if key == "epochs" else "epochs", None)
        inside[key] = value
    return result


def recipe_names() -> list[str]:
    """The recipes that ship."""
    folder = resources.files("facetry") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_tables(source: str | Path) -> dict[str, Any]:
    """The raw tables of a recipe file, or of a shipped recipe by its name."""
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(source) in recipe_names():
        text = (resources.files("facetry") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"{source}: no such recipe file, nor a recipe that ships; {nearest(str(source), recipe_names())}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source}: not valid TOML: {error}") from None


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override, check."""
    return make_recipe(apply_overrides(read_tables(source), overrides), str(source))
