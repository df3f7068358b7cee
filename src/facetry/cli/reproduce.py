"""`facetry reproduce`: published rows, what we have of them, and how to get there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import OK, Json, Mistake, Stopped, text_table


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME|list", help="A published row; list shows all.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run [runs/NAME].")] = None,
    short: Annotated[bool, typer.Option("--short", help="The shorter recipe; the receipt says so.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per epoch.")] = False,
    as_json: Json = False,
) -> int:
    """Train for a published row and compare: the published number, ours, a receipt with both.

    `list` shows every row that the data at hand allows, with our number where there is a receipt. A run
    that was killed goes on when the command is given again.

    \b
    facetry reproduce list
    facetry reproduce ecn-perov5-cgcnn --short
    facetry reproduce empnn-denoise-perov5-k1 --set training.steps=4096 -o runs/k1
    """
    if name == "list":
        if out is not None or short or override:
            raise Mistake("reproduce list takes no -o, --short and --set")
        return _list(as_json)
    from facetry.training.reproduce import reproduce as train_for

    try:
        found = train_for(name, out, short=short, overrides=override or (), verbose=False if quiet else None)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on") from None
    receipt = found.folder / "receipt.json"
    if as_json:
        print(receipt.read_text(encoding="utf-8"))
    else:
        print(found)
        print(f"receipt  {receipt}")
    return OK


def _list(as_json: bool) -> int:
    from facetry.training.reproduce import load_rows, ours

    known, rows = ours(), []
    for row in load_rows().values():
        mine = known.get(row.name, [])
        if as_json:
            content = vars(row) | {"overrides": list(row.overrides), "ours": mine}
            rows.append({key: dict(v) if isinstance(v, dict) else v for key, v in content.items()})
            continue
        best = mine[0] if mine else None
        shown = [f"{best['metrics'][m][0]:.4g}" for m in row.published] if best else []
        short = " (short)" if best and best["shortened"] else ""
        rows.append(
            {
                "name": row.name,
                "published": ", ".join(row.words(m) for m in row.published),
                "ours": ", ".join(shown) + short,
                "what": f"{', '.join(row.published)}: {row.table} of"
                " {row.paper.split(',')[0].split(' and ')[0]}",
                "data": "as published" if row.comparable else "not comparable",
                "recipe": row.recipe,
            }
        )
    if as_json:
        print(json.dumps(rows))
    else:
        print(text_table(rows, list(rows[0])))
    return OK
