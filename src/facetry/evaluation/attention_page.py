"""The page of `facetry explain`: one file that can be turned with the mouse and needs no network.

3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015); BSD, `assets/3Dmol-LICENSE.txt`) draws; it is
inside. A policy in the page forbids every request. What files say comes as JSON and is set as text.
"""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from facetry._version import __version__
from facetry.elements import SYMBOLS
from facetry.geometry.polyhedra import hull

if TYPE_CHECKING:
    from facetry.tasks.explanation import AtomView, Explanation

LEAST = 1e-3  # weight; an image that has less in every layer and head is left out
_UNIT = 1e-5  # weights are whole numbers of it
_MOST_CORNERS = 14
_RAMP = (  # white to violet, even in lightness
    "#fcfbfd", "#f4f2f8", "#e9e8f2", "#dbdaeb", "#c9c9e2", "#b6b6d8", "#a29fcb", "#908bc0", "#8074b5",
    "#7159a7", "#61409b", "#53278f", "#471182", "#3f007d",
)  # fmt: skip


def attention_page(found: Explanation) -> str:
    """The HTML."""
    assets = files("facetry.evaluation") / "assets"
    words = [p.words() for p in found.predictions]
    parts = {
        "TITLE": escape(f"{found.crystal.name or found.name}: what {found.model} looked at"),
        "SUBTITLE": escape("; ".join(words)),
        "FOOTER": escape(
            f"facetry {__version__}. Atoms are sites of the file, counted from 0; images count its lattice"
            " vectors. Weights of one atom, layer and head sum to one. Drawn by 3Dmol.js (BSD)."
        ),
        "STYLE": (assets / "explain.css").read_text(encoding="utf-8"),
        "SCRIPT": (assets / "explain.js").read_text(encoding="utf-8"),
        "LIBRARY": (assets / "3Dmol-min.js").read_text(encoding="utf-8"),
        "DATA": inert_json(page_data(found)),
    }
    page = (assets / "explain.html").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], page)


def inert_json(data: Any) -> str:
    """JSON that ends no script element and starts no markup, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(found: Explanation) -> dict[str, Any]:
    """What the page draws, in rounded numbers."""
    return {
        "layers": found.layers,
        "heads": found.heads,
        "layerNumbers": found.atoms[0].layer_numbers,
        "layer": found.layers - 1 if found.layer is None else found.layer,
        "head": found.head,
        "framed": any(len(f) for a in found.atoms for of_heads in a.axes for f in of_heads),
        "least": LEAST,
        "ramp": _RAMP,
        "atoms": [_atom_data(atom) for atom in found.atoms],
    }


def _atom_data(atom: AtomView) -> dict[str, Any]:
    layers, heads, _ = atom.attention.shape
    focus = [[atom.focus(layer, head) for head in range(heads)] for layer in range(layers)]
    looked = sorted({f.shell for of_heads in focus for f in of_heads if f is not None})
    keep = atom.attention.max((0, 1)) >= LEAST
    for shell in looked:
        keep[atom.shells[shell].members] = True
    keep[0] = True
    kept = np.nonzero(keep)[0]
    place = np.full(len(keep), -1)
    place[kept] = np.arange(len(kept))
    members = {shell: place[atom.shells[shell].members].tolist() for shell in looked}
    sets: dict[str, int] = {}  # tied frames of many heads are the same
    ids = []
    for layer in range(layers):
        ids.append([])
        for head in range(heads):
            axes = atom.axes[layer][head].round(4) + 0.0
            text = json.dumps(axes.reshape(len(axes), 9).tolist())
            ids[-1].append(sets.setdefault(text, len(sets)))
    return {
        "site": atom.site,
        "element": SYMBOLS[atom.atomic_number],
        "symbols": [SYMBOLS[z] for z in atom.atomic_numbers[kept]],
        "sites": atom.neighbor[kept].tolist(),
        "images": atom.image[kept].tolist(),
        "positions": (atom.vectors[kept].round(3) + 0.0).tolist(),
        "distances": atom.distance[kept].round(4).tolist(),
        "shells": [str(shell) for shell in atom.shells],
        "shares": (atom.shell_weights.round(5) + 0.0).tolist(),
        "weights": np.rint(atom.attention[:, :, kept] / _UNIT).astype(np.int64).tolist(),
        "focus": [[None if f is None else [f.shell, f.pointed, f.shape] for f in row] for row in focus],
        "telling": [atom.telling_head(layer) for layer in range(layers)],
        "members": members,
        "hulls": {shell: _hull(atom, shell, place) for shell in looked},
        "sets": [json.loads(text) for text in sets],
        "set": ids,
    }


def _hull(atom: AtomView, shell: int, place: np.ndarray) -> dict[str, Any] | None:
    """Faces and edges of a shell's polyhedron in the page's numbering; None where there is none to draw."""
    members = atom.shells[shell].members
    if len(members) > _MOST_CORNERS:
        return None
    faces, edges = hull(atom.vectors[members])
    if not len(faces):
        return None
    return {"faces": place[members[faces]].tolist(), "edges": place[members[edges]].tolist()}
