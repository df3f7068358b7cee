"""The symmetry certificate: what a model declares, what was measured, a verdict; as text and plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facetry.evaluation.continuity import MOST_PATH_ATOMS, SMOOTH, WAYS, Followed, Kind, largest
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
NOT_FOLLOWED = f"no crystal of 2 to {MOST_PATH_ATOMS} atoms was deformed"
_MOST_SHOWN = 10


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
        for kind, (title, unit) in WAYS.items():
            worst = largest(self.followed, kind)
            if worst is not None and self.jump_verdict(kind) == "fails":
                jump = _measured(worst.jump, self.unit)
                found.append(f"continuity, {title}: jumps by {jump} at {place_words(worst, unit)}")
        return found + [
            f"{e.title}: {e.value:.1e}, allowed {e.allowed:.1e}" for e in self.extras if e.verdict == "fails"
        ]

    @property
    def ok(self) -> bool:
        """Whether all that is declared holds, on at least one crystal."""
        return not self.failures and any(row.status == "ok" for row in self.rows)

    @property
    def word(self) -> Literal["holds", "fails", "not measured"]:
        """What is said of all that is declared."""
        if self.failures:
            return "fails"
        return "holds" if self.ok else "not measured"

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
            "verdict": self.word,
            "failures": self.failures,
            "declared": {**asdict(self.symmetry), "continuous": self.continuous},
            "unit": self.unit,
            "scale": self.scale,
            "spread": self.spread,
            "checks": {s: {c: f.to_dict() for c, f in found.items()} for s, found in self.series.items()},
            "jumps": {kind: self.jump_verdict(kind) for kind in WAYS},
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
        if not any(row.status == "ok" for row in self.rows):
            return "\n".join([*self._head(), "", "no crystal got an answer: nothing was measured"])
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
            f"declares {verb} {', '.join(declared)}" if declared else "declares no symmetry",
            f"{used} {'crystal' if used == 1 else 'crystals'}{left}; standard deviation of answers"
            f" {_measured(self.spread, self.unit)}",
            *self._left(),
        ]

    def _left(self) -> list[str]:
        """What got no answer, and why; the first of many."""
        left = [row for row in self.rows if row.status != "ok"]
        lines = [f"  {row.source or row.name}: {row.status}: {row.message}" for row in left[:_MOST_SHOWN]]
        more = len(left) - len(lines)
        return lines + [f"  and {more} more; all are in {PAGE}"] * (more > 0)

    def _checks(self) -> list[str]:
        unit = f", {self.unit}" if self.unit else ""
        rows = [[f"largest change{unit}", "declared", *self.series, "verdict"]]
        for check, title in ((c, CHECKS[c].title) for c in CHECKS):
            found = [checks[check] for checks in self.series.values()]
            if not any(f.count for f in found):
                rows.append([title, "yes" if found[0].due else "no", *[""] * len(found), "not measured"])
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
        rounded = self.facts.get("precision", "float32")
        unit = f", {self.unit}" if self.unit else ""
        rows = [[f"largest jump{unit}", "declared", "float64", f"{rounded} adds", "verdict", ""]]
        declared = "yes" if self.continuous else "no"
        for kind, (title, unit) in WAYS.items():
            worst = largest(self.followed, kind)
            if worst is None:
                rows.append([title, declared, "", "", "not measured", self.why_not(kind)])
                continue
            adds = [f.rounding for f in self.followed if f.kind == kind and f.rounding is not None]
            smooth = self.smooth(worst)
            share = f", {100 * worst.jump / self.spread:.3g} % of the spread" if self.spread else ""
            words = "" if smooth else f"at {place_words(worst, unit)}{share}"
            jump = "none" if smooth else _number(worst.jump)
            rows.append(
                [title, declared, jump, _number(max(adds)) if adds else "", self.jump_verdict(kind), words]
            )
        if all(row[3] == "" for row in rows[1:]):
            rows = [[*row[:3], *row[4:]] for row in rows]
        return _aligned(rows)

    def why_not(self, kind: Kind) -> str:
        """Why a kind of deformation was not measured."""
        problems = [f"{f.name}: {f.problem}" for f in self.followed if f.kind == kind]
        return problems[0] if problems else NOT_FOLLOWED

    def smooth(self, found: Followed) -> bool:
        """Whether a jump is none: below a millionth of the spread between crystals."""
        return found.jump <= SMOOTH * self.spread

    def jump_verdict(self, kind: Kind) -> Literal["holds", "fails", "smooth", "jumps", "not measured"]:
        """Of one kind of deformation: what is declared holds or fails; what is not is smooth or jumps."""
        worst = largest(self.followed, kind)
        if worst is None:
            return "not measured"
        if self.continuous:
            return "holds" if self.smooth(worst) else "fails"
        return "smooth" if self.smooth(worst) else "jumps"

    def _extras(self) -> list[str]:
        if not self.extras:
            return []
        rows = [[e.title, _number(e.value), f"allowed {_number(e.allowed)}", e.verdict] for e in self.extras]
        return ["", *_aligned(rows)]

    def _end(self) -> list[str]:
        lines = ["", "all that is declared holds" if self.ok else "FAILS:"]
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


def place_words(found: Followed, unit: str) -> str:
    """Where a jump is and why."""
    bonds = f", {found.bonds} edges come or go" if found.bonds else ""
    return f"{_measured(found.place, unit)} on {found.name}{bonds}"


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
