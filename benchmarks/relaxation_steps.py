"""How many optimiser steps a relaxing model saves: `python -m benchmarks.relaxation_steps MODEL [-n 20]`.

Alloys at rest of the test part of emt-alloys are disturbed as in the training of the model. ASE's BFGS with a
cell filter and EMT relaxes them from there, and from the model's answer. Energies of both starts are told
above that of the alloy as it is in the set. Prints JSON; benchmarks/relaxation keeps it for the recipe
empnn-emt-alloys.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
    from facetry.evaluation.energy import energies_per_atom, optimiser_steps
    from facetry.tasks.evaluate import disturbed_crystals

    model = facetry.load(arguments.model)
    data = facetry.dataset("emt-alloys", target=[], match="*-0", limit={"test": arguments.n})
    before, after, true = disturbed_crystals(model, data.test.crystals, noise=arguments.noise)
    counted = [
        [optimiser_steps(crystal, EMT(), arguments.fmax)[0] for crystal in pair]
        for pair in zip(before, after, strict=True)
    ]
    steps = np.array(counted)
    energies = np.stack([energies_per_atom(crystals, EMT()) for crystals in (before, after, true)], 1)
    change = energies[:, 1] - energies[:, 0]
    above = energies[:, :2] - energies[:, 2:]
    summary = {
        "crystals": len(before),
        "mean_steps": {"before": float(steps[:, 0].mean()), "after": float(steps[:, 1].mean())},
        "share_with_fewer_steps": float((steps[:, 1] < steps[:, 0]).mean()),
        "energy_change": float(change.mean()),
        "share_with_lower_energy": float((change < 0).mean()),
        "energy_above": {"before": float(above[:, 0].mean()), "after": float(above[:, 1].mean())},
    }
    rows = [
        {"name": c.name, "steps": n, "energy_above": [round(float(e), 6) for e in excess]}
        for c, n, excess in zip(before, counted, above, strict=True)
    ]
    receipt = Path(arguments.model) / "receipt.json"
    training = json.loads(receipt.read_text()) if receipt.is_file() else {}
    kept = {key: training[key] for key in ("command", "steps", "seconds", "source") if key in training}
    result = {"fmax": arguments.fmax, "unit": "eV/atom", "training": kept, **summary, "rows": rows}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
