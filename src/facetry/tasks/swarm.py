"""Particle swarm optimisation of an energy over cells and positions (Kennedy and Eberhart 1995)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from facetry.chemistry import Formula
from facetry.tasks.generate import Candidate
from facetry.tasks.search_box import BoxSearch, SearchBox, energies_at

__all__ = ["ParticleSwarm"]


class ParticleSwarm(BoxSearch):
    """The method `pso`: as many swarms as structures are wanted, moved and evaluated side by side; each gives
    the best point that one of its particles has seen.

    Args:
        energy: what is minimised: a property model or an energy model, the folder or name of one, or an ASE
            calculator.
        particles: in a swarm.
        generations: moves of every particle.
        inertia: share of its velocity v that a particle keeps; the defaults of both are Clerc's (2002), for
            which swarms settle.
        pull: v ← inertia v + pull u (best of its own - x) + pull u' (best of the swarm - x), with uniform u.
        closest: least distance of atoms (`facetry.tasks.search_box`).
        batch_size: crystals worked on at once by a model.
        device: where a model computes.

    Positions are periodic: pulls go the shorter way around. Lattice parameters stop at the border of the box.
    """

    def __init__(
        self,
        energy: Any,
        particles: int = 16,
        generations: int = 50,
        inertia: float | int = 0.7298,
        pull: float | int = 1.4962,
        closest: float | int = 0.6,
        batch_size: int | None = None,
        device: Any = None,
    ) -> None:
        for name, value, least in (("particles", particles, 2), ("generations", generations, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not (0 <= inertia < 1 and 0 < pull <= 2.5):
            raise ValueError(
                f"inertia, pull: expected 0 to 1 and 0 to 2.5, where swarms settle, got {inertia} and {pull}"
            )
        super().__init__(energy, closest, batch_size, device)
        self.particles, self.generations = particles, generations
        self.inertia, self.pull = float(inertia), float(pull)

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]:
        """The best point of each of `count` swarms, lowest energy first."""
        box = self.box(formula, atoms)
        points, energy = self.optimised(box, count, seed)
        for number in np.argsort(energy, kind="stable"):
            if np.isfinite(energy[number]):
                (crystal,) = box.crystals(points[number][None])
                yield Candidate(crystal, float(energy[number]), f"swarm {number + 1}")

    def optimised(
        self, box: SearchBox, swarms: int, seed: int
    ) -> tuple[Float[np.ndarray, "swarms size"], Float[np.ndarray, " swarms"]]:
        """Best points and their energies."""
        rng = np.random.default_rng(seed)
        shape = (swarms, self.particles, box.size)
        x = box.starts(swarms * self.particles, seed).reshape(shape)
        v = 0.1 * rng.normal(size=shape)
        own, own_energy = x.copy(), self._at(box, x)
        for _ in range(self.generations):
            best = np.take_along_axis(own, own_energy.argmin(1)[:, None, None], 1)
            pulls = [rng.random(shape) * self._way(box, x, goal) for goal in (own, best)]
            v = self.inertia * v + self.pull * sum(pulls)
            v = np.clip(v, -0.5, 0.5)
            x = x + v
            outside = ~box.periodic & ((x < 0) | (x > 1))
            x = np.where(box.periodic, x % 1.0, np.clip(x, 0, 1))
            v = np.where(outside, 0.0, v)
            energy = self._at(box, x)
            better = energy < own_energy
            own_energy = np.where(better, energy, own_energy)
            own = np.where(better[:, :, None], x, own)
        winner = own_energy.argmin(1)
        return own[np.arange(swarms), winner], own_energy[np.arange(swarms), winner]

    def _at(self, box: SearchBox, x: np.ndarray) -> np.ndarray:
        return energies_at(box, x.reshape(-1, box.size), self.energies).reshape(x.shape[:2])

    @staticmethod
    def _way(box: SearchBox, x: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """From x to the goal, the shorter way where that is a question."""
        way = goal - x
        return np.where(box.periodic, way - np.round(way), way)
