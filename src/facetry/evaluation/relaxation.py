"""How much of a disturbance a relaxing model undoes (Klipfel et al. 2023, Tables 1 to 3).

    length_gain   mean over crystals and a, b, c of |before - true| - |after - true|, in Å; angles likewise
    length_mae    mean of |after - true|; `noisy_length_mae` that of the input

Zero gain is an answer no better than its input. Of crystals at rest: `largest_change`, the mean over crystals
of the largest relative change of a, b, c, and `left_alone`, the share where it is 1 % at most. Every number
has a 95 % bootstrap interval over crystals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from facetry.evaluation.metrics import RESAMPLES, Estimate, Metric, bootstrap

UNITS = {
    "length_gain": "Å",
    "angle_gain": "°",
    "position_gain": "Å",
    "length_mae": "Å",
    "angle_mae": "°",
    "position_rmsd": "Å",
    "noisy_length_mae": "Å",
    "noisy_angle_mae": "°",
    "noisy_position_rmsd": "Å",
    "largest_change": "%",
    "left_alone": "%",
    "energy_change": "eV/atom",
    "energy_improved": "%",
    "noisy_energy_excess": "eV/atom",
    "energy_excess": "eV/atom",
}


@dataclass(frozen=True)
class Cells:
    """a, b, c (Å), α, β, γ (degrees) of crystals as they are, as the model got them and as it answered; where
    atoms are moved too, their root mean square distance (Å) from their places before and after.

    `distance` (Å) is that of pairs of neighbouring atoms in some of the true crystals, `noisy_ratio` and
    `ratio` what it was multiplied by before and after.
    """

    true: Float[np.ndarray, "crystals 6"]
    noisy: Float[np.ndarray, "crystals 6"]
    answer: Float[np.ndarray, "crystals 6"]
    noisy_rmsd: Float[np.ndarray, " crystals"] | None = None
    rmsd: Float[np.ndarray, " crystals"] | None = None
    distance: Float[np.ndarray, " pairs"] | None = None
    noisy_ratio: Float[np.ndarray, " pairs"] | None = None
    ratio: Float[np.ndarray, " pairs"] | None = None

    @staticmethod
    def concatenate(parts: Sequence[Cells]) -> Cells:
        """Several sets one after the other."""
        columns = zip(*([getattr(p, f.name) for f in fields(Cells)] for p in parts), strict=True)
        return Cells(*(None if c[0] is None else np.concatenate(c) for c in columns))

    @property
    def finite(self) -> Bool[np.ndarray, " crystals"]:
        """Crystals with an answer that is a number."""
        good = np.isfinite(self.answer).all(axis=1)
        return good if self.rmsd is None else good & np.isfinite(self.rmsd)

    def select(self, rows: Shaped[np.ndarray, " chosen"]) -> Cells:
        """The chosen crystals, without pairs of atoms."""
        chosen = [None if v is None else v[rows] for v in (self.noisy_rmsd, self.rmsd)]
        return Cells(self.true[rows], self.noisy[rows], self.answer[rows], *chosen)


def quantities(cells: Cells, task: str) -> dict[str, Float[np.ndarray, " crystals"]]:
    """One number a crystal for every metric of a task, which is its mean over crystals."""
    after, before = np.abs(cells.answer - cells.true), np.abs(cells.noisy - cells.true)
    found = {"length_mae": after[:, :3].mean(axis=1), "angle_mae": after[:, 3:].mean(axis=1)}
    if task == "reconstruct":
        return found
    found |= {"noisy_length_mae": before[:, :3].mean(axis=1), "noisy_angle_mae": before[:, 3:].mean(axis=1)}
    gains = {f"{n}_gain": found[f"noisy_{n}_mae"] - found[f"{n}_mae"] for n in ("length", "angle")}
    if cells.rmsd is not None and cells.noisy_rmsd is not None:
        found |= {"position_rmsd": cells.rmsd, "noisy_position_rmsd": cells.noisy_rmsd}
        gains["position_gain"] = cells.noisy_rmsd - cells.rmsd
    return gains | found


def largest_stretch(
    before: Float[np.ndarray, "*crystals 3 3"], after: Float[np.ndarray, "*crystals 3 3"]
) -> Float[np.ndarray, "*crystals"]:
    """The factor by which the length changes that changes most, up or down, when a lattice becomes another:
    1 for none."""
    stretches = np.linalg.svd(np.linalg.solve(before, after), compute_uv=False)
    return np.asarray(np.maximum(stretches[..., 0], 1 / np.maximum(stretches[..., -1], 1e-300)))


def changes_at_rest(cells: Cells) -> dict[str, Float[np.ndarray, " crystals"]]:
    """How far a model moves crystals that need no moving, in percent; NaN where there is no answer."""
    change = 100.0 * np.abs(cells.answer[:, :3] / cells.noisy[:, :3] - 1.0).max(axis=1)
    finite = np.isfinite(change)
    return {"largest_change": change, "left_alone": np.where(finite, 100.0 * (change <= 1.0), np.nan)}


def means(cells: Cells, task: str) -> dict[str, float]:
    """Every metric of a task, over the crystals with an answer; infinite errors where there is none."""
    kept = cells.select(cells.finite)
    if not len(kept.true):
        return {name: np.inf if "gain" not in name else -np.inf for name in quantities(kept, task)}
    return {name: float(values.mean()) for name, values in quantities(kept, task).items()}


@dataclass(frozen=True)
class RelaxScores:
    """Metrics of a relaxing model on a set of crystals; those without an answer are counted in `failed`."""

    task: str
    count: int
    metrics: dict[str, Estimate]
    failed: int = 0
    cells: Cells | None = field(default=None, repr=False, compare=False)
    names: list[str] = field(default_factory=list, repr=False, compare=False)

    def __getitem__(self, metric: str) -> Estimate:
        return self.metrics[metric]

    def __getattr__(self, name: str) -> float:
        if name.startswith("__") or name == "metrics":
            raise AttributeError(name)
        if name in self.metrics:
            return self.metrics[name].value
        raise AttributeError(f"no metric {name!r}; there are {', '.join(self.metrics)}")

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.count} crystals"]
        width = max(map(len, self.metrics), default=0)
        lines += [f"  {n:{width}s}  {e.text(' ' + UNITS[n])}" for n, e in self.metrics.items()]
        if self.failed:
            lines.append(f"{self.failed} crystals have no answer")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; what is undefined is None."""
        metrics = {
            name: {k: v if np.isfinite(v) else None for k, v in asdict(e).items()} | {"unit": UNITS[name]}
            for name, e in self.metrics.items()
        }
        return {"task": self.task, "count": self.count, "failed": self.failed, "metrics": metrics}


def relax_scores(
    cells: Cells,
    task: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
    extra: dict[str, Float[np.ndarray, " crystals"]] | None = None,
    names: list[str] | None = None,
) -> RelaxScores:
    """Scores with intervals. `extra` are further numbers a crystal, NaN where there is none."""
    good = cells.finite
    found = quantities(cells.select(good), task) | {n: v[good] for n, v in (extra or {}).items()}
    estimates = bootstrap({n: _mean(v) for n, v in found.items()}, int(good.sum()), seed, resamples)
    return RelaxScores(task, int(good.sum()), estimates, int((~good).sum()), cells, list(names or []))


def _mean(values: Float[np.ndarray, " crystals"]) -> Metric:
    there = np.isfinite(values)
    known, counts = np.where(there, values, 0.0), there.astype(np.float64)
    return lambda weights: weights @ known / (weights @ counts)
