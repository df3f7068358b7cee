"""Coordination polyhedra: their names, by the angles that neighbours make, and their faces and edges."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int

REGULAR, TOLERANCE = 3.0, 11.0  # degrees, root mean square over all pairs of neighbours
_FLAT = 1e-3  # of the volume of a cube around the points


def _ring(count: int, height: float = 0.0, turn: float = 0.0) -> np.ndarray:
    """Points of a regular polygon of radius 1."""
    angle = 2 * np.pi * (np.arange(count) + turn) / count
    return np.stack([np.cos(angle), np.sin(angle), np.full(count, height)], 1)


def _corners() -> dict[str, np.ndarray]:
    """Directions of the corners from the centre."""
    poles = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    cube = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T.astype(float)
    golden = (1 + 5**0.5) / 2
    half = np.array([[0, a, b * golden] for a in (-1, 1) for b in (-1, 1)])
    triangle = (2 / 3) ** 0.5  # height of the cap above the ring in a close packing, edge 1
    up = np.array([0, 0, triangle])
    three = _ring(3, turn=0.25) / 3**0.5
    layers = [_ring(6), three + up]
    return {
        "linear": poles,
        "triangle": _ring(3),
        "tetrahedron": cube[cube.prod(1) > 0],
        "square": _ring(4),
        "trigonal bipyramid": np.concatenate([_ring(3), poles]),
        "square pyramid": np.concatenate([_ring(4), poles[:1]]),
        "octahedron": np.concatenate([_ring(4), poles]),
        "trigonal prism": np.concatenate([_ring(3, h) for h in (-(3**0.5) / 2, 3**0.5 / 2)]),
        "hexagon": _ring(6),
        "pentagonal bipyramid": np.concatenate([_ring(5), poles]),
        "cube": cube,
        "square antiprism": np.concatenate([_ring(4, -0.595), _ring(4, 0.595, 0.5)]),
        "cuboctahedron": np.concatenate([*layers, -three - up]),
        "anticuboctahedron": np.concatenate([*layers, three - up]),
        "icosahedron": np.concatenate([np.roll(half, k, 1) for k in range(3)]),
    }


def _angles(vectors: Float[np.ndarray, "corners 3"]) -> Float[np.ndarray, " pairs"]:
    """Angles between all pairs in degrees, ascending."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), 1)
    return np.sort(np.degrees(np.arccos(np.clip((unit[first] * unit[second]).sum(1), -1, 1))))


@cache
def _known() -> dict[str, np.ndarray]:
    return {name: _angles(corners) for name, corners in _corners().items()}


def polyhedron(vectors: Float[np.ndarray, "neighbours 3"]) -> str:
    """What neighbours at these vectors from an atom form: "octahedron", "distorted tetrahedron", ...

    All angles at the atom are compared with those of the regular shape: root mean square difference below
    11°, from 3° on it is called distorted. Empty where nothing fits. Lengths do not matter.
    """
    angles = _angles(vectors)
    apart = {
        name: float(np.sqrt(np.mean((angles - ideal) ** 2)))
        for name, ideal in _known().items()
        if len(ideal) == len(angles) > 0
    }
    name = min(apart, key=apart.__getitem__, default="")
    if not name or apart[name] > TOLERANCE:
        return ""
    return name if apart[name] < REGULAR else f"distorted {name}"


def hull(
    points: Float[np.ndarray, "points 3"],
) -> tuple[Int[np.ndarray, "faces 3"], Int[np.ndarray, "edges 2"]]:
    """Triangles of the convex hull, turned outwards, and its edges without the diagonals of flat faces;
    both empty where the points lie in a plane."""
    none = np.zeros((0, 3), dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    centred = points - points.mean(0) if len(points) else points
    if len(points) < 4 or np.linalg.svd(centred, compute_uv=False)[-1] < _FLAT * np.abs(centred).max():
        return none
    from scipy.spatial import ConvexHull

    found = ConvexHull(points)
    faces = found.simplices.astype(np.int64)
    normal = found.equations[:, :3]
    a, b, c = (points[faces[:, k]] for k in range(3))
    inwards = (np.cross(b - a, c - a) * normal).sum(1) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    sides: dict[tuple[int, int], list[int]] = {}
    for number, face in enumerate(faces):
        for one, two in ((0, 1), (1, 2), (2, 0)):
            ends = sorted((int(face[one]), int(face[two])))
            sides.setdefault((ends[0], ends[1]), []).append(number)
    kept = [ends for ends, on in sides.items() if len(on) < 2 or normal[on[0]] @ normal[on[1]] < 0.99]
    return faces, np.array(sorted(kept), dtype=np.int64).reshape(-1, 2)
