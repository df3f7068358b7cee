"""Commands that make or use a model: train, evaluate, predict, embed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    Progress,
    Stopped,
    Threads,
    choose_device,
    groups,
    set_threads,
    text_table,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder, or name of one.")]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH", help="Files, folders, globs, archives (.zip, .tar.gz), tables (.csv, .parquet)."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that read files.")]


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A .toml file, or the name of one that ships.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Kind of model, such as icomformer.")] = None,
    data: Annotated[str | None, typer.Option(help="Named set, or path of your own.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="What to predict; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder [runs/NAME].")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run after a kill.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order and draws.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.", metavar="DEVICE")] = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per epoch.")] = False,
    as_json: Json = False,
) -> int:
    """Train a model; write the run folder with weights, metrics and report.html.

    \b
    facetry train --model icomformer --data perov5 --target heat_all -o runs/a
    facetry train recipe.toml --set training.epochs=3
    facetry train --resume runs/a
    """
    changes = {"accelerator": device, "threads": threads}
    changes = {key: value for key, value in changes.items() if value is not None}
    if resume is not None:
        given = {"RECIPE": recipe, "--model": model, "--data": data, "--target": target, "--set": override}
        given |= {"--out": out, "--seed": seed}
        if used := [name for name, value in given.items() if value]:
            raise Mistake(f"--resume goes on with the recipe of {resume}; leave out {', '.join(used)}")
        from facetry.training import resume as go_on

        with _told_how_to_go_on(resume):
            run = go_on(resume, verbose=_verbose(quiet), **changes)
    else:
        if recipe is None and (model is None or data is None):
            raise Mistake("train needs a RECIPE, or --model and --data, or --resume FOLDER")
        from facetry.training import train_recipe
        from facetry.training.recipe import apply_overrides, make_recipe, read_tables

        tables: dict[str, Any] = read_tables(recipe) if recipe else {"model": {}, "data": {}}
        tables = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
        if model is not None:
            known = tables.get("model", {})
            tables["model"] = {**known, "name": model} if known.get("name") == model else {"name": model}
        if data is not None:
            tables["data"] = {**tables.get("data", {}), "name": data}
        if target:
            tables.setdefault("data", {})["target"] = target[0] if len(target) == 1 else list(target)
        if seed is not None:
            changes["seed"] = seed
        tables["training"] = {**tables.get("training", {}), **changes}
        checked = make_recipe(apply_overrides(tables, override or ()), recipe or "train")
        out = out or _default_folder(recipe, checked)
        with _told_how_to_go_on(out):
            run = train_recipe(checked, out=out, verbose=_verbose(quiet))
    from facetry.training.console import is_main_process

    if not is_main_process():
        return OK
    assert run.folder is not None
    scores, page = _report_of_run(run)
    if as_json:
        metrics = {part: _plain(values) for part, values in run.metrics.items()}
        print(json.dumps({"folder": str(run.folder), "report": str(page), "metrics": metrics}))
    else:
        if scores is not None:
            print(scores)
        print(f"model   {run.folder}")
        print(f"report  {page}")
    return OK


@contextmanager
def _told_how_to_go_on(folder: Path) -> Iterator[None]:
    """Ctrl-C in a training ends with the command that continues it."""
    try:
        yield
    except KeyboardInterrupt:
        if not (folder / "recipe.toml").is_file():
            raise
        raise Stopped(f"stopped; go on with: facetry train --resume {folder}") from None


def _verbose(quiet: bool) -> bool | None:
    return False if quiet else None


def _default_folder(recipe: str | None, checked: Any) -> Path:
    """runs/NAME after the recipe, or after model and data; numbered where it is taken."""
    name = Path(recipe).stem if recipe else f"{checked.model['name']}-{Path(checked.data.name).stem}"
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _plain(values: Any) -> Any:
    """Metrics for JSON, which has no NaN: what is undefined is null."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _report_of_run(run: Any) -> tuple[Any, Path]:
    """Scores on the test split, None where it has no labels; and report.html, written into the run folder."""
    from facetry.evaluation.report import write_report
    from facetry.tasks.evaluate import evaluate as score
    from facetry.training.recipe import load_recipe
    from facetry.training.run import load_data

    test = load_data(load_recipe(run.folder / "recipe.toml")).test
    if run.model.job == "predict":
        test = test.select(test.labelled)
    scores, examples = None, []
    if len(test):
        scores = score(run.model, test)
        examples = _examples(run.model, test)
    return scores, write_report(run.folder, scores, split="test", examples=examples)


def _examples(network: Any, part: Any, most: int = 4) -> list[tuple[Any, Any, Any]]:
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

            examples = _examples(network, labelled_part(labelled, split, [], fold, {}))
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
    from facetry.tasks.tables import TableWriter

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
    from facetry.tasks.tables import TableWriter

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
    from facetry.tasks.tables import TableWriter

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


def predict(
    model: Model,
    paths: Paths,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Table: .csv, .jsonl or .parquet [stdout].")
    ] = None,
    as_json: Json = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    one_frame: Annotated[
        bool,
        typer.Option("--one-frame", help="One lattice frame a crystal, not all tied ones: faster."),
    ] = False,
    relax: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Relax structures with this model first.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the table of a call that was killed.")
    ] = False,
) -> int:
    """Values with unit and 90 % interval for structures; every input gets a row, good or bad.

    Exit code 3 tells that some inputs gave no value; the table says which and why. Its columns: source, name,
    formula, atoms, status (ok, skipped, failed), value, unit, lower, upper, in_domain, message. With several
    targets there is a row for each, and a column target; a classifier's value is a label, with a column
    probability.

    \b
    facetry predict runs/a structures/ -o out.csv
    facetry predict runs/a "*.cif" more.zip table.parquet --json
    facetry predict runs/a structures/ -o out.csv --resume
    """
    import torch

    from facetry.tasks.inference import Limits
    from facetry.tasks.predict import as_model, predictions, table_columns, targets_of
    from facetry.tasks.sources import check_places, items_of_paths
    from facetry.tasks.tables import TableWriter, check_suffix
    from facetry.tasks.unfinished import Finished, fingerprint, finished_part

    if out is not None:
        check_suffix(out)
    elif resume:
        raise Mistake("--resume goes on with a table; name it with -o")
    check_places(paths)
    set_threads(threads)
    network = as_model(model)
    if one_frame:
        network.one_frame_graph()  # a model without frames says so before anything is written
    place = choose_device(device)
    targets = targets_of(network)
    columns = table_columns(targets)
    table, done = None, Finished(Path())
    if out is not None:
        about = {
            "MODEL": fingerprint(_folder_of(model)),
            "--relax": None if relax is None else fingerprint(_folder_of(relax)),
            "--one-frame": one_frame,
            "--batch-size": batch_size,
        }
        if resume:
            limits = Limits.for_device(torch.device(place), batch_size)
            done = finished_part(out, columns, about, len(targets), limits)
        if done.complete:
            print(f"{tally(done.count)}; {out} is complete", file=sys.stderr)
            return OK if set(done.count) <= {"ok"} else SOME_FAILED
        table = TableWriter(out, columns, about, done.size)
    printer = Printer(list(columns), as_json, out is not None)
    count = dict(done.count)
    progress = Progress("predicted")
    items = items_of_paths(paths, workers, done.sources())
    if relax is not None:
        from facetry.tasks.relax import Relaxer

        items = Relaxer(relax, batch_size, place).items(items)
    results = predictions(network, items, batch_size, place, one_frame)
    try:
        for group in groups(results):
            rows = [p.row() for p in group]
            if table is not None:
                table.write(rows)
            printer.write(rows)
            for prediction in group:
                count[prediction.status] = count.get(prediction.status, 0) + 1
            progress.step(len(group))
    except BaseException as error:
        if table is not None:
            table.__exit__(*sys.exc_info())
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(
                    f"stopped; {sum(count.values())} finished rows are in {table.growing}; "
                    "the same command with --resume goes on"
                ) from None
        raise
    finally:
        results.close()
        progress.close()
    if table is not None:
        table.close()
    printer.close()
    where = f"; {out}" if out is not None else ""
    print(f"{tally(count)}{where}", file=sys.stderr)
    return OK if set(count) == {"ok"} else SOME_FAILED


def tally(count: dict[str, int]) -> str:
    """`3 rows: 2 ok, 1 failed`."""
    parts = [f"{count[name]} {name}" for name in ("ok", "kept", "skipped", "failed") if name in count]
    rows = sum(count.values())
    return f"{rows} row{'s' * (rows != 1)}: {', '.join(parts)}"


class Printer:
    """Rows on stdout: a JSON array with a row per line, CSV, or aligned text on a terminal."""

    def __init__(self, columns: list[str], as_json: bool, to_file: bool) -> None:
        self.columns, self.as_json = columns, as_json
        self.silent = to_file and not as_json
        self.aligned = sys.stdout.isatty() and not as_json
        self.first = True

    def write(self, rows: list[dict[str, Any]]) -> None:
        """More rows; the first call writes the header."""
        from facetry.tasks.tables import csv_text, json_object

        if self.silent or not rows:
            return
        if self.as_json:
            lines = [json_object(row, self.columns) for row in rows]
            print(("[\n" if self.first else ",\n") + ",\n".join(lines), end="", flush=True)
        elif self.aligned:
            shown = [c for c in self.columns if c not in ("name", "atoms")]
            print(text_table(rows, shown), flush=True)
        else:
            print(csv_text(rows, self.columns, header=self.first), end="", flush=True)
        self.first = False

    def close(self) -> None:
        """End what `write` began."""
        if self.as_json:
            print("[]" if self.first else "\n]")


def embed(
    model: Model,
    paths: Paths,
    out: Annotated[Path, typer.Option("-o", "--out", help="Table: .parquet.")],
    atoms: Annotated[bool, typer.Option("--atoms", help="One vector per atom, too.")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
) -> int:
    """One vector per structure (and per atom with --atoms), as a Parquet table.

    \b
    facetry embed runs/a structures/ -o vectors.parquet
    """
    from facetry.tasks.embed import EmbeddingWriter, embeddings
    from facetry.tasks.predict import as_model
    from facetry.tasks.sources import check_places, items_of_paths

    check_places(paths)
    set_threads(threads)
    writer = EmbeddingWriter(out, atoms)
    network = as_model(model)
    place = choose_device(device)
    count: dict[str, int] = {}
    outcomes = embeddings(network, items_of_paths(paths, workers), atoms, batch_size, place)
    progress = Progress("embedded")
    with writer:
        for group in groups(progress.over(outcomes)):
            writer.write(group)
            for outcome in group:
                count[outcome.status] = count.get(outcome.status, 0) + 1
    print(f"{tally(count)}; {out}", file=sys.stderr)
    return OK if set(count) == {"ok"} else SOME_FAILED
