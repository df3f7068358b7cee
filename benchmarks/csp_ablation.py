"""Which measures make an energy find more crystals? `python -m benchmarks.csp_ablation -o runs/ablation`

Trainings on Perov-5 of about a minute each, with one measure more than the one
above it, sampled as they were trained: 20 crystals of the validation part, 10 candidates for each. Rows that
are done are not run again; the last row comes first. Writes benchmarks/ablation/perov5.json, from which the
table of docs/models/continuousp.md is made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CRYSTALS, SAMPLES = 20, 10
BASE = ["training.batch_size=32", "training.learning_rate=3e-3", "generate.chain_steps=100"]
PUBLISHED = ["generate.scheme=published", "generate.per_atom=false", "generate.hot=1.0", "generate.cold=1e-3"]
BROAD = ["model.name=continuousp"]
CONTRAST = ["generate.objective=contrastive", "generate.regulariser=0.1"]
EXACT = ["generate.per_atom=false", "generate.hot=1.0", "generate.cold=1e-3"]
BUFFER = ["generate.buffer=true", "generate.buffer_steps=20", "generate.refresh=0.05"]
UNITS = ["generate.multiplicity=data"]
WELLS = ["generate.objective=denoise"]
CHAINS = [*BROAD, *CONTRAST]
MIXED = [*UNITS, *BUFFER, "generate.regulariser=0.01"]
ROWS: list[tuple[str, int, list[str]]] = [
    ("contrast: chains and temperatures as published", 6, [*CHAINS, *PUBLISHED]),
    ("exact chains", 16, [*CHAINS, *EXACT]),
    ("and n E in place of E", 16, CHAINS),
    ("and formula units as in the data", 16, [*CHAINS, *UNITS]),
    ("and chains that go on", 50, [*CHAINS, *UNITS, *BUFFER]),
    ("and wells before contrast", 200, [*CHAINS, *MIXED, "generate.pretrain_steps=175"]),
    ("wells alone", 350, [*BROAD, *WELLS]),
    ("wells alone, sharp Gaussians", 350, [*BROAD, *WELLS, "model.basis=sharp"]),
    ("wells alone, angles", 1200, WELLS),
    (
        "wells with angles, then contrast beside them",
        930,
        [*CONTRAST, *MIXED, "generate.pretrain_steps=900", "generate.denoise_weight=1.0"],
    ),
]
RECIPE = "continuousp-angular-perov5-cpu"


def main() -> None:
    """Trains and samples what is not there yet, then writes the table's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", default="runs/ablation")
    out = Path(parser.parse_args().out)
    found = []
    for what, steps, options in reversed(ROWS):
        name = "-".join(what.replace(",", "").replace(":", "").split())
        run, drawn = out / name, out / f"{name}-val"
        chosen = [*BASE, f"training.steps={steps}", f"generate.validate_every={steps // 2}", *options]
        overrides = [part for option in chosen for part in ("--set", option)]
        if not (run / "receipt.json").exists():
            _run(["facetry", "train", RECIPE, *overrides, "-o", str(run)])
        if not (drawn / "receipt.json").exists():
            few = ["--split", "val", "--limit", str(CRYSTALS), "--samples", str(SAMPLES)]
            sampler = ["--set", "steps=300", "--threads", "1", "--workers", "1"]
            _run(["benchmarks.csp", str(run), "--data", "perov5", *few, *sampler, "-o", str(drawn)])
        trained, sampled = (json.loads((f / "receipt.json").read_text()) for f in (run, drawn))
        (score,) = (s for s in sampled["scores"] if s["k"] == SAMPLES and not s["valid_only"])
        found.append(
            {
                "what": what,
                "steps": steps,
                "options": options,
                "parameters": trained["parameters"],
                "seconds": trained["seconds"],
                "match_rate": score["match_rate"],
                "rmse": score["rmse"],
                "commit": trained["source"]["commit"],
            }
        )
        record = {"crystals": CRYSTALS, "samples": SAMPLES, "split": "val", "base": BASE, "rows": found[::-1]}
        record["hardware"] = trained["hardware"]
        folder = Path(__file__).with_name("ablation")
        folder.mkdir(exist_ok=True)
        (folder / "perov5.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str]) -> None:
    subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main()
