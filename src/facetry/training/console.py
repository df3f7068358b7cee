"""What a run tells its reader, and who tells it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from facetry.card import Target

if TYPE_CHECKING:
    from facetry.training.loop import PropertyFitting

HEADLINE = {"regression": "mae", "binary": "roc_auc", "multiclass": "accuracy"}


def is_main_process() -> bool:
    """False in the helpers that Lightning starts for further devices; they write nothing."""
    names = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def wants_lines(verbose: bool | None) -> bool:
    """As the caller says; else where stderr is a terminal."""
    return sys.stderr.isatty() if verbose is None else verbose


def epoch_line(fitting: PropertyFitting) -> str:
    """`epoch 3/50  loss 0.31  val mae 0.12 eV  best 0.12 (3)  8.1 s  left 6 min`."""
    row, progress = fitting.progress.history[-1], fitting.progress
    shown = [f"epoch {row['epoch']}/{fitting.epochs}", f"loss {row['train_loss']:.4g}"]
    for target in fitting.targets:
        metric = HEADLINE[target.task]
        name = f"{metric}[{target.name}]" if len(fitting.targets) > 1 else metric
        if f"val_{name}" in row:
            unit = f" {target.unit}" if target.unit and metric == "mae" else ""
            shown.append(f"val {name} {row[f'val_{name}']:.4g}{unit}")
    if progress.best_epoch is not None:
        shown.append(f"best epoch {progress.best_epoch}")
    recent = [r["seconds"] for r in progress.history[-5:]]
    left = (fitting.epochs - progress.epoch) * sum(recent) / len(recent)
    shown += [f"{row['seconds']:.1f} s", f"left {duration(0.0 if progress.finished else left)}"]
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """Seconds in words: 80 s, 12 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(targets: Sequence[Target], metrics: Mapping[str, Any]) -> str:
    """`test mae 0.031 eV` for each target."""
    part = "test" if "test" in metrics else "val"
    texts = []
    for target in targets:
        metric = HEADLINE[target.task]
        value = metrics.get(part, {}).get(f"{metric}[{target.name}]" if len(targets) > 1 else metric)
        if value is not None:
            unit = f" {target.unit}" if target.unit and metric == "mae" else ""
            texts.append(f"{target.name}: {part} {metric} {value:.4g}{unit}")
    return ", ".join(texts) or "done"
