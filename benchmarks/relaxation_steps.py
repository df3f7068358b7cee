"""How many optimiser steps a relaxing model saves: `python -m benchmarks.relaxation_steps MODEL [-n 20]`.

Alloys at rest of the test part of emt-alloys are disturbed as in the training of the model. ASE's BFGS with a
cell filter and EMT relaxes them from there, and from the model's answer. Prints JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np


def main() -> None:
    """Steps from both starts, crystal by crystal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=20, help="crystals")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--noise", type=float, default=None, help="σ, else that of the training")
    arguments = parser.parse_args()

    from ase.calculators.emt import EMT

    import facetry
    from facetry.evaluation.energy import optimiser_steps
    from facetry.tasks.evaluate import disturbed_crystals

    model = facetry.load(arguments.model)
    data = facetry.dataset("emt-alloys", target=[], match="*-0", limit={"test": arguments.n})
    before, after, _ = disturbed_crystals(model, data.test.crystals, noise=arguments.noise)
    counted = [
        [optimiser_steps(crystal, EMT(), arguments.fmax)[0] for crystal in pair]
        for pair in zip(before, after, strict=True)
    ]
    steps = np.array(counted)
    rows = [{"name": c.name, "before": n[0], "after": n[1]} for c, n in zip(before, counted, strict=True)]
    summary = {"before": float(steps[:, 0].mean()), "after": float(steps[:, 1].mean())}
    summary["fewer"] = float((steps[:, 1] < steps[:, 0]).mean())
    print(json.dumps({"model": arguments.model, "mean_steps": summary, "crystals": rows}, indent=2))


if __name__ == "__main__":
    main()
