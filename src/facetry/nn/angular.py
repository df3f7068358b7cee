"""Attention-weighted sums of Gaussians of cosines with the axes of dynamic frames (Ito 2025, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.nn.dynamic_frames import Axes, Part

_CHUNK_NUMBERS = 1 << 19  # values of the angular bases that exist at once on the CPU: about its cache
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

    def centers(self, like: Float[Tensor, "..."]) -> Float[Tensor, " basis"]:
        """Where the Gaussians peak, in the precision and place of `like`."""
        return torch.linspace(-1, 1, self.size, dtype=torch.float64).to(like)

    def __call__(self, cosine: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries basis"]:
        return torch.exp((cosine[..., None] - self.centers(cosine)).square() * (-0.5 / self.deviation**2))


class Gaussians:
    """The Gaussians of a basis without most of its exponentials, each up to a factor in `constant`.

    With μ = A + kδ, coarse centres A and whole numbers k, a Gaussian factorises:
        exp(-(c - μ)²/2w²) = exp(-(c - A)²/2w²) · exp(cδ/w²)^k · exp(-(A kδ + (kδ)²/2)/w²)
    Powers are products: 6 exponentials for 64 Gaussians. A group spans at most four widths, so that powers
    stay within e^±16 and errors of the exponential grow eightfold at most.
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
        self.coarse = coarse.to(like)
        constant = torch.exp(-self.half * (2 * coarse[:, None] * fine + fine**2))
        self.constant = constant.flatten().to(like)

    def __call__(self, cosine: Float[Tensor, "*entries"]) -> Float[Tensor, "basis *entries"]:
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
        return (coarse[:, None] * fine).flatten(0, 1)


class _Sums(torch.autograd.Function):
    """Σ_s p[row[a], h, s] b(c[a, s]) for axes a, in chunks whose bases are computed again on the way back."""

    @staticmethod
    def forward(ctx, p: Tensor, row: Tensor, cosine: Tensor, basis: AngularBasis, chunk: int) -> Tensor:
        ctx.save_for_backward(p, row, cosine)
        ctx.basis, ctx.chunk = basis, chunk
        gaussians = Gaussians(basis, p)
        out = p.new_empty((len(row), p.shape[1], basis.size))
        for to, r, c in zip(*(t.split(chunk) for t in (out, row, cosine)), strict=True):
            torch.bmm(p.index_select(0, r), gaussians(c).permute(1, 2, 0), out=to)
        return out.mul_(gaussians.constant)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        p, row, cosine = ctx.saved_tensors
        centers = ctx.basis.centers(p)
        gaussians = Gaussians(ctx.basis, p)
        second = torch.is_grad_enabled()  # derivatives of this: by plain formulas, with a graph
        gradient = gradient if second else gradient * gaussians.constant
        by_p, by_cosine = torch.zeros_like(p), []
        for g, r, c in zip(*(t.split(ctx.chunk) for t in (gradient, row, cosine)), strict=True):
            b = ctx.basis(c).transpose(1, 2) if second else gaussians(c).transpose(0, 1)
            value = torch.bmm(g, b)
            by_p.index_add_(0, r, value)
            if ctx.needs_input_grad[2]:  # d/dc of a Gaussian is (μ - c)/w² times itself
                moved = torch.bmm(g * centers, b) - c[:, None] * value
                by_cosine.append((p.index_select(0, r) * moved).sum(1) / ctx.basis.deviation**2)
        return by_p, None, torch.cat(by_cosine) if by_cosine else None, None, None


def _distinct(
    row: Int[Tensor, " axes"], vectors: Float[Tensor, "axes 3"], grain: float
) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " axes"]]:
    """One of each set of axes of a row that coincide within `grain`, and the set of every axis."""
    whole = torch.round(vectors / grain).long()
    some = torch.tensor([0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D], device=row.device)
    order = torch.argsort((whole * some).sum(1) + row * 0x14057B7EF767814F, stable=True)
    # the scrambled sum brings equal axes together; what decides is whether neighbours are equal
    row, whole = row[order], whole[order]
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (whole[1:] != whole[:-1]).any(1)
    which = torch.empty_like(row)
    which[order] = torch.cumsum(first, 0) - 1
    return order[first], which


def angular_sums(
    p: Float[Tensor, "rows heads slots"], part: Part, axes: Axes, basis: AngularBasis
) -> Float[Tensor, "rows heads 3 basis"]:
    """Attention-weighted sums of the angular bases along the three axes, averaged over tied frames.

    The atom itself has no direction and adds nothing. Frames of an atom share most of their axes, tied
    ones and those of several heads: each distinct axis is worked on once, for all heads. Where gradients
    flow through the axes they are kept apart, for equal axes do not move alike.
    """
    rows, heads, slots = p.shape
    vectors, row = axes.vectors.flatten(0, 1), torch.div(axes.owner, heads, rounding_mode="floor")
    row = row.repeat_interleave(3)
    if vectors.requires_grad:
        which = torch.arange(len(row), device=row.device)
    else:
        chosen, which = _distinct(row, vectors, 2.0**-44 if p.dtype == torch.float64 else 2.0**-22)
        row, vectors = row[chosen], vectors[chosen]
    direction = part.direction.to(p.dtype).index_select(0, row)
    cosine = torch.bmm(direction, vectors.to(p.dtype)[:, :, None])[:, :, 0]
    numbers = _CHUNK_NUMBERS if p.device.type == "cpu" else _CHUNK_NUMBERS_GPU
    chunk = max(1, numbers // (slots * basis.size))
    sums = _Sums.apply(p * part.candidate[:, None, :], row, cosine, basis, chunk)
    head = (axes.owner % heads).repeat_interleave(3)
    sums = sums.flatten(0, 1).index_select(0, which * heads + head).unflatten(0, (-1, 3))
    exists = (axes.vectors.detach() != 0).any(2)
    sums = sums * (exists * axes.weight[:, None]).to(p.dtype)[:, :, None]
    sums = p.new_zeros((rows * heads, 3, basis.size)).index_add(0, axes.owner, sums)
    return sums.unflatten(0, (rows, heads))
