"""Can these crystals exist? Atoms that are too near one another, cells that are too full or too empty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from facetry.chemistry.volume import covalent_radii, expected_volume
from facetry.data.crystals import CrystalTable
from facetry.elements import MASSES
from facetry.graph.batch import Batch
from facetry.graph.neighbors import bare, pairs_within, reduced

__all__ = ["Plausibility", "plausibility"]

_REACH = 0.9  # of the sum of two radii; farther contacts are of no interest
_CHUNK = 256
_GRAMS = 1.66053906660  # g/cm³ of one atomic mass unit in one Å³


@dataclass(frozen=True, eq=False)
class Plausibility:
    """For every crystal its nearest contact and how full it is.

    `contact` is the smallest ratio of a distance to the sum of the two covalent radii (infinite above 0.9),
    `distance` its length in Å and `elements` its two atomic numbers; `volume_ratio` is the volume over that
    of other crystals with these atoms (`chemistry.volume.expected_volume`), `density` in g/cm³.
    """

    contact: Float[np.ndarray, " crystals"]
    distance: Float[np.ndarray, " crystals"]
    elements: Int[np.ndarray, "crystals 2"]
    volume_ratio: Float[np.ndarray, " crystals"]
    density: Float[np.ndarray, " crystals"]


def plausibility(crystals: CrystalTable) -> Plausibility:
    """Contacts and densities, images included. Mixed sites count by their majority element."""
    count = len(crystals)
    starts = range(0, count, _CHUNK)
    parts = [_contacts(crystals.select(slice(i, i + _CHUNK))) for i in starts]
    contact, distance, elements = (
        np.concatenate([empty, *(part[i] for part in parts)])
        for i, empty in enumerate((np.zeros(0), np.zeros(0), np.zeros((0, 2), dtype=np.int64)))
    )
    owner = np.repeat(np.arange(count), crystals.num_atoms)
    numbers = crystals.atomic_numbers
    alone = np.array([expected_volume([z]) if z else 0.0 for z in range(int(numbers.max(initial=0)) + 1)])
    volume = np.abs(np.linalg.det(crystals.lattice))
    wanted = np.bincount(owner, alone[numbers], minlength=count)
    mass = np.bincount(owner, np.array(MASSES)[numbers], minlength=count)
    return Plausibility(contact, distance, elements, volume / wanted, mass / volume * _GRAMS)


def _contacts(crystals: CrystalTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio, length and elements of the nearest contact of each crystal."""
    batch, _, _ = reduced(bare(Batch.from_crystals(crystals)))
    radius = torch.from_numpy(np.nan_to_num(covalent_radii(), nan=1.5))[batch.atomic_numbers]
    largest = radius.new_zeros(len(batch)).scatter_reduce_(0, batch.crystal_index, radius, "amax")
    pairs = pairs_within(batch, 2 * _REACH * largest)
    ratio = pairs.distance / (radius[pairs.center] + radius[pairs.neighbor])
    crystal = batch.crystal_index[pairs.center].numpy()
    order = np.lexsort((ratio.numpy(), crystal))
    found, first = np.unique(crystal[order], return_index=True)
    edge = order[first]
    contact, distance = np.full(len(batch), np.inf), np.full(len(batch), np.inf)
    elements = np.zeros((len(batch), 2), dtype=np.int64)
    near = ratio.numpy()[edge] < _REACH
    found, edge = found[near], edge[near]
    contact[found], distance[found] = ratio.numpy()[edge], pairs.distance.numpy()[edge]
    numbers = batch.atomic_numbers.numpy()
    elements[found] = np.stack(
        [numbers[pairs.center.numpy()[edge]], numbers[pairs.neighbor.numpy()[edge]]], 1
    )
    return contact, distance, elements
