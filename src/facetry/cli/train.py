"""`facetry train`: a recipe or options in, a run folder with report out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from facetry.cli.common import (
    OK,
    Json,
    Mistake,
    Stopped,
    Threads,
    free_folder,
)
from facetry.cli.evaluate import examples_of


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
    if device not in (None, "auto", "cpu", "cuda", "mps"):
        raise Mistake(
            f"--device {device}: expected auto, cpu, cuda or mps (how many: --set training.devices=2)"
        )
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
            given = (
                "" if (model or data) is None else f"; {'--data' if data is None else '--model'} is missing"
            )
            raise Mistake(f"train needs a RECIPE, or --model and --data, or --resume FOLDER{given}")
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
    from facetry.evaluation.metrics import nan_to_null
    from facetry.training.console import is_main_process

    if not is_main_process():
        return OK
    assert run.folder is not None
    scores, page = _report_of_run(run)
    if as_json:
        metrics = nan_to_null(dict(run.metrics))
        print(json.dumps({"folder": str(run.folder), "report": str(page), "metrics": metrics}))
    else:
        if scores is not None:
            print(scores)
        print(f"model   {run.folder}")
        print(f"report  {page}")
        print(f"next    {_next_command(run)}")
    return OK


def _next_command(run: Any) -> str:
    """What most people do with a model of this job."""
    commands = {
        "predict": f"facetry predict {run.folder} FILES -o predictions.csv",
        "relax": f"facetry relax {run.folder} FILES -o relaxed",
        "generate": f"facetry generate {run.folder} FORMULA -o made",
    }
    return commands[run.model.job]


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
    return free_folder(f"runs/{name}")


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
        examples = examples_of(run.model, test)
    return scores, write_report(run.folder, scores, split="test", examples=examples)
