"""The symmetry certificate: what a model declares, what was measured, a verdict; as text and plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facetry.evaluation.continuity import KINDS, SMOOTH, Followed, largest
from facetry.evaluation.symmetry import CHECKS, Finding, Measured
from facetry.models.base import Symmetry

JSON, PAGE = "certificate.json", "certificate.html"
FIELDS = tuple(asdict(Symmetry()))
WORDS = {
    "rotation": "rotation",
    "translation": "origin",
    "permutation": "order of atoms",
    "lattice_basis": "choice of the cell",
    "supercell": "supercell",
    "reflection": "mirror image",
}


@dataclass(frozen=True)
class Extra:
    """A measurement of one kind of model only: a residual and how large it may be; `due` False: for
    comparison."""

    title: str
    value: float
    allowed: float
    words: str
    due: bool = True

    @property
    def verdict(self) -> Literal["holds", "fails", "same", "differs"]:
        """What is due holds or fails."""
        small = bool(np.isfinite(self.value)) and self.value <= self.allowed
        return ("holds" if small else "fails") if self.due else ("same" if small else "differs")


@dataclass(frozen=True)
class Row:
    """One input: what it is, whether the model could use it, its largest changes in every series."""

    source: str
    name: str
    formula: str
    atoms: int | None
    status: Literal["ok", "skipped", "failed"]
    message: str
    chiral: bool | None = None
    change: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """What `facetry.certify` found.

    `series` holds the findings by precision and path ("float64", "float32", "float64, one frame"), `followed`
    the deformations, `extras` what was measured for energies only. All changes are in `unit`; `scale` is the
    largest answer, `spread` the standard deviation between crystals. `ok` says whether all that is declared
    holds.
    """

    title: str
    model: str
    options: dict[str, Any]
    job: Literal["predict", "relax", "generate"]
    parameters: int
    symmetry: Symmetry
    continuous: bool
    unit: str
    scale: float
    spread: float
    series: dict[str, dict[str, Finding]]
    followed: list[Followed]
    extras: list[Extra]
    rows: list[Row]
    facts: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """What was declared and does not hold, in words; where each was largest."""
        found = [
            f"{CHECKS[f.check].title} ({name}): changes by {_measured(f.change, self.unit)} on {f.where}"
            for name, checks in self.series.items()
            for f in checks.values()
            if f.verdict == "fails"
        ]
        for kind, unit in KINDS.items():
            worst = largest(self.followed, kind)
            if self.continuous and worst is not None and worst.jump > SMOOTH * self.spread:
                found.append(f"continuity: {jump_words(worst, self.unit, unit)}")
        return found + [
            f"{e.title}: {e.value:.1e}, allowed {e.allowed:.1e}" for e in self.extras if e.verdict == "fails"
        ]

    @property
    def ok(self) -> bool:
        """Whether all that is declared holds, on at least one crystal."""
        return not self.failures and any(row.status == "ok" for row in self.rows)

    def verdict(self, name: str) -> str:
        """Of a field of `Symmetry` over all series: "holds" or "fails" where it is declared, else "same" or
        "differs"; "not measured" without a crystal for it."""
        found = [
            f
            for checks in self.series.values()
            for f in checks.values()
            if f.count and _belongs(f.check, name)
        ]
        if not found:
            return "not measured"
        if not getattr(self.symmetry, name):
            return "differs" if any(f.differing for f in found) else "same"
        return "fails" if any(f.differing for f in found) else "holds"

    def worst(self, name: str, series: str) -> float:
        """The largest change by the checks of a field of `Symmetry` in a series."""
        found = [f.change for f in self.series[series].values() if f.count and _belongs(f.check, name)]
        return max(found, default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; changes without an answer are null."""
        return {
            "title": self.title,
            "model": self.model,
            "options": self.options,
            "job": self.job,
            "parameters": self.parameters,
            "verdict": "holds" if self.ok else "fails",
            "failures": self.failures,
            "declared": {**asdict(self.symmetry), "continuous": self.continuous},
            "unit": self.unit,
            "scale": self.scale,
            "spread": self.spread,
            "checks": {s: {c: f.to_dict() for c, f in found.items()} for s, found in self.series.items()},
            "continuity": [f.to_dict() for f in self.followed],
            "extras": [{**asdict(e), "value": _finite(e.value), "verdict": e.verdict} for e in self.extras],
            "crystals": [
                {
                    **asdict(r),
                    "change": {s: {c: _finite(v) for c, v in d.items()} for s, d in r.change.items()},
                }
                for r in self.rows
            ],
            "facts": self.facts,
        }

    def write(self, folder: str | Path) -> list[Path]:
        """certificate.json and certificate.html in a folder; each appears when it is whole."""
        from facetry.evaluation.certificate_page import certificate_page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for name, content in ((JSON, text), (PAGE, certificate_page(self))):
            temporary = folder / f".{name}.part"
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, folder / name)
        return [folder / JSON, folder / PAGE]

    def __str__(self) -> str:
        return "\n".join(
            [*self._head(), "", *self._checks(), "", *self._continuity(), *self._extras(), *self._end()]
        )

    def _head(self) -> list[str]:
        used = sum(row.status == "ok" for row in self.rows)
        left = f", {len(self.rows) - used} without an answer" if used < len(self.rows) else ""
        declared = [WORDS[n] for n in FIELDS if getattr(self.symmetry, n)] + ["continuity"] * self.continuous
        verb = "invariance to" if self.job != "relax" else "equivariance under"
        return [
            f"{self.title}: {self.model}, {self.parameters} parameters",
            f"declares {verb} {', '.join(declared)}",
            f"{used} {'crystal' if used == 1 else 'crystals'}{left}; standard deviation of answers"
            f" {_measured(self.spread, self.unit)}",
        ]

    def _checks(self) -> list[str]:
        rows = [["largest change by", "declared", *self.series, "verdict"]]
        for check, title in ((c, CHECKS[c].title) for c in CHECKS):
            found = [checks[check] for checks in self.series.values()]
            if not any(f.count for f in found):
                continue
            verdicts = {f.verdict for f in found if f.count}
            worst = next(v for v in ("fails", "differs", "holds", "same") if v in verdicts)
            if worst == "differs":
                worst = f"differs for {max(f.differing for f in found)} of {max(f.count for f in found)}"
            rows.append(
                [
                    title,
                    "yes" if found[0].due else "no",
                    *(_number(f.change) if f.count else "" for f in found),
                    worst,
                ]
            )
        return _aligned(rows)

    def _continuity(self) -> list[str]:
        lines = ["largest jump" + ("" if self.continuous else " (continuity is not declared)")]
        for kind, unit in KINDS.items():
            worst = largest(self.followed, kind)
            if worst is None:
                continue
            smooth = worst.jump <= SMOOTH * self.spread
            words = "none" if smooth else jump_words(worst, self.unit, unit)
            share = (
                ""
                if smooth or not self.spread
                else f" ({100 * worst.jump / self.spread:.2g} % of the spread)"
            )
            lines.append(f"  {kind:9s} {words}{share}")
        return lines

    def _extras(self) -> list[str]:
        if not self.extras:
            return []
        rows = [[e.title, _number(e.value), f"allowed {_number(e.allowed)}", e.verdict] for e in self.extras]
        return ["", *_aligned(rows)]

    def _end(self) -> list[str]:
        lines = ["", "all that is declared holds" if self.ok else "FAILS:"]
        if not any(row.status == "ok" for row in self.rows):
            return ["", "no crystal got an answer: nothing was measured"]
        return lines + [f"  {text}" for text in self.failures]


def rows_of(
    inputs: Sequence[tuple[str, str, Any, str, str]], measured: dict[str, Sequence[Measured]]
) -> list[Row]:
    """Rows from inputs (source, name, crystal, status, message) and the measurements of every series, one for
    each input that has a crystal and is usable, in order."""
    place = 0
    rows = []
    for source, name, crystal, status, message in inputs:
        formula, atoms = ("", None) if crystal is None else (crystal.formula, len(crystal))
        if status != "ok":
            rows.append(Row(source, name, formula, atoms, status, message))
            continue
        mine = {series: found[place] for series, found in measured.items()}
        place += 1
        first = next(iter(mine.values()))
        problem = next((m.answer for m in mine.values() if isinstance(m.answer, str)), "")
        reason = next((m.reason for m in mine.values() if m.reason), "")
        change = {series: dict(m.change) for series, m in mine.items()}
        done: Literal["ok", "failed"] = "failed" if problem else "ok"
        rows.append(
            Row(
                source, name, formula, atoms, done, problem or reason, first.chiral, {} if problem else change
            )
        )
    return rows


def jump_words(found: Followed, unit: str, place_unit: str) -> str:
    """A jump, where it is and why."""
    bonds = f", {found.bonds} edges come or go" if found.bonds else ""
    at = _measured(found.place, place_unit)
    return f"{_measured(found.jump, unit)} at {at} on {found.name}{bonds}"


def _belongs(check: str, name: str) -> bool:
    return CHECKS[check].needs[:1] == (name,)


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "no answer"
    return "0" if value == 0 else f"{value:.2g}" if 1e-2 <= abs(value) < 1e3 else f"{value:.1e}"


def _measured(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}".rstrip()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
