"""Explain: what a model with attention over images looked at, atom by atom, layer by layer, head by head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS
from facetry.evaluation.intervals import nearest_distance
from facetry.geometry.polyhedra import polyhedron
from facetry.graph.batch import Batch
from facetry.tasks.inference import Item, Limits, evaluating, run
from facetry.tasks.predict import Prediction, Translator, as_model
from facetry.tasks.sources import items_of
from facetry.tasks.tables import TableWriter

if TYPE_CHECKING:
    from facetry.models.base import PropertyModel
    from facetry.models.crystalframer import Look

SHELL_GAP, SHELL_SPREAD = 0.1, 0.4  # Å; a larger gap, or more from first to last, starts a new shell
_ALONG = 0.9999  # cosine from which an axis points at an image
_ALIKE = 1e-3  # Å and weight; atoms whose neighbours differ by less are shown once

WEIGHT_COLUMNS = {
    "atom": "int",
    "atom_element": "text",
    "layer": "int",
    "head": "int",
    "neighbor": "int",
    "element": "text",
    "image_a": "int",
    "image_b": "int",
    "image_c": "int",
    "distance": "float",
    "shell": "int",
    "weight": "float",
}
FRAME_COLUMNS = {
    "atom": "int",
    "atom_element": "text",
    "layer": "int",
    "head": "int",
    "frame": "int",
    "weight": "float",
    **{f"e{axis}_{component}": "float" for axis in (1, 2, 3) for component in "xyz"},
    "neighbor": "int",
    "element": "text",
    "distance": "float",
}


class NoExplanation(ValueError):
    """The input gives nothing to explain: unreadable, or not for this model. The text says why."""


@dataclass(frozen=True)
class Shell:
    """Images of one element at about one distance; shell 0 is the atom itself."""

    element: int
    members: Int[np.ndarray, " members"]
    nearest: float  # Å
    farthest: float  # Å

    def __str__(self) -> str:
        if self.farthest == 0:
            return "self"
        low, high = f"{self.nearest:.2f}", f"{self.farthest:.2f}"
        return f"{len(self.members)} {SYMBOLS[self.element]} at {low if low == high else f'{low}-{high}'} Å"


@dataclass(frozen=True)
class Focus:
    """The shell a head looks at: the one its frames point at (`pointed`), else its heaviest besides the
    atom itself. `shape` is the polyhedron that its members form, "" for none that has a name."""

    shell: int
    pointed: bool
    shape: str


@dataclass(frozen=True, eq=False)
class AtomView:
    """What one atom looked at. Sites and images are those of the crystal as given, counted from 0.

    Images ascend by distance, the atom itself first. `attention` sums to one over the images. `axes` and
    `frame_weight` hold the tied frames of every layer and head, rows e1, e2, e3 (Cartesian, as the lattice
    is given); an axis that is zero is not defined. Empty for a model without frames. Layers and heads that
    sum in reciprocal space see no images and are left out; `layer_numbers` says which layers (from 1) remain.
    """

    site: int
    element: int
    copies: list[int]  # sites that are translations of this one
    neighbor: Int[np.ndarray, " images"]
    elements: Int[np.ndarray, " images"]
    image: Int[np.ndarray, "images 3"]
    vectors: Float[np.ndarray, "images 3"]  # Å
    distance: Float[np.ndarray, " images"]  # Å
    attention: Float[np.ndarray, "layers heads images"]
    layer_numbers: list[int]
    axes: list[list[Float[np.ndarray, "frames 3 3"]]]
    frame_weight: list[list[Float[np.ndarray, " frames"]]]

    def __str__(self) -> str:
        return f"atom {self.site} ({SYMBOLS[self.element]})"

    @cached_property
    def shells(self) -> list[Shell]:
        """Images of one element, as far as no gap separates them; nearest first."""
        found = [Shell(self.element, np.array([0]), 0.0, 0.0)]
        for element in np.unique(self.elements[1:]):
            members = 1 + np.nonzero(self.elements[1:] == element)[0]
            start = 0
            for stop in range(1, len(members) + 1):
                d = self.distance[members[start:stop]]
                if (
                    stop == len(members)
                    or self.distance[members[stop]] - d[-1] > SHELL_GAP
                    or self.distance[members[stop]] - d[0] > SHELL_SPREAD
                ):
                    found.append(Shell(int(element), members[start:stop], float(d[0]), float(d[-1])))
                    start = stop
        return sorted(found, key=lambda shell: shell.nearest)

    @cached_property
    def shell_of(self) -> Int[np.ndarray, " images"]:
        """The shell of every image."""
        number = np.zeros(len(self.distance), dtype=np.int64)
        for index, shell in enumerate(self.shells):
            number[shell.members] = index
        return number

    @cached_property
    def shell_weights(self) -> Float[np.ndarray, "layers heads shells"]:
        """Attention of every layer and head, summed over each shell."""
        return np.stack([self.attention[:, :, shell.members].sum(2) for shell in self.shells], 2)

    def pointed_at(self, layer: int, head: int) -> Int[np.ndarray, " frames"]:
        """For every tied frame the image that e1 points at, the heaviest if there are several; -1: none."""
        e1 = self.axes[layer][head][:, 0]
        unit = self.vectors / np.maximum(self.distance, 1e-9)[:, None]
        weight = np.where(e1 @ unit.T > _ALONG, self.attention[layer, head], -1.0)
        best = weight.argmax(1) if len(e1) else np.zeros(0, dtype=np.int64)
        return np.where(weight.max(1, initial=-1.0) < 0, -1, best)

    def focus(self, layer: int, head: int) -> Focus | None:
        """The shell that a head looks at; None for an atom without neighbours."""
        if len(self.shells) < 2:
            return None
        images = self.pointed_at(layer, head)
        images = images[images > 0]
        weights = self.shell_weights[layer, head].copy()
        if len(images):
            aside = np.ones(len(weights), dtype=bool)
            aside[self.shell_of[images]] = False
            weights[aside] = -1
        weights[0] = -1
        shell = int(weights.argmax())
        return Focus(shell, len(images) > 0, polyhedron(self.vectors[self.shells[shell].members]))

    def telling_head(self, layer: int) -> int:
        """The head of a layer with most weight on the shell that it looks at."""
        heads = self.attention.shape[1]
        weight = [
            0.0 if (f := self.focus(layer, head)) is None else self.shell_weights[layer, head, f.shell]
            for head in range(heads)
        ]
        return int(np.argmax(weight))

    def words(self, layer: int, head: int) -> str:
        """One line: where the attention goes, and what the frames see."""
        weights, focus = self.shell_weights[layer, head], self.focus(layer, head)
        shares = self.frame_weight[layer][head]
        frames = len(shares)
        tied = "tied " if frames and np.ptp(shares) < 1e-6 else ""
        order = sorted(range(1, len(weights)), key=lambda s: -weights[s])[:2]
        if focus is not None and focus.shell not in order:
            order[-1] = focus.shell
        parts = [f"{_percent(weights[0])} self"]
        for shell in order:
            part = f"{_percent(weights[shell])} on {self.shells[shell]}"
            if focus is not None and shell == focus.shell:
                notes = [focus.shape] if focus.shape else []
                if focus.pointed:
                    notes.append(f"{frames} {tied}frames" if frames > 1 else "1 frame")
                part += f" ({', '.join(notes)})" if notes else ""
            parts.append(part)
        if rest := len(weights) - 1 - len(order):
            left = 1 - weights[0] - weights[order].sum()
            parts.append(f"{_percent(max(left, 0.0))} on {rest} more shell{'s' if rest > 1 else ''}")
        return f"layer {self.layer_numbers[layer]} head {head + 1}: {', '.join(parts)}"


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model looked at in one crystal. `write` makes the pictures and tables, `str()` a summary.

    `alike` lists, for every atom of `atoms` that stands for others, the atoms with an equal neighbourhood
    and equal attention. `layer` (a position in the attention) and `head`
    (from 0) are the ones asked for, None where none was.
    """

    crystal: Crystal
    name: str
    model: str
    predictions: list[Prediction]
    atoms: list[AtomView]
    alike: dict[int, list[int]]  # position in `atoms` -> positions
    layer: int | None = None
    head: int | None = None

    @property
    def layers(self) -> int:
        """How many layers looked."""
        return self.atoms[0].attention.shape[0]

    @property
    def heads(self) -> int:
        """How many heads each layer has."""
        return self.atoms[0].attention.shape[1]

    @property
    def distinct(self) -> list[AtomView]:
        """One atom of each kind."""
        return [self.atoms[position] for position in self.alike]

    def shown_layers(self) -> list[int]:
        """The layer that was asked for, else all."""
        return list(range(self.layers)) if self.layer is None else [self.layer]

    def shown_head(self, atom: AtomView, layer: int) -> int:
        """The head that was asked for, else the one that tells most about this atom."""
        return atom.telling_head(layer) if self.head is None else self.head

    def __str__(self) -> str:
        lines = [p.words() for p in self.predictions]
        for position, others in self.alike.items():
            atom = self.atoms[position]
            sites = [self.atoms[o].site for o in others]
            same = f"; alike: {', '.join(map(str, sites))}" if sites else ""
            copies = f"; {len(atom.copies)} copies by translation" if atom.copies else ""
            lines.append(f"{atom}{same}{copies}")
            lines += [f"  {atom.words(la, self.shown_head(atom, la))}" for la in self.shown_layers()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For programs: predictions, and shells, weights and frames of every atom, layer and head."""
        return {
            "name": self.name,
            "formula": self.crystal.formula,
            "model": self.model,
            "predictions": [p.row() for p in self.predictions],
            "atoms": [_atom_dict(atom) for atom in self.atoms],
            "alike": [
                [self.atoms[p].site, *(self.atoms[o].site for o in others)]
                for p, others in self.alike.items()
            ],
        }

    def weight_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of NAME.csv: every image of every atom, layer and head."""
        for atom in self.atoms:
            fixed = [
                {
                    "atom": atom.site,
                    "atom_element": SYMBOLS[atom.element],
                    "neighbor": int(atom.neighbor[e]),
                    "element": SYMBOLS[atom.elements[e]],
                    **{f"image_{a}": int(n) for a, n in zip("abc", atom.image[e], strict=True)},
                    "distance": round(float(atom.distance[e]), 6),
                    "shell": int(atom.shell_of[e]),
                }
                for e in range(len(atom.distance))
            ]
            for layer, head in np.ndindex(atom.attention.shape[:2]):
                weights = atom.attention[layer, head].tolist()
                for row, weight in zip(fixed, weights, strict=True):
                    yield row | {
                        "layer": atom.layer_numbers[layer],
                        "head": head + 1,
                        "weight": float(f"{weight:.8g}"),
                    }

    def frame_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of NAME-frames.csv: every tied frame, with the image that e1 points at if there is one."""
        names = list(FRAME_COLUMNS)[6:15]
        for atom in self.atoms:
            for layer, of_heads in enumerate(atom.axes):
                for head, frames in enumerate(of_heads):
                    pointed = atom.pointed_at(layer, head)
                    weight = atom.frame_weight[layer][head]
                    for number, axes in enumerate(frames):
                        at = pointed[number]
                        yield {
                            "atom": atom.site,
                            "atom_element": SYMBOLS[atom.element],
                            "layer": atom.layer_numbers[layer],
                            "head": head + 1,
                            "frame": number,
                            "weight": float(weight[number]),
                            **dict(zip(names, (axes.round(9) + 0.0).flatten().tolist(), strict=True)),
                            "neighbor": int(atom.neighbor[at]) if at >= 0 else None,
                            "element": SYMBOLS[atom.elements[at]] if at >= 0 else None,
                            "distance": round(float(atom.distance[at]), 6) if at >= 0 else None,
                        }

    def png(self) -> bytes:
        """The picture: environments with frames, and attention on shells."""
        from facetry.evaluation.attention_plot import attention_plot

        return attention_plot(self)

    def html(self) -> str:
        """The page that can be turned with the mouse; everything is inside."""
        from facetry.evaluation.attention_page import attention_page

        return attention_page(self)

    def write(self, folder: str | PathLike[str]) -> list[Path]:
        """NAME.png, NAME.html, NAME.csv and, where there are frames, NAME-frames.csv, in a folder that is
        made if it is missing; files of these names are replaced. Returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {end: folder / f"{self.name}{end}" for end in ENDINGS}
        paths[".png"].write_bytes(self.png())
        paths[".html"].write_text(self.html(), encoding="utf-8")
        _write_table(paths[".csv"], WEIGHT_COLUMNS, self.weight_rows())
        if any(len(frames) for atom in self.atoms for of_heads in atom.axes for frames in of_heads):
            _write_table(paths["-frames.csv"], FRAME_COLUMNS, self.frame_rows())
        else:
            del paths["-frames.csv"]
        return list(paths.values())


ENDINGS = (".png", ".html", ".csv", "-frames.csv")


def _write_table(path: Path, columns: Mapping[str, str], rows: Iterator[dict[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    with TableWriter(path, columns) as table:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == 10_000:
                table.write(group)
                group = []
        table.write(group)


def _atom_dict(atom: AtomView) -> dict[str, Any]:
    views = []
    for layer, head in np.ndindex(atom.attention.shape[:2]):
        focus = atom.focus(layer, head)
        frames = zip(atom.axes[layer][head], atom.frame_weight[layer][head], strict=True)
        views.append(
            {
                "layer": atom.layer_numbers[layer],
                "head": head + 1,
                "weights": [float(f"{w:.6g}") for w in atom.shell_weights[layer, head]],
                "focus": None if focus is None else focus.shell,
                "pointed": focus is not None and focus.pointed,
                "shape": focus.shape if focus is not None else "",
                "frames": [
                    {"axes": (axes.round(6) + 0.0).tolist(), "weight": float(f"{w:.6g}")}
                    for axes, w in frames
                ],
            }
        )
    shells = [
        {
            "element": SYMBOLS[shell.element],
            "images": len(shell.members),
            "nearest": round(shell.nearest, 4),
            "farthest": round(shell.farthest, 4),
        }
        for shell in atom.shells
    ]
    return {
        "atom": atom.site,
        "element": SYMBOLS[atom.element],
        "copies": atom.copies,
        "shells": shells,
        "views": views,
    }


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
        layer, head: which of them pictures and summary show, counted from 1; None: all layers, and of each
            the head that looks most at the neighbours that its frames point at. The numbers of all are kept.
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
        element=int(crystal.atomic_numbers[site]),
        copies=[int(s) for s in np.nonzero(rows == own)[0] if s != site],
        neighbor=neighbor,
        elements=crystal.atomic_numbers[neighbor].astype(np.int64),
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
    if one.element != two.element or one.distance.shape != two.distance.shape:
        return False
    if np.abs(one.distance - two.distance).max() > _ALIKE:
        return False
    if [(s.element, len(s.members)) for s in one.shells] != [(s.element, len(s.members)) for s in two.shells]:
        return False
    return bool(np.abs(one.shell_weights - two.shell_weights).max() < _ALIKE)
