"""Close pairs against the plain search over all images."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.io.errors import FormatError
from facetry.io.sites import close_pairs


def plain(lattice: np.ndarray, frac: np.ndarray, reach: float) -> dict[tuple[int, int], float]:
    """Every pair with its shortest image, from a brute search over wide shells."""
    heights = np.abs(np.linalg.det(lattice)) / np.linalg.norm(
        np.cross(lattice[[1, 2, 0]], lattice[[2, 0, 1]]), axis=1
    )
    spans = [np.arange(-m, m + 1) for m in np.ceil(reach / heights).astype(int) + 1]
    images = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    wrapped = frac - np.floor(frac)
    found = {}
    for i in range(len(frac)):
        for j in range(i + 1, len(frac)):
            vectors = (wrapped[j] - wrapped[i] + images) @ lattice
            distance = np.sqrt((vectors**2).sum(axis=1).min())
            if distance < reach:
                found[i, j] = distance
    return found


CELLS = {
    "cubic": np.eye(3) * 3,
    "long": np.diag([2.0, 3.0, 40.0]),
    "thin": np.diag([0.8, 6.0, 6.0]),
    "skewed": np.array([[3.0, 0, 0], [10.0, 3.0, 0], [-7.0, 8.0, 3.0]]),
    "left": np.array([[0, 3.0, 0], [3.0, 0, 0], [0.4, 0.5, 4.0]]),
    "sharp": np.array([[4.0, 0, 0], [3.7, 1.4, 0], [3.7, 0.6, 1.3]]),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("count", [6, 40])
def test_pairs_are_those_of_the_plain_search(cell, count, rng):
    lattice, reach = CELLS[cell], 0.7
    frac = rng.uniform(-1.5, 1.5, (count, 3))
    first, second, distance = close_pairs(lattice, frac, reach)
    wanted = plain(lattice, frac, reach)
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), distance.tolist(), strict=True))
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("lattice", [np.eye(3) * 12, np.diag([1.2, 30.0, 30.0]), CELLS["skewed"] * 4])
def test_binned_search_for_many_sites(lattice, rng):
    """More sites than the plain batch takes, with one to many bins along an axis."""
    frac = rng.uniform(-1, 2, (170, 3))
    frac[1::10] = frac[::10] + 0.2 / 12
    first, second, distance = close_pairs(lattice, frac, 0.5)
    wanted = plain(lattice, frac, 0.5)
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), distance.tolist(), strict=True))
    assert len(wanted) > 3
    assert found == pytest.approx(wanted)


def test_lattice_that_is_shorter_than_an_atom():
    with pytest.raises(FormatError, match="translation is only"):
        close_pairs(np.diag([0.4, 9.0, 9.0]), np.zeros((1, 3)), 0.5)
    # the short translation may hide in a skewed basis
    with pytest.raises(FormatError, match="translation is only"):
        close_pairs(np.array([[9.0, 0, 0], [9.0, 0.4, 0], [0, 0, 9.0]]), np.zeros((1, 3)), 0.5)
