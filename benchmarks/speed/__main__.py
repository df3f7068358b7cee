"""All speed benchmarks, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = (
    "cif",
    "graph",
    "voronoi",
    "comformer",
    "lattice_attention",
    "ecn",
    "continuousp",
    "empnn",
    "command_line",
)

if __name__ == "__main__":
    failed = 0
    for script in SCRIPTS:
        print(f"\n{script}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.speed.{script}"], check=False).returncode
    sys.exit(failed)
