"""From atoms to the crystal."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Linear, SiLU, Linear: the pooled vector of a crystal to its outputs."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        return self.out(nn.functional.silu(self.hidden(x)))
