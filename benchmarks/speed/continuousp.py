"""Energy and slopes of ContinuouSP at every step of a chain, neighbours included.

Per crystal and step, atoms and cells moving as chains move them, for cells of the sizes of Perov-5 (5 atoms)
and MP-20 (10 atoms); the error of the tabulated filter; chain steps a second against the number of chains.
"""

from __future__ import annotations

from benchmarks.speed.common import THREADS, best, record

SIZES = (("Perov-5", 5, {}, 0.30), ("MP-20", 10, {"channels": 64, "layers": 6, "head_layers": 4}, 0.60))
BATCHES = (64, 1024)
STEPS = 4


def walk(model, atoms: int, count: int, searches: bool):
    """Steps of Gaussian noise of 0.03 Å and 0.3 % strain, of chains near their last temperatures; `searches`
    looks for neighbours at every step."""
    import torch

    from facetry.samplers import random_start

    numbers = torch.full((count,), atoms)
    elements = torch.tensor([38, 22, 8, 8, 8, 56, 25, 7, 7, 16])[:atoms].repeat(count)
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


def main() -> None:
    import torch

    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import ContinuouSP

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    rows = []
    for name, atoms, options, budget in SIZES:
        torch.manual_seed(0)
        model = ContinuouSP(**options).eval()
        for count in BATCHES:
            for searches in (False, True):
                if searches and count != BATCHES[0]:
                    continue
                seconds = best(walk(model, atoms, count, searches), 5 if count < 1000 else 2) / STEPS
                what = f"{name}, {count} chains" + (", neighbours searched at every step" if searches else "")
                value = seconds / count * 1e3
                rows.append(
                    {"what": what, "value": value, "unit": "ms", "budget": None if searches else budget}
                )
                if not searches:
                    rows.append({"what": f"{what}, steps of chains", "value": 1e3 / value, "unit": "1/s"})
        plain = model.landscape(torch.tensor([1]), torch.tensor([1]))
        weight, bias = plain.filters
        table, _ = plain._layers(9.0)
        d = torch.linspace(0.01, 9.0, 4001, dtype=torch.float64)
        exact = model.filter(d) @ weight.T + bias
        found = (table.basis(d)[0] @ table.matrix).double()
        error = float((found - exact).abs().max() / exact.abs().max())
        rows.append({"what": f"{name}, error of the filter of rank {table.rank}", "value": error, "unit": ""})
    record("continuousp", rows)


if __name__ == "__main__":
    main()
