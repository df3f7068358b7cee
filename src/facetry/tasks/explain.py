"""Explain: what a model with attention over images looked at, atom by atom, layer by layer, head by head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from facetry.crystal import Crystal
from facetry.evaluation.intervals import nearest_distance
from facetry.graph.batch import Batch
from facetry.models.base import evaluating
from facetry.tasks.explanation import AtomView, Explanation
from facetry.tasks.inference import Item, Limits, run
from facetry.tasks.inputs import items_of
from facetry.tasks.predict import Prediction, Translator, as_model

if TYPE_CHECKING:
    from facetry.models.base import PropertyModel
    from facetry.models.crystalframer import Look

_ALIKE = 1e-3  # Å and weight; atoms whose neighbours differ by less are shown once


class NoExplanation(ValueError):
    """The input gives nothing to explain: unreadable, or not for this model. The text says why."""


def explain(
    model: PropertyModel | str | PathLike[str],
    crystal: Any,
    *,
    atom: int | Literal["all"] = "all",
    layer: int | None = None,
    head: int | None = None,
    entry: int | str | None = None,
    device: str | torch.device | None = None,
) -> Explanation:
    """What a model looked at in a crystal: the attention of its layers and heads, and their frames.

    Args:
        model: one that attends to images (Crystalformer, CrystalFramer), trained or calibrated, or its
            folder or name.
        crystal: one structure, as `facetry.predict` takes them.
        atom: a site of the crystal, counted from 0, or "all": one of each atom of the primitive cell.
        layer: which of them pictures and summary show, counted from 1; None: all. All numbers are kept.
        head: the same for heads; None: of each layer the one that looks most at the neighbours that its
            frames point at.
        entry: which structure to take where the input holds several: its position from 0, or its name.
        device: where to compute; None: where the model is.

    Weights and frames are those of the very pass that gives the predictions. Raises ValueError for a model
    without such attention and for numbers out of range, NoExplanation (a ValueError) for an input that
    cannot be read or that the model cannot use.
    """
    network = as_model(model)
    look_of(network)
    item = one_item(items_of(crystal), entry)
    if item.crystal is None:
        raise NoExplanation(f"{item.source or 'input'}: {item.error}")
    real = [block.attention.real_heads for block in network.blocks]  # others see no images
    numbers = [number for number, heads in enumerate(real, 1) if heads]
    for what, number, known in (("layer", layer, numbers), ("head", head, range(1, max(real) + 1))):
        if number is not None and number not in known:
            have = f"{known[0]} to {known[-1]}" if len(known) == known[-1] else ", ".join(map(str, known))
            raise ValueError(f"{what} {number}: this model has {what}s {have} that attend to images")
    if isinstance(atom, str) and atom != "all":
        raise ValueError(f"atom {atom!r}: expected a number or 'all'")
    sites = len(item.crystal)
    if not isinstance(atom, str) and not 0 <= atom < sites:
        what = f"0 to {sites - 1}" if sites > 1 else "0 only"
        raise ValueError(f"{item.name or item.crystal.formula}: atom {atom}: its atoms are {what}")
    predictions, batch, look = _look(network, item, device)
    owners = batch.atom_map
    rows = np.arange(sites) if owners is None else owners.cpu().numpy().astype(np.int64)
    wanted = [atom] if not isinstance(atom, str) else np.unique(rows, return_index=True)[1].tolist()
    atoms = [_view(item.crystal, batch, look, rows, site, numbers) for site in sorted(wanted)]
    return Explanation(
        crystal=item.crystal,
        name=file_name(item),
        model=network.name,
        predictions=predictions,
        atoms=atoms,
        alike=_alike(atoms),
        layer=None if layer is None else numbers.index(layer),
        head=None if head is None else head - 1,
    )


def look_of(model: PropertyModel) -> Any:
    """The model's `look`; a ValueError names the models that have one."""
    look = getattr(model, "look", None)
    if look is None:
        from facetry.models import MODELS

        can = ", ".join(name for name, cls in MODELS.items() if hasattr(cls, "look"))
        raise ValueError(
            f"{getattr(model, 'name', type(model).__name__)} has no attention over images to explain;"
            f" expected one of {can}"
        )
    return look


def one_item(items: Iterator[Item], entry: int | str | None) -> Item:
    """The one input, or the one that `entry` names. Raises ValueError where that is not clear."""
    with closing(items):
        if entry is None:
            first = next(items, None)
            if first is None:
                raise ValueError("expected one structure, came none")
            second = next(items, None)
            if second is not None:
                names = ", ".join(item.name or "unnamed" for item in (first, second))
                raise ValueError(
                    f"{first.source or 'input'}: expected one structure, came several ({names}, ...);"
                    " choose one by its number from 0 or its name: entry"
                )
            return first
        number = int(entry) if str(entry).isdecimal() else None
        count = 0
        for position, item in enumerate(items):
            if position == number or item.name == entry:
                return item
            count += 1
    raise ValueError(f"entry {entry}: there is none among {count} structures")


def file_name(item: Item) -> str:
    """A name for files: that of the crystal, of its file, or the formula; only letters, digits and ._+-"""
    for name in (item.name, Path(item.source).stem, item.crystal.formula if item.crystal else ""):
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:60]
        if plain:
            return plain
    return "crystal"


def _look(
    model: PropertyModel, item: Item, device: str | torch.device | None
) -> tuple[list[Prediction], Batch, Look]:
    """Predictions, graph and look of one forward pass."""
    look, seen = look_of(model), []
    reference = getattr(model, "domain_reference", None)

    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        found = look(batch)
        seen.append((batch, found))
        values = {"output": found.output}
        if reference is not None and len(reference):
            values["distance"] = nearest_distance(found.embedding, reference)
        return values

    translate = Translator(model)
    with evaluating(model, device) as place:
        (outcome,) = run(model, [item], compute, Limits.for_device(place), place)
    if outcome.status != "ok":
        raise NoExplanation(f"{item.name or item.source or item.crystal.formula}: {outcome.message}")
    return list(translate(outcome)), *seen[-1]


def _view(
    crystal: Crystal,
    batch: Batch,
    look: Look,
    rows: Int[np.ndarray, " sites"],
    site: int,
    numbers: list[int],
) -> AtomView:
    """One site's part of what was seen, told in sites and images of the crystal as given."""
    graph, own = batch.require_graph(), int(rows[site])
    vectors = batch.edge_vectors().double().cpu().numpy()
    center = graph.center.cpu().numpy()
    mine = np.nonzero(center == own)[0]
    vectors = vectors[mine]
    distance = np.linalg.norm(vectors, axis=1)
    sent = graph.neighbor.cpu().numpy()[mine]
    order = np.lexsort((*vectors.round(4).T, sent, distance.round(4)))
    mine, vectors, distance, sent = mine[order], vectors[order], distance[order], sent[order]
    neighbor, image = _in_given_cell(crystal, rows, site, sent, vectors)
    axes, weight = [], []
    layers = [look.layers[number - 1] for number in numbers]
    for layer in layers:
        heads = layer.attention.shape[1]
        owner = layer.owner.cpu().numpy()
        chosen = [owner == own * heads + head for head in range(heads)]
        all_axes, all_weights = layer.axes.double().cpu().numpy(), layer.weight.double().cpu().numpy()
        axes.append([all_axes[c] for c in chosen])
        weight.append([all_weights[c] for c in chosen])
    return AtomView(
        site=site,
        atomic_number=int(crystal.atomic_numbers[site]),
        copies=[int(s) for s in np.nonzero(rows == own)[0] if s != site],
        neighbor=neighbor,
        atomic_numbers=crystal.atomic_numbers[neighbor].astype(np.int64),
        image=image,
        vectors=vectors,
        distance=distance,
        attention=np.stack([la.attention.double().cpu().numpy()[mine].T for la in layers]),
        layer_numbers=numbers,
        axes=axes,
        frame_weight=weight,
    )


def _in_given_cell(
    crystal: Crystal,
    rows: Int[np.ndarray, " sites"],
    site: int,
    sent: Int[np.ndarray, " images"],
    vectors: Float[np.ndarray, "images 3"],
) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, "images 3"]]:
    """Sites and lattice vectors of the given cell for images that the primitive cell counts differently."""
    there = crystal.frac_coords[site] + vectors @ np.linalg.inv(crystal.lattice)
    neighbor = np.zeros(len(sent), dtype=np.int64)
    image = np.zeros((len(sent), 3), dtype=np.int64)
    for row in np.unique(sent):
        of_row, sites = np.nonzero(sent == row)[0], np.nonzero(rows == row)[0]
        shift = there[of_row][:, None] - crystal.frac_coords[sites][None]
        off = np.linalg.norm((shift - shift.round()) @ crystal.lattice, axis=2)
        best = off.argmin(1)
        neighbor[of_row] = sites[best]
        image[of_row] = shift[np.arange(len(of_row)), best].round().astype(np.int64)
    return neighbor, image


def _alike(atoms: list[AtomView]) -> dict[int, list[int]]:
    """Positions of one atom of each kind, with the others of its kind."""
    kinds: dict[int, list[int]] = {}
    for position, atom in enumerate(atoms):
        for first in kinds:
            if _same(atoms[first], atom):
                kinds[first].append(position)
                break
        else:
            kinds[position] = []
    return kinds


def _same(one: AtomView, two: AtomView) -> bool:
    """Whether two atoms have the same element, distances and weights, in any order of equal distances."""
    if one.atomic_number != two.atomic_number or one.distance.shape != two.distance.shape:
        return False
    if np.abs(one.distance - two.distance).max() > _ALIKE:
        return False
    first, second = ([(s.atomic_number, len(s.members)) for s in atom.shells] for atom in (one, two))
    if first != second:
        return False
    return bool(np.abs(one.shell_weights - two.shell_weights).max() < _ALIKE)
