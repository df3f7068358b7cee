"""Writes the tables of the documents that are made from the package: `python docs/generate.py`.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; tests/docs fails where it is stale.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
AUDITS = DOCS.parent / "benchmarks" / "audits"
_PLACE = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def sets() -> str:
    """The named sets, from their manifests."""
    from facetry.data import info, list_sets

    lines = [
        "| name | crystals | targets (the first is the default) | split | licence |",
        "|---|---|---|---|---|",
    ]
    for name in list_sets():
        m = info(name)
        first = [m.default_target] if m.default_target else []
        names = first + [t for t in m.targets if t not in first]
        units = {t: f" [{m.targets[t].unit}]" if m.targets[t].unit else "" for t in names}
        targets = ", ".join(f"`{t}`{units[t]}" for t in names[:4]) or "none, structures only"
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        split = {"ours": "ours", "none": "none"}.get(m.split.kind, "official" if m.split.official else "ours")
        part = "" if m.complete else ", **a part of the set**"
        lines.append(f"| `{name}` | {m.rows} | {targets}{more} | {split}{part} | {_cell(m.licence)} |")
    return "\n".join(lines)


def defects() -> str:
    """What is incomplete, and the leaks between sets."""
    from facetry.data import info, list_sets

    lines = []
    for name in list_sets():
        m = info(name)
        notes = ([m.incomplete] if not m.complete else []) + list(m.leaks)
        lines += [f"- `{name}`: {' '.join(note.rstrip('.') + '.' for note in notes)}"] if notes else []
    return "\n".join(lines)


def _recipes(family: str) -> list[tuple[str, dict, dict]]:
    """Name, model and training of the shipped recipes whose model belongs to a family."""
    from facetry.training import recipe_names

    folder = DOCS.parent / "src" / "facetry" / "recipes"
    found = []
    for name in recipe_names():
        tables = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
        if family in tables["model"]["name"]:
            found.append((name, tables["model"], tables["training"]))
    return found


def settings() -> str:
    """The recipes of ComFormer that ship."""
    columns = ("recipe", "layers", "k", "channels", "rate", "loss", "schedule", "epochs", "published epochs")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, model, training in _recipes("comformer"):
        cells = (
            f"`{name}`",
            model["layers"],
            model["k"],
            model.get("channels", 256),
            f"{training['learning_rate']:g}",
            training.get("loss", "cross entropy"),
            training["schedule"],
            training["epochs"],
            training.get("published_epochs", ""),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def lattice_settings() -> str:
    """The recipes of Crystalformer and CrystalFramer that ship."""
    columns = "recipe|blocks|frames|angles|rate|schedule|loss|batch|epochs|averaged"
    lines = [f"| {columns.replace('|', ' | ')} |", f"|{'---|' * (columns.count('|') + 1)}"]
    for name, model, training in _recipes("crystal"):
        framed = model["name"] == "crystalframer"
        cells = (
            f"`{name}`",
            model.get("blocks", 4),
            model.get("frames", "max") if framed else "",
            model.get("angles", "default") if framed else "",
            f"{training['learning_rate']:g}",
            training["schedule"],
            training.get("loss", "cross entropy"),
            training["batch_size"],
            training["epochs"],
            f"{training['averaging_epochs']} epochs"
            if "averaging_epochs" in training
            else training["averaging"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def baseline_settings() -> str:
    """The recipes of the baselines that ship."""
    columns = ("recipe", "rate", "loss", "schedule", "batch", "epochs", "published epochs")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, _, training in (r for family in ("cgcnn", "megnet", "schnet") for r in _recipes(family)):
        cells = (
            f"`{name}`",
            f"{training['learning_rate']:g}",
            training.get("loss", "cross entropy"),
            training["schedule"],
        )
        cells += (training["batch_size"], training["epochs"], training.get("published_epochs", ""))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def cell_settings() -> str:
    """The recipes of ECN that ship."""
    columns = ("recipe", "group", "graph", "rate", "loss", "schedule", "batch", "epochs", "published epochs")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, model, training in _recipes("ecn"):
        cells = (
            f"`{name}`",
            model.get("group", "s8"),
            model.get("graph", "voronoi"),
            f"{training['learning_rate']:g}",
            training.get("loss", "cross entropy"),
            training["schedule"],
            training["batch_size"],
            training["epochs"],
            training.get("published_epochs", ""),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


EMPNN_OPTIONS = {
    "fields": "what acts on the lattice, see below",
    "layers": "message layers on the given lattice, before the first deformation",
    "blocks": "deformations, each with a message layer of its own",
    "channels": "of an atom's vector",
    "k": "neighbours of an atom, and all that are as near as the last of them",
    "repeated": "all blocks share their weights",
    "weight_clamp": "κ of κ tanh w for every number w; 0: none; the paper tries 0.01",
    "limit": "β of ‖B‖ ← β tanh(‖B‖/β); 0: none",
    "exponential": "1 + B, or the matrix exponential of B",
    "positions": "atoms move too",
    "min_sin": "triplets with a smaller sine in the given lattice are left out; the published code has 0.001",
}


def lattice_options() -> str:
    """The constructor's arguments of EMPNN."""
    import inspect
    import typing

    from facetry.models import EMPNN

    hints = typing.get_type_hints(inspect.unwrap(EMPNN.__init__))
    lines = ["| option | default | choices | |", "|---|---|---|---|"]
    for name, argument in inspect.signature(EMPNN.__init__).parameters.items():
        if name == "self":
            continue
        words = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is typing.Literal else ()
        choices = ", ".join(f"`{w}`" for w in words) if len(words) < 4 else f"{len(words)}"
        lines.append(f"| `{name}` | `{argument.default}` | {choices} | {EMPNN_OPTIONS[name]} |")
    return "\n".join(lines)


def training() -> str:
    """The keys of a recipe's table `training`."""
    from facetry.training import TrainingOptions

    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, entry in TrainingOptions.model_fields.items():
        choices = getattr(entry.annotation, "__args__", ())
        words = [f"`{c}`" for c in choices if isinstance(c, str)]
        meaning = "; ".join(p for p in (entry.description or "", ", ".join(words)) if p)
        default = "" if entry.default is None else f"`{str(entry.default).lower()}`"
        lines.append(f"| `{name}` | {default} | {_cell(meaning)} |")
    return "\n".join(lines)


def _certificates() -> ModuleType:
    """The numbers that `python docs/certificates.py` measured, and their tables."""
    spec = importlib.util.spec_from_file_location("docs_certificates", DOCS / "certificates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _audits() -> list[dict]:
    """What `python -m benchmarks.audits` left, in the order of the sets there."""
    import json

    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(AUDITS.glob("*.json"))]
    return sorted(found, key=lambda a: -sum(a["counts"].values()))


def audit_findings() -> str:
    """Errors and warnings of every audited set."""
    lines = ["| set | crystals | processor seconds | level | finding |", "|---|---|---|---|---|"]
    for found in _audits():
        counts = found["counts"]
        parts = ", ".join(f"{name} {n}" for name, n in counts.items())
        head = [f"`{found['name']}`", f"{sum(counts.values())}: {parts}", f"{found['cpu_seconds']:.0f}"]
        for finding in found["findings"]:
            lines.append(f"| {' | '.join([*head, finding['level'], _cell(finding['text'])])} |")
            head = ["", "", ""]
    return "\n".join(lines)


def audit_baselines() -> str:
    """What composition alone predicts on every audited set."""
    heads = "set | target | tested how | mean | nearest composition | boosting"
    lines = [f"| {heads} |", "|---|---|---|---|---|---|"]
    for found in _audits():
        by_target: dict[str, dict[str, dict]] = {}
        for scores in found["baselines"]["scores"]:
            by_target.setdefault(scores["target"], {})[scores["method"]] = scores
        for target, methods in by_target.items():
            if methods["mean"]["task"] == "multiclass":
                continue
            metric = "mae" if methods["mean"]["task"] == "regression" else "balanced_accuracy"
            unit = methods["mean"]["unit"] if metric == "mae" else "balanced accuracy"
            cells = [f"{methods[m]['metrics'][metric][0]:.4g}" for m in ("mean", "nearest", "boosting")]
            where = found["baselines"]["setting"]
            what = f"MAE in {unit}" if metric == "mae" and unit else "MAE" if metric == "mae" else unit
            name = f"`{target}`, {what}"
            lines.append(f"| `{found['name']}` | {name} | {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def published_rows() -> str:
    """The published rows that ship, with ours where there is a receipt."""
    from facetry.tasks.published import load_rows, ours

    lines = ["| name | published | ours | recipe | data |", "|---|---|---|---|---|"]
    known = ours()
    for row in load_rows().values():
        mine = known.get(row.name)
        cell = ""
        if mine:
            numbers = ", ".join(f"{mine[0]['metrics'][m][0]:.4g}" for m in row.published)
            cell = f"{numbers} ({mine[0]['run']})"
        numbers = row.numbers()
        data = "as published" if row.comparable else "another"
        lines.append(f"| `{row.name}` | {numbers} | {cell} | `{row.recipe}` | {data} |")
    return "\n".join(lines)


def not_at_hand() -> str:
    """Tables and rows of the papers that are not listed, with the reason."""
    from facetry.tasks.published import not_at_hand as missing

    return "\n".join(f"- {paper}: {'; '.join(reasons)}." for paper, reasons in missing().items())


def distorted() -> str:
    """What jumps do to predictions, from the receipt of `python -m benchmarks.distorted`."""
    receipt = json.loads(
        (DOCS.parent / "benchmarks" / "distorted" / "perov5.json").read_text(encoding="utf-8")
    )
    lines = [
        "| | at rest | t = 0.001 Å | t = 0.01 Å | t = 0.02 Å | moves at 0.01 Å: median, 90 %, most |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in receipt["models"].items():
        errors = " | ".join(f"{row['error'][t]:.4f}" for t in ("0", "0.001", "0.01", "0.02"))
        lines.append(f"| {title} | {errors} | {', '.join(f'{v:.4f}' for v in row['moved']['0.01'])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {
    "sets": sets,
    "defects": defects,
    "settings": settings,
    "lattice_settings": lattice_settings,
    "baseline_settings": baseline_settings,
    "cell_settings": cell_settings,
    "lattice_options": lattice_options,
    "training": training,
    "certificates": lambda: _certificates().summary(),
    "certificates_float64": lambda: _certificates().table("float64"),
    "certificates_float32": lambda: _certificates().table("float32"),
    "certificates_one_frame": lambda: _certificates().table("float64, one frame"),
    "certificates_continuity": lambda: _certificates().continuity(),
    "certificates_energy": lambda: _certificates().energies(),
    "audit_findings": audit_findings,
    "audit_baselines": audit_baselines,
    "published_rows": published_rows,
    "not_at_hand": not_at_hand,
    "distorted": distorted,
}


def renewed(text: str) -> str:
    """A page with its tables as they should be."""
    return _PLACE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def stale() -> list[Path]:
    """Pages whose tables are not what the package says."""
    pages = [(p, p.read_text(encoding="utf-8")) for p in sorted(DOCS.rglob("*.md"))]
    return [page for page, text in pages if renewed(text) != text]


if __name__ == "__main__":
    for page in stale():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(DOCS.parent), file=sys.stderr)
