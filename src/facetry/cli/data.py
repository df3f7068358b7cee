"""`facetry dataset`: named sets, their cards, where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import OK, SOME_FAILED, Json, Mistake, Progress, text_table

app = typer.Typer(
    help="Named sets: what there is, where it comes from, how to get it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Such as perov5; see `facetry dataset list`.")]


@app.command("list")
def list_(as_json: Json = False) -> int:
    """Named sets: size, targets, whether they are here."""
    from facetry.data import info, list_sets
    from facetry.doctor import places, sets_in

    here = {name for _, folder in places() for name in sets_in(folder)}
    rows = []
    for name in list_sets():
        manifest = info(name)
        rows.append(
            {
                "name": name,
                "crystals": manifest.rows,
                "here": name in here or manifest.generated,
                "split": "official" if manifest.split.official else manifest.split.kind,
                "complete": manifest.complete,
                "targets": list(manifest.targets),
            }
        )
    if as_json:
        print(json.dumps(rows))
    else:
        for row in rows:
            row["targets"] = ", ".join(row["targets"][:4]) + (" …" if len(row["targets"]) > 4 else "")
        print(text_table(rows, list(rows[0])))
    return OK


@app.command("info", short_help="The card of a set.")
def info_(name: Name, as_json: Json = False) -> int:
    """The card of a set: targets with units, split, sources, licence, known defects, hashes."""
    from facetry.data import info

    manifest = info(name)
    print(json.dumps(manifest.to_dict()) if as_json else manifest.describe())
    return OK


@app.command("get", short_help="Find or download a set, check its hashes.")
def get_(name: Name, as_json: Json = False) -> int:
    """Find a set on this machine, or download it; check its hashes and tell where it is."""
    from facetry.data import get

    paths = {key: str(path) for key, path in get(name).items()}
    print(json.dumps(paths) if as_json else "\n".join(paths.values()))
    return OK


@app.command("import", short_help="Take in files downloaded by hand.")
def import_(
    name: Name,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The original, downloaded by hand.")],
    as_json: Json = False,
) -> int:
    """Take in files of a set that were downloaded by hand; they are checked by hash or content."""
    from facetry.data import import_set

    if missing := [str(f) for f in files if not f.exists()]:
        raise Mistake(f"{', '.join(missing)}: no such file")
    paths = [str(path) for file in files for path in _several(import_set(name, file))]
    print(json.dumps(paths) if as_json else "\n".join(paths))
    return OK


@app.command("clean", short_help="Duplicates, layers, broken graphs out; counts.")
def clean_(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A named set, or the path of your own table.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The crystals that are left (.parquet).")],
    energy: Annotated[str | None, typer.Option(help="Column that decides between duplicates.")] = None,
    gap: Annotated[str | None, typer.Option(help="Column of band gaps [band_gap].")] = None,
    most_atoms: Annotated[int, typer.Option(min=1, help="Atoms of the primitive cell.")] = 50,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Å beyond the radii that are a bond.")] = 0.45,
    graph: Annotated[str, typer.Option(help="What a valid graph is: voronoi or bonds.")] = "voronoi",
    insulators: Annotated[bool, typer.Option("--insulators", help="Keep the insulators only.")] = False,
    as_json: Json = False,
) -> int:
    """Take out duplicates, large cells, layers and molecules, and crystals without a valid graph.

    The report with a reason for every crystal taken out is written beside the table (.json). Exit code 3
    where some inputs could not be read.
    """
    from facetry.data.clean import clean
    from facetry.graph import Builder
    from facetry.graph.bonds import Bonds
    from facetry.graph.cells import Voronoi

    builders: dict[str, Builder] = {"voronoi": Voronoi(), "bonds": Bonds(0.5)}
    if graph not in builders:
        raise Mistake(f"--graph {graph}: expected voronoi or bonds")
    if out.suffix.lower() != ".parquet":
        raise Mistake(f"--out {out}: expected a name that ends in .parquet")
    progress = Progress("symmetry of crystals")
    try:
        cleaned = clean(
            data,
            energy=energy,
            gap=gap,
            most_atoms=most_atoms,
            tolerance=tolerance,
            graph=builders[graph],
            insulators=insulators,
            progress=progress.step,
        )
    finally:
        progress.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    cleaned.write(out)
    report = json.dumps(cleaned.to_dict())
    out.with_suffix(".json").write_text(report + "\n", encoding="utf-8")
    print(report if as_json else cleaned)
    return SOME_FAILED if cleaned.unreadable else OK


def _several(paths: Path | list[Path]) -> list[Path]:
    return paths if isinstance(paths, list) else [paths]
