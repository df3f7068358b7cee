"""`facetry audit`: what is wrong with a set of crystals, and what a model on it must beat."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import OK, SOME_FAILED, Json, Mistake, Progress, Threads, set_threads


def audit(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Named set, table, folder; or structure files.")
    ],
    target: Annotated[list[str] | None, typer.Option(help="Column of labels [all]; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the report; or the split, NAME.csv.")
    ] = None,
    split_by: Annotated[str | None, typer.Option(help="Write a split: formula or prototype.")] = None,
    fractions: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of train, val and test in that split.")
    ] = (0.8, 0.1, 0.1),
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="Leave the baselines out.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Duplicates, leaks, impossible and outlying values of a set of crystals; what composition alone
    predicts.

    Into the folder -o go audit.html, findings.csv (a row for every case) and audit.json. A split by formula
    or prototype, which keeps near duplicates together too, is a CSV for data.split of a recipe; it goes
    into the folder as split.csv, or to the name -o gives. Exit code 3 tells that some inputs could not be
    read.

    \b
    facetry audit perov5 -o audits/perov5
    facetry audit mine --split-by formula -o split.csv
    facetry train --model cgcnn --data mine --set data.split=split.csv
    """
    from facetry.tasks.audit import audit as look
    from facetry.tasks.inputs import check_places

    if split_by not in (None, "formula", "prototype"):
        raise Mistake(f"--split-by {split_by}: expected formula or prototype")
    to_table = out is not None and out.suffix.lower() == ".csv"
    if to_table and split_by is None:
        raise Mistake(f"--out {out}: a .csv takes a split; add --split-by formula, or name a folder")
    if split_by is not None and out is None:
        raise Mistake("--split-by writes a file; say where with -o split.csv or -o FOLDER")
    if out is not None and not to_table and out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    if len(data) > 1:
        check_places(data)
    set_threads(threads)
    progress = Progress("crystals looked at")
    try:
        found = look(
            data[0] if len(data) == 1 else data,
            (target[0] if len(target) == 1 else list(target)) if target else None,
            baselines=not no_baselines,
            seed=seed,
            progress=progress.step,
        )
    finally:
        progress.close()
    written: list[Path] = []
    split = None
    if out is not None and not to_table:
        written += found.write(out)
    if split_by is not None and found.counts:
        split = found.split(split_by, fractions, seed)
        assert out is not None
        written.append(split.write(out if to_table else out / "split.csv"))
    if as_json:
        content = found.to_dict()
        if split is not None:
            content["split"] = {"by": split.by, "counts": split.counts, "largest": split.largest}
        print(json.dumps(content, allow_nan=False))
    else:
        print(found)
        if split is not None:
            print(f"\n{split}")
    if written:
        print(", ".join(str(path) for path in written), file=sys.stderr)
    return SOME_FAILED if found.unreadable else OK
