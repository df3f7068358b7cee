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
