"""Training step of ECN on Perov-5 (all atoms within 5 Å, published sizes), beside CGCNN on the same
crystals."""

from __future__ import annotations

from benchmarks.speed.common import THREADS, best, perov5, record

CRYSTALS = 32


def main() -> None:
    import torch

    from facetry.kernels.allocator import keep_freed_memory
    from facetry.models import CGCNN, ECN

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    crystals = perov5(CRYSTALS)
    rows = []
    models = {"CGCNN": CGCNN()}
    for breaking, label in ((True, ""), (False, ", cells not told apart")):
        for group in ("s8", "p1", "bravais"):
            models[f"ECN {group}{label}"] = ECN(group=group, break_symmetry=breaking, graph="radius")
    seconds = {}
    for label, model in models.items():
        batch = model.graph(crystals)

        def step(model=model, batch=batch):
            model.zero_grad(set_to_none=True)
            (model(batch) - 1).square().mean().backward()

        seconds[label] = best(step, 3) / CRYSTALS
        rows.append({"what": f"{label}, training step", "value": seconds[label] * 1e3, "unit": "ms"})
    ratios = (("ECN p1", "ECN s8", 3), ("ECN s8", "CGCNN", None))
    for one, other, budget in ratios:
        ratio = {"what": f"{one} over {other}, training step", "value": seconds[one] / seconds[other]}
        rows.append(ratio | {"unit": "×", "budget": budget})
    record("ecn", rows)


if __name__ == "__main__":
    main()
