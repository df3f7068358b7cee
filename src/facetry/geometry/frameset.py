"""The lattice frames of many crystals, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.ragged import group_index, items_in


@dataclass(frozen=True)
class FrameSet:
    """Right-handed frames of many crystals, packed; those of one crystal are adjacent, crystals in order.

    ``integer[f]`` holds e1, e2, e3 as rows of coefficients in the lattice of crystal ``crystal[f]``;
    ``weight`` sums to one in each crystal; ``num_frames`` counts the frames of each crystal.
    """

    crystal: Int[Tensor, " frames"]
    integer: Int[Tensor, "frames 3 3"]
    weight: Float[Tensor, " frames"]
    num_frames: Int[Tensor, " crystals"]

    def vectors(self, lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "frames 3 3"]:
        """Rows e1, e2, e3 in Å, differentiable in the lattice the integers refer to."""
        return self.integer.to(lattice.dtype) @ lattice[self.crystal]

    def select(self, crystals: Int[Tensor, " selected"]) -> FrameSet:
        """Frames of some crystals, renumbered in the order given; a crystal may be asked for twice."""
        counts = self.num_frames[crystals]
        rows = items_in(crystals, self.num_frames)
        return FrameSet(group_index(counts), self.integer[rows], self.weight[rows], counts)

    @staticmethod
    def concatenate(parts: list[FrameSet]) -> FrameSet:
        """One set of the crystals of all ``parts``, in order."""
        num_frames = torch.cat([part.num_frames for part in parts])
        return FrameSet(
            group_index(num_frames),
            torch.cat([part.integer for part in parts]),
            torch.cat([part.weight for part in parts]),
            num_frames,
        )
