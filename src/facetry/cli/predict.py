"""`facetry predict`, `facetry embed`: structures in, a row or a vector for each out."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from facetry.cli.common import (
    OK,
    SOME_FAILED,
    BatchSize,
    Device,
    Json,
    Mistake,
    Model,
    Paths,
    Progress,
    Stopped,
    Threads,
    Workers,
    choose_device,
    groups,
    set_threads,
)
from facetry.cli.rows import Printer, tally


def predict(
    model: Model,
    paths: Paths,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Table: .csv, .jsonl or .parquet [stdout].")
    ] = None,
    as_json: Json = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    one_frame: Annotated[
        bool,
        typer.Option("--one-frame", help="One lattice frame a crystal, not all tied ones: faster."),
    ] = False,
    relax: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Relax structures with this model first.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the table of a call that was killed.")
    ] = False,
) -> int:
    """Values with unit and 90 % interval for structures; every input gets a row, good or bad.

    Exit code 3 tells that some inputs gave no value; the table says which and why. Its columns: source, name,
    formula, atoms, status (ok, skipped, failed), value, unit, lower, upper, in_domain, message. With several
    targets there is a row for each, and a column target; a classifier's value is a label, with a column
    probability.

    \b
    facetry predict runs/a structures/ -o out.csv
    facetry predict runs/a "*.cif" more.zip table.parquet --json
    facetry predict runs/a structures/ -o out.csv --resume
    """
    import torch

    from facetry.tasks.inference import Limits
    from facetry.tasks.inputs import check_places, items_of_paths
    from facetry.tasks.predict import as_model, predictions, table_columns, targets_of
    from facetry.tasks.table_writer import TableWriter, check_suffix
    from facetry.tasks.unfinished import Finished, fingerprint, finished_part
    from facetry.training.checkpoint import find_model

    if out is not None:
        check_suffix(out)
    elif resume:
        raise Mistake("--resume goes on with a table; name it with -o")
    check_places(paths)
    set_threads(threads)
    network = as_model(model)
    if one_frame:
        network.one_frame_graph()  # a model without frames says so before anything is written
    place = choose_device(device)
    targets = targets_of(network)
    columns = table_columns(targets)
    table, done = None, Finished(Path())
    if out is not None:
        about = {
            "MODEL": fingerprint(find_model(model)),
            "--relax": None if relax is None else fingerprint(find_model(relax)),
            "--one-frame": one_frame,
            "--batch-size": batch_size,
        }
        if resume:
            limits = Limits.for_device(torch.device(place), batch_size)
            done = finished_part(out, columns, about, len(targets), limits)
        if done.complete:
            print(f"{tally(done.count)}; {out} is complete", file=sys.stderr)
            return OK if set(done.count) <= {"ok"} else SOME_FAILED
        table = TableWriter(out, columns, about, done.size)
    printer = Printer(list(columns), as_json, out is not None)
    count = dict(done.count)
    progress = Progress("predicted")
    items = items_of_paths(paths, workers, done.sources())
    if relax is not None:
        from facetry.tasks.relax import Relaxer

        items = Relaxer(relax, batch_size, place).items(items)
    results = predictions(network, items, batch_size, place, one_frame)
    try:
        with closing(results), closing(progress), table or nullcontext():
            for group in groups(results):
                rows = [p.row() for p in group]
                if table is not None:
                    table.write(rows)
                printer.write(rows)
                for prediction in group:
                    count[prediction.status] = count.get(prediction.status, 0) + 1
                progress.step(len(group))
    except KeyboardInterrupt:
        if table is None:
            raise
        raise Stopped(
            f"stopped; {sum(count.values())} finished rows are in {table.growing}; "
            "the same command with --resume goes on"
        ) from None
    printer.close()
    where = f"; {out}" if out is not None else ""
    print(f"{tally(count)}{where}", file=sys.stderr)
    return OK if set(count) == {"ok"} else SOME_FAILED


def embed(
    model: Model,
    paths: Paths,
    out: Annotated[Path, typer.Option("-o", "--out", help="Table: .parquet.")],
    atoms: Annotated[bool, typer.Option("--atoms", help="One vector per atom, too.")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
) -> int:
    """One vector per structure (and per atom with --atoms), as a Parquet table.

    \b
    facetry embed runs/a structures/ -o vectors.parquet
    """
    from facetry.tasks.embed import EmbeddingWriter, embeddings
    from facetry.tasks.inputs import check_places, items_of_paths
    from facetry.tasks.predict import as_model

    check_places(paths)
    set_threads(threads)
    writer = EmbeddingWriter(out, atoms)
    network = as_model(model)
    place = choose_device(device)
    count: dict[str, int] = {}
    outcomes = embeddings(network, items_of_paths(paths, workers), atoms, batch_size, place)
    progress = Progress("embedded")
    with writer:
        for group in groups(progress.over(outcomes)):
            writer.write(group)
            for outcome in group:
                count[outcome.status] = count.get(outcome.status, 0) + 1
    print(f"{tally(count)}; {out}", file=sys.stderr)
    return OK if set(count) == {"ok"} else SOME_FAILED
