"""Draws docs/data-way.svg, the data's way through the package: `python docs/data_way.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

FILE = Path(__file__).parent / "data-way.svg"
WIDTH, HEIGHT = 212, 104  # of a box
LEFT, TOP, RIGHT, DOWN = 16, 16, 252, 164  # the first box, and the steps from box to box
INK, FILL, EDGE, FAINT = "#1f2933", "#f1f5f9", "#64748b", "#52606d"

# column, row: title, folder, what happens there
BOXES = {
    (0, 0): ("files", "", "CIF, POSCAR, xyz, JSON,", "archives, tables"),
    (1, 0): ("read", "io/", "a worker process with a", "time limit; symmetry"),
    (2, 0): ("Crystal", "crystal.py", "lattice, positions, elements;", "checked once, then frozen"),
    (3, 0): ("Dataset, Splits", "data/", "named sets by manifest and", "hash; your own tables"),
    (2, 1): ("cells, frames", "geometry/", "primitive and reduced cell,", "e1 e2 e3 and their ties"),
    (1, 1): ("PeriodicGraph", "graph/", "centre, neighbour, image:", "integers, no distances"),
    (0, 1): ("Batch", "graph/batch.py", "flat tensors of crystals,", "atoms and edges"),
    (3, 1): ("training", "training/", "recipe, order, loss,", "resume points, receipt"),
    (0, 2): ("network", "models/ nn/", "one paper, one file, from", "shared layers"),
    (1, 2): ("tasks", "tasks/ samplers/", "unit, interval, domain;", "predictions.csv, structures"),
    (2, 2): ("evaluation", "evaluation/", "scores, certificates, audits;", "report.html"),
    (3, 2): ("run folder", "runs/NAME", "model.safetensors,", "model.json, receipt.json"),
}
ARROWS = [
    ((0, 0), (1, 0)),
    ((1, 0), (2, 0)),
    ((2, 0), (3, 0)),
    ((2, 0), (2, 1)),
    ((2, 1), (1, 1)),
    ((1, 1), (0, 1)),
    ((0, 1), (0, 2)),
    ((0, 2), (1, 2)),
    ((1, 2), (2, 2)),
    ((3, 0), (3, 1)),
    ((3, 1), (3, 2)),
]


def corner(box: tuple[int, int]) -> tuple[int, int]:
    return LEFT + RIGHT * box[0], TOP + DOWN * box[1]


def text(x: int, y: int, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def arrow(one: tuple[int, int], two: tuple[int, int]) -> str:
    """From the side of one box to the facing side of a neighbour."""
    (x, y), (u, v) = corner(one), corner(two)
    if y == v:
        middle, right = y + HEIGHT // 2, x < u
        start, end = (x + WIDTH, u - 3) if right else (x, u + WIDTH + 3)
        return line(f"M{start} {middle} H{end}")
    return line(f"M{x + WIDTH // 2} {y + HEIGHT} V{v - 3}")


def line(path: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{EDGE}" stroke-width="1.6" marker-end="url(#tip)"{dash}/>'


def draw() -> str:
    width, height = 2 * LEFT + 3 * RIGHT + WIDTH, 2 * TOP + 2 * DOWN + HEIGHT + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>The way of the data, from a file to a prediction and from a table to a model</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{EDGE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(arrow(one, two) for one, two in ARROWS),
    ]
    (x, y), (u, v) = corner((3, 1)), corner((0, 2))
    between, below = y + HEIGHT + (DOWN - HEIGHT) // 2, v + HEIGHT + 26
    side = u + WIDTH // 2 + 60
    out.append(line(f"M{x + 40} {y + HEIGHT} V{between} H{side} V{v - 3}", dashed=True))
    out.append(text(side + 12, between - 7, "batches in, gradients back", f'font-size="12.5" fill="{FAINT}"'))
    (x, y) = corner((3, 2))
    out.append(line(f"M{x + 40} {y + HEIGHT} V{below} H{side} V{v + HEIGHT + 3}", dashed=True))
    out.append(text(side + 12, below - 7, "facetry.load", f'font-size="12.5" fill="{FAINT}"'))
    for box, (title, folder, *lines) in BOXES.items():
        x, y = corner(box)
        out.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{FILL}" stroke="{EDGE}"/>'
        )
        out.append(text(x + 14, y + 27, title, f'font-size="16" font-weight="bold" fill="{INK}"'))
        out.append(text(x + 14, y + 47, folder, 'font-size="13" font-family="monospace" fill="#0b5394"'))
        for number, words in enumerate(lines):
            out.append(text(x + 14, y + 70 + 19 * number, words, f'font-size="13" fill="{INK}"'))
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
