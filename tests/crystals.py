"""Crystals that the tests share: textbook structures, hard cells, random ones, and what to do to them."""

from __future__ import annotations

import numpy as np

from facetry.crystal import Crystal


def _cell(a, b, c, alpha, beta, gamma) -> np.ndarray:
    ca, cb, cg = (np.cos(np.radians(v)) for v in (alpha, beta, gamma))
    sg = np.sin(np.radians(gamma))
    cx, cy = cb, (ca - cb * cg) / sg
    return np.array([[a, 0, 0], [b * cg, b * sg, 0], [c * cx, c * cy, c * np.sqrt(1 - cx**2 - cy**2)]])


def fcc(a: float) -> np.ndarray:
    return a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])


def bcc(a: float) -> np.ndarray:
    return a / 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1.0]])


def po() -> Crystal:
    return Crystal(np.eye(3) * 3.35, [[0, 0, 0]], [84], name="Po")


def cu() -> Crystal:
    return Crystal(fcc(3.61), [[0, 0, 0]], [29], name="Cu")


def fe() -> Crystal:
    return Crystal(bcc(2.87), [[0, 0, 0]], [26], name="Fe")


def cscl() -> Crystal:
    return Crystal(np.eye(3) * 4.12, [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17], name="CsCl")


def nacl() -> Crystal:
    return Crystal(fcc(5.64), [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17], name="NaCl")


def nacl_conventional() -> Crystal:
    f = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Crystal(
        np.eye(3) * 5.64, np.concatenate([f, f + 0.5]), [11] * 4 + [17] * 4, name="NaCl conventional"
    )


def si() -> Crystal:
    return Crystal(fcc(5.43), [[0, 0, 0], [0.25, 0.25, 0.25]], [14, 14], name="Si")


def zns_blende() -> Crystal:
    return Crystal(fcc(5.41), [[0, 0, 0], [0.25, 0.25, 0.25]], [30, 16], name="ZnS blende")


def zno(c: float = 5.207) -> Crystal:
    """Wurtzite; c < a makes the hexagonal lattice with two classes of frames."""
    f = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.382], [2 / 3, 1 / 3, 0.882]]
    return Crystal(_cell(3.25, 3.25, c, 90, 90, 120), f, [30, 30, 8, 8], name=f"ZnO c={c}")


def mg() -> Crystal:
    return Crystal(
        _cell(3.21, 3.21, 5.21, 90, 90, 120),
        [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
        [12, 12],
        name="Mg",
    )


def hexagonal_flat() -> Crystal:
    return Crystal(_cell(3.9, 3.9, 3.1, 90, 90, 120), [[0, 0, 0], [1 / 3, 2 / 3, 0.47]], [5, 22], name="c<a")


def rhombohedral(alpha: float) -> Crystal:
    cell = _cell(4.7, 4.7, 4.7, alpha, alpha, alpha)
    return Crystal(cell, [[0, 0, 0], [0.23, 0.23, 0.23]], [33, 52], name=f"rhombohedral {alpha}")


def srtio3() -> Crystal:
    f = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Crystal(np.eye(3) * 3.905, f, [38, 22, 8, 8, 8], name="SrTiO3")


def low_motif(lattice: np.ndarray, name: str, seed: int = 3) -> Crystal:
    """A motif without symmetry in a lattice with much."""
    f = np.random.default_rng(seed).uniform(size=(3, 3)) * 0.2 + np.array(
        [[0, 0, 0], [0.4, 0.5, 0.1], [0.6, 0.1, 0.6]]
    )
    return Crystal(lattice, f, [3, 8, 15], name=name)


def orthorhombic_motif() -> Crystal:
    return low_motif(np.diag([4.1, 4.9, 6.2]), "orthorhombic lattice, motif without symmetry")


def tellurium(hand: int = 1) -> Crystal:
    """Trigonal Te: three-fold screw, left or right."""
    u, z = 0.2636, hand / 3
    f = [[u, 0, 0], [0, u, z], [-u, -u, 2 * z]]
    return Crystal(_cell(4.456, 4.456, 5.927, 90, 90, 120), f, [52] * 3, name=f"Te {hand:+d}")


def layered() -> Crystal:
    cell = _cell(3.16, 3.16, 12.3, 90, 90, 120)
    f = [
        [1 / 3, 2 / 3, 0.25],
        [2 / 3, 1 / 3, 0.75],
        [1 / 3, 2 / 3, 0.621],
        [1 / 3, 2 / 3, 0.879],
        [2 / 3, 1 / 3, 0.121],
        [2 / 3, 1 / 3, 0.379],
    ]
    return Crystal(cell, f, [42, 42, 16, 16, 16, 16], name="MoS2")


def random_crystal(seed: int, atoms: int | None = None, species: int = 3) -> Crystal:
    """Random triclinic cell of reasonable density, atoms at least 1.5 Å apart."""
    rng = np.random.default_rng(seed)
    n = atoms or int(rng.integers(1, 8))
    for _ in range(2000):
        cell = _cell(*rng.uniform(0.8, 1.3, 3), *rng.uniform(65, 115, 3))
        cell *= (14.0 * n / abs(np.linalg.det(cell))) ** (1 / 3)
        frac = rng.uniform(size=(n, 3))
        d = frac[:, None] - frac[None] + np.array(list(np.ndindex(3, 3, 3)))[:, None, None] - 1
        dist = np.linalg.norm(d @ cell, axis=-1)
        if n == 1 or dist[dist > 1e-9].min() > 1.5:
            elements = rng.choice([1, 3, 6, 8, 13, 16, 22, 29, 38, 47, 56, 79], size=species, replace=False)
            return Crystal(cell, frac, rng.choice(elements, size=n), name=f"random {seed}")
    raise AssertionError("no random crystal found")


def symmetric() -> list[Crystal]:
    """High symmetry, where lattice vectors tie."""
    return [
        po(), cu(), fe(), cscl(), nacl(), si(), zns_blende(), zno(), mg(), hexagonal_flat(), srtio3(),
        rhombohedral(50), rhombohedral(80), rhombohedral(100), orthorhombic_motif(), layered(),
        low_motif(np.eye(3) * 4.6, "cubic lattice, motif without symmetry"),
        low_motif(fcc(6.8), "fcc lattice, motif without symmetry"),
        low_motif(bcc(5.9), "bcc lattice, motif without symmetry"),
        low_motif(_cell(4.4, 4.4, 5.2, 90, 90, 120), "hexagonal lattice, motif without symmetry"),
        tellurium(+1),
    ]  # fmt: skip


# ------------------------------------------------------------------ what may be done to a crystal


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def rotated(c: Crystal, matrix: np.ndarray) -> Crystal:
    """Every Cartesian vector r becomes r @ matrix.T; works for reflections too."""
    return c.replace(lattice=c.lattice @ matrix.T)


def mirrored(c: Crystal) -> Crystal:
    return rotated(c, -np.eye(3))


def shifted(c: Crystal, seed: int) -> Crystal:
    shift = np.random.default_rng(seed).uniform(-2, 2, 3)
    return c.replace(frac_coords=c.frac_coords + shift)


def permuted(c: Crystal, seed: int) -> Crystal:
    order = np.random.default_rng(seed).permutation(len(c))
    shares = None if c.occupancies is None else [c.occupancies[i] for i in order]
    return c.replace(
        frac_coords=c.frac_coords[order], atomic_numbers=c.atomic_numbers[order], occupancies=shares
    )


def unwrapped(c: Crystal, seed: int) -> Crystal:
    steps = np.random.default_rng(seed).integers(-3, 4, size=(len(c), 3))
    return c.replace(frac_coords=c.frac_coords + steps)


def unimodular(seed: int, bound: int = 5) -> np.ndarray:
    """A random integer matrix of determinant ±1 with entries up to ±bound."""
    rng = np.random.default_rng(seed)
    while True:
        m = rng.integers(-bound, bound + 1, size=(3, 3))
        if round(abs(np.linalg.det(m))) == 1:
            return m


def rebased(c: Crystal, matrix: np.ndarray) -> Crystal:
    """The same crystal with lattice rows matrix @ lattice."""
    inverse = np.round(np.linalg.inv(matrix))
    return c.replace(lattice=matrix @ c.lattice, frac_coords=c.frac_coords @ inverse)
