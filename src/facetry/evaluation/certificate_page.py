"""certificate.html: what a certificate says, in one file that fetches nothing."""

from __future__ import annotations

import base64
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from facetry._version import __version__
from facetry.evaluation.continuity import SMOOTH, WAYS, largest
from facetry.evaluation.crystal_view import POLICY
from facetry.evaluation.plots import changes_plot, response_plot
from facetry.evaluation.report import STYLE, html_table
from facetry.evaluation.symmetry import CHECKS, ROUNDINGS

if TYPE_CHECKING:
    from facetry.evaluation.certificate import Certificate

_PLOTS = ".plots figure { flex: 0 1 29rem; }\n"  # a third one is no larger than the first two
_PICTURES = {
    "jitter": ("displacement of all atoms, Å", "All atoms move in random directions."),
    "strain": ("strain", "The cell is strained, symmetric, in a random direction."),
    "crossing": ("displacement of one atom, Å", "One atom moves on a line; bonds come and go."),
}


def certificate_page(found: Certificate) -> str:
    """The HTML."""
    from facetry.evaluation.certificate import FIELDS, WORDS

    used = sum(row.status == "ok" for row in found.rows)
    mark = "" if found.ok else ' class="bad"'
    cards = [
        f'<div class="card"><b{mark}>{found.word}</b><span>what is declared</span></div>',
        f'<div class="card"><b>{used}</b><span>crystals measured of {len(found.rows)}</span></div>',
        f'<div class="card"><b>{_number(found.spread)} {escape(found.unit)}</b>'
        "<span>standard deviation of answers between crystals</span></div>",
    ]
    declared = [
        [WORDS[n], "yes" if getattr(found.symmetry, n) else "no",
         *(_number(found.worst(n, s)) for s in found.series), found.verdict(n)]
        for n in FIELDS
    ]  # fmt: skip
    unit = f", {found.unit}" if found.unit else ""
    heads = ["symmetry", "declared", *(f"{s}{unit}" for s in found.series), "verdict"]
    parts = [
        f"<h1>{escape(found.title)}: symmetry certificate</h1>",
        f'<p class="sub">{escape(_subtitle(found))}</p>',
        f'<div class="cards">{"".join(cards)}</div>',
        *(f'<p class="bad">{escape(text)}</p>' for text in found.failures),
        "<h2>Declared and measured</h2>",
        '<p class="note">The largest change of an answer over all crystals.</p>',
        html_table(heads, declared, numeric=set(range(2, 2 + len(found.series)))),
        "<h2>Checks</h2>",
        *_checks(found),
        "<h2>Continuity</h2>",
        *_continuity(found),
    ]
    if found.extras:
        rows = [[e.title, _number(e.value), _number(e.allowed), e.words, e.verdict] for e in found.extras]
        heads = ["slopes and moves", "residual", "allowed", "", "verdict"]
        parts += ["<h2>Energy</h2>", html_table(heads, rows, numeric={1, 2})]
    parts += ["<h2>Crystals</h2>", _crystals(found), "<h2>How it was measured</h2>", _facts(found)]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(found.title)}: symmetry · facetry</title>",
            f"<style>{STYLE}{_PLOTS}</style></head><body>",
            *parts,
            f"<footer>written by facetry {escape(__version__)}</footer></body></html>\n",
        ]
    )


def _subtitle(found: Certificate) -> str:
    options = ", ".join(f"{name} {value}" for name, value in found.options.items())
    return f"{found.model}, {found.parameters} parameters; {options}"


def _checks(found: Certificate) -> list[str]:
    rows = []
    for series, checks in found.series.items():
        for f in checks.values():
            if f.count:
                words = f"{f.differing} of {f.count}"
                rows.append([CHECKS[f.check].title, series, "yes" if f.due else "no", _number(f.change),
                             _number(f.roundings), f"{f.allowed:g}", words, f.where, f.verdict])  # fmt: skip
    unit = f" ({found.unit})" if found.unit else ""
    heads = [
        "change of",
        "precision",
        "declared",
        f"largest{unit}",
        "roundings",
        "allowed",
        "differ",
        "on",
        "",
    ]
    lines = {
        CHECKS[check].title: {
            series: [row.change[series][check] for row in found.rows if check in row.change.get(series, {})]
            for series in found.series
        }
        for check in CHECKS
        if any(checks[check].count for checks in found.series.values())
    }
    note = (
        "One rounding is what rounding does to the largest answer: the rounding unit of the network's"
        " precision, and that of float64 for each Å of the numbers that positions and the reduced cell are"
        f" computed from. A declared symmetry holds where no crystal exceeds {ROUNDINGS:g}; the networks of"
        " facetry stay below forty."
    )
    picture = changes_plot(lines, f"change of the answer{unit}; zero at the left edge", transparent=True)
    return [_image(picture, "changes of the answer by every check"), f'<p class="note">{note}</p>',
            html_table(heads, rows, numeric={3, 4, 5, 6})]  # fmt: skip


def _continuity(found: Certificate) -> list[str]:
    unit = f", {found.unit}" if found.unit else ""
    note = (
        "Crystals in their primitive cells are deformed little by little. Where a step is unlike its"
        " neighbours it is halved until a jump stands alone. Jumps below "
        f"{SMOOTH:g} of the spread count as none. Jumps are looked for in float64; what"
        f" {found.facts.get('precision', 'float32')} adds is how far the same steps differ there. Continuity"
        " is "
        f"{'declared' if found.continuous else 'not declared by this model'}."
    )
    rows, pictures = [], []
    for kind, (title, place_unit) in WAYS.items():
        walked = [f for f in found.followed if f.kind == kind and not f.problem]
        worst = largest(found.followed, kind)
        if worst is None:
            rows.append([title, 0, "", "", "", "", "", found.why_not(kind), "not measured"])
            continue
        smooth = found.smooth(worst)
        share = f"{worst.jump / found.spread:.1e}" if found.spread else ""
        adds = [f.rounding for f in walked if f.rounding is not None]
        added = _number(max(adds)) if adds else ""
        at = f"{_number(worst.place)} {place_unit}".strip()
        where = [] if smooth else [at, worst.bonds, worst.name]
        rows.append(
            [
                title,
                len(walked),
                added,
                _number(worst.jump),
                share,
                *(where or [""] * 3),
                found.jump_verdict(kind),
            ]
        )
        jump = None if smooth else (worst.place, worst.jump)
        drawn = [(f.steps[1:], f.response[1:]) for f in walked]
        label, words = _PICTURES[kind]
        png = response_plot(drawn, (label, f"change{unit}"), jump, kind != "crossing", transparent=True)
        pictures.append(_image(png, words, words + ("" if smooth else " Cross: the largest jump.")))
    rounded = found.facts.get("precision", "float32")
    heads = [
        "deformation",
        "crystals",
        f"{rounded} adds",
        f"largest jump{unit}",
        "of the spread",
        "at",
        "edges",
        "on",
        "",
    ]
    return [f'<p class="note">{note}</p>', html_table(heads, rows, numeric={1, 2, 3, 4, 6}),
            f'<div class="plots">{"".join(pictures)}</div>']  # fmt: skip


def _crystals(found: Certificate) -> str:
    rows = []
    for row in found.rows:
        due = [c for c, f in next(iter(found.series.values())).items() if f.due]
        worst = [max((d.get(c, 0.0) for c in due), default=0.0) for d in row.change.values()]
        hands = {True: "chiral", False: "achiral", None: ""}[row.chiral]
        shown = [_number(v) for v in worst] or [""] * len(found.series)
        rows.append([row.name or row.source, row.formula, row.atoms, hands, *shown, row.status, row.message])
    heads = [
        "crystal",
        "formula",
        "atoms",
        "",
        *(f"worst declared, {s}" for s in found.series),
        "status",
        "message",
    ]
    return html_table(heads, rows, numeric={2, *range(4, 4 + len(found.series))})


def _facts(found: Certificate) -> str:
    declared = [n.replace("_", " ") for n, yes in asdict(found.symmetry).items() if yes]
    rows: list[list[Any]] = [
        ["declared", ", ".join(declared)],
        ["largest answer", f"{_number(found.scale)} {found.unit}"],
    ]
    return html_table([], rows + [[name, value] for name, value in found.facts.items()])


def _image(png: bytes, description: str, caption: str = "") -> str:
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}">{below}</figure>'


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "no answer"
    return "0" if value == 0 else f"{value:.3g}" if 1e-2 <= abs(value) < 1e4 else f"{value:.1e}"
