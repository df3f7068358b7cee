"""Trained models on disk: `model.safetensors` (weights) beside `model.json` (the card). Nothing executable.

A model is a folder with these two files, the folder of a run, or the name of a model that ships.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from facetry._version import __version__
from facetry.card import ModelCard
from facetry.models import MODELS
from facetry.models.base import Model
from facetry.training.files import tensor_bytes, write_file
from facetry.training.recipe import nearest

WEIGHTS = "model.safetensors"
CARD = "model.json"
REFERENCE = "domain.reference"


class ModelError(ValueError):
    """A model that cannot be loaded: what was expected, what came, what to do."""


def save_model(model: Model, folder: str | Path) -> Path:
    """Write weights and card of a model into a folder; each file is replaced in one step."""
    if model.card is None:
        raise ModelError("the model has no card (targets, units); train it, or set model.card")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.state_dict())
    if model.domain_reference is not None:
        tensors[REFERENCE] = model.domain_reference
    write_file(folder / WEIGHTS, tensor_bytes(tensors))
    write_file(folder / CARD, model.card.model_dump_json(indent=2) + "\n")
    return folder


def pretrained_names() -> list[str]:
    """The models that ship."""
    folder = resources.files("facetry") / "pretrained"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / CARD).is_file())


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a model: itself a folder, `runs/NAME`, or one that ships."""
    folder = Path(name_or_folder)
    for candidate in (folder, Path("runs") / folder):
        if candidate.is_dir():
            return candidate
    if folder.is_file():
        raise ModelError(f"{folder}: a model is a folder with {CARD} and {WEIGHTS}; this is a file")
    shipped = pretrained_names()
    if str(name_or_folder) in shipped:
        return Path(str(resources.files("facetry") / "pretrained" / str(name_or_folder)))
    names = nearest(str(name_or_folder), shipped) if shipped else "none ship with this version"
    raise ModelError(
        f"{name_or_folder}: no such folder, nor runs/{name_or_folder}, nor a model that ships; {names}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _newer_hint(version: str) -> str:
    if _numbers(version) > _numbers(__version__):
        return f"; it was written by facetry {version}, this is {__version__}: upgrade facetry"
    return ""


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, checked."""
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = (folder / "resume").is_dir()
        advice = (
            "the run has not finished an epoch yet" if unfinished else "pass the folder of a trained model"
        )
        raise ModelError(f"{folder}: expected {CARD} and {WEIGHTS}, found no {CARD}; {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: expected JSON, found none that can be read ({error}); copy the file again"
        ) from None
    version = str(content.get("version", "")) if isinstance(content, dict) else ""
    try:
        card = ModelCard.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"]) or "the whole file"
        advice = _newer_hint(version) or "; copy the file again or train anew"
        raise ModelError(f"{path}: {key}: {detail['msg']}{advice}") from None
    if card.model not in MODELS:
        advice = _newer_hint(version) or f"; {nearest(card.model, MODELS)}"
        raise ModelError(f"{path}: unknown model class {card.model!r}{advice}")
    return card


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or one line on what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            f"{path}: expected the weights here, found no such file; copy it beside {CARD}"
        ) from None
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: expected a whole safetensors file, found {len(content)} bytes that are not one "
            f"({error}); it is truncated or damaged: copy it again"
        ) from None


def fill_weights(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a state dict after comparing names and shapes; the precision of the file is kept."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise ModelError(
                f"{path}: expected tensor {name!r} {shape}, found none; the file does not belong to {CARD}: "
                "copy both from the same model"
            )
        if tuple(tensors[name].shape) != shape:
            raise ModelError(
                f"{path}: expected tensor {name!r} of shape {shape}, found {tuple(tensors[name].shape)}; "
                f"the file does not belong to {CARD}: copy both from the same model"
            )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise ModelError(
            f"{path}: found {len(extra)} tensors that the model has no place for, such as {extra[0]!r}; "
            f"the file does not belong to {CARD}: copy both from the same model"
        )
    floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
    if floating and torch.float64 in floating:
        model.double()
    model.load_state_dict(tensors)


@contextmanager
def _no_larger_than(tensors: dict[str, Tensor]) -> Iterator[None]:
    """Within, a module with many more numbers than the tensors hold is not built: options of a damaged card
    may ask for all memory, or for layers without end. One that is a little too large is: its shapes tell."""
    left = 2 * sum(t.numel() for t in tensors.values()) + 100_000
    builder = threading.get_ident()
    seen: dict[int, torch.nn.Parameter] = {}  # spectral norm registers a weight a second time

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal left
        if threading.get_ident() == builder and parameter is not None and id(parameter) not in seen:
            seen[id(parameter)] = parameter
            left -= parameter.numel()
            if left < 0:
                raise ValueError(f"they make a larger network than {WEIGHTS} has numbers for")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_model(folder: str | Path) -> Model:
    """A trained model in evaluation mode, with its card and the reference embeddings of its domain."""
    folder = Path(folder)
    card = read_card(folder)
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    reference = tensors.pop(REFERENCE, None)
    with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's stream
        try:
            with _no_larger_than(tensors):
                model = MODELS[card.model](**card.options)
        except Exception as error:  # options of a damaged card may be anything
            first = next(iter(str(error).splitlines()), "") or type(error).__name__
            advice = _newer_hint(card.version) or "; copy the file again or train anew"
            raise ModelError(f"{folder / CARD}: options do not fit {card.model}: {first}{advice}") from None
    fill_weights(model, tensors, path)
    model.card = card
    model.domain_reference = reference
    return model.eval()


def load(name_or_folder: str | Path) -> Model:
    """A trained model by the name it ships under, its folder, or the folder of its run.

    Raises ModelError, in one line, for a missing, damaged or foreign model.
    """
    return load_model(find_model(name_or_folder))
