"""Audits the sets, keeps what was found beside this file and renews the tables of docs/audit.md from it.

`python -m benchmarks.audits perov5` does one set; the others stay as they are.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

from benchmarks.speed.common import machine

SETS = ("perov5", "mp20", "carbon24", "mb_jdft2d", "mp_elastic")
RESULTS = Path(__file__).parent
DOCS = RESULTS.parents[1] / "docs"


def main(names: list[str]) -> None:
    import torch

    from facetry import audit
    from facetry.training.receipt import commit

    torch.set_num_threads(1)
    for name in names or SETS:
        began = time.process_time()
        found = audit(name)
        content = found.to_dict(most=3)
        content |= {
            "command": f"facetry audit {name} --threads 1",
            "cpu_seconds": round(time.process_time() - began, 1),
            "machine": machine(),
            "commit": commit(),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
        print(found, "\n")
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = DOCS / "audit.md"
    page.write_text(generate.renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
