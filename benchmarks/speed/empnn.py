"""Training steps of EMPNN on noisy Perov-5 against the size of the batch, with and without triplets, and what
its parts cost against the number of triplets: on one thread, in seconds of the processor."""

from __future__ import annotations

import sys
from time import process_time

from benchmarks.speed.common import best, perov5, record

BATCHES = (16, 64, 256)
NEIGHBORS = (8, 16, 32)
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

    from benchmarks.speed.lattice_attention import exponent
    from facetry.graph.triplets import triplets
    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import EMPNN, FeedForward

    torch.set_num_threads(1)
    keep_freed_memory()
    crystals = noisy(largest)
    models = {
        "feed-forward baseline": (FeedForward(), False),
        "EMPNN, edges only (∇1)": (EMPNN(fields="gradient_1"), False),
        "EMPNN, with triplets (∇5)": (EMPNN(), False),
        "EMPNN, with triplets (∇5), bf16": (EMPNN(), True),
    }
    rows = []
    for label, (model, half) in models.items():
        for count in (b for b in BATCHES if b <= largest):
            batch = model.graph(crystals[:count])

            def step(model=model, batch=batch, half=half):
                model.zero_grad(set_to_none=True)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    model(batch).lattices[-1].square().mean().backward()

            seconds = best(step, 2, process_time)
            name = f"{label}, batches of {count}: training steps on one thread"
            rows.append({"what": name, "value": 1 / seconds, "unit": "1/s"})
    forward, both, counts = [], [], []
    for k in NEIGHBORS:
        model = EMPNN(layers=0, blocks=1, k=k)
        batch = model.graph(crystals[:16])
        counts.append(len(triplets(batch)))

        def there(model=model, batch=batch):
            return model(batch).lattices[-1].square().mean()

        def back(there=there):
            there().backward()

        for what, function, into in (("forward", there, forward), ("forward and backward", back, both)):
            into.append(best(function, 3, process_time) / counts[-1] * 1e6)
            name = f"EMPNN, one block, {counts[-1]} triplets, {what}: a triplet"
            rows.append({"what": name, "value": into[-1], "unit": "µs", "detail": True})
    for what, values in (("forward", forward), ("forward and backward", both)):
        power = exponent(counts, [c * v for c, v in zip(counts, values, strict=True)])
        name = f"EMPNN, one block, {what}: exponent of triplets, {counts[0]} to {counts[-1]}"
        rows += [
            {"what": f"EMPNN, one block, {what}: a triplet", "value": values[-1], "unit": "µs"},
            {"what": name, "value": power, "unit": ""},
        ]
    record("empnn", rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
