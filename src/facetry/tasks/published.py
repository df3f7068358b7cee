"""Published rows: what a paper's table says, and how to train for it.

published/PAPER.toml    tables and rows: the published numbers, the recipe, what the data lacks
published/ours.json     what our receipts say of them, written by `python -m benchmarks.tables`
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from facetry.training.recipe import RecipeError, nearest

__all__ = ["Row", "Search", "load_rows", "not_at_hand", "ours", "row_named"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Search(_Checked):
    """How structures are made from formulas, for rows that are measured on them."""

    method: Literal["model", "rs", "bo", "pso"] = Field(
        default="model",
        description="model: what was trained draws them; else a method, with what was trained as its energy",
    )
    count: int = Field(default=20, ge=1, description="candidates of every test crystal")
    short_crystals: int | None = Field(
        default=None, ge=1, description="test crystals of a short run, drawn at random; None: all"
    )
    options: dict[str, int | float | str | bool] = Field(
        default={}, description="of the method; draws: candidates made before the lowest are kept"
    )
    beside: list[Literal["rs", "template"]] = Field(
        default=[], description="methods without a training that are measured on the same crystals"
    )


class _Entry(_Checked):
    """What a row of a table says for itself; empty fields are those of its table."""

    published: list[float]
    spread: list[float] = []
    recipe: str = ""
    short: str = ""
    set: list[str] = []
    note: str = ""
    short_note: str = ""
    budget: str = ""
    search: Search | None = None


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
    search: Search | None = None
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
    not_at_hand: list[str] = []
    table: list[_Table]


@dataclass(frozen=True)
class Row:
    """One published row: where it stands, its numbers (metric -> value), how to train for it.

    `short` is the recipe of a shorter run, empty where there is none, and `short_note` what else differs in
    it. `comparable` false: the data at hand is not that of the paper, `data` says why. `folds`: so many
    trainings, whose mean counts. `measure` says how a run is measured, see
    `facetry.tasks.reproduce.MEASURES`; `search` how structures are made, where it is by structures.
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
    short_note: str = ""
    search: Search | None = None

    def words(self, metric: str) -> str:
        """The published number as it is printed."""
        spread = f" ± {self.spread[metric]:g}" if metric in self.spread else ""
        return f"{self.published[metric]:g}{spread} {self.units[metric]}".rstrip()

    def numbers(self) -> str:
        """All of them; a unit that they share is said once."""
        units = set(self.units.values())
        if len(units) > 1:
            return ", ".join(self.words(metric) for metric in self.published)
        unit = units.pop()
        words = ", ".join(self.words(metric).removesuffix(f" {unit}") for metric in self.published)
        return f"{words} {unit}".rstrip()


def load_rows() -> dict[str, Row]:
    """All published rows that ship, by name, in the order of the tables. Raises RecipeError for a wrong
    file."""
    found: dict[str, Row] = {}
    for paper in _papers():
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
                    table.folds, table.measure, table.data, table.comparable, entry.budget or table.budget,
                    entry.note, entry.short_note, entry.search or table.search,
                )  # fmt: skip
    return found


def not_at_hand() -> dict[str, list[str]]:
    """For every paper the tables of it that are not listed, each with the reason."""
    return {paper.paper: paper.not_at_hand for paper in _papers() if paper.not_at_hand}


def _papers() -> list[_Paper]:
    found = []
    folder = resources.files("facetry") / "published"
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
        try:
            found.append(_Paper.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))))
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"published/{file.name}: {error}") from None
    return found


def row_named(name: str) -> Row:
    """Raises RecipeError naming the nearest row, or those of the table that was named."""
    rows = load_rows()
    if name in rows:
        return rows[name]
    if inside := [row for row in rows if row.startswith(f"{name}-")]:
        raise RecipeError(f"{name} has {len(inside)} published rows; choose one: {', '.join(inside)}")
    near = nearest(name, rows)
    hint = near if near.startswith("did") else "`facetry reproduce list` shows them"
    raise RecipeError(f"there is no published row {name!r}; {hint}")


def ours() -> dict[str, list[dict[str, Any]]]:
    """What our receipts say: for the name of a row its runs, each with the numbers, in what it is
    shortened, the minutes it took and where the receipt is."""
    text = (resources.files("facetry") / "published" / "ours.json").read_text(encoding="utf-8")
    return json.loads(text)
