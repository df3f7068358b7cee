"""From elements to node features: a fixed table with a linear layer, or a learned row per element.

Both layers map atomic numbers (atoms,) to (atoms, channels) and refuse numbers outside of the table.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.nn.element_table import ELEMENT_FEATURES, ELEMENT_ROWS, element_features

__all__ = ["ElementTable", "LearnedElements", "check_elements"]


def check_elements(atomic_numbers: Int[Tensor, "..."], rows: int = ELEMENT_ROWS) -> None:
    """Raises ValueError for numbers without a row. Not while a graph of the module is captured, where the
    values are not there to be looked at."""
    if torch.compiler.is_compiling() or not len(atomic_numbers):
        return
    low, high = torch.aminmax(atomic_numbers)
    if low < 1 or high >= rows:
        wrong = sorted({int(z) for z in atomic_numbers.tolist() if not 1 <= z < rows})
        raise ValueError(f"atomic numbers {wrong} are not in the element table, which holds 1 to {rows - 1}")


class ElementTable(nn.Module):
    """The 92 fixed features of an element (`facetry.nn.element_table`), then Linear(92 -> channels).

    No activation (Yan 2024). With more atoms than elements the linear layer is applied to the table once and
    its rows are gathered: the same function for 119 rows instead of one per atom. The table is a buffer that
    is not saved, since it ships with the package.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        table = torch.tensor(element_features(), dtype=torch.get_default_dtype())
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)
        self.linear = nn.Linear(ELEMENT_FEATURES, channels)

    def forward(self, atomic_numbers: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms channels"]:
        """Features of every atom. Raises ValueError for an atomic number outside of 1 to 118."""
        check_elements(atomic_numbers)
        if len(atomic_numbers) > ELEMENT_ROWS:
            return self.linear(self.table)[atomic_numbers]
        return self.linear(self.table[atomic_numbers])


class LearnedElements(nn.Module):
    """A learned row of `channels` numbers for each element, from N(0, 1); row 0 is never used."""

    def __init__(self, channels: int, rows: int = ELEMENT_ROWS) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, channels)

    def forward(self, atomic_numbers: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms channels"]:
        """Features of every atom. Raises ValueError for an atomic number without a row."""
        check_elements(atomic_numbers, self.rows.num_embeddings)
        return self.rows(atomic_numbers)
