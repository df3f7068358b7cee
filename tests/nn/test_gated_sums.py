"""Gates by those at a few nodes, functions by a few polynomials."""

from __future__ import annotations

import pytest
import torch

from facetry.nn.chebyshev import LowRank, chebyshev, chebyshev_signs
from facetry.nn.gates import gate_choice, gate_nodes, gate_weights


def gate(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(s[:, None] * y) - 0.5


@pytest.mark.parametrize("reach", [0.5, 2.0, 9.0, 40.0])
@pytest.mark.parametrize(("tolerance", "most"), [(1e-6, 13), (1e-13, 26)])
def test_gates_by_few(reach, tolerance, most):
    nodes = torch.tensor(gate_nodes(reach, tolerance), dtype=torch.float64)
    y = torch.linspace(-1, 1, 401, dtype=torch.float64)
    weights = gate_weights(nodes, reach, y)
    s = reach * torch.linspace(-1, 1, 301, dtype=torch.float64)
    assert (gate(s, nodes) @ weights - gate(s, y)).abs().max() < tolerance
    assert weights.abs().max() < 2  # no digits are lost
    assert len(nodes) <= most


def test_some_nodes_serve_smaller_reaches():
    nodes = gate_nodes(9.0, 1e-6)
    y = torch.linspace(-1, 1, 401, dtype=torch.float64)
    sizes = []
    for reach in (0.5, 2.0, 9.0):
        chosen = torch.tensor([nodes[k] for k in gate_choice(nodes, reach, 1e-6)], dtype=torch.float64)
        s = reach * torch.linspace(-1, 1, 301, dtype=torch.float64)
        assert (gate(s, chosen) @ gate_weights(chosen, reach, y) - gate(s, y)).abs().max() < 2e-6
        sizes.append(len(chosen))
    assert sizes[0] < sizes[1] < sizes[2] <= len(nodes)


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 24, 31, 49, 100])
def test_chebyshev(size):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    weight = torch.linspace(0.5, 2, 101, dtype=torch.float64)
    found = torch.empty(size, 101, dtype=torch.float64)
    chebyshev(x, weight, found)
    exact = weight * torch.cos(torch.arange(size)[:, None] * torch.acos(x))
    assert (chebyshev_signs(size)[:, None] * found - exact).abs().max() < 1e-12


def test_low_rank_gives_functions_and_slopes():
    """Columns that are wanted, as far as their sums count."""
    numbers = torch.linspace(0.5, 3, 12, dtype=torch.float64)
    mix = torch.rand(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def wanted(d):
        return torch.sin(d[:, None] * numbers)

    table = LowRank(lambda d: (wanted(d) @ mix, wanted(d)), 7.0, 1e-12, torch.float64, torch.device("cpu"))
    d = torch.linspace(0, 7, 57, dtype=torch.float64)
    waves = torch.empty(table.size, 57, dtype=torch.float64)
    chebyshev(2 * d / 7 - 1, torch.ones_like(d), waves)
    assert table.rank <= 12
    exact = wanted(d) @ mix
    assert (waves.T @ table.series @ table.matrix @ mix - exact).abs().max() < 1e-10
    slope = torch.cos(d[:, None] * numbers) * numbers @ mix
    assert (waves.T @ table.slopes @ table.matrix @ mix * (2 / 7) - slope).abs().max() < 1e-8
