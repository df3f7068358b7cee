"""What is kept of chains under way: where they were lowest, frames of the way, how many steps are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from facetry.geometry.ragged import items_in
from facetry.samplers import State

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Lowest:
    """Where the energy of every chain was lowest so far."""

    lattice: Tensor
    frac_coords: Tensor
    energy: Tensor

    @staticmethod
    def of(state: State) -> Lowest:
        """No energy yet: any is lower."""
        nothing = torch.full_like(state.at.energy, torch.inf)
        return Lowest(state.lattice, state.frac_coords, nothing)

    @staticmethod
    def restored(tensors: dict[str, Tensor]) -> Lowest:
        """From what `tensors` gave."""
        return Lowest(*(tensors[f"lowest_{name}"] for name in ("lattice", "frac_coords", "energy")))

    def updated(self, state: State, owner: Int[Tensor, " atoms"]) -> Lowest:
        """With the states that are lower; `owner` is the chain of every atom."""
        better = state.at.energy < self.energy
        return Lowest(
            torch.where(better[:, None, None], state.lattice, self.lattice),
            torch.where(better[owner, None], state.frac_coords, self.frac_coords),
            torch.where(better, state.at.energy, self.energy),
        )

    def tensors(self) -> dict[str, Tensor]:
        """For the store."""
        return {f"lowest_{name}": getattr(self, name) for name in ("lattice", "frac_coords", "energy")}


class Frames:
    """States on the way, every so many steps; positions in single precision would do, but are not rounded."""

    def __init__(self, every: int, tensors: dict[str, Tensor] | None) -> None:
        self.every = every
        self.steps, self.states = ([], []) if tensors is None else self.read(tensors)

    @staticmethod
    def read(tensors: dict[str, Tensor]) -> tuple[list[int], list[tuple[Tensor, Tensor, Tensor]]]:
        """Steps, and lattices, coordinates and energies there."""
        if "way_steps" not in tensors:
            return [], []
        names = ("way_lattice", "way_frac_coords", "way_energy")
        return tensors["way_steps"].tolist(), list(zip(*(tensors[name] for name in names), strict=True))

    def see(self, step: int, state: State, last: bool = False) -> None:
        """Keep the state if it is the step's turn, or the last."""
        if self.every and (last or step % self.every == 0):
            self.steps.append(step)
            self.states.append((state.lattice, state.frac_coords, state.at.energy))

    def keep(self, chosen: Int[Tensor, " kept"], num_atoms: Int[Tensor, " chains"]) -> None:
        """Of every frame the chosen chains only."""
        atoms = items_in(chosen, num_atoms)
        self.states = [(cell[chosen], frac[atoms], energy[chosen]) for cell, frac, energy in self.states]

    def tensors(self) -> dict[str, Tensor]:
        """For the store; empty without frames."""
        if not self.states:
            return {}
        names = ("way_lattice", "way_frac_coords", "way_energy")
        stacked = (torch.stack(parts) for parts in zip(*self.states, strict=True))
        return {"way_steps": torch.tensor(self.steps)} | dict(zip(names, stacked, strict=True))


class StepCounter:
    """Steps of chains, for whoever watches."""

    def __init__(self, total: int, report: Step | None) -> None:
        self.total, self.report = total, report
        self.before = 0

    def reach(self, steps: int, partly: bool = False) -> None:
        """The group at work has done so many steps: all of its own, or `partly`."""
        if self.report is not None:
            self.report(self.before + steps, self.total)
        if not partly:
            self.before += steps
