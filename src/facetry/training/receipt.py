"""The receipt of a run: what was done, with what, on what, and what came out."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facetry import __version__


def command_line() -> str:
    """The command that started this process, as one would type it; paths are written from the working folder
    on, those outside of it by their last part: where a home lies is nobody's business."""
    program = Path(sys.argv[0]).name or "python"
    arguments = [_without_home(argument) for argument in sys.argv[1:]]
    return shlex.join(["facetry" if program == "__main__.py" else program, *arguments])


def _without_home(argument: str) -> str:
    """`argument`, or the value in `--option=value`, shortened where it is an absolute path."""
    option, sign, value = argument.rpartition("=")
    if not Path(value).is_absolute():
        return argument
    path, here = Path(value), Path.cwd()
    shorter = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
    return f"{option}{sign}{shorter}"


def cpu_name() -> str:
    """As the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def hardware(device: torch.device | None = None, devices: int = 1, nodes: int = 1) -> dict[str, Any]:
    """The machine, and the accelerator in use."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if device is None else device.type,
        "devices": devices,
        "nodes": nodes,
    }
    if device is not None and device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def software() -> dict[str, str]:
    """Versions that decide numbers."""
    import lightning

    return {
        "facetry": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def commit() -> dict[str, Any] | None:
    """Commit of the source tree that the package runs from; None where it was installed without one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # a tree that is not ours
        return None
    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return {"commit": head, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}


def shortened(recipe: Any, complete: bool, epochs_done: int, steps_done: int = 0) -> list[str]:
    """In what the run falls short of the published one; empty where it does not."""
    reasons = []
    full = recipe.training.published_epochs
    if full is not None and epochs_done < full:
        reasons.append(f"{epochs_done} of {full} published epochs")
    full = recipe.training.published_steps
    if full is not None and steps_done < full:
        reasons.append(f"{steps_done} of {full} published steps")
    if recipe.data.limit is not None:
        reasons.append(f"data limited to {recipe.data.limit}")
    elif not complete:
        reasons.append("the data set is incomplete")
    return reasons
