"""Frames that follow the attention, and those they were compared with (Ito 2025).

A frame is three unit vectors e1, e2, e3 an atom and head. Where several are equally good, evaluation
averages the angular sums over all of them, so that no rounding error and no order of the atoms decides;
training draws one of them. All of them together are kept, however many tie: a choice among tied frames would
not be invariant, and a site of the cubic groups has 48 at most unless distances agree by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from facetry.geometry.ragged import items_in
from facetry.graph.batch import Batch
from facetry.nn.segment import segment_mean, segment_sum

PARALLEL = 0.9999  # |cos| from which two directions count as parallel
WINDOW = 0.1  # logits; in continuous frames an image that trails by more has no part
ROUND = 0.1  # |cos| below which continuous frames round off its kink at the right angle
_NEWTON = 16  # steps to a threshold; 7 are enough for a hundred equal images

Slots = Float[Tensor, "rows heads slots"]  # a number for every entry of every head's list


@dataclass(frozen=True)
class Axes:
    """Frames of some owners; `owner` ascends, the weights of an owner sum to one. Owners are
    row · heads + head of a part, or crystals.

    An axis that is zero does not exist; it adds nothing.
    """

    owner: Int[Tensor, " frames"]
    vectors: Float[Tensor, "frames 3 3"]
    weight: Float[Tensor, " frames"]

    def spread(self, members: Int[Tensor, " owners"]) -> Axes:
        """Frames of new owners 0, 1, ...: each has those of one owner here."""
        count = torch.bincount(self.owner, minlength=int(self.owner.max()) + 1)
        rows = items_in(members, count)
        return Axes(torch.repeat_interleave(count[members]), self.vectors[rows], self.weight[rows])


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
    crystal: Int[Tensor, " rows"]
    of_crystals: Axes | None  # where frames belong to crystals
    least: Float[Tensor, "rows slots"] | None = None  # Å; tails up to this length leave the entry out


def _pick(
    group: Int[Tensor, " items"], groups: int, generator: Generator | None
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
    part: Part, logits: Float[Tensor, "rows heads slots"], generator: Generator | None
) -> Axes:
    """e1 to the image of largest weight; e2 in the plane of the largest weight times 1 - |cos to e1|;
    e3 = e1 × e2 (Ito 2025, Sec. 4.2). Gradients flow through the chosen directions, not the choice."""
    rows, heads, slots = logits.shape
    tie = tolerance(logits.dtype)
    weight = logits.detach().masked_fill(~part.candidate[:, None, :], -torch.inf).flatten(0, 1)
    tied = weight >= weight.amax(1, keepdim=True) - tie
    owner, e1 = torch.nonzero(tied & torch.isfinite(weight), as_tuple=True)
    chosen, share = _pick(owner, rows * heads, generator)
    owner, e1 = owner[chosen], e1[chosen]
    row = torch.div(owner, heads, rounding_mode="floor")
    pairs, which = torch.unique(row * slots + e1, return_inverse=True)  # heads share them
    fixed = part.direction.detach()
    around = torch.div(pairs, slots, rounding_mode="floor")
    cosine = torch.bmm(fixed[around], fixed.flatten(0, 1)[pairs][:, :, None])[:, :, 0].abs_()
    # the cosines are float64 as the geometry is: the logarithm would magnify what float32 leaves out
    bend = torch.log((1 - cosine).clamp_(min=1e-5)).masked_fill_(cosine >= PARALLEL, -torch.inf)
    adjusted = weight[owner] + bend.to(weight.dtype)[which]
    tied = adjusted >= adjusted.amax(1, keepdim=True) - tie
    first, e2 = torch.nonzero(tied & torch.isfinite(adjusted), as_tuple=True)
    chosen, conditional = _pick(first, len(owner), generator)
    first, e2 = first[chosen], e2[chosen]
    row = row[first]
    one, two = part.direction[row, e1[first]], part.direction[row, e2]
    two = nn.functional.normalize(two - (two * one).sum(1, keepdim=True) * one, dim=1)
    vectors = torch.stack([one, two, torch.linalg.cross(one, two)], 1)
    return Axes(owner[first], vectors, share[first] * conditional)


def entmax(
    logits: Float[Tensor, "owners slots"],
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"], Float[Tensor, " chosen"]]:
    """Owner, slot and weight max(0, (ℓ - t)/WINDOW)² of all slots above the t at which an owner's weights sum
    to one; one image alone where it leads by WINDOW.

    This is 1.5-entmax (Peters 2019). Weights are differentiable and their gradients are continuous through
    every tie, which dividing max(0, (e^(ℓ - ℓ_max) - 0.9)/0.1)² by its sum is not where three images compete.
    """
    top = logits.detach().amax(1, keepdim=True)
    owner, slot = torch.nonzero(logits.detach() > top - WINDOW, as_tuple=True)
    z = (logits[owner, slot] - top[owner, 0]) / WINDOW
    threshold = -torch.ones_like(top[:, 0])  # Newton from below, where Σ is convex, rises to the root
    for _ in range(_NEWTON):
        above = (z.detach() - threshold[owner]).clamp(min=0)
        square, slope = (segment_sum(t, owner, len(top)) for t in (above.square(), above))
        threshold = threshold + (square - 1).clamp(min=0) / (2 * slope).clamp(min=1e-6)
    above = z.detach() > threshold[owner]
    owner, slot, z = owner[above], slot[above], z[above]
    # the threshold in closed form for these slots: exact sum, exact gradient
    mean = segment_mean(z, owner, len(top))
    apart = z - mean.index_select(0, owner)
    count = torch.bincount(owner, minlength=len(top))
    spread = segment_sum(apart.square(), owner, len(top))
    lift = ((1 - spread) / count.clamp(min=1)).sqrt()
    return owner, slot, (apart + lift.index_select(0, owner)).square()


def continuous_axes(part: Part, logits: Float[Tensor, "rows heads slots"]) -> Axes:
    """`strongest_axes` with all images that come close, weighted so that nothing jumps.

    Frames (e1, e2) weigh the share of e1 among the logits times that of e2 among ℓ + log(1 - |cos| - 0.0001)
    given e1. A direction leaves as it becomes parallel to e1, without a threshold, and |cos| is rounded off
    at the right angle, where it has a kink. Where one image leads by `WINDOW` twice, the frame is that of
    `strongest_axes`. Gradients flow through directions and weights.
    """
    heads = logits.shape[1]
    weight = logits.to(part.direction.dtype).masked_fill(~part.candidate[:, None, :], -torch.inf)
    weight = weight.flatten(0, 1)
    owner, e1, share = entmax(weight)
    row = torch.div(owner, heads, rounding_mode="floor")
    one = part.direction[row, e1]
    cosine = torch.bmm(part.direction[row], one[:, :, None])[:, :, 0].abs()
    cosine = torch.where(cosine < ROUND, (cosine.square() + ROUND**2) / (2 * ROUND), cosine)
    left = PARALLEL - cosine
    aside = left > 0
    adjusted = weight[owner] + torch.where(aside, left, 1).log()
    first, e2, conditional = entmax(adjusted.masked_fill(~aside, -torch.inf))
    row, one = row[first], one[first]
    two = part.direction[row, e2]
    two = nn.functional.normalize(two - (two * one).sum(1, keepdim=True) * one, dim=1)
    vectors = torch.stack([one, two, torch.linalg.cross(one, two)], 1)
    return Axes(owner[first], vectors, share[first] * conditional)


def principal_axes(moment: Float[Tensor, "owners 3 3"], least: float) -> Float[Tensor, "owners 3 3"]:
    """Right-handed unit eigenvectors in rows, smallest eigenvalue first.

    An axis whose eigenvalue is within `least` times the trace of another is not defined and zero. Gradients
    are those of perturbation theory, for defined axes only.
    """
    values, vectors = torch.linalg.eigh(moment.detach())
    axes = vectors.transpose(1, 2)
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    gap = values[:, 1:] - values[:, :-1]
    apart = gap > least * values.sum(1, keepdim=True)
    defined = torch.stack([apart[:, 0], apart.all(1), apart[:, 1]], 1)
    if moment.requires_grad:  # adds zero, and de_m = Σ_n e_n (e_n·dM·e_m)/(λ_m - λ_n)
        mixed = axes @ (moment - moment.detach()) @ axes.transpose(1, 2)
        difference = values[:, :, None] - values[:, None, :]
        usable = defined[:, :, None] & ~torch.eye(3, dtype=torch.bool, device=axes.device)
        axes = axes + (mixed / torch.where(usable, difference, torch.inf)) @ axes
    return axes * defined[:, :, None]


def _either_sign(axes: Float[Tensor, "owners 3 3"], generator: Generator | None) -> Axes:
    """All right-handed choices of signs, or one of them drawn."""
    owner = torch.arange(len(axes), device=axes.device)
    one = torch.ones_like(axes[:, 0, 0])
    if generator is not None:
        sign = torch.randint(0, 2, (len(axes), 2), generator=generator).to(axes) * 2 - 1
        sign = torch.cat([sign, sign.prod(1, keepdim=True)], 1)
        return Axes(owner, axes * sign[:, :, None], one)
    # each axis by itself points either way in half of the right-handed frames
    both = torch.stack([axes, -axes], 1).flatten(0, 1)
    return Axes(owner.repeat_interleave(2), both, one.repeat_interleave(2) / 2)


def _least_gap(dtype: torch.dtype) -> float:
    """Moments that differ by a smaller share of their sum coincide."""
    return 1e-7 if dtype == torch.float64 else 1e-3


class Frames:
    """Chooses the frames of one layer. Instances hold nothing; a new kind is a class and a line in FRAMES."""

    sees_hands = True  # whether evaluation tells mirror images apart
    sees_cell = False  # whether it matters which cell and which images of the atoms describe the crystal
    sphere: ClassVar[dict[str, Any]] = {"spanning": True}  # what the graph has to provide

    def of_crystals(self, batch: Batch, generator: Generator | None) -> Axes | None:
        """Frames that belong to crystals, the same for all atoms, heads and layers; None: there are none."""
        return None

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        """Frames of the atoms of a part, from the logits and weights of its heads. A generator draws one of
        several that tie, None keeps them all."""
        raise NotImplementedError


class MaxFrames(Frames):
    """Each head's own frame, along the images it attends to most."""

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        return strongest_axes(part, logits, generator)


class ContinuousFrames(Frames):
    """Max frames without jumps: a weighted average where several images compete (in the sense of Dym 2024).

    Training averages too, nothing is drawn.
    """

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        return continuous_axes(part, logits)


class StaticFrames(Frames):
    """The same as max frames with weights exp(-r²), for all heads and layers: along the nearest images.

    The published code takes exp(+r²) for the second axis, the farthest image; this is what is meant.
    """

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        axes = strongest_axes(part, -part.squared[:, None, :], generator)
        rows = torch.arange(len(part.atom), device=logits.device)
        return axes.spread(rows.repeat_interleave(logits.shape[1]))


class WeightedPCAFrames(Frames):
    """Principal axes of Σ p r rᵀ, smallest moment first (Ito 2025, Sec. 4.3).

    Signs: all right-handed choices are averaged, in training one is drawn. The average does not tell mirror
    images apart. An axis whose moment coincides with another's is not defined and adds nothing; the
    published code lets noise decide. No gradient flows through these axes.
    """

    sees_hands = False

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        with torch.no_grad():
            r = part.direction * part.squared.sqrt()[:, :, None]
            outer = (r[:, :, :, None] * r[:, :, None, :]).flatten(2)
            moment = torch.bmm(p.to(r.dtype), outer).flatten(0, 1).unflatten(1, (3, 3))
            return _either_sign(principal_axes(moment, _least_gap(p.dtype)), generator)


class _CrystalFrames(Frames):
    """One set of frames a crystal, for all atoms, heads and layers."""

    def __call__(self, part: Part, logits: Slots, p: Slots, generator: Generator | None) -> Axes:
        assert part.of_crystals is not None
        return part.of_crystals.spread(part.crystal.repeat_interleave(logits.shape[1]))


class PCAFrames(_CrystalFrames):
    """Principal axes of the positions of the atoms as they are listed (Duval 2023), smallest variance first.

    What the field compares with, so it is kept as it is: the frame turns with the crystal and does not mind
    the origin or the order of the atoms, but another cell, a supercell or an atom listed in another image
    gives another frame. Signs and coinciding variances as for `WeightedPCAFrames`: one atom has no axes, two
    have the last only.
    """

    sees_hands = False
    sees_cell = True
    sphere: ClassVar[dict[str, Any]] = {"primitive": False, "as_listed": True}

    def of_crystals(self, batch: Batch, generator: Generator | None) -> Axes:
        """Axes of the cells of a batch; gradients flow through those that exist."""
        crystal = batch.crystal_index
        position = torch.einsum("na,nab->nb", batch.frac_coords, batch.lattice[crystal])
        position = position - segment_mean(position, crystal, len(batch)).index_select(0, crystal)
        outer = (position[:, :, None] * position[:, None, :]).flatten(1)
        moment = segment_mean(outer, crystal, len(batch)).unflatten(1, (3, 3))
        return _either_sign(principal_axes(moment, _least_gap(moment.dtype)), generator)


class LatticeFrames(_CrystalFrames):
    """Unit vectors along the shortest translations of the primitive lattice, not orthogonal in general.

    e1 a shortest, e2 a shortest not parallel to it, e3 a shortest not coplanar with both, e2 and e3 turned to
    the side of e1, all negated if left-handed. Every choice is averaged where lengths tie or angles are right
    (24 frames in a cube, 144 in fcc), in training one a crystal is drawn. The published code looks for
    translations in a box of the given cell and lets noise decide.
    """

    sphere: ClassVar[dict[str, Any]] = {"lattice_frames": True}

    def of_crystals(self, batch: Batch, generator: Generator | None) -> Axes:
        """Axes of the lattices of a batch; gradients flow through the translations."""
        vectors = nn.functional.normalize(batch.frame_vectors(), dim=2)
        assert batch.frames is not None
        chosen, share = _pick(batch.frames.crystal, len(batch), generator)
        return Axes(batch.frames.crystal[chosen], vectors[chosen], share)


FRAMES: dict[str, type[Frames]] = {
    "max": MaxFrames,
    "continuous": ContinuousFrames,
    "static": StaticFrames,
    "weighted_pca": WeightedPCAFrames,
    "pca": PCAFrames,
    "lattice": LatticeFrames,
}
