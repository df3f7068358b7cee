"""Timing, the crystals that are timed, and the record that a run leaves."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
THREADS = 2


def best(
    function: Callable[[], object], repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the fastest of several runs, after one that is not counted. `time.process_time` as the clock
    counts those that the processor was ours, for one thread on a crowded machine."""
    function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import torch

    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def perov5(count: int):
    """The first crystals of Perov-5's training split."""
    from facetry.data import dataset

    return dataset("perov5", target="heat_all").train.crystals.select(range(count))


def record(name: str, rows: list[dict[str, object]]) -> None:
    """Print a table and write it with the machine it was measured on."""
    width = max(len(str(r["what"])) for r in rows)
    for row in rows:
        budget = f"   budget {row['budget']:g}" if row.get("budget") is not None else ""
        print(f"{row['what']:<{width}}  {row['value']:>9.4g} {row['unit']}{budget}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "benchmark": name,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
