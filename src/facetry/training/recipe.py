"""A recipe: one TOML file with the tables `model`, `data` and `training`.

    [model]                [data]                  [training]
    name = "icomformer"    name = "perov5"         epochs = 500
    k = 25                 target = "heat_all"     learning_rate = 1e-3

Models that relax crystals have no target; a table `relax` says what is disturbed and what is minimised.

Every key is checked: an unknown one fails and the nearest is named. Recipes that ship are found by name.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from facetry.training.slips import first_error, nearest

Count = Annotated[int, Field(ge=1)]

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
    limit: Count | dict[Literal["train", "val", "test"], Count] | None = Field(
        default=None,
        description="crystals of train and val, or one number for each of train, val, test; above 0",
    )
    fold: int | None = Field(default=None, ge=0, description="which official fold, from 0")
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
    parts: dict[Literal["train", "val", "test"], Literal["train", "val", "test"]] | None = Field(
        default=None, description="which official part serves as train, val or test"
    )
    split: str | None = Field(
        default=None, description="a CSV with the columns id and split that divides the set instead"
    )
    match: str | None = Field(
        default=None, description="names of the crystals to take, with * and ?: *-0 are emt-alloys at rest"
    )
    hash: str | None = Field(default=None, description="Splits.hash; training refuses other data")


class TrainingOptions(BaseModel):
    """Everything that shapes the training; the defaults follow Yan et al. 2024 for ComFormer."""

    model_config = ConfigDict(extra="forbid")

    epochs: int | None = Field(
        default=None, ge=1, description="passes over the training split; 100 without steps"
    )
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(default=64, ge=1, description="crystals per optimiser step, over all devices")
    accumulate: int = Field(default=1, ge=1, description="parts a batch is worked off in, to save memory")
    drop_last: bool = Field(default=True, description="leave out the last incomplete batch of an epoch")
    learning_rate: float = Field(default=1e-3, gt=0, description="highest of the schedule")
    schedule: Literal["onecycle", "polynomial", "inverse_sqrt", "constant"] = Field(
        default="onecycle", description="of the learning rate: up and down, down, up and slowly down, or none"
    )
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
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        default="fp32", description="of numbers; bf16: products in bfloat16, weights in fp32"
    )
    compile: bool = Field(default=False, description="torch.compile the network (slow start, faster steps)")
    store_graphs: bool = Field(
        default=True, description="build every graph once and keep it; false: rebuild per batch, less memory"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where to compute; auto: a GPU if there is one"
    )
    devices: int = Field(default=1, ge=1, description="per node")
    nodes: int = Field(default=1, ge=1, description="machines of a cluster")
    threads: int | None = Field(default=None, ge=1, description="of torch on the CPU; None: as they are")
    seed: int = Field(default=0, ge=0, description="of weights, order and draws")
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="time between resume points")
    published_epochs: int | None = Field(
        default=None, ge=1, description="of the published run; fewer are called shortened in the receipt"
    )
    published_steps: int | None = Field(default=None, ge=1, description="the same, in steps")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class RelaxOptions(BaseModel):
    """What a relaxing model learns to undo (Klipfel et al. 2023)."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["denoise", "reconstruct", "relax"] = Field(
        default="denoise",
        description="lattices with noise; a cube of 1 Å in place of the Niggli cell; lattices and positions "
        "with noise",
    )
    noise: float = Field(default=0.1, ge=0, description="σ of the matrix whose exponential acts on a lattice")
    displacement: float = Field(
        default=0.1, ge=0, description="of task relax: σ of each coordinate of an atom, Å"
    )
    vary_noise: bool = Field(
        default=False,
        description="in training a quarter of the crystals stay at rest, the others have shares of both σ "
        "from 0 to 1, some only a wrong volume",
    )
    loss: Literal["parameters_mae", "parameters_mse", "metric_mae", "metric_mse", "riemann"] = Field(
        default="parameters_mae", description="between the lattice of the answer and the true one"
    )
    position_weight: float = Field(
        default=1.0, ge=0, description="of task relax: of the mean distance in Å of atoms from their places"
    )
    validate_every: int | None = Field(
        default=None, ge=1, description="steps between validations; None: a pass over the data"
    )
    noise_seed: int = Field(default=0, ge=0, description="of the noise of val and test, which stays the same")


class GenerateOptions(BaseModel):
    """How an energy is trained to draw crystals from (arXiv 2502.02026), and how its chains cool."""

    model_config = ConfigDict(extra="forbid")

    objective: Literal["contrastive", "denoise"] = Field(
        default="contrastive", description="against its own chains; or wells around crystals with noise"
    )
    pretrain_steps: int = Field(default=0, ge=0, description="steps of denoise before contrastive")
    denoise_weight: float = Field(
        default=0.0, ge=0, description="of contrastive: weight of the loss of denoise beside it"
    )
    noise_low: float = Field(default=0.1, gt=0, description="of denoise: smallest σ of noise, Å")
    noise_high: float = Field(default=0.8, gt=0, description="of denoise: largest σ of noise, Å")
    regulariser: float = Field(default=0.1, ge=0, description="weight of the squared energies")
    multiplicity: Literal["geometric", "data", "mixed"] = Field(
        default="geometric", description="formula units of a chain: 2^-k, the crystal's own, or either"
    )
    most_atoms: int = Field(default=60, ge=1, description="of a chain, or one formula unit")
    chain_steps: int = Field(default=1000, ge=1, description="of a chain that starts anywhere")
    hot: float = Field(default=1.0, gt=0, description="first temperature of a chain")
    cold: float = Field(default=1e-3, gt=0, description="last temperature of a chain")
    per_atom: bool = Field(default=False, description="weigh n E instead of E: temperatures T / n")
    volume_power: float = Field(default=0.0, description="a of the base measure V^a ds dC")
    scheme: Literal["exact", "published"] = Field(
        default="exact", description="moves: positions and strain in turn; or both at once, as published"
    )
    reference_sign: bool = Field(default=False, description="of exact: the published sign of the drift")
    buffer: bool = Field(default=False, description="chains go on where they were when their crystal returns")
    buffer_steps: int = Field(default=50, ge=1, description="of a chain that goes on")
    refresh: float = Field(
        default=0.1, ge=0, le=1, description="share of chains that start anew all the same"
    )
    validate_every: int | None = Field(
        default=None, ge=1, description="steps between validations; None: a pass over the data"
    )

    @model_validator(mode="after")
    def _ordered(self) -> GenerateOptions:
        if self.noise_high < self.noise_low:
            raise ValueError("noise_high must not be below noise_low")
        if self.hot < self.cold:
            raise ValueError("hot must not be below cold")
        return self


class Recipe(BaseModel):
    """A whole recipe. `model` holds `name` and constructor arguments of that class; `relax` is there for
    models that relax crystals, `generate` for energies."""

    model_config = ConfigDict(extra="forbid")

    model: dict[str, Any]
    data: DataOptions
    training: TrainingOptions = TrainingOptions()
    relax: RelaxOptions | None = None
    generate: GenerateOptions | None = None

    def to_toml(self) -> str:
        """The complete recipe: every key with its value; keys without one as comments."""
        import tomli_w

        tables: list[str] = []
        for name in type(self).model_fields:
            table = getattr(self, name)
            if table is None:
                continue
            values = dict(table) if isinstance(table, dict) else table.model_dump()
            inner = {k: v for k, v in values.items() if isinstance(v, dict)}  # a table ends the keys above it
            plain = {k: v for k, v in values.items() if v is not None and k not in inner}
            lines = [f"[{name}]\n", tomli_w.dumps(plain)]
            lines += [f"# {k} is not set\n" for k, v in values.items() if v is None]
            lines += [f"\n[{name}.{k}]\n{tomli_w.dumps(v)}" for k, v in inner.items()]
            tables.append("".join(lines))
        return "\n".join(tables)


_TABLES = {
    "data": DataOptions,
    "training": TrainingOptions,
    "relax": RelaxOptions,
    "generate": GenerateOptions,
}
_OF_LABELS = ("loss", "huber_delta", "class_weights", "compile", "store_graphs")  # of `training`


def check_model_options(model: Mapping[str, Any]) -> None:
    """The `model` table against the signature of the class it names."""
    from facetry.models import MODELS

    name = model.get("name")
    if name is None:
        raise RecipeError(f"model.name is missing; add it: one of {', '.join(MODELS)}")
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
    least = 1 if "channels" in key else 0  # of sizes; what a class does not take besides, it says itself
    if kind is int and default > 0 and value < least:
        raise RecipeError(f"{key}: expected a number above 0, got {value!r}")


def make_options(options: Mapping[str, Any]) -> TrainingOptions:
    """Training options from keywords; a wrong one fails with one line."""
    try:
        return TrainingOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, TrainingOptions, _TABLES, "training")) from None


def make_relax_options(options: Mapping[str, Any]) -> RelaxOptions:
    """Options of the table `relax` from keywords; a wrong one fails with one line."""
    try:
        return RelaxOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, RelaxOptions, _TABLES, "relax")) from None


def make_generate_options(options: Mapping[str, Any]) -> GenerateOptions:
    """Options of the table `generate` from keywords; a wrong one fails with one line."""
    try:
        return GenerateOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, GenerateOptions, _TABLES, "generate")) from None


def make_data_options(options: Mapping[str, Any]) -> DataOptions:
    """Data options from keywords; a wrong one fails with one line."""
    try:
        return DataOptions(**options)
    except ValidationError as error:
        raise RecipeError(first_error(error, DataOptions, _TABLES, "data")) from None


def make_recipe(tables: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A checked recipe from its tables."""
    try:
        recipe = Recipe.model_validate(dict(tables))
    except ValidationError as error:
        raise RecipeError(f"{source}: {first_error(error, Recipe, _TABLES)}") from None
    try:
        check_model_options(recipe.model)
        return for_its_job(recipe)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def for_its_job(recipe: Recipe) -> Recipe:
    """The recipe with the tables that the job of its model has, and no others."""
    from facetry.models import MODELS

    name = recipe.model["name"]
    job = MODELS[name].job
    what = {"relax": "relaxes crystals", "generate": "generates crystals"}
    for table, does in (("relax", "relax"), ("generate", "generate")):
        if getattr(recipe, table) is not None and job != table:
            raise RecipeError(f"{table}: {name} does not {does} crystals; leave the table out")
    if job == "predict":
        return recipe
    if recipe.data.target is not None:
        raise RecipeError(f"data.target: a model that {what[job]} learns no target; leave it out")
    for key in _OF_LABELS:
        if (job, key) == ("generate", "store_graphs"):
            continue
        if getattr(recipe.training, key) != TrainingOptions.model_fields[key].default:
            instead = "; set relax.loss" if (job, key) == ("relax", "loss") else ""
            raise RecipeError(f"training.{key}: has no meaning for a model that {what[job]}{instead}")
    if recipe.training.precision == "bf16" and not getattr(MODELS[name], "mixed_precision", False):
        raise RecipeError(f"training.precision: {name} has no use for 'bf16'; take fp32 or fp64")
    if job == "relax":
        return recipe.model_copy(update={"relax": recipe.relax or RelaxOptions()})
    if recipe.training.keep == "best":  # nothing chooses weights: the last are kept
        training = recipe.training.model_copy(update={"keep": "last"})
        recipe = recipe.model_copy(update={"training": training})
    return recipe.model_copy(update={"generate": recipe.generate or GenerateOptions()})


def apply_overrides(tables: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`training.epochs=3`, `data.target="heat_all"`: values are TOML; a bare word counts as a string.

    A key may lead into a table: `data.limit.train=100`, `data.tasks.phase=multiclass`.
    """
    result = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    overrides = list(overrides)
    lengths = [o for o in overrides if o.partition("=")[0].strip() in ("training.epochs", "training.steps")]
    if len({o.partition("=")[0].strip() for o in lengths if o.partition("=")[2].strip() != "none"}) > 1:
        raise RecipeError(
            f"--set {' --set '.join(lengths)}: give training.epochs or training.steps, not both"
        )
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
    path, names = Path(source), recipe_names()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{source}: not valid TOML: {error}; save it as UTF-8") from None
    elif str(source) in names:
        text = (resources.files("facetry") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
    elif path.is_dir():
        if not (path / "recipe.toml").is_file():
            raise RecipeError(f"{source}: expected a recipe, which is a .toml file; this is a folder")
        raise RecipeError(
            f"{source}: expected a recipe, this is the folder of a run; go on with it by --resume {source},"
            f" or train the same anew by {path / 'recipe.toml'}"
        )
    else:
        near = nearest(path.name.removesuffix(".toml"), names)
        if not near.startswith("did"):
            near = f"{len(names)} ship, named MODEL-DATA, such as {names[0]} and icomformer-perov5-cpu"
        raise RecipeError(f"{source}: no such recipe file, nor a recipe that ships; {near}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = text.splitlines()[int(found[1]) - 1].strip() if found else ""
        raise RecipeError(f"{source}: not valid TOML: {error}{f': {line}' if line else ''}") from None


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override, check."""
    return make_recipe(apply_overrides(read_tables(source), overrides), str(source))
