"""The picture of `facetry explain`: for each atom its surroundings as a layer's head sees them, with the
frames drawn as arrows, and below it how every head of the layer divides its attention.

Drawn as crystallographers do: parallel projection, the axis c upwards, nearer things over farther ones.
"""

from __future__ import annotations

import io
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from facetry.elements import SYMBOLS
from facetry.geometry.polyhedra import hull

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from facetry.tasks.explanation import AtomView, Explanation

AXIS_COLORS = ("#d55e00", "#009e73", "#0072b2")  # e1, e2, e3; told apart by every kind of colour vision
MOST_ATOMS = 4  # drawn in one picture
_INK, _SOFT, _FACE = "#1d232b", "#667080", "#7d8db0"
_WEIGHTS = "Purples"
_COLUMNS = 4  # layers side by side
_PANEL, _CELL, _LABELS, _TITLE, _GAP = 2.45, 0.17, 0.32, 0.5, 0.2  # inches
_MOST_IMAGES, _MOST_SHELLS = 24, 6
_MOST_CORNERS = 14
_AZIMUTHS, _ELEVATIONS = (24, 20, 28, 16, 32, 12, 36, 40, 8), (16, 12, 20, 24, 9)  # degrees; first is best


def attention_plot(found: Explanation) -> bytes:
    """The PNG. One block for each distinct atom, the first `MOST_ATOMS` of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    atoms, layers = found.distinct[:MOST_ATOMS], found.shown_layers()
    columns = min(len(layers), _COLUMNS)
    lines = -(-len(layers) // columns)
    table = found.heads * _CELL
    line = _TITLE + _PANEL + table + _LABELS + _GAP
    head, foot = 0.55, 0.45
    width = max(columns * (_PANEL + 0.35) + 0.35, 6.4)
    height = head + foot + len(atoms) * (lines * line + 0.3)
    scale = _scale(found, atoms)
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    left = (width - columns * (_PANEL + 0.35)) / 2 + 0.2
    top = height - 0.3
    _heading(figure, found, top, width)
    top -= head - 0.3
    for atom in atoms:
        _text(figure, 0.25, top - 0.1, _atom_title(found, atom), size=10, weight="bold")
        top -= 0.3
        drawn = _drawn_images(found, atom)
        view = _best_view(found, atom, drawn)
        shells = _drawn_shells(found, atom)
        for number, layer in enumerate(layers):
            x = left + (number % columns) * (_PANEL + 0.35)
            y = top - (number // columns) * line
            shown = found.shown_head(atom, layer)
            _panel_title(figure, atom, layer, shown, x + _PANEL / 2, y)
            box = _axes(figure, x, y - _TITLE - _PANEL, _PANEL, _PANEL)
            _environment(box, atom, layer, shown, drawn, view, scale)
            box = _axes(figure, x, y - _TITLE - _PANEL - table, _PANEL, table)
            _shares(box, atom, layer, shown, shells, number % columns == 0)
        top -= lines * line
    _legend(figure, found, scale, width)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


# ------------------------------------------------------------------ words


def _heading(figure: Figure, found: Explanation, y: float, width: float) -> None:
    words = found.predictions[0].words()
    most = int(width * 13)
    _text(figure, 0.25, y, words if len(words) <= most else words[: most - 1] + "…", size=9, color=_SOFT)


def _atom_title(found: Explanation, atom: AtomView) -> str:
    position = next(p for p in found.alike if found.atoms[p] is atom)
    others = [str(found.atoms[o].site) for o in found.alike[position]]
    same = f", the same as {_listed(others)}" if others else ""
    return f"{SYMBOLS[atom.atomic_number]}, atom {atom.site}{same}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def _panel_title(figure: Figure, atom: AtomView, layer: int, head: int, x: float, y: float) -> None:
    focus = atom.focus(layer, head)
    _text(
        figure,
        x,
        y - 0.1,
        f"layer {atom.layer_numbers[layer]}, head {head + 1}",
        size=8.5,
        ha="center",
        weight="bold",
    )
    if focus is None:
        return
    count = len(atom.axes[layer][head])
    share = atom.shell_weights[layer, head, focus.shell]
    words = f"{100 * share:.0f} % on {atom.shells[focus.shell]}"
    if focus.shape:
        words += f"\n{focus.shape}"
    if count:
        words += f"{', ' if focus.shape else chr(10)}{count} frame{'s' if count > 1 else ''}"
    _text(figure, x, y - 0.34, words, size=7.5, color=_SOFT, ha="center", linespacing=1.25)


def _text(figure: Figure, x: float, y: float, words: str, **style: Any) -> None:
    """At inches from the lower left corner; what files say is drawn as it is, never as a formula."""
    width, height = figure.get_size_inches()
    style = {"color": _INK, "va": "center"} | style
    figure.text(x / width, y / height, words, parse_math=False, **style)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, width / across, height / up))


# ------------------------------------------------------------------ what is drawn


def _scale(found: Explanation, atoms: list[AtomView]) -> Normalize:
    """Colours of single images: from nothing to the heaviest neighbour in the picture."""
    from matplotlib.colors import Normalize

    shown = [
        atom.attention[layer, found.shown_head(atom, layer), 1:]
        for atom in atoms
        for layer in found.shown_layers()
    ]
    return Normalize(0, max(1e-6, *(float(weights.max(initial=0)) for weights in shown)))


def _drawn_images(found: Explanation, atom: AtomView) -> Int[np.ndarray, " images"]:
    """The shells that the shown heads look at and others not much farther, heavy ones first."""
    looked, weight = set(), np.zeros(len(atom.shells))
    for layer in found.shown_layers():
        head = found.shown_head(atom, layer)
        weight = np.maximum(weight, atom.shell_weights[layer, head])
        if (focus := atom.focus(layer, head)) is not None:
            looked.add(focus.shell)
    chosen = sorted(looked)
    count = sum(len(atom.shells[s].members) for s in chosen)
    reach = 1.75 * max((atom.shells[s].farthest for s in chosen), default=0.0)
    for shell in sorted(range(1, len(atom.shells)), key=lambda s: -weight[s]):
        members = len(atom.shells[shell].members)
        fits = atom.shells[shell].farthest <= reach and count + members <= _MOST_IMAGES
        if shell not in looked and fits and weight[shell] > 0.01:
            chosen.append(shell)
            count += members
    return np.concatenate([np.zeros(0, dtype=np.int64), *(atom.shells[s].members for s in sorted(chosen))])


def _drawn_shells(found: Explanation, atom: AtomView) -> list[int]:
    """Shells with a column of their own: those with most weight anywhere in the shown layers."""
    weight = atom.shell_weights[found.shown_layers()].max((0, 1))
    heavy = sorted(range(1, len(weight)), key=lambda s: -weight[s])[:_MOST_SHELLS]
    return [0, *sorted(s for s in heavy if weight[s] >= 0.01)]


# ------------------------------------------------------------------ surroundings


def _view(lattice: Float[np.ndarray, "3 3"], azimuth: float, elevation: float) -> Float[np.ndarray, "3 3"]:
    """Rows: right, up and towards the eye. c is upright; turned with the crystal."""
    up = lattice[2] / np.linalg.norm(lattice[2])
    front = lattice[0] - (lattice[0] @ up) * up
    front /= np.linalg.norm(front)
    side = np.cross(up, front)
    flat = np.cos(azimuth) * front + np.sin(azimuth) * side
    eye = np.cos(elevation) * flat + np.sin(elevation) * up
    right = np.cross(up, flat)
    return np.stack([right, np.cross(eye, right), eye])


def _best_view(
    found: Explanation, atom: AtomView, drawn: Int[np.ndarray, " images"]
) -> Float[np.ndarray, "3 3"]:
    """Of some directions the one from which the drawn images cover each other least."""
    points = np.concatenate([np.zeros((1, 3)), atom.vectors[drawn]])
    bonds = [atom.shells[f.shell].nearest for la in found.shown_layers()
             if (f := atom.focus(la, found.shown_head(atom, la))) is not None]  # fmt: skip
    apart = 0.36 * min(bonds, default=1.0)
    near = np.exp(-((np.linalg.norm(points, axis=1) / (4 * apart)) ** 2))  # what is near counts more
    first, second = np.triu_indices(len(points), 1)
    importance = near[first] + near[second]
    best, least = np.eye(3), np.inf
    for azimuth, elevation in product(_AZIMUTHS, _ELEVATIONS):
        view = _view(found.crystal.lattice, np.radians(azimuth), np.radians(elevation))
        flat = points @ view[:2].T
        gap = np.linalg.norm(flat[first] - flat[second], axis=1)
        covered = float((importance * np.clip(1 - gap / apart, 0, None)).sum())
        if covered < least - 1e-9:
            best, least = view, covered
    return best


def _environment(
    box: Axes,
    atom: AtomView,
    layer: int,
    head: int,
    drawn: Int[np.ndarray, " images"],
    view: Float[np.ndarray, "3 3"],
    scale: Normalize,
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    colors = colormaps[_WEIGHTS]
    points = atom.vectors[drawn] @ view.T
    weights = atom.attention[layer, head]
    focus = atom.focus(layer, head)
    looked = atom.shells[focus.shell].members if focus is not None else np.zeros(0, dtype=np.int64)
    bond = float(atom.distance[looked].mean()) if len(looked) else 1.0
    size = 0.15 * bond
    reach = float(np.abs(points[:, :2]).max(initial=bond)) + 1.5 * size
    box.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    box.axis("off")
    span = max(float(np.abs(points[:, 2]).max(initial=0)), 1e-6)

    def layer_of(depth: float) -> float:
        return 10 + 5 * depth / span

    _polyhedron(box, atom.vectors[looked] @ view.T, size, layer_of)
    widest = max(float(weights[1:].max(initial=0)), 1e-9)
    for image in looked:
        x, y, z = view @ atom.vectors[image]
        ends = np.array([1.1 * size, atom.distance[image] - size]) / atom.distance[image]  # between the balls
        wide = 0.6 + 2.2 * weights[image] / widest
        color = _faded("#4b5563", z / span)
        box.plot(ends * x, ends * y, color=color, lw=wide, zorder=layer_of(z / 2), solid_capstyle="butt")
    for image, (x, y, z) in [(0, np.zeros(3)), *zip(drawn, points, strict=True)]:
        share = weights[image]
        own = image == 0
        fill = np.array((1, 1, 1, 1)) if own else np.array(colors(0.08 + 0.87 * scale(share)))
        dark = not own and fill[:3] @ (0.3, 0.59, 0.11) < 0.55
        looked_at = image in looked
        radius = size * (1.2 if own else 1.0 if looked_at else 0.78) * (1 + 0.1 * z / span)
        order = layer_of(z)
        edge = _INK if own or looked_at else "#9aa3b2"
        circle = Circle(
            (x, y), radius, fc=_faded(fill[:3], z / span), ec=edge, lw=1.1 if own else 0.7, zorder=order
        )
        box.add_patch(circle)
        points_wide = 72 * _PANEL * radius / reach  # diameter in points
        box.text(
            x, y, SYMBOLS[atom.atomic_numbers[image]], ha="center", va="center_baseline", zorder=order + 1e-3,
            fontsize=float(np.clip(0.44 * points_wide, 3.5, 9)), color="white" if dark else _INK,
        )  # fmt: skip
    halo = withStroke(linewidth=2.2, foreground="white")
    _arrows(box, atom.axes[layer][head], view, bond, points[:, :2], halo)


def _faded(color: Any, depth: float) -> tuple[float, float, float]:
    """Paler with distance from the eye; depth from -1 (far) to 1."""
    from matplotlib.colors import to_rgb

    pale = 0.32 * (1 - depth) / 2
    red, green, blue = (float(c + (1 - c) * pale) for c in to_rgb(color))
    return red, green, blue


def _polyhedron(box: Axes, corners: Float[np.ndarray, "corners 3"], size: float, layer_of: Any) -> None:
    from matplotlib.patches import Polygon

    if len(corners) > _MOST_CORNERS:
        return
    faces, edges = hull(corners)
    light = np.array([-0.35, 0.55, 0.76])
    for face in faces:
        a, b, c = corners[face]
        normal = np.cross(b - a, c - a)
        normal /= max(float(np.linalg.norm(normal)), 1e-12)
        shade = 0.10 + 0.16 * (1 - max(float(normal @ light), 0.0))
        depth = float(corners[face, 2].mean())
        box.add_patch(Polygon(corners[face, :2], fc=_FACE, alpha=shade, lw=0, zorder=layer_of(depth) - 0.05))
    deepest = max(float(np.abs(corners[:, 2]).max(initial=0)), 1e-9)
    for one, two in edges:
        along = corners[two] - corners[one]
        step = along * min(size / float(np.linalg.norm(along)), 0.5)  # from ball to ball
        x, y, z = np.stack([corners[one] + step, corners[two] - step], 1)
        depth = float(z.mean())
        color = _faded("#56627d", depth / deepest)
        box.plot(x, y, color=color, lw=0.7 if depth < 0 else 1.0, zorder=layer_of(depth))


def _arrows(
    box: Axes,
    frames: Float[np.ndarray, "frames 3 3"],
    view: Float[np.ndarray, "3 3"],
    bond: float,
    balls: Float[np.ndarray, "images 2"],
    halo: Any,
) -> None:
    """All tied e1 as thin arrows, one whole frame, the one that is best to see, as thick ones."""
    if not len(frames):
        return
    seen = frames @ view.T
    for tip in np.unique(seen[:, 0].round(4), axis=0):
        if np.abs(tip).max() > 0:
            _arrow(box, tip * bond, 0.2, 0.62, AXIS_COLORS[0], 1.3, 0.85, None)
    best = seen[max(range(len(seen)), key=lambda f: _clearness(seen[f]))]
    taken = [*balls, np.zeros(2), *(0.6 * bond * best[:, :2])]  # where a name would be hard to read
    for number in np.argsort(best[:, 2]):
        tip = best[number]
        if np.abs(tip).max() == 0:
            continue
        _arrow(box, tip * bond, 0.2, 0.72, AXIS_COLORS[number], 2.4, 1.0, halo)
        flat = tip[:2] / max(float(np.linalg.norm(tip[:2])), 1e-9)
        aside = np.array([-flat[1], flat[0]])
        end = 0.72 * bond * tip[:2]
        sides = ((0, 1), (0, -1), (1, 0), (0.7, 0.7), (0.7, -0.7), (-1, 1), (-1, -1))
        places = [end + 0.15 * bond * (ahead * flat + by * aside) for ahead, by in sides]
        x, y = max(places, key=lambda p: min(float(np.linalg.norm(p - t)) for t in taken))
        taken.append(np.array([x, y]))
        box.text(
            x, y, f"e$_{number + 1}$", color=AXIS_COLORS[number], fontsize=8, fontweight="bold",
            ha="center", va="center", zorder=40, path_effects=[halo],
        )  # fmt: skip


def _clearness(axes: Float[np.ndarray, "3 3"]) -> float:
    """How well the three axes are told apart in projection; those that come towards the eye are better."""
    flat = axes[:, :2]
    length = np.linalg.norm(flat, axis=1)
    cross = [
        abs(float(flat[a, 0] * flat[b, 1] - flat[a, 1] * flat[b, 0])) for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    return float(length.min()) + min(cross) + 0.2 * float(axes[:, 2].sum())


def _arrow(
    box: Axes,
    tip: Float[np.ndarray, "3"],
    start: float,
    stop: float,
    color: str,
    wide: float,
    alpha: float,
    halo: Any,
) -> None:
    """From `start` to `stop` of the way to the tip, so that the atom's symbol can be read."""
    from matplotlib.patches import FancyArrowPatch

    (x, y), depth = tip[:2], float(tip[2])
    patch = FancyArrowPatch(
        (float(start * x), float(start * y)), (float(stop * x), float(stop * y)), arrowstyle="-|>",
        mutation_scale=4.2 * wide, lw=wide, color=color, alpha=alpha, shrinkA=0, shrinkB=0,
        zorder=30 + 0.1 * depth + (5 if halo else 0),
    )  # fmt: skip
    if halo is not None:
        patch.set_path_effects([halo])
    box.add_patch(patch)


# ------------------------------------------------------------------ shares


def _shares(box: Axes, atom: AtomView, layer: int, shown: int, shells: list[int], first: bool) -> None:
    """Heads by shells: per cent of the attention, as numbers and as shades."""
    weights = 100 * atom.shell_weights[layer]
    table = np.column_stack([weights[:, shells], 100 - weights[:, shells].sum(1)])
    names = [_shell_name(atom, s) for s in shells] + ["rest\n"]
    if len(shells) == len(atom.shells):
        table, names = table[:, :-1], names[:-1]
    box.imshow(table, cmap=_WEIGHTS, vmin=0, vmax=max(float(table.max()) * 1.15, 1), aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if value >= 0.5:
            dark = value > 0.62 * table.max()
            box.text(column, row, f"{value:.0f}", ha="center", va="center_baseline", fontsize=6.5,
                     color="white" if dark else _INK)  # fmt: skip
    box.set_xticks(range(len(names)), names, fontsize=6.5, color=_INK, linespacing=1.15)
    box.set_yticks(range(len(table)), [str(h + 1) for h in range(len(table))], fontsize=6.5, color=_SOFT)
    box.get_yticklabels()[shown].set(fontweight="bold", color=_INK)
    box.tick_params(length=0, pad=2)
    box.axhline(shown - 0.5, color=_INK, lw=0.9)
    box.axhline(shown + 0.5, color=_INK, lw=0.9)
    for side in box.spines.values():
        side.set(color="#c5cbd6", lw=0.6)
    if first:
        box.set_ylabel("head", fontsize=7, color=_SOFT, labelpad=1)


def _shell_name(atom: AtomView, shell: int) -> str:
    s = atom.shells[shell]
    if shell == 0:
        return "self\nr / Å"
    return f"{len(s.members)} {SYMBOLS[s.atomic_number]}\n{(s.nearest + s.farthest) / 2:.2f}"


def _legend(figure: Figure, found: Explanation, scale: Normalize, width: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D

    framed = any(len(frames) for atom in found.atoms for of_heads in atom.axes for frames in of_heads)
    x = 0.3
    if framed:
        handles = [Line2D([], [], color=c, lw=2.4, label=f"e$_{n + 1}$") for n, c in enumerate(AXIS_COLORS)]
        handles.append(Line2D([], [], color=AXIS_COLORS[0], lw=1.2, label="e$_1$ of all tied frames"))
        figure.legend(
            handles=handles, loc="center left", ncols=4,
            bbox_to_anchor=(x / width, 0.33 / figure.get_size_inches()[1]),
            frameon=False, fontsize=7.5, handlelength=1.6, columnspacing=1.3, labelcolor=_INK,
        )  # fmt: skip
    bar = _axes(figure, width - 2.3, 0.36, 1.3, 0.09)
    ramp = ListedColormap(colormaps[_WEIGHTS](np.linspace(0.08, 0.95, 64)))
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=ramp, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_xticks([0, 1], ["0", f"{100 * scale.vmax:.1f} %"], fontsize=7, color=_INK)
    bar.set_yticks([])
    bar.tick_params(length=0, pad=2)
    for side in bar.spines.values():
        side.set(color="#c5cbd6", lw=0.6)
    _text(figure, width - 2.36, 0.405, "weight of an image", size=7.5, ha="right")
    if len(found.distinct) > MOST_ATOMS:
        left = len(found.distinct) - MOST_ATOMS
        _text(
            figure, 0.3, 0.1, f"{left} more kinds of atoms: see the page and the table", size=7, color=_SOFT
        )
