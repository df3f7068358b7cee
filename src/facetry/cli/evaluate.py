"""`facetry evaluate`: a model and labelled crystals in, scores, tables and plots out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from facetry.cli.common import (
    OK,
    SOME_FAILED,
    BatchSize,
    Device,
    Json,
    Mistake,
    Model,
    Threads,
    choose_device,
    set_threads,
)


def examples_of(network: Any, part: Any, most: int = 4) -> list[tuple[Any, Any, Any]]:
    """A few crystals (true, disturbed, relaxed) of a model that relaxes disturbed crystals."""
    from facetry.tasks.evaluate import disturbed_crystals

    if network.job != "relax" or network.card.relax["task"] == "reconstruct":
        return []
    before, after, true = disturbed_crystals(network, part.select(slice(most)).crystals)
    return list(zip(true, before, after, strict=True))


def evaluate(
    model: Model,
    data: Annotated[str | None, typer.Option(help="Named set or path [that of the training].")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    target: Annotated[str | None, typer.Option(help="Column of the labels [as in the training].")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Fold, for sets with folds.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for report, plot, predictions, scores.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    noise: Annotated[
        float | None, typer.Option(min=0, help="σ for a relaxing model [that of the training].")
    ] = None,
    calculator: Annotated[
        str | None,
        typer.Option(metavar="MODULE:CLASS", help="ASE calculator: energies for a relaxing model, too."),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Errors of a model on labelled crystals, each with a 95 % bootstrap interval.

    A model that relaxes needs no labels: it gets crystals with noise, and what it undoes is measured. Nor
    does an energy: does it rise where atoms are moved and cells are scaled?

    \b
    facetry evaluate runs/a --data perov5 --split test
    facetry evaluate runs/a --data my_folder --split all -o results
    """
    from facetry.evaluation.energy import load_calculator
    from facetry.evaluation.plots import cell_plot
    from facetry.evaluation.report import target_plot, write_report
    from facetry.tasks.evaluate import evaluate as score
    from facetry.tasks.predict import as_model

    set_threads(threads)
    network = as_model(model, ("predict", "relax", "generate"))
    card = network.card
    assert card is not None
    labelled = _divided_as_trained(model, data, target) or data or _training_data(model, card)
    place = choose_device(device)
    energy = None if calculator is None else load_calculator(calculator)
    chosen = {"fold": fold, "noise": noise, "calculator": energy}
    scores = score(network, labelled, split, target, batch_size, place, seed, **chosen)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(json.dumps(scores.to_dict(), indent=2) + "\n", encoding="utf-8")
        if network.job == "relax":
            written = "report.html, scores.json, cells.csv, cells.png"
            _write_cells(out / "cells.csv", scores)
            (out / "cells.png").write_bytes(cell_plot(scores))
        elif network.job == "generate":
            from facetry.evaluation.landscape_plot import landscape_plot

            written = "report.html, scores.json, landscape.csv, landscape.png"
            _write_landscape(out / "landscape.csv", scores)
            (out / "landscape.png").write_bytes(landscape_plot(scores))
        else:
            written = "report.html, scores.json, predictions.csv, parity plot"
            _write_predictions(out / "predictions.csv", card, scores)
            for number, target_scores in enumerate(scores.targets):
                name = "parity.png" if len(scores.targets) == 1 else f"parity_{target_scores.target}.png"
                (out / name).write_bytes(target_plot(scores, number))
        examples = []
        if network.job == "relax":
            from facetry.tasks.evaluate import labelled_part

            examples = examples_of(network, labelled_part(labelled, split, [], fold, {}))
        write_report(out, scores, split=split, model_folder=_folder_of(model), examples=examples)
    if as_json:
        name = data or labelled.name
        print(json.dumps(scores.to_dict() | {"model": model, "data": str(name), "split": split}))
    else:
        print(scores)
        if out is not None:
            print(f"{out}/: {written}", file=sys.stderr)
    return SOME_FAILED if scores.failed else OK


def _training_data(model: str, card: Any) -> Any:
    """The data of the run, divided as it was then; for a model without its recipe the set that it names."""
    from facetry.data import dataset
    from facetry.training.recipe import load_recipe
    from facetry.training.run import load_data

    recipe = _folder_of(model) / "recipe.toml"
    if recipe.is_file():
        return load_data(load_recipe(recipe))
    if not card.data.get("name"):
        raise Mistake(f"{model} does not say what it was trained on; name the data with --data")
    divided = {key: card.data.get(key) for key in ("parts", "split")}
    return dataset(card.data["name"], target=[t.name for t in card.targets], **divided)


def _divided_as_trained(model: str, data: str | None, target: str | None) -> Any:
    """Your own data, where it is what the model was trained on: divided as it was then, so that no crystal of
    the training comes into the test. None for anything else."""
    from facetry.data import is_named
    from facetry.training.recipe import load_recipe
    from facetry.training.run import load_data

    recipe = _folder_of(model) / "recipe.toml"
    if data is None or target is not None or is_named(data) or not recipe.is_file():
        return None
    known = load_recipe(recipe)
    if is_named(known.data.name) or Path(data).resolve() != Path(known.data.name).resolve():
        return None
    return load_data(known.model_copy(update={"data": known.data.model_copy(update={"limit": None})}))


def _folder_of(model: str) -> Path:
    from facetry.training.checkpoint import find_model

    return find_model(model)


def _write_predictions(path: Path, card: Any, scores: Any) -> None:
    """predictions.csv with the column `true` beside the values."""
    from facetry.tasks.predict import table_columns
    from facetry.tasks.table_writer import TableWriter

    columns = table_columns(card.targets)
    kind = columns["value"]
    at = list(columns).index("value") + 1
    columns = dict([*list(columns.items())[:at], ("true", kind), *list(columns.items())[at:]])
    rows = []
    for number, prediction in enumerate(scores.predictions):
        row = prediction.row()
        row["true"] = scores.true_value(number)
        rows.append(row)
    with TableWriter(path, columns) as table:
        table.write(rows)


def _write_cells(path: Path, scores: Any) -> None:
    """cells.csv: lengths and angles of every crystal as it is, as the model got it and as it answered."""
    from facetry.tasks.table_writer import TableWriter

    kinds, letters = ("true", "noisy", "answer"), ("a", "b", "c", "alpha", "beta", "gamma")
    columns = {"name": "text"} | {f"{kind}_{letter}": "float" for kind in kinds for letter in letters}
    tables = [getattr(scores.cells, kind).tolist() for kind in kinds]
    with TableWriter(path, columns) as table:
        table.write(
            [
                dict(zip(columns, [name, *(value for values in row for value in values)], strict=True))
                for name, *row in zip(scores.names, *tables, strict=True)
            ]
        )


def _write_landscape(path: Path, scores: Any) -> None:
    """landscape.csv: the points of the figure."""
    from facetry.evaluation.landscape import FACTORS
    from facetry.tasks.table_writer import TableWriter

    columns = {"name": "text", "change": "text", "size": "float", "rise": "float"}
    rows = []
    for found in (scores.one, scores.all):
        for name, sizes, rises in zip(found.names, found.distance.tolist(), found.rise.tolist(), strict=True):
            change = f"{found.atoms} moved"
            rows += [
                dict(zip(columns, (name, change, *p), strict=True)) for p in zip(sizes, rises, strict=True)
            ]
    for name, energies in zip(scores.one.names, scores.scaled, strict=True):
        above = (energies - energies[len(FACTORS) // 2]).tolist()
        rows += [
            dict(zip(columns, (name, "scaled", *p), strict=True))
            for p in zip(FACTORS.tolist(), above, strict=True)
        ]
    with TableWriter(path, columns) as table:
        table.write(rows)
