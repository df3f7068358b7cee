"""Training steps of EMPNN on noisy Perov-5 against the size of the batch, with and without triplets, and what
its parts cost against the number of triplets."""

from __future__ import annotations

import sys

from benchmarks.speed.common import THREADS, best, perov5, record

BATCHES = (16, 64, 256)
NEIGHBORS = (4, 8, 16)
NOISE = 0.1


def noisy(count: int):
    """Perovskites, each in a lattice of its own."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = []
    for crystal in perov5(count):
        strain = np.eye(3) + NOISE * rng.normal(size=(3, 3))
        found.append(crystal.replace(lattice=crystal.lattice @ strain))
    return found


def main(largest: int = BATCHES[-1]) -> None:
    import torch

    from facetry.graph.triplets import triplets
    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import EMPNN, FeedForward

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    crystals = noisy(largest)
    models = {
        "feed-forward": FeedForward(),
        "edges only": EMPNN(fields="gradient_1"),
        "with triplets": EMPNN(),
    }
    rows = []
    for label, model in models.items():
        for count in (b for b in BATCHES if b <= largest):
            batch = model.graph(crystals[:count])

            def step(model=model, batch=batch):
                model.zero_grad(set_to_none=True)
                model(batch).lattices[-1].square().mean().backward()

            seconds = best(step, 2)
            rows.append({"what": f"{label}, batch {count}", "value": 1 / seconds, "unit": "steps/s"})
    for k in NEIGHBORS:
        model = EMPNN(layers=0, blocks=1, k=k)
        batch = model.graph(crystals[:16])
        pairs = len(triplets(batch))

        def there(model=model, batch=batch):
            return model(batch).lattices[-1].square().mean()

        def back(there=there):
            there().backward()

        for what, function in (("forward", there), ("forward and backward", back)):
            value = best(function, 3) / pairs * 1e6
            rows.append(
                {"what": f"one block, {pairs} triplets, {what}", "value": value, "unit": "µs/triplet"}
            )
    record("empnn", rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
