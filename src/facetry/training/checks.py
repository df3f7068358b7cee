"""Before anything is written: do model, data, recipe and folder fit together?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facetry.card import Target
from facetry.models import MODELS
from facetry.models.base import EnergyModel, LatticeModel, Model, PropertyModel
from facetry.training.console import is_main_process
from facetry.training.files import remove_leftovers, write_file
from facetry.training.receipt import cores
from facetry.training.recipe import (
    DataOptions,
    Recipe,
    RecipeError,
    TrainingError,
    TrainingOptions,
    load_recipe,
    make_data_options,
    make_options,
    nearest,
)

if TYPE_CHECKING:
    from facetry.data.dataset import Dataset, Splits

CHANGEABLE = ("accelerator", "devices", "nodes", "threads", "checkpoint_seconds", "compile", "store_graphs")
"""Options that may differ when a run goes on."""


def check_arguments(model: Any, data: Any) -> None:
    """A model and a divided data set, not their names."""
    if not isinstance(model, PropertyModel | LatticeModel | EnergyModel):
        raise TrainingError(
            f"train: expected a model such as facetry.models.IComFormer(), got {type(model).__name__}"
            f"{f' {model!r}' if isinstance(model, str) else ''}"
        )
    if not hasattr(data, "parts"):
        raise TrainingError(
            "train: expected the parts train, val and test that facetry.dataset(NAME_OR_PATH) returns, got "
            f"{type(data).__name__}{f' {data!r}' if isinstance(data, str) else ''}"
        )


def check_divided(data: Splits) -> None:
    """Raises TrainingError for a set in folds of which none is chosen."""
    folds = getattr(data, "folds", None)
    if folds and not data.parts:
        raise TrainingError(
            f"{data.name} is divided into {len(folds)} folds; choose one: data.fold = 0 to {len(folds) - 1}"
            f" in the recipe, or facetry.dataset({data.name!r}, fold=0)"
        )


def check_machine(options: TrainingOptions) -> None:
    """Raises TrainingError for devices that are not there."""
    import torch

    kind, wanted = options.accelerator, options.devices
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise TrainingError(
            f"training.accelerator: expected a device that torch can use, {kind!r} is none here; take"
            f" {'cuda' if cuda else 'mps' if mps else 'cpu'}, or auto"
        )
    if kind == "auto":
        kind = "cuda" if cuda else "mps" if mps else "cpu"
    # two processes on one core are slow, but serve to try things out
    most = {"cuda": torch.cuda.device_count() if cuda else 0, "mps": 1, "cpu": max(cores(), 2)}[kind]
    if wanted > most:
        what = {"cuda": "CUDA devices", "mps": "MPS device", "cpu": "CPU processes"}[kind]
        raise TrainingError(
            f"training.devices: expected at most {most} ({what} of this machine), got {wanted}; one device"
            " uses several cores by training.threads"
        )


def model_name(model: Model) -> str:
    """The name under which the class of a model is listed. Raises TrainingError for one that is not."""
    for name, known in MODELS.items():
        if type(model) is known:
            return name
    raise TrainingError(
        f"{type(model).__name__} is not listed in facetry.models.MODELS; add it there under a name"
    )


def model_table(model: Model) -> dict[str, Any]:
    """The `model` table of a recipe; `outputs` follows from the targets and is left out."""
    return {"name": model_name(model)} | {k: v for k, v in model.options.items() if k != "outputs"}


def describe_data(data: Splits) -> DataOptions:
    """The `data` table of a recipe that loads these splits again."""
    names = [t.name for t in data.target_info]
    target = names[0] if len(names) == 1 else names or None
    known = {"name": str(data.name), **data.origin, "target": target}
    return make_data_options(known)


def labelled_parts(data: Splits, recipe: Recipe) -> dict[str, Dataset]:
    """Train (crystals with a label), val and test where they have any."""
    _check_hash(data, recipe)
    parts = {"train": data.train}
    parts |= {name: part for name, part in data.parts.items() if name in ("val", "test")}
    parts = {name: part.select(part.labelled) for name, part in parts.items()}
    train = parts["train"]
    if not len(train):
        raise TrainingError(
            f"{data.name}: no crystal of the training split has a label; choose another data.target"
        )
    for index, target in enumerate(train.target_info):
        values = train.targets[:, index]
        there = values[~np.isnan(values)]
        if not len(there):
            raise TrainingError(
                f"{data.name}: target {target.name} has no label in the training split; leave it out"
            )
        if not np.isfinite(there).all():
            raise TrainingError(
                f"{data.name}: target {target.name} has infinite values; correct or remove them"
            )
        highest = {"binary": 2, "multiclass": target.columns}.get(target.task)
        if highest is not None and not np.isin(there, np.arange(highest)).all():
            bad = there[~np.isin(there, np.arange(highest))][0]
            raise TrainingError(
                f"{data.name}: {target.name}: expected classes 0 to {highest - 1}, got {bad:g}"
            )
    return {name: part for name, part in parts.items() if len(part)}


def whole_parts(data: Splits, recipe: Recipe) -> dict[str, Dataset]:
    """Train, val and test with all their crystals, for models that need no labels."""
    _check_hash(data, recipe)
    parts = {"train": data.train} | {n: p for n, p in data.parts.items() if n in ("val", "test")}
    if not len(parts["train"]):
        raise TrainingError(f"{data.name}: no crystal in the training split")
    return {name: part for name, part in parts.items() if len(part)}


def without_targets(data: Splits) -> Splits:
    """The same crystals without labels, as a recipe without a target loads them."""
    parts = {
        name: replace(part, targets=np.zeros((len(part), 0)), target_info=[], extras={})
        for name, part in data.parts.items()
    }
    return replace(data, parts=parts)


def _check_hash(data: Splits, recipe: Recipe) -> None:
    if recipe.data.hash is not None and recipe.data.hash != data.hash:
        raise TrainingError(
            f"{data.name}: expected the data with hash {recipe.data.hash[:12]}, got {data.hash[:12]}; "
            "use the data of the first start, or begin a new run"
        )


def check_outputs(model: PropertyModel, targets: Sequence[Target]) -> None:
    """Raises TrainingError where the network has not one output for each column of the targets."""
    needed = sum(t.columns for t in targets)
    outputs = model.options.get("outputs", 1)
    if outputs != needed:
        names = ", ".join(t.name for t in targets)
        raise TrainingError(
            f"the model has {outputs} outputs, the targets ({names}) need {needed}; build it with "
            f"outputs={needed}"
        )


def check_folder(folder: Path) -> None:
    """Raises TrainingError where a new run cannot go into a folder, and says what can be done."""
    begun, ended = (folder / "recipe.toml").exists(), (folder / "receipt.json").exists()
    if ended and begun:
        raise TrainingError(
            f"{folder} already holds a run, which has ended; use it (facetry evaluate {folder}), or choose"
            " another folder with -o"
        )
    if begun:
        raise TrainingError(
            f"{folder} already holds a run, which has not ended; go on with: facetry train --resume {folder}"
            ", or choose another folder with -o"
        )
    if (folder / "model.json").exists():
        raise TrainingError(f"{folder} already holds a model; choose another folder with -o")
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise TrainingError(
                f"{folder}: expected a folder for the run, {place} is a file; choose another with -o"
            )


def open_folder(folder: Path, recipe: Recipe) -> None:
    """Make the folder of a new run with its recipe. Raises TrainingError where it cannot be."""
    if not is_main_process():
        return
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{folder}: the folder of the run could not be made ({error.strerror or error}); choose another,"
            " where you may write, with -o"
        ) from None
    remove_leftovers(folder)
    write_file(folder / "recipe.toml", recipe.to_toml())


def stored_recipe(folder: Path, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a run folder; only how the run is carried out may differ."""
    path = folder / "recipe.toml"
    if folder.is_file():
        raise TrainingError(
            f"{folder}: expected the folder of a run to go on with, this is a file; to begin a run:"
            f" facetry train {folder}"
        )
    if not path.is_file():
        if not folder.is_absolute() and (Path("runs") / folder / "recipe.toml").is_file():
            raise TrainingError(f"{folder}: there is no such run here; did you mean {Path('runs') / folder}?")
        what = "found none" if folder.is_dir() else "there is no such folder"
        raise TrainingError(f"{folder}: expected a run folder with recipe.toml, {what}; start the run again")
    if (folder / "receipt.json").exists() and not any((folder / "resume").glob("[0-9]*")):
        raise TrainingError(
            f"{folder}: this run has ended, and what it could go on from (resume/) is gone; use it as it is,"
            " or begin a run in another folder"
        )
    recipe = load_recipe(path)
    known = TrainingOptions.model_fields
    for key, value in changes.items():
        if key not in known:
            raise RecipeError(f"unknown key 'training.{key}'; {nearest(key, known)}")
        if key not in CHANGEABLE and value != getattr(recipe.training, key):
            raise TrainingError(
                f"{folder}: {key} is {getattr(recipe.training, key)!r} in this run and cannot become "
                f"{value!r} on resume; begin a new run ({', '.join(CHANGEABLE)} may change)"
            )
    stored = recipe.training.model_dump()
    return recipe.model_copy(update={"training": make_options(stored | dict(changes))})


def check_same_model(model: Model, recipe: Recipe, folder: Path) -> None:
    """Raises TrainingError where a model is not the one that the run in the folder trains."""
    stored = json.loads(json.dumps(recipe.model))
    given = json.loads(json.dumps({k: v for k, v in model_table(model).items() if v is not None}))
    for key in [*stored, *given]:
        if stored.get(key) != given.get(key):
            raise TrainingError(
                f"{folder}: model.{key} is {stored.get(key)!r} in this run, the model given has "
                f"{given.get(key)!r}; build it with the options of recipe.toml"
            )
