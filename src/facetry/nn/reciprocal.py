"""Attention to all images of an atom at once, summed in reciprocal space (Taniai 2024, Sec. 3.3).

    Σ_n exp(-|x_j + nL - x_i|²/2σ²) = (2πσ²)^{3/2}/V  Σ_G exp(-σ²|G|²/2) cos(G·(x_j - x_i))

The wider the Gaussian, the fewer G count. The sum over G is one matrix product, because cos(G·(x_j - x_i))
is cos·cos + sin·sin; G and -G are one term. What does not depend on j cancels in the softmax and is not
computed. The number of G grows with the volume, so the cost of a crystal grows with its atoms cubed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.geometry.lattice import reciprocal
from facetry.geometry.ragged import grids, offsets
from facetry.graph.batch import Batch

SMALLEST = 1e-9  # weight of a wave at the end of the sphere, for the narrowest Gaussian
BACKGROUND = 1e-6  # added to every sum, so that logarithms exist
_PART_NUMBERS = 1 << 14  # atoms times waves of the crystals that are padded to one size
_CHUNK_NUMBERS = 1 << 20  # weighted waves that exist at once on the CPU
_CHUNK_NUMBERS_GPU = 1 << 26


@dataclass(frozen=True)
class WavePart:
    """Some crystals of a batch with their atoms and plane waves in rows; shorter rows are filled up.

    `wave` holds cos(G·x) and sin(G·x) of one of G and -G, times √2 where these are two; zero where filled.
    """

    atom: Int[Tensor, "crystals slots"]
    present: Bool[Tensor, "crystals slots"]
    squared: Float[Tensor, "crystals waves"]  # |G|², 1/Å²
    wave: Float[Tensor, "crystals slots 2 waves"]


@dataclass(frozen=True)
class Waves:
    """The plane waves of a batch at its atoms."""

    parts: list[WavePart]
    row: Int[Tensor, " atoms"]  # where the present rows of the parts, one after the other, hold each atom
    published: bool  # waves in a box, a floor by maximum


def wave_cutoff(narrowest: float, smallest: float = SMALLEST) -> float:
    """Radius of the sphere of G in 1/Å: waves beyond have weights below `smallest` for every Gaussian that is
    no narrower than `narrowest` (Å)."""
    return math.sqrt(-2 * math.log(smallest)) / narrowest


def plane_waves(batch: Batch, cutoff: float | None, dtype: torch.dtype) -> Waves:
    """All waves with |G| <= cutoff (1/Å) at all atoms; differentiable in coordinates and lattice.

    A sphere, so that no choice of cell matters: in a supercell the waves that the cell adds cancel. None
    takes the published box instead, two steps along each reciprocal vector.
    """
    numbers, crystal, constant = _indices(batch, cutoff)
    atoms, waves = batch.num_atoms, torch.bincount(crystal, minlength=len(batch))
    first_atom, first_wave = offsets(atoms)[:-1], offsets(waves)[:-1]
    order = torch.argsort(atoms * waves, stable=True)
    piece = torch.div(torch.cumsum((atoms * waves)[order], 0), _PART_NUMBERS, rounding_mode="floor")
    sizes = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    cell = 2 * math.pi * reciprocal(batch.lattice)
    parts = []
    for chosen in order.split(sizes):
        atom, present = _rows(first_atom[chosen], atoms[chosen])
        wave, exists = _rows(first_wave[chosen], waves[chosen])
        index = numbers[wave].to(batch.lattice.dtype)
        squared = torch.bmm(index, cell[chosen]).square().sum(2)
        phase = 2 * math.pi * torch.bmm(batch.frac_coords[atom], index.transpose(1, 2))
        scale = (exists * (2 - constant[wave].to(dtype)).sqrt())[:, None, None] * present[:, :, None, None]
        value = torch.stack([phase.cos().to(dtype), phase.sin().to(dtype)], 2) * scale
        parts.append(WavePart(atom, present, squared.to(dtype), value))
    placed = torch.cat([part.atom[part.present] for part in parts])
    row = torch.empty_like(placed)
    row[placed] = torch.arange(len(placed), device=batch.device)
    return Waves(parts, row, cutoff is None)


def _indices(
    batch: Batch, cutoff: float | None
) -> tuple[Int[Tensor, "waves 3"], Int[Tensor, " waves"], Bool[Tensor, " waves"]]:
    """One of G and -G in reciprocal lattice vectors, its crystal, and whether it is G = 0."""
    lattice = batch.lattice.detach()
    if cutoff is None:
        high, most = torch.full_like(batch.lattice[:, 0], 2).long(), math.inf
    else:
        most = cutoff / (2 * math.pi)
        high = torch.floor(lattice.norm(dim=2) * most + 1e-9).long()
    low = torch.cat([torch.zeros_like(high[:, :1]), -high[:, 1:]], 1)
    crystal, point = grids(low, high)
    a, b, c = point.unbind(1)
    half = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c >= 0))))
    crystal, point = crystal[half], point[half]
    vector = torch.einsum("ga,gab->gb", point.to(lattice.dtype), reciprocal(lattice)[crystal])
    near = torch.nonzero(vector.norm(dim=1) <= most)[:, 0]
    point, crystal = point[near], crystal[near]
    return point, crystal, (point == 0).all(1)


def _rows(
    first: Int[Tensor, " groups"], counts: Int[Tensor, " groups"]
) -> tuple[Int[Tensor, "groups slots"], Bool[Tensor, "groups slots"]]:
    """Padded rows of the items of some groups, the first item where a row is filled up."""
    slot = torch.arange(int(counts.max()), device=counts.device)
    present = slot < counts[:, None]
    return first[:, None] + slot * present, present


class _Sums(torch.autograd.Function):
    """Σ_G exp(-σ²|G|²/2) cos(G·(x_j - x_i)); weighted waves are made again on the way back."""

    @staticmethod
    def forward(ctx, variance: Tensor, squared: Tensor, own: Tensor, wave: Tensor) -> Tensor:
        ctx.save_for_backward(variance, squared, own, wave)
        weighted = (_weights(variance, squared) * own[:, None]).flatten(3).flatten(1, 2)
        return torch.bmm(weighted, wave.flatten(2).transpose(1, 2)).unflatten(1, variance.shape[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        variance, squared, own, wave = ctx.saved_tensors
        _, of_squared, of_own, of_wave = ctx.needs_input_grad
        weight, gradient = _weights(variance, squared), gradient.flatten(1, 2)
        by_weighted = torch.bmm(gradient, wave.flatten(2))
        by_weighted = by_weighted.unflatten(2, wave.shape[2:]).unflatten(1, variance.shape[1:])
        by_own = by_wave = by_squared = None
        if of_own:
            by_own = (by_weighted * weight).sum(1)
        if of_wave:
            weighted = (weight * own[:, None]).flatten(3).flatten(1, 2)
            by_wave = torch.bmm(gradient.transpose(1, 2), weighted).unflatten(2, wave.shape[2:])
        by_exponent = (by_weighted * own[:, None]).sum(3) * weight.squeeze(3)
        by_variance = torch.einsum("chig,cg->chi", by_exponent, squared) * -0.5
        if of_squared:
            by_squared = torch.einsum("chig,chi->cg", by_exponent, variance) * -0.5
        return by_variance, by_squared, by_own, by_wave


def _weights(variance: Tensor, squared: Tensor) -> Tensor:
    """(crystals, heads, rows, 1, waves)"""
    return torch.exp(variance[..., None] * (-0.5 * squared)[:, None, None, :])[:, :, :, None]


def gaussian_sums(
    variance: Float[Tensor, "crystals heads slots"], part: WavePart
) -> Float[Tensor, "crystals heads slots slots"]:
    """Σ_G exp(-σ_i²|G|²/2) cos(G·(x_j - x_i)), i before j; a bounded number of i at once.

    `variance` is σ² in Å². Times (2πσ²)^{3/2}/V these are the sums of Gaussians over all images.
    """
    crystals, heads, _ = variance.shape
    numbers = _CHUNK_NUMBERS if variance.device.type == "cpu" else _CHUNK_NUMBERS_GPU
    chunk = max(1, numbers // (crystals * heads * 2 * part.squared.shape[1]))
    pieces = zip(variance.split(chunk, 2), part.wave.split(chunk, 1), strict=True)
    return torch.cat([_Sums.apply(some, part.squared, own, part.wave) for some, own in pieces], 2)


def fourier_attention(
    q: Float[Tensor, "atoms heads width"],
    k: Float[Tensor, "atoms heads width"],
    v: Float[Tensor, "atoms heads width"],
    variance: Float[Tensor, "atoms heads"],
    waves: Waves,
    presence: Float[Tensor, " atoms"] | None = None,
) -> Float[Tensor, "atoms heads width"]:
    """What every atom gathers from the atoms of its cell; tails of variance σ² (Å²) reach all their images.

    The published floor, max(sum, 1e-6), is an addend here: maxima of a supercell's copies do not add up to
    the maximum of their sum, addends do. `presence` holds logarithms of occupancies, for disordered crystals.
    """
    gathered = []
    for part in waves.parts:
        queries, keys, values = (
            t.index_select(0, part.atom.flatten()).unflatten(0, part.atom.shape).transpose(1, 2)
            for t in (q, k, v)
        )
        own = variance.index_select(0, part.atom.flatten()).unflatten(0, part.atom.shape).transpose(1, 2)
        sums = gaussian_sums(own, part)
        # sums of converged Gaussians are positive; below zero they end only in single precision, far away
        above = sums if waves.published else (sums + BACKGROUND)
        alpha = above.clamp_min(BACKGROUND if waves.published else BACKGROUND / 10).log()
        logits = queries @ keys.transpose(2, 3) / math.sqrt(q.shape[2]) + alpha
        if presence is not None:
            logits = logits + presence[part.atom][:, None, None, :]
        p = torch.softmax(logits.masked_fill(~part.present[:, None, None, :], -torch.inf), 3)
        gathered.append((p @ values).transpose(1, 2)[part.present])
    return torch.cat(gathered).index_select(0, waves.row)
