"""audit.html: what an audit found, in one file that fetches nothing."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from facetry._version import __version__
from facetry.evaluation.crystal_view import POLICY
from facetry.evaluation.plots import distribution_plot
from facetry.evaluation.report import STYLE, html_table

if TYPE_CHECKING:
    from facetry.evaluation.findings import Finding, Subject
    from facetry.tasks.audit import Audit

_SHOWN = 20  # cases of a finding
_CLASSES = {"error": "bad", "warning": "", "note": "note"}


def audit_page(audit: Audit) -> str:
    """The HTML."""
    levels = {level: sum(f.level == level for f in audit.findings) for level in _CLASSES}
    cards = [
        f'<div class="card"><b>{n}</b><span>crystals in {escape(p)}</span></div>'
        for p, n in audit.counts.items()
    ]
    cards += [f'<div class="card"><b>{n}</b><span>{level}s</span></div>' for level, n in levels.items()]
    parts = [
        f"<h1>{escape(audit.name)}: audit</h1>",
        *(f'<p class="sub">{escape(note)}</p>' for note in audit.notes),
        f'<div class="cards">{"".join(cards)}</div>',
        "<h2>Findings</h2>",
        _summary(audit),
    ]
    if audit.baselines:
        parts += [
            "<h2>What a model must beat</h2>",
            f'<p class="note">From composition alone; {escape(audit.setting)}. Intervals: bootstrap.</p>',
            _baselines(audit),
        ]
    if audit.subject is not None:
        parts += _distributions(audit.subject)
    for number, finding in enumerate(audit.findings):
        parts += _section(number, finding)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(audit.name)}: audit · facetry</title><style>{STYLE}</style></head><body>",
            *parts,
            f"<footer>written by facetry {escape(__version__)}</footer></body></html>\n",
        ]
    )


def _summary(audit: Audit) -> str:
    if not audit.findings:
        return "<p>Nothing found.</p>"
    lines = [
        f'<tr><td class="{_CLASSES[f.level]}">{f.level}</td><td><a href="#f{i}">{escape(f.key)}</a></td>'
        f"<td>{escape(f.text)}</td></tr>"
        for i, f in enumerate(audit.findings)
    ]
    return f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'


def _baselines(audit: Audit) -> str:
    rows = []
    for baseline in audit.baselines:
        scores = baseline.scores
        shown = (
            ("mae", "rmse", "r2")
            if scores.task == "regression"
            else ("accuracy", "balanced_accuracy", "roc_auc")
        )
        for metric in shown:
            estimate = scores.metrics[metric]
            unit = scores.unit if metric in ("mae", "rmse") else ""
            interval = f"{estimate.lower:.4g} to {estimate.upper:.4g}" if np.isfinite(estimate.lower) else ""
            value = f"{estimate.value:.4g}" if np.isfinite(estimate.value) else "–"
            rows.append(
                [
                    scores.target,
                    baseline.method,
                    metric.replace("_", " "),
                    value,
                    interval,
                    unit,
                    scores.count,
                ]
            )
    heads = ["target", "method", "metric", "value", "95 % interval", "unit", "crystals"]
    return html_table(heads, rows, numeric={3, 4, 6})


def _distributions(subject: Subject) -> list[str]:
    """A histogram of every column of numbers, part by part."""
    pictures = []
    for column, target in enumerate(subject.data.target_info):
        values = subject.data.targets[:, column]
        if target.task != "regression" or np.isfinite(values).sum() < 10:
            continue
        groups = {
            name: values[(subject.part == i) & np.isfinite(values)] for i, name in enumerate(subject.parts)
        }
        label = f"{target.name}, {target.unit}" if target.unit else target.name
        png = base64.b64encode(distribution_plot(groups, label, transparent=True)).decode("ascii")
        alt = f"how often {target.name} takes its values"
        pictures.append(f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{png}"></figure>')
    return ["<h2>Labels</h2>", f'<div class="plots">{"".join(pictures)}</div>'] if pictures else []


def _section(number: int, finding: Finding) -> list[str]:
    head = f'<h2 id="f{number}">{escape(finding.key)}</h2>'
    head += f'<p class="{_CLASSES[finding.level]}">{escape(finding.text)}</p>'
    if not finding.cases:
        return [head]
    columns = ("crystal", "part", "formula", "other", "other_part", "value", "detail")
    cases = [[_cell(getattr(case, c)) for c in columns] for case in finding.cases[:_SHOWN]]
    used = [i for i, c in enumerate(columns) if any(row[i] for row in cases)]
    rows = [[row[i] for i in used] for row in cases]
    more = len(finding.cases) - len(rows)
    note = f'<p class="note">{more} more in findings.csv</p>' if more else ""
    return [head, html_table([columns[i].replace("_", " ") for i in used], rows), note]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
