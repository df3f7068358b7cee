"""`facetry generate`: formulas in, structures and a table out."""

from __future__ import annotations

import sys
import time
import tomllib
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
    set_threads,
)

TABLE = "candidates.csv"


def generate(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for structures and table.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] FORMULA...",
            help="A model, unless --method is given; formulas: SrTiO3, Ti2O4, wanted.csv.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Structures for each formula.")] = 20,
    method: Annotated[str | None, typer.Option(help="Instead of a model: template, rs, pso, bo.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where templates come from: named set or your own.")
    ] = None,
    atoms: Annotated[int | None, typer.Option(min=1, help="Atoms in the cell.")] = None,
    energy: Annotated[
        str | None, typer.Option(help="Ranks them: a model, or emt (ASE's, for metals), MODULE:CLASS.")
    ] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Candidates made; the lowest are kept.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    relax: Annotated[str | None, typer.Option(metavar="MODEL", help="Relax candidates with it.")] = None,
    predict: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Columns with what it predicts.")
    ] = None,
    trajectory: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Keep every so manieth step of a chain.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the method.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Sample cells of any size.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sampling.")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Structures for formulas, lowest energy first: CIF files and candidates.csv.

    \b
    facetry generate runs/energy SrTiO3 -n 20 -o made
    facetry generate SrTiO3 --method template --data perov5 -n 20 -o made
    facetry generate wanted.csv --method rs --energy icomformer-perov5 -o made
    facetry generate --resume -o made
    """
    from facetry.tasks.generate import Maker, make_method_with_energy
    from facetry.tasks.sampling_store import FOLDER

    call: dict[str, Any] = {
        "method": method,
        "count": count,
        "seed": seed,
        "atoms": atoms,
        "draws": draws,
        "energy": energy,
        "relax": relax,
        "predict": predict,
        "options": options_of(override)
        | {k: v for k, v in (("data", data), ("trajectory", trajectory)) if v is not None}
        | ({"force": True} if force else {}),
    }
    call = _resumed(out, call) if resume and not words else _begun(out, words, call, resume)
    set_threads(threads)
    options = dict(call["options"])
    if call["method"] not in ("rs", "template"):  # those compute nothing on a device
        options |= {"batch_size": batch_size} if batch_size is not None else {}
        options |= {"device": choose_device(device)}
    if call["method"] in ("pso", "bo") and call["energy"] is None:
        raise Mistake(f"--method {call['method']}: what is minimised? Give --energy, a model or emt")
    source, ranking = make_method_with_energy(call["method"], _energy(call["energy"]), **options)
    arguments = {name: call[name] for name in ("count", "seed", "atoms", "draws", "relax", "predict")}
    maker = Maker(source, energy=ranking, **arguments)
    formulas = _formulas(call)
    refusals = [maker.refusal(f if atoms is None else f.with_atoms(atoms)) for f in formulas]
    if all(refusals):
        raise Mistake(refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""))
    maker.columns  # noqa: B018  a property with the name of another column is a mistake
    store = _store(source, out, call, resume)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        rows, failed = _write(maker, formulas, out, store, call["count"])
    except KeyboardInterrupt:
        how = "" if store is None else f"; go on with: facetry generate --resume -o {out}"
        raise Stopped(f"stopped{how}") from None
    if store is not None:
        store.remove(out / "sampling.json", seconds=round(time.monotonic() - started, 1))
    if as_json:
        from facetry.tasks.table_writer import json_object

        print("[\n" + ",\n".join(json_object(row, maker.columns) for row in rows) + "\n]")
    made_count = sum(row["status"] == "ok" for row in rows)
    print(f"{made_count} structures for {len(formulas) - failed} formulas; {out / TABLE}", file=sys.stderr)
    assert not (out / FOLDER).exists()
    return SOME_FAILED if failed else OK


def _begun(out: Path, words: list[str] | None, call: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The call with its formulas, into a folder that is free or holds the same."""
    from facetry.chemistry import read_formulas
    from facetry.tasks.sampling_store import FOLDER

    if out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    if (out / FOLDER).exists() and not resume:
        raise Mistake(f"{out} holds an interrupted sampling; add --resume, or choose another folder")
    if (out / TABLE).exists() and not resume:
        raise Mistake(f"{out} holds {TABLE} already; choose another folder")
    words = list(words or ())
    if call["method"] is None:
        if len(words) < 2:
            raise Mistake(
                "expected MODEL FORMULA, or FORMULA with --method template, rs, pso or bo, or --resume"
            )
        call["method"], *words = words
    if not words:
        raise Mistake("expected a formula, such as SrTiO3")
    formulas = read_formulas(words)
    if call["atoms"] is not None:
        for formula in formulas:
            formula.with_atoms(call["atoms"])
    return call | {"formulas": [str(formula) for formula in formulas]}


def _resumed(out: Path, call: dict[str, Any]) -> dict[str, Any]:
    """The call that was interrupted."""
    from facetry.tasks.sampling_store import read_settings

    known = read_settings(out)["call"]
    return known | {"options": known["options"] | ({"force": True} if call["options"].get("force") else {})}


def _formulas(call: dict[str, Any]) -> list[Any]:
    from facetry.chemistry import parse

    return [parse(text) for text in call["formulas"]]


def _store(source: Any, out: Path, call: dict[str, Any], resume: bool) -> Any:
    """What keeps chains under way; None for methods without chains."""
    from facetry.tasks.sampling_store import SamplingStore

    if not hasattr(source, "settings"):
        if resume:
            raise Mistake(f"--resume: {call['method']} is not sampled by chains; run it again from the start")
        return None
    if not resume:
        out.mkdir(parents=True, exist_ok=True)
    return SamplingStore(out, {"call": call, "sampler": source.settings()}, resume)


def _write(
    maker: Any, formulas: list[Any], out: Path, store: Any, count: int
) -> tuple[list[dict[str, Any]], int]:
    """Files and table; the rows, and how many formulas have no structure."""
    from facetry.tasks.generate import NothingFound
    from facetry.tasks.relax import trajectory_text
    from facetry.tasks.table_writer import TableWriter

    rows: list[dict[str, Any]] = []
    failed = 0
    progress = Progress("steps of chains" if store is not None else "formulas")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.step(done - progress.done)

    try:
        with TableWriter(out / TABLE, maker.columns) as table:
            results = maker.over(formulas, store, show)
            for number, (formula, found) in enumerate(zip(formulas, results, strict=True)):
                name = _unused(str(formula), number, formulas)
                new: list[dict[str, Any]] = []
                if isinstance(found, NothingFound):
                    failed += 1
                    new = [{"formula": formula.reduced, "status": "failed", "message": str(found)}]
                    print(f"facetry: {found}", file=sys.stderr)
                    found = []
                for rank, made in enumerate(found, start=1):
                    file = f"{name}_{rank:0{len(str(count))}d}.cif"
                    made.crystal.replace(name=Path(file).stem).write(out / file)
                    if made.way:
                        steps = [c.replace(name=f"step {s} energy {e:.6g}") for s, c, e in made.way]
                        (out / file).with_suffix(".extxyz").write_text(trajectory_text(steps))
                    new.append({"formula": formula.reduced, "rank": rank, "file": file} | made.row())
                table.write(new)
                rows += new
    finally:
        progress.close()
    return rows, failed


def _unused(name: str, number: int, formulas: list[Any]) -> str:
    """The formula, numbered where it is asked for twice."""
    before = sum(str(f) == name for f in formulas[:number])
    return f"{name}-{before + 1}" if before else name


def options_of(override: list[str] | None) -> dict[str, Any]:
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
    """A calculator of ASE, or a model."""
    if name is None:
        return None
    if name == "emt" or (":" in name and not Path(name).exists()):
        from facetry.evaluation.energy import load_calculator

        return load_calculator("ase.calculators.emt:EMT" if name == "emt" else name)
    from facetry.tasks.predict import as_model

    return as_model(name, ("predict", "generate"))
