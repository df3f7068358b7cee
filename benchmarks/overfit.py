"""Can EMPNN learn 16 noisy MP-20 cells by heart? `python -m benchmarks.overfit [STEPS]`

95 % of the raw error should go in 2 000 steps: σ = 0.1, the published network, one batch. Takes about half an
hour on a free core; tests/reference has a small version.
"""

from __future__ import annotations

import sys

CELLS, NOISE, RATE = 16, 0.1, 1e-3


def main(steps: int = 2000) -> None:
    import numpy as np
    import torch
    from scipy.linalg import expm

    from facetry.data import dataset
    from facetry.geometry.lattice import cell_parameters
    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import EMPNN
    from facetry.nn.lattice_losses import riemann

    keep_freed_memory()
    rng = np.random.default_rng(0)
    crystals = list(dataset("mp20").val.crystals.select(range(CELLS)))
    noisy = [c.replace(lattice=c.lattice @ expm(rng.normal(0, NOISE, (3, 3)))) for c in crystals]
    target = torch.tensor(np.stack([c.lattice for c in crystals]))
    torch.manual_seed(0)
    model = EMPNN()
    batch = model.graph(noisy)
    raw = (cell_parameters(batch.lattice) - cell_parameters(target)).abs()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        lattice = model(batch).lattices[-1]
        loss = riemann(lattice, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            left = (cell_parameters(lattice.detach()) - cell_parameters(target)).abs()
            lengths, angles = (float(left[:, s].mean() / raw[:, s].mean()) for s in (slice(3), slice(3, 6)))
            done = f"step {step + 1}"
            print(
                f"{done:10s} left of the lengths' error {lengths:.1%}, of the angles' {angles:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
