"""`facetry generate`: formulas in, structures and a table out."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from facetry.cli.common import OK, SOME_FAILED, Json, Mistake, Progress, Threads, set_threads

TABLE = "candidates.csv"


def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FORMULA...",
            help="A model, unless --method is given; formulas: SrTiO3, Ti2O4, wanted.csv.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for structures and table.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Structures for each formula.")] = 20,
    method: Annotated[str | None, typer.Option(help="Instead of a model: template, rs.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where templates come from: named set or your own.")
    ] = None,
    atoms: Annotated[int | None, typer.Option(min=1, help="Atoms in the cell.")] = None,
    energy: Annotated[
        str | None, typer.Option(help="Ranks them: a model that predicts, or emt (ASE's, for metals).")
    ] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Candidates made; the lowest are kept.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the method.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Structures for formulas, lowest energy first: CIF files and candidates.csv.

    \b
    facetry generate SrTiO3 --method template --data perov5 -n 20 -o made
    facetry generate wanted.csv --method rs --energy icomformer-perov5 -o made
    """
    from facetry.chemistry import read_formulas
    from facetry.tasks.generate import COLUMNS, NothingFound, make_method, structures
    from facetry.tasks.tables import TableWriter, json_object

    if out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    if (out / TABLE).exists():
        raise Mistake(f"{out} holds {TABLE} already; choose another folder")
    if method is None:
        if len(words) < 2:
            raise Mistake("expected MODEL FORMULA, or FORMULA with --method template or --method rs")
        method, *words = words
    formulas = read_formulas(words)
    options = _options(override) | ({"data": data} if data is not None else {})
    set_threads(threads)
    source = make_method(method, **options)
    ranking = _energy(energy)
    if atoms is not None:
        for formula in formulas:
            formula.with_atoms(atoms)
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress("formulas", len(formulas))
    failed = 0
    rows: list[dict[str, Any]] = []
    try:
        with TableWriter(out / TABLE, COLUMNS) as table:
            for number, formula in enumerate(formulas):
                name = _unused(str(formula), number, formulas)
                try:
                    found = structures(source, formula, count, seed, atoms, ranking, draws)
                    new = []
                    for rank, made in enumerate(found, start=1):
                        file = f"{name}_{rank:0{len(str(count))}d}.cif"
                        made.crystal.replace(name=Path(file).stem).write(out / file)
                        new.append({"formula": formula.reduced, "rank": rank, "file": file} | made.row())
                except NothingFound as error:
                    failed += 1
                    new = [{"formula": formula.reduced, "status": "failed", "message": str(error)}]
                    print(f"facetry: {error}", file=sys.stderr)
                table.write(new)
                rows += new
                progress.step()
    finally:
        progress.close()
    if as_json:
        print("[\n" + ",\n".join(json_object(row, COLUMNS) for row in rows) + "\n]")
    made_count = sum(row["status"] == "ok" for row in rows)
    print(f"{made_count} structures for {len(formulas) - failed} formulas; {out / TABLE}", file=sys.stderr)
    return SOME_FAILED if failed else OK


def _unused(name: str, number: int, formulas: list[Any]) -> str:
    """The formula, numbered where it is asked for twice."""
    before = sum(str(f) == name for f in formulas[:number])
    return f"{name}-{before + 1}" if before else name


def _options(override: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE, the value as TOML, or as text where it is none."""
    options: dict[str, Any] = {}
    for entry in override or ():
        key, equals, value = entry.partition("=")
        if not equals or not key.isidentifier():
            raise Mistake(f"--set {entry}: expected KEY=VALUE")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def _energy(name: str | None) -> Any:
    """ASE's EMT, or a model that predicts."""
    if name is None:
        return None
    if name == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    from facetry.tasks.predict import as_model

    return as_model(name)
