"""Reduced cells for many lattices at once: Minkowski and Niggli.

Every step is an integer change of basis. The integers are kept and the reduced lattice is computed from them
once, so however skewed the input, ``reduced = transform @ lattice`` describes exactly the same points.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.lattice import determinant

# A change of basis must shorten a vector by more than this share, or rounding could make it go in circles.
_SHORTER = 1.0 - 1e-11
_MAX_SWEEPS = 400

# Corners (0 or 1) of the parallelogram that holds the point to be approximated.
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


def working_copy(lattice: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Detached float64 copy to decide on: on the same device, or on the CPU where that has no float64
    (MPS)."""
    device = "cpu" if lattice.device.type == "mps" else lattice.device
    return lattice.detach().to(device=device, dtype=torch.float64)


def minkowski_reduce(
    lattice: Float[Tensor, "crystals 3 3"],
) -> tuple[Float[Tensor, "crystals 3 3"], Int[Tensor, "crystals 3 3"]]:
    """Shortest possible cell: row lengths are the successive minima, in ascending order.

    Returns ``(reduced, transform)`` with ``reduced = transform @ lattice`` and det(transform) = +1, so
    handedness is kept. Differentiable in the lattice, the integers being constants. Greedy algorithm of
    Semaev (2001): reduce the second vector by the first, the third by its closest vector in the plane of
    both, sort, until nothing shrinks; in three dimensions the result is Minkowski-reduced (Nguyen and Stehlé
    2004). Crystals that are finished leave the sweeps. Raises ``ValueError`` for a lattice without volume.
    """
    transform = _minkowski_transform(working_copy(lattice))
    reduced = transform.to(lattice.device, lattice.dtype) @ lattice
    return reduced, transform.to(lattice.device, torch.int64)


def _minkowski_transform(lattice: Float[Tensor, "crystals 3 3"]) -> Float[Tensor, "crystals 3 3"]:
    """The integers of ``minkowski_reduce`` as float64 (exact below 2**53, and CUDA has no integer matmul)."""
    eye = torch.eye(3, dtype=lattice.dtype, device=lattice.device)
    result = eye.expand(len(lattice), 3, 3).clone()
    if len(lattice) == 0:
        return result
    corners = lattice.new_tensor(_CORNERS)
    active = None  # all
    transform, cell = result, lattice
    for _ in range(_MAX_SWEEPS):
        transform, shrunk = _sweep(transform, cell, corners)
        if active is None:
            result = transform
        else:
            result[active] = transform
        rows = shrunk.nonzero().squeeze(1)
        if len(rows) == 0:
            _check_volume(result @ lattice, lattice)
            # the sign that makes det +1; integers of this size have an exact determinant
            return result * determinant(result).sign()[:, None, None]
        active = rows if active is None else active[rows]
        transform, cell = transform[rows], cell[rows]
    raise _no_volume(active[0], lattice)  # type: ignore[index]


def _check_volume(reduced: Float[Tensor, "crystals 3 3"], lattice: Float[Tensor, "crystals 3 3"]) -> None:
    """The volume of a Minkowski cell is at least 1/√2 of the product of its lengths; anything else is
    broken."""
    length = torch.linalg.vector_norm(reduced, dim=-1)
    sound = determinant(reduced).abs() > 0.5 * length.prod(-1)
    sound &= length[:, 0] > 1e-9 * length[:, 2]
    if not bool(sound.all()):
        raise _no_volume((~sound).nonzero()[0], lattice)


def _no_volume(crystal: Tensor, lattice: Float[Tensor, "crystals 3 3"]) -> ValueError:
    return ValueError(
        f"lattice {int(crystal)} of the batch has no usable volume: "
        f"{lattice[int(crystal)].tolist()}; give three independent lattice vectors"
    )


def _sweep(
    transform: Float[Tensor, "crystals 3 3"],
    lattice: Float[Tensor, "crystals 3 3"],
    corners: Float[Tensor, "4 2"],
) -> tuple[Float[Tensor, "crystals 3 3"], Tensor]:
    """Sort by length, reduce b by a, reduce c by the net of a and b. Also says where anything shrank."""
    cell = transform @ lattice
    order = cell.square().sum(-1).argsort(dim=-1, stable=True)[..., None].expand(-1, -1, 3)
    cell, transform = cell.gather(1, order), transform.gather(1, order)
    a, b, c = cell.unbind(1)
    ta, tb, tc = transform.unbind(1)

    aa, bb_old = a.square().sum(-1), b.square().sum(-1)
    times = ((a * b).sum(-1) / aa).round()
    b_new = torch.addcmul(b, times[:, None], a, value=-1.0)
    bb = b_new.square().sum(-1)
    better = bb < bb_old * _SHORTER
    times = torch.where(better, times, 0.0)[:, None]
    b = torch.addcmul(b, times, a, value=-1.0)
    tb = torch.addcmul(tb, times, ta, value=-1.0)
    bb = torch.where(better, bb, bb_old)

    # Where (a, b) is Gauss-reduced, the net point closest to the foot of c is a corner of the mesh it lies
    # in.
    ab, ac, bc = (a * b).sum(-1), (a * c).sum(-1), (b * c).sum(-1)
    area = (aa * bb - ab * ab).clamp_min(torch.finfo(lattice.dtype).tiny)
    foot = torch.stack(((ac * bb - bc * ab) / area, (bc * aa - ac * ab) / area), -1)
    points = foot.floor()[:, None, :] + corners
    cc = c.square().sum(-1)
    moved = c[:, None, :] - points @ torch.stack((a, b), 1)
    shortest, corner = moved.square().sum(-1).min(1)
    closer = shortest < cc * _SHORTER
    point = points.gather(1, corner[:, None, None].expand(-1, 1, 2)).squeeze(1)
    point = torch.where(closer[:, None], point, 0.0)
    tc = tc - point[:, :1] * ta - point[:, 1:] * tb
    return torch.stack((ta, tb, tc), 1), better | closer


def niggli_reduce(
    lattice: Float[Tensor, "crystals 3 3"], tolerance: float = 1e-5
) -> tuple[Float[Tensor, "crystals 3 3"], Int[Tensor, "crystals 3 3"]]:
    """Niggli cell, the unique reduced cell of crystallography.

    Returns ``(reduced, transform)`` with ``reduced = transform @ lattice`` and det(transform) = +1. Steps and
    their order as in Křivý and Gruber, Acta Cryst. A32, 297 (1976); comparisons with a tolerance as in
    Grosse-Kunstleve, Sauter and Adams, Acta Cryst. A60, 1 (2004): ``tolerance`` times the cube root of the
    volume, in Å². Starts from the Minkowski cell, so a few iterations are enough. Raises ``ValueError`` when
    it does not end.
    """
    work = working_copy(lattice)
    start = _minkowski_transform(work)
    result = start.clone()
    epsilon = tolerance * determinant(work).abs().pow(1.0 / 3.0)
    active = torch.arange(len(work), device=work.device)
    for _ in range(_MAX_SWEEPS):
        if len(active) == 0:
            break
        transform, changed = _niggli_step(result[active], work[active], epsilon[active])
        result[active] = transform
        active = active[changed]
    else:
        raise ValueError(
            f"lattice {int(active[0])} of the batch has no Niggli cell at tolerance {tolerance:g}: "
            f"{lattice[active[0]].tolist()}; choose a smaller tolerance"
        )
    reduced = result.to(lattice.device, lattice.dtype) @ lattice
    return reduced, result.to(lattice.device, torch.int64)


def _niggli_step(
    transform: Float[Tensor, "crystals 3 3"],
    lattice: Float[Tensor, "crystals 3 3"],
    epsilon: Float[Tensor, " crystals"],
) -> tuple[Float[Tensor, "crystals 3 3"], Tensor]:
    """Steps 1 to 4 (order and signs), then the first of steps 5 to 8 that applies, which asks for another
    turn."""
    e = epsilon
    eye = torch.eye(3, dtype=lattice.dtype, device=lattice.device)

    def characteristic(rows: Tensor) -> tuple[Tensor, ...]:
        a, b, c = (rows @ lattice).unbind(1)
        return (
            (a * a).sum(-1), (b * b).sum(-1), (c * c).sum(-1),
            2 * (b * c).sum(-1), 2 * (a * c).sum(-1), 2 * (a * b).sum(-1),
        )  # fmt: skip

    def exchange(rows: Tensor, first: int, second: int, where: Tensor) -> Tensor:
        swapped = -rows  # the minus keeps the determinant
        swapped[:, [first, second]] = swapped[:, [second, first]]
        return torch.where(where[:, None, None], swapped, rows)

    # steps 1 and 2: A <= B <= C; equal lengths are ordered by the opposite products
    for first, second in ((0, 1), (1, 2), (0, 1)):
        values = characteristic(transform)
        low, high = values[first], values[second]
        product_low, product_high = values[3 + first].abs(), values[3 + second].abs()
        swap = (low > high + e) | (((low - high).abs() <= e) & (product_low > product_high + e))
        transform = exchange(transform, first, second, swap)

    # steps 3 and 4: the products all positive, or none of them
    products = torch.stack(characteristic(transform)[3:], -1)
    sign = torch.where(products > e[:, None], 1.0, torch.where(products < -e[:, None], -1.0, 0.0))
    acute = sign.prod(-1) > 0
    # acute: flip vector m by the sign of its opposite product. Otherwise flip where the product is positive;
    # when that makes an odd number of flips, take one more where a product is zero (there is one, else it
    # were acute).
    flip_acute = sign
    flip_obtuse = torch.where(sign > 0, -1.0, 1.0)
    odd = flip_obtuse.prod(-1) < 0
    last_zero = 2 - (sign.flip(-1) == 0).to(torch.int64).argmax(-1)
    extra = torch.nn.functional.one_hot(last_zero, 3).to(torch.bool) & odd[:, None]
    flip_obtuse = torch.where(extra, -flip_obtuse, flip_obtuse)
    flips = torch.where(acute[:, None], flip_acute, flip_obtuse)
    transform = flips[..., None] * transform

    # steps 5 to 8
    A, B, _, xi, eta, zeta = characteristic(transform)

    def too_long(product: Tensor, length: Tensor, if_plus: Tensor, if_minus: Tensor) -> Tensor:
        return (
            (product.abs() > length + e)
            | (((product - length).abs() <= e) & if_plus)
            | (((product + length).abs() <= e) & if_minus)
        )

    total = xi + eta + zeta + A + B
    steps = torch.stack(
        (
            too_long(xi, B, 2 * eta < zeta - e, zeta < -e),
            too_long(eta, A, 2 * xi < zeta - e, zeta < -e),
            too_long(zeta, A, 2 * xi < eta - e, eta < -e),
            (total < -e) | ((total.abs() <= e) & (2 * (A + eta) + zeta > e)),
        ),
        -1,
    )
    changed = steps.any(-1)
    which = steps.to(torch.int64).argmax(-1)
    matrices = eye.repeat(len(lattice), 4, 1, 1)
    matrices[:, 0, 2, 1] = -xi.sign()
    matrices[:, 1, 2, 0] = -eta.sign()
    matrices[:, 2, 1, 0] = -zeta.sign()
    matrices[:, 3, 2, :2] = 1.0
    rows = torch.arange(len(lattice), device=lattice.device)
    transform = torch.where(changed[:, None, None], matrices[rows, which] @ transform, transform)
    return transform, changed
