"""Fields that deform a lattice: 3 x 3 matrices made of the edges and triplets of a crystal (Klipfel 2023).

v and w are the vectors of two edges that leave one atom, r and |w| their lengths, v̂ and ŵ their directions,
c and s cosine and sine of the angle θ between them, A = ½ |v × w|.

    |a⟩⟨b| = a bᵀ of directions                 ∂r = v vᵀ / r
    p = ŵ - c v̂                                 ∂θ = c p pᵀ / s - s (p v̂ᵀ + v̂ pᵀ) - c s v̂ v̂ᵀ
    n = v x w                                   ∂A = A 1 - n nᵀ / (4 A)

∂f is the derivative of f(g v, g w) by the matrix g at g = 1. All three are symmetric, because f does not
change where g turns the crystal, so the symmetrised field ∂f + ∂fᵀ is 2 ∂f. Symmetric matrices are six
numbers here: xx, yy, zz, yz, xz, xy. With the roots of s² + ε² and |n|² + ε² in place of s and |n|, values
and slopes stay finite on a straight line, where ∂θ and ∂A go to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.ragged import group_index
from facetry.graph.triplets import Triplets
from facetry.nn.segment import segment_sum


@dataclass(frozen=True)
class Fields:
    """The fields of a configuration, each with a weight of its own.

    `edge`: one field for each edge. `triplet` names those for triplets: of the first or second edge alone
    ("first", "second": uuᵀ or ∂r), of both ("mixed": ½ (v̂ŵᵀ + ŵv̂ᵀ); "cross": v̂ŵᵀ; "back": ŵv̂ᵀ), of the
    triangle ("angle", "area").
    """

    gradient: bool  # ∂r for an edge, not uuᵀ
    edge: bool
    triplet: tuple[str, ...] = ()
    scale: float = 1.0


FIELDS = {
    "ket_bra_1": Fields(False, True),
    "ket_bra_2": Fields(False, False, ("first",)),
    "ket_bra_3": Fields(False, True, ("first",)),
    "ket_bra_4": Fields(False, True, ("first", "mixed")),
    "ket_bra_5": Fields(False, True, ("first", "second", "cross", "back")),
}
for _name, _scale in (("gradient", 1.0), ("gradient_sym", 2.0)):
    FIELDS[f"{_name}_1"] = Fields(True, True, (), _scale)
    FIELDS[f"{_name}_2"] = Fields(True, False, ("first", "second"), _scale)
    FIELDS[f"{_name}_3"] = Fields(True, True, ("first", "second"), _scale)
    FIELDS[f"{_name}_4"] = Fields(True, True, ("first", "second", "area"), _scale)
    FIELDS[f"{_name}_5"] = Fields(True, True, ("first", "second", "angle"), _scale)


def softening(dtype: torch.dtype) -> float:
    """ε, below which sines and areas count as zero."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def mixed_outer(a: Float[Tensor, "items 3"], b: Float[Tensor, "items 3"]) -> Float[Tensor, "items 6"]:
    """½ (a bᵀ + b aᵀ)."""
    diagonal = a * b
    turned_a, turned_b = a.roll(-1, 1), b.roll(-1, 1)  # y z x
    away_a, away_b = a.roll(1, 1), b.roll(1, 1)  # z x y
    return torch.cat([diagonal, 0.5 * (turned_a * away_b + away_a * turned_b)], 1)


def outer(a: Float[Tensor, "items 3"]) -> Float[Tensor, "items 6"]:
    """a aᵀ; of unit vectors the ket-bra field of an edge."""
    return torch.cat([a * a, a.roll(-1, 1) * a.roll(1, 1)], 1)


def sine_and_cosine(
    a: Float[Tensor, "items 3"], b: Float[Tensor, "items 3"]
) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
    """Of the angle between unit vectors; the sine is softened and never zero."""
    cross = torch.linalg.cross(a, b)
    sine = ((cross * cross).sum(1) + softening(a.dtype) ** 2).sqrt()
    return sine, (a * b).sum(1).clamp(-1.0, 1.0)


def angle_gradient(a: Float[Tensor, "items 3"], b: Float[Tensor, "items 3"]) -> Float[Tensor, "items 6"]:
    """∂θ of the angle between unit vectors: Frobenius norm √2 sin θ, trace zero."""
    sine, cosine = (x[:, None] for x in sine_and_cosine(a, b))
    p = b - cosine * a
    return cosine / sine * outer(p) - 2 * sine * mixed_outer(p + 0.5 * cosine * a, a)


def area_gradient(v: Float[Tensor, "items 3"], w: Float[Tensor, "items 3"]) -> Float[Tensor, "items 6"]:
    """∂A of the triangle's area, in Å²: A times the projection on its plane."""
    n = torch.linalg.cross(v, w)
    area = 0.5 * ((n * n).sum(1, keepdim=True) + softening(v.dtype) ** 2).sqrt()
    return torch.nn.functional.pad(area.expand(-1, 3), (0, 3)) - outer(n) / (4 * area)


def as_matrix(six: Float[Tensor, "items 6"]) -> Float[Tensor, "items 3 3"]:
    """The six numbers as a matrix."""
    return six[:, [0, 5, 4, 5, 1, 3, 4, 3, 2]].unflatten(1, (3, 3))


def field_mean(
    fields: Fields,
    vectors: Float[Tensor, "edges 3"],
    num_edges: Int[Tensor, " crystals"],
    triplets: Triplets | None,
    edge_weights: Float[Tensor, "edges 1"] | None,
    triplet_weights: Float[Tensor, "triplets fields"] | None,
) -> Float[Tensor, "crystals 3 3"]:
    """B = mean over edges of w λ + mean over triplets of Σ w λ, for each crystal (Klipfel 2023, Eq. 10).

    What a triplet does to one of its edges alone is linear in λ of that edge, so only its weight (or, of two
    edges, a weighted vector) is summed over triplets; six numbers a triplet exist for angles and areas only.
    """
    crystals = len(num_edges)
    lengths = vectors.norm(dim=1, keepdim=True)
    directions = vectors / lengths
    weight = vectors.new_zeros(len(vectors))
    if edge_weights is not None:
        share = 1.0 / num_edges.clamp(min=1).to(vectors.dtype)
        weight = edge_weights[:, 0].to(vectors.dtype) * torch.repeat_interleave(share, num_edges)
    six = full = None
    at_triplets = []
    if triplets is not None and triplet_weights is not None:
        crystal = triplets.crystal
        share = 1.0 / triplets.num_triplets.clamp(min=1).to(vectors.dtype)
        shares = triplet_weights.to(vectors.dtype) * share.index_select(0, crystal)[:, None]
        first, second = triplets.first, triplets.second

        def partners(w: Tensor) -> Tensor:
            """Σ w ŵ over the second edges of every first edge."""
            rows = w[:, None] * directions.index_select(0, second)
            return segment_sum(rows, first, len(vectors))

        for name, w in zip(fields.triplet, shares.unbind(1), strict=True):
            if name == "first":
                weight = weight.index_add(0, first, w)
            elif name == "second":
                weight = weight.index_add(0, second, w)
            elif name == "mixed":
                six = mixed_outer(directions, partners(w))
            elif name == "cross":
                full = directions[:, :, None] * partners(w)[:, None, :]
            elif name == "back":
                full = full + partners(w)[:, :, None] * directions[:, None, :]
            elif name == "angle":
                ends = (directions.index_select(0, e) for e in (first, second))
                at_triplets.append(w[:, None] * angle_gradient(*ends))
            else:
                ends = (vectors.index_select(0, e) for e in (first, second))
                at_triplets.append(w[:, None] * area_gradient(*ends))
    own = weight[:, None] * outer(directions)
    if fields.gradient:
        own = own * lengths
    edge_crystal = group_index(num_edges)
    total = segment_sum(own if six is None else own + six, edge_crystal, crystals)
    for rows in at_triplets:
        total = total + segment_sum(rows, crystal, crystals)
    matrix = as_matrix(total)
    if full is not None:
        matrix = matrix + segment_sum(full, edge_crystal, crystals)
    return fields.scale * matrix
