"""Stretch and rotation of a matrix."""

from __future__ import annotations

import pytest
import torch

from facetry.geometry import polar
from tests import crystals as zoo


@pytest.mark.parametrize("hand", [1, -1])
def test_stretch_times_rotation(hand):
    torch.manual_seed(0)
    matrix = torch.randn(50, 3, 3, dtype=torch.float64)
    matrix[torch.linalg.det(matrix).sign() != hand] *= -1
    stretch, rotation = polar(matrix)
    torch.testing.assert_close(stretch @ rotation, matrix, rtol=0, atol=1e-13)
    torch.testing.assert_close(stretch, stretch.transpose(1, 2), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).double().expand(50, 3, 3), rtol=0, atol=1e-13
    )
    assert bool((torch.linalg.det(rotation) - 1).abs().max() < 1e-13)
    assert bool((hand * torch.linalg.eigvalsh(stretch) > 0).all())


def test_turning_changes_the_rotation_only():
    torch.manual_seed(1)
    matrix, turn = torch.randn(3, 3, dtype=torch.float64), torch.from_numpy(zoo.rotation(2))
    stretch, rotation = polar(matrix)
    again, turned = polar(matrix @ turn.T)
    torch.testing.assert_close(again, stretch, rtol=0, atol=1e-13)
    torch.testing.assert_close(turned, rotation @ turn.T, rtol=0, atol=1e-13)


def test_a_degenerate_stretch():
    for scale in (2.0, -2.0):
        stretch, rotation = polar(scale * torch.eye(3, dtype=torch.float64))
        torch.testing.assert_close(stretch, scale * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
        torch.testing.assert_close(rotation, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
