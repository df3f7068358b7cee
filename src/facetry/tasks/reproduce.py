"""Reproduce: a published row by name in, a training to the same measure and a receipt with both numbers out.

published/PAPER.toml    tables and rows: the published numbers, the recipe, what the data lacks
published/ours.json     what our receipts say of them, written by `python -m benchmarks.tables`
"""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from facetry.training.recipe import Recipe, RecipeError, load_recipe, nearest

__all__ = ["MEASURES", "Reproduction", "Row", "load_rows", "ours", "reproduce", "row_named"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Checked):
    """What a row of a table says for itself; empty fields are those of its table."""

    published: list[float]
    spread: list[float] = []
    recipe: str = ""
    short: str = ""
    set: list[str] = []
    note: str = ""


class _Table(_Checked):
    """What the rows of a published table share."""

    name: str
    table: str
    what: str
    unit: str = ""
    units: list[str] = []
    metrics: list[str]
    measure: str = "test"
    folds: int = 0
    recipe: str = ""
    short: str = ""
    data: str
    comparable: bool = True
    budget: str
    rows: dict[str, _Entry]

    @model_validator(mode="after")
    def _numbers_fit(self) -> _Table:
        for name, row in self.rows.items():
            if len(row.published) != len(self.metrics) or len(row.spread) not in (0, len(self.metrics)):
                raise ValueError(f"{name}: expected {len(self.metrics)} numbers, as there are metrics")
            if not (row.recipe or self.recipe):
                raise ValueError(f"{name}: no recipe")
        return self


class _Paper(_Checked):
    paper: str
    table: list[_Table]


@dataclass(frozen=True)
class Row:
    """One published row: where it stands, its numbers (metric -> value), how to train for it.

    `short` is the recipe of a shorter run, empty where there is none. `comparable` false: the data at hand
    is not that of the paper, `data` says why. `folds`: so many trainings, whose mean counts. `measure` says
    how a run is measured, see `MEASURES`.
    """

    name: str
    paper: str
    table: str
    what: str
    published: Mapping[str, float]
    spread: Mapping[str, float]
    units: Mapping[str, str]
    recipe: str
    short: str
    overrides: tuple[str, ...]
    folds: int
    measure: str
    data: str
    comparable: bool
    budget: str
    note: str

    def words(self, metric: str) -> str:
        """The published number as it is printed."""
        spread = f" ± {self.spread[metric]:g}" if metric in self.spread else ""
        return f"{self.published[metric]:g}{spread} {self.units[metric]}".rstrip()


def load_rows() -> dict[str, Row]:
    """All published rows that ship, by name, in the order of the tables. Raises RecipeError for a wrong
    file."""
    found: dict[str, Row] = {}
    folder = resources.files("facetry") / "published"
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
        try:
            paper = _Paper.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"published/{file.name}: {error}") from None
        for table in paper.table:
            units = table.units or [table.unit] * len(table.metrics)
            for key, entry in table.rows.items():
                name = f"{table.name}-{key}"
                found[name] = Row(
                    name, paper.paper, table.table, table.what,
                    dict(zip(table.metrics, entry.published, strict=True)),
                    dict(zip(table.metrics, entry.spread, strict=False)),
                    dict(zip(table.metrics, units, strict=True)),
                    entry.recipe or table.recipe, entry.short or table.short, tuple(entry.set),
                    table.folds, table.measure, table.data, table.comparable, table.budget, entry.note,
                )  # fmt: skip
    return found


def row_named(name: str) -> Row:
    """Raises RecipeError naming the nearest row."""
    rows = load_rows()
    if name not in rows:
        near = nearest(name, rows)
        hint = near if near.startswith("did") else "`facetry reproduce list` shows them"
        raise RecipeError(f"there is no published row {name!r}; {hint}")
    return rows[name]


def ours() -> dict[str, list[dict[str, Any]]]:
    """What our receipts say: for the name of a row its runs, each with the numbers, in what it is
    shortened, the minutes it took and where the receipt is."""
    text = (resources.files("facetry") / "published" / "ours.json").read_text(encoding="utf-8")
    return json.loads(text)


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` returns: the row, our numbers (metric -> value, lower, upper; the bounds are those
    of the bootstrap, or value ± deviation over folds), in what the run falls short, and the folder."""

    row: Row
    numbers: Mapping[str, tuple[float | None, float | None, float | None]]
    shortened: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        row = self.row
        lines = [f"{row.name}: {row.what}", f"{row.paper}, {row.table}"]
        width = max(map(len, row.published))
        for metric in row.published:
            value, lower, upper = self.numbers[metric]
            mine = "undefined" if value is None else f"{value:.4g} {row.units[metric]}".rstrip()
            if lower is not None and upper is not None:
                mine += f" ({lower:.4g} to {upper:.4g})"
            lines.append(f"  {metric:{width}s}  published {row.words(metric)}, ours {mine}")
        lines += [f"  shortened: {'; '.join(self.shortened)}"] if self.shortened else []
        lines += [f"  not comparable: {row.data}"] if not row.comparable else [f"  data: {row.data}"]
        lines += [f"  {row.note}"] if row.note else []
        return "\n".join(lines)


def reproduce(
    name: str,
    out: str | Path | None = None,
    *,
    short: bool = False,
    overrides: Sequence[str] = (),
    verbose: bool | None = None,
) -> Reproduction:
    """Train for a published row, measure, compare; the run folder (default runs/NAME) gets receipt.json.

    What is there already is not done again: a run that was killed goes on, one that ended is only measured.
    `short` takes the shorter recipe, `overrides` change recipe keys (training.epochs=3); the receipt names
    both. Raises RecipeError for a row that is not known, has no short recipe, or for a folder that holds
    another run.
    """
    row = row_named(name)
    if short and not row.short:
        raise RecipeError(f"{name}: there is no short recipe; shorten it with --set training.epochs=...")
    folder = Path(out) if out is not None else Path("runs") / name
    source = row.short if short else row.recipe
    runs = []
    for number in range(max(row.folds, 1)):
        own = [f"data.fold={number}"] if row.folds else []
        place = folder / (f"fold-{number}" if row.folds else "run")
        recipe = load_recipe(source, [*row.overrides, *own, *overrides])
        runs.append(_trained(recipe, place, verbose))
    measured = [MEASURES[row.measure](place) for place in runs]
    numbers = {metric: _one([m[metric] for m in measured]) for metric in row.published}
    receipts = [json.loads((place / "receipt.json").read_text(encoding="utf-8")) for place in runs]
    shortened = [f"the short recipe {source}"] if short else []
    shortened += [f"changed: {', '.join(overrides)}"] if overrides else []
    shortened += list(dict.fromkeys(reason for r in receipts for reason in r["shortened"]))
    found = Reproduction(row, numbers, tuple(shortened), folder)
    _write_receipt(found, source, overrides, receipts)
    return found


def _trained(recipe: Recipe, folder: Path, verbose: bool | None) -> Path:
    """The folder of a finished run of this recipe: trained, gone on with, or found."""
    from facetry.training.checks import CHANGEABLE
    from facetry.training.run import resume, train_recipe

    stored = folder / "recipe.toml"
    if not stored.is_file():
        train_recipe(recipe, out=folder, verbose=verbose)
        return folder
    before, after = (r.model_dump(exclude={"data": {"hash"}}) for r in (load_recipe(stored), recipe))
    for table, values in after.items():
        known = before[table] or {}
        for key, value in (values or {}).items():
            if table == "training" and key in CHANGEABLE:
                continue
            if known.get(key) != value:
                raise RecipeError(
                    f"{folder} holds a run with {table}.{key} = {known.get(key)!r}, asked for is {value!r};"
                    " name another folder with -o"
                )
    if not (folder / "receipt.json").is_file():
        resume(folder, verbose=verbose)
    return folder


def _test_scores(folder: Path) -> dict[str, tuple[float | None, float | None, float | None]]:
    """The scores on the test part in a run's receipt."""
    found = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["metrics"]["test"]
    scores = found[0] if isinstance(found, list) else found
    return {name: tuple(v) for name, v in scores.items() if isinstance(v, list) and len(v) == 3}  # type: ignore[misc]


Measure = Callable[[Path], Mapping[str, tuple[float | None, float | None, float | None]]]

MEASURES: dict[str, Measure] = {"test": _test_scores}
"""How the run in a folder is measured: metric -> value, lower, upper. `measure` of a table names one; a table
of generated crystals (match rate, RMSE) adds its own here."""


def _one(
    estimates: Sequence[tuple[float | None, float | None, float | None]],
) -> tuple[float | None, float | None, float | None]:
    """The estimate of one run; of several their mean and that less and plus their deviation."""
    if len(estimates) == 1:
        return estimates[0]
    values = [value for value, _, _ in estimates]
    if any(v is None for v in values):
        return None, None, None
    mean = statistics.mean(values)  # type: ignore[type-var]
    spread = statistics.stdev(values)  # type: ignore[type-var]
    return mean, mean - spread, mean + spread


def _write_receipt(
    found: Reproduction, source: str, overrides: Sequence[str], receipts: Sequence[Mapping[str, Any]]
) -> None:
    from facetry.training.files import write_file
    from facetry.training.receipt import command_line

    row = found.row
    comparison = {}
    for metric, value in row.published.items():
        mine = found.numbers[metric]
        comparison[metric] = {
            "unit": row.units[metric],
            "published": value,
            "published_spread": row.spread.get(metric),
            "ours": mine[0],
            "lower": mine[1],
            "upper": mine[2],
            "difference": None if mine[0] is None else mine[0] - value,
        }
    content = {
        "row": row.name,
        "paper": row.paper,
        "table": row.table,
        "what": row.what,
        "metrics": comparison,
        "interval": "value ± deviation over folds" if row.folds else "95 % bootstrap over crystals",
        "comparable": row.comparable,
        "data": row.data,
        "note": row.note,
        "shortened": list(found.shortened),
        "recipe": source,
        "overrides": [*row.overrides, *overrides],
        "command": command_line(),
        "runs": list(receipts),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(found.folder / "receipt.json", text)
