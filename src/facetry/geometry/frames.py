"""The lattice vectors e1, e2, e3 that give every crystal its own axes, with all their ties.

e1 is a shortest lattice translation, e2 a shortest one not collinear with e1, e3 a shortest one not coplanar
with both; e1·e2 >= 0, e1·e3 >= 0, and all three are negated when they are left-handed (Yan et al. 2024,
ComFormer). Their lengths are the successive minima λ1 <= λ2 <= λ3, and in three dimensions independent
vectors of these lengths are a basis of the lattice. In symmetric lattices several triples qualify (24 in a
cube, 144 in the primitive fcc lattice); which one an algorithm meets first is an accident of the cell, so the
whole set is kept here.

Vectors are integers: coefficients in the lattice that was given. Independence and handedness are decided on
them.

Why 13 candidates are enough. In a Minkowski-reduced cell b1, b2, b3 every vector shorter than λ3 + t that is
independent of the shorter ones has coefficients -1, 0 or 1, provided λ1² > 2 λ3 t + t². With n = ±2 or more
times b3 it would be at least √2 λ3 long, since the height of b3 over the plane of b1 and b2 is at least
λ3/√2. With one b3 it sits on b3 + w with w in the plane; where the foot of b3 lies in the Voronoi cell of the
plane net, every w that has a coefficient beyond ±1 makes it longer than b3 by at least λ1² in the square.
Tolerances are held below λ1² / (4 λ3), which matters only for cells longer than about 10⁴ Å.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.geometry.frameset import FrameSet
from facetry.geometry.lattice import determinant
from facetry.geometry.reduction import minkowski_reduce, working_copy

# One of each pair ±v of the shortest candidates in a reduced cell, first non-zero coefficient positive.
_CANDIDATES = tuple(v for v in itertools.product((-1, 0, 1), repeat=3) if v > (0, 0, 0))
# Signs of e2 and e3 relative to e1.
_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


def tied_frames(
    lattice: Float[Tensor, "crystals 3 3"], tol_length: float = 1e-4, tol_cosine: float = 1e-4
) -> FrameSet:
    """Every frame whose vectors reach λ1, λ2, λ3 within ``tol_length`` (Å), with equal weights.

    Where ``|cos(e1, e_m)| <= tol_cosine`` the sign of e_m is free and both are kept. A triple must be a
    basis, that is have integer determinant ±1; within the tolerance a triple of successive minima always is,
    so the demand only spells out independence and no crystal is left without a frame. Lattices are taken as
    they are: a supercell has other frames than its primitive cell (see ``geometry.primitive``).
    """
    found = _triples(lattice, tol_length)
    cosines = found.cosines
    allowed = _allowed_signs(cosines >= -tol_cosine, cosines <= tol_cosine)
    triple, sign = allowed.nonzero().unbind(1)
    return _frames(found, triple, sign, None, lattice)


def continuous_frames(
    lattice: Float[Tensor, "crystals 3 3"], length_width: float = 0.1, cosine_width: float = 0.05
) -> FrameSet:
    """Frames with weights that change continuously with the lattice, through ties and right angles.

    With τ = ``length_width`` (Å) and δ = ``cosine_width`` all independent triples with ``‖e_m‖ < λ_m + τ``
    take part, with weight ``Π χ((‖e_m‖ - λ_m)/τ)`` times ``ρ(cos(e1, e_m)/δ)`` for m = 2, 3, where
    χ(x) = (1 + cos πx)/2 and ρ(x) = (1 + x)/2 cut to [0, 1]. A triple thus enters and leaves with weight
    zero, λ_m are continuous, and the handedness fixes the common sign, which changes nothing at a tie because
    both signs of a vector are there with weight one half. τ is cut to 0.04 λ1 and λ1² / (4 λ3), continuous
    bounds below which independent triples are bases and the candidates complete.
    """
    found = _triples(lattice, length_width, shorter=True)
    excess = ((found.lengths - found.minima[found.crystal]) / found.reach[found.crystal, None]).clamp(
        0.0, 1.0
    )
    near = (0.5 + 0.5 * torch.cos(torch.pi * excess)).prod(1)
    share = (0.5 + 0.5 * found.cosines / cosine_width).clamp(0.0, 1.0)
    first = torch.stack((share, 1.0 - share), 1)  # (triples, sign, m)
    weight = near[:, None] * torch.stack([first[:, i, 0] * first[:, j, 1] for i in (0, 1) for j in (0, 1)], 1)
    triple, sign = (weight > 0).nonzero().unbind(1)
    return _frames(found, triple, sign, weight[triple, sign], lattice)


def published_frame(lattice: Float[Tensor, "crystals 3 3"]) -> FrameSet:
    """One frame per crystal by the rule of the published program, for comparison only.

    Translations are sorted by distance as floating-point numbers, those equal to the last bit by the order of
    an image loop (coefficients ascending, the last one fastest); the first that fits is taken; e_m is turned
    when its angle to e1, through the arccosine, exceeds 90.0 degrees. Ties and right angles are therefore
    decided by rounding and by the choice of cell, so the result is not invariant; ``tied_frames`` is.
    """
    work = working_copy(lattice)
    _, transform = minkowski_reduce(work)
    half = torch.tensor(_CANDIDATES, dtype=torch.int64, device=work.device)
    both = torch.cat((half, -half))
    # coefficients in the given lattice, (crystals, 26, 3)
    images = both.to(work.dtype) @ transform.to(work.dtype)
    for axis in (2, 1, 0):  # stable sorts, the most important key last
        order = images[..., axis].argsort(dim=1, stable=True)
        images = images.gather(1, order[..., None].expand_as(images))
    distance = torch.linalg.vector_norm(images @ work, dim=-1)
    distance, order = distance.sort(dim=1, stable=True)
    images = images.gather(1, order[..., None].expand_as(images))

    def first(mask: Tensor) -> Tensor:
        index = mask.to(torch.int64).argmax(1)
        return images[torch.arange(len(images), device=images.device), index]

    e1 = images[:, 0]
    normal = torch.linalg.cross(e1[:, None].expand_as(images), images)
    e2 = first((normal != 0).any(-1))
    normal = torch.linalg.cross(e1, e2)
    e3 = first((images * normal[:, None]).sum(-1) != 0)
    frame = torch.stack((e1, e2, e3), 1)
    vectors = frame @ work
    length = torch.linalg.vector_norm(vectors, dim=-1)
    cosine = (vectors[:, :1] * vectors[:, 1:]).sum(-1) / (length[:, :1] * length[:, 1:])
    turned = torch.rad2deg(torch.arccos(cosine.clamp(-1.0, 1.0))) > 90.0
    sign = torch.cat((torch.ones_like(turned[:, :1], dtype=work.dtype), 1.0 - 2.0 * turned.to(work.dtype)), 1)
    frame = frame * sign[..., None]
    frame = frame * determinant(frame @ work).sign()[:, None, None]
    index = torch.arange(len(lattice), device=lattice.device)
    return FrameSet(
        index, frame.to(lattice.device, torch.int64), torch.ones_like(lattice[:, 0, 0]).detach(),
        torch.ones_like(index),
    )  # fmt: skip


@dataclass(frozen=True)
class _Triples:
    """Unsigned triples of candidates: what every kind of frame set starts from."""

    crystal: Int[Tensor, " triples"]
    candidate: Int[Tensor, "triples 3"]
    lengths: Float[Tensor, "triples 3"]
    cosines: Float[Tensor, "triples 2"]  # e1·e2 and e1·e3
    minima: Float[Tensor, "crystals 3"]
    reach: Float[Tensor, " crystals"]  # tolerance in length that was used
    transform: Float[Tensor, "crystals 3 3"]
    right_handed: Float[Tensor, " crystals"]  # sign of the determinant of the given lattice


def _triples(lattice: Float[Tensor, "crystals 3 3"], tolerance: float, shorter: bool = False) -> _Triples:
    """All independent triples of lattice vectors within ``tolerance`` of the successive minima.

    With ``shorter`` e2 and e3 may be shorter than λ2 and λ3 by more: then e1 or e2 is as much longer.
    """
    work = working_copy(lattice)
    reduced, transform = minkowski_reduce(work)
    tables = _tables(work.device)
    vectors = tables.candidates @ reduced  # (crystals, 13, 3)
    length = torch.linalg.vector_norm(vectors, dim=-1)

    # Successive minima; two different candidates are never collinear, coplanarity is looked up.
    shortest, first = length.topk(2, dim=1, largest=False)
    coplanar = tables.coplanar[first[:, 0], first[:, 1]]
    third = length.masked_fill(coplanar, torch.inf).amin(1, keepdim=True)
    minima = torch.cat((shortest, third), 1)
    square = minima[:, 0].square()
    reach = torch.minimum(square / (4.0 * minima[:, 2]), 0.04 * minima[:, 0]).clamp_max(tolerance)
    near = length[:, None, :] <= (minima + reach[:, None])[..., None]
    if not shorter:
        near &= length[:, None, :] >= (minima - reach[:, None])[..., None]

    crystal, e1 = near[:, 0].nonzero().unbind(1)
    pair, e2 = (near[crystal, 1] & tables.different[e1]).nonzero().unbind(1)
    crystal, e1 = crystal[pair], e1[pair]
    triple, e3 = (near[crystal, 2] & tables.basis[e1, e2]).nonzero().unbind(1)
    crystal = crystal[triple]
    candidate = torch.stack((e1[triple], e2[triple], e3), 1)

    rows = crystal[:, None]
    chosen, lengths = vectors[rows, candidate], length[rows, candidate]
    cosines = (chosen[:, :1] * chosen[:, 1:]).sum(-1) / (lengths[:, :1] * lengths[:, 1:])
    # det(transform) = 1, so the reduced lattice has the handedness of the given one and is far better
    # conditioned
    hand = determinant(reduced).sign()
    return _Triples(crystal, candidate, lengths, cosines, minima, reach, transform.to(work.dtype), hand)


def _frames(
    found: _Triples,
    triple: Int[Tensor, " frames"],
    sign: Int[Tensor, " frames"],
    weight: Float[Tensor, " frames"] | None,
    lattice: Float[Tensor, "crystals 3 3"],
) -> FrameSet:
    """Signed, right-handed frames in integers of the given lattice; ``weight`` is normalised, or equal if
    None."""
    tables = _tables(found.crystal.device)
    crystal, candidate = found.crystal[triple], found.candidate[triple]
    signs = tables.signs[sign]
    hand = tables.determinant[candidate[:, 0], candidate[:, 1], candidate[:, 2]] * signs[:, 1] * signs[:, 2]
    signs = signs * (hand * found.right_handed[crystal])[:, None]
    integer = (tables.candidates[candidate] * signs[..., None]) @ found.transform[crystal]
    count = torch.bincount(crystal, minlength=len(lattice))
    if weight is None:
        weight = count.to(found.lengths.dtype).reciprocal()[crystal]
    else:
        total = torch.zeros(len(lattice), dtype=weight.dtype, device=weight.device)
        weight = weight / total.index_add_(0, crystal, weight)[crystal]
    device = lattice.device
    return FrameSet(
        crystal.to(device),
        integer.to(device, torch.int64),
        weight.to(device, lattice.dtype),
        count.to(device),
    )


def _allowed_signs(
    plus: Bool[Tensor, "triples 2"], minus: Bool[Tensor, "triples 2"]
) -> Bool[Tensor, "triples 4"]:
    """Which of the four sign pairs of (e2, e3) a triple may take."""
    return torch.stack(
        (
            plus[:, 0] & plus[:, 1],
            plus[:, 0] & minus[:, 1],
            minus[:, 0] & plus[:, 1],
            minus[:, 0] & minus[:, 1],
        ),
        1,
    )


@dataclass(frozen=True)
class _Tables:
    """Integer facts about the candidates, looked up instead of computed."""

    candidates: Float[Tensor, "candidates 3"]
    determinant: Float[Tensor, "candidates candidates candidates"]
    coplanar: Bool[Tensor, "candidates candidates candidates"]
    basis: Bool[Tensor, "candidates candidates candidates"]
    different: Bool[Tensor, "candidates candidates"]
    signs: Float[Tensor, "signs 3"]


_TABLES: dict[torch.device, _Tables] = {}


def _tables(device: torch.device) -> _Tables:
    if device not in _TABLES:
        v = torch.tensor(_CANDIDATES, dtype=torch.float64)
        n = len(v)
        cross = torch.linalg.cross(v[:, None].expand(n, n, 3), v[None].expand(n, n, 3))
        det = cross @ v.T  # exact: small integers
        _TABLES[device] = _Tables(
            v.to(device),
            det.to(device),
            (det == 0).to(device),
            (det.abs() == 1).to(device),
            (~torch.eye(n, dtype=torch.bool)).to(device),
            torch.tensor([(1.0, *pair) for pair in _SIGNS], dtype=torch.float64).to(device),
        )
    return _TABLES[device]
