"""Crystals with targets, and their division into train, validation and test.

Plain values, selected and hashed; `facetry.data.named` and `facetry.data.tables` make them from files.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from facetry.data.crystals import CrystalTable, gather
from facetry.data.manifest import Manifest

if TYPE_CHECKING:
    from facetry.card import Target

__all__ = ["Dataset", "Extra", "Limit", "Splits", "exchange_parts", "limit_splits", "match_names"]

log = logging.getLogger("facetry.data")

_WARNED: set[str] = set()

Limit = int | Mapping[str, int] | None


@dataclass(frozen=True, eq=False)
class Extra:
    """A quantity that is not one number a crystal: `per` "atom" or "crystal" with rows of numbers (NaN where
    unknown), or "structure" with a second crystal for each."""

    values: np.ndarray | CrystalTable
    per: str
    unit: str = ""

    def select(self, rows: Shaped[np.ndarray, " chosen"], crystals: CrystalTable) -> Extra:
        """The part that belongs to the chosen crystals; `crystals` is the table before the choice."""
        if self.per == "atom":
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

    def __repr__(self) -> str:
        return f"Dataset({len(self)} crystals; targets: {_named(self.target_info)})"

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray]]:
        for row in range(len(self)):
            yield self.crystals[row], self.targets[row]

    @property
    def names(self) -> Shaped[np.ndarray, " crystals"]:
        """Identifiers of the crystals, as the set or the file names give them."""
        return self.crystals.names

    @property
    def labelled(self) -> Bool[np.ndarray, " crystals"]:
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

    `official`: the division is the published one. `complete`: nothing of the set is missing. `notes` say in
    words what a reader of the numbers must know; what a named set lacks is also logged as a warning, once,
    when a part is used that it concerns. `unlabelled` holds rows without any target, `skipped` the inputs
    that gave no crystal, with the reason. `origin` are the arguments of `facetry.dataset` that load it again.
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
    origin: Mapping[str, Any] = field(default_factory=dict)

    def _part(self, name: str) -> Dataset:
        if name not in self.parts:
            raise AttributeError(
                f"{self.name} is divided into {len(self.folds)} folds, it has no {name}: pass fold=0 to "
                f"fold={len(self.folds) - 1}, or use .folds[i].{name}"
            )
        manifest, missing = self.manifest, self.missing
        if missing and manifest.name not in _WARNED and name in manifest.incomplete_parts:
            _WARNED.add(manifest.name)
            log.warning("%s is incomplete: %s", manifest.name, missing)
        return self.parts[name]

    @property
    def missing(self) -> str:
        """What the named set lacks on this machine; empty where it is whole, and for your own files."""
        lacks = self.manifest.incomplete if self.manifest is not None else ""
        return lacks if lacks in self.notes else ""

    @property
    def train(self) -> Dataset:
        """The crystals to learn from."""
        return self._part("train")

    @property
    def val(self) -> Dataset:
        """The crystals that choose among weights and set the width of intervals."""
        return self._part("val")

    @property
    def test(self) -> Dataset:
        """The crystals that nothing was fitted to or chosen by."""
        return self._part("test")

    @property
    def target_info(self) -> list[Target]:
        """What the columns of the targets are."""
        return (self.folds[0] if self.folds else self).parts["train"].target_info

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
        return f"Splits({self.name}: {inside}; targets: {_named(self.target_info)}; {self.hash[:12]})"


def _named(targets: Sequence[Target]) -> str:
    return ", ".join(f"{t.name} [{t.unit}]" if t.unit else t.name for t in targets) or "none"


def exchange_parts(splits: Splits, parts: Mapping[str, str] | None) -> Splits:
    """The set with other parts as train, val or test: {"train": "val"} trains on the validation part. A part
    that would serve twice fails."""
    if parts is None:
        return splits
    names = ("train", "val", "test")
    if wrong := [n for pair in parts.items() for n in pair if n not in names]:
        raise ValueError(f"parts: expected train, val and test, got {wrong[0]!r}")
    if splits.folds:
        raise ValueError(f"parts: {splits.name} is divided into folds; choose one with fold=0")
    chosen = {name: parts.get(name, name) for name in names}
    if len(set(chosen.values())) < len(names):
        pairs = ", ".join(f"{name} from {source}" for name, source in chosen.items())
        raise ValueError(f"parts: a part can serve once only, got {pairs}")
    moved = ", ".join(f"{name} is {source}" for name, source in chosen.items() if name != source)
    note = (f"the parts have changed places: {moved}",) if moved else ()
    content = {name: splits.parts[source] for name, source in chosen.items()}
    official = splits.official and not moved
    return replace(splits, parts=content, notes=(*splits.notes, *note), official=official)


def match_names(splits: Splits, pattern: str | None) -> Splits:
    """The crystals whose names fit a pattern with * and ?, in every part."""
    if pattern is None:
        return splits
    fits = re.compile(fnmatch.translate(pattern)).match
    if splits.folds:
        return replace(splits, folds=[match_names(fold, pattern) for fold in splits.folds])
    parts = {
        name: part.select(np.array([fits(str(n)) is not None for n in part.names], dtype=bool))
        for name, part in splits.parts.items()
    }
    if not len(parts["train"]):
        raise ValueError(f"match: no crystal of {splits.name} has a name like {pattern!r}")
    return replace(splits, parts=parts, notes=(*splits.notes, f"only crystals named like {pattern}"))


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
        order = np.random.RandomState((seed, place)).permutation(len(rows))[:size]
        cut.append(f"{name} {size} of {len(parts[name])}")
        parts[name] = parts[name].select(np.sort(rows[order]))
    if not cut:
        return splits
    note = f"a random part of the set (seed {seed}): {', '.join(cut)}"
    return replace(splits, parts=parts, complete=False, notes=(*splits.notes, note))
