"""Groups of unequal size, one after the other in a flat array: atoms of crystals, edges of atoms."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def offsets(counts: Int[Tensor, " groups"]) -> Int[Tensor, " groups_plus_one"]:
    """Where each group starts in a flat array, and the total at the end."""
    return torch.nn.functional.pad(torch.cumsum(counts.long(), 0), (1, 0))


def group_index(counts: Int[Tensor, " groups"]) -> Int[Tensor, " items"]:
    """For every item of a flat array the group that it belongs to."""
    return torch.repeat_interleave(counts.long())


def ranges(starts: Int[Tensor, " groups"], counts: Int[Tensor, " groups"]) -> Int[Tensor, " items"]:
    """start, start + 1, ..., start + count - 1 of every group, one after the other."""
    counts = counts.long()
    shift = torch.repeat_interleave(starts.long() - torch.cumsum(counts, 0) + counts, counts)
    return torch.arange(len(shift), device=shift.device) + shift


def ranks(counts: Int[Tensor, " groups"]) -> Int[Tensor, " items"]:
    """For every item its place within its group, from 0."""
    return ranges(torch.zeros_like(counts), counts)


def items_in(groups: Int[Tensor, " chosen"], counts: Int[Tensor, " groups"]) -> Int[Tensor, " items"]:
    """The items of chosen groups in the given order; a group may be asked for twice."""
    return ranges(offsets(counts)[:-1][groups], counts[groups])


def grids(
    low: Int[Tensor, "groups axes"], high: Int[Tensor, "groups axes"]
) -> tuple[Int[Tensor, " items"], Int[Tensor, "items axes"]]:
    """Every integer point low <= n <= high of every group's box, the last axis fastest, and its group."""
    span = high - low + 1
    below = torch.cat([span, torch.ones_like(span[:, :1])], 1).flip(1).cumprod(1).flip(1)
    group = group_index(below[:, 0])
    rank = ranks(below[:, 0])
    step = below[group]
    place = torch.div(rank[:, None] % step[:, :-1], step[:, 1:], rounding_mode="floor")
    return group, place + low[group]
