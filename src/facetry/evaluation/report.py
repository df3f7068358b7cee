"""report.html: one self-contained page about a model. Nothing is fetched; scripts only draw crystals."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from facetry._version import __version__
from facetry.crystal import Crystal
from facetry.evaluation.crystal_view import POLICY, crystal_view
from facetry.evaluation.landscape import UNITS as ENERGY_UNITS
from facetry.evaluation.landscape import EnergyScores
from facetry.evaluation.landscape_plot import landscape_plot
from facetry.evaluation.metrics import Estimate, Scores, TargetScores
from facetry.evaluation.plots import cell_plot, learning_plot, parity_plot, reliability_plot, target_plot
from facetry.evaluation.relaxation import UNITS, RelaxScores

__all__ = ["STYLE", "html_table", "parity_plot", "target_plot", "write_report"]

_WORST = 12
_NAMES = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r2": "R²",
    "coverage": "coverage of the 90 % interval",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "area under the ROC curve",
    "calibration_error": "calibration error",
    "length_gain": "gain in lengths",
    "angle_gain": "gain in angles",
    "position_gain": "gain in positions",
    "length_mae": "mean error of lengths",
    "angle_mae": "mean error of angles",
    "position_rmsd": "root mean square distance of atoms from their places",
    "noisy_length_mae": "mean error of lengths before",
    "noisy_angle_mae": "mean error of angles before",
    "noisy_position_rmsd": "the same distance before",
    "largest_change": "largest change of a length, of crystals at rest",
    "left_alone": "share of crystals at rest whose lengths change by 1 % at most",
    "energy_change": "change of energy",
    "energy_improved": "share of crystals with lower energy",
    "energy_excess": "energy above the true crystal",
    "noisy_energy_excess": "the same before",
    "energy": "energy of the crystals",
    "noise_gap": "rise of the energy by noise of 0.3 Å",
    "noise_raised": "share of crystals where noise of 0.3 Å raises it",
    "rise": "Spearman's correlation of energy and displacement",
    "scale": "length of the cell of lowest energy over the true one",
    "scale_error": "how far that is from 1",
}
_HEADLINES = ("mae", "r2", "coverage", "accuracy", "roc_auc", "balanced_accuracy")

STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #667080; --paper: #ffffff; --card: #f5f7fa;
  --line: #dde2e9; --accent: #2f6fc4; --bad: #b4431f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b1; --paper: #14181e;
  --card: #1d232c; --line: #323a46; --accent: #79aef2; --bad: #f0906d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p.sub, .note { color: var(--soft); margin: .2rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .9rem;
  margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.5rem; color: var(--accent); font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.plots figure { flex: 1 1 22rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.45; }
details summary { cursor: pointer; color: var(--accent); }
.bad { color: var(--bad); }
.crystals { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .9rem; }
.crystal { position: relative; height: 18rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow: hidden; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
.choose button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .12rem .6rem; margin: 0 .4rem .4rem 0; cursor: pointer; }
.choose button[aria-pressed="true"] { background: var(--accent); color: var(--paper); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


def write_report(
    folder: str | Path,
    scores: Scores | RelaxScores | EnergyScores | None = None,
    *,
    split: str = "test",
    model_folder: str | Path | None = None,
    predictions: Sequence[Any] = (),
    examples: Sequence[tuple[Crystal, Crystal, Crystal]] = (),
    title: str = "",
) -> Path:
    """Write `folder`/report.html and return its path.

    Shows what is there: scores and plots, the learning curve (metrics.csv), the data, the worst predictions,
    recipe.toml and receipt.json of `model_folder` (default: `folder`), `predictions` on further structures,
    and `examples` of relaxed crystals (true, disturbed, relaxed) to turn with the mouse. Everything is inside
    the one file; it opens without a network.
    """
    folder = Path(folder)
    source = Path(model_folder) if model_folder is not None else folder
    card = _json(source / "model.json")
    receipt = _json(source / "receipt.json")
    target = ", ".join(t.get("name", "") for t in card.get("targets", []))
    heading = title or target or source.resolve().name
    data = card.get("data", {})
    sub = " · ".join(str(x) for x in (card.get("model"), data.get("name"), source.resolve().name) if x)
    parts = [f"<h1>{escape(heading)}</h1>", f'<p class="sub">{escape(sub)}</p>']
    shortened = receipt.get("shortened")
    if shortened:
        text = "; ".join(shortened) if isinstance(shortened, list) else str(shortened)
        parts.append(f'<p class="note"><b class="bad">Shortened run:</b> {escape(text)}</p>')
    if isinstance(scores, RelaxScores):
        parts += _relax_sections(scores, split)
    elif isinstance(scores, EnergyScores):
        parts += _energy_sections(scores, split)
    elif scores is not None:
        parts += _score_sections(scores, split)
    parts += crystal_view(examples)
    parts += _learning_section(source / "metrics.csv")
    if predictions:
        parts += ["<h2>Predictions on structure files</h2>", _prediction_table(predictions)]
    if isinstance(scores, Scores):
        parts += _worst_sections(scores)
    parts += _data_section({**data, "notes": receipt.get("data", {}).get("notes")}, card)
    parts += _text_section("Recipe", source / "recipe.toml")
    if receipt:
        shown = {key: value for key, value in receipt.items() if key not in ("metrics", "data")}
        parts += ["<h2>Receipt</h2>", _facts(shown)]
    page = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(heading)} · facetry</title><style>{STYLE}</style></head><body>",
            *parts,
            f"<footer>written by facetry {escape(__version__)}</footer></body></html>\n",
        ]
    )
    path = folder / "report.html"
    temporary = folder / ".report.html.part"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


# --- sections ---------------------------------------------------------------------------------------------


def _score_sections(scores: Scores, split: str) -> list[str]:
    parts = []
    for number, target in enumerate(scores.targets):
        name = f": {escape(target.target)}" if len(scores.targets) > 1 else ""
        cards = [_card(target, metric) for metric in _HEADLINES if metric in target.metrics]
        cards.append(f'<div class="card"><b>{target.count}</b><span>crystals in {escape(split)}</span></div>')
        parts += [f"<h2>Scores{name}</h2>", f'<div class="cards">{"".join(cards)}</div>']
        if target.count:
            picture = _image(target_plot(scores, number, transparent=True), "predicted against true values")
            parts.append(
                f'<div class="plots">{picture}<div style="flex:1 1 18rem">{_score_table(target)}</div></div>'
            )
            if target.task != "regression" and (png := reliability_plot(scores, number, transparent=True)):
                parts += ["<h3>Calibration</h3>", _image(png, "share of right answers against probability")]
    if scores.failed:
        parts.append(
            f'<p class="bad">{scores.failed} crystals gave no value and are not part of the scores.</p>'
        )
    return parts


def _scores_of_moves(
    scores: RelaxScores | EnergyScores, names: Sequence[str], units: Mapping[str, str], split: str
) -> list[str]:
    """Some metrics on cards, all of them in a table."""
    cards = [
        f'<div class="card"><b>{_number(scores[n].value)} {units[n]}</b>'
        f"<span>{_NAMES[n]}<br>95 %: {_interval(scores[n])}</span></div>"
        for n in names
    ]
    cards.append(f'<div class="card"><b>{scores.count}</b><span>crystals in {escape(split)}</span></div>')
    rows = [[_NAMES[n], _number(e.value), _interval(e), units[n]] for n, e in scores.metrics.items()]
    table = html_table(["metric", "value", "95 % interval", "unit"], rows, numeric={1, 2})
    return ["<h2>Scores</h2>", f'<div class="cards">{"".join(cards)}</div>', table]


def _relax_sections(scores: RelaxScores, split: str) -> list[str]:
    names = [n for n in scores.metrics if "noisy" not in n][:4]
    note = '<p class="note">Intervals: 95 % bootstrap over the crystals.</p>'
    parts = [*_scores_of_moves(scores, names, UNITS, split), note]
    if scores.failed:
        parts.append(f'<p class="bad">{scores.failed} crystals have no answer and are not in the scores.</p>')
    if scores.cells is not None and scores.count:
        words = "Above, cells as the model got them; below, as it answered. White: no crystal."
        if scores.task == "reconstruct":
            words = "Cells as the model answered, against the true ones. White: no crystal."
        picture = _image(
            cell_plot(scores, transparent=True), "lengths, angles and distances against the true"
        )
        parts += ["<h2>Lengths, angles, distances</h2>", f'<p class="note">{words}</p>', picture]
    return parts


def _energy_sections(scores: EnergyScores, split: str) -> list[str]:
    names = ("noise_raised", "rise", "scale", "scale_error")
    words = (
        "Five crystals, a colour for each: a thousand displacements of one atom and of all atoms, 0.1 Å in "
        "each coordinate; cells scaled in all directions alike. A good energy rises from the crystal."
    )
    picture = _image(landscape_plot(scores, transparent=True), "energy against displacement and scaling")
    return [
        *_scores_of_moves(scores, names, ENERGY_UNITS, split),
        "<h2>Around crystals</h2>", f'<p class="note">{words}</p>', picture,
    ]  # fmt: skip


def _card(target: TargetScores, metric: str) -> str:
    estimate = target.metrics[metric]
    unit = f" {escape(target.unit)}" if target.unit and metric in ("mae", "rmse") else ""
    return (
        f'<div class="card"><b>{_number(estimate.value)}{unit}</b>'
        f"<span>{escape(_NAMES.get(metric, metric))}<br>95 %: {_interval(estimate)}</span></div>"
    )


def _score_table(target: TargetScores) -> str:
    rows = [
        [
            _NAMES.get(name, name),
            _number(e.value),
            _interval(e),
            target.unit if name in ("mae", "rmse") else "",
        ]
        for name, e in target.metrics.items()
    ]
    note = '<p class="note">Intervals: 95 % bootstrap over the crystals.</p>'
    return html_table(["metric", "value", "95 % interval", "unit"], rows, numeric={1, 2}) + note


def _learning_section(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        picture = learning_plot(list(csv.DictReader(stream)), transparent=True)
    return (
        ["<h2>Learning curve</h2>", _image(picture, "loss and validation error by epoch")] if picture else []
    )


def _worst_sections(scores: Scores) -> list[str]:
    parts = []
    count = len(scores.targets)
    for number, target in enumerate(scores.targets):
        if target.task != "regression" or scores.truth is None:
            continue
        chosen = scores.predictions[number::count]
        true = scores.truth[:, number]
        value = np.array([np.nan if p.value is None else p.value for p in chosen], dtype=np.float64)
        error = np.nan_to_num(np.abs(value - true), nan=-1.0)
        rows = []
        for i in np.argsort(-error, kind="stable")[:_WORST]:
            if error[i] < 0:
                break
            p = chosen[i]
            formula = p.crystal.formula if p.crystal is not None else ""
            domain = "" if p.in_domain is None else "yes" if p.in_domain else "no"
            rows.append(
                [p.name or p.source, formula, _number(true[i]), _number(p.value), _number(error[i]), domain]
            )
        if rows:
            name = f": {escape(target.target)}" if count > 1 else ""
            unit = f" ({target.unit})" if target.unit else ""
            heads = ["crystal", "formula", f"true{unit}", "predicted", "error", "in domain"]
            parts += [f"<h2>Worst predictions{name}</h2>", html_table(heads, rows, numeric={2, 3, 4})]
    return parts


def _prediction_table(predictions: Sequence[Any]) -> str:
    rows = []
    for p in predictions:
        interval = "" if p.lower is None else f"{_number(p.lower)} to {_number(p.upper)}"
        domain = "" if p.in_domain is None else "yes" if p.in_domain else "no"
        formula = p.crystal.formula if p.crystal is not None else ""
        value = "" if p.value is None else f"{_number(p.value)} {p.unit}".strip()
        rows.append([Path(p.source).name, formula, p.status, value, interval, domain, p.message])
    return html_table(["file", "formula", "status", "value", "90 % interval", "in domain", "message"], rows)


def _data_section(data: dict[str, Any], card: dict[str, Any]) -> list[str]:
    facts = {key: value for key, value in data.items() if value}
    if not facts:
        return []
    if card.get("elements"):
        facts["elements seen"] = len(card["elements"])
    return ["<h2>Data</h2>", _facts(facts)]


def _text_section(title: str, path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = escape(path.read_text(encoding="utf-8").strip())
    return [f"<h2>{title}</h2>", f"<details><summary>{path.name}</summary><pre>{text}</pre></details>"]


# --- pieces -----------------------------------------------------------------------------------------------


def _facts(values: dict[str, Any]) -> str:
    rows = []
    for key, value in values.items():
        if value in (None, [], {}, ""):
            continue
        rows.append([str(key).replace("_", " "), _plain(value)])
    return html_table([], rows)


def _plain(value: Any) -> str:
    """Nested values as words: `cpu AMD EPYC, cores 2`."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_plain(inner)}" for key, inner in value.items() if inner not in (None, [], {})
        )
    if isinstance(value, list):
        return "; ".join(_plain(inner) for inner in value)
    return str(value)


def html_table(heads: list[str], rows: list[list[Any]], numeric: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    """Rows of cells as HTML; `numeric` columns stand on the right."""

    def line(cells: Sequence[Any], tag: str) -> str:
        inside = [
            f"<{tag}{' class=n' if i in numeric else ''}>{escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(inside)}</tr>"

    head = f"<thead>{line(heads, 'th')}</thead>" if heads else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}"></figure>'


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate.lower)} to {_number(estimate.upper)}"


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
