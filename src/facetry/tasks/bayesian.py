"""Bayesian optimisation of an energy: a Gaussian process says which structure to evaluate next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

from facetry.chemistry import Formula
from facetry.crystal import Crystal
from facetry.evaluation.duplicates import fingerprints
from facetry.tasks.generate import Candidate
from facetry.tasks.search_box import BoxSearch, SearchBox, energies_at

__all__ = ["BayesianSearch", "GaussianProcess", "expected_improvement"]

_PARENTS = 5  # evaluated structures whose surroundings are looked at
_NEAR, _FAR = 0.003, 0.1  # sizes of changes of them, in units of the box
_LENGTHS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)  # of the kernel, between fingerprints (up to √2)
_VOLUMES = (0.05, 0.15, 0.5)  # the same for the logarithm of the volume
_NOISES = (1e-6, 1e-4, 1e-2)


class GaussianProcess:
    """Squared exponentials of fingerprints and log volumes; scales and noise are those of the highest
    likelihood on a small grid. Values are standardised."""

    def __init__(
        self,
        features: Float[np.ndarray, "known size"],
        values: Float[np.ndarray, " known"],
        settings: tuple[float, float, float] | None = None,
    ) -> None:
        self.features, self.values = features, values
        self.mean, self.std = float(values.mean()), float(values.std()) or 1.0
        tried = product(_LENGTHS, _VOLUMES, _NOISES) if settings is None else [settings]
        fits = [(self._fit(each), each) for each in tried]
        (_, self.factor, self.weights), self.settings = max(fits, key=lambda fit: fit[0][0])

    def _fit(self, settings: tuple[float, float, float]) -> tuple[float, Any, np.ndarray]:
        """Log likelihood (but for a constant), Cholesky factor, and its solution for the values."""
        y = (self.values - self.mean) / self.std
        kernel = self._kernel(self.features, self.features, settings)
        kernel[np.diag_indices(len(y))] += settings[2] + 1e-9
        factor = cho_factor(kernel, lower=True)
        weights = cho_solve(factor, y)
        return float(-0.5 * y @ weights - np.log(np.diag(factor[0])).sum()), factor, weights

    def believing(self, features: Float[np.ndarray, " size"], value: float) -> GaussianProcess:
        """With one more value, and the same scales."""
        return GaussianProcess(
            np.concatenate([self.features, features[None]]), np.append(self.values, value), self.settings
        )

    @staticmethod
    def _kernel(a: np.ndarray, b: np.ndarray, settings: tuple[float, float, float]) -> np.ndarray:
        by_shape = np.maximum(2 - 2 * a[:, :-1] @ b[:, :-1].T, 0) / settings[0] ** 2
        by_volume = (a[:, -1:] - b[:, -1]) ** 2 / settings[1] ** 2
        return np.exp(-0.5 * (by_shape + by_volume))

    def __call__(
        self, features: Float[np.ndarray, "asked size"]
    ) -> tuple[Float[np.ndarray, " asked"], Float[np.ndarray, " asked"]]:
        """Mean and standard deviation."""
        across = self._kernel(features, self.features, self.settings)
        solved = solve_triangular(self.factor[0], across.T, lower=True)
        spread = np.sqrt(np.maximum(1 - (solved**2).sum(0), 1e-12))
        return self.mean + self.std * (across @ self.weights), self.std * spread


def expected_improvement(
    mean: Float[np.ndarray, " asked"], spread: Float[np.ndarray, " asked"], best: float
) -> Float[np.ndarray, " asked"]:
    """Mean of max(best - y, 0) for y normal (Jones, Schonlau, Welch 1998)."""
    z = (best - mean) / spread
    return (best - mean) * ndtr(z) + spread * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


class BayesianSearch(BoxSearch):
    """The method `bo`: random structures first; then, batch by batch, those of the highest expected
    improvement among new random ones and changed copies of the best.

    Args:
        energy: what is minimised: a property model or an energy model, the folder or name of one, or an ASE
            calculator.
        evaluations: energies in all.
        initial: of them of random structures.
        batch: evaluated between two fits of the process.
        pool: structures among which a batch is chosen, half of them new.
        closest: least distance of atoms (`facetry.tasks.search_box`).
        batch_size: crystals worked on at once by a model.
        device: where a model computes.

    The process sees structures by their fingerprints (`facetry.evaluation.duplicates`) and volumes, so it
    does not matter how they are written, and energies by ln(1 + excess), so that walls do not matter.
    """

    def __init__(
        self,
        energy: Any,
        evaluations: int = 240,
        initial: int = 40,
        batch: int = 10,
        pool: int = 400,
        closest: float | int = 0.6,
        batch_size: int | None = None,
        device: Any = None,
    ) -> None:
        if not 2 <= initial <= evaluations:
            raise ValueError(f"initial: expected 2 to evaluations ({evaluations}), got {initial}")
        if not 1 <= batch <= pool:
            raise ValueError(f"batch: expected 1 to pool ({pool}), got {batch}")
        super().__init__(energy, closest, batch_size, device)
        self.evaluations, self.initial, self.batch, self.pool = evaluations, initial, batch, pool

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]:
        """All structures that were evaluated, lowest energy first."""
        box = self.box(formula, atoms)
        points, energy = self.optimised(box, seed)
        order = np.argsort(energy, kind="stable")
        order = order[np.isfinite(energy[order])]
        for number, crystal in zip(order, box.crystals(points[order]), strict=True):
            yield Candidate(crystal, float(energy[number]), f"evaluation {number + 1}")

    def optimised(
        self, box: SearchBox, seed: int
    ) -> tuple[Float[np.ndarray, "evaluations size"], Float[np.ndarray, " evaluations"]]:
        """All points that were evaluated, in order, and their energies."""
        rng = np.random.default_rng(seed)
        points = box.starts(self.initial, seed)
        energy = energies_at(box, points, self.energies)
        features = _features(box.crystals(points))
        round_ = 0
        while len(points) < self.evaluations and np.isfinite(energy).any():
            round_ += 1
            pool = self._pool(box, points, energy, rng, seed + 7919 * round_)
            asked = _features(box.crystals(pool))
            wanted = min(self.batch, self.evaluations - len(points), len(pool))
            chosen = _best_of(features, energy, asked, wanted)
            new = energies_at(box, pool[chosen], self.energies)
            points, energy = np.concatenate([points, pool[chosen]]), np.concatenate([energy, new])
            features = np.concatenate([features, asked[chosen]])
        return points, energy

    def _pool(
        self, box: SearchBox, points: np.ndarray, energy: np.ndarray, rng: np.random.Generator, seed: int
    ) -> np.ndarray:
        """New random structures, and the best ones changed a little or more."""
        half = self.pool // 2
        parents = points[np.argsort(energy, kind="stable")[:_PARENTS]]
        changed = parents[rng.integers(len(parents), size=half)]
        size = _NEAR * (_FAR / _NEAR) ** rng.random((half, 1))
        changed = changed + size * rng.normal(size=changed.shape)
        changed = np.where(box.periodic, changed % 1.0, np.clip(changed, 0, 1))
        return np.concatenate([box.starts(self.pool - half, seed), changed[box.allowed(changed)]])


def _features(crystals: Sequence[Crystal]) -> Float[np.ndarray, "crystals size"]:
    """Fingerprints, and last the logarithm of the volume per atom."""
    volumes = np.log([c.volume / len(c) for c in crystals])
    return np.concatenate([fingerprints(crystals), volumes[:, None]], 1)


def _best_of(features: np.ndarray, energy: np.ndarray, asked: np.ndarray, wanted: int) -> list[int]:
    """The structures of the highest expected improvement, one after the other, each taken for what it is
    expected to be when the next one is chosen."""
    finite = np.isfinite(energy)
    known, low = features[finite], energy[finite].min()
    excess = energy[finite] - low
    scale = float(np.median(excess)) or 1.0
    values = np.log1p(excess / scale)
    process = GaussianProcess(known, values)
    chosen: list[int] = []
    for _ in range(wanted):
        mean, spread = process(asked)
        gain = expected_improvement(mean, spread, float(values.min()))
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        if len(chosen) < wanted:
            process = process.believing(asked[chosen[-1]], float(mean[chosen[-1]]))
    return chosen
