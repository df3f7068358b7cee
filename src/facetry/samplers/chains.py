"""Many chains at once: starts, annealing, tempering."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.lattice import plane_spacings, volume
from facetry.geometry.reduction import minkowski_reduce
from facetry.models.base import Evaluation, Landscape
from facetry.samplers.moves import Kind, Mover, State, evaluated, reduced_state
from facetry.samplers.streams import atom_normals, atom_uniforms, normals, uniforms

MEAN_DETERMINANT = 2 * math.sqrt(2 / math.pi)  # of |det| of a 3 x 3 matrix of standard normal numbers
_FLAT = 0.19  # plane spacing in units of V^(1/3) below which a start is drawn again: one in a thousand
_REDUCE = 10  # steps between reductions of the cells
_TARGET = 0.57  # share of accepted proposals that moves farthest (Roberts and Rosenthal 1998)
_ATOMS, _CELL, _ACCEPT, _START, _SWAP = range(5)  # purposes of random numbers


def random_cells(
    seed: int,
    chain: Int[Tensor, " crystals"],
    num_atoms: Int[Tensor, " crystals"],
    density: float = 0.05,
    step: int = 0,
) -> Float[Tensor, "crystals 3 3"]:
    """Cells with entries of one normal law whose mean volume is n / density, in Å."""
    size = (num_atoms / (MEAN_DETERMINANT * density)).pow(1 / 3)
    return size[:, None, None] * normals(seed, chain, step, _CELL, 9).view(-1, 3, 3)


def random_start(
    seed: int, chain: Int[Tensor, " crystals"], num_atoms: Int[Tensor, " crystals"], density: float = 0.05
) -> tuple[Float[Tensor, "crystals 3 3"], Float[Tensor, "atoms 3"]]:
    """Random cells, reduced, and atoms anywhere in them. Very flat cells are drawn again."""
    lattice = random_cells(seed, chain, num_atoms, density)
    flat = torch.ones(len(chain), dtype=torch.bool, device=chain.device)
    for attempt in range(100):
        rows = torch.nonzero(flat)[:, 0]
        drawn = random_cells(seed, chain[rows], num_atoms[rows], density, attempt)
        size = volume(drawn).abs()
        cells = torch.where(
            (size * density > 0.02 * num_atoms[rows])[:, None, None],
            drawn,
            torch.eye(3, dtype=drawn.dtype, device=drawn.device),
        )
        cells, _ = minkowski_reduce(cells)
        lattice[rows] = cells
        bad = (plane_spacings(cells).amin(1) < _FLAT * volume(cells).abs().pow(1 / 3)) | (
            size * density <= 0.02 * num_atoms[rows]
        )
        flat[rows] = bad
        if not bool(bad.any()):
            break
    return lattice, atom_uniforms(seed, chain, num_atoms, 0, _START)


@dataclass(frozen=True)
class Annealing:
    """How a chain cools: `steps` temperatures, log-spaced from `hot` to `cold`.

    `per_atom` gives every crystal the temperature T / n, so that n E, not E, is weighed and crystals of all
    sizes cool alike. Steps of positions start at 0.5 T Å², those of strain at 0.01 T, and are adapted towards
    57 % acceptance (`adapt`). `scheme` "published" moves positions and cell at once, apart from each
    other, reduces at every step and flips the drift in its densities (`facetry.samplers.moves`).
    """

    steps: int = 1000
    hot: float = 1.0
    cold: float = 1e-3
    per_atom: bool = False
    position_step: float = 0.5
    strain_step: float = 0.01
    adapt: bool = True
    volume_power: float = 0.0
    reference_sign: bool = False
    scheme: Literal["exact", "published"] = "exact"
    density: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"annealing: expected steps of at least 1, came {self.steps}")
        if not self.hot >= self.cold > 0:
            raise ValueError(f"annealing: expected hot >= cold > 0, came {self.hot} and {self.cold}")
        if self.scheme not in ("exact", "published"):
            raise ValueError(f"annealing: expected scheme of exact, published, came {self.scheme!r}")

    def temperature(self, step: int) -> float:
        """Of a step from 0; the last one stays."""
        if self.steps == 1:
            return self.cold
        share = min(step, self.steps - 1) / (self.steps - 1)
        return self.hot * (self.cold / self.hot) ** share


class Chains:
    """Chains of crystals, side by side.

    Every chain has a number; its random numbers follow from `seed`, that number and the step, so a chain does
    not depend on the others beyond round-off. `tensors` and `restore` keep chains between processes.
    """

    def __init__(
        self,
        landscape: Landscape,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        *,
        seed: int = 0,
        chain: Int[Tensor, " crystals"] | None = None,
        plan: Annealing | None = None,
    ) -> None:
        self.landscape, self.seed = landscape, seed
        self.plan = Annealing() if plan is None else plan
        count = len(lattice)
        self.chain = torch.arange(count, device=lattice.device) if chain is None else chain
        published = self.plan.scheme == "published"
        self.mover = Mover(
            landscape, self.plan.volume_power, self.plan.reference_sign or published, self.plan.density
        )
        self.step = 0
        self.scale = torch.ones((count, 2), dtype=torch.float64, device=lattice.device)  # of steps
        self.accepted = torch.zeros((count, 2), dtype=torch.float64, device=lattice.device)  # mean chances
        self.state = evaluated(landscape, lattice, frac_coords, self.plan.density)
        self.state = reduced_state(landscape, self.state)

    def run(self, steps: int | None = None) -> State:
        """The annealing, or so many steps of it; steps beyond its end stay at the last temperature."""
        for _ in range(self.plan.steps - self.step if steps is None else steps):
            self.advance(self.plan.temperature(self.step))
        return self.state

    def advance(self, temperature: float | Float[Tensor, " crystals"]) -> None:
        """One step of every chain: positions and strain take turns."""
        plan, numbers = self.plan, self.landscape.num_atoms
        bare = torch.as_tensor(temperature, dtype=torch.float64, device=numbers.device).expand(len(numbers))
        effective = bare / numbers if plan.per_atom else bare
        published = plan.scheme == "published"
        turn = 0 if published or self.step % 2 == 0 else 1
        kind: Kind = "published" if published else ("positions", "strain")[turn]
        base = (plan.position_step, plan.strain_step)[turn]
        size = base * bare * (self.scale[:, turn] if plan.adapt and not published else 1.0)
        self.state, chance = self.mover(
            self.state,
            kind,
            size,
            effective,
            atom_normals(self.seed, self.chain, numbers, self.step, _ATOMS),
            normals(self.seed, self.chain, self.step, _CELL, 9),
            uniforms(self.seed, self.chain, self.step, _ACCEPT, 1)[:, 0],
        )
        if plan.adapt and not published:
            # slower and slower, so that the kernel settles
            rate = max(0.5 / (1 + self.step / 50) ** 0.6, 0.05)
            scale = self.scale[:, turn] * torch.exp(rate * (chance - _TARGET))
            self.scale[:, turn] = scale.clamp(1e-4, 20.0)
        self.accepted[:, turn] += 0.05 * (chance - self.accepted[:, turn])
        self.step += 1
        if published or self.step % _REDUCE == 0:
            self.state = reduced_state(self.landscape, self.state)

    def tensors(self) -> dict[str, Tensor]:
        """All that a later `restore` needs. These chains search their neighbours anew, as restored ones do:
        the order of sums is then the same, and so is every later digit."""
        self.landscape.forget(torch.ones(len(self.chain), dtype=torch.bool, device=self.chain.device))
        return {
            "lattice": self.state.lattice,
            "frac_coords": self.state.frac_coords,
            "energy": self.state.at.energy,
            "by_position": self.state.at.by_position,
            "by_strain": self.state.at.by_strain,
            "scale": self.scale,
            "accepted": self.accepted,
            "chain": self.chain,
            "step": torch.tensor(self.step),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave, as if never stopped."""
        self.landscape.forget(torch.ones(len(self.chain), dtype=torch.bool, device=self.chain.device))
        self.scale, self.accepted = tensors["scale"].clone(), tensors["accepted"].clone()
        self.chain, self.step = tensors["chain"].clone(), int(tensors["step"])
        at = Evaluation(tensors["energy"], tensors["by_position"], tensors["by_strain"])
        self.state = State(tensors["lattice"], tensors["frac_coords"], at)


class Tempering:
    """Chains of the same atoms at a ladder of temperatures that trade places.

    Crystals come in groups of as many as the ladder has rungs, one after the other. Every ten steps
    neighbours on the ladder swap temperatures with probability min(1, exp((β_i - β_j)(E_i - E_j))), which
    keeps the law of every rung.
    """

    def __init__(self, chains: Chains, ladder: Float[Tensor, " rungs"], every: int = 10) -> None:
        rungs, count = len(ladder), len(chains.chain)
        if rungs < 2 or count % rungs:
            raise ValueError(f"tempering: expected groups of {max(rungs, 2)} or more chains, came {count}")
        self.chains, self.every = chains, every
        self.ladder = ladder.double().to(chains.chain.device)
        self.rung = torch.arange(rungs, device=chains.chain.device).repeat(count // rungs)
        self.swaps = torch.zeros(rungs - 1, dtype=torch.float64)  # mean chances between rungs
        self.rounds = 0

    def run(self, steps: int) -> None:
        """So many steps of every chain, with swaps in between."""
        for _ in range(steps):
            self.chains.advance(self.ladder[self.rung])
            if self.chains.step % self.every == 0:
                self._swap()

    def _swap(self) -> None:
        chains, rungs = self.chains, len(self.ladder)
        order = torch.argsort(self.rung.view(-1, rungs), 1)  # which chain of a group is on which rung
        order = order + torch.arange(len(order), device=order.device)[:, None] * rungs
        first = self.rounds % 2
        low, high = order[:, first : rungs - 1 : 2], order[:, first + 1 : rungs : 2]
        self.rounds += 1
        weight = chains.landscape.num_atoms if chains.plan.per_atom else torch.ones_like(self.rung)
        beta = weight / self.ladder[self.rung]
        energy = chains.state.at.energy
        log_ratio = (beta[low] - beta[high]) * (energy[low] - energy[high])
        uniform = uniforms(chains.seed, chains.chain, chains.step, _SWAP, 1)[:, 0]
        swap = torch.log(uniform[low]) < log_ratio
        chance = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp().mean(0).cpu()
        self.swaps[first::2] += 0.1 * (chance - self.swaps[first::2])
        a, b = low[swap], high[swap]
        for values in (self.rung, chains.scale, chains.accepted):
            values[a], values[b] = values[b], values[a].clone()
