"""What `facetry dataset clean` leaves of sets of real crystals: `python -m benchmarks.clean`, minutes."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

from benchmarks.speed.common import machine

SETS = ("mp20", "wbm_sample")
RESULTS = Path(__file__).parent / "cleaning"


def main() -> None:
    import torch

    from facetry.data.clean import clean
    from facetry.training.receipt import commit

    torch.set_num_threads(1)
    for name in SETS:
        start = time.perf_counter()
        report = clean(name).to_dict()
        # reasons without what names the crystal: its id before the colon, numbers, elements
        reasons = Counter((r["stage"], _kind(r["reason"])) for r in report["rejected"])
        content = {
            "set": name,
            "command": f"facetry dataset clean {name}",
            "settings": report["settings"],
            "stages": report["stages"],
            "reasons": [{"stage": s, "reason": r, "count": n} for (s, r), n in sorted(reasons.items())],
            "seconds": round(time.perf_counter() - start, 1),
            "machine": machine(),
            "commit": commit(),
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(name, [stage["count"] for stage in report["stages"]])


def _kind(reason: str) -> str:
    text = re.sub(r"^[^:]*: (?=an? |its )", "", reason)
    text = re.sub(r"formula and space group \d+ of \S+,", "formula and space group of another,", text)
    text = re.sub(r"an atom of [A-Z][a-z]?", "an atom", text)
    return re.sub(r"in \d+ parts", "in parts", text)


if __name__ == "__main__":
    main()
