"""Radial and angular bases: numbers to smooth vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """exp(-γ (x - μ_b)²) on equally spaced centres from `low` to `high`, both included.

    γ is one over the spacing, not over its square: the convention of ComFormer, Matformer and ALIGNN,
    with Gaussians far wider than their spacing (comformer specification §2.4).
    """

    def __init__(self, low: float, high: float, size: int) -> None:
        super().__init__()
        if size < 2 or not high > low:
            raise ValueError(f"Gaussian basis: expected low < high and size >= 2, came {low}, {high}, {size}")
        self.gamma = (size - 1) / (high - low)
        # no buffer: MPS could not hold it, and a model that was once float32 would keep rounded centres
        self.centers = torch.linspace(low, high, size, dtype=torch.float64)

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items size"]:
        difference = x[:, None] - self.centers.to(x.dtype).to(x.device)
        return torch.exp(-self.gamma * difference * difference)


class ScalarEmbedding(nn.Module):
    """softplus(Linear(basis(x))): a length or a cosine as a vector of channels."""

    def __init__(self, basis: GaussianBasis, channels: int) -> None:
        super().__init__()
        self.basis = basis
        self.linear = nn.Linear(len(basis.centers), channels)

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items channels"]:
        # at the network's precision, but never less than float32: γ (x - μ)² has few digits left in bfloat16
        weight = self.linear.weight.dtype
        basis = self.basis(x.to(torch.promote_types(weight, torch.float32)))
        return nn.functional.softplus(self.linear(basis.to(weight)))
