"""Frames that follow the attention (Ito 2025).

A frame is three unit vectors e1, e2, e3 an atom and head. Where several are equally good, evaluation
averages the angular sums over all of them, so that no rounding error and no order of the atoms decides;
training draws one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

PARALLEL = 0.9999  # |cos| from which two directions count as parallel


@dataclass(frozen=True)
class Part:
    """Some atoms of a batch with their neighbour lists in rows; shorter lists are filled up."""

    atom: Int[Tensor, " rows"]
    entry: Int[Tensor, "rows slots"]  # edges of the batch's graph
    pair: Int[Tensor, "rows slots"]
    present: Bool[Tensor, "rows slots"]
    candidate: Bool[Tensor, "rows slots"]  # present and not the atom itself
    squared: Float[Tensor, "rows slots"]  # Å²
    direction: Float[Tensor, "rows slots 3"]  # unit vectors; zero for the atom itself
    basis: Float[Tensor, "rows slots basis"]


@dataclass(frozen=True)
class Axes:
    """Frames of some rows and heads; `owner` = row · heads + head ascends, weights of an owner sum to one.

    An axis that is zero does not exist; it adds nothing.
    """

    owner: Int[Tensor, " frames"]
    vectors: Float[Tensor, "frames 3 3"]
    weight: Float[Tensor, " frames"]


def _pick(
    group: Int[Tensor, " items"], groups: int, generator: torch.Generator | None
) -> tuple[Int[Tensor, " chosen"], Float[Tensor, " chosen"]]:
    """All items with weight 1/(size of their group), or one of each group; groups ascend, none is empty."""
    count = torch.bincount(group, minlength=groups)
    if generator is None:
        return torch.arange(len(group), device=group.device), 1.0 / count[group].double()
    draw = torch.rand(groups, generator=generator, dtype=torch.float64).to(group.device)
    first = torch.cumsum(count, 0) - count
    chosen = first + torch.minimum((draw * count).long(), count - 1)
    return chosen, torch.ones(groups, dtype=torch.float64, device=group.device)


def tolerance(dtype: torch.dtype) -> float:
    """Logits that differ by less are tied: far above the rounding of the network, far below a meaning."""
    return 1e-8 if dtype == torch.float64 else 1e-4


def strongest_axes(
    part: Part, logits: Float[Tensor, "rows heads slots"], generator: torch.Generator | None
) -> Axes:
    """e1 to the image of largest weight; e2 in the plane of the largest weight times 1 - |cos to e1|;
    e3 = e1 × e2 (Ito 2025, Sec. 4.2). Gradients flow through the chosen directions, not the choice."""
    rows, heads, _ = logits.shape
    tie = tolerance(logits.dtype)
    weight = logits.detach().masked_fill(~part.candidate[:, None, :], -torch.inf).flatten(0, 1)
    tied = weight >= weight.amax(1, keepdim=True) - tie
    owner, e1 = torch.nonzero(tied & torch.isfinite(weight), as_tuple=True)
    chosen, share = _pick(owner, rows * heads, generator)
    owner, e1 = owner[chosen], e1[chosen]
    row = torch.div(owner, heads, rounding_mode="floor")
    fixed = part.direction.detach()
    cosine = torch.bmm(fixed[row], fixed[row, e1][:, :, None])[:, :, 0].abs()
    # the cosines are float64 as the geometry is: the logarithm would magnify what float32 leaves out
    adjusted = weight[owner] + torch.log((1 - cosine).clamp(min=1e-5))
    adjusted = adjusted.masked_fill(cosine >= PARALLEL, -torch.inf)
    tied = adjusted >= adjusted.amax(1, keepdim=True) - tie
    first, e2 = torch.nonzero(tied & torch.isfinite(adjusted), as_tuple=True)
    chosen, conditional = _pick(first, len(owner), generator)
    first, e2 = first[chosen], e2[chosen]
    row = row[first]
    one, two = part.direction[row, e1[first]], part.direction[row, e2]
    two = nn.functional.normalize(two - (two * one).sum(1, keepdim=True) * one, dim=1)
    vectors = torch.stack([one, two, torch.linalg.cross(one, two)], 1)
    return Axes(owner[first], vectors, share[first] * conditional)


class Frames:
    """Chooses the frames of one layer. Instances hold nothing; a new kind is a class and a line in FRAMES."""

    sees_hands = True  # whether evaluation tells mirror images apart

    def __call__(
        self,
        part: Part,
        logits: Float[Tensor, "rows heads slots"],
        p: Float[Tensor, "rows heads slots"],
        generator: torch.Generator | None,
    ) -> Axes:
        raise NotImplementedError


class MaxFrames(Frames):
    """Each head's own frame, along the images it attends to most."""

    def __call__(
        self,
        part: Part,
        logits: Float[Tensor, "rows heads slots"],
        p: Float[Tensor, "rows heads slots"],
        generator: torch.Generator | None,
    ) -> Axes:
        return strongest_axes(part, logits, generator)


class StaticFrames(Frames):
    """The same with weights exp(-r²), for all heads and layers: along the nearest images.

    The published code takes exp(+r²) for the second axis, the farthest image; this is what is meant.
    """

    def __call__(
        self,
        part: Part,
        logits: Float[Tensor, "rows heads slots"],
        p: Float[Tensor, "rows heads slots"],
        generator: torch.Generator | None,
    ) -> Axes:
        heads = logits.shape[1]
        axes = strongest_axes(part, -part.squared[:, None, :], generator)
        count = torch.bincount(axes.owner, minlength=len(part.atom))
        every = torch.arange(heads, device=logits.device)
        owner = (axes.owner[:, None] * heads + every).flatten()
        vectors = axes.vectors.repeat_interleave(heads, 0)
        weight = axes.weight.repeat_interleave(heads)
        if len(axes.owner) > len(count):  # several frames an atom: bring those of one owner together
            order = torch.argsort(owner, stable=True)
            owner, vectors, weight = owner[order], vectors[order], weight[order]
        return Axes(owner, vectors, weight)


class WeightedPCAFrames(Frames):
    """Principal axes of Σ p r rᵀ, smallest moment first (Ito 2025, Sec. 4.3).

    Signs: all right-handed choices are averaged, in training one is drawn. The average does not tell mirror
    images apart. An axis whose moment coincides with another's is not defined and adds nothing; the
    published code lets noise decide. No gradient flows through these axes.
    """

    sees_hands = False

    def __call__(
        self,
        part: Part,
        logits: Float[Tensor, "rows heads slots"],
        p: Float[Tensor, "rows heads slots"],
        generator: torch.Generator | None,
    ) -> Axes:
        rows, heads, _ = p.shape
        with torch.no_grad():
            r = part.direction * part.squared.sqrt()[:, :, None]
            outer = (r[:, :, :, None] * r[:, :, None, :]).flatten(2)
            moment = torch.bmm(p.to(r.dtype), outer).view(rows * heads, 3, 3)
            values, vectors = torch.linalg.eigh(moment)
            axes = vectors.transpose(1, 2)
            axes = axes * torch.linalg.det(axes).sign()[:, None, None]
            gap = values[:, 1:] - values[:, :-1]
            least = (1e-7 if p.dtype == torch.float64 else 1e-3) * values.sum(1, keepdim=True)
            apart = gap > least
            defined = torch.stack([apart[:, 0], apart.all(1), apart[:, 1]], 1)
            axes = axes * defined[:, :, None]
            owner = torch.arange(rows * heads, device=p.device)
            if generator is not None:
                sign = torch.randint(0, 2, (rows * heads, 2), generator=generator).to(axes) * 2 - 1
                sign = torch.cat([sign, sign.prod(1, keepdim=True)], 1)
                return Axes(owner, axes * sign[:, :, None], torch.ones_like(values[:, 0]))
            # each axis by itself points either way in half of the right-handed frames
            both = torch.stack([axes, -axes], 1).flatten(0, 1)
            return Axes(owner.repeat_interleave(2), both, torch.full_like(both[:, 0, 0], 0.5))


FRAMES: dict[str, type[Frames]] = {
    "max": MaxFrames,
    "static": StaticFrames,
    "weighted_pca": WeightedPCAFrames,
}
