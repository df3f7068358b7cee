"""ContinuouSP with angles: the same law of structures, an energy that sees directions and costs less.

The published energy reads distances only, through Gaussians of 2 Å, and puts every image of every pair
through a gate in every layer. Here the images of a pair are summed first, with their directions
(`facetry.nn.pair_moments`), and gates follow:

    h_i = element      A_i[lm] = Σ_j (B h_j) ⊙ (D_l G_ij[lm]) / 10      q_l = Σ_m (U_l A[lm]) ⊙ (V_l A[lm])
    h_i ← h_i + W' silu(W b(h_i ∥ A_i[00] ∥ q_1 ∥ q_2 ∥ q_3)),    b(x) = x / √(1 + x² / 25)          twice
    E = mean over atoms of e(h_i) + λ ln²(ρ / ρ0)        e: a perceptron of one hidden layer

Every neighbour carries the envelope ω of ContinuouSP (arXiv 2502.02026), cutoff R = 3 (V / n)^(1/3), so E is
continuous with its slopes and invariant as there: rotation, reflection, translation, atom order, choice of
cell, supercells. What a chain needs costs about as much for ten layers as for one.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from facetry.geometry.ragged import group_index, offsets
from facetry.graph.batch import Batch
from facetry.graph.builders import NoGraph
from facetry.graph.images import AtomPairs, ImageTable
from facetry.graph.neighbors import reduced
from facetry.models.base import Evaluation, Landscape
from facetry.models.continuousp import ELEMENTS, EnergyWithDensity, cutoffs
from facetry.nn.pair_moments import DEGREES, ImageLists, Moments, pair_moments, slopes
from facetry.nn.segment import segment_mean

_SCALE = 0.1  # of sums over about 113 neighbours
_BOUND = 5.0  # of what a layer reads, so that no crystal, however odd, has an energy without bounds
_CHUNK = 480  # atoms worked on at once on the CPU, near its cache
_CHUNK_GPU = 1 << 16


class AngularLayer(nn.Module):
    """One update of the vectors of atoms."""

    def __init__(self, channels: int, angular: int, basis: int) -> None:
        super().__init__()
        self.neighbor = nn.Linear(channels, channels + DEGREES * angular)
        self.sizes = [channels] + [angular] * DEGREES
        self.filters = nn.ParameterList(
            nn.Parameter(torch.randn(basis, size) / basis**0.5) for size in self.sizes
        )
        self.left = nn.Parameter(torch.randn(DEGREES, angular, angular) / angular**0.5)
        self.right = nn.Parameter(torch.randn(DEGREES, angular, angular) / angular**0.5)
        self.inner = nn.Linear(2 * channels + DEGREES * angular, 2 * channels)
        self.outer = nn.Linear(2 * channels, channels)

    def forward(
        self,
        h: Float[Tensor, "atoms channels"],
        moments: list[Float[Tensor, "pairs _ basis"]],
        first: Int[Tensor, " pairs"],
        second: Int[Tensor, " pairs"],
    ) -> Float[Tensor, "atoms channels"]:
        b = self.neighbor(h)
        to_first, to_second = b.index_select(0, second)[:, None], b.index_select(0, first)[:, None]
        features = [h]
        ends = zip(to_first.split(self.sizes, 2), to_second.split(self.sizes, 2), strict=True)
        for degree, (g, (near, far)) in enumerate(zip(moments, ends, strict=True)):
            rows = g @ self.filters[degree]
            sign = -_SCALE if degree % 2 else _SCALE
            a = h.new_zeros((len(h), *rows.shape[1:]))
            a = a.index_add(0, first, rows * near, alpha=_SCALE).index_add(0, second, rows * far, alpha=sign)
            if degree == 0:
                features.append(a[:, 0])
            else:
                features.append(((a @ self.left[degree - 1]) * (a @ self.right[degree - 1])).sum(1))
        x = torch.cat(features, 1)
        x = x * (1 + (x / _BOUND).square()).rsqrt()
        return h + self.outer(silu(self.inner(x)))


class AngularContinuouSP(EnergyWithDensity):
    """Energy with angles to draw structures from.

    `channels` of an atom, `angular` channels of each degree, `layers`, `basis` Gaussians of the distance;
    `density_weight` is λ and `density` ρ0 in atoms/Å³. Elements 1 to 100.

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell, and
    continuous with its slopes where atoms cross the cutoff.
    """

    name = "continuousp_angular"

    def __init__(
        self,
        *,
        channels: int = 48,
        layers: int = 2,
        angular: int = 16,
        basis: int = 16,
        density_weight: float | int = 0.3,
        density: float | int = 0.05,
    ) -> None:
        super().__init__()
        sizes = (
            ("channels", channels, 1),
            ("layers", layers, 1),
            ("angular", angular, 1),
            ("basis", basis, 2),
        )
        for what, number, least in sizes:
            if number < least:
                raise ValueError(f"continuousp_angular: expected {what} of at least {least}, came {number}")
        if not density > 0:
            raise ValueError(f"continuousp_angular: expected a density above 0, came {density}")
        self.density, self.density_weight = float(density), float(density_weight)
        self.graph = NoGraph()
        self.basis = basis
        self.elements = nn.Embedding(ELEMENTS, channels)
        self.layers = nn.ModuleList(AngularLayer(channels, angular, basis) for _ in range(layers))
        self.hidden = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(2 * channels, 1)

    def _described(self, batch: Batch) -> tuple[Batch, ImageLists]:
        """The crystals in reduced cells, where few lattice points are looked at, and all images in reach."""
        self.check_elements(batch.atomic_numbers)
        batch = reduced(batch)[0]
        table = ImageTable(batch.num_atoms, 0.0)
        lattice, frac = batch.lattice.detach(), batch.frac_coords.detach()
        with torch.no_grad():
            table.update(lattice, frac, cutoffs(lattice, batch.num_atoms))
        return batch, ImageLists.of(table.pairs, table.image, table.count)

    def network(
        self,
        g: Float[Tensor, "pairs 16 basis"],
        atomic_numbers: Int[Tensor, " atoms"],
        num_atoms: Int[Tensor, " crystals"],
        pairs: AtomPairs,
    ) -> Float[Tensor, " crystals"]:
        """E without the term of the density, from the moments of pairs."""
        moments = list(g.split([2 * degree + 1 for degree in range(DEGREES + 1)], 1))
        h = self.elements(atomic_numbers - 1)
        for layer in self.layers:
            h = layer(h, moments, pairs.first, pairs.second)
        e = self.out(silu(self.hidden(h)))
        return segment_mean(e, group_index(num_atoms), len(num_atoms))[:, 0]

    def forward(self, batch: Batch) -> Float[Tensor, " crystals"]:
        """Energies; differentiable in weights, lattices and coordinates, twice."""
        batch, lists = self._described(batch)
        reach = cutoffs(batch.lattice, batch.num_atoms)
        g = pair_moments(batch.lattice, batch.frac_coords, reach, lists, self.basis, self.dtype)
        e = self.network(g, batch.atomic_numbers, batch.num_atoms, lists.pairs).to(batch.lattice.dtype)
        return e + self.density_term(batch.lattice, batch.num_atoms)[0]

    def evaluate(self, batch: Batch) -> Evaluation:
        """Energies and slopes, differentiable in the weights alone: for losses on slopes."""
        batch, lists = self._described(batch)
        return self._evaluated(
            batch.lattice, batch.frac_coords, batch.atomic_numbers, batch.num_atoms, lists, True
        )

    def _evaluated(
        self,
        lattice: Tensor,
        frac_coords: Tensor,
        atomic_numbers: Tensor,
        num_atoms: Tensor,
        lists: ImageLists,
        twice: bool,
    ) -> Evaluation:
        with torch.no_grad():
            reach = cutoffs(lattice, num_atoms)
            moments = Moments(lattice, frac_coords, reach, lists, self.basis, self.dtype)
            energy, by_log_volume = self.density_term(lattice, num_atoms)
        g = moments.value.requires_grad_()
        with torch.enable_grad():
            e = self.network(g, atomic_numbers, num_atoms, lists.pairs)
            (by_g,) = torch.autograd.grad(e.sum(), g, create_graph=twice)
        if not twice:
            e, by_g = e.detach(), by_g.detach()
        by_position, by_strain = slopes(by_g, moments)
        eye = torch.eye(3, dtype=by_strain.dtype, device=by_strain.device)
        return Evaluation(energy + e, by_position, by_strain + by_log_volume[:, None, None] * eye)

    def landscape(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        num_atoms: Int[Tensor, " crystals"],
        skin: float = 0.6,
    ) -> AngularLandscape:
        """Energies and slopes for these atoms with the weights of this moment."""
        return AngularLandscape(self, atomic_numbers, num_atoms, skin)


class AngularLandscape(Landscape):
    """Energy and slopes of many crystals, atoms given and weights frozen, for the steps of a chain; crystals
    are worked on a few at a time, and neighbours are kept between calls (`facetry.graph.images`)."""

    def __init__(
        self,
        model: AngularContinuouSP,
        atomic_numbers: Int[Tensor, " atoms"],
        num_atoms: Int[Tensor, " crystals"],
        skin: float = 0.6,
    ) -> None:
        model.check_elements(atomic_numbers)
        self.model, self.num_atoms = copy.deepcopy(model).eval().requires_grad_(False), num_atoms
        on_cpu = num_atoms.device.type == "cpu"
        starts = offsets(num_atoms).tolist()
        most, first = (_CHUNK if on_cpu else _CHUNK_GPU), 0
        self.parts: list[tuple[slice, slice, ImageTable, Tensor]] = []
        self.lists: list[tuple[int, ImageLists] | None] = []
        while first < len(num_atoms):
            last = first + 1
            while last < len(num_atoms) and starts[last + 1] - starts[first] <= most:
                last += 1
            atoms, crystals = slice(starts[first], starts[last]), slice(first, last)
            self.parts.append((crystals, atoms, ImageTable(num_atoms[crystals], skin), atomic_numbers[atoms]))
            self.lists.append(None)
            first = last

    def forget(self, crystals: Bool[Tensor, " crystals"]) -> None:
        """These are described anew: another cell of the same lattice, atoms wrapped."""
        for rows, _, table, _ in self.parts:
            table.forget(crystals[rows])

    def __call__(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        use: Bool[Tensor, " crystals"] | None = None,
    ) -> Evaluation:
        """Lattices and coordinates in float64. Crystals where `use` is False are left out: their energies are
        infinite."""
        found = []
        for number, (rows, atoms, table, elements) in enumerate(self.parts):
            cell, frac, count = lattice[rows], frac_coords[atoms], table.num_atoms
            cutoff = cutoffs(cell, count)
            used = None if use is None else use[rows]
            if used is not None:
                cutoff = torch.where(used, cutoff, 0.0)
            table.update(cell, frac, cutoff, used)
            kept = self.lists[number]
            if kept is None or kept[0] != table.builds:
                kept = table.builds, ImageLists.of(table.pairs, table.image, table.count)
                self.lists[number] = kept
            found.append(self.model._evaluated(cell, frac, elements, count, kept[1], False))
        energy = torch.cat([e.energy for e in found])
        if use is not None:
            energy = torch.where(use, energy, torch.inf)
        return Evaluation(
            energy, torch.cat([e.by_position for e in found]), torch.cat([e.by_strain for e in found])
        )
