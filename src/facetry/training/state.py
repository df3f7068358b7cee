"""Resume points: everything a run needs to go on as if nothing had happened.

    runs/a/resume/000001230/    a point after 1230 optimiser steps; complete once it has this name
        state.safetensors       weights, optimiser moments, averaged weights
        best.safetensors        weights chosen so far (a second name of the same file while unchanged)
        state.json              epoch, position, history, best score, time

The order of crystals, learning rates and random draws follow from seed and step and need no storing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facetry.training.checkpoint import ModelError, read_tensors
from facetry.training.files import fill_file, remove_leftovers, share_file, tensor_bytes, write_folder

if TYPE_CHECKING:
    from facetry.training.batches import Source
    from facetry.training.loop import Fitting
    from facetry.training.recipe import TrainingOptions


@dataclass
class Progress:
    """Where a run is. `epoch` and `position` (steps into the epoch) name the step to come; `command` is what
    began it."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0
    label_count: float = 0.0
    averaged: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    stale_epochs: int = 0
    finished: bool = False
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    starts: int = 0
    command: str = ""
    history: list[dict] = field(default_factory=list)


@dataclass
class ResumePoint:
    """What is read back."""

    progress: Progress
    tensors: dict[str, Tensor]
    best: dict[str, Tensor] | None


class Keeper:
    """Writes and reads the resume points of one run folder; the last complete one always stays."""

    def __init__(self, folder: Path):
        self.folder = folder / "resume"
        self._best_file: Path | None = None

    def points(self) -> list[Path]:
        """Complete points, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def save(
        self,
        progress: Progress,
        tensors: dict[str, Tensor],
        best: dict[str, Tensor] | None,
        best_changed: bool,
    ) -> None:
        """Write a point, then remove the ones before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{progress.step:09d}"
        if path.exists():
            return
        older = self.points()

        def fill(folder: Path) -> None:
            fill_file(folder / "state.safetensors", tensor_bytes(tensors))
            if best is not None:
                if best_changed or self._best_file is None:
                    fill_file(folder / "best.safetensors", tensor_bytes(best))
                else:
                    share_file(self._best_file, folder / "best.safetensors")
            fill_file(folder / "state.json", json.dumps(asdict(progress)))

        kept = (
            f"the resume point after step {int(older[-1].name)} is intact" if older else "no resume point yet"
        )
        write_folder(path, fill, kept)
        self._best_file = path / "best.safetensors" if best is not None else None
        for old in older:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> ResumePoint | None:
        """The newest complete point; None where there is none."""
        if self.folder.is_dir():
            remove_leftovers(self.folder)
        points = self.points()
        if not points:
            return None
        path = points[-1]
        try:
            progress = Progress(**json.loads((path / "state.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{path / 'state.json'}: expected a resume point, found none that can be read ({error}); "
                "delete this folder to start from the beginning"
            ) from None
        best = path / "best.safetensors"
        self._best_file = best if best.exists() else None
        return ResumePoint(
            progress, read_tensors(path / "state.safetensors"), read_tensors(best) if best.exists() else None
        )


@dataclass(frozen=True)
class Setup:
    """What a fitting reads, where it goes on from, and who hears of it: `on_epoch` is called after every
    validation, with whether its weights are the best so far."""

    options: TrainingOptions
    train: Source
    val: Source | None
    keeper: Keeper | None
    point: ResumePoint | None
    on_epoch: Callable[[Fitting, bool], None]


def pack_state(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer | None, averaged: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """Weights, moments and averages under one roof."""
    tensors = {f"model/{name}": t for name, t in network.state_dict().items()}
    if optimizer is not None:
        for name, parameter in network.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    for name, tensor in (averaged or {}).items():
        tensors[f"averaged/{name}"] = tensor
    return tensors


def section(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one section, without its prefix."""
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


def restore_optimizer(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put stored moments back. Step counters stay where torch keeps them: on the CPU."""
    parameters = dict(network.named_parameters())
    for path, tensor in section(tensors, "optimizer").items():
        key, name = path.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
