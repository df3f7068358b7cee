"""From a manifest and its files to targets and splits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from facetry.card import Target
from facetry.data.crystals import CrystalTable, column_lists
from facetry.data.dataset import Dataset, Extra, Splits
from facetry.data.division import group_split
from facetry.data.manifest import ExtraInfo, Manifest, TargetInfo

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["generate", "make_target", "named_splits", "target_column"]

log = logging.getLogger("facetry.data")


def named_splits(
    manifest: Manifest,
    target: str | Sequence[str] | None,
    fold: int | None,
    divide: str | None = None,
) -> Splits:
    """The named set with the chosen targets (None: its default target), divided as its manifest says; with
    `divide` the official file of this name trains and validates."""
    names = _target_names(manifest, target)
    scheme = manifest.split
    if fold is not None and scheme.kind != "folds":
        raise ValueError(f"{manifest.name} has no folds; leave fold out ({scheme.description})")
    if divide is not None:
        manifest = _divided(manifest, divide)
    if scheme.kind == "files":
        return _file_splits(manifest, names)
    tables = {key: _read(manifest, key) for key in manifest.files if manifest.is_default(key)}
    whole = Dataset.concatenate([_dataset(manifest, table, names) for table in tables.values()])
    if scheme.kind == "folds":
        numbers = np.concatenate([t[scheme.column].to_numpy() for t in tables.values()])
        folds = [_fold(manifest, whole, numbers, i) for i in range(int(numbers.max()) + 1)]
        if fold is None:
            return _finish(manifest, Splits(manifest.name, {}, folds=folds))
        if not 0 <= fold < len(folds):
            raise ValueError(f"{manifest.name} has the folds 0 to {len(folds) - 1}, got fold={fold}")
        return _finish(manifest, folds[fold])
    if scheme.kind == "column":
        part = _column_parts(manifest, names, tables)
    elif scheme.kind == "none":
        part = np.zeros(len(whole), dtype=np.int64)
    else:
        part = group_split(_groups(manifest, whole, tables), scheme.fractions, manifest.name)
    parts = {name: whole.select(part == i) for i, name in enumerate(("train", "val", "test"))}
    return _finish(manifest, Splits(manifest.name, parts))


def _divided(manifest: Manifest, key: str) -> Manifest:
    """The manifest as if there were no official training part, and `key` were divided in its place."""
    scheme = manifest.split
    keys = [k for k in (scheme.train, scheme.val) if k] if scheme.kind == "files" else []
    if key not in keys:
        parts = f"one of {', '.join(keys)}" if keys else "none, its parts are no files"
        raise ValueError(f"{manifest.name}: divide={key!r}, expected {parts}")
    description = f"nine tenths of the official {key} train and one tenth validates, by a hash of the formula"
    changes = {"train": key, "val": "", "divide": key, "group": "formula", "official": False}
    alone = scheme.model_copy(update={**changes, "description": description})
    return manifest.model_copy(update={"split": alone})


def whole_set(manifest: Manifest) -> Dataset:
    """All crystals of a named set that are here, with all its targets, without a division."""
    names = list(manifest.targets)
    tables = [_read(manifest, key) for key in manifest.files if manifest.is_default(key)]
    return Dataset.concatenate([_dataset(manifest, table, names) for table in tables])


def _finish(manifest: Manifest, splits: Splits) -> Splits:
    """Add what the manifest knows; `Splits` says aloud what is missing where it is used."""
    by_files = manifest.split.kind == "files"  # there imported files can have made it complete
    complete = splits.complete and (manifest.complete or by_files)
    official = splits.official if by_files else manifest.split.official
    notes = splits.notes
    if not complete:
        notes = (*notes, manifest.incomplete)
    if not manifest.split.official:
        notes = (*notes, f"the split is ours, not a published one ({manifest.split.description})")
    known = {"manifest": manifest, "official": official, "complete": complete}
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
        near = get_close_matches(name, manifest.targets, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        have = ", ".join(manifest.targets) or "none, structures only"
        raise ValueError(f"{manifest.name} has no target {name!r}{hint}; it has: {have}")
    if len(set(names)) != len(names):
        raise ValueError(f"{manifest.name}: a target is named twice in {names}")
    return names


def _read(manifest: Manifest, key: str) -> pa.Table:
    """The file as an Arrow table; a set that the package makes is made when it is not there yet."""
    import pyarrow.parquet as pq

    from facetry.data import alloys
    from facetry.data.vault import VaultError, find

    if manifest.generated:
        try:
            path = generate(manifest, key)
        except VaultError as error:  # a full or read-only disk costs the copy, not the data
            log.warning("not kept: %s", error)
            return alloys.table()
        return pq.read_table(path, page_checksum_verification=True)
    return pq.read_table(find(manifest, key))


def generate(manifest: Manifest, key: str) -> Path:
    """The file of a set that the package makes: from the cache, or made and put there."""
    from facetry.data import alloys
    from facetry.data.vault import cache_folder, locate

    return locate(manifest, key) or alloys.write(cache_folder() / "data" / manifest.files[key].path)


def _file_splits(manifest: Manifest, names: list[str]) -> Splits:
    """Parts that are files. An official file that had to be imported is read in place of its stand-in."""
    from facetry.data.vault import locate

    scheme = manifest.split
    keys = {part: getattr(scheme, part) for part in ("train", "val", "test")}
    for part, key in keys.items():
        full = [k for k, f in manifest.files.items() if f.contains and f.contains == key]
        if full and locate(manifest, full[0]) is not None:
            keys[part] = full[0]
    waiting = bool(keys["train"]) and not manifest.is_default(keys["train"])
    divided = scheme.divide and (not keys["val"] or (waiting and locate(manifest, keys["train"]) is None))
    if divided:
        keys["train"] = keys["val"] = scheme.divide
    parts = {part: _dataset(manifest, _read(manifest, key), names) for part, key in keys.items()}
    notes: tuple[str, ...] = ()
    if divided:
        whole = parts["train"]
        drawn = group_split(_groups(manifest, whole, {}), (0.9, 0.1, 0.0), manifest.name)
        parts |= {"train": whole.select(drawn == 0), "val": whole.select(drawn == 1)}
        if scheme.official:
            notes = (
                f"train and val are divided by us: nine tenths and one tenth of the official {scheme.divide}",
            )
    missing = any(
        manifest.files[key].part_of or any(f.contains == key for f in manifest.files.values())
        for key in keys.values()
    )
    official = scheme.official and not (divided and scheme.divide != scheme.train)
    return _finish(
        manifest, Splits(manifest.name, parts, notes=notes, official=official, complete=not missing)
    )


def _column_parts(manifest: Manifest, names: list[str], tables: dict[str, pa.Table]) -> np.ndarray:
    """Part of every row from the split columns of the chosen targets; -1 where the benchmark has none."""
    columns = {manifest.targets[n].split or manifest.split.column for n in names} or {manifest.split.column}
    order = {"train": 0, "val": 1, "test": 2}
    part = None
    for column in sorted(columns):
        values = [
            v
            for k, t in tables.items()
            for v in ([k] * len(t) if column == "@file" else t[column].to_pylist())
        ]
        new = np.array([order.get(v, -1) for v in values])
        if part is None:
            part = new
            continue
        clash = int(((part >= 0) & (new >= 0) & (part != new)).sum())
        if clash:
            raise ValueError(
                f"{manifest.name}: the targets {', '.join(names)} have different official splits ({clash} "
                "crystals would be in two parts); load them one at a time"
            )
        part = np.where(part >= 0, part, new)
    return part


def _groups(manifest: Manifest, whole: Dataset, tables: dict[str, pa.Table]) -> list[str]:
    """What keeps rows together when the split is ours."""
    group = manifest.split.group
    if group == "formula":
        return whole.crystals.formulas
    if group:
        return [str(v) for t in tables.values() for v in t[group].to_pylist()]
    return whole.names.tolist()


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
    """One target as float64: numbers as they are, classes by their position, NaN for null; a target made
    from another column is 1 above its threshold."""
    import pyarrow as pa

    if info.of:
        values = target_column(table, info.of, info.model_copy(update={"of": ""}), source)
        return np.where(np.isnan(values), np.nan, (values > info.above).astype(np.float64))
    if name not in table.column_names:
        raise ValueError(f"{source}: the file has no column {name}; it has {', '.join(table.column_names)}")
    column = table[name]
    if info.task == "multiclass":
        position = {c: float(i) for i, c in enumerate(info.class_names)}
        if pa.types.is_floating(column.type):  # numbered classes that came through a CSV
            column = column.cast(pa.int64())
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
            f"{source}: {crystals.names[row]}: {column} should hold {expected[row]} numbers, "
            f"it has {counts[row]}"
        )
    if source == "mlearn_ff" and name == "stress":
        from facetry.data.originals import mlearn_stress

        values = mlearn_stress(values.reshape(-1, 6), table["stress_order"].to_pylist())
    return Extra(np.asarray(values, dtype=np.float64).reshape(-1, *info.shape), info.per, info.unit)
