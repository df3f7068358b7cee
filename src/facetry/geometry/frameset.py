"""The lattice frames of many crystals, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FrameSet:
        """Copy on another device; ``dtype`` is that of the weights."""
        return FrameSet(
            self.crystal.to(device),
            self.integer.to(device),
            self.weight.to(device=device, dtype=dtype),
            self.num_frames.to(device),
        )

    def select(self, crystals: Int[Tensor, " selected"]) -> FrameSet:
        """Frames of some crystals, renumbered in the order given; a crystal may be asked for twice."""
        counts = self.num_frames[crystals]
        rows = ranges((self.num_frames.cumsum(0) - self.num_frames)[crystals], counts)
        index = torch.arange(len(crystals), device=crystals.device).repeat_interleave(counts)
        return FrameSet(index, self.integer[rows], self.weight[rows], counts)

    @staticmethod
    def concatenate(parts: list[FrameSet]) -> FrameSet:
        """One set of the crystals of all ``parts``, in order."""
        sizes = torch.tensor([0] + [len(part.num_frames) for part in parts[:-1]]).cumsum(0).tolist()
        return FrameSet(
            torch.cat([part.crystal + shift for part, shift in zip(parts, sizes, strict=True)]),
            torch.cat([part.integer for part in parts]),
            torch.cat([part.weight for part in parts]),
            torch.cat([part.num_frames for part in parts]),
        )


def ranges(start: Int[Tensor, " segments"], length: Int[Tensor, " segments"]) -> Int[Tensor, " total"]:
    """``start[0], start[0] + 1, ...`` for ``length[0]`` entries, then the same for every other segment."""
    end = length.cumsum(0)
    total = int(end[-1]) if len(end) else 0
    shift = (start - end + length).repeat_interleave(length, output_size=total)
    return torch.arange(total, device=start.device) + shift
