"""What relaxing models learn to undo: noise on lattices and positions, or a cube in place of the cell.

    denoise       A -> A exp(Nᵀ), the entries of N normal with deviation σ (lattice rows A); this turns, too
    reconstruct   the Niggli cell -> a cube of 1 Å with the same fractional coordinates
    relax         as denoise, and every coordinate of every atom moved by a normal number of Å

Draws are float64 on the CPU, so that the noise is the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.lattice import determinant, inverse
from facetry.geometry.reduction import niggli_reduce
from facetry.graph.batch import Batch
from facetry.training.recipe import RelaxOptions

REST, STRETCHED = 0.25, 0.25  # shares of varied noise


@dataclass(frozen=True)
class Noise:
    """`strain`: the matrices N, without unit; `displacement` of atoms in Å, None where they stay."""

    strain: Float[Tensor, "crystals 3 3"]
    displacement: Float[Tensor, "atoms 3"] | None

    def select(self, crystals: Int[Tensor, " chosen"], atoms: Int[Tensor, " chosen_atoms"]) -> Noise:
        """That of the chosen crystals with their atoms."""
        moved = None if self.displacement is None else self.displacement[atoms]
        return Noise(self.strain[crystals], moved)


def draw_noise(options: RelaxOptions, crystals: int, atoms: int, generator: torch.Generator) -> Noise:
    """Noise for so many crystals with so many atoms together, all with the full σ."""
    strain = torch.randn((crystals, 3, 3), generator=generator, dtype=torch.float64) * options.noise
    displacement = None
    if options.task == "relax":
        displacement = torch.randn((atoms, 3), generator=generator, dtype=torch.float64)
        displacement *= options.displacement
    return Noise(strain, displacement)


def varied(noise: Noise, num_atoms: Int[Tensor, " crystals"], generator: torch.Generator) -> Noise:
    """A quarter of the crystals at rest, the others each with their own share of the noise, uniform from 0 to
    1; a quarter of these are only stretched, in all directions alike.

    Strain in one direction splits shells of neighbours, so a model that has seen nothing else takes the whole
    shells of a symmetric crystal at rest, or at a wrong volume, for something it must change.
    """
    draws = torch.rand((len(num_atoms), 3), generator=generator, dtype=torch.float64)
    share = torch.where(draws[:, 0] < REST, torch.zeros_like(draws[:, 1]), draws[:, 1])
    stretch = noise.strain.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(3).to(noise.strain)
    strain = torch.where((draws[:, 2] < STRETCHED)[:, None, None], stretch, noise.strain)
    moved = noise.displacement
    if moved is not None:
        moved = moved * torch.repeat_interleave(share, num_atoms.cpu())[:, None]
    return Noise(strain * share[:, None, None], moved)


def disturb(batch: Batch, noise: Noise) -> Batch:
    """The crystals with the noise on them; atoms keep their fractional coordinates under the strain and are
    moved after it."""
    strain = torch.linalg.matrix_exp(noise.strain.to(batch.lattice))
    lattice = batch.lattice @ strain.transpose(-1, -2)
    frac = batch.frac_coords
    if noise.displacement is not None:
        moved = noise.displacement.to(frac)[:, None] @ inverse(lattice)[batch.crystal_index]
        frac = frac + moved[:, 0]
    return replace(batch, lattice=lattice, frac_coords=frac)


def niggli_cells(batch: Batch) -> Batch:
    """The same crystals in their Niggli cells, right-handed, with atoms wrapped into them."""
    lattice, transform = niggli_reduce(batch.lattice)
    frac = batch.frac_coords[:, None] @ torch.linalg.inv(transform.to(lattice))[batch.crystal_index].round()
    sign = determinant(lattice).sign()  # all three vectors turned round give the other hand
    frac = frac[:, 0] * sign[batch.crystal_index, None]
    return replace(batch, lattice=lattice * sign[:, None, None], frac_coords=frac - torch.floor(frac))


def in_cubes(batch: Batch) -> Batch:
    """The same fractional coordinates in cubes of 1 Å."""
    return replace(batch, lattice=torch.eye(3).to(batch.lattice).expand_as(batch.lattice).clone())


def displacement_from(
    frac_coords: Float[Tensor, "atoms 3"],
    true: Float[Tensor, "atoms 3"],
    lattice: Float[Tensor, "crystals 3 3"],
    crystal_index: Int[Tensor, " atoms"],
) -> Float[Tensor, "atoms 3"]:
    """How far in Å, measured in the true lattice, atoms are from where they belong: to the nearest image, and
    without the mean over the atoms of a crystal, since the origin is free."""
    apart = frac_coords - true
    apart = apart - torch.round(apart.detach())
    count = torch.bincount(crystal_index, minlength=len(lattice))[:, None]
    for _ in range(2):  # the nearest image is known better once the common shift is out
        mean = torch.zeros_like(lattice[:, 0]).index_add(0, crystal_index, apart) / count
        apart = apart - mean[crystal_index]
        apart = apart - torch.round(apart.detach())
    mean = torch.zeros_like(lattice[:, 0]).index_add(0, crystal_index, apart) / count
    return ((apart - mean[crystal_index])[:, None] @ lattice[crystal_index])[:, 0]
