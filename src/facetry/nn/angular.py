"""Attention-weighted sums of Gaussians of cosines with the axes of dynamic frames (Ito 2025, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from facetry.nn.dynamic_frames import Axes, Part

_CHUNK_NUMBERS = 1 << 19  # values of the two factors that exist at once on the CPU: about its cache
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
    """Coarse and fine factors of an angular basis: basis = coarse ⊗ fine · constant.

    With μ = A + kδ, coarse centres A and whole numbers k, a Gaussian factorises:
        exp(-(c - μ)²/2w²) = exp(-(c - A)²/2w²) · exp(cδ/w²)^k · exp(-(A kδ + (kδ)²/2)/w²)
    The fine factors are powers, thus products. A group spans at most four widths: its powers stay within
    e^±16, and an error of the exponential is raised to the eighth power at most.
    """

    def __init__(self, basis: AngularBasis, like: Tensor) -> None:
        most = max(1, int(4 * basis.width))
        self.powers = max(n for n in range(1, most + 1) if basis.size % n == 0)
        self.below = self.powers // 2  # negative powers
        centers = torch.linspace(-1, 1, basis.size, dtype=torch.float64).view(-1, self.powers)
        coarse = centers[:, self.below]
        fine = centers[0] - coarse[0]
        self.half = 0.5 / basis.deviation**2
        self.slope = 2 / (basis.size - 1) / basis.deviation**2
        self.centers, self.coarse = centers.to(like), coarse.to(like)
        self.constant = torch.exp(-self.half * (2 * coarse[:, None] * fine + fine**2)).to(like)

    def __call__(
        self, cosine: Float[Tensor, "*entries"]
    ) -> tuple[Float[Tensor, "coarse *entries"], Float[Tensor, "fine *entries"]]:
        coarse = cosine - self.coarse.view(-1, *[1] * cosine.dim())
        coarse.square_().mul_(-self.half).exp_()
        fine = cosine.new_empty((self.powers, *cosine.shape))
        upper = fine[self.below :]
        upper[0] = 1
        power, done = torch.exp(cosine * self.slope), 1
        while done < len(upper):
            more = min(done, len(upper) - done)
            torch.mul(upper[:more], power, out=upper[done : done + more])
            power, done = power.square(), done + more
        if self.below:
            lowest = torch.exp(cosine * (-self.below * self.slope))
            torch.mul(upper[: self.below], lowest, out=fine[: self.below])
        return coarse, fine


class _Sums(torch.autograd.Function):
    """Σ_s p[f, s] b(c[f, m, s]) as products of the two factors, in chunks of frames.

    The factors, 20 numbers for 64 Gaussians, are computed again on the way back.
    """

    @staticmethod
    def forward(ctx, p: Tensor, cosine: Tensor, basis: AngularBasis, chunk: int) -> Tensor:
        ctx.save_for_backward(p, cosine)
        ctx.basis, ctx.chunk = basis, chunk
        factors = basis.factors(p)
        out = []
        for weight, c in zip(p.split(chunk), cosine.split(chunk), strict=True):
            coarse, fine = factors(c)
            coarse *= weight[:, None]
            out.append(torch.matmul(coarse.permute(1, 2, 0, 3), fine.permute(1, 2, 3, 0)))
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
            coarse, fine = (t.permute(1, 2, 0, 3) for t in factors(c))
            value = torch.matmul(g, fine).mul_(coarse).sum(2)
            by_p.append(value.sum(1))
            if slope:  # d/dc of a Gaussian is (μ - c)/w² times itself
                moved = torch.matmul(g * factors.centers, fine).mul_(coarse).sum(2)
                by_cosine.append(weight[:, None] * (moved - c * value) / ctx.basis.deviation**2)
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
    chunk = max(1, numbers // (3 * slots * 20))
    sums = _Sums.apply(weighted, cosine, basis, chunk)
    exists = (axes.vectors.detach() != 0).any(2)
    sums = sums * (exists * axes.weight[:, None]).to(p.dtype)[:, :, None]
    if not single:
        sums = p.new_zeros((rows * heads, 3, basis.size)).index_add(0, axes.owner, sums)
    return sums.unflatten(0, (rows, heads))
