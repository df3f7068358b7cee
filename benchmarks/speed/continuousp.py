"""Energy and slopes of ContinuouSP, as published and with angles, at every step of a chain, with neighbours.

Per crystal and step, atoms and cells moving as chains move them, for cells of the sizes of Perov-5 (5 atoms)
and MP-20 (10 atoms); the error of energies; chain steps a second against the number of chains.
"""

from __future__ import annotations

import copy

from benchmarks.speed.common import THREADS, best, record

SIZES = (
    ("Perov-5", 5, "continuousp", {}, 0.30),
    ("MP-20", 10, "continuousp", {"channels": 64, "layers": 6, "head_layers": 4}, 0.60),
    ("Perov-5, with angles", 5, "continuousp_angular", {}, None),
    ("MP-20, with angles", 10, "continuousp_angular", {"channels": 64, "angular": 24}, None),
)
ELEMENTS = (38, 22, 8, 8, 8, 56, 25, 7, 7, 16)
BATCHES = (64, 1024)
STEPS = 4


def walk(model, atoms: int, count: int, searches: bool):
    """Steps of Gaussian noise of 0.03 Å and 0.3 % strain, of chains near their last temperatures; `searches`
    looks for neighbours at every step."""
    import torch

    from facetry.samplers import random_start

    numbers = torch.full((count,), atoms)
    elements = torch.tensor(ELEMENTS)[:atoms].repeat(count)
    lattice, frac = random_start(0, torch.arange(count), numbers)
    land = model.landscape(elements, numbers)
    everything = torch.ones(count, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)

    def step():
        for _ in range(STEPS):
            strain = 0.003 * torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
            noise = 0.03 * torch.randn(len(frac), 3, generator=generator, dtype=torch.float64)
            if searches:
                land.forget(everything)
            land(lattice + lattice @ strain, frac + noise / 5.0)

    return step


def error(model, atoms: int, count: int = 32) -> float:
    """The largest error of an energy beside the plain formula in double precision."""
    import torch

    from facetry.graph.batch import Batch
    from facetry.samplers import random_start

    numbers = torch.full((count,), atoms)
    elements = torch.tensor(ELEMENTS)[:atoms].repeat(count)
    lattice, frac = random_start(1, torch.arange(count), numbers)
    found = model.landscape(elements, numbers)(lattice, frac).energy
    batch = model.graph.build(Batch(lattice, frac, elements, numbers), [""] * count)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(batch)
    return float((found - exact).abs().max())


def denoising(model, atoms: int, count: int = 64):
    """A training step on the slopes of wells around crystals with noise."""
    import torch

    from facetry.graph.batch import Batch
    from facetry.samplers import random_start
    from facetry.training.contrast import denoising_loss
    from facetry.training.recipe import GenerateOptions

    numbers, chain = torch.full((count,), atoms), torch.arange(count)
    lattice, frac = random_start(0, chain, numbers)
    batch = Batch(lattice, frac, torch.tensor(ELEMENTS)[:atoms].repeat(count), numbers)

    def step():
        model.zero_grad(set_to_none=True)
        denoising_loss(model, model.graph, batch, GenerateOptions(), 0, chain, 0).mean().backward()

    return step


def main() -> None:
    import torch

    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import MODELS

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    rows = []
    for name, atoms, kind, options, budget in SIZES:
        torch.manual_seed(0)
        model = MODELS[kind](**options).eval()
        for count in BATCHES:
            for searches in (False, True):
                if searches and count != BATCHES[0]:
                    continue
                seconds = best(walk(model, atoms, count, searches), 5 if count < 1000 else 2) / STEPS
                what = f"step of a chain, {name}, {count} chains" + (
                    ", neighbours searched at every step" if searches else ""
                )
                value = seconds / count * 1e3
                rows.append(
                    {"what": what, "value": value, "unit": "ms", "budget": None if searches else budget}
                )
                if not searches:
                    rows.append({"what": f"{what}, steps a second", "value": 1e3 / value, "unit": "1/s"})
        seconds = best(denoising(model, atoms), 3) / 64
        rows.append({"what": f"denoising step, {name}, 64 crystals", "value": seconds * 1e3, "unit": "ms"})
        rows.append(
            {"what": f"{name}, error of E in single precision", "value": error(model, atoms), "unit": ""}
        )
    record("continuousp", rows)


if __name__ == "__main__":
    main()
