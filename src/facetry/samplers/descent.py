"""From where a chain is down to the nearest minimum of the energy, many crystals at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from facetry.geometry.lattice import inverse, volume
from facetry.models.base import Landscape
from facetry.samplers.moves import State, chosen, evaluated, reduced_state

_FIRST, _LARGEST = 0.02, 0.2  # Å that the atom which moves farthest moves, in the first step and ever
_REDUCE = 10  # steps between reductions of the cells


def descended(landscape: Landscape, state: State, steps: int, density: float = 0.05) -> State:
    """After so many steps downhill in positions and strain at once; no energy rises.

    Steps have the length of Barzilai and Borwein (1988), |Δx·Δg| / |Δg|², of each crystal. One that would
    raise the energy is not taken, and the next is a third as long. A strain A counts as a displacement of
    √n d A, with d = (V / n)^(1/3).
    """
    owner = torch.repeat_interleave(landscape.num_atoms)
    spacing = (volume(state.lattice).abs() / landscape.num_atoms).pow(1 / 3)
    worth = spacing * landscape.num_atoms.sqrt()  # Å of displacement that a strain of 1 is worth
    pull, stress = _slopes(state, worth)
    length = _FIRST / _farthest(pull, stress / worth[:, None, None] * spacing[:, None, None], owner)
    for step in range(steps):
        farthest = _farthest(pull, stress / worth[:, None, None] * spacing[:, None, None], owner)
        rate = torch.minimum(length, _LARGEST / farthest)
        move = -rate[owner, None] * pull
        strain = -rate[:, None, None] * stress  # in Å, as `worth` has it
        lattice = state.lattice @ torch.matrix_exp(strain / worth[:, None, None])
        frac = state.frac_coords + torch.einsum("na,nab->nb", move, inverse(state.lattice)[owner])
        after = evaluated(landscape, lattice, frac, density)
        better = after.at.energy < state.at.energy
        pull_after, stress_after = _slopes(after, worth)
        by_pull, by_stress = pull_after - pull, stress_after - stress
        along = _dots(move, by_pull, strain, by_stress, owner)
        bent = _dots(by_pull, by_pull, by_stress, by_stress, owner)
        longer = along.abs() / bent
        longer = torch.where(longer.isfinite() & (longer > 0), longer, rate)
        length = torch.where(better, torch.minimum(longer, 10 * rate), rate / 3)
        state = chosen(better, after, state, owner)
        pull = torch.where(better[owner, None], pull_after, pull)
        stress = torch.where(better[:, None, None], stress_after, stress)
        if (step + 1) % _REDUCE == 0:
            state = reduced_state(landscape, state)
    return reduced_state(landscape, state)


def _slopes(
    state: State, worth: Float[Tensor, " crystals"]
) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 3 3"]]:
    """By positions, and by symmetric strain in Å."""
    by_strain = state.at.by_strain
    return state.at.by_position, (by_strain + by_strain.transpose(1, 2)) / (2 * worth[:, None, None])


def _farthest(pull: Tensor, stretch: Tensor, owner: Tensor) -> Float[Tensor, " crystals"]:
    """The largest displacement of an atom, or of a neighbour by the strain."""
    longest = torch.zeros(len(stretch), dtype=pull.dtype, device=pull.device)
    longest.scatter_reduce_(0, owner, pull.norm(dim=1), "amax")
    return torch.maximum(longest, stretch.flatten(1).norm(dim=1)).clamp(min=1e-12)


def _dots(a: Tensor, b: Tensor, c: Tensor, d: Tensor, owner: Tensor) -> Float[Tensor, " crystals"]:
    return (c * d).sum((1, 2)).index_add(0, owner, (a * b).sum(1))
