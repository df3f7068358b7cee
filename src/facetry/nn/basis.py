"""Radial and angular bases: numbers to smooth vectors."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def distinct(
    x: Float[Tensor, "*shape"], dtype: torch.dtype
) -> tuple[Float[Tensor, " values"], Int[Tensor, "*shape"]]:
    """The distinct values of `x` and where each entry finds its own.

    Crystals repeat the same few lengths and cosines; embedding each once halves the work of a step. Values
    nearer than what the network's precision can tell apart are one. Where gradients flow through the
    geometry every entry stays its own.
    """
    if x.requires_grad:
        flat = x.reshape(-1)
        return flat, torch.arange(len(flat), device=x.device).view(x.shape)
    quantum = 1e-13 if dtype == torch.float64 else 1e-8
    key, inverse = torch.unique(torch.round(x / quantum), return_inverse=True)
    return key * quantum, inverse


class GaussianBasis(nn.Module):
    """exp(-γ (x - μ_b)²) on equally spaced centres from `low` to `high`, both included.

    γ is one over the square of `width`: a Gaussian has fallen to 1/e at that distance from its centre.
    Without a width γ is one over the spacing, not over its square: the convention of ComFormer, Matformer
    and ALIGNN, with Gaussians far wider than their spacing (comformer specification §2.4).
    """

    def __init__(self, low: float, high: float, size: int, width: float | int | None = None) -> None:
        super().__init__()
        if size < 2 or not high > low:
            raise ValueError(f"Gaussian basis: expected low < high and size >= 2, came {low}, {high}, {size}")
        if width is not None and not width > 0:
            raise ValueError(f"Gaussian basis: expected a width above 0, came {width}")
        self.gamma = (size - 1) / (high - low) if width is None else float(width) ** -2
        # no buffer: MPS could not hold it, and a model that was once float32 would keep rounded centres
        self.centers = torch.linspace(low, high, size, dtype=torch.float64)

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items size"]:
        difference = x[:, None] - self.centers.to(x.dtype).to(x.device)
        return torch.exp(-self.gamma * difference * difference)


def shifted_softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ln(1 + eˣ) - ln 2, zero at zero: the activation of SchNet and MEGNet.

    The difference is taken in float32 at least: bfloat16 would leave two digits of it near zero.
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return (nn.functional.softplus(exact) - math.log(2.0)).to(x.dtype)


def at_precision(
    basis: GaussianBasis, x: Float[Tensor, " items"], dtype: torch.dtype
) -> Float[Tensor, "items basis"]:
    """The basis in the network's precision, but made in float32 at least: γ (x - μ)² has few digits left in
    bfloat16."""
    return basis(x.to(torch.promote_types(dtype, torch.float32))).to(dtype)


class ScalarEmbedding(nn.Module):
    """softplus(Linear(basis(x))): a length or a cosine as a vector of channels."""

    def __init__(self, basis: GaussianBasis, channels: int) -> None:
        super().__init__()
        self.basis = basis
        self.linear = nn.Linear(len(basis.centers), channels)

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items channels"]:
        return nn.functional.softplus(self.linear(at_precision(self.basis, x, self.linear.weight.dtype)))


class LearnedGaussians(nn.Module):
    """exp(-(x - μ_k)² / δ) with centres μ_k that start at k δ and are learned (Klipfel 2023)."""

    def __init__(self, size: int, spacing: float) -> None:
        super().__init__()
        self.spacing = spacing
        self.centers = nn.Parameter(spacing * torch.arange(size, dtype=torch.get_default_dtype()))

    def forward(self, x: Float[Tensor, " items"]) -> Float[Tensor, "items size"]:
        exact = torch.promote_types(self.centers.dtype, torch.float32)
        difference = x.to(exact)[:, None] - self.centers.to(exact)
        return torch.exp(-difference.square() / self.spacing).to(self.centers.dtype)
