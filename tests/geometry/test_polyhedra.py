"""Names of coordination polyhedra, their faces and edges."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.geometry.polyhedra import _corners, hull, polyhedron
from tests.crystals import rotation


@pytest.mark.parametrize("name", list(_corners()))
def test_regular_shapes_are_named_however_they_are_turned(name, rng):
    corners = _corners()[name] @ rotation(3).T
    corners = corners[rng.permutation(len(corners))] * rng.uniform(1.8, 2.2, (len(corners), 1))
    assert polyhedron(corners) == name


@pytest.mark.parametrize("name", ["tetrahedron", "octahedron", "cube", "trigonal prism", "cuboctahedron"])
def test_distorted_shapes_are_called_so(name):
    corners = _corners()[name]
    corners = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    noise = np.random.default_rng(2).normal(size=corners.shape) * 0.08
    assert polyhedron(corners + noise) == f"distorted {name}"


def test_other_shapes_have_no_name(rng):
    assert polyhedron(np.zeros((0, 3))) == ""
    assert polyhedron(np.eye(3)[:1]) == ""
    assert polyhedron(rng.normal(size=(24, 3))) == ""
    assert polyhedron(np.array([[1, 0, 0], [1, 0.2, 0], [1, 0, 0.2], [1, 0.2, 0.2]])) == ""


@pytest.mark.parametrize(
    ("name", "faces", "edges"),
    [
        ("tetrahedron", 4, 6),
        ("octahedron", 8, 12),
        ("cube", 12, 12),
        ("cuboctahedron", 20, 24),
        ("icosahedron", 20, 30),
        ("square", 0, 0),
        ("linear", 0, 0),
    ],
)
def test_hulls(name, faces, edges):
    """Flat faces are split into triangles, their diagonals are no edges; triangles turn outwards."""
    corners = _corners()[name] @ rotation(1).T
    triangles, sides = hull(corners)
    assert (len(triangles), len(sides)) == (faces, edges)
    for a, b, c in corners[triangles]:
        assert np.cross(b - a, c - a) @ (a + b + c) > 0
