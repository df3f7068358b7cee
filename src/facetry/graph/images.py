"""Images of pairs of atoms in reach, kept over the steps of a chain.

For every crystal the pairs i <= j of its atoms; for each pair the images T of j with
|x_j + T - x_i| L <= reach, of which a pair i = j lists one of T and -T. The lists are padded to one table of
images times pairs, so that what belongs to a pair is a column. They are made for a little more than the
cutoff and serve until atoms or cells have moved so far that an image may have come in unseen. For work on
them, pairs are sorted by how many images they have and cut into blocks with little padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from facetry.geometry.lattice import inverse, plane_spacings
from facetry.geometry.ragged import grids, group_index, offsets, ranges, ranks

_MOST_CANDIDATES = 1 << 22  # pairs times lattice points looked at at once
_WASTE = 0.8  # a block ends where a pair has less than this share of its first pair's images
_FAR = 1e6  # the image that pads a block: any cell this many times is beyond all cutoffs


@dataclass(frozen=True)
class AtomPairs:
    """The pairs i <= j of every crystal, crystal by crystal; atoms are numbered over the batch."""

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    crystal: Int[Tensor, " pairs"]
    start: Int[Tensor, " crystals_plus_one"]

    @staticmethod
    def of(num_atoms: Int[Tensor, " crystals"]) -> AtomPairs:
        """All pairs of crystals with so many atoms."""
        atom = offsets(num_atoms)[:-1]
        crystal_of_atom = group_index(num_atoms)
        rank = ranks(num_atoms)
        partners = num_atoms[crystal_of_atom] - rank
        first = group_index(partners)
        second = ranges(atom[crystal_of_atom] + rank, partners)
        counts = torch.div(num_atoms * (num_atoms + 1), 2, rounding_mode="floor")
        return AtomPairs(first, second, crystal_of_atom[first], offsets(counts))


@dataclass(frozen=True)
class ImageBlocks:
    """Pairs of some crystals, sorted by falling number of images, and their images in blocks.

    `columns` says which pairs of the table these are; atoms and crystals are numbered from those of the first
    crystal. `blocks` lists first pair, last pair, how many images, the first and the last slot, for slots lie
    block after block, images x pairs in each; `image` has T of every slot, of a block's pairs with fewer
    images one that is out of reach.
    """

    columns: Int[Tensor, " pairs"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    crystal: Int[Tensor, " pairs"]
    blocks: list[tuple[int, int, int, int, int]]
    image: Float[Tensor, "3 slots"]

    def vectors(
        self, lattice: Float[Tensor, "crystals 3 3"], frac_coords: Float[Tensor, "atoms 3"]
    ) -> Float[Tensor, "3 slots"]:
        """From the first to the second atom of every slot, in Å."""
        cell = lattice.index_select(0, self.crystal)
        apart = frac_coords.index_select(0, self.second) - frac_coords.index_select(0, self.first)
        delta = torch.einsum("pa,pab->bp", apart, cell)[:, None].contiguous()
        a, b, c = cell.permute(1, 2, 0).contiguous()[:, :, None]
        vector = torch.empty_like(self.image)
        for start, end, images, low, high in self.blocks:
            t = self.image[:, low:high].view(3, images, -1)
            v = vector[:, low:high].view(3, images, -1)
            torch.addcmul(delta[:, :, start:end], t[0], a[:, :, start:end], out=v)
            v.addcmul_(t[1], b[:, :, start:end]).addcmul_(t[2], c[:, :, start:end])
        return vector


def images_in_reach(
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "atoms 3"],
    pairs: AtomPairs,
    reach: Float[Tensor, " crystals"],
) -> tuple[Int[Tensor, " found"], Float[Tensor, "found 3"]]:
    """Pair and image T of everything within `reach` Å, sorted by pair. Any cell will do, but the work grows
    with how skewed it is; the atoms need not be wrapped."""
    owner = pairs.crystal
    delta = frac_coords.index_select(0, pairs.second) - frac_coords.index_select(0, pairs.first)
    shift = torch.round(delta)
    near = torch.einsum("pa,pab->pb", delta - shift, lattice[owner])
    longest = torch.zeros(len(lattice), dtype=near.dtype, device=near.device)
    longest.scatter_reduce_(0, owner, near.norm(dim=1), "amax")
    radius = reach + longest + 1e-6
    half = torch.floor(radius[:, None] / plane_spacings(lattice) + 1e-9).long()
    crystal, point = grids(-half, half)
    vector = torch.einsum("pa,pab->pb", point.to(near.dtype), lattice[crystal])
    keep = torch.nonzero(vector.square().sum(1) <= radius.square()[crystal])[:, 0]
    point, vector = point[keep], vector[keep]
    # the first of T and -T: the one whose first number other than zero is positive
    leading = torch.where(
        point[:, 0] != 0, point[:, 0], torch.where(point[:, 1] != 0, point[:, 1], point[:, 2])
    )
    points = torch.bincount(crystal[keep], minlength=len(lattice))
    first_point, per_pair = offsets(points)[:-1], points[owner]
    own = pairs.first == pairs.second
    squared, upper = reach.square()[owner], leading > 0
    columns, vectors = near.T.contiguous(), vector.T.contiguous()
    piece = torch.div(torch.cumsum(per_pair, 0), _MOST_CANDIDATES, rounding_mode="floor")
    sizes = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    found, images, start = [], [], 0
    for size in sizes:
        rows = torch.arange(start, start + size, device=near.device)
        start += size
        counts = per_pair[rows]
        row = torch.repeat_interleave(rows, counts)
        at = ranges(first_point[owner[rows]], counts)
        distance = torch.zeros(len(row), dtype=near.dtype, device=near.device)
        for axis in range(3):
            distance += (columns[axis].index_select(0, row) + vectors[axis].index_select(0, at)).square_()
        inside = distance <= squared.index_select(0, row)
        inside &= upper.index_select(0, at) | ~own.index_select(0, row)
        chosen = torch.nonzero(inside)[:, 0]
        row = row.index_select(0, chosen)
        found.append(row)
        images.append(point[at.index_select(0, chosen)].to(near.dtype) - shift.index_select(0, row))
    if not found:
        return owner.new_zeros(0), near.new_zeros((0, 3))
    return torch.cat(found), torch.cat(images)


class ImageTable:
    """Images of all pairs of a batch as a table, images x pairs, rebuilt crystal by crystal when needed.

    `skin` is what the reach exceeds the cutoff by, in Å. `update` says which columns may be read for cutoffs
    at new coordinates: an image outside the table is farther away than the cutoff then. That is so while

        (1 + ‖F⁻¹ - 1‖) (cutoff + 2 max |Δs L|) <= reach,    L = L₀ F,

    with Δs the changes of fractional coordinates, for an image at distance r now was at r₀ = (r - Δs L) F⁻¹
    when the table was made.
    """

    def __init__(self, num_atoms: Int[Tensor, " crystals"], skin: float = 1.0) -> None:
        self.num_atoms, self.skin = num_atoms, skin
        self.pairs = AtomPairs.of(num_atoms)
        self.atom_crystal = group_index(num_atoms)
        pairs, device = len(self.pairs.first), num_atoms.device
        self.image = torch.zeros((0, pairs, 3), dtype=torch.float64, device=device)
        self.count = torch.zeros(pairs, dtype=torch.int64, device=device)
        self.lattice: Tensor | None = None
        self.frac_coords: Tensor | None = None
        self.reach = torch.full((len(num_atoms),), -1.0, dtype=torch.float64, device=device)
        self.builds = 0  # crystals searched so far
        self.kept: dict[tuple[int, int], ImageBlocks] = {}

    def blocks(self, start: int, end: int) -> ImageBlocks:
        """Those of the crystals from `start` up to `end`, as the last update left them."""
        if (start, end) not in self.kept:
            self.kept[start, end] = self._blocks(start, end)
        return self.kept[start, end]

    def _blocks(self, start: int, end: int) -> ImageBlocks:
        low, high = (int(x) for x in self.pairs.start[[start, end]])
        number, columns = torch.sort(self.count[low:high], descending=True, stable=True)
        columns = columns + low
        numbers = number.cpu()
        falling = -numbers
        blocks, images, pair, slot, total = [], [], 0, 0, len(numbers)
        place = torch.arange(len(self.image), device=number.device)[:, None]
        while pair < total and (most := int(numbers[pair])):
            last = int(torch.searchsorted(falling, -max(int(most * _WASTE), 1), right=True))
            blocks.append((pair, last, most, slot, slot + most * (last - pair)))
            found = self.image[:most].index_select(1, columns[pair:last])
            there = place[:most] < number[pair:last]
            images.append(torch.where(there[:, :, None], found, _FAR).flatten(0, 1))
            pair, slot = last, blocks[-1][-1]
        image = torch.cat([*images, self.image.new_zeros((0, 3))]).T.contiguous()
        pairs = self.pairs
        first = pairs.first[columns]
        atom = pairs.first[low] if high > low else 0
        return ImageBlocks(
            columns, first - atom, pairs.second[columns] - atom, pairs.crystal[columns] - start, blocks, image
        )

    def forget(self, crystals: Bool[Tensor, " crystals"]) -> None:
        """These are described anew (another cell, atoms wrapped): their images must be searched again."""
        self.reach = torch.where(crystals, -1.0, self.reach)

    def update(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        frac_coords: Float[Tensor, "atoms 3"],
        cutoff: Float[Tensor, " crystals"],
        use: Bool[Tensor, " crystals"] | None = None,
    ) -> None:
        """Searches anew where the table may lack an image; `use` leaves out the crystals that are False."""
        if self.lattice is None or self.frac_coords is None:
            self.lattice, self.frac_coords = lattice.clone(), frac_coords.clone()
            stale = torch.ones_like(cutoff, dtype=torch.bool)
        else:
            moved = (
                torch.einsum(
                    "na,nab->nb", frac_coords - self.frac_coords, lattice.index_select(0, self.atom_crystal)
                )
                .square_()
                .sum(1)
            )
            farthest = torch.zeros_like(cutoff).scatter_reduce_(0, self.atom_crystal, moved, "amax").sqrt_()
            back = inverse(lattice) @ self.lattice
            back.diagonal(dim1=1, dim2=2).sub_(1.0)
            stretch = 1.0 + back.square().sum((1, 2)).sqrt_()
            stale = ~(stretch * (cutoff + 2 * farthest) <= self.reach)
        if use is not None:
            stale &= use
        if bool(stale.any()):
            self._search(stale, lattice, frac_coords, cutoff + self.skin)

    def _search(self, stale: Tensor, lattice: Tensor, frac_coords: Tensor, reach: Tensor) -> None:
        crystals = torch.nonzero(stale)[:, 0]
        below = offsets(stale.long()).cpu()
        self.kept = {part: kept for part, kept in self.kept.items() if below[part[0]] == below[part[1]]}
        self.builds += len(crystals)
        self.lattice = torch.where(stale[:, None, None], lattice, self.lattice)
        self.frac_coords = torch.where(stale[self.atom_crystal, None], frac_coords, self.frac_coords)
        self.reach = torch.where(stale, reach, self.reach)
        if len(crystals) == len(stale):
            rows = slice(None)
            part = self.pairs
            pair, image = images_in_reach(lattice, frac_coords, part, reach)
            count = torch.bincount(pair, minlength=len(part.first))
        else:
            start = self.pairs.start
            rows = ranges(start[crystals], start[crystals + 1] - start[crystals])
            number = torch.cumsum(stale, 0) - 1
            part = AtomPairs(
                self.pairs.first[rows], self.pairs.second[rows], number[self.pairs.crystal[rows]], start
            )
            pair, image = images_in_reach(lattice[crystals], frac_coords, part, reach[crystals])
            count = torch.bincount(pair, minlength=len(part.first))
        place = ranks(count)
        most = int(count.max()) if len(count) else 0
        if most > len(self.image):
            more = self.image.new_zeros((most - len(self.image), *self.image.shape[1:]))
            self.image = torch.cat([self.image, more])
        column = pair if isinstance(rows, slice) else rows[pair]
        self.image[place, column] = image
        self.count[rows] = count
