"""Crystals with targets, and their division into train, validation and test.

`Dataset` and `Splits` are plain values; `named_splits` turns a manifest and its files into them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from facetry.data.crystals import CrystalTable, column_lists
from facetry.data.manifest import ExtraInfo, Manifest, TargetInfo
from facetry.models.card import Target

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Dataset", "Extra", "Splits", "group_split", "limit_splits", "named_splits"]

log = logging.getLogger("facetry.data")

Limit = int | Mapping[str, int] | None


@dataclass(frozen=True, eq=False)
class Extra:
    """A quantity that is not one number a crystal: `per` "atom" or "crystal" with rows of numbers (NaN where
    unknown), or "structure" with a second crystal for each."""

    values: np.ndarray | CrystalTable
    per: str
    unit: str = ""

    def select(self, rows: np.ndarray, crystals: CrystalTable) -> Extra:
        """The part that belongs to the chosen crystals; `crystals` is the table before the choice."""
        if self.per == "atom":
            from facetry.data.crystals import gather

            return replace(self, values=self.values[gather(crystals.offsets, rows)[0]])
        return replace(self, values=self.values[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Crystals and their targets in physical units.

    `targets` has a column for each of `target_info`; NaN is a missing label. A binary target is 0 or 1, a
    multi-class target the number of its class in `target_info[i].classes`. Iterating gives
    (crystal, targets) pairs.
    """

    crystals: CrystalTable
    targets: Float[np.ndarray, "crystals targets"]
    target_info: list[Target]
    extras: dict[str, Extra] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.crystals)

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray]]:
        for row in range(len(self)):
            yield self.crystals[row], self.targets[row]

    @property
    def names(self) -> np.ndarray:
        """Identifiers of the crystals, as the set or the file names give them."""
        return self.crystals.names

    @property
    def labelled(self) -> np.ndarray:
        """Mask of the rows that have at least one target."""
        return (
            ~np.isnan(self.targets).all(axis=1) if self.targets.shape[1] else np.zeros(len(self), dtype=bool)
        )

    def select(self, rows: Any) -> Dataset:
        """The chosen rows in the given order (slice, integers or mask)."""
        rows = np.arange(len(self))[rows]
        return Dataset(
            self.crystals.select(rows),
            self.targets[rows],
            self.target_info,
            {name: extra.select(rows, self.crystals) for name, extra in self.extras.items()},
        )

    @cached_property
    def hash(self) -> str:
        """sha256 of crystals, names, targets and what the targets are (not of the extras)."""
        digest = hashlib.sha256()
        self.crystals.update_hash(digest)
        values = np.where(np.isnan(self.targets), np.nan, self.targets)  # one bit pattern for every NaN
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        meaning = [[t.name, t.unit, t.task, t.classes] for t in self.target_info]
        digest.update(json.dumps(meaning).encode())
        return digest.hexdigest()

    @staticmethod
    def concatenate(parts: Sequence[Dataset]) -> Dataset:
        """Data sets with the same targets and extras one after the other."""

        def join(name: str) -> Extra:
            values = [p.extras[name].values for p in parts]
            merge = CrystalTable.concatenate if isinstance(values[0], CrystalTable) else np.concatenate
            return replace(parts[0].extras[name], values=merge(values))

        return Dataset(
            CrystalTable.concatenate([p.crystals for p in parts]),
            np.concatenate([p.targets for p in parts]),
            parts[0].target_info,
            {name: join(name) for name in parts[0].extras},
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """A set divided for training: `.train`, `.val`, `.test`, or `.folds` where the official protocol is
    cross-validation (then take `folds[i]`, or pass `fold=i` to `dataset`).

    `official`: the division is the published one. `complete`: nothing of the published set is missing. `notes`
    say in words what a reader of the numbers must know. `unlabelled` holds rows without any target, `skipped`
    the inputs that gave no crystal, with the reason.
    """

    name: str
    parts: dict[str, Dataset]
    folds: list[Splits] = field(default_factory=list)
    manifest: Manifest | None = None
    official: bool = False
    complete: bool = True
    notes: tuple[str, ...] = ()
    unlabelled: Dataset | None = None
    skipped: tuple[Any, ...] = ()

    def _part(self, name: str) -> Dataset:
        if name not in self.parts:
            raise AttributeError(
                f"{self.name} is divided into {len(self.folds)} folds, it has no {name}: pass fold=0 to "
                f"fold={len(self.folds) - 1}, or use .folds[i].{name}"
            )
        return self.parts[name]

    @property
    def train(self) -> Dataset:
        return self._part("train")

    @property
    def val(self) -> Dataset:
        return self._part("val")

    @property
    def test(self) -> Dataset:
        return self._part("test")

    @property
    def target_info(self) -> list[Target]:
        """What the columns of the targets are."""
        return (self.folds[0] if self.folds else self).train.target_info

    @cached_property
    def hash(self) -> str:
        """sha256 over the parts (or folds): the same data divided otherwise has another hash."""
        digest = hashlib.sha256()
        for name in sorted(self.parts):
            digest.update(f"{name}:{self.parts[name].hash};".encode())
        for fold in self.folds:
            digest.update(fold.hash.encode())
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Crystals in every part."""
        return {name: len(part) for name, part in self.parts.items()}

    def __repr__(self) -> str:
        inside = (
            f"{len(self.folds)} folds"
            if self.folds
            else ", ".join(f"{k} {v}" for k, v in self.counts.items())
        )
        targets = ", ".join(f"{t.name} [{t.unit}]" if t.unit else t.name for t in self.target_info)
        return f"Splits({self.name}: {inside}; targets: {targets or 'none'}; {self.hash[:12]})"


# ---------------------------------------------------------------------------------------------------------
# Division


def group_split(
    groups: Sequence[str], fractions: tuple[float, float, float], salt: str
) -> Int[np.ndarray, " rows"]:
    """0, 1 or 2 (train, val, test) for every row; rows of one group stay together.

    Groups are laid end to end in the order of sha256(salt, group) and the line is cut at the fractions, so
    the outcome depends neither on the order of the rows nor on a random generator's version. A part that
    should have rows but got none takes the last group of the largest part.
    """
    unique, inverse, counts = np.unique(np.array(groups, dtype=str), return_inverse=True, return_counts=True)
    digests = [hashlib.sha256(f"{salt}\0{group}".encode()).digest() for group in unique.tolist()]
    order = np.array(sorted(range(len(unique)), key=digests.__getitem__), dtype=np.int64)
    ends = np.cumsum(counts[order])
    middle = (ends - counts[order] / 2) / max(len(inverse), 1)
    borders = np.cumsum(fractions)[:2] / sum(fractions)
    part = np.searchsorted(borders, middle, side="right")
    for empty in (i for i in range(3) if fractions[i] > 0 and i not in part):
        largest = np.bincount(part, minlength=3).argmax()
        if (part == largest).sum() > 1:
            part[np.nonzero(part == largest)[0][-1]] = empty
    by_group = np.empty(len(unique), dtype=np.int64)
    by_group[order] = part
    return by_group[inverse]


def limit_splits(splits: Splits, limit: Limit, seed: int) -> Splits:
    """A smaller set for trials and learning curves.

    An integer keeps that many crystals of train and at most as many of val; test stays whole, so that test
    numbers of different limits compare. A dict {"train": n, "val": n, "test": n} sets each. Crystals are the
    first n of one random order (legacy numpy generator, the same on every version) of those with a label, so
    a larger limit with the same seed contains the smaller one.
    """
    if limit is None:
        return splits
    sizes = dict(limit) if isinstance(limit, Mapping) else {"train": limit, "val": limit}
    wrong = [k for k, v in sizes.items() if k not in ("train", "val", "test") or int(v) != v or v < 1]
    if wrong:
        raise ValueError(
            f"limit: expected train, val, test with numbers of crystals above zero, got {dict(sizes)}"
        )
    if splits.folds:
        return replace(splits, folds=[limit_splits(f, limit, seed) for f in splits.folds])
    parts = dict(splits.parts)
    cut = []
    for place, name in enumerate(("train", "val", "test")):
        size = int(sizes.get(name, len(parts[name])))
        if size >= len(parts[name]):
            continue
        rows = (
            np.nonzero(parts[name].labelled)[0] if parts[name].labelled.any() else np.arange(len(parts[name]))
        )
        order = np.random.RandomState((seed, place)).permutation(len(rows))[:size]  # noqa: NPY002
        cut.append(f"{name} {size} of {len(parts[name])}")
        parts[name] = parts[name].select(np.sort(rows[order]))
    if not cut:
        return splits
    note = f"a random part of the set (seed {seed}): {', '.join(cut)}"
    return replace(splits, parts=parts, complete=False, notes=(*splits.notes, note))


# ---------------------------------------------------------------------------------------------------------
# From a manifest


def named_splits(manifest: Manifest, target: str | Sequence[str] | None, fold: int | None) -> Splits:
    """The named set with the chosen targets (None: its default target), divided as its manifest says."""
    names = _target_names(manifest, target)
    scheme = manifest.split
    if fold is not None and scheme.kind != "folds":
        raise ValueError(f"{manifest.name} has no folds; leave fold out ({scheme.description})")
    if scheme.kind == "files":
        parts, complete = _file_parts(manifest, names)
        return _finish(manifest, Splits(manifest.name, parts, complete=complete))
    tables = [_read(manifest, key) for key in manifest.files if manifest.is_default(key)]
    whole = Dataset.concatenate([_dataset(manifest, table, names) for table in tables])
    if scheme.kind == "folds":
        numbers = np.concatenate([t[scheme.column].to_numpy() for t in tables])
        folds = [_fold(manifest, whole, numbers, i) for i in range(int(numbers.max()) + 1)]
        if fold is None:
            return _finish(manifest, Splits(manifest.name, {}, folds=folds))
        if not 0 <= fold < len(folds):
            raise ValueError(f"{manifest.name} has the folds 0 to {len(folds) - 1}, got fold={fold}")
        return _finish(manifest, folds[fold])
    part = (
        _column_parts(manifest, names, tables)
        if scheme.kind == "column"
        else _our_parts(manifest, whole, tables)
    )
    parts = {name: whole.select(part == i) for i, name in enumerate(("train", "val", "test"))}
    return _finish(manifest, Splits(manifest.name, parts))


def _finish(manifest: Manifest, splits: Splits) -> Splits:
    """Add what the manifest knows; say aloud what is missing."""
    complete = splits.complete and (manifest.complete or manifest.split.kind == "files")
    notes = splits.notes
    if not complete:
        notes = (*notes, manifest.incomplete)
        log.warning("%s is incomplete: %s", manifest.name, manifest.incomplete)
    if not manifest.split.official:
        notes = (*notes, f"the split is ours, not a published one: {manifest.split.description}")
    known = {"manifest": manifest, "official": manifest.split.official, "complete": complete}
    folds = [replace(f, notes=(*f.notes, *notes), **known) for f in splits.folds]
    return replace(splits, folds=folds, notes=notes, **known)


def _target_names(manifest: Manifest, target: str | Sequence[str] | None) -> list[str]:
    if target is None:
        return [manifest.default_target] if manifest.default_target else []
    names = [target] if isinstance(target, str) else list(target)
    for name in names:
        if name in manifest.targets:
            continue
        if name in manifest.extras:
            raise ValueError(
                f"{manifest.name}: {name} is not one number a crystal; read it from Dataset.extras[{name!r}]"
            )
        from difflib import get_close_matches

        near = get_close_matches(name, manifest.targets, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        have = ", ".join(manifest.targets) or "none, structures only"
        raise ValueError(f"{manifest.name} has no target {name!r}{hint}; it has: {have}")
    if len(set(names)) != len(names):
        raise ValueError(f"{manifest.name}: a target is named twice in {names}")
    return names


def _read(manifest: Manifest, key: str) -> pa.Table:
    import pyarrow.parquet as pq

    from facetry.data.vault import find

    return pq.read_table(find(manifest, key))


def _file_parts(manifest: Manifest, names: list[str]) -> tuple[dict[str, Dataset], bool]:
    """The three files, and whether each is the complete one.

    A part whose complete file has to be imported is read from it once it is there; until then a stand-in
    (`contains` of the complete file) is read.
    """
    from facetry.data.vault import locate

    parts, complete = {}, True
    for part in ("train", "val", "test"):
        key = getattr(manifest.split, part)
        full = [k for k, f in manifest.files.items() if f.contains == key]
        if full and locate(manifest, full[0]) is not None:
            key = full[0]
        elif full or manifest.files[key].part_of:
            complete = False
        parts[part] = _dataset(manifest, _read(manifest, key), names)
    return parts, complete


def _column_parts(manifest: Manifest, names: list[str], tables: list[pa.Table]) -> np.ndarray:
    """Part of every row from the split columns of the chosen targets; -1 where the benchmark has none."""
    columns = {manifest.targets[n].split or manifest.split.column for n in names} or {manifest.split.column}
    order = {"train": 0, "val": 1, "test": 2}
    part = None
    for column in sorted(columns):
        values = [v for t in tables for v in t[column].to_pylist()]
        new = np.array([order.get(v, -1) for v in values])
        if part is not None:
            clash = int(((part >= 0) & (new >= 0) & (part != new)).sum())
            if clash:
                raise ValueError(
                    f"{manifest.name}: the targets {', '.join(names)} have different official splits "
                    f"({clash} crystals would be in two parts); load them one at a time"
                )
            new = np.where(part >= 0, part, new)
        part = new
    return part


def _our_parts(manifest: Manifest, whole: Dataset, tables: list[pa.Table]) -> np.ndarray:
    """The documented split of a set that has no official one."""
    group = manifest.split.group
    if manifest.split.kind == "none":
        return np.zeros(len(whole), dtype=np.int64)
    if group == "formula":
        groups = whole.crystals.formulas
    elif group:
        groups = [str(v) for t in tables for v in t[group].to_pylist()]
    else:
        groups = whole.names.tolist()
    return group_split(groups, manifest.split.fractions, manifest.split.salt or manifest.name)


def _fold(manifest: Manifest, whole: Dataset, numbers: np.ndarray, fold: int) -> Splits:
    """Test on one fold; a tenth of the rest (by hash of the id) is ours for validation."""
    rest = np.nonzero(numbers != fold)[0]
    part = group_split(whole.names[rest].tolist(), (0.9, 0.1, 0.0), f"{manifest.name} fold {fold}")
    parts = {
        "train": whole.select(rest[part == 0]),
        "val": whole.select(rest[part == 1]),
        "test": whole.select(np.nonzero(numbers == fold)[0]),
    }
    note = "validation is a tenth of the official training part, drawn by us"
    return Splits(f"{manifest.name} fold {fold}", parts, notes=(note,))


def _dataset(manifest: Manifest, table: pa.Table, names: list[str]) -> Dataset:
    crystals = CrystalTable.from_arrow(table, manifest.name)
    columns = [target_column(table, n, manifest.targets[n], manifest.name) for n in names]
    targets = np.stack(columns, axis=1) if columns else np.zeros((len(crystals), 0))
    info = [make_target(n, manifest.targets[n]) for n in names]
    extras = {n: _extra(manifest.name, table, n, e, crystals) for n, e in manifest.extras.items()}
    return Dataset(crystals, targets, info, extras)


def make_target(name: str, info: TargetInfo) -> Target:
    """What a model is told of the target."""
    classes = info.class_names if info.task == "multiclass" else (list(info.classes) or None)
    return Target(name=name, unit=info.unit, task=info.task, classes=classes)


def target_column(table: pa.Table, name: str, info: TargetInfo, source: str) -> Float[np.ndarray, " rows"]:
    """One target as float64: numbers as they are, classes by their position, NaN for null."""
    import pyarrow as pa

    if name not in table.column_names:
        raise ValueError(f"{source}: the file has no column {name}; it has {', '.join(table.column_names)}")
    column = table[name]
    if info.task == "multiclass":
        position = {c: float(i) for i, c in enumerate(info.class_names)}
        values = [None if v is None else str(v) for v in column.to_pylist()]
        unknown = sorted({v for v in values if v is not None and v not in position})
        if unknown:
            raise ValueError(f"{source}: {name} has values outside its classes: {', '.join(unknown[:5])}")
        return np.array([np.nan if v is None else position[v] for v in values])
    return column.cast(pa.float64()).to_numpy().astype(np.float64)


def _extra(source: str, table: pa.Table, name: str, info: ExtraInfo, crystals: CrystalTable) -> Extra:
    column = info.column or name
    if info.per == "structure":
        return Extra(CrystalTable.from_arrow(table, source, prefix=column), "structure", info.unit)
    values, counts = column_lists(table, column, source)
    width = int(np.prod(info.shape))
    expected = crystals.num_atoms * width if info.per == "atom" else np.full(len(crystals), width)
    if not np.array_equal(counts, expected):
        row = int(np.nonzero(counts != expected)[0][0])
        raise ValueError(
            f"{source}: {crystals.names[row]}: {column} should hold {expected[row]} numbers, it has {counts[row]}"
        )
    if source == "mlearn_ff" and name == "stress":
        from facetry.data.originals import mlearn_stress

        values = mlearn_stress(values.reshape(-1, 6), table["stress_order"].to_pylist())
    return Extra(np.asarray(values, dtype=np.float64).reshape(-1, *info.shape), info.per, info.unit)
