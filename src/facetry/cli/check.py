"""Commands that show whether all works: demo and doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import OK, OUR_FAULT, Json, Threads, free_folder, set_threads, text_table


def demo(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder [facetry-demo].")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the demo recipe."),
    ] = None,
    threads: Threads = None,
) -> int:
    """The main job on data that ships: train, evaluate, predict on files, report (about three minutes).

    \b
    facetry demo -o my_demo
    """
    from facetry.tasks.demo import run_demo

    set_threads(threads)
    result = run_demo(out or free_folder("facetry-demo"), list(override or ()), tell=_tell, verbose=True)
    columns = ["file", "formula", "status", "value", "unit", "lower", "upper", "in_domain", "message"]
    rows = [p.row() | {"file": Path(p.source).name} for p in result.predictions]
    print(f"\n{result.scores}\n\n{text_table(rows, columns)}\n")
    print(f"model   {result.folder / 'run'}\ntable   {result.table}\nreport  {result.report}")
    print(f"done in {result.seconds:.0f} s")
    return OK


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def doctor(as_json: Json = False) -> int:
    """Versions, devices, threads, data, and a self-test in seconds. Exit code 1 if something is wrong."""
    from facetry.doctor import examine

    diagnosis = examine()
    print(json.dumps(diagnosis.to_dict()) if as_json else diagnosis)
    return OK if diagnosis.ok else OUR_FAULT
