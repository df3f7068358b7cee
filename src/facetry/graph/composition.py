"""Which species share the sites of a batch, and how much of the time each is there.

    sites      0     1          2            a dict {element: share} for each site of a disordered crystal
    species    Sr    Fe  Co     O            its entries one after the other
    share      1.0   0.3 0.7    0.85         what is missing to 1 is vacant

Batches of ordered crystals carry none of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.elements import MAX_ATOMIC_NUMBER
from facetry.geometry.ragged import group_index, items_in

FULL = 1e-6  # a site that lacks less than this is full; shares are rounded numbers
SAME_SHARE = 1e-4  # shares that differ by less describe one species


@dataclass(frozen=True)
class Composition:
    """Species of every site of a batch, site after site; an ordered site has one with share 1."""

    count: Int[Tensor, " atoms"]  # species on each site
    atomic_numbers: Int[Tensor, " species"]
    share: Float[Tensor, " species"]

    @property
    def site(self) -> Int[Tensor, " species"]:
        """The site of every species."""
        return group_index(self.count)

    def occupancy(self) -> Float[Tensor, " atoms"]:
        """How much of the time each site is filled; exactly 1 for full sites."""
        total = self.share.new_zeros(len(self.count)).index_add(0, self.site, self.share)
        return torch.where(total > 1 - FULL, torch.ones_like(total), total)

    def mixed(self) -> Bool[Tensor, " atoms"]:
        """Sites that several species share or that are partly vacant."""
        return (self.count > 1) | (self.occupancy() < 1)

    def kinds(self, atomic_numbers: Int[Tensor, " atoms"]) -> Int[Tensor, " atoms"]:
        """Integers that tell sites apart by what is on them: the atomic number of ordered sites, larger ones
        for mixtures and for sites that are partly vacant."""
        mixed = torch.nonzero(self.mixed())[:, 0]
        chosen = self.select(mixed)
        table = torch.zeros(
            (len(mixed), MAX_ATOMIC_NUMBER + 1), dtype=self.share.dtype, device=self.share.device
        )
        table.index_put_((chosen.site, chosen.atomic_numbers), chosen.share.detach(), accumulate=True)
        kind = torch.unique((table / SAME_SHARE).round(), dim=0, return_inverse=True)[1]
        kinds = atomic_numbers.clone()
        kinds[mixed] = MAX_ATOMIC_NUMBER + 1 + kind
        return kinds

    def select(self, atoms: Int[Tensor, " chosen"]) -> Composition:
        """Of the chosen sites, in the given order."""
        rows = items_in(atoms, self.count)
        return Composition(self.count[atoms].long(), self.atomic_numbers[rows].long(), self.share[rows])

    def joined(self, into: Int[Tensor, " atoms"]) -> Composition:
        """Of fewer sites: `into` says which of the old ones come together. A sum that rounding has brought
        above 1 is scaled to 1."""
        owner = into[self.site]
        order = torch.argsort(owner, stable=True)
        owner, share = owner[order], self.share[order]
        count = torch.bincount(owner, minlength=int(into.max()) + 1)
        total = share.new_zeros(len(count)).index_add(0, owner, share)
        return Composition(count, self.atomic_numbers[order], share / total.clamp(min=1)[owner])

    def compact(self) -> Composition:
        """Integers in 16 bits, for keeping a whole set in memory; `select` widens them again."""
        return replace(
            self, count=self.count.to(torch.int16), atomic_numbers=self.atomic_numbers.to(torch.int16)
        )

    @staticmethod
    def ordered(atomic_numbers: Int[Tensor, " atoms"], like: Float[Tensor, "*any"]) -> Composition:
        """One species on every site, with the numbers' kind and place of `like`."""
        share = torch.ones(len(atomic_numbers), dtype=like.dtype, device=like.device)
        return Composition(torch.ones_like(atomic_numbers), atomic_numbers, share)

    @staticmethod
    def concatenate(parts: Sequence[Composition]) -> Composition:
        """The sites of several, one after the other."""
        names = ("count", "atomic_numbers", "share")
        return Composition(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @staticmethod
    def of(
        occupancies: Mapping[int, Sequence[Mapping[int, float]]],
        atomic_numbers: Int[np.ndarray, " atoms"],
        num_atoms: Int[np.ndarray, " crystals"],
    ) -> Composition:
        """From the occupancies of some crystals of a batch (crystal -> its sites); the others are ordered."""
        start = np.concatenate([[0], np.cumsum(num_atoms)])
        crystals = sorted(occupancies)
        sites = [site for crystal in crystals for site in occupancies[crystal]]
        atoms = np.concatenate([np.arange(start[c], start[c + 1]) for c in crystals])
        count = np.ones(len(atomic_numbers), dtype=np.int64)
        count[atoms] = [len(site) for site in sites]
        element, share = np.repeat(atomic_numbers, count), np.ones(count.sum())
        disordered = np.zeros(len(atomic_numbers), dtype=bool)
        disordered[atoms] = True
        rows = np.repeat(disordered, count)
        element[rows] = [number for site in sites for number in site]
        share[rows] = [value for site in sites for value in site.values()]
        return Composition(*map(torch.from_numpy, (count, element.astype(np.int64), share)))
