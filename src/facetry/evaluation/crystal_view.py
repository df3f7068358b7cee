"""Crystals side by side in a page, turned together with the mouse: true, disturbed, relaxed.

3Dmol.js draws (see `attention_page`); what is drawn comes as inert JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float

from facetry.crystal import Crystal
from facetry.evaluation.attention_page import inert_json

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_EDGE = 1e-3  # fraction; atoms so near to a face are drawn on the opposite one, too
_KINDS = ("true", "input", "answer")


def crystal_view(examples: Sequence[tuple[Crystal, Crystal, Crystal]]) -> list[str]:
    """A section with three views and buttons that choose the crystal. An example is a crystal as it is, as
    the model got it and as it answered; the others are turned to lie on the first."""
    if not examples:
        return []
    data = [
        {"name": true.name or true.formula, "views": [_drawn(c, true) for c in (true, noisy, answer)]}
        for true, noisy, answer in examples
    ]
    assets = files("facetry.evaluation") / "assets"
    boxes = "".join(
        f'<figure><div class="crystal" id="crystal-{kind}"></div><figcaption>{kind}'
        f' <span id="cell-{kind}"></span></figcaption></figure>'
        for kind in _KINDS
    )
    buttons = "".join(
        f'<button type="button" data-crystal="{i}">{escape(str(e["name"]))}</button>'
        for i, e in enumerate(data)
    )
    return [
        "<h2>Crystals</h2>",
        '<p class="note">Drag to turn, wheel to zoom; the three views turn together.</p>',
        f'<p class="choose" id="crystals">{buttons}</p><div class="crystals">{boxes}</div>',
        f'<script type="application/json" id="crystal-data">{inert_json(data)}</script>',
        f"<script>{(assets / '3Dmol-min.js').read_text(encoding='utf-8')}</script>",
        f"<script>{(assets / 'crystals.js').read_text(encoding='utf-8')}</script>",
    ]


def turned_onto(
    lattice: Float[np.ndarray, "3 3"], other: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 3"]:
    """The rotation (or reflection) R for which lattice @ R is nearest to the other."""
    u, _, v = np.linalg.svd(lattice.T @ other)
    return u @ v


def _drawn(crystal: Crystal, true: Crystal) -> dict[str, Any]:
    """Atoms in and on the cell, and its twelve edges, in Å. The true crystal tells which images are on the
    cell, so that all three show the same atoms; a common shift of all atoms means nothing and is left out."""
    lattice = crystal.lattice @ turned_onto(crystal.lattice, true.lattice)
    frac = true.frac_coords - np.floor(true.frac_coords + _EDGE)
    corners = np.array(list(np.ndindex(2, 2, 2)))
    near = (frac[:, None] <= _EDGE) | (corners[None] == 0)
    atom, image = np.nonzero(near.all(axis=2))
    moved = crystal.frac_coords - true.frac_coords
    moved = moved - moved.round()
    moved = moved - moved.mean(axis=0)
    points = (frac[atom] + moved[atom] + corners[image] - 0.5) @ lattice
    ends = [(a, b) for i, a in enumerate(corners) for b in corners[i + 1 :] if int(np.abs(a - b).sum()) == 1]
    lines = [[((p - 0.5) @ lattice).round(3).tolist() for p in pair] for pair in ends]
    symbols, places = crystal.symbols, (points.round(3) + 0.0).tolist()
    lengths, angles = crystal.lengths.round(2).tolist(), crystal.angles.round(1).tolist()
    return {
        "atoms": [[symbols[i], *xyz] for i, xyz in zip(atom.tolist(), places, strict=True)],
        "edges": lines,
        "cell": f"{' '.join(map(str, lengths))} Å, {' '.join(map(str, angles))}°",
    }
