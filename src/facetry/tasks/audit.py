"""Audit: a set of crystals in, what is wrong with it out, and what a model on it must beat.

unreadable rows, repeated names, duplicates, what parts share, elements only in the test, impossible
distances, densities and labels, outliers and slips of units, spoilt tensors; baselines; a group split
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from facetry.card import Target
from facetry.chemistry.composition import composition_features
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset, Splits
from facetry.data.division import PARTS, group_split
from facetry.evaluation import checks
from facetry.evaluation.baselines import Baseline, Fold, composition_baselines
from facetry.evaluation.findings import COLUMNS, UNLABELLED, Finding, Subject
from facetry.evaluation.label_checks import labels, tensors
from facetry.evaluation.likeness import find_alike
from facetry.evaluation.metrics import nan_to_null
from facetry.evaluation.plausibility import plausibility
from facetry.evaluation.prototypes import identify
from facetry.geometry.components import connected_components

__all__ = ["Audit", "By", "GroupSplit", "audit"]

By = Literal["formula", "prototype"]

_CROSS_VALIDATION = 5
_ORDER = {"error": 0, "warning": 1, "note": 2}
_SHOWN = {"error": "ERROR", "warning": "warning", "note": "note"}


@dataclass(frozen=True)
class GroupSplit:
    """A division that keeps what belongs together in one part.

    `names`, `part` (0, 1, 2: train, val, test) and `group` have a row for every crystal. Written as CSV it is
    what `data.split` of a recipe and `facetry.dataset(..., split=)` take.
    """

    by: str
    names: Sequence[str]
    part: Int[np.ndarray, " crystals"]
    group: Sequence[str]

    @property
    def counts(self) -> dict[str, int]:
        """Crystals in every part."""
        return {name: int((self.part == i).sum()) for i, name in enumerate(PARTS)}

    @property
    def largest(self) -> int:
        """Crystals of the largest group, which cannot be divided."""
        return int(np.unique(np.array(self.group), return_counts=True)[1].max(initial=0))

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.counts.items())
        groups = len(set(self.group))
        return f"split by {self.by}: {counts}; {groups} groups, the largest of {self.largest} crystals"

    def write(self, path: str | PathLike[str]) -> Path:
        """id, split, group as CSV."""
        from facetry.data.vault import atomic_write

        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["id", "split", "group"])
        for name, part, group in zip(self.names, self.part.tolist(), self.group, strict=True):
            table.writerow([name, PARTS[part], group])
        with atomic_write(Path(path)) as stream:
            stream.write(buffer.getvalue().encode())
        return Path(path)


@dataclass(frozen=True, eq=False)
class Audit:
    """What `facetry.audit` returns.

    `findings` come worst first, `baselines` say what composition alone predicts (`setting` in words how they
    were fitted and tested). `notes` are what the package knows of a named set.
    """

    name: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    baselines: tuple[Baseline, ...]
    setting: str
    notes: tuple[str, ...] = ()
    unreadable: int = 0
    seconds: float = 0.0
    subject: Subject | None = field(default=None, repr=False)

    def __getitem__(self, key: str) -> Finding:
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(f"no finding {key!r}; there are {', '.join(f.key for f in self.findings) or 'none'}")

    @property
    def errors(self) -> int:
        """Findings that are wrong beyond doubt."""
        return sum(f.level == "error" for f in self.findings)

    def split(
        self, by: By = "formula", fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
    ) -> GroupSplit:
        """A division into train, val and test in which no formula, or no prototype, is in two parts.

        Crystals that are nearly the same, and rows of one name, stay together besides. Drawn by sha256 of
        seed and group: the same on every machine, whatever the order of the rows.
        """
        if by not in ("formula", "prototype"):
            raise ValueError(f"by: expected formula or prototype, got {by!r}")
        if len(fractions) != 3 or any(f < 0 for f in fractions) or not fractions[0] > 0:
            raise ValueError(
                f"fractions: expected three shares for train, val, test, the first above 0, got {fractions}"
            )
        subject = self.subject
        if subject is None:
            raise ValueError(f"{self.name}: nothing to divide, no crystal could be read")
        identity, names = subject.identity, subject.data.names.astype(str)
        own = identity.formulas if by == "formula" else identity.prototypes
        words = [w or f"{f} alone" for w, f in zip(own, identity.formulas, strict=True)]
        group = _joined([np.array(words), subject.likeness.near, names])
        # a group is called by the first of its words, so that rows may come in any order
        order = np.lexsort((np.array(words), group))
        first = order[np.unique(group[order], return_index=True)[1]]
        called = [words[i] for i in first.tolist()]
        labels_of = [called[g] for g in group.tolist()]
        part = group_split(labels_of, tuple(fractions), f"audit {by} {seed}")
        return GroupSplit(by, names.tolist(), part, labels_of)

    def __str__(self) -> str:
        counts = ", ".join(f"{part} {n}" for part, n in self.counts.items())
        lines = [f"{self.name}: {sum(self.counts.values())} crystals ({counts}), {self.seconds:.0f} s"]
        lines += [f"  {note}" for note in self.notes]
        width = max((len(f.key) for f in self.findings), default=0)
        lines += [""] + [f"{_SHOWN[f.level]:8s}{f.key:{width}s}  {f.text}" for f in self.findings]
        if not self.findings:
            lines.append("nothing found")
        if self.baselines:
            lines += ["", f"what a model must beat ({self.setting}):"]
            lines += [f"  {line}" for line in self._baseline_lines()]
        return "\n".join(lines)

    def _baseline_lines(self) -> list[str]:
        lines = []
        for baseline in self.baselines:
            scores = baseline.scores
            unit = f" {scores.unit}" if scores.unit else ""
            metric = "mae" if scores.task == "regression" else "balanced_accuracy"
            word = "MAE" if scores.task == "regression" else "balanced accuracy"
            value = scores.metrics[metric].text(unit if scores.task == "regression" else "")
            lines.append(f"{scores.target:24s} {baseline.method:9s} {word} {value}")
        return lines

    def to_dict(self, most: int = 20) -> dict[str, Any]:
        """Plain content for JSON; every finding with its first cases."""
        return {
            "name": self.name,
            "counts": self.counts,
            "notes": list(self.notes),
            "unreadable": self.unreadable,
            "findings": [f.to_dict(most) for f in self.findings],
            "baselines": {"setting": self.setting, "scores": [_plain(b) for b in self.baselines]},
            "seconds": round(self.seconds, 1),
        }

    def write(self, folder: str | PathLike[str]) -> list[Path]:
        """audit.html, findings.csv (a row for every case) and audit.json into a folder."""
        from facetry.data.vault import atomic_write
        from facetry.evaluation.audit_page import audit_page

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(COLUMNS), lineterminator="\n")
        table.writeheader()
        for finding in self.findings:
            table.writerows(finding.rows())
        texts = {
            "audit.html": audit_page(self),
            "findings.csv": buffer.getvalue(),
            "audit.json": json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n",
        }
        for name, text in texts.items():
            with atomic_write(place / name) as stream:
                stream.write(text.encode())
        return [place / name for name in texts]


def audit(
    data: Any,
    target: str | Sequence[str] | None = None,
    *,
    baselines: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Audit:
    """Look for what is wrong with a set of crystals, and say what composition alone predicts.

    `data` is a named set, your own table or folder (with a CSV, or structures alone), what
    `facetry.dataset` returned, or a list of crystals, structures and paths. `target` None takes all targets
    that share a division. Parts are those of the set; a table without a column `split` is one part, whose
    baselines are cross-validated with formulas kept together. `progress` is called with numbers of crystals
    that were looked at.

    Nothing is changed. `Audit.split` draws a division that does not leak, `Audit.write` writes a page, a
    table of all cases and JSON.
    """
    started = time.monotonic()
    name, parts, folds, skipped, notes, descriptions = _load(data, target)
    parts = {part: content for part, content in parts.items() if len(content)}
    found: list[Finding] = checks.unreadable(skipped)
    if not parts:
        return Audit(name, {}, tuple(found), (), "", tuple(notes), len(skipped), time.monotonic() - started)
    whole = Dataset.concatenate(list(parts.values()))
    counts = {part: len(content) for part, content in parts.items()}
    identity = identify(whole.crystals, progress)
    likeness = find_alike(whole.crystals, identity.kinds, identity.formulas)
    number = np.repeat(np.arange(len(parts)), list(counts.values()))
    subject = Subject(whole, list(parts), number, identity, likeness, folds)
    features = composition_features(whole.crystals.atomic_numbers, whole.crystals.num_atoms)
    found += checks.names(subject)
    found += checks.duplicates(subject)
    found += checks.shared(subject)
    found += checks.elements(subject)
    found += checks.physics(subject, plausibility(whole.crystals))
    found += labels(subject, features, descriptions)
    found += tensors(subject)
    found.sort(key=lambda f: _ORDER[f.level])
    scores: list[Baseline] = []
    setting = ""
    if baselines and whole.target_info:
        chosen, setting = _folds(subject, seed)
        scores = composition_baselines(features, whole.targets, whole.target_info, chosen)
    return Audit(
        name, counts, tuple(found), tuple(scores), setting if scores else "", tuple(notes), len(skipped),
        time.monotonic() - started, subject,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Input

_Loaded = tuple[str, dict[str, Dataset], bool, list[tuple[str, str]], list[str], dict[str, str]]


def _load(data: Any, target: str | Sequence[str] | None) -> _Loaded:
    """Name, parts, whether they are folds, what was skipped, notes, descriptions of targets."""
    from facetry.data import dataset, info, is_named

    if isinstance(data, Dataset):
        return "data", {"all": data}, False, [], [], {}
    if isinstance(data, Splits):
        return _parts_of(data)
    if isinstance(data, str | PathLike):
        path = data if isinstance(data, str) else str(data)
        if is_named(path):
            manifest = info(path)
            wanted = list(manifest.targets) if target is None else target
            notes = []
            try:
                splits = dataset(path, wanted)
            except ValueError:
                if target is not None:
                    raise
                splits = dataset(path)
                notes = [f"targets are divided differently; audited: {manifest.default_target}"]
            loaded = _parts_of(splits)
            known = {name: t.description for name, t in manifest.targets.items()}
            return loaded[0], *loaded[1:4], [*loaded[4], *notes], known
        if _is_table(Path(path).expanduser()):
            return _own(path, target)
        data = [path]
    if target is not None:
        raise ValueError("target: crystals without a table have no targets; leave it out")
    return _loose(data)


def _is_table(path: Path) -> bool:
    if path.is_dir():
        return any(p.suffix.lower() == ".csv" for p in path.iterdir())
    return path.suffix.lower() in (".csv", ".tsv", ".parquet")


def _own(path: str, target: str | Sequence[str] | None) -> _Loaded:
    """A table of one's own: as its column `split` says, else as one part."""
    from facetry.data import dataset
    from facetry.data.tables import TableError

    undivided = (1.0, 0.0, 0.0)
    try:
        splits = dataset(path, target, fractions=undivided)
    except TableError as error:
        if target is not None or "no column of numbers" not in str(error):
            raise
        splits = dataset(path, [], fractions=undivided)
    return _parts_of(splits)


def _parts_of(splits: Splits) -> _Loaded:
    parts = dict(splits.parts)
    if splits.folds:
        parts = {f"fold {i}": fold.parts["test"] for i, fold in enumerate(splits.folds)}
    if splits.unlabelled is not None and len(splits.unlabelled):
        parts[UNLABELLED] = splits.unlabelled
    filled = [name for name, content in parts.items() if len(content)]
    if filled == ["train"]:
        parts = {"all": parts["train"]}
    skipped = [(s.source, s.reason) for s in splits.skipped]
    return splits.name, parts, bool(splits.folds), skipped, list(splits.notes), {}


def _loose(crystals: Any) -> _Loaded:
    """Crystals, structures and paths, without labels."""
    from facetry.tasks.inputs import items_of

    good, skipped = [], []
    for item in items_of(crystals):
        if item.crystal is None:
            skipped.append((item.source, item.error))
        else:
            good.append(item.crystal)
    name = str(crystals[0]) if _is_one_path(crystals) else "crystals"
    table = CrystalTable.from_crystals(good)
    none: list[Target] = []
    return name, {"all": Dataset(table, np.zeros((len(table), 0)), none)}, False, skipped, [], {}


def _is_one_path(crystals: Any) -> bool:
    return isinstance(crystals, list) and len(crystals) == 1 and isinstance(crystals[0], str)


# ---------------------------------------------------------------------------------------------------------
# Baselines and groups


def _folds(subject: Subject, seed: int) -> tuple[list[Fold], str]:
    """Rows to learn from and to predict, and in words what they are."""
    rows = np.arange(len(subject.part))
    by_part = {name: rows[subject.part == i] for i, name in enumerate(subject.parts) if name != UNLABELLED}
    if subject.folds:
        folds = [(rows[subject.part != i], held) for i, held in enumerate(by_part.values())]
        return folds, f"the {len(folds)} official folds"
    if "test" in by_part:
        labelled = ~np.isnan(subject.data.targets).all(axis=1)
        fit = by_part.get("train", by_part["test"][:0])
        if labelled[fit].any():
            return [(fit, by_part["test"])], "fitted to train, tested on test"
        if "val" in by_part:
            return [(by_part["val"], by_part["test"])], "train has no labels: fitted to val, tested on test"
    known = np.concatenate(list(by_part.values())) if by_part else rows
    shares = np.full(_CROSS_VALIDATION, 1.0)
    fold = _group_folds([subject.identity.formulas[r] for r in known.tolist()], len(shares), seed)
    folds = [(known[fold != i], known[fold == i]) for i in range(len(shares))]
    return folds, f"{_CROSS_VALIDATION}-fold cross-validation, formulas kept together"


def _group_folds(groups: Sequence[str], count: int, seed: int) -> Int[np.ndarray, " rows"]:
    """Fold of every row; rows of one group are in one fold."""
    _, inverse = np.unique(np.array(groups, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(inverse.max(initial=0)) + 1)
    return order[inverse] % count


def _joined(keys: Iterable[np.ndarray]) -> Int[np.ndarray, " rows"]:
    """Number of the group of every row where rows that agree in any of the keys belong together."""
    columns = [np.unique(key, return_inverse=True)[1].reshape(-1) for key in keys]
    count = len(columns[0])
    starts = count + np.cumsum([0, *(int(c.max(initial=-1)) + 1 for c in columns)])
    ends = np.concatenate([c + s for c, s in zip(columns, starts, strict=False)])
    rows = np.tile(np.arange(count), len(columns))
    return connected_components(rows, ends, int(starts[-1]))[1][:count]


def _plain(baseline: Baseline) -> dict[str, Any]:
    scores = baseline.scores
    metrics = {name: nan_to_null([e.value, e.lower, e.upper]) for name, e in scores.metrics.items()}
    own = {"target": scores.target, "unit": scores.unit, "task": scores.task, "count": scores.count}
    return {"method": baseline.method} | own | {"metrics": metrics}
