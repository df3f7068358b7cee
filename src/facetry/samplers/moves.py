"""Moves of crystals that keep exp(-E / T) V^a ds dC, and the published one, which does not.

Positions move with the cell fixed, the cell is strained with fractional coordinates fixed:

    X' = X - (η / T) ∂E/∂X + √(2η) ξ                C' = C exp(A),  A = -(η / T) W + √(2η) ξ, symmetric
    ln α = (E - E') / T + ln q(-D | X') - ln q(D | X)        and (a + 3) ln(V' / V) for strains

Both kernels commute with every change of the description: another basis multiplies C from the left, wrapping
adds lattice vectors to X. So crystals may be written in reduced cells at any time without bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.geometry.lattice import inverse, volume
from facetry.geometry.reduction import minkowski_reduce
from facetry.models.base import Evaluation, Landscape

Kind = Literal["positions", "strain", "published"]
_FARTHEST = 50.0  # crystals this many times denser or thinner than expected have no energy


@dataclass(frozen=True)
class State:
    """Where chains are: cells and fractional coordinates, energies and slopes there."""

    lattice: Float[Tensor, "crystals 3 3"]
    frac_coords: Float[Tensor, "atoms 3"]
    at: Evaluation


def evaluated(
    landscape: Landscape,
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "atoms 3"],
    density: float = 0.05,
) -> State:
    """Coordinates with their energies; infinite where a cell or a coordinate is broken, or the density is
    fifty times from `density` (atoms/Å³)."""
    ratio = volume(lattice).abs() * density / landscape.num_atoms
    finite = lattice.isfinite().all(2).all(1)
    owner = torch.repeat_interleave(landscape.num_atoms)
    broken = (~frac_coords.isfinite()).any(1).long()
    finite &= torch.zeros_like(landscape.num_atoms).index_add_(0, owner, broken) == 0
    use = finite & (ratio > 1 / _FARTHEST) & (ratio < _FARTHEST)
    if bool(use.all()):
        return State(lattice, frac_coords, landscape(lattice, frac_coords))
    sound = torch.where(use[:, None, None], lattice, torch.eye(3, dtype=lattice.dtype, device=lattice.device))
    inside = torch.where(use[owner, None], frac_coords, 0.0)
    return State(lattice, frac_coords, landscape(sound, inside, use))


@dataclass(frozen=True)
class Mover:
    """Proposes and accepts. `volume_power` is a of the base measure V^a ds dC; `reference_sign` flips the
    drift in both proposal densities, the sign of the published code, which samples colder than it says."""

    landscape: Landscape
    volume_power: float = 0.0
    reference_sign: bool = False
    density: float = 0.05

    def __call__(
        self,
        state: State,
        kind: Kind,
        step_size: Float[Tensor, " crystals"],
        temperature: Float[Tensor, " crystals"],
        noise_atoms: Float[Tensor, "atoms 3"],
        noise_cell: Float[Tensor, "crystals 9"],
        uniform: Float[Tensor, " crystals"],
    ) -> tuple[State, Float[Tensor, " crystals"]]:
        """The state after one move, and the chance that each proposal had of being accepted. Energies that
        are no numbers are rejected."""
        owner = torch.repeat_interleave(self.landscape.num_atoms)
        drift = step_size / temperature
        sign = -1.0 if self.reference_sign else 1.0
        if kind == "positions":
            move, back, after = self._positions(state, step_size, drift, sign, noise_atoms, owner)
        elif kind == "strain":
            move, back, after = self._strain(state, step_size, drift, sign, noise_cell)
        else:
            move, back, after = self._both(state, step_size, drift, sign, noise_atoms, noise_cell, owner)
        log_ratio = (state.at.energy - after.at.energy) / temperature + (move - back) / (4 * step_size)
        if kind == "strain":
            grown = torch.log(volume(after.lattice).abs() / volume(state.lattice).abs())
            log_ratio = log_ratio + (self.volume_power + 3) * grown
        accepted = torch.log(uniform) < log_ratio
        chance = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0.0).exp()
        return chosen(accepted, after, state, owner), chance

    def _positions(
        self, state: State, step: Tensor, drift: Tensor, sign: float, noise: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """|residual|² of the way there and of the way back, and the proposal."""
        slope = drift[owner, None] * state.at.by_position
        move = (2 * step).sqrt()[owner, None] * noise - slope
        frac = state.frac_coords + torch.einsum("na,nab->nb", move, inverse(state.lattice)[owner])
        after = evaluated(self.landscape, state.lattice, frac, self.density)
        slope_after = drift[owner, None] * after.at.by_position
        there = (move + sign * slope).square().sum(1)
        back = (sign * slope_after - move).square().sum(1)
        totals = torch.zeros((len(step), 2), dtype=move.dtype, device=move.device)
        totals.index_add_(0, owner, torch.stack([there, back], 1))
        return totals[:, 0], totals[:, 1], after

    def _strain(
        self, state: State, step: Tensor, drift: Tensor, sign: float, noise: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        slope = drift[:, None, None] * _symmetric(state.at.by_strain)
        move = (2 * step).sqrt()[:, None, None] * _symmetric(noise.view(-1, 3, 3)) - slope
        after = evaluated(
            self.landscape, state.lattice @ torch.matrix_exp(move), state.frac_coords, self.density
        )
        slope_after = drift[:, None, None] * _symmetric(after.at.by_strain)
        there = (move + sign * slope).square().sum((1, 2))
        back = (sign * slope_after - move).square().sum((1, 2))
        return there, back, after

    def _both(
        self,
        state: State,
        step: Tensor,
        drift: Tensor,
        sign: float,
        noise_atoms: Tensor,
        noise_cell: Tensor,
        owner: Tensor,
    ) -> tuple[Tensor, Tensor, State]:
        """Cartesian positions and cell at once and apart from each other, as published."""
        size = (2 * step).sqrt()
        slope, slope_cell = self._apart(state, owner)
        move = size[owner, None] * noise_atoms - drift[owner, None] * slope
        move_cell = size[:, None, None] * noise_cell.view(-1, 3, 3) - drift[:, None, None] * slope_cell
        cart = torch.einsum("na,nab->nb", state.frac_coords, state.lattice[owner]) + move
        lattice = state.lattice + move_cell
        frac = torch.einsum("na,nab->nb", cart, inverse(lattice)[owner])
        after = evaluated(self.landscape, lattice, frac, self.density)
        slope_after, slope_cell_after = self._apart(after, owner)
        there = (move_cell + sign * drift[:, None, None] * slope_cell).square().sum((1, 2))
        back = (sign * drift[:, None, None] * slope_cell_after - move_cell).square().sum((1, 2))
        there = there.index_add(0, owner, (move + sign * drift[owner, None] * slope).square().sum(1))
        back = back.index_add(0, owner, (sign * drift[owner, None] * slope_after - move).square().sum(1))
        return there, back, after

    def _apart(self, state: State, owner: Tensor) -> tuple[Tensor, Tensor]:
        """∂E/∂X at fixed C and ∂E/∂C at fixed Cartesian X: Cᵀ ∂E/∂C = W - Xᵀ ∂E/∂X."""
        slope = state.at.by_position
        cart = torch.einsum("na,nab->nb", state.frac_coords, state.lattice[owner])
        outer = torch.zeros_like(state.lattice).index_add_(0, owner, cart[:, :, None] * slope[:, None])
        return slope, inverse(state.lattice).transpose(1, 2) @ (state.at.by_strain - outer)


def _symmetric(matrix: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """On symmetric matrices: the part of a slope, and of noise, within them."""
    return (matrix + matrix.transpose(1, 2)) / 2


def chosen(
    accepted: Bool[Tensor, " crystals"], after: State, before: State, owner: Int[Tensor, " atoms"]
) -> State:
    """`after` where accepted, else `before`."""
    cells, atoms = accepted[:, None, None], accepted[owner, None]
    return State(
        torch.where(cells, after.lattice, before.lattice),
        torch.where(atoms, after.frac_coords, before.frac_coords),
        Evaluation(
            torch.where(accepted, after.at.energy, before.at.energy),
            torch.where(atoms, after.at.by_position, before.at.by_position),
            torch.where(cells, after.at.by_strain, before.at.by_strain),
        ),
    )


def reduced_state(landscape: Landscape, state: State) -> State:
    """The same crystals in reduced cells with wrapped atoms. Energies and slopes stay as they are; cells that
    are broken stay too."""
    sound = state.at.energy.isfinite()
    eye = torch.eye(3, dtype=state.lattice.dtype, device=state.lattice.device)
    cells = torch.where(sound[:, None, None], state.lattice, eye)
    _, transform = minkowski_reduce(cells)
    lattice = transform.to(cells.dtype) @ state.lattice
    owner = torch.repeat_interleave(landscape.num_atoms)
    back = torch.linalg.inv(transform.to(cells.dtype)).round()
    frac = torch.einsum("na,nab->nb", state.frac_coords, back[owner])
    wrap = torch.where(sound[owner, None], torch.floor(frac), 0.0)
    changed = (transform != eye.long()).any(2).any(1)
    moved = torch.zeros_like(landscape.num_atoms).index_add_(0, owner, (wrap != 0).any(1).long())
    landscape.forget(changed | (moved > 0))
    return replace(state, lattice=lattice, frac_coords=frac - wrap)
