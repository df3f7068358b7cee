"""`facetry match`: which reference crystals candidates match, and how well."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import OK, SOME_FAILED, Json, Mistake, Progress


def match(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="File, folder, archive or table.")],
    candidates: Annotated[
        list[str], typer.Argument(metavar="CANDIDATES", help="Files, folders, globs, archives, tables.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the tables.")] = None,
    by: Annotated[
        str, typer.Option(help="How candidates find their reference: name, formula, order.")
    ] = "name",
    own_only: Annotated[
        bool, typer.Option("--own-only", help="Leave out METRe and cRMSE, which compare with all.")
    ] = False,
    ltol: Annotated[float, typer.Option(help="Tolerance of lengths, a share.")] = 0.3,
    stol: Annotated[float, typer.Option(help="Tolerance of sites, in (volume per atom)^(1/3).")] = 0.5,
    angle_tol: Annotated[float, typer.Option(help="Tolerance of angles, in degrees.")] = 10.0,
    time_limit: Annotated[float, typer.Option(help="Seconds for one pair.")] = 60.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes [one per core].")] = None,
    as_json: Json = False,
) -> int:
    """Match rate, RMSE, METRe and cRMSE of candidates at k = 1, 5, 20, by pymatgen's StructureMatcher.

    A candidate belongs to the reference that its table names in a column `reference`, whose name its own
    begins with (mp-149_7 belongs to mp-149), or in whose folder it lies; see --by. Into the folder -o go
    matches.csv (a row for every candidate), references.csv and summary.json. Exit code 3 tells that some
    inputs could not be read, assigned or compared; their rows say why.

    \b
    facetry match test/ samples/ -o matches
    facetry match test.parquet samples.zip --by order --json
    """
    from facetry.tasks.inputs import check_places
    from facetry.tasks.match import match as compare

    if by not in ("name", "formula", "order"):
        raise Mistake(f"--by {by}: expected name, formula or order")
    if out is not None and out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    check_places([reference, *candidates])
    progress = Progress("compared")

    def count(done: int, total: int) -> None:
        progress.total = total
        progress.step(done - progress.done)

    try:
        found = compare(
            reference,
            candidates,
            by=by,
            everyone=not own_only,
            workers=workers,
            time_limit=time_limit,
            length_tolerance=ltol,
            site_tolerance=stol,
            angle_tolerance=angle_tol,
            progress=count,
        )
    except ImportError as error:  # pymatgen; the text says what to type
        raise Mistake(str(error)) from error
    finally:
        progress.close()
    paths = found.write(out) if out is not None else []
    print(json.dumps(found.summary(), allow_nan=False) if as_json else found)
    if out is not None:
        print(f"{out}/: {', '.join(p.name for p in paths)}", file=sys.stderr)
    return SOME_FAILED if found.failed else OK
