"""How long `facetry --help` takes, start of Python included."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.speed.common import best, record


def main() -> None:
    command = [sys.executable, "-m", "facetry", "--help"]
    seconds = best(lambda: subprocess.run(command, capture_output=True, check=True), 5)
    record("command_line", [{"what": "facetry --help", "value": seconds, "unit": "s", "budget": 0.4}])


if __name__ == "__main__":
    main()
