"""eComFormer's equivariant update: two tensor products that carry directions between atoms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from facetry.nn.segment import segment_mean, segment_sum

VECTORS = 8  # channels of degree 1, and of degree 2


def spherical_harmonics(direction: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges 8"]:
    """Real harmonics of degree 1 (3) and 2 (5) of unit vectors, ‖Y₁‖² = 3 and ‖Y₂‖² = 5.

    Any orthonormal basis of a degree gives the same network, since only inner products leave it.
    """
    x, y, z = direction.unbind(1)
    root3, root5, root15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    return torch.stack(
        [
            root3 * x,
            root3 * y,
            root3 * z,
            root15 * x * z,
            root15 * x * y,
            root5 * (y * y - (x * x + z * z) / 2),
            root15 * y * z,
            root15 / 2 * (z * z - x * x),
        ],
        1,
    )


def commutator(
    a: Float[Tensor, "atoms tensors 5"], b: Float[Tensor, "atoms tensors 5"]
) -> Float[Tensor, "atoms tensors 3"]:
    """AB - BA of two tensors of degree 2, in the basis of `spherical_harmonics`, as an axial vector."""

    def matrix(t: Tensor) -> Tensor:
        xz, xy, y2, yz, x2z2 = (t / 2).unbind(-1)
        y2 = y2 / math.sqrt(3)
        rows = [-y2 - x2z2, xy, xz, xy, 2 * y2, yz, xz, yz, x2z2 - y2]
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    product = matrix(a) @ matrix(b)
    odd = product - product.transpose(-1, -2)  # (AB)ᵀ = BA for symmetric matrices
    return torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], -1)


class EdgeWeights(nn.Module):
    """Linear, softplus, Linear: the weights of a tensor product, a set for each edge.

    They are never made: the products are linear in the hidden vector c = (softplus(Linear(f)), 1), so the
    last Linear is applied to atoms, `blocks()` holding it as a (C + 1) × inputs × outputs tensor.
    """

    def __init__(self, channels: int, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, sum(a * b for a, b in sizes))
        self.sizes = sizes

    def forward(self, f: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels_plus_one"]:
        return nn.functional.pad(softplus(self.hidden(f)), (0, 1), value=1.0)

    def blocks(self) -> list[Float[Tensor, "channels_plus_one inputs outputs"]]:
        """One tensor for each path, in the order of `sizes`."""
        flat = torch.cat([self.out.weight.T, self.out.bias[None]])
        widths = [a * b for a, b in self.sizes]
        return [
            part.reshape(len(flat), a, b)
            for part, (a, b) in zip(flat.split(widths, dim=1), self.sizes, strict=True)
        ]


class Groups:
    """Rows sorted by the atom they belong to, padded to the same number for each atom: the layout in which
    a product of every edge with its atom's own matrix is one batched matrix product."""

    def __init__(self, atom: Int[Tensor, " edges"], atoms: int) -> None:
        self.order = torch.argsort(atom, stable=True)
        self.atom = atom[self.order]
        counts = torch.bincount(atom, minlength=atoms)
        first = torch.cumsum(counts, 0) - counts
        self.width = int(counts.max()) if len(atom) else 0
        rank = torch.arange(len(atom), device=atom.device) - first[self.atom]
        self.slot = self.atom * self.width + rank
        self.atoms = atoms

    def pad(self, rows: Float[Tensor, "edges channels"]) -> Float[Tensor, "atoms width channels"]:
        """Edges as a table of atoms by slots, zero where an atom has fewer."""
        table = rows.new_zeros((self.atoms * self.width, rows.shape[1]))
        table = table.index_copy(0, self.slot, rows.index_select(0, self.order))
        return table.view(self.atoms, self.width, -1)

    def unpad(self, table: Float[Tensor, "atoms width channels"]) -> Float[Tensor, "edges channels"]:
        """The table's rows back in the order of the edges."""
        rows = table.reshape(self.atoms * self.width, -1).index_select(0, self.slot)
        return torch.empty_like(rows).index_copy(0, self.order, rows)


class EquivariantUpdate(nn.Module):
    """Scalars to vectors and tensors and back, over the edges of the graph (Yan 2024, Eq. 9 to 11).

    First product: h_j (n scalars) times Y_l of the edge gives n scalars, 8 vectors, 8 tensors of degree 2,
    averaged over the edges of i, scalars with the residual h_i. Second product: the neighbour's features
    with Y_l give n scalars, averaged. Then softplus(Linear(softplus(BN(o)))) + Linear(x).

    `degree` 1 or 2 is the highest degree kept. `pseudoscalar` adds what the paper lacks: cross products of
    vectors and commutators of tensors (parity-even, degree 1) meet Y₁ of the edges in a parity-odd scalar,
    which alone can tell a crystal from its mirror image; it enters after an odd nonlinearity. The tensors are
    needed where every atom lies on a two-fold axis, as in tellurium: the vectors of an atom are parallel
    there, so with `degree=1` such a crystal looks like its mirror image.
    """

    def __init__(self, channels: int, scalars: int, degree: int = 2, pseudoscalar: bool = False) -> None:
        super().__init__()
        if degree not in (1, 2):
            raise ValueError(f"equivariant update: expected degree 1 or 2, came {degree}")
        self.scalars, self.degree = scalars, degree
        self.project = nn.Linear(channels, scalars)
        hidden = [(scalars, scalars)] + [(scalars, VECTORS)] * degree
        self.first = EdgeWeights(channels, hidden)
        self.second = EdgeWeights(channels, [(scalars, scalars)] + [(VECTORS, scalars)] * degree)
        self.norm = nn.BatchNorm1d(scalars)
        self.out = nn.Linear(scalars, channels)
        self.skip = nn.Linear(channels, channels)
        self.pseudoscalar = pseudoscalar
        if pseudoscalar:
            self.cross = nn.Linear(VECTORS, 2 * VECTORS, bias=False)
            self.twist = nn.Linear(VECTORS, 2 * VECTORS, bias=False) if degree == 2 else None
            self.third = EdgeWeights(channels, [(VECTORS, VECTORS)])
            self.odd = nn.Linear(VECTORS, channels, bias=False)

    def forward(
        self,
        x: Float[Tensor, "atoms channels"],
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"],
        harmonics: Float[Tensor, "edges 8"],
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
        weight: Float[Tensor, " edges"] | None,
    ) -> Float[Tensor, "atoms channels"]:
        atoms = len(x)
        mean = weight if weight is None else weight.to(x.dtype)
        scalars, vectors, tensors = self.spread(x, f, row, harmonics, center, neighbor, mean)
        by_center = Groups(center, atoms)
        y1, y2 = harmonics[:, :3], harmonics[:, 3:]
        features = [scalars.index_select(0, neighbor)]
        features.append(torch.einsum("eum,em->eu", vectors.index_select(0, neighbor), y1) / math.sqrt(3))
        if self.degree == 2:
            features.append(torch.einsum("eum,em->eu", tensors.index_select(0, neighbor), y2) / math.sqrt(5))
        inputs = torch.cat(features, 1)
        blocks = torch.cat(self.second.blocks(), 1)
        o = _gather_contract(
            self.second(f).index_select(0, row), inputs, blocks, by_center, mean
        ) / math.sqrt(inputs.shape[1])
        out = softplus(self.out(softplus(self.norm(o)))) + self.skip(x)
        if self.pseudoscalar:
            a, b = self.cross(vectors.transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
            axial = torch.linalg.cross(a, b, dim=2)
            if self.twist is not None:
                a, b = self.twist(tensors.transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
                axial = axial + commutator(a, b)
            dots = torch.einsum("eum,em->eu", axial.index_select(0, neighbor), y1) / math.sqrt(3)
            odd = _gather_contract(
                self.third(f).index_select(0, row), dots, self.third.blocks()[0], by_center, mean
            )
            out = out + self.odd(torch.tanh(odd / math.sqrt(VECTORS)))
        return out

    def spread(
        self,
        x: Float[Tensor, "atoms channels"],
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"],
        harmonics: Float[Tensor, "edges 8"],
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
        weight: Float[Tensor, " edges"] | None,
    ) -> tuple[Float[Tensor, "atoms scalars"], Float[Tensor, "atoms 8 3"], Float[Tensor, "atoms tensors 5"]]:
        """The first product and its mean over edges: scalars, vectors, tensors of every atom.

        The weights act on the neighbour's scalars alone, so each atom's matrix Σ_u h_u A[c, u, w] is formed
        once and every edge multiplies it with its hidden vector.
        """
        atoms, n = len(x), self.scalars
        h = self.project(x)
        blocks = torch.cat(self.first.blocks(), 2)
        width = blocks.shape[2]
        matrices = (h @ blocks.transpose(0, 1).reshape(n, -1)).view(atoms, -1, width)
        groups = Groups(neighbor, atoms)
        product = groups.unpad(
            torch.bmm(groups.pad(self.first(f).index_select(0, row)), matrices)
        ) / math.sqrt(n)
        parts = [product[:, :n]]
        parts.append((product[:, n : n + VECTORS, None] * harmonics[:, None, :3]).flatten(1))
        if self.degree == 2:
            parts.append((product[:, n + VECTORS :, None] * harmonics[:, None, 3:]).flatten(1))
        rows = torch.cat(parts, 1)
        mean = _weighted_mean(rows, center, atoms, weight)
        vectors = mean[:, n : n + 3 * VECTORS].reshape(atoms, VECTORS, 3)
        tensors = mean[:, n + 3 * VECTORS :].reshape(atoms, -1, 5)
        return mean[:, :n] + h, vectors, tensors


def _weighted_mean(
    rows: Float[Tensor, "edges channels"],
    center: Int[Tensor, " edges"],
    atoms: int,
    weight: Float[Tensor, " edges"] | None,
) -> Float[Tensor, "atoms channels"]:
    if weight is None:
        return segment_mean(rows, center, atoms)
    total = segment_sum(weight, center, atoms).clamp(min=1e-12)
    return segment_sum(rows * weight[:, None], center, atoms) / total[:, None]


def _gather_contract(
    hidden: Float[Tensor, "edges channels_plus_one"],
    inputs: Float[Tensor, "edges inputs"],
    blocks: Float[Tensor, "channels_plus_one inputs outputs"],
    groups: Groups,
    weight: Float[Tensor, " edges"] | None,
) -> Float[Tensor, "atoms outputs"]:
    """Mean over an atom's edges of Σ_{c,u} hidden_c inputs_u blocks[c, u, :], summed over edges first."""
    share = hidden.new_ones(len(hidden)) if weight is None else weight
    atoms = groups.atoms
    total = segment_sum(share.index_select(0, groups.order), groups.atom, atoms).clamp(min=1e-12)
    outer = torch.bmm(groups.pad(hidden).transpose(1, 2), groups.pad(inputs * share[:, None]))
    flat = blocks.reshape(-1, blocks.shape[2])
    return outer.reshape(atoms, -1) @ flat / total[:, None]
