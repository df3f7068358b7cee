"""`facetry certify`: what a model declares of its symmetry against what is measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

from facetry.cli.common import (
    OK,
    SOME_FAILED,
    BatchSize,
    Device,
    Json,
    Mistake,
    Progress,
    Threads,
    choose_device,
    free_folder,
    set_threads,
)

NOT_SYMMETRIC = 4


def certify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Run folder, model folder, name of one; with --random a class."),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH...]", help="Structures to measure on [about fifty built-in crystals]."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder [certificate-NAME].")] = None,
    random: Annotated[
        bool, typer.Option("--random", help="MODEL is a class, such as icomformer, with random weights.")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of a random model: model.layers=2; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights and of what is drawn.")] = 0,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Measure a model's symmetry: how much its answer changes when a crystal is described in another way.

    Turns, shifts, renumbers, re-cells and mirrors crystals in float64 and in the model's precision, follows
    small deformations for jumps, and compares with what the model declares. Writes certificate.json and
    certificate.html. Exit code 4 tells that a declared symmetry fails, 3 that some inputs gave no answer.

    \b
    facetry certify icomformer-perov5
    facetry certify runs/a structures/ -o certificate
    facetry certify crystalframer --random --set model.frames=continuous
    """
    if out is not None and out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    if override and not random:
        raise Mistake(
            "--set chooses the options of a model with random weights; add --random, or leave it out"
        )
    from facetry.evaluation.certificate_suite import suite
    from facetry.models import MODELS
    from facetry.tasks.certify import certify as measured
    from facetry.tasks.certify import random_model
    from facetry.tasks.inputs import check_places
    from facetry.training import load
    from facetry.training.recipe import apply_overrides

    check_places(paths or [])
    set_threads(threads)
    if random:
        tables = apply_overrides({"model": {}}, override or [])
        if other := sorted(set(tables) - {"model"}):
            raise Mistake(f"--set {other[0]}...: expected keys of the table model, such as model.layers=2")
        network = random_model(model, tables["model"], seed)
    elif model in MODELS and not Path(model).exists():
        raise Mistake(f"{model} is a class of models, not a trained one; add --random for random weights")
    else:
        network = load(model)
    folder = out or free_folder("certificate-" + re.sub(r"[^\w.+-]+", "_", Path(model).name).strip("._"))
    _check_writable(folder)
    progress = Progress("measured", None if paths else len(suite()))
    try:
        found = measured(
            network,
            paths or None,
            seed=seed,
            batch_size=batch_size,
            device=choose_device(device),
            title=f"{model}, random weights" if random else model,
            step=progress.step,
        )
    finally:
        progress.close()
    files = found.write(folder)
    print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found)
    print(f"{folder}/: {', '.join(p.name for p in files)}", file=sys.stderr)
    if found.failures:
        return NOT_SYMMETRIC
    return OK if all(row.status == "ok" for row in found.rows) else SOME_FAILED


def _check_writable(folder: Path) -> None:
    """Makes the folder, minutes before something is written there. Raises Mistake where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Mistake(f"-o {folder}: expected a folder to write into, got: {error.strerror}") from None
