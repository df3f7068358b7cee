"""Attention-weighted sums of Gaussians of cosines with the axes of dynamic frames (Ito 2025, Eq. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from facetry.nn.dynamic_frames import Axes, Part

_CHUNK_NUMBERS = 1 << 18  # values of the angular bases that exist at once on the CPU
_CHUNK_NUMBERS_GPU = 1 << 26


@dataclass(frozen=True)
class AngularBasis:
    """Gaussians of a cosine, centred from -1 to 1 with both ends; `width` in spacings."""

    size: int
    width: float
    scale: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the Gaussians, in units of the cosine."""
        return self.width * 2 / (self.size - 1)

    def __call__(self, cosine: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries basis"]:
        centers = torch.linspace(-1, 1, self.size, dtype=torch.float64).to(cosine)
        return (cosine[..., None] - centers).square_().mul_(-0.5 / self.deviation**2).exp_()

    def factors(self, like: Tensor) -> Factors:
        """The two factors whose outer product is the basis, in the precision and place of `like`."""
        return Factors(self, like)


class Factors:
    """Coarse and fine factors of an angular basis: basis = coarse ⊗ fine · constant."""

    def __init__(self, basis: AngularBasis, like: Tensor) -> None:
        few = next(n for n in range(math.isqrt(basis.size), 0, -1) if basis.size % n == 0)
        centers = torch.linspace(-1, 1, basis.size, dtype=torch.float64).view(-1, few)
        coarse = centers.mean(1)
        fine = centers[0] - coarse[0]
        self.half = 0.5 / basis.deviation**2
        self.centers = centers.to(like)
        self.coarse = coarse.to(like)
        self.slope = (fine * (2 * self.half)).to(like)
        self.constant = torch.exp(-self.half * (2 * coarse[:, None] * fine + fine**2)).to(like)

    def __call__(
        self, cosine: Float[Tensor, "*entries"]
    ) -> tuple[Float[Tensor, "*entries coarse"], Float[Tensor, "*entries fine"]]:
        coarse = (cosine[..., None] - self.coarse).square_().mul_(-self.half).exp_()
        return coarse, (cosine[..., None] * self.slope).exp_()


class _Sums(torch.autograd.Function):
    """Σ_s p[f, s] b(c[f, m, s]) in chunks of frames, which are computed again on the way back.

    With μ = A + B, coarse centres A and fine offsets B, a Gaussian factorises:
        exp(-(c - μ)²/2w²) = exp(-(c - A)²/2w²) · exp(c B/w²) · exp(-(A B + B²/2)/w²)
    so a sum of all Gaussians is a product of two thin matrices: 16 exponentials instead of 64.
    """

    @staticmethod
    def forward(ctx, p: Tensor, cosine: Tensor, basis: AngularBasis, chunk: int) -> Tensor:
        ctx.save_for_backward(p, cosine)
        ctx.basis, ctx.chunk = basis, chunk
        factors = basis.factors(p)
        out = []
        for weight, c in zip(p.split(chunk), cosine.split(chunk), strict=True):
            coarse, fine = factors(c)
            out.append(torch.matmul((coarse * weight[:, None, :, None]).transpose(2, 3), fine))
        return (torch.cat(out) * factors.constant).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        p, cosine = ctx.saved_tensors
        factors = ctx.basis.factors(p)
        gradient = gradient.unflatten(2, factors.constant.shape) * factors.constant
        slope = ctx.needs_input_grad[1]
        by_p, by_cosine = [], []
        for weight, c, g in zip(*(t.split(ctx.chunk) for t in (p, cosine, gradient)), strict=True):
            coarse, fine = factors(c)
            value = (torch.matmul(fine, g.transpose(2, 3)) * coarse).sum(3)
            by_p.append(value.sum(1))
            if slope:  # d/dc of a Gaussian is (μ - c)/w² times itself
                moved = (torch.matmul(fine, (g * factors.centers).transpose(2, 3)) * coarse).sum(3)
                by_cosine.append(weight[:, None, :] * (moved - c * value) / ctx.basis.deviation**2)
        return torch.cat(by_p), torch.cat(by_cosine) if slope else None, None, None


def angular_sums(
    p: Float[Tensor, "rows heads slots"], part: Part, axes: Axes, basis: AngularBasis
) -> Float[Tensor, "rows heads 3 basis"]:
    """Attention-weighted sums of the angular bases along the three axes, averaged over tied frames.

    The atom itself has no direction and adds nothing. First derivatives only.
    """
    rows, heads, slots = p.shape
    weighted = (p * part.candidate[:, None, :]).flatten(0, 1)
    single = len(axes.owner) == rows * heads  # owners ascend, every one has a frame: one each
    vectors, direction = axes.vectors.to(p.dtype), part.direction.to(p.dtype)
    if single:
        turned = vectors.unflatten(0, (rows, heads)).flatten(1, 2)
        cosine = torch.bmm(turned, direction.transpose(1, 2)).unflatten(1, (heads, 3)).flatten(0, 1)
    else:
        weighted = weighted.index_select(0, axes.owner)
        atom = torch.div(axes.owner, heads, rounding_mode="floor")
        cosine = torch.bmm(vectors, direction.index_select(0, atom).transpose(1, 2))
    numbers = _CHUNK_NUMBERS if p.device.type == "cpu" else _CHUNK_NUMBERS_GPU
    chunk = max(1, numbers // (3 * slots * 2 * math.isqrt(basis.size)))
    sums = _Sums.apply(weighted, cosine, basis, chunk)
    exists = (axes.vectors.detach() != 0).any(2)
    sums = sums * (exists * axes.weight[:, None]).to(p.dtype)[:, :, None]
    if not single:
        sums = p.new_zeros((rows * heads, 3, basis.size)).index_add(0, axes.owner, sums)
    return sums.unflatten(0, (rows, heads))
