"""Crystalformer and CrystalFramer at published sizes: beside iComFormer, against atoms, neighbours, memory.

The models are timed in turns, so that what disturbs the machine disturbs all; the fastest turn counts.
Inference averages tied frames, as predictions do, for iComFormer too. Memory is the peak of a fresh process
over what it held before the step.
"""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.common import THREADS, best, record

CRYSTALS = 64
MODELS = {
    "iComFormer": ("icomformer", {}),
    "Crystalformer": ("crystalformer", {}),
    "CrystalFramer": ("crystalframer", {}),
    "CrystalFramer, lightweight": ("crystalframer", {"angles": "lightweight"}),
}
# steps over those of iComFormer: budget, and what the epochs of the paper say
RATIOS = {
    "Crystalformer": (0.20, 0.54),
    "CrystalFramer": (0.80, 1.25),
    "CrystalFramer, lightweight": (0.35, 0.73),
}
SETS = {"perov5": "heat_all", "mp20": "formation_energy_per_atom"}
CELLS = [(1, 2, 3), (2, 3, 4), (4, 4, 6), (5, 5, 8)]  # supercells of a perovskite: 30 to 1000 atoms
REACHES = (2.5, 3.5, 5.0, 7.0)


def build(name: str, **options):
    import torch

    from facetry.models import MODELS as CLASSES

    torch.manual_seed(0)
    key, fixed = MODELS[name]
    return CLASSES[key](**fixed, **options)


def pair(model, crystals) -> tuple[Callable[[], object], Callable[[], object], float]:
    """A training step and an inference of a batch, and neighbours an atom."""
    import torch

    batch = model.graph(crystals)
    generator = torch.Generator().manual_seed(0)
    model.training_batch(batch, generator)  # calibrates

    def step():
        model.train().zero_grad(set_to_none=True)
        (model(model.training_batch(batch, generator)) - 1).square().mean().backward()

    def inference():
        model.eval()
        with torch.no_grad():
            model(batch)

    step()
    return step, inference, len(batch.graph) / len(batch.frac_coords)


def in_turns(functions: dict[object, Callable[[], object]], rounds: int) -> dict[object, float]:
    """Seconds of the fastest of several runs each, taken in turns."""
    fastest = dict.fromkeys(functions, math.inf)
    for _ in range(rounds):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            fastest[key] = min(fastest[key], time.perf_counter() - start)
    return fastest


def beside_comformer() -> list[dict[str, object]]:
    from facetry.data import dataset

    rows = []
    for name, target in SETS.items():
        crystals = dataset(name, target=target).train.crystals.select(range(CRYSTALS))
        functions = {}
        for label in MODELS:
            functions[label, "training step"], functions[label, "inference"], _ = pair(build(label), crystals)
        seconds = in_turns(functions, 5)
        for (label, what), value in seconds.items():
            rows.append({"what": f"{label}, {name}, {what}", "value": value / CRYSTALS * 1e3, "unit": "ms"})
        for label, (budget, paper) in RATIOS.items():
            ratio = seconds[label, "training step"] / seconds["iComFormer", "training step"]
            what = f"{label}, {name}, training step over iComFormer's (paper: {paper:g})"
            rows.append({"what": what, "value": ratio, "unit": "×", "budget": budget})
    return rows


def large(cell: tuple[int, int, int]):
    """A supercell of a perovskite whose atoms are a little off their places."""
    import numpy as np

    from facetry.crystal import Crystal

    near = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    corner = np.stack(np.meshgrid(*map(np.arange, cell), indexing="ij"), -1).reshape(-1, 1, 3)
    frac = ((near + corner) / cell).reshape(-1, 3)
    frac = frac + np.random.default_rng(0).normal(0, 0.02, frac.shape) / cell
    return Crystal(np.diag(cell) * 3.9, frac, np.tile([38, 22, 8, 8, 8], len(corner)), name="supercell")


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x."""
    import numpy as np

    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def against_atoms() -> list[dict[str, object]]:
    from dataclasses import replace

    rows = []
    crystals = [large(cell) for cell in CELLS]
    atoms = [len(c.atomic_numbers) for c in crystals]
    for label in ("Crystalformer", "CrystalFramer"):
        model = build(label)
        model.graph = replace(model.graph, primitive=False)
        times: dict[str, list[float]] = {"training step": [], "inference": []}
        for crystal in crystals:
            step, inference, _ = pair(model, [crystal])
            times["training step"].append(best(step, 3))
            times["inference"].append(best(inference, 3))
        memory = [peak(label, number) for number in range(len(CELLS))]
        for what, values in (*times.items(), ("peak memory of a step", memory)):
            unit, scale = ("ms", 1e3) if values is not memory else ("MiB", 1)
            rows += [
                {"what": f"{label}, one crystal of {n} atoms, {what}", "value": v * scale, "unit": unit}
                | ({} if n == atoms[-1] else {"detail": True})
                for n, v in zip(atoms, values, strict=True)
            ]
            # the smallest cell measures what a call costs
            name = f"{label}, {what}: exponent of atoms, {atoms[1]} to {atoms[-1]}"
            rows.append({"what": name, "value": exponent(atoms[1:], values[1:]), "unit": ""})
    return rows


def against_neighbours() -> list[dict[str, object]]:
    from facetry.data import dataset

    rows = []
    crystals = dataset("perov5", target=SETS["perov5"]).train.crystals.select(range(16))
    for label in ("Crystalformer", "CrystalFramer"):
        counts, values = [], []
        for reach in REACHES:
            step, _, neighbours = pair(build(label, reach=reach), crystals)
            counts.append(neighbours)
            values.append(best(step, 3) / len(crystals) * 1e3)
            what = f"{label}, training step, {neighbours:.0f} neighbours (reach {reach:g})"
            rows.append({"what": what, "value": values[-1], "unit": "ms", "detail": True})
        what = f"{label}, training step: exponent of neighbours, {counts[0]:.0f} to {counts[-1]:.0f}"
        rows.append({"what": what, "value": exponent(counts, values), "unit": ""})
    return rows


def peak(label: str, number: int) -> float:
    """MiB that a training step of one large crystal takes at most, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.lattice_attention", label, str(number)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def high_water() -> float:
    """MiB that this process has held at most. Linux hands `ru_maxrss` of the parent on to its children."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


def measure_peak(label: str, number: int) -> None:
    from dataclasses import replace

    import torch

    torch.set_num_threads(THREADS)
    model = build(label)
    model.graph = replace(model.graph, primitive=False)
    small, batch = model.graph([large((1, 1, 1))]), model.graph([large(CELLS[number])])
    generator = torch.Generator().manual_seed(0)

    def step(b):
        model(model.training_batch(b, generator)).square().mean().backward()

    step(small)  # what the libraries hold is there before
    before = high_water()
    step(batch)
    print(high_water() - before)


def main() -> None:
    import torch

    from facetry.kernels.allocator import keep_freed_memory

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    record("lattice_attention", beside_comformer() + against_atoms() + against_neighbours())


if __name__ == "__main__":
    measure_peak(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else main()
