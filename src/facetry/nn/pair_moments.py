"""Angular moments of the images of every pair of atoms: what a continuous energy can know about directions.

    G_ij[lm, k] = Σ_T Y_lm(w) χ_k,    χ_k = ω(d) φ_k(d),    v = x_j + T - x_i,  d = |v|,  w = v / √(d² + δ²)

ω(d) = 1 + cos(π d / R) vanishes with its slope at the cutoff; Y_lm are solid harmonics, polynomials of w, so
that nothing is singular where two atoms meet. Gaussians φ lie evenly in ln(1 + d / Å): sharp where bonds are,
wide where only shells matter. The sum over images is one small matrix product a pair, and every layer of a
network reads the same G. The pair (j, i) has G_ji[lm] = (-1)^l G_ij[lm].

A network that reads G has slopes in positions and cell by the chain rule: `Moments.pull` takes slopes in G
to slopes in positions and strain, `Moments.push` takes changes of positions and strain to changes of G. No
weight is in between, so a loss on slopes needs the second derivatives of the network alone (`slopes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.graph.images import AtomPairs

DEGREES = 3  # l goes from 0 to 3
SOFT = 0.5  # Å, δ
FARTHEST = 12.0  # Å, the last centre
_BUCKET = 4096  # images, padded ones too, that are worked on at once on the CPU, near its cache
_BUCKET_GPU = 1 << 22


def _harmonics() -> Float[Tensor, "16 20"]:
    """Real solid harmonics, Σ_m Y_lm² = |w|^2l, in the monomials 1; x y z; xx yy zz xy yz zx; xxx yyy zzz xxy
    yyz zzx xxz yyx zzy xyz."""
    r3, r6, r10, r15 = (math.sqrt(n) for n in (3.0, 6.0, 10.0, 15.0))
    names = ["1", "x", "y", "z", "xx", "yy", "zz", "xy", "yz", "zx"]
    names += ["xxx", "yyy", "zzz", "xxy", "yyz", "zzx", "xxz", "yyx", "zzy", "xyz"]
    rows = [
        {"1": 1},
        {"x": 1},
        {"y": 1},
        {"z": 1},
        {"xy": r3},
        {"yz": r3},
        {"zz": 1, "xx": -0.5, "yy": -0.5},
        {"zx": r3},
        {"xx": r3 / 2, "yy": -r3 / 2},
        {"xxy": 3 * r10 / 4, "yyy": -r10 / 4},
        {"xyz": r15},
        {"zzy": r6, "xxy": -r6 / 4, "yyy": -r6 / 4},
        {"zzz": 1, "xxz": -1.5, "yyz": -1.5},
        {"zzx": r6, "xxx": -r6 / 4, "yyx": -r6 / 4},
        {"xxz": r15 / 2, "yyz": -r15 / 2},
        {"xxx": r10 / 4, "yyx": -3 * r10 / 4},
    ]
    table = torch.zeros(len(rows), len(names), dtype=torch.float64)
    for row, terms in enumerate(rows):
        for name, factor in terms.items():
            table[row, names.index(name)] = factor
    return table


HARMONICS = _harmonics()


def monomials(w: Float[Tensor, "3 *items"]) -> Float[Tensor, "20 *items"]:
    """Of degrees 0 to 3, in the order of `HARMONICS`."""
    one, two = w.roll(-1, 0), w.roll(-2, 0)  # y z x, z x y
    squares, mixed = w * w, w * one
    last = (mixed[0] * w[2])[None]
    return torch.cat(
        [torch.ones_like(last), w, squares, mixed, squares * w, squares * one, squares * two, last]
    )


def monomial_slopes(
    w: Float[Tensor, "3 *items"], by: Float[Tensor, "20 *items"]
) -> Float[Tensor, "3 *items"]:
    """Σ_a by_a ∂M_a/∂w."""
    one, two = w.roll(-1, 0), w.roll(-2, 0)
    squares, ones, twos = w * w, w * one, w * two
    at = by.split([1, 3, 3, 3, 3, 3, 3, 1])
    found = at[1] + 2 * w * at[2] + one * at[3] + 3 * squares * at[4] + 2 * ones * at[5] + 2 * twos * at[6]
    # x_i x_(i+1), x_i² x_(i+1) and x_i² x_(i+2) by their second factor
    found += (w * at[3] + squares * at[5]).roll(1, 0)
    found += (squares * at[6]).roll(2, 0)
    return found + ones.roll(-1, 0) * at[7]


def monomial_changes(
    w: Float[Tensor, "3 *items"], dw: Float[Tensor, "3 *items"]
) -> Float[Tensor, "20 *items"]:
    """Σ_w ∂M_a/∂w dw."""
    one, two, d_one, d_two = w.roll(-1, 0), w.roll(-2, 0), dw.roll(-1, 0), dw.roll(-2, 0)
    squares, d_squares = w * w, 2 * w * dw
    mixed, d_mixed = w * one, dw * one + w * d_one
    last = (d_mixed[0] * w[2] + mixed[0] * dw[2])[None]
    cubes = 3 * squares * dw
    parts = [torch.zeros_like(last), dw, d_squares, d_mixed, cubes]
    parts += [d_squares * one + squares * d_one, d_squares * two + squares * d_two, last]
    return torch.cat(parts)


def _centers(size: int, like: Tensor) -> tuple[float, Float[Tensor, "size 1 1"]]:
    """Spacing of the Gaussians in ln(1 + d / Å), and their centres in spacings."""
    return math.log1p(FARTHEST) / (size - 1), torch.arange(size, dtype=like.dtype, device=like.device).view(
        -1, 1, 1
    )


def radial(d: Float[Tensor, "pairs images"], size: int) -> Float[Tensor, "size pairs images"]:
    """Gaussians of ln(1 + d / Å), as wide as they are apart."""
    spacing, centers = _centers(size, d)
    return torch.exp(-0.5 * (torch.log1p(d)[None] / spacing - centers).square())


@dataclass(frozen=True)
class ImageLists:
    """Images of pairs in buckets: of each its pairs and their images, pairs x images, padded; `inside` says
    which are real."""

    pairs: AtomPairs
    rows: list[Int[Tensor, " _"]]
    image: list[Float[Tensor, "_ _ 3"]]
    inside: list[Bool[Tensor, "_ _"]]
    place: Int[Tensor, " pairs"]  # of every pair among those of all buckets

    @staticmethod
    def of(
        pairs: AtomPairs, image: Float[Tensor, "images pairs 3"], count: Int[Tensor, " pairs"]
    ) -> ImageLists:
        """From the table of `facetry.graph.images`."""
        order = torch.argsort(count, descending=True, stable=True)
        numbers = count[order].tolist()
        limit = _BUCKET if count.device.type == "cpu" else _BUCKET_GPU
        rows, images, inside, first = [], [], [], 0
        while first < len(numbers):
            most = max(numbers[first], 1)
            part = order[first : first + max(1, limit // most)]
            rows.append(part)
            images.append(image[:most, part].transpose(0, 1).contiguous())
            inside.append(torch.arange(len(image[:most]), device=count.device)[None] < count[part][:, None])
            first += len(part)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return ImageLists(pairs, rows, images, inside, place)


@dataclass(frozen=True)
class _Bucket:
    """What pulling and pushing need of one bucket; all in the network's precision."""

    rows: Tensor
    v: Tensor  # 3, pairs, images
    w: Tensor
    soft: Tensor  # 1 / √(d² + δ²)
    d: Tensor
    omega: Tensor
    slope: Tensor  # -π sin(π d / R) / R: ω by d
    phi: Tensor  # size, pairs, images
    log: Tensor  # ln(1 + d / Å) in spacings: φ_k' = φ_k (k - log) / (spacing (1 + d))
    monomials: Tensor


class Moments:
    """G of all pairs at one configuration, with its derivatives."""

    def __init__(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        cutoff: Float[Tensor, " crystals"],
        lists: ImageLists,
        size: int,
        dtype: torch.dtype,
    ) -> None:
        self.lists, self.size = lists, size
        self.atoms, self.crystals = len(frac_coords), len(lattice)
        self.exact, self.harmonics = lattice.dtype, HARMONICS.to(dtype).to(lattice.device)
        pairs = lists.pairs
        delta = frac_coords.index_select(0, pairs.second) - frac_coords.index_select(0, pairs.first)
        self.buckets, values = [], []
        for rows, image, inside in zip(lists.rows, lists.image, lists.inside, strict=True):
            crystal = pairs.crystal.index_select(0, rows)
            vector = torch.bmm(delta.index_select(0, rows)[:, None] + image, lattice.index_select(0, crystal))
            v = vector.permute(2, 0, 1).to(dtype).contiguous()
            squared = v.square().sum(0)
            d = squared.clamp(min=1e-12).sqrt()
            soft = (squared + SOFT**2).rsqrt()
            reach = cutoff.index_select(0, crystal).to(dtype)[:, None]
            ratio = d / reach
            angle = math.pi * ratio
            inside = inside & (ratio < 1)
            omega = torch.where(inside, 1 + torch.cos(angle), 0.0)
            slope = torch.where(inside, torch.sin(angle) * (-math.pi / reach), 0.0)
            spacing, centers = _centers(size, d)
            log = torch.log1p(d).div_(spacing)
            phi = (log[None] - centers).square_().mul_(-0.5).exp_()
            w = v * soft
            m = monomials(w)
            self.buckets.append(_Bucket(rows, v, w, soft, d, omega, slope, phi, log, m))
            values.append(torch.bmm(m.permute(1, 0, 2), (phi * omega).permute(1, 2, 0)))
        raw = torch.cat(values).index_select(0, lists.place)
        self.value: Float[Tensor, "pairs 16 size"] = self.harmonics @ raw

    def pull(
        self, by_g: Float[Tensor, "pairs 16 size"]
    ) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 3 3"]]:
        """Slopes in Cartesian positions (1/Å) and in strain, W of `Evaluation`, from slopes in G."""
        pairs, exact = self.lists.pairs, self.exact
        spacing, centers = _centers(self.size, by_g)
        by_raw = self.harmonics.T @ by_g
        by_raw = torch.cat([by_raw, by_raw * centers.view(-1)], 1)
        by_vector, by_cell = [], []
        for b in self.buckets:
            # what multiplies ω M_a(w), and the same weighted with the number of the Gaussian
            by = torch.bmm(by_raw.index_select(0, b.rows), b.phi.permute(1, 0, 2))
            by_m, by_number = by.permute(1, 0, 2).split(len(b.monomials))
            by_omega = (b.monomials * by_m).sum(0)
            by_phi = (b.monomials * by_number).sum(0).addcmul_(b.log, by_omega, value=-1)
            by_d = by_phi * b.omega / ((1 + b.d) * spacing) + by_omega * b.slope
            by_w = monomial_slopes(b.w, by_m).mul_(b.omega)
            along = (by_w * b.w).sum(0)
            force = (by_w.addcmul_(b.w, along, value=-1)).mul_(b.soft).addcmul_(b.v, by_d / b.d)
            # ω depends on d / R, so by R it is -(d / R) times its slope by d
            by_reach = (by_omega * b.slope * b.d).sum(1) * (-1.0 / 3.0)
            by_vector.append(force.sum(2).T)
            products = torch.einsum("apt,bpt->pab", b.v, force)
            products.diagonal(dim1=1, dim2=2).add_(by_reach[:, None])
            by_cell.append(products.flatten(1))
        place = self.lists.place
        by_pair = torch.cat(by_vector).to(exact).index_select(0, place)
        by_position = by_pair.new_zeros((self.atoms, 3))
        by_position.index_add_(0, pairs.second, by_pair).index_add_(0, pairs.first, by_pair, alpha=-1)
        cells = torch.cat(by_cell).to(exact).index_select(0, place)
        by_strain = cells.new_zeros((self.crystals, 9)).index_add_(0, pairs.crystal, cells)
        return by_position, by_strain.view(-1, 3, 3)

    def push(
        self, move: Float[Tensor, "atoms 3"], strain: Float[Tensor, "crystals 3 3"]
    ) -> Float[Tensor, "pairs 16 size"]:
        """Change of G with small moves in Å and strains A (x → x + x A, lattice too): `pull` transposed."""
        pairs = self.lists.pairs
        step = move.index_select(0, pairs.second) - move.index_select(0, pairs.first)
        grown = strain.diagonal(dim1=1, dim2=2).sum(1) / 3  # of ln R
        spacing, centers = _centers(self.size, self.value)
        values = []
        for b in self.buckets:
            crystal = pairs.crystal.index_select(0, b.rows)
            a = strain.index_select(0, crystal).to(b.v)
            dv = torch.einsum("apt,pab->bpt", b.v, a) + step.index_select(0, b.rows).to(b.v).T[:, :, None]
            dd = (b.v * dv).sum(0) / b.d
            dw = (dv - b.w * (b.w * dv).sum(0)) * b.soft
            d_omega = b.slope * (dd - b.d * grown.index_select(0, crystal).to(b.v)[:, None])
            rate = b.omega * dd / ((1 + b.d) * spacing)
            d_chi = b.phi * ((centers - b.log) * rate + d_omega)
            d_m = monomial_changes(b.w, dw)
            chi = b.phi * b.omega
            value = torch.bmm(d_m.permute(1, 0, 2), chi.permute(1, 2, 0))
            values.append(value.baddbmm_(b.monomials.permute(1, 0, 2), d_chi.permute(1, 2, 0)))
        return self.harmonics @ torch.cat(values).index_select(0, self.lists.place)


class _Pull(torch.autograd.Function):
    """`Moments.pull` as a linear map of slopes in G, for losses on slopes."""

    @staticmethod
    def forward(ctx, by_g: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        ctx.moments = moments
        return moments.pull(by_g)

    @staticmethod
    def backward(ctx, by_position: Tensor, by_strain: Tensor) -> tuple[Tensor, None]:
        return ctx.moments.push(by_position, by_strain), None


def slopes(
    by_g: Float[Tensor, "pairs 16 size"], moments: Moments
) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 3 3"]]:
    """Slopes in positions and strain; differentiable in the slopes in G."""
    return _Pull.apply(by_g, moments)


def pair_moments(
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "atoms 3"],
    cutoff: Float[Tensor, " crystals"],
    lists: ImageLists,
    size: int,
    dtype: torch.dtype,
) -> Float[Tensor, "pairs 16 size"]:
    """G of all pairs by the formula above, differentiable in lattice and coordinates any number of times."""
    pairs = lists.pairs
    delta = frac_coords.index_select(0, pairs.second) - frac_coords.index_select(0, pairs.first)
    parts = []
    for rows, image, inside in zip(lists.rows, lists.image, lists.inside, strict=True):
        crystal = pairs.crystal[rows]
        vector = torch.bmm(delta[rows][:, None] + image, lattice.index_select(0, crystal)).to(dtype)
        squared = vector.square().sum(2)
        d = squared.clamp(min=1e-12).sqrt()
        ratio = d / cutoff.index_select(0, crystal).to(dtype)[:, None]
        omega = torch.where(inside & (ratio < 1), 1 + torch.cos(math.pi * ratio), 0.0)
        chi = radial(d, size) * omega
        w = vector.permute(2, 0, 1) / (squared + SOFT**2).sqrt()
        parts.append(torch.bmm(monomials(w).permute(1, 0, 2), chi.permute(1, 2, 0)))
    return HARMONICS.to(parts[0]) @ torch.cat(parts).index_select(0, lists.place)
