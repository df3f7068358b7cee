"""The tables of the README, made from what benchmarks and runs left: `python -m benchmarks.tables`.

accuracy   benchmarks/accuracy/*.toml, each naming the receipt of a run beside it, or those of folds or seeds;
           a key `reproduces` names a row of src/facetry/published/*.toml, whose ours.json is written too
classes    those of them that tell classes
relaxation those of them that relax lattices, reconstruction those that make them from cubes
optimiser  benchmarks/relaxation/*.json
generation those of them that find crystals again from their formulas
ablation   benchmarks/ablation/perov5.json, for docs/models/continuousp.md
cleaning   benchmarks/cleaning/*.json
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
PAGE = ROOT.parent / "docs" / "models" / "continuousp.md"
ORDER = (
    "cif",
    "graph",
    "voronoi",
    "comformer",
    "lattice_attention",
    "ecn",
    "empnn",
    "continuousp",
    "screening",
    "command_line",
)
PUBLISHED = ROOT.parent / "src" / "facetry" / "published" / "ours.json"
METALS = (
    "accuracy",
    "roc_auc",
    "recall[metal]",
    "precision[metal]",
    "recall[insulator]",
    "precision[insulator]",
)


def _runs(task: str | None) -> list[tuple[dict, list[str], list[dict]]]:
    """Each row of the folder for a task with the names of its receipts and what they say."""
    found = []
    for path in sorted((ROOT / "accuracy").glob("*.toml")):
        row = tomllib.loads(path.read_text())
        if row.get("task") == task:
            names = row.get("receipts") or [row["receipt"]]
            found.append((row, names, [json.loads((ROOT / "accuracy" / n).read_text()) for n in names]))
    return found


def _effort(row: dict, receipts: list[dict]) -> str:
    """What kind of run it was, how long it took and on what."""
    hardware = receipts[0]["hardware"]
    minutes = sum(receipt["seconds"] for receipt in receipts) / 60
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    return f"{row['run']}; {minutes:.0f} min on {threads} of {hardware['cpu']}"


def _interval(estimate: list[float], digits: int) -> str:
    value, lower, upper = (f"{x:.{digits}f}" for x in estimate)
    return f"{value} ({lower} to {upper})"


def _links(names: list[str]) -> str:
    return ", ".join(
        f"[{'receipt' if len(names) == 1 else number}](benchmarks/accuracy/{name})"
        for number, name in enumerate(names)
    )


def accuracy() -> str:
    """One line a run: what was predicted, by what, how well, beside published numbers."""
    lines = [
        "| set, target | model | test MAE | 95 % interval | published | run | receipt |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, names, receipts in _runs(None):
        scores = [receipt["metrics"]["test"][0]["mae"] for receipt in receipts]
        digits, unit = row.get("digits", 4), row["unit"]
        value = f"{statistics.mean(score[0] for score in scores):.{digits}f}"
        if len(scores) > 1:
            value += f" ± {statistics.stdev(score[0] for score in scores):.{digits}f}"
            spread = f"{len(scores)} {row.get('over', 'folds')}"
        else:
            spread = f"{scores[0][1]:.{digits}f} to {scores[0][2]:.{digits}f}"
        published = ", ".join(f"{name} {value}" for name, value in row.get("published", {}).items())
        lines.append(
            f"| {row['data']} | {row['model']} | {value} {unit} | {spread} | {published or 'none'} |"
            f" {_effort(row, receipts)} | {_links(names)} |"
        )
    return "\n".join(lines)


def classes() -> str:
    """One line a classifier of metals and insulators."""
    heads = (
        "accuracy | ROC-AUC | metals: recall, precision | insulators: recall, precision | calibration error"
    )
    lines = [f"| set | model | {heads} | run | receipt |", "|" + "---|" * 9]
    for row, names, receipts in _runs("classification"):
        (receipt,) = receipts
        found = receipt["metrics"]["test"][0]
        v = {key: f"{found[key][0]:.3f}" for key in ("accuracy", "roc_auc", "calibration_error", *METALS)}
        cells = (
            row["data"],
            row["model"],
            v["accuracy"],
            v["roc_auc"],
            f"{v['recall[metal]']}, {v['precision[metal]']}",
            f"{v['recall[insulator]']}, {v['precision[insulator]']}",
            v["calibration_error"],
            _effort(row, receipts),
            _links(names),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def relaxation() -> str:
    """One line a run: how much of the noise on lattices was undone, beside published gains."""
    heads = "set, noise | fields | length gain | published | angle gain | published"
    lines = [f"| {heads} | without: lengths, angles | run | receipt |", "|" + "---|" * 9]
    for row, names, receipts in _runs("relaxation"):
        (receipt,) = receipts
        found = receipt["metrics"]["test"]

        length, angle = row["published"]
        cells = (
            row["data"],
            row["model"],
            f"{_interval(found['length_gain'], 3)} Å",
            f"{length:.3f}",
            f"{_interval(found['angle_gain'], 2)}°",
            f"{angle:.3f}",
            f"{found['noisy_length_mae'][0]:.3f} Å, {found['noisy_angle_mae'][0]:.2f}°",
            _effort(row, receipts),
            _links(names),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reconstruction() -> str:
    """One line a run: errors of cells that were made from cubes, beside published ones."""
    heads = "set | network | error of lengths | published | error of angles | published | run | receipt"
    lines = [f"| {heads} |", "|" + "---|" * 8]
    for row, names, receipts in _runs("reconstruction"):
        (receipt,) = receipts
        found, (length, angle) = receipt["metrics"]["test"], row["published"]

        cells = (
            row["data"],
            row["model"],
            f"{_interval(found['length_mae'], 3)} Å",
            f"{length:.3f}" if length else "none",
            f"{_interval(found['angle_mae'], 2)}°",
            f"{angle:.3f}" if angle else "none",
            _effort(row, receipts),
            _links(names),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def optimiser() -> str:
    """One line a model: optimiser steps and energies from the disturbed and from the relaxed crystals."""
    heads = (
        "model | crystals | optimiser steps: disturbed, relaxed | fewer | energy above: disturbed, relaxed"
    )
    lines = [f"| {heads} | lower energy |", "|" + "---|" * 6]
    for path in sorted((ROOT / "relaxation").glob("*.json")):
        r = json.loads(path.read_text())
        steps, above = r["mean_steps"], r["energy_above"]
        cells = (
            f"[{path.stem}](benchmarks/relaxation/{path.name})",
            str(r["crystals"]),
            f"{steps['before']:.1f}, {steps['after']:.1f}",
            f"{100 * r['share_with_fewer_steps']:.0f} %",
            f"{above['before']:.3f}, {above['after']:.3f} {r['unit']}",
            f"{100 * r['share_with_lower_energy']:.0f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def generation() -> str:
    """One line a method: how many test crystals its candidates match and how closely, beside published."""
    heads = (
        "set | method | match rate: first, of 20 | the same, valid | RMSE of 20 | METRe, cRMSE | published"
    )
    lines = [f"| {heads} | run | receipt |", "|" + "---|" * 9]
    for row, names, receipts in _runs("generation"):
        (receipt,) = receipts
        scores = {(s["k"], s["valid_only"]): s for s in receipt["scores"]}
        most = max(k for k, _ in scores)
        every = scores[most, False]
        rate = {v: [f"{100 * scores[k, v]['match_rate']:.1f}" for k in (1, most)] for v in (False, True)}
        low, high = next(i for i in receipt["intervals"] if i["k"] == most)["match_rate"]
        published = ", ".join(f"{n} {m:.2f} %, {r:.4f}" for n, (m, r) in row.get("published", {}).items())
        cells = (
            row["data"],
            row["model"],
            f"{rate[False][0]} %, {rate[False][1]} % ({100 * low:.1f} to {100 * high:.1f})",
            f"{rate[True][0]} %, {rate[True][1]} %",
            "none" if every["rmse"] is None else f"{every['rmse']:.4f}",
            f"{100 * every['metre']:.1f} %, {every['crmse']:.4f}",
            published or "none",
            _effort(row, receipts),
            _links(names),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cleaning() -> str:
    """One column a set: how many crystals are left after each stage."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "cleaning").glob("*.json"))]
    titles = [f"[{r['set']}](benchmarks/cleaning/{r['set']}.json)" for r in found]
    lines = [f"| stage | {' | '.join(titles)} |", f"|---|{'---|' * len(found)}"]
    for stages in zip(*(r["stages"] for r in found), strict=True):
        counts = " | ".join(str(stage["count"]) for stage in stages)
        lines.append(f"| {stages[0]['key']}: {stages[0]['what']} | {counts} |")
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


def ablation() -> str:
    """One line a short training: what it had, how much of the validation crystals it found."""
    lines = ["| training | steps | minutes | match rate | RMSE |", "|---|---|---|---|---|"]
    for row in json.loads((ROOT / "ablation" / "perov5.json").read_text())["rows"]:
        rmse = "none" if row["rmse"] is None else f"{row['rmse']:.3f}"
        rate = f"{100 * row['match_rate']:.0f} %"
        lines.append(f"| {row['what']} | {row['steps']} | {row['seconds'] / 60:.1f} | {rate} | {rmse} |")
    return "\n".join(lines)


def _with_table(text: str, name: str, table: str, where: str) -> str:
    pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
    text, count = re.subn(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{where}: expected one table '{name}' between its markers, found {count}")
    return text


def filled_page(text: str) -> str:
    """docs/models/continuousp.md with its table as it should be."""
    return _with_table(text, "ablation", ablation(), PAGE.name)


def _scores(receipt: dict) -> dict:
    """Metric -> value, lower, upper; of structures from formulas the match rate in % and the RMSE."""
    if "scores" not in receipt:
        test = receipt["metrics"]["test"]
        return test[0] if isinstance(test, list) else test
    score = max((s for s in receipt["scores"] if not s["valid_only"]), key=lambda s: s["k"])
    bounds = max(receipt["intervals"], key=lambda i: i["k"])
    rate = [100 * x for x in (score["match_rate"], *bounds["match_rate"])]
    return {"match_rate": rate, "rmse": [score["rmse"], *bounds["rmse"]]}


def _shortened(receipt: dict) -> list[str]:
    """In what a run falls short of the published one."""
    if "scores" not in receipt:
        return receipt["shortened"]
    count, of = receipt["data"]["crystals"], receipt["data"]["of"]
    return [f"{count} of {of} test crystals"] if count < of else []


def published() -> str:
    """What the receipts say of published rows: the file that `facetry reproduce list` reads."""
    found: dict[str, list[dict]] = {}
    for path in sorted((ROOT / "accuracy").glob("*.toml")):
        row = tomllib.loads(path.read_text())
        for name in [row["reproduces"]] if "reproduces" in row else []:
            files = row.get("receipts") or [row["receipt"]]
            receipts = [json.loads((ROOT / "accuracy" / n).read_text()) for n in files]
            trained = [row["training"]] if "training" in row else []
            trainings = [json.loads((ROOT / "accuracy" / n).read_text()) for n in trained]
            scores = [_scores(receipt) for receipt in receipts]
            metrics = {}
            for metric, first in scores[0].items():
                if not isinstance(first, list):
                    continue
                values = [score[metric][0] for score in scores]
                if len(values) == 1:
                    metrics[metric] = first
                elif None not in values:
                    mean, spread = statistics.mean(values), statistics.stdev(values)
                    metrics[metric] = [mean, mean - spread, mean + spread]
            found.setdefault(name, []).append(
                {
                    "metrics": metrics,
                    "run": row["run"],
                    "shortened": sorted({reason for receipt in receipts for reason in _shortened(receipt)}),
                    "minutes": round(sum(r["seconds"] for r in [*receipts, *trainings]) / 60),
                    "receipts": [f"benchmarks/accuracy/{name}" for name in files],
                }
            )
    return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def filled(text: str) -> str:
    """The README with its tables as they should be."""
    tables = {
        "accuracy": accuracy,
        "classes": classes,
        "relaxation": relaxation,
        "reconstruction": reconstruction,
        "optimiser": optimiser,
        "generation": generation,
        "cleaning": cleaning,
        "speed": speed,
    }
    for name, make in tables.items():
        text = _with_table(text, name, make(), README.name)
    return text


if __name__ == "__main__":
    for path, fill in ((PUBLISHED, lambda _: published()), (README, filled), (PAGE, filled_page)):
        before = path.read_text() if path.exists() else ""
        after = fill(before)
        if "--check" not in sys.argv:
            path.write_text(after)
        elif before != after:
            sys.exit(f"{path.name}: differs from the receipts; run python -m benchmarks.tables")
