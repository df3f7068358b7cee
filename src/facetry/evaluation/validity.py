"""Is a generated crystal one at all? Atoms apart, a cell with volume, a composition that can be neutral."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from facetry.chemistry.formula import Formula
from facetry.chemistry.oxidation import is_valid_composition
from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.graph.neighbors import bare, pairs_within, reduced

__all__ = ["SHORTEST", "minimum_distances", "why_invalid"]

SHORTEST, SMALLEST = 0.5, 0.1  # Å, Å³ (CDVAE; Xie et al., ICLR 2022)
_CHUNK = 256
# No packing of equal spheres is denser than the closest one: in every crystal two sites, or a site and its
# image, are at most 2^(1/6) (V/n)^(1/3) apart.
_NEAREST = 2 ** (1 / 6)


def minimum_distances(crystals: Sequence[Crystal]) -> Float[Tensor, " crystals"]:
    """Distance of the two nearest sites of every crystal in Å, images included; 0 where two coincide."""
    return torch.cat(
        [torch.zeros(0, dtype=torch.float64)]
        + [_minima(crystals[i : i + _CHUNK]) for i in range(0, len(crystals), _CHUNK)]
    )


def _minima(crystals: Sequence[Crystal]) -> Float[Tensor, " crystals"]:
    batch, _, _ = reduced(bare(Batch.from_crystals(crystals)))
    reach = _NEAREST * (torch.linalg.det(batch.lattice).abs() / batch.num_atoms) ** (1 / 3)
    pairs = pairs_within(batch, 1.001 * reach)
    nearest = torch.full((len(batch),), torch.inf, dtype=torch.float64)
    return nearest.scatter_reduce(0, batch.crystal_index[pairs.center], pairs.distance, "amin")


def why_invalid(crystals: Sequence[Crystal]) -> list[str]:
    """For every crystal why it does not count as valid; empty where it does.

    Two sites nearer than 0.5 Å, a cell below 0.1 Å³, or a composition without oxidation states that cancel
    (`facetry.chemistry.is_valid_composition`). DiffCSP also asks for a structure fingerprint that can be
    computed; that is left out here.
    """
    distances = minimum_distances(crystals).tolist()
    return [_reason(crystal, distance) for crystal, distance in zip(crystals, distances, strict=True)]


def _reason(crystal: Crystal, distance: float) -> str:
    if crystal.volume < SMALLEST:
        return f"the cell has {crystal.volume:.2g} Å³"
    if distance < SHORTEST:
        return f"two atoms are {distance:.2f} Å apart"
    if not is_valid_composition(Formula.of(crystal.atomic_numbers).counts):
        return "no oxidation states cancel"
    return ""
