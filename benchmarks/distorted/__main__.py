"""What jumps do to predictions: test crystals of Perov-5, at rest and with atoms moved a little.

python -m benchmarks.distorted

400 cubic test crystals, drawn at random; every atom moved in a random direction by t Å (root mean square),
the mean of all at rest. Errors are those to the label of the crystal at rest. Writes perov5.json beside
this file (minutes of a core), which docs/certificates.md shows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import facetry
from facetry.crystal import Crystal

COUNT, MOVES = 400, (0.001, 0.01, 0.02)  # crystals; Å
MODELS = (
    ("icomformer-perov5", "icomformer-perov5", None),
    ("the same, its gap set to 0.05 Å", "icomformer-perov5", 0.05),
    ("crystalframer-perov5", "crystalframer-perov5", None),
)


def directions(crystal: Crystal, rng: np.random.Generator) -> np.ndarray:
    """Random displacements of root mean square 1 that leave the mean of the atoms where it is."""
    steps = rng.normal(size=(len(crystal), 3))
    steps -= steps.mean(axis=0)
    return steps / np.sqrt(np.square(steps).sum(axis=1).mean())


def main() -> None:
    torch.set_num_threads(1)
    test = facetry.dataset("perov5", target="heat_all").test
    rng = np.random.default_rng(0)
    part = test.select(rng.choice(len(test), COUNT, replace=False))
    crystals, labels = list(part.crystals), part.targets[:, 0]
    ways = [directions(crystal, rng) @ np.linalg.inv(crystal.lattice) for crystal in crystals]
    rows = {}
    for title, name, gap in MODELS:
        model = facetry.load(name)
        if gap is not None:
            model.graph = replace(model.graph, gap=gap)
        rest = np.array([p.value for p in facetry.predict(model, crystals)])
        row = {"error": {"0": float(np.abs(rest - labels).mean())}, "moved": {}}
        for t in MOVES:
            shaken = [
                c.replace(frac_coords=c.frac_coords + t * w) for c, w in zip(crystals, ways, strict=True)
            ]
            values = np.array([p.value for p in facetry.predict(model, shaken)])
            apart = np.abs(values - rest)
            row["error"][f"{t:g}"] = float(np.abs(values - labels).mean())
            row["moved"][f"{t:g}"] = [
                float(np.median(apart)),
                float(np.quantile(apart, 0.9)),
                float(apart.max()),
            ]
        rows[title] = row
        print(title, json.dumps(row), flush=True)
    content = {
        "data": "perov5",
        "split": "test",
        "hash": test.hash,
        "crystals": COUNT,
        "seed": 0,
        "unit": "eV/cell",
    }
    text = json.dumps(content | {"models": rows}, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "perov5.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
