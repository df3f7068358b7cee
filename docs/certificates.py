"""Measures the certificates of all models and renews docs/certificates.md: `python docs/certificates.py`.

Numbers are kept in docs/certificates.json, an entry for each model; entries that are named after the command
are measured alone. All take half an hour on one core.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
NUMBERS = DOCS / "certificates.json"
DEFORMED = 16

COMFORMER = {"channels": 32, "k": 12}
LATTICE = {"channels": 32, "blocks": 2}
FRAMER = {**LATTICE, "heads": 4}
RELAXING = {"channels": 16, "layers": 2, "blocks": 2}
BOX = {"construction": "published", "reach": 1.5}  # the box of a skewed cell holds millions of images
IN_BOXES = ("CsCl", "NaCl", "ZnS, wurtzite", "orthorhombic lattice, P1 motif")
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "icomformer": ("icomformer", COMFORMER),
    "icomformer, canonical": ("icomformer", {**COMFORMER, "construction": "canonical"}),
    "icomformer, continuous": ("icomformer", {**COMFORMER, "construction": "continuous"}),
    "icomformer, published": ("icomformer", {**COMFORMER, "construction": "published"}),
    "icomformer, gap 0.05 Å": ("icomformer", {**COMFORMER, "gap": 0.05}),
    "icomformer, no edge layer": ("icomformer", {**COMFORMER, "edge_layer": False}),
    "ecomformer": ("ecomformer", {**COMFORMER, "scalars": 8}),
    "ecomformer, pseudoscalar": ("ecomformer", {**COMFORMER, "scalars": 8, "pseudoscalar": True}),
    "ecomformer, degree 1": ("ecomformer", {**COMFORMER, "scalars": 8, "degree": 1}),
    "ecomformer, published": ("ecomformer", {**COMFORMER, "scalars": 8, "construction": "published"}),
    "crystalformer": ("crystalformer", LATTICE),
    "crystalformer, reach 5": ("crystalformer", {**LATTICE, "reach": 5.0}),
    "crystalformer, reciprocal heads": ("crystalformer", {**LATTICE, "reciprocal": "heads"}),
    "crystalformer, reciprocal blocks": ("crystalformer", {**LATTICE, "reciprocal": "blocks"}),
    "crystalformer, no value positions": ("crystalformer", {**LATTICE, "value_positions": False}),
    "crystalformer, published": ("crystalformer", {**LATTICE, **BOX}),
    "crystalframer": ("crystalframer", FRAMER),
    "crystalframer, lightweight": ("crystalframer", {**FRAMER, "angles": "lightweight"}),
    "crystalframer, continuous": ("crystalframer", {**FRAMER, "frames": "continuous"}),
    "crystalframer, continuous, reach 5": ("crystalframer", {**FRAMER, "frames": "continuous", "reach": 5.0}),
    "crystalframer, static": ("crystalframer", {**FRAMER, "frames": "static"}),
    "crystalframer, weighted_pca": ("crystalframer", {**FRAMER, "frames": "weighted_pca"}),
    "crystalframer, lattice": ("crystalframer", {**FRAMER, "frames": "lattice"}),
    "crystalframer, pca": ("crystalframer", {**FRAMER, "frames": "pca"}),
    "crystalframer, published": ("crystalframer", {**FRAMER, **BOX}),
    "crystalframer, static, published": ("crystalframer", {**FRAMER, **BOX, "frames": "static"}),
    "crystalframer, weighted_pca, published": ("crystalframer", {**FRAMER, **BOX, "frames": "weighted_pca"}),
    "crystalframer, lattice, published": ("crystalframer", {**FRAMER, **BOX, "frames": "lattice"}),
    "ecn": ("ecn", {"channels": 24, "layers": 2}),
    "ecn, p1": ("ecn", {"channels": 24, "layers": 2, "group": "p1"}),
    "ecn, bravais": ("ecn", {"channels": 24, "layers": 2, "group": "bravais"}),
    "ecn, cells unmarked": ("ecn", {"channels": 24, "layers": 2, "break_symmetry": False}),
    "ecn, bonds within 5 Å": ("ecn", {"channels": 24, "layers": 2, "graph": "radius"}),
    "cgcnn": ("cgcnn", {"channels": 32, "hidden": 32}),
    "megnet": ("megnet", {"channels": 16}),
    "schnet": ("schnet", {"channels": 32, "layers": 3}),
    "schnet, first form": ("schnet", {"channels": 32, "layers": 3, "smooth": False}),
    "empnn": ("empnn", RELAXING),
    "empnn, edges only": ("empnn", {**RELAXING, "fields": "ket_bra_1"}),
    "empnn, ket-bras of triplets": ("empnn", {**RELAXING, "fields": "ket_bra_5"}),
    "empnn, moves atoms": ("empnn", {**RELAXING, "positions": True}),
    "lattice_ff": ("lattice_ff", {"channels": 16, "layers": 2}),
    "continuousp": ("continuousp", {}),
    "continuousp, sharp": ("continuousp", {"basis": "sharp"}),
    "continuousp, narrow": ("continuousp", {"basis": "narrow"}),
    "continuousp_angular": ("continuousp_angular", {}),
}


def entries() -> list[str]:
    """All that is certified: every class of models small with random weights, and the models that ship."""
    from facetry.training.checkpoint import pretrained_names

    return [*RANDOM, *pretrained_names()]


def measured(entry: str) -> dict[str, Any]:
    """The certificate of an entry, without its rows for single crystals."""
    from facetry.evaluation.certificate_suite import suite
    from facetry.tasks.certify import certify, random_model

    model = random_model(*RANDOM[entry]) if entry in RANDOM else entry
    boxed = entry in RANDOM and RANDOM[entry][1].get("reach") == BOX["reach"]
    crystals = [c for c in suite() if c.name in IN_BOXES] if boxed else None
    found = certify(model, crystals, title=entry, deformed=0 if boxed else DEFORMED)
    plain = found.to_dict()
    for followed in plain["continuity"]:
        followed.pop("steps")
        followed.pop("response")
    left = [row["name"] for row in plain.pop("crystals") if row["status"] != "ok"]
    return {**plain, "used": len(found.rows) - len(left), "left": left}


def stored() -> dict[str, Any]:
    """What was measured, in the order of `entries`."""
    found = json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.is_file() else {}
    return {entry: found[entry] for entry in entries() if entry in found}


def store(found: dict[str, Any]) -> None:
    """Replaces the file in one step."""
    lines = [
        f"{json.dumps(e, ensure_ascii=False)}: {json.dumps(found[e], ensure_ascii=False)}"
        for e in entries()
        if e in found
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    temporary = NUMBERS.with_name(".certificates.json.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, NUMBERS)


_COLUMNS = {
    "rotation": ("rotation",),
    "origin": ("translation",),
    "order": ("permutation",),
    "cell": ("lattice_vectors", "cell_choice"),
    "supercell": ("diagonal_supercell", "slanted_supercell", "primitive"),
    "mirror, achiral": ("mirror_achiral",),
    "mirror, chiral": ("mirror_chiral",),
    "batch": ("batch",),
}


def table(series: str) -> str:
    """Largest change over the spread of answers, by kind of change."""
    lines = [f"| | {' | '.join(_COLUMNS)} |", f"|---|{'---|' * len(_COLUMNS)}"]
    for entry, found in stored().items():
        if series not in found["checks"]:
            continue
        cells = [
            _cell([found["checks"][series][c] for c in checks], found["spread"])
            for checks in _COLUMNS.values()
        ]
        lines.append(f"| {entry} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(findings: list[dict[str, Any]], spread: float) -> str:
    there = [f for f in findings if f["count"]]
    if not there:
        return ""
    if any(f["change"] is None for f in there):
        return "**no answer**"
    change = _power(max(f["change"] for f in there) / spread)
    if any(f["verdict"] == "fails" for f in there):
        return f"**fails, {change}**"
    if any(f["verdict"] == "differs" for f in there):
        differing = max(f["differing"] / f["count"] for f in there)
        return f"differs, {change} ({100 * differing:.0f} %)"
    return change


def continuity() -> str:
    """The largest jump over the spread, for every deformation, and what the model's precision adds."""
    kinds = {"jitter": "jitter", "strain": "strain", "crossing": "a bond comes or goes"}
    lines = [f"| | declared | {' | '.join(kinds.values())} | float32 adds |", "|---|---|---|---|---|---|"]
    for entry, found in stored().items():
        cells = []
        for kind in kinds:
            walked = [f for f in found["continuity"] if f["kind"] == kind and not f["problem"]]
            worst = max(walked, key=lambda f: f["jump"], default=None)
            if worst is None:
                cells.append("")
            elif worst["jump"] <= 1e-6 * found["spread"]:
                cells.append("none")
            else:
                place = _power(worst["place"]) + ("" if kind == "strain" else " Å")
                cells.append(f"{_power(worst['jump'] / found['spread'])} at {place}, {worst['name']}")
        declared = "yes" if found["declared"]["continuous"] else "no"
        added = [f["rounding"] for f in found["continuity"] if f.get("rounding") is not None]
        cells.append(_power(max(added) / found["spread"]) if added else "")
        lines.append(f"| {entry} | {declared} | {' | '.join(cells)} |")
    return "\n".join(lines)


def energies() -> str:
    """What is measured of energies only."""
    lines = ["| | residual | allowed | verdict |", "|---|---|---|---|"]
    for entry, found in stored().items():
        many = sum(bool(f["extras"]) for f in stored().values()) > 1
        for e in found["extras"]:
            title = f"{entry}: {e['title']}" if many else e["title"]
            lines.append(f"| {title} | {_power(e['value'])} | {_power(e['allowed'])} | {e['verdict']} |")
    return "\n".join(lines)


def summary() -> str:
    """What was declared and measured, a line for each entry."""
    lines = ["| | class | parameters | crystals | declared | verdict |", "|---|---|---|---|---|---|"]
    words = {"lattice_basis": "cell", "translation": "origin", "permutation": "order", "reflection": "mirror"}
    for entry, found in stored().items():
        names = [words.get(n, n) for n, yes in found["declared"].items() if yes]
        all_six = set(found["declared"]) - {"continuous"}
        declared = [n for n in names if n != "continuous"]
        text = "all six" if len(declared) == len(all_six) else ", ".join(declared)
        text += ", continuous" if "continuous" in names else ""
        verdict = found["verdict"] if found["verdict"] == "holds" else f"**{found['verdict']}**"
        lines.append(
            f"| {entry} | {found['model']} | {found['parameters']} | {found['used']} | {text} | {verdict} |"
        )
    return "\n".join(lines)


def _power(value: float | None) -> str:
    if value is None:
        return "none"
    return (
        "0"
        if value == 0
        else f"{value:.2g}"
        if 0.01 <= abs(value) < 100
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for entry in sys.argv[1:] or entries():
        started = time.perf_counter()
        found = measured(entry)
        store({**stored(), entry: found})
        print(
            f"{entry}: {found['verdict']}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True
        )
    import generate

    for page in generate.stale():
        page.write_text(generate.renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(DOCS.parent), file=sys.stderr)
