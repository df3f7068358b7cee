"""The tables of the README, made from what benchmarks and runs left: `python -m benchmarks.tables`.

accuracy   benchmarks/accuracy/*.toml, each naming the receipt of a run beside it
speed      benchmarks/speed/results/*.json
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
README = ROOT.parent / "README.md"
ORDER = ("cif", "graph", "comformer", "command_line")


def accuracy() -> str:
    """One line a run: what was predicted, by what, how well, beside published numbers."""
    lines = [
        "| set, target | model | test MAE | 95 % interval | published | run | receipt |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "accuracy").glob("*.toml")):
        row = tomllib.loads(path.read_text())
        receipt = json.loads((ROOT / "accuracy" / row["receipt"]).read_text())
        mae, low, high = receipt["metrics"]["test"][0]["mae"]
        published = ", ".join(f"{name} {value}" for name, value in row.get("published", {}).items())
        hardware = receipt["hardware"]
        run = (
            f"{row['run']}; {receipt['seconds'] / 60:.0f} min on {hardware['threads']} thread"
            f"{'s' if hardware['threads'] > 1 else ''} of {hardware['cpu']}"
        )
        lines.append(
            f"| {row['data']} | {row['model']} | {mae:.4f} {row['unit']} | {low:.4f} to {high:.4f} |"
            f" {published or 'none'} | {run} | [receipt](benchmarks/accuracy/{row['receipt']}) |"
        )
    return "\n".join(lines)


def speed() -> str:
    """One line a figure, with its budget; the machine below."""
    lines = ["| what | measured | budget |", "|---|---|---|"]
    machines = set()
    for name in ORDER:
        result = json.loads((ROOT / "speed" / "results" / f"{name}.json").read_text())
        machine = result["machine"]
        machines.add(
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']},"
            f" Python {machine['python']}"
        )
        for row in result["rows"]:
            budget = f"{row['budget']:g} {row['unit']}" if row.get("budget") is not None else ""
            lines.append(f"| {row['what']} | {row['value']:.3g} {row['unit']} | {budget} |")
    return "\n".join([*lines, "", f"Per crystal, best of several runs on {'; '.join(sorted(machines))}."])


def filled(text: str) -> str:
    """The README with its tables as they should be."""
    for name, table in (("accuracy", accuracy()), ("speed", speed())):
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md: expected one table '{name}' between its markers, found {count}")
    return text


if __name__ == "__main__":
    before = README.read_text()
    after = filled(before)
    if "--check" not in sys.argv:
        README.write_text(after)
    elif before != after:
        sys.exit("README.md: its tables differ from the receipts; run python -m benchmarks.tables")
