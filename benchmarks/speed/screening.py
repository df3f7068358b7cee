"""`facetry predict` over 100 000 structures, 1 % broken: rows, memory, two kills, shares of the time.

python -m benchmarks.speed.screening MODEL --out FOLDER [--count 100000]

Twenty minutes of a core with the default model, which is why `python -m benchmarks.speed` leaves it out.
wbm_sample is repeated: 60 % loose CIFs, 30 % CIFs in a tar.gz, 10 % in a Parquet table. FOLDER keeps the
structures, the tables and the memory over time.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.mutants import mutant
from benchmarks.speed.common import record

BROKEN = 100  # one in so many
LOOSE, PACKED = 0.6, 0.3


def ends(count: int) -> tuple[int, int]:
    """Behind the last loose file, and behind the last one of the archive."""
    return round(LOOSE * count), round((LOOSE + PACKED) * count)


def build(folder: Path, count: int) -> None:
    """Structures in `folder`; nothing where they are there already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from facetry.data import dataset

    if (folder / "table.parquet").exists():
        return
    crystals = [*dataset("wbm_sample").train.crystals, *dataset("wbm_sample").val.crystals]
    crystals += dataset("wbm_sample").test.crystals
    texts = [crystal.to_text("cif").encode() for crystal in crystals]

    def text(number: int) -> bytes:
        whole = texts[number % len(texts)]
        return mutant([whole], 7, number)[1] if number % BROKEN == 17 else whole

    loose, packed = ends(count)
    for number in range(loose):
        path = folder / "loose" / f"{number // 1000:03d}" / f"{number:06d}.cif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text(number))
    with tarfile.open(folder / "archive.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(loose, packed):
            content = text(number)
            member = tarfile.TarInfo(f"{number:06d}.cif")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    rows = []
    for number in range(packed, count):
        crystal = crystals[number % len(crystals)]
        lattice = crystal.lattice.ravel()
        if number % BROKEN == 17:
            lattice = lattice * np.nan
        rows.append((f"{number:06d}", crystal.atomic_numbers, crystal.frac_coords.ravel(), lattice))
    names = ("id", "atomic_numbers", "frac_coords", "lattice")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "table.parquet", row_group_size=2000)


def memory(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total, open_ = 0.0, [pid]
    while open_:
        process = open_.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text()
            open_ += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
        except OSError:
            continue
        total += next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS")), 0) / 1024
    return total


class Call:
    """One `facetry predict`, watched: seconds since its start, rows, MB."""

    def __init__(self, model: str, folder: Path, out: Path, *more: str):
        self.out, self.trace, self.started = out, [], time.monotonic()
        command = [sys.executable, "-m", "facetry", "predict", model, str(folder), "-o", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([*command, "--threads", "1", *more], env=environment)
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            size = self.out.stat().st_size if self.out.exists() else 0
            self.trace.append(
                (round(time.monotonic() - self.started, 1), size, round(memory(self.process.pid)))
            )
            time.sleep(0.5)

    def wait_for(self, size: float) -> None:
        """Until the table has so many bytes."""
        while self.process.poll() is None and not (self.trace and self.trace[-1][1] >= size):
            time.sleep(0.1)

    def end(self) -> tuple[int, float, float]:
        """Exit code, wall seconds, CPU seconds with those of the reading processes."""
        before = os.times()
        code = self.process.wait()
        self.watch.join()
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return code, time.monotonic() - self.started, used


def cpu_time(function: Callable[[], object]) -> float:
    """CPU seconds, the least of three: neighbours on the machine do not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def shares(model: str, folder: Path, count: int = 4000) -> dict[str, float]:
    """CPU milliseconds per loose CIF, each stage alone on one thread: parse, graph, model."""
    import torch

    import facetry
    from facetry.io import read_many
    from facetry.models.base import evaluating
    from facetry.tasks.inference import Limits, _chunks
    from facetry.tasks.inputs import Item
    from facetry.tasks.predict import outputs_and_distance

    torch.set_num_threads(1)
    network = facetry.load(model)
    places = sorted((folder / "loose").iterdir())[: count // 1000]
    read = [r.result for r in read_many(places, workers=0) if isinstance(r.result, facetry.Crystal)]
    limits = Limits.for_device(torch.device("cpu"))
    chunks = [[i.crystal for i in chunk] for chunk in _chunks((Item("", c) for c in read), limits)]
    batches = [network.graph(chunk) for chunk in chunks]
    compute = outputs_and_distance(network)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                compute(batch)

    with evaluating(network):
        seconds = {
            "parse": cpu_time(lambda: sum(1 for _ in read_many(places, workers=0))),
            "graph": cpu_time(lambda: [network.graph(chunk) for chunk in chunks]),
            "model": cpu_time(forward),
        }
    return {name: value / len(read) * 1e3 for name, value in seconds.items()}


def check_rows(path: Path, count: int) -> Counter:
    """Every structure has its row, in order; their states."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    loose, packed = ends(count)
    numbers = [int(Path(row["source"].split(":")[-1]).stem) for row in rows if ".cif" in row["source"]]
    numbers = [number for number, _ in groupby(numbers)]  # a broken file may have become two structures
    assert numbers == [*range(loose, packed), *range(loose)]
    names = [int(row["name"]) for row in rows if "table.parquet" in row["source"]]
    assert names == list(range(packed, count))
    return Counter(row["status"] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="icomformer-perov5")
    parser.add_argument("--out", type=Path, default=Path("runs/screening"))
    parser.add_argument("--count", type=int, default=100_000)
    given = parser.parse_args()
    structures = given.out / "structures"
    build(structures, given.count)
    whole, torn = given.out / "whole.csv", given.out / "torn.csv"
    for path in (whole, torn):
        path.unlink(missing_ok=True)

    call = Call(given.model, structures, whole)
    code, wall, cpu = call.end()
    assert code == 3, f"exit code {code}"
    states = check_rows(whole, given.count)
    (given.out / "memory.json").write_text(json.dumps(call.trace))
    half = [mb for _, size, mb in call.trace if size > 0]
    quarter = len(half) // 4
    early, late = float(np.median(half[quarter : 2 * quarter])), float(np.median(half[-quarter:]))

    size = whole.stat().st_size
    for part in (0.3, 0.7):
        call = Call(given.model, structures, torn, "--resume")
        call.wait_for(part * size)
        call.process.send_signal(signal.SIGKILL)
        assert call.end()[0] == -signal.SIGKILL, "it ended before it could be killed"
    code, again, _ = Call(given.model, structures, torn, "--resume").end()
    assert code == 3, f"exit code {code}"
    assert torn.read_bytes() == whole.read_bytes(), "the table that was killed differs"

    part = shares(given.model, structures)
    what = f"predict, {given.count} structures"
    record(
        "screening",
        [
            {"what": f"{what}: crystals a second of one core", "value": given.count / cpu, "unit": "/s"},
            {"what": "per crystal, reading included", "value": cpu / given.count * 1e3, "unit": "ms"},
            {"what": "of it: CIF text to Crystal", "value": part["parse"], "unit": "ms"},
            {"what": "of it: graph", "value": part["graph"], "unit": "ms"},
            {
                "what": "of it: model with its distance to the training data",
                "value": part["model"],
                "unit": "ms",
            },
            {"what": f"{what}: memory, second quarter", "value": early, "unit": "MB"},
            {"what": f"{what}: memory, last quarter", "value": late, "unit": "MB"},
            {"what": "largest", "value": max(half), "unit": "MB", "detail": True},
            {"what": "wall", "value": wall, "unit": "s", "detail": True},
            {"what": "wall of the last third, after two kills", "value": again, "unit": "s", "detail": True},
            {"what": "failed", "value": states["failed"], "unit": "rows", "detail": True},
            {"what": "skipped", "value": states["skipped"], "unit": "rows", "detail": True},
        ],
    )


if __name__ == "__main__":
    main()
