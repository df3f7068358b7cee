"""Match: reference crystals and candidates in, how many were found again and how exactly out."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from facetry.evaluation.match_pool import MatchTask, match_pairs
from facetry.evaluation.matching import (
    ANGLE_TOLERANCE,
    LENGTH_TOLERANCE,
    SITE_TOLERANCE,
    Matcher,
    species_ratio,
)
from facetry.evaluation.metrics import nan_to_null
from facetry.evaluation.validity import why_invalid
from facetry.tasks.belonging import By, Owners, candidates_of
from facetry.tasks.inference import Item
from facetry.tasks.inputs import items_of

__all__ = ["COLUMNS", "By", "Match", "Matches", "match"]

Status = Literal["ok", "failed"]

KS = (1, 5, 20)
"""Numbers of candidates at which scores are given, besides the number that there are."""

COLUMNS: dict[str, str] = {
    "reference": "text", "candidate": "text", "source": "text", "rank": "int", "formula": "text",
    "status": "text", "match": "bool", "rms": "float", "valid": "bool", "message": "text",
}  # fmt: skip
REFERENCE_COLUMNS: dict[str, str] = {
    "reference": "text", "source": "text", "formula": "text", "atoms": "int", "status": "text",
    "candidates": "int", "rms": "float", "best": "text", "rms_of_all": "float", "best_of_all": "text",
    "message": "text",
}  # fmt: skip
_TASK = 64  # candidates a worker gets at once


@dataclass(frozen=True)
class Match:
    """One candidate beside the reference it belongs to.

    `rms` is the root mean square distance of paired sites over (volume per atom)^(1/3), None for no match.
    `valid`: the candidate counts under the validity filter, and `message` says why not. `status` is "failed"
    where it could not be read, belongs to no reference, or its comparison ran over the time limit; it then
    counts as a candidate that does not match.
    """

    reference: str
    candidate: str
    source: str
    rank: int | None
    formula: str
    status: Status
    rms: float | None
    valid: bool | None
    message: str = ""

    def row(self) -> dict[str, Any]:
        """The columns of matches.csv."""
        matched = None if self.status != "ok" else self.rms is not None
        return {**{name: getattr(self, name) for name in COLUMNS if name != "match"}, "match": matched}


@dataclass(frozen=True)
class Matches:
    """Scores of candidates against references.

    `pairs` has a row for every candidate, in the order of the references. Scores take the first k candidates
    of every reference; those `valid` count a candidate only if it passes `why_invalid`.

    A reference that could not be read is in no score.
    """

    pairs: list[Match]
    references: list[dict[str, Any]]
    site_tolerance: float
    everyone: bool
    seconds: float = 0.0
    compared: int = 0
    # for every reference its candidates: number, rank, valid; and the rms of all that match it
    _own: list[list[tuple[int, int, bool]]] = field(default_factory=list, repr=False)
    _rms: list[dict[int, float]] = field(default_factory=list, repr=False)

    @property
    def failed(self) -> int:
        """References and candidates that could not be read, assigned or compared."""
        return sum(p.status != "ok" for p in self.pairs) + sum(r["status"] != "ok" for r in self.references)

    @property
    def ks(self) -> list[int]:
        """1, 5 and 20 as far as there are so many candidates, and the most that a reference has."""
        most = max(map(len, self._own), default=0)
        return sorted({k for k in KS if k <= most} | {max(most, 1)})

    def best(self, k: int, valid: bool = False, everyone: bool = False) -> Float[np.ndarray, " references"]:
        """The smallest rms of every reference among its first k candidates, NaN where none matches.

        `everyone`: among the first k candidates of all references.
        """
        chosen = [{c for c, rank, good in own if rank <= k and (good or not valid)} for own in self._own]
        if everyone:
            chosen = [set().union(*chosen)] * len(chosen)
        values = [
            [rms for c, rms in found.items() if c in among]
            for found, among in zip(self._rms, chosen, strict=True)
        ]
        return np.array([min(v, default=math.nan) for v in values], dtype=float)

    def match_rate(self, k: int, valid: bool = False) -> float:
        """Share of the references that one of their first k candidates matches."""
        return _share(self.best(k, valid))

    def rmse(self, k: int, valid: bool = False) -> float:
        """Mean over the matched references of their smallest rms; NaN where none is."""
        best = self.best(k, valid)
        return float(np.nanmean(best)) if np.isfinite(best).any() else math.nan

    def metre(self, k: int, valid: bool = False) -> float:
        """Share of the references that any of the first k candidates of all references matches.

        METRe, "match everyone to reference" (Martirossyan et al. 2025, arXiv 2509.12178): polymorphs share a
        formula, and which of them a candidate was made for is chance.
        """
        return _share(self.best(k, valid, everyone=True))

    def crmse(self, k: int, valid: bool = False) -> float:
        """The mean over all references of the smallest rms behind `metre`, where one without a match counts
        as far away as the site tolerance (cRMSE, Martirossyan et al. 2025)."""
        best = self.best(k, valid, everyone=True)
        return float(np.where(np.isfinite(best), best, self.site_tolerance).mean()) if len(best) else math.nan

    def summary(self) -> dict[str, Any]:
        """All scores, JSON-able; null where there is none."""
        scores = []
        for k in self.ks:
            for valid in (False, True):
                row = {"k": k, "valid_only": valid, "match_rate": self.match_rate(k, valid)}
                row["rmse"] = self.rmse(k, valid)
                if self.everyone:
                    row |= {"metre": self.metre(k, valid), "crmse": self.crmse(k, valid)}
                scores.append(nan_to_null(row))
        judged = [p.valid for p in self.pairs if p.valid is not None]
        return {
            "references": len(self._own),
            "candidates": len(self.pairs),
            "failed": self.failed,
            "valid": float(np.mean(judged)) if judged else None,
            "compared": self.compared,
            "seconds": round(self.seconds, 3),
            "scores": scores,
        }

    def __str__(self) -> str:
        facts = self.summary()
        names = ["match_rate", "rmse", *(["metre", "crmse"] if self.everyone else [])]
        lines = [
            f"{facts['references']} references, {facts['candidates']} candidates, {facts['failed']} failed",
            " ".join(["candidates".ljust(18), *(name.rjust(10) for name in names)]),
        ]
        for score in facts["scores"]:
            first = f"first {score['k']}" + (", valid" if score["valid_only"] else "")
            values = ("-" if score[name] is None else f"{score[name]:.4f}" for name in names)
            lines.append(" ".join([first.ljust(18), *(value.rjust(10) for value in values)]))
        return "\n".join(lines)

    def write(self, folder: str | PathLike[str]) -> list[Path]:
        """matches.csv, references.csv and summary.json in a folder, which is made."""
        from facetry.tasks.table_writer import TableWriter

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / "matches.csv", place / "references.csv", place / "summary.json"]
        for path, columns, rows in (
            (paths[0], COLUMNS, [p.row() for p in self.pairs]),
            (paths[1], REFERENCE_COLUMNS, self.references),
        ):
            with TableWriter(path, columns) as table:
                table.write(rows)
        paths[2].write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        return paths


def _share(best: np.ndarray) -> float:
    return float(np.isfinite(best).mean()) if len(best) else math.nan


def match(
    references: Any,
    candidates: Any,
    by: By = "name",
    everyone: bool = True,
    workers: int | None = None,
    time_limit: float | int | None = 60.0,
    length_tolerance: float | int = LENGTH_TOLERANCE,
    site_tolerance: float | int = SITE_TOLERANCE,
    angle_tolerance: float | int = ANGLE_TOLERANCE,
    filtered: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Matches:
    """Which references the candidates match, with pymatgen's StructureMatcher, and the scores of that.

    Args:
        references: crystals, paths, or what else `facetry.predict` takes; every one needs a name of its own.
        candidates: the same; or a dict from the name of a reference to its candidates; or a list with one
            list of candidates for every reference.
        by: to which reference a candidate belongs, where that is not given: "name" (a column `reference` of
            its table, the folder it lies in, or its own name up to a separator and a number), "formula" (to
            every reference of its reduced formula), "order" (equally many for each, one reference after the
            other).
        everyone: compare the candidates of other references too, which METRe and cRMSE need.
        workers: processes; None is one per core, 0 none but this one (without a time limit).
        time_limit: seconds for one pair, None for no limit; a pair that takes longer is none, and says so.
        length_tolerance: ltol of the matcher, relative.
        site_tolerance: stol of the matcher, in units of the cube root of the volume per atom.
        angle_tolerance: angle_tol of the matcher, in degrees.
        filtered: leave out pairs that provably do not match; the answer is the same without.
        progress: called with the pairs done and all there are.

    The first k candidates of a reference are those with the smallest numbers at the end of their names, where
    all have one, else the first in the order given. Raises ImportError with the command to type where
    pymatgen-core is missing; ValueError where two references share a name or no candidate belongs to one.
    """
    options = {
        "length_tolerance": length_tolerance,
        "site_tolerance": site_tolerance,
        "angle_tolerance": angle_tolerance,
        "filtered": filtered,
    }
    for name in ("length_tolerance", "site_tolerance", "angle_tolerance"):
        if not options[name] > 0:
            raise ValueError(f"{name}: expected a number above 0, got {options[name]}")
    Matcher(**options)  # says at once that pymatgen is missing
    started = time.monotonic()
    known = list(items_of(references))
    found, owners = candidates_of(known, candidates, by)
    valid = _valid(found)
    rows = [i for i, item in enumerate(known) if item.crystal is not None]
    tasks = _tasks(known, found, owners, rows, everyone)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    total = sum(len(t.candidates) for t in tasks)
    rms: list[dict[int, float]] = [{} for _ in known]
    problems: dict[tuple[int, int], str] = {}
    done = 0
    for task, answers in zip(tasks, match_pairs(tasks, workers, time_limit, options), strict=True):
        reference = task.reference[0]
        for (number, _), (distance, reason) in zip(task.candidates, answers, strict=True):
            candidate = number - len(known)
            if reason:
                problems[reference, candidate] = reason
            elif distance is not None:
                rms[reference][candidate] = distance
        done += len(answers)
        if progress is not None:
            progress(done, total)
    pairs = [
        _pair(known[i], found[c], rank, rms[i].get(c), valid[c], problems.get((i, c), ""))
        for i in rows
        for c, rank in owners[i]
    ]
    assigned = {c for i in rows for c, _ in owners[i]}
    pairs += [_lost(item) for c, item in enumerate(found) if c not in assigned]
    return Matches(
        pairs,
        _references(known, found, owners, rms),
        float(site_tolerance),
        everyone,
        time.monotonic() - started,
        total,
        [[(c, rank, not valid[c]) for c, rank in owners[i]] for i in rows],
        [rms[i] for i in rows],
    )


def _valid(found: Sequence[Item]) -> list[str]:
    """For every candidate why it is not valid."""
    rows = [c for c, item in enumerate(found) if item.crystal is not None]
    reasons = ["not read"] * len(found)
    for c, reason in zip(rows, why_invalid([found[c].crystal for c in rows]), strict=True):
        reasons[c] = reason
    return reasons


def _tasks(
    known: Sequence[Item],
    found: Sequence[Item],
    owners: Owners,
    rows: Sequence[int],
    everyone: bool,
) -> list[MatchTask]:
    """Every reference with its candidates, and with those of others that have its formula."""
    ratio = [None if item.crystal is None else species_ratio(item.crystal) for item in found]
    alike: dict[Any, list[int]] = defaultdict(list)
    for i in rows:
        for c, _ in owners[i]:
            alike[ratio[c]].append(c)
    tasks = []
    for i in rows:
        crystal = known[i].crystal
        assert crystal is not None
        mine = species_ratio(crystal)
        chosen = alike[mine] if everyone else [c for c, _ in owners[i] if ratio[c] == mine]
        chosen = list(dict.fromkeys(chosen))
        for start in range(0, len(chosen), _TASK):
            numbered = [(len(known) + c, found[c].crystal) for c in chosen[start : start + _TASK]]
            tasks.append(MatchTask((i, crystal), numbered))
    return tasks


def _pair(
    reference: Item, candidate: Item, rank: int, rms: float | None, invalid: str, problem: str
) -> Match:
    crystal = candidate.crystal
    problem = problem or ("" if crystal is not None else candidate.error)
    return Match(
        reference=reference.name,
        candidate=candidate.name,
        source=candidate.source,
        rank=rank,
        formula="" if crystal is None else crystal.formula,
        status="failed" if problem else "ok",
        rms=rms,
        valid=None if crystal is None else not invalid,
        message=problem or (invalid and f"not valid: {invalid}"),
    )


def _lost(item: Item) -> Match:
    reason = item.error or "belongs to no reference"
    formula = "" if item.crystal is None else item.crystal.formula
    return Match("", item.name, item.source, None, formula, "failed", None, None, reason)


def _references(
    known: Sequence[Item],
    found: Sequence[Item],
    owners: Owners,
    rms: Sequence[Mapping[int, float]],
) -> list[dict[str, Any]]:
    """The rows of references.csv."""
    rows = []
    for i, item in enumerate(known):
        crystal = item.crystal
        own = {c: rms[i][c] for c, _ in owners[i] if c in rms[i]}
        best = min(own, key=own.__getitem__, default=None)
        of_all = min(rms[i], key=rms[i].__getitem__, default=None)
        rows.append(
            {
                "reference": item.name,
                "source": item.source,
                "formula": "" if crystal is None else crystal.formula,
                "atoms": None if crystal is None else len(crystal),
                "status": "ok" if crystal is not None else "failed",
                "candidates": len(owners[i]),
                "rms": None if best is None else own[best],
                "best": "" if best is None else found[best].name,
                "rms_of_all": None if of_all is None else rms[i][of_all],
                "best_of_all": "" if of_all is None else found[of_all].name,
                "message": item.error,
            }
        )
    return rows
