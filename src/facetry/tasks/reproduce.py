"""Reproduce: a published row by name in, a training to the same measure and a receipt with both numbers out.

runs/NAME/run/             the run (with folds: fold-0, fold-1, ...), as `facetry train` leaves it
          found-500x20/    where structures are made from formulas: 20 for each of 500 test crystals
          rs-500x20/       the same by a method that needs no training
          receipt.json     the published numbers and ours
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facetry.tasks.published import Row, ours, row_named
from facetry.training.recipe import Recipe, RecipeError, load_recipe

__all__ = ["MEASURES", "Effort", "Measured", "Plan", "Reproduction", "planned", "reproduce"]

Estimate = tuple[float | None, float | None, float | None]
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Effort:
    """How much of the test part is measured: `crystals` drawn from it (None: all), `count` candidates of
    each; `progress` is called with what is done, how many and of how many."""

    crystals: int | None = None
    count: int | None = None
    progress: Watch | None = None


@dataclass(frozen=True)
class Measured:
    """Metric -> value, lower, upper; in what it falls short; lines for the reader, and for the receipt."""

    numbers: Mapping[str, Estimate]
    shortened: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    receipts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` returns: the row, our numbers (metric -> value, lower, upper; the bounds are those
    of the bootstrap, or value ± deviation over folds), in what the run falls short, what was measured
    `beside`, in lines, and the folder."""

    row: Row
    numbers: Mapping[str, Estimate]
    shortened: tuple[str, ...]
    folder: Path
    beside: tuple[str, ...] = ()

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
        lines += [f"  {line}" for line in self.beside]
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
    crystals: int | None = None,
    count: int | None = None,
    verbose: bool | None = None,
    progress: Watch | None = None,
) -> Reproduction:
    """Train for a published row, measure, compare; the run folder (default runs/NAME) gets receipt.json.

    What is there already is not done again: a run that was killed goes on, one that ended is only measured.
    `short` takes the shorter recipe, `overrides` change recipe keys (training.epochs=3). Rows that are
    measured on structures made from formulas take `crystals`, so many of the test part, drawn at random
    (None: all), and `count` candidates of each (None: as published). The receipt names all of them.
    `progress` is called with what is done, how many and of how many. Raises RecipeError for a row that is not
    known, has no short recipe, or for a folder that holds another run.
    """
    plan = planned(name, out, short=short, overrides=overrides, crystals=crystals, count=count)
    row, folder = plan.row, plan.folder
    runs = [_trained(recipe, place, verbose) for recipe, place in plan.runs]
    effort = Effort(plan.crystals, plan.count, progress)
    measured = [MEASURES[row.measure](row, place, effort) for place in runs]
    numbers = {metric: _one([m.numbers[metric] for m in measured]) for metric in row.published}
    receipts = [json.loads((place / "receipt.json").read_text(encoding="utf-8")) for place in runs]
    reasons = [*plan.changes, *(reason for r in receipts for reason in r["shortened"])]
    reasons += [reason for m in measured for reason in m.shortened]
    shortened = tuple(dict.fromkeys(reasons))
    beside = tuple(line for m in measured for line in m.beside)
    found = Reproduction(row, numbers, shortened, folder, beside)
    more = {key: value for m in measured for key, value in m.receipts.items()}
    _write_receipt(found, plan, receipts, more)
    return found


@dataclass(frozen=True)
class Plan:
    """What `reproduce` will do: recipes with the folders of their runs, and what differs from the paper."""

    row: Row
    folder: Path
    source: str
    runs: tuple[tuple[Recipe, Path], ...]
    overrides: tuple[str, ...]
    changes: tuple[str, ...]
    crystals: int | None
    count: int | None

    def __str__(self) -> str:
        """The row in full: numbers, data, cost, recipe, and what is done already."""
        row, search = self.row, self.row.search
        recipe = self.runs[0][0]
        length = recipe.training
        known = f"{length.steps} steps" if length.steps else f"{length.epochs or 100} epochs"
        told = {
            "paper": f"{row.paper}, {row.table}",
            "published": ", ".join(f"{metric} {row.words(metric)}" for metric in row.published),
            "data": row.data if row.comparable else f"not comparable: {row.data}",
            "cost": row.budget,
            "recipe": f"{self.source}: {recipe.model['name']} on {recipe.data.name}, {known} of"
            f" {length.batch_size} crystals" + (f", {row.folds} folds" if row.folds else ""),
            "set": ", ".join(row.overrides),
            "short": "" if self.source == row.short else row.short and f"{row.short} (--short)",
            "measured": _measured_how(self) if search else "on the test part of the data",
            "changes": "; ".join(self.changes),
            "note": row.note,
        }
        for run in ours().get(row.name, []):
            numbers = ", ".join(f"{metric} {run['metrics'][metric][0]:.4g}" for metric in row.published)
            told["ours"] = f"{numbers}: {run['run']}; {run['minutes']} minutes; {', '.join(run['receipts'])}"
        told["folder"] = f"{self.folder}: {self.state()}"
        lines = [f"  {key:9s}  {value}" for key, value in told.items() if value]
        return "\n".join([f"{row.name}: {row.what}", *(_folded(line) for line in lines)])

    def state(self) -> str:
        """What is in the folder."""
        ended = [(place / "receipt.json").is_file() for _, place in self.runs]
        begun = [(place / "recipe.toml").is_file() for _, place in self.runs]
        if all(ended):
            return "trained; what is not measured yet will be"
        if any(begun):
            return f"{sum(ended)} of {len(ended)} trainings ended, one begun; the command goes on"
        return "nothing there yet"


def _folded(line: str) -> str:
    return textwrap.fill(
        line, 100, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
    )


def _measured_how(plan: Plan) -> str:
    search = plan.row.search
    assert search is not None
    who = "drawn by the model" if search.method == "model" else f"by {search.method}, energies by the model"
    own = "".join(f", {key} = {value}" for key, value in search.options.items())
    beside = f"; beside it {' and '.join(search.beside)}" if search.beside else ""
    several = "all test crystals" if plan.crystals is None else f"{plan.crystals} test crystals"
    return f"{plan.count} candidates for each of {several} {who}{own}{beside}"


def planned(
    name: str,
    out: str | Path | None = None,
    *,
    short: bool = False,
    overrides: Sequence[str] = (),
    crystals: int | None = None,
    count: int | None = None,
) -> Plan:
    """What `reproduce` does with these arguments; nothing is trained. Raises as `reproduce` does."""
    row = row_named(name)
    if short and not row.short:
        raise RecipeError(f"{name}: there is no short recipe; shorten it with --set training.epochs=...")
    if row.search is None and (crystals, count) != (None, None):
        raise RecipeError(
            f"{name} makes no structures from formulas, so --crystals and --count say nothing here;"
            " measure less with --set data.limit.test=100"
        )
    for option, value in (("--crystals", crystals), ("--count", count)):
        if value is not None and value < 1:
            raise RecipeError(f"{option}: expected at least 1, got {value}")
    folder = Path(out) if out is not None else Path("runs") / name
    source = row.short if short else row.recipe
    changes = [f"the short recipe {source}"] if short else []
    changes += [row.short_note] if short and row.short_note else []
    changes += [f"changed: {', '.join(overrides)}"] if overrides else []
    if row.search is not None:
        crystals = row.search.short_crystals if short and crystals is None else crystals
        count = row.search.count if count is None else count
        changes += [f"{count} of {row.search.count} candidates"] if count < row.search.count else []
    runs = []
    for number in range(max(row.folds, 1)):
        own = [f"data.fold={number}"] if row.folds else []
        place = folder / (f"fold-{number}" if row.folds else "run")
        runs.append((load_recipe(source, [*row.overrides, *own, *overrides]), place))
    return Plan(row, folder, source, tuple(runs), tuple(overrides), tuple(changes), crystals, count)


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


def _test_scores(row: Row, folder: Path, effort: Effort) -> Measured:
    """The scores on the test part in a run's receipt."""
    found = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["metrics"]["test"]
    scores = found[0] if isinstance(found, list) else found
    return Measured({n: tuple(v) for n, v in scores.items() if isinstance(v, list) and len(v) == 3})  # type: ignore[misc]


def _found_again(row: Row, folder: Path, effort: Effort) -> Measured:
    """How many test crystals are found again from their formulas, and how closely."""
    from facetry.training.checkpoint import load
    from facetry.training.run import load_data

    assert row.search is not None
    recipe = load_recipe(folder / "recipe.toml")
    splits, model = load_data(recipe), load(folder)
    wanted = effort.count or row.search.count
    number = len(splits.test.crystals)
    size = f"{min(effort.crystals or number, number)}x{wanted}"
    part = (recipe.data.parts or {}).get("train", "train")
    makers: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "found": (row.search.method, model, dict(row.search.options))
    }
    for other in row.search.beside:
        makers[other] = (other, None, {"data": recipe.data.name, "part": part} if other == "template" else {})
    receipts = {
        key: _rediscovered(maker, splits, folder.parent / f"{key}-{size}", effort, wanted)
        for key, maker in makers.items()
    }
    mine = receipts["found"]
    short = f"{mine['data']['crystals']} of {number} test crystals, drawn at random"
    beside = [
        f"of candidates that could be real alone ({_RULES}): {_in_words(mine, valid=True)}",
        *(f"beside it, {_METHODS[key]}: {_in_words(r)}" for key, r in receipts.items() if key != "found"),
    ]
    return Measured(
        _estimates(mine),
        (short,) if mine["data"]["crystals"] < number else (),
        tuple(beside),
        {"found": mine, "beside": {key: r for key, r in receipts.items() if key != "found"}},
    )


_METHODS = {"rs": "random search without an energy", "template": "templates from the training part"}
_RULES = "no distance below 0.5 Å, charges that can balance"


def _rediscovered(
    maker: tuple[str, Any, dict[str, Any]], splits: Any, out: Path, effort: Effort, count: int
) -> dict[str, Any]:
    """The receipt of one method, made or found in the folder."""
    from facetry.tasks.rediscover import finished, method_and_card, rediscover
    from facetry.training.receipt import command_line

    if (out / "receipt.json").is_file():
        return json.loads((out / "receipt.json").read_text(encoding="utf-8"))
    name, model, options = maker
    draws = options.pop("draws", None)
    method, ranking, told = method_and_card(name, model, **options)
    found = rediscover(
        method,
        splits.test.crystals,
        out,
        told=told | ({} if draws is None else {"draws": draws}),
        data={"name": str(splits.name), "split": "test", "hash": splits.hash},
        limit=effort.crystals,
        count=count,
        ranking=ranking,
        draws=draws,
        progress=effort.progress,
    )
    device = getattr(model, "device", None)
    return finished(found, out, device, command=command_line())


def _estimates(receipt: Mapping[str, Any]) -> dict[str, Estimate]:
    """Match rate in % and RMSE of all candidates, with their intervals."""
    score = _score(receipt, valid=False)
    bounds = receipt["intervals"][-1]
    numbers: dict[str, Estimate] = {}
    for metric, factor in (("match_rate", 100.0), ("rmse", 1.0)):
        value, (lower, upper) = score[metric], bounds.get(metric, (None, None))
        scaled = [None if v is None else factor * v for v in (value, lower, upper)]
        numbers[metric] = (scaled[0], scaled[1], scaled[2])
    return numbers


def _score(receipt: Mapping[str, Any], valid: bool) -> Mapping[str, Any]:
    return max((s for s in receipt["scores"] if s["valid_only"] is valid), key=lambda s: s["k"])


def _in_words(receipt: Mapping[str, Any], valid: bool = False) -> str:
    score = _score(receipt, valid)
    rmse = "undefined" if score["rmse"] is None else f"{score['rmse']:.4g}"
    return f"match_rate {100 * score['match_rate']:.4g} %, rmse {rmse}"


Measure = Callable[[Row, Path, Effort], Measured]

MEASURES: dict[str, Measure] = {"test": _test_scores, "found": _found_again}
"""How the run in a folder is measured. `measure` of a table names one: "test" takes the scores of the test
part, "found" makes structures from the formulas of its crystals and compares them."""


def _one(estimates: Sequence[Estimate]) -> Estimate:
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
    found: Reproduction, plan: Plan, receipts: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
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
        "recipe": plan.source,
        "overrides": [*row.overrides, *plan.overrides],
        "command": command_line(),
        "runs": list(receipts),
        **more,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(found.folder / "receipt.json", text)
