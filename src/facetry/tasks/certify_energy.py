"""What the certificate of an energy holds besides symmetry: slopes, and the balance of the sampler's moves.

    slopes     dE/dX and dE/dA against differences of energies, and whether they jump where a bond comes
    balance    π(x) q(x -> x') a(x -> x') = π(x') q(x' -> x) a(x' -> x), in logarithms, for drawn moves

The densities are written down here once more, from the energies of the network's own graph, so that no part
of the sampler vouches for another. A move and its way back are both run through it: the noise that leads
back is computed from the slopes at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from facetry.crystal import Crystal
from facetry.evaluation.certificate import Extra
from facetry.evaluation.continuity import SMOOTH, edge_counts, follow, paths
from facetry.evaluation.symmetry import Answer
from facetry.geometry.lattice import volume
from facetry.graph.batch import Batch
from facetry.models.base import EnergyModel, Evaluation, Landscape
from facetry.samplers import Mover, State, evaluated, reduced_state

STEP = 3e-6  # Å or strain, of the differences; curvature jumps at the cutoff, so that more is worse
SLOPES = 1e-6  # of the largest slope
SINGLE = 1e-4  # of the largest slope, in float32
BALANCE = 1e-9  # between two logarithms of a hundred or so
REWRITTEN = 1e-9  # of the largest energy
_SHAKE, _STRAIN = 0.05, 0.02  # Å and strain: drawn crystals are no extrema
_PLANS = (
    ("positions", 1.0, 0.02),
    ("positions", 0.02, 0.001),
    ("strain", 1.0, 0.002),
    ("strain", 0.02, 1e-4),
)


def energy_checks(
    precise: EnergyModel, model: EnergyModel, crystals: Sequence[Crystal], seed: int
) -> list[Extra]:
    """Slopes and balance on some crystals, shaken and strained a little; `precise` is the float64 model."""
    if not crystals:
        return []
    batch = _shaken(Batch.from_crystals(crystals), seed)
    land = precise.landscape(batch.atomic_numbers, batch.num_atoms)
    found = land(batch.lattice, batch.frac_coords)
    many = f"{len(crystals)} crystals, float64"
    extras = [
        Extra("slopes against differences", _slope_error(precise, batch, found, seed), SLOPES, many),
        _slope_jumps(precise, crystals, seed),
    ]
    if model.dtype != torch.float64:
        single = model.landscape(batch.atomic_numbers, batch.num_atoms)(batch.lattice, batch.frac_coords)
        value = _relative(single, found)
        extras.append(Extra("slopes in the model's precision", value, SINGLE, f"{len(crystals)} crystals"))
    for kind, temperature, step in _PLANS:
        value, chance = _imbalance(precise, land, batch, kind, temperature, step, seed)
        words = f"T = {temperature:g}, accepted {100 * chance:.0f} %, {many}"
        extras.append(Extra(f"balance, moves of {kind} at T = {temperature:g}", value, BALANCE, words))
    value, chance = _imbalance(precise, land, batch, "positions", 1.0, 0.02, seed, reference_sign=True)
    words = f"the published sign of the drift, for comparison; accepted {100 * chance:.0f} %"
    extras.append(Extra("balance, published sign", value, BALANCE, words, due=False))
    extras.append(
        Extra("energy of cells written anew", _rewriting_error(precise, land, batch), REWRITTEN, many)
    )
    return extras


def _shaken(batch: Batch, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    strain = torch.randn(batch.lattice.shape, generator=draw, dtype=torch.float64) * _STRAIN
    lattice = batch.lattice @ (torch.eye(3, dtype=torch.float64) + strain)
    away = torch.randn(batch.frac_coords.shape, generator=draw, dtype=torch.float64) * _SHAKE
    inverse = torch.linalg.inv(lattice)[batch.crystal_index]
    return replace(
        batch, lattice=lattice, frac_coords=batch.frac_coords + torch.einsum("na,nab->nb", away, inverse)
    )


def _energies(model: EnergyModel, batch: Batch) -> Float[Tensor, " crystals"]:
    """By the graph, built anew: not by the table of neighbours that the sampler keeps."""
    with torch.no_grad():
        return model(model.graph.build(batch, [""] * len(batch)))


def _slope_error(model: EnergyModel, batch: Batch, found: Evaluation, seed: int) -> float:
    """Slopes along one random direction of all positions, and one of strain, against a central difference;
    relative to the largest of them."""
    draw = torch.Generator().manual_seed(seed + 1)
    away = torch.randn(batch.frac_coords.shape, generator=draw, dtype=torch.float64)
    away = torch.nn.functional.normalize(away, dim=1)
    tensor = torch.randn(batch.lattice.shape, generator=draw, dtype=torch.float64)
    tensor = tensor / tensor.square().sum((1, 2), keepdim=True).sqrt()
    inverse = torch.linalg.inv(batch.lattice)[batch.crystal_index]
    shift = torch.einsum("na,nab->nb", away, inverse)

    def moved(t: float) -> Tensor:
        return _energies(model, replace(batch, frac_coords=batch.frac_coords + t * shift))

    def strained(t: float) -> Tensor:
        return _energies(model, replace(batch, lattice=batch.lattice @ torch.matrix_exp(t * tensor)))

    along = torch.zeros_like(found.energy).index_add(
        0, batch.crystal_index, (found.by_position * away).sum(1)
    )
    strain = (found.by_strain * tensor).sum((1, 2))
    worst = 0.0
    for function, slope in ((moved, along), (strained, strain)):
        difference = (function(STEP) - function(-STEP)) / (2 * STEP)
        worst = max(worst, float((difference - slope).abs().max() / slope.abs().max()))
    return worst


def _relative(one: Evaluation, other: Evaluation) -> float:
    pairs = ((one.by_position, other.by_position), (one.by_strain, other.by_strain))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _slope_jumps(model: EnergyModel, crystals: Sequence[Crystal], seed: int) -> Extra:
    """The largest jump of a slope where a bond comes or goes, relative to the largest slope."""
    largest = 0.0

    def answers(asked: Sequence[Crystal]) -> list[Answer | str]:
        nonlocal largest
        found: list[Answer | str] = []
        for first in range(0, len(asked), 64):
            part = asked[first : first + 64]
            batch = Batch.from_crystals(part)
            at = model.landscape(batch.atomic_numbers, batch.num_atoms)(batch.lattice, batch.frac_coords)
            edges = edge_counts(model.graph(part)).tolist()
            positions = at.by_position.split(batch.num_atoms.tolist())
            for slopes, strain, count in zip(positions, at.by_strain, edges, strict=True):
                vector = torch.cat([slopes.flatten(), strain.flatten()]).cpu().numpy()
                largest = max(largest, float(np.abs(vector).max()))
                found.append(Answer(vector, edges=count))
        return found

    followed = follow(answers, [p for c in crystals for p in paths(c, seed) if p.kind == "crossing"])
    walked = [f for f in followed if not f.problem]
    worst = max(walked, key=lambda f: f.jump, default=None)
    value = 0.0 if worst is None or not largest else worst.jump / largest
    words = f"{len(walked)} crystals" + ("" if worst is None else f", most on {worst.name}")
    return Extra("jump of slopes at the cutoff", value, SMOOTH, words, due=model.continuous)


def _imbalance(
    model: EnergyModel,
    land: Landscape,
    batch: Batch,
    kind: str,
    temperature: float,
    step: float,
    seed: int,
    reference_sign: bool = False,
) -> tuple[float, float]:
    """By how much the logarithms of the two sides differ, and the mean chance of acceptance."""
    draw = torch.Generator().manual_seed(seed + 2)
    count, atoms = len(batch), len(batch.frac_coords)
    one = torch.ones(count, dtype=torch.float64)
    mover = Mover(land, reference_sign=reference_sign, density=model.density)
    everything = one * 1e-300  # a uniform number so small that every move is taken
    noise = torch.randn((atoms, 3), generator=draw, dtype=torch.float64)
    noise_cell = torch.randn((count, 9), generator=draw, dtype=torch.float64)
    before = evaluated(land, batch.lattice, batch.frac_coords, model.density)

    def moved(state: State, *noises: Tensor) -> tuple[State, Tensor]:
        return mover(state, kind, one * step, one * temperature, *noises, everything)  # type: ignore[arg-type]

    after, there = moved(before, noise, noise_cell)
    move = _move(batch, before, after, kind)
    # the noise that leads back: -move = -drift + √(2η) ξ
    back = (-move + step / temperature * _slope(after, kind)) / (2 * step) ** 0.5
    back_noises = (back, noise_cell) if kind == "positions" else (noise, back.flatten(1))
    again, chance = moved(after, *back_noises)
    missed = max(
        float((again.lattice - before.lattice).abs().max()),
        float((again.frac_coords - before.frac_coords).abs().max()),
    )
    sides = []
    for state, way, accepted in ((before, move, there), (after, -move, chance)):
        energy = _energies(model, replace(batch, lattice=state.lattice, frac_coords=state.frac_coords))
        residual = way + step / temperature * _slope(state, kind)
        square = residual.square().sum(1) if kind == "positions" else residual.square().sum((1, 2))
        if kind == "positions":
            square = torch.zeros_like(energy).index_add(0, batch.crystal_index, square)
        # cells are drawn with dC = V³ times the measure that C exp(A) keeps
        measure = 3 * torch.log(volume(state.lattice).abs()) if kind == "strain" else 0.0
        sides.append(
            torch.stack([-energy / temperature + measure, -square / (4 * step), torch.log(accepted)])
        )
    difference = (sides[0].sum(0) - sides[1].sum(0)).abs()
    value = float(difference.max())
    return (value if missed < 1e-9 else float("inf")), float(there.mean())


def _slope(state: State, kind: str) -> Tensor:
    if kind == "positions":
        return state.at.by_position
    return (state.at.by_strain + state.at.by_strain.transpose(1, 2)) / 2


def _move(batch: Batch, before: State, after: State, kind: str) -> Tensor:
    """Displacements in Å, or A of C' = C exp(A)."""
    if kind == "positions":
        away = after.frac_coords - before.frac_coords
        return torch.einsum("na,nab->nb", away, before.lattice[batch.crystal_index])
    stretch = torch.linalg.solve(before.lattice, after.lattice)
    values, vectors = torch.linalg.eigh((stretch + stretch.transpose(1, 2)) / 2)
    return (vectors * values.log()[:, None]) @ vectors.transpose(1, 2)


def _rewriting_error(model: EnergyModel, land: Landscape, batch: Batch) -> float:
    """Reduced cells with wrapped atoms against the cells they replace."""
    before = evaluated(land, batch.lattice, batch.frac_coords, model.density)
    after = reduced_state(land, before)
    energy = _energies(model, replace(batch, lattice=after.lattice, frac_coords=after.frac_coords))
    return float((energy - before.at.energy).abs().max() / before.at.energy.abs().max())
