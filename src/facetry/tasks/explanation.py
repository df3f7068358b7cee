"""What attention looked at: shells, weights and frames of every atom, as words, rows, tables and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from facetry.crystal import Crystal
from facetry.elements import SYMBOLS
from facetry.geometry.polyhedra import polyhedron
from facetry.tasks.predict import Prediction
from facetry.tasks.table_writer import TableWriter

SHELL_GAP, SHELL_SPREAD = 0.1, 0.4  # Å; a larger gap, or more from first to last, starts a new shell
_ALONG = 0.9999  # cosine from which an axis points at an image

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
ENDINGS = (".png", ".html", ".csv", "-frames.csv")


@dataclass(frozen=True)
class Shell:
    """Images of one element at about one distance; shell 0 is the atom itself."""

    atomic_number: int
    members: Int[np.ndarray, " members"]
    nearest: float  # Å
    farthest: float  # Å

    def __str__(self) -> str:
        if self.farthest == 0:
            return "self"
        low, high = f"{self.nearest:.2f}", f"{self.farthest:.2f}"
        away = low if low == high else f"{low}-{high}"
        return f"{len(self.members)} {SYMBOLS[self.atomic_number]} at {away} Å"


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
    atomic_number: int
    copies: list[int]  # sites that are translations of this one
    neighbor: Int[np.ndarray, " images"]
    atomic_numbers: Int[np.ndarray, " images"]
    image: Int[np.ndarray, "images 3"]
    vectors: Float[np.ndarray, "images 3"]  # Å
    distance: Float[np.ndarray, " images"]  # Å
    attention: Float[np.ndarray, "layers heads images"]
    layer_numbers: list[int]
    axes: list[list[Float[np.ndarray, "frames 3 3"]]]
    frame_weight: list[list[Float[np.ndarray, " frames"]]]

    def __str__(self) -> str:
        return f"atom {self.site} ({SYMBOLS[self.atomic_number]})"

    @cached_property
    def shells(self) -> list[Shell]:
        """Images of one element, as far as no gap separates them; nearest first."""
        found = [Shell(self.atomic_number, np.array([0]), 0.0, 0.0)]
        for atomic_number in np.unique(self.atomic_numbers[1:]):
            members = 1 + np.nonzero(self.atomic_numbers[1:] == atomic_number)[0]
            start = 0
            for stop in range(1, len(members) + 1):
                d = self.distance[members[start:stop]]
                if (
                    stop == len(members)
                    or self.distance[members[stop]] - d[-1] > SHELL_GAP
                    or self.distance[members[stop]] - d[0] > SHELL_SPREAD
                ):
                    found.append(Shell(int(atomic_number), members[start:stop], float(d[0]), float(d[-1])))
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
                    "atom_element": SYMBOLS[atom.atomic_number],
                    "neighbor": int(atom.neighbor[e]),
                    "element": SYMBOLS[atom.atomic_numbers[e]],
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
                            "atom_element": SYMBOLS[atom.atomic_number],
                            "layer": atom.layer_numbers[layer],
                            "head": head + 1,
                            "frame": number,
                            "weight": float(weight[number]),
                            **dict(zip(names, (axes.round(9) + 0.0).flatten().tolist(), strict=True)),
                            "neighbor": int(atom.neighbor[at]) if at >= 0 else None,
                            "element": SYMBOLS[atom.atomic_numbers[at]] if at >= 0 else None,
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
            "element": SYMBOLS[shell.atomic_number],
            "images": len(shell.members),
            "nearest": round(shell.nearest, 4),
            "farthest": round(shell.farthest, 4),
        }
        for shell in atom.shells
    ]
    return {
        "atom": atom.site,
        "element": SYMBOLS[atom.atomic_number],
        "copies": atom.copies,
        "shells": shells,
        "views": views,
    }
