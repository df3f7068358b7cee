"""Random numbers that follow from seed, chain and step alone, whatever else is in the batch.

Counters are hashed (the finaliser of SplitMix64; Steele, Lea, Flood 2014), so no state is kept: a chain that
is resumed, or put into another batch, goes on with the numbers it would have had.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_STEP = 0x632BE59BD9B4E019


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniforms(
    seed: int, chain: Int[Tensor, " items"], step: int, purpose: int, width: int
) -> Float[Tensor, "items width"]:
    """Between 0 and 1, both excluded, for chain numbers, a step and a purpose (0 to 15)."""
    x = _mixed(chain.long() * _GOLDEN + _mixed(torch.tensor([seed], device=chain.device) * _GOLDEN + 1))
    x = _mixed(x + torch.tensor([step * 16 + purpose + 1], device=chain.device) * _STEP)
    items = torch.arange(1, width + 1, device=chain.device) * _GOLDEN
    return (_shifted(_mixed(x[:, None] + items), 11).double() + 0.5) * 2.0**-53


def normals(
    seed: int, chain: Int[Tensor, " items"], step: int, purpose: int, width: int
) -> Float[Tensor, "items width"]:
    """Of mean 0 and variance 1."""
    return torch.special.ndtri(uniforms(seed, chain, step, purpose, width))


def atom_uniforms(
    seed: int,
    chain: Int[Tensor, " crystals"],
    num_atoms: Int[Tensor, " crystals"],
    step: int,
    purpose: int,
) -> Float[Tensor, "atoms 3"]:
    """Three for each atom, by its place in its crystal."""
    most = int(num_atoms.max()) if len(num_atoms) else 0
    inside = torch.arange(most, device=chain.device) < num_atoms[:, None]
    return uniforms(seed, chain, step, purpose, 3 * most).view(-1, most, 3)[inside]


def atom_normals(
    seed: int,
    chain: Int[Tensor, " crystals"],
    num_atoms: Int[Tensor, " crystals"],
    step: int,
    purpose: int,
) -> Float[Tensor, "atoms 3"]:
    """Three of mean 0 and variance 1 for each atom, by its place in its crystal."""
    return torch.special.ndtri(atom_uniforms(seed, chain, num_atoms, step, purpose))
