"""The tables of the README, made from what benchmarks and runs left: `python -m benchmarks.tables`.

accuracy   benchmarks/accuracy/*.toml, each naming the receipt of a run beside it, or those of all folds
speed      benchmarks/speed/results/*.json
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
README = ROOT.parent / "README.md"
ORDER = ("cif", "graph", "comformer", "lattice_attention", "command_line")


def accuracy() -> str:
    """One line a run: what was predicted, by what, how well, beside published numbers."""
    lines = [
        "| set, target | model | test MAE | 95 % interval | published | run | receipt |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "accuracy").glob("*.toml")):
        row = tomllib.loads(path.read_text())
        names = row.get("receipts") or [row["receipt"]]
        receipts = [json.loads((ROOT / "accuracy" / name).read_text()) for name in names]
        scores = [receipt["metrics"]["test"][0]["mae"] for receipt in receipts]
        digits, unit = row.get("digits", 4), row["unit"]
        value = f"{statistics.mean(score[0] for score in scores):.{digits}f}"
        if len(scores) > 1:
            value += f" ± {statistics.stdev(score[0] for score in scores):.{digits}f}"
            spread = f"{len(scores)} folds"
        else:
            spread = f"{scores[0][1]:.{digits}f} to {scores[0][2]:.{digits}f}"
        published = ", ".join(f"{name} {value}" for name, value in row.get("published", {}).items())
        hardware = receipts[0]["hardware"]
        minutes = sum(receipt["seconds"] for receipt in receipts) / 60
        run = (
            f"{row['run']}; {minutes:.0f} min on {hardware['threads']} thread"
            f"{'s' if hardware['threads'] > 1 else ''} of {hardware['cpu']}"
        )
        links = ", ".join(
            f"[{'receipt' if len(names) == 1 else number}](benchmarks/accuracy/{name})"
            for number, name in enumerate(names)
        )
        lines.append(
            f"| {row['data']} | {row['model']} | {value} {unit} | {spread} | {published or 'none'} |"
            f" {run} | {links} |"
        )
    return "\n".join(lines)


def speed() -> str:
    """One line a figure, with its budget; the machine below."""
    lines = ["| what | measured | budget |", "|---|---|---|"]
    machines = set()
    measured = [path for name in ORDER if (path := ROOT / "speed" / "results" / f"{name}.json").exists()]
    for path in measured:
        result = json.loads(path.read_text())
        machine = result["machine"]
        machines.add(
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']},"
            f" Python {machine['python']}"
        )
        for row in result["rows"]:
            if row.get("detail"):
                continue
            budget = f"{row['budget']:g} {row['unit']}" if row.get("budget") is not None else ""
            lines.append(f"| {row['what']} | {row['value']:.3g} {row['unit']} | {budget} |")
    scale = "Per crystal unless a row says otherwise, best of several runs on"
    return "\n".join([*lines, "", f"{scale} {'; '.join(sorted(machines))}."])


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
