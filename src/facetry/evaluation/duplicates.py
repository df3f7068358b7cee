"""Which crystals of one composition are the same, whatever cell, origin or size they are given in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.graph.neighbors import bare, pairs_within, reduced

__all__ = ["SAME", "distinct", "fingerprints"]

SAME = 0.001
"""Cosine distance of fingerprints below which two crystals count as one: Ti of SrTiO3 moved by 0.1 Å."""

_REACH, _WIDTH, _BINS = 3.0, 0.06, 60  # in units of (volume per atom)^(1/3), where 113 neighbours lie within
_CHUNK = 64


def fingerprints(crystals: Sequence[Crystal]) -> Float[np.ndarray, "crystals features"]:
    """Who lies how far from whom: for every pair of elements the smeared distances, of length 1 in all.

    The idea of Oganov and Valle (J. Chem. Phys. 130 (2009) 104504), with distances in units of
    (volume per atom)^(1/3) as pymatgen's matcher has them, and a weight that falls smoothly to zero at three
    of these. Equal for all cells of a crystal, all orders and origins, and for its mirror image.
    """
    elements = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(c.atomic_numbers for c in crystals)]))
    parts = [
        _fingerprints(crystals[i : i + _CHUNK], torch.from_numpy(elements))
        for i in range(0, len(crystals), _CHUNK)
    ]
    return np.concatenate([np.zeros((0, len(elements) ** 2 * _BINS)), *parts])


def _fingerprints(
    crystals: Sequence[Crystal], elements: torch.Tensor
) -> Float[np.ndarray, "crystals features"]:
    batch, _, _ = reduced(bare(Batch.from_crystals(crystals)))
    scale = (torch.linalg.det(batch.lattice).abs() / batch.num_atoms) ** (1 / 3)
    pairs = pairs_within(batch, _REACH * scale)
    crystal = batch.crystal_index[pairs.center]
    distance = pairs.distance / scale[crystal]
    # every distance is shared out between the two bins around it, after the smearing of a histogram
    kinds = len(elements)
    kind = torch.searchsorted(elements, batch.atomic_numbers)
    row = (crystal * kinds + kind[pairs.center]) * kinds + kind[pairs.neighbor]
    weight = (1 - (distance / _REACH) ** 2).clamp_min(0) ** 2 / batch.num_atoms[crystal]
    place = distance / _REACH * _BINS - 0.5
    low = place.floor().clamp(0, _BINS - 2)
    share = (place - low).clamp(0, 1)
    histogram = torch.zeros(len(batch) * kinds**2 * _BINS, dtype=distance.dtype)
    index = row * _BINS + low.long()
    histogram.index_add_(0, index, weight * (1 - share))
    histogram.index_add_(0, index + 1, weight * share)
    middle = (torch.arange(_BINS, dtype=distance.dtype) + 0.5) * _REACH / _BINS
    smear = torch.exp(-0.5 * ((middle[:, None] - middle) / _WIDTH) ** 2)
    found = (histogram.reshape(-1, _BINS) @ smear).reshape(len(batch), -1)
    return (found / found.norm(dim=1, keepdim=True).clamp_min(1e-300)).numpy()


def distinct(
    crystals: Sequence[Crystal], tolerance: float | int = SAME, known: Sequence[Crystal] = ()
) -> list[int]:
    """For every crystal the number of the first one that it equals: its own, where it is new.

    `known` come first in the counting. All must have one reduced formula; a crystal is compared with the
    first of every group.
    """
    vectors = fingerprints([*known, *crystals])
    alike = 1 - vectors @ vectors.T < tolerance
    firsts: list[int] = []
    same = []
    for i in range(len(vectors)):
        equal = [j for j in firsts if alike[i, j]]
        same.append(equal[0] if equal else i)
        if not equal:
            firsts.append(i)
    return same[len(known) :]
