"""`facetry explain`: what a model looked at, as pictures and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import (
    OK,
    SOME_FAILED,
    Device,
    Json,
    Mistake,
    Model,
    Threads,
    choose_device,
    free_folder,
    set_threads,
)


def explain(
    model: Model,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file with one structure.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder [explain-NAME].")] = None,
    atom: Annotated[str, typer.Option(metavar="N|all", help="Site of the file, counted from 0.")] = "all",
    layer: Annotated[int | None, typer.Option(help="Shown layer, counted from 1 [all].")] = None,
    head: Annotated[int | None, typer.Option(help="Shown head, counted from 1 [the most telling].")] = None,
    entry: Annotated[
        str | None, typer.Option(help="Number from 0 or name, where PATH holds several structures.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """What a model looked at: attention and frames drawn on the structure, and the numbers.

    Writes NAME.png, NAME.html (turned with the mouse, works offline), NAME.csv (every weight) and
    NAME-frames.csv into a folder. For models that attend to images: crystalformer, crystalframer. Exit code
    3 tells that the input gave nothing.

    \b
    facetry explain runs/a SrTiO3.cif
    facetry explain runs/a SrTiO3.cif --atom 1 --layer 4 --head 3 -o pictures
    """
    if atom != "all" and not atom.lstrip("-").isdecimal():
        raise Mistake(f"--atom {atom}: expected a number or 'all'")
    if out is not None and out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    from facetry.tasks.explain import NoExplanation
    from facetry.tasks.explain import explain as look
    from facetry.tasks.explanation import ENDINGS
    from facetry.tasks.inputs import check_places
    from facetry.tasks.predict import as_model

    check_places([path])
    set_threads(threads)
    network = as_model(model)
    try:
        found = look(
            network,
            path,
            atom="all" if atom == "all" else int(atom),
            layer=layer,
            head=head,
            entry=entry,
            device=choose_device(device),
        )
    except NoExplanation as error:
        print(f"facetry: {error}", file=sys.stderr)
        return SOME_FAILED
    folder = out or free_folder(f"explain-{found.name}")
    there = [name for end in ENDINGS if (folder / (name := f"{found.name}{end}")).exists()]
    paths = found.write(folder)
    if as_json:
        print(json.dumps(found.to_dict() | {"files": [str(p) for p in paths]}, allow_nan=False))
    else:
        print(found)
    replaced = f"; replaced {', '.join(there)}" if there else ""
    print(f"{folder}/: {', '.join(p.name for p in paths)}{replaced}", file=sys.stderr)
    return OK
