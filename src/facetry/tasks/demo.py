"""The main job from end to end on data that ships: train, evaluate, predict on files, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetry.crystal import Crystal
from facetry.data import dataset
from facetry.evaluation.metrics import Scores
from facetry.evaluation.report import write_report
from facetry.tasks.evaluate import evaluate
from facetry.tasks.inputs import items_of_paths
from facetry.tasks.predict import Prediction, predictions, table_columns, targets_of
from facetry.tasks.table_writer import TableWriter
from facetry.training import load_recipe, train_recipe

RECIPE = "demo"


@dataclass(frozen=True)
class Demo:
    """What the demo left behind."""

    folder: Path
    scores: Scores
    predictions: list[Prediction]
    report: Path
    table: Path
    seconds: float


def run_demo(
    folder: str | Path,
    overrides: list[str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
    verbose: bool | None = None,
) -> Demo:
    """Train the demo recipe on `emt-alloys`, score it, predict on structure files, write report.html.

    `folder` gets run/ (the model), structures/ (the files, some bad on purpose), predictions.csv and
    report.html. `overrides` change the recipe, `tell` hears what happens.
    """
    start = time.perf_counter()
    folder = Path(folder)
    if (folder / "run").exists():
        raise FileExistsError(f"{folder} holds a demo already; remove it or choose another folder with -o")
    recipe = load_recipe(RECIPE, overrides or ())
    tell(f"data: {recipe.data.name}, made by the package (alloys labelled with the EMT potential)")
    data = dataset(
        recipe.data.name, target=recipe.data.target, limit=recipe.data.limit, seed=recipe.data.seed
    )
    counts = ", ".join(f"{count} {name}" for name, count in data.counts.items())
    tell(f"      {counts} crystals")
    tell(f"train: {recipe.model['name']}, {recipe.training.epochs or recipe.training.steps} epochs")
    run = train_recipe(recipe, out=folder / "run", verbose=verbose)
    tell("evaluate on the test split")
    scores = evaluate(run.model, data.test)
    chosen = np.linspace(0, len(data.test) - 1, 3).astype(int)
    files = write_structures(folder / "structures", [data.test.crystals[int(i)] for i in chosen])
    tell(f"predict on {len(files)} structure files, some of them bad on purpose")
    results = list(predictions(run.model, items_of_paths([folder / "structures"])))
    table = folder / "predictions.csv"
    with TableWriter(table, table_columns(targets_of(run.model))) as writer:
        writer.write([p.row() for p in results])
    report = write_report(
        folder, scores, model_folder=folder / "run", predictions=results, title="facetry demo"
    )
    return Demo(folder, scores, results, report, table, time.perf_counter() - start)


def write_structures(folder: Path, crystals: list[Crystal]) -> list[Path]:
    """Structure files as people have them: three formats, a foreign chemistry, disorder, a broken file."""
    folder.mkdir(parents=True, exist_ok=True)
    corner = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    lattice = 3.75 * np.eye(3)
    content = {
        "Cu3Au.cif": Crystal(lattice, corner, [79, 29, 29, 29], name="Cu3Au"),
        "foreign_Si.cif": Crystal(
            2.715 * (1 - np.eye(3)), [[0, 0, 0], [0.25, 0.25, 0.25]], [14, 14], name="silicon"
        ),
        "disordered_CuAu.cif": Crystal(
            lattice, corner, [29] * 4, [{29: 0.75, 79: 0.25}] * 4, name="disordered Cu3Au"
        ),
    }
    for crystal, name in zip(crystals, ("alloy_1.cif", "alloy_2.vasp", "alloy_3.extxyz"), strict=False):
        content[name] = crystal
    for name, crystal in content.items():
        crystal.write(folder / name)
    text = (folder / "Cu3Au.cif").read_text(encoding="utf-8")
    (folder / "broken.cif").write_text(text[: text.index("_atom_site")], encoding="utf-8")
    return sorted(folder.iterdir())
