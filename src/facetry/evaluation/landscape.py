"""Is an energy lowest where crystals are? Noise of growing size, and cells of other sizes, around known ones.

ContinuouSP, arXiv 2502.02026, Figure 2: energies of displaced crystals against the size of the displacement
should rise from where no atom has moved, those of scaled ones from the true volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from facetry.crystal import Crystal
from facetry.evaluation.metrics import RESAMPLES, Estimate, bootstrap
from facetry.models.base import EnergyModel

__all__ = ["FACTORS", "Displacements", "EnergyScores", "displacements", "energy_scores", "scaled_energies"]

FACTORS = 10.0 ** np.linspace(-0.5, 0.5, 41)
"""By which lengths are scaled."""
UNITS = {"energy": "", "noise_gap": "", "noise_raised": "%", "rise": "", "scale": "", "scale_error": "%"}
SHOWN = 5
_DRAWS = 1000  # displacements of every crystal that is shown
_SIGMA = 0.1  # Å, of each coordinate
_NOISE = 0.3  # Å, of the scores
_LADDER = 24  # displacements of every crystal that is scored, of growing size up to _NOISE
_AT_ONCE = 512


@dataclass(frozen=True)
class Displacements:
    """What Gaussian displacements do: for every crystal and draw how far atoms moved, the root of the sum of
    squares in Å, and by how much the energy rose. `atoms` says which: "one" of each crystal, or "all"."""

    names: list[str]
    atoms: str
    distance: Float[np.ndarray, "crystals draws"]
    rise: Float[np.ndarray, "crystals draws"]


@dataclass(frozen=True)
class EnergyScores:
    """How an energy behaves around crystals; each metric is a mean over them with a 95 % interval.

    `energy` of the crystals; `noise_raised`, how often noise of 0.3 Å raises it, in %, and `noise_gap` by how
    much; `rise`, Spearman's correlation of energy and size of displacement up to there; `scale`, the length
    of the cell of lowest energy over the true one, and `scale_error`, |scale - 1| in %. Besides the curves of
    a few.
    """

    count: int
    metrics: dict[str, Estimate]
    failed: int = 0
    one: Displacements | None = field(default=None, repr=False, compare=False)
    all: Displacements | None = field(default=None, repr=False, compare=False)
    scaled: Float[np.ndarray, "crystals factors"] | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, metric: str) -> Estimate:
        return self.metrics[metric]

    def __str__(self) -> str:
        width = max(map(len, self.metrics))
        lines = [f"energy: {self.count} crystals"]
        return "\n".join(lines + [f"  {n:{width}s}  {e.text(_unit(n))}" for n, e in self.metrics.items()])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; what is undefined is None."""
        metrics = {
            name: {k: v if np.isfinite(v) else None for k, v in asdict(e).items()} | {"unit": UNITS[name]}
            for name, e in self.metrics.items()
        }
        return {"task": "energy", "count": self.count, "failed": self.failed, "metrics": metrics}


def _unit(name: str) -> str:
    return f" {UNITS[name]}" if UNITS[name] else ""


def _energies(
    model: EnergyModel,
    crystals: Sequence[Crystal],
    lattices: Float[np.ndarray, "crystals variants 3 3"],
    coords: Sequence[np.ndarray],  # variants x atoms x 3, for each crystal
) -> Float[np.ndarray, "crystals variants"]:
    """Of variants of crystals: other cells, other fractional coordinates."""
    variants = lattices.shape[1]
    found = []
    for start in range(0, len(crystals), max(_AT_ONCE // variants, 1)):
        few = crystals[start : start + max(_AT_ONCE // variants, 1)]
        stop = start + len(few)
        atoms = torch.tensor([len(c) for c in few for _ in range(variants)], device=model.device)
        numbers = np.concatenate([np.tile(c.atomic_numbers, variants) for c in few])
        cells = torch.from_numpy(lattices[start:stop].reshape(-1, 3, 3)).to(model.device)
        frac = torch.from_numpy(np.concatenate([x.reshape(-1, 3) for x in coords[start:stop]])).to(
            model.device
        )
        land = model.landscape(torch.from_numpy(numbers).long().to(model.device), atoms)
        with torch.no_grad():
            found.append(land(cells, frac).energy.cpu().numpy().reshape(-1, variants))
    return np.concatenate([np.zeros((0, variants)), *found])


def displacements(
    model: EnergyModel,
    crystals: Sequence[Crystal],
    atoms: str = "one",
    count: int = _DRAWS,
    sigma: float = _SIGMA,
    seed: int = 0,
) -> Displacements:
    """Energies of crystals in which one random atom, or all atoms, are displaced `count` times, each
    coordinate by normal numbers of deviation `sigma` in Å (0.1 is that of the paper)."""
    if atoms not in ("one", "all"):
        raise ValueError(f"atoms: expected 'one' or 'all', got {atoms!r}")
    rng = np.random.default_rng(seed)
    coords, distance = [], []
    for crystal in crystals:
        move = sigma * rng.normal(size=(count, len(crystal), 3))
        if atoms == "one":
            move[:, np.arange(len(crystal)) != rng.integers(len(crystal))] = 0.0
        distance.append(np.sqrt((move**2).sum((1, 2))))
        there = crystal.frac_coords + move @ np.linalg.inv(crystal.lattice)
        coords.append(np.concatenate([crystal.frac_coords[None], there]))
    lattices = np.stack([np.tile(c.lattice, (count + 1, 1, 1)) for c in crystals])
    energy = _energies(model, crystals, lattices, coords)
    names = [c.name or c.formula for c in crystals]
    return Displacements(names, atoms, np.array(distance), energy[:, 1:] - energy[:, :1])


def scaled_energies(model: EnergyModel, crystals: Sequence[Crystal]) -> Float[np.ndarray, "crystals factors"]:
    """Energies of crystals whose cells are scaled by `FACTORS` in all directions alike, atoms with them."""
    lattices = np.stack([FACTORS[:, None, None] * c.lattice for c in crystals])
    coords = [np.tile(c.frac_coords, (len(FACTORS), 1, 1)) for c in crystals]
    return _energies(model, crystals, lattices, coords)


def energy_scores(
    model: EnergyModel, crystals: Sequence[Crystal], seed: int = 0, resamples: int = RESAMPLES
) -> EnergyScores:
    """Scores over all crystals, and curves of five of them, drawn at random."""
    rng = np.random.default_rng(seed)
    size = np.linspace(0.0, _NOISE, _LADDER + 1)
    coords, distance = [], []
    for crystal in crystals:
        move = size[:, None, None] * rng.normal(size=(_LADDER + 1, len(crystal), 3))
        distance.append(np.sqrt((move**2).sum((1, 2))))
        coords.append(crystal.frac_coords + move @ np.linalg.inv(crystal.lattice))
    lattices = np.stack([np.tile(c.lattice, (_LADDER + 1, 1, 1)) for c in crystals])
    energy = _energies(model, crystals, lattices, coords)
    scaled = scaled_energies(model, crystals)
    gap = energy[:, -1] - energy[:, 0]
    best = lowest_factor(scaled)
    values = {
        "energy": energy[:, 0],
        "noise_gap": gap,
        "noise_raised": 100.0 * (gap > 0),
        "rise": _spearman(np.array(distance), energy),
        "scale": best,
        "scale_error": 100.0 * np.abs(best - 1),
    }
    metrics = {name: (lambda w, v=value: (w @ v) / w.sum(-1)) for name, value in values.items()}
    shown = [crystals[i] for i in np.sort(rng.permutation(len(crystals))[:SHOWN])]
    return EnergyScores(
        len(crystals),
        bootstrap(metrics, len(crystals), seed, resamples),
        one=displacements(model, shown, "one", seed=seed),
        all=displacements(model, shown, "all", seed=seed),
        scaled=scaled_energies(model, shown),
    )


def lowest_factor(scaled: Float[np.ndarray, "crystals factors"]) -> Float[np.ndarray, " crystals"]:
    """Where the energy is lowest: the vertex of the parabola through the lowest point and its neighbours,
    over the logarithm of the factor."""
    log = np.log(FACTORS)
    at = scaled.argmin(1).clip(1, len(FACTORS) - 2)
    rows = np.arange(len(scaled))
    left, middle, right = (scaled[rows, at + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.exp(log[at] + np.clip(shift, -1, 1) * (log[1] - log[0]))


def _spearman(
    a: Float[np.ndarray, "crystals items"], b: Float[np.ndarray, "crystals items"]
) -> Float[np.ndarray, " crystals"]:
    a, b = (rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)).clip(1e-300)
