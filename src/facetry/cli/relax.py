"""`facetry relax`: structures with wrong cells in, relaxed structures and a table out."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from facetry.tasks.relax import Relaxed

TABLE = "relaxed.csv"


def relax(
    model: Model,
    paths: Paths,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for structures and table.")],
    trajectory: Annotated[
        bool, typer.Option("--trajectory/--no-trajectory", help="Write the way of each structure, too.")
    ] = True,
    max_volume: Annotated[float, typer.Option(help="Factor by which a volume may change, up or down.")] = 4.0,
    max_stretch: Annotated[float, typer.Option(help="Factor by which a length may change.")] = 3.0,
    min_distance: Annotated[float, typer.Option(help="How near atoms may come, in Å.")] = 0.5,
    leave_rest: Annotated[
        bool,
        typer.Option("--leave-rest/--move-all", help="Leave those that count as relaxed already."),
    ] = True,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    as_json: Json = False,
) -> int:
    """Relax structures with a model trained for it; every input gets a row, good or bad.

    Writes NAME.cif, NAME.extxyz (the way, block by block) and relaxed.csv: lengths, angles, volume, space
    group and shortest distance before and after, status (ok, kept, skipped, failed) and message. A structure
    that would collapse or explode is kept as it was and marked. Exit code 3 tells that some inputs were not
    relaxed.

    \b
    facetry relax empnn-mp20 structures/ -o relaxed
    facetry relax runs/relax "*.cif" more.zip -o relaxed --json
    """
    from facetry.tasks.inputs import check_places, items_of_paths
    from facetry.tasks.predict import as_model
    from facetry.tasks.relax import COLUMNS, Guard, relaxations
    from facetry.tasks.table_writer import TableWriter

    if out.exists() and not out.is_dir():
        raise Mistake(f"{out}: expected a folder, it is a file")
    if (out / TABLE).exists():
        raise Mistake(f"{out} holds {TABLE} already; choose another folder")
    guard = Guard(max_volume, max_stretch, min_distance, leave_rest)
    check_places(paths)
    set_threads(threads)
    network = as_model(model, ("relax",))
    place = choose_device(device)
    results = relaxations(network, items_of_paths(paths, workers), batch_size, place, guard)
    out.mkdir(parents=True, exist_ok=True)
    printer = Printer(list(COLUMNS), as_json, True)
    files = _Files(out, trajectory)
    count: dict[str, int] = {}
    progress = Progress("relaxed")
    table = TableWriter(out / TABLE, COLUMNS)
    try:
        with closing(results), closing(progress), table:
            for group in groups(results):
                for result in group:
                    files.write(result)
                    count[result.status] = count.get(result.status, 0) + 1
                rows = [result.row() for result in group]
                table.write(rows)
                printer.write(rows)
                progress.step(len(group))
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {table.rows} finished rows are in {table.growing}") from None
    printer.close()
    print(f"{tally(count)}; {out}/: {TABLE}, structures{', trajectories' * trajectory}", file=sys.stderr)
    return OK if set(count) == {"ok"} else SOME_FAILED


class _Files:
    """One .cif and one .extxyz a structure, named after it, numbered where names meet."""

    def __init__(self, folder: Path, trajectory: bool) -> None:
        self.folder, self.trajectory = folder, trajectory
        self.taken: set[str] = set()

    def write(self, result: Relaxed) -> None:
        """What there is to write; nothing for an input that was not relaxed or kept."""
        from facetry.tasks.relax import trajectory_text

        if result.status not in ("ok", "kept") or result.crystal is None:
            return
        stem = self._stem(result.name or Path(result.source).stem)
        result.crystal.write(self.folder / f"{stem}.cif")
        if self.trajectory and result.crystal.is_ordered:
            text = trajectory_text(result.trajectory)
            (self.folder / f"{stem}.extxyz").write_text(text, encoding="utf-8")

    def _stem(self, name: str) -> str:
        plain = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "structure"
        stem, number = plain, 1
        while stem.lower() in self.taken:
            number += 1
            stem = f"{plain}-{number}"
        self.taken.add(stem.lower())
        return stem
