"""The rotation that is in a matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def polar(
    lattice: Float[Tensor, "*batch 3 3"],
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3 3"]]:
    """Stretch S and rotation R with lattice = S @ R (rows), S symmetric and det R = +1.

    S alone says how long and how inclined the lattice vectors are. It is positive definite for a right-handed
    lattice and negative definite for a left-handed one. The decomposition of a deformation that acts on rows
    from the right is `polar(deformation)` all the same. Not differentiable where two stretches are equal.
    """
    u, scale, v = torch.linalg.svd(lattice)
    hand = torch.sign(torch.linalg.det(u @ v))[..., None, None]
    stretch = (u * scale[..., None, :]) @ u.transpose(-1, -2)
    return hand * stretch, hand * (u @ v)
