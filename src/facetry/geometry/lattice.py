"""Lattices: metric, volume, strain, cell parameters, fractional and Cartesian coordinates.

A lattice is a 3 x 3 matrix whose rows are a, b, c in Å; ``cart = frac @ lattice``. Functions take any number
of leading axes, keep dtype and device, and are differentiable.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def determinant(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Closed form; several times faster than an LU factorisation of many 3 x 3 matrices."""
    a, b, c = matrix.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1)


def inverse(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Closed form by cross products; infinite or NaN entries when the matrix is singular."""
    return reciprocal(matrix).transpose(-1, -2)


def volume(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Signed volume in Å³: negative for a left-handed lattice."""
    return determinant(lattice)


def metric(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Metric tensor G, the scalar products of the lattice vectors, in Å²."""
    return lattice @ lattice.transpose(-1, -2)


def reciprocal(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rows a*, b*, c* in 1/Å without the factor 2π: ``lattice @ reciprocal.T = 1``."""
    a, b, c = lattice.unbind(-2)
    bc = torch.linalg.cross(b, c)
    rows = torch.stack((bc, torch.linalg.cross(c, a), torch.linalg.cross(a, b)), -2)
    return rows / (a * bc).sum(-1)[..., None, None]


def plane_spacings(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Heights of the cell in Å: distances between opposite faces, (100), (010) and (001)."""
    return 1.0 / torch.linalg.vector_norm(reciprocal(lattice), dim=-1)


def cell_parameters(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """a, b, c in Å and α = ∠(b, c), β = ∠(a, c), γ = ∠(a, b) in degrees."""
    a, b, c = lattice.unbind(-2)
    lengths = torch.linalg.vector_norm(lattice, dim=-1)

    def angle(u: Tensor, v: Tensor) -> Tensor:
        # atan2 stays accurate near 0 and 180 degrees, where the arccosine loses half of the digits
        sine = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1)
        return torch.rad2deg(torch.atan2(sine, (u * v).sum(-1)))

    angles = torch.stack((angle(b, c), angle(a, c), angle(a, b)), -1)
    return torch.cat((lengths, angles), -1)


def lattice_from_parameters(parameters: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Right-handed lattice from a, b, c (Å), α, β, γ (degrees), set up as pymatgen does.

    c lies along z, a in the xz plane with positive x; b takes the sign of y that makes the lattice right-
    handed. The angles must be able to close a cell: otherwise ``ValueError`` with the first cell that cannot.
    """
    a, b, c, alpha, beta, gamma = parameters.unbind(-1)
    alpha, beta, gamma = (torch.deg2rad(x) for x in (alpha, beta, gamma))
    cos_gamma_star = (alpha.cos() * beta.cos() - gamma.cos()) / (alpha.sin() * beta.sin())
    if bool((cos_gamma_star.abs() > 1 + 1e-8).any()) or bool(cos_gamma_star.isnan().any()):
        flat = parameters.reshape(-1, 6)
        bad = int((~(cos_gamma_star.reshape(-1).abs() <= 1 + 1e-8)).nonzero()[0])
        angles = ", ".join(f"{x:g}" for x in flat[bad, 3:].tolist())
        raise ValueError(f"cell {bad}: no cell has the angles {angles} degrees; check alpha, beta, gamma")
    cos_gamma_star = cos_gamma_star.clamp(-1.0, 1.0)
    sin_gamma_star = (1.0 - cos_gamma_star.square()).clamp_min(0.0).sqrt()
    zero = torch.zeros_like(a)
    return torch.stack(
        (
            torch.stack((a * beta.sin(), zero, a * beta.cos()), -1),
            torch.stack(
                (-b * alpha.sin() * cos_gamma_star, b * alpha.sin() * sin_gamma_star, b * alpha.cos()), -1
            ),
            torch.stack((zero, zero, c), -1),
        ),
        -2,
    )


def apply_strain(
    lattice: Float[Tensor, "*batch 3 3"], strain: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """Lattice deformed by ``1 + strain`` acting on every Cartesian vector from the right.

    A symmetric strain does not turn the crystal; with dE/dstrain at zero the stress is that derivative over
    volume.
    """
    return lattice + lattice @ strain


def frac_to_cart(
    frac_coords: Float[Tensor, "atoms 3"],
    lattice: Float[Tensor, "crystals 3 3"],
    crystal_index: Int[Tensor, " atoms"],
) -> Float[Tensor, "atoms 3"]:
    """Cartesian coordinates in Å of atoms that belong to the lattices named by ``crystal_index``."""
    return (frac_coords.unsqueeze(-2) @ lattice[crystal_index]).squeeze(-2)


def cart_to_frac(
    cart_coords: Float[Tensor, "atoms 3"],
    lattice: Float[Tensor, "crystals 3 3"],
    crystal_index: Int[Tensor, " atoms"],
) -> Float[Tensor, "atoms 3"]:
    """Fractional coordinates of Cartesian positions in Å; nothing is wrapped into the cell."""
    return (cart_coords.unsqueeze(-2) @ inverse(lattice)[crystal_index]).squeeze(-2)
