"""The k = 25 graph with lattice frames on Perov-5, by batch and by what is asked of it."""

from __future__ import annotations

from benchmarks.speed.common import THREADS, best, perov5, record


def main() -> None:
    import numpy as np
    import torch
    import vesin

    from facetry.graph import LatticeKNearest
    from facetry.kernels.allocator import keep_freed_memory

    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as training does
    crystals = perov5(1024)

    def per_crystal(builder, count=1024):
        chosen = crystals.select(range(count))
        return best(lambda: builder(chosen)) / count * 1e3

    search = vesin.NeighborList(cutoff=6.0, full_list=True)
    plain = list(crystals.select(range(256)))

    def alone():
        for c in plain:
            search.compute(
                points=np.asarray(c.cart_coords), box=np.asarray(c.lattice), periodic=True, quantities="PSd"
            )

    rows = [
        {
            "what": "k = 25 graph, lattice frame, one class",
            "value": per_crystal(LatticeKNearest(k=25, frames="canonical")),
            "unit": "ms",
            "budget": 0.15,
        },
        {
            "what": "the same with every class of tied frames (default)",
            "value": per_crystal(LatticeKNearest(k=25)),
            "unit": "ms",
            "budget": 0.15,
        },
        {
            "what": "the same without angles (eComFormer)",
            "value": per_crystal(LatticeKNearest(k=25, angles=False)),
            "unit": "ms",
        },
        {"what": "default, batches of 64", "value": per_crystal(LatticeKNearest(k=25), 64), "unit": "ms"},
        {"what": "vesin alone, pairs within 6 Å", "value": best(alone) / len(plain) * 1e3, "unit": "ms"},
    ]
    record("graph", rows)


if __name__ == "__main__":
    main()
