"""What the package knows of a named set: files with hashes, targets with units, splits, sources, defects.

One set, one TOML file in `manifests/`. The data itself is not in the package.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Manifest", "load_manifest"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Original(_Table):
    """A published file with a `cif` column that turns into ours."""

    url: str
    note: str = ""


class File(_Table):
    """One Parquet file of the set.

    `fingerprint` is that of the crystals (`CrystalTable.fingerprint`), which a converted original must have.
    An official file of which neither hash nor fingerprint is known is accepted if it has the right
    number of rows, shares nothing with the other parts, and holds the file named by `contains`. `part_of` is
    how many rows the official file has where this one is a part of it.
    """

    path: str
    rows: int
    sha256: str = ""
    fingerprint: str = ""
    contains: str = ""
    part_of: int = 0
    values: dict[str, str] = {}  # target -> sha256 of its float64 column
    originals: list[Original] = []
    mirrors: list[str] = []


class TargetInfo(_Table):
    """One scalar column. `classes` lists the names of a multi-class target, `class_range` numbered ones;
    `split` is the column that holds the official split of this target where the files do not. A binary target
    with `of` is no column of the file: it is 1 where that column is larger than `above`."""

    unit: str = ""
    description: str
    task: Literal["regression", "binary", "multiclass"] = "regression"
    classes: list[str] = []
    class_range: tuple[int, int] | None = None
    range: tuple[float, float] | None = None
    missing: int = 0
    split: str = ""
    of: str = ""
    above: float = 0.0

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order."""
        if self.class_range:
            return [str(i) for i in range(self.class_range[0], self.class_range[1] + 1)]
        return list(self.classes)


class ExtraInfo(_Table):
    """A list-valued column: `per` atom or crystal with `shape` numbers each, or whole structures."""

    per: Literal["atom", "crystal", "structure"]
    shape: list[int] = []
    unit: str = ""
    description: str
    column: str = ""


class Split(_Table):
    """How the set is divided.

    `files`: train, val and test are files; where there is no val, or no train yet, the file `divide` gives
    nine tenths to train and one to val. `column`: a column says train, val or test, each target may name its
    own ("@file": the file a row is in). `folds`: a column numbers the test folds. `ours`: no official
    split exists; groups of rows that belong together (`group`: formula, a column, or every row for itself)
    are drawn by a hash, so the split is the same for everyone. `none`: everything is in train.
    """

    kind: Literal["files", "column", "folds", "ours", "none"]
    official: bool
    description: str
    train: str = "train"
    val: str = "val"
    test: str = "test"
    column: str = ""
    group: str = ""
    divide: str = ""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)


class Source(_Table):
    """Where the data came from, as precise as it is known."""

    what: str
    repository: str = ""
    commit: str = ""
    path: str = ""
    url: str = ""
    licence: str = ""


class Manifest(_Table):
    """Everything about one named set. `complete` false: parts of the official set are missing, or only labels
    of them where `labels_only` says so."""

    name: str
    title: str
    aliases: list[str] = []
    description: str
    licence: str
    citations: list[str]
    complete: bool = True
    incomplete: str = ""
    labels_only: bool = False
    incomplete_parts: list[Literal["train", "val", "test"]] = ["train", "val", "test"]
    generated: bool = False
    default_target: str = ""
    files: dict[str, File] = {}
    split: Split
    targets: dict[str, TargetInfo] = {}
    extras: dict[str, ExtraInfo] = {}
    columns: dict[str, str] = {}  # other columns and what they mean
    conversion: str = ""
    sources: list[Source] = []
    defects: list[str] = []
    leaks: list[str] = []
    advice: list[str] = []

    @property
    def rows(self) -> int:
        """Crystals of the set as it is read when nothing was imported."""
        return sum(f.rows for key, f in self.files.items() if self.is_default(key))

    def is_default(self, key: str) -> bool:
        """Whether the file is one of those that are read when nothing was imported."""
        return bool(self.files[key].sha256) or self.generated

    def describe(self) -> str:
        """A card for people, in plain text."""
        out = [f"{self.title} ({self.name})", "", self.description, ""]
        if self.aliases:
            out.append(f"also called  {', '.join(self.aliases)}")
        kind = "official" if self.split.official else "ours, there is no official one"
        out += [f"crystals     {self.rows}", f"split        {kind}: {self.split.description}"]
        out += [f"licence      {self.licence}"]
        if not self.complete:
            out.append(f"INCOMPLETE   {self.incomplete}")
        if self.targets:
            out += ["", "targets"]
        for name, t in self.targets.items():
            unit = f" [{t.unit}]" if t.unit else ""
            kind = "" if t.task == "regression" else f" ({t.task})"
            mark = "  (default)" if name == self.default_target else ""
            gaps = f"; missing in {t.missing} rows" if t.missing else ""
            out.append(f"  {name}{unit}{kind}: {t.description}{gaps}{mark}")
        if self.extras:
            out += ["", "also there"]
        for name, e in self.extras.items():
            out.append(f"  {name}{f' [{e.unit}]' if e.unit else ''} per {e.per}: {e.description}")
        for title, lines in (
            ("known defects", self.defects),
            ("leaks", self.leaks),
            ("advice", self.advice),
            ("cite", self.citations),
        ):
            if lines:
                out += ["", title, *(f"  {line}" for line in lines)]
        if self.sources:
            out += ["", "sources"]
        for s in self.sources:
            where = " ".join(
                p for p in (s.repository and f"github.com/{s.repository}", s.commit[:12], s.path, s.url) if p
            )
            out.append(f"  {s.what}: {where}{f' ({s.licence})' if s.licence else ''}")
        if self.files:
            out += ["", "files"]
        for f in self.files.values():
            out.append(
                f"  {f.path}  {f.rows} rows  sha256 {f.sha256 or '(not published; checked by content)'}"
            )
        return "\n".join(out)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able content, for `--json` and receipts."""
        return self.model_dump(mode="json") | {"rows": self.rows}


@cache
def load_manifest(name: str) -> Manifest:
    """The manifest stored under this file name (not an alias) in the package."""
    text = files("facetry.data").joinpath("manifests", f"{name}.toml").read_text(encoding="utf-8")
    return Manifest.model_validate(tomllib.loads(text))
