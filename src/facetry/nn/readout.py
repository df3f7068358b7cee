"""From atoms to the crystal."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.nn.segment import segment_softmax, segment_sum


class Head(nn.Module):
    """Linear, SiLU, Linear: the pooled vector of a crystal to its outputs."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        return self.out(nn.functional.silu(self.hidden(x)))


class Set2Set(nn.Module):
    """A summary of the rows of each crystal that does not depend on their order, nor on how often all of them
    are repeated (Vinyals, Bengio, Kudlur 2016, arXiv 1511.06391).

    In every pass a recurrent cell makes a query, the rows are averaged with the softmax of their products
    with it, and query and average go back into the cell. Gives twice the channels; no rows, no summary: zeros
    in place of the average.
    """

    def __init__(self, channels: int, passes: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2 * channels, channels)
        self.passes = passes

    def forward(
        self, x: Float[Tensor, "rows channels"], crystal: Int[Tensor, " rows"], crystals: int
    ) -> Float[Tensor, "crystals twice_channels"]:
        channels = x.shape[1]
        read = x.new_zeros((crystals, 2 * channels))
        query = memory = x.new_zeros((crystals, channels))
        for _ in range(self.passes):
            query, memory = self.cell(read, (query, memory))
            share = segment_softmax((x * query.index_select(0, crystal)).sum(1), crystal, crystals)
            average = segment_sum(x * share[:, None], crystal, crystals)
            read = torch.cat([query, average.to(query.dtype)], 1)
        return read
