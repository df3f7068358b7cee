"""Primitive cells: pure translations that map a crystal on itself, found and divided out for many crystals at
once.

A cell is not primitive when the crystal repeats within it. Looking at more images of the cell never shows
this; the finer translations must be found from the atoms. Only those of prime order p are looked for, τ = n/p
with integers n: by Cauchy's theorem every group of translations has some, there are at most p³ - 1 of them,
and after they are divided out the search starts again in the smaller cell. The order divides the number of
atoms of every species, so a crystal whose species counts have no common divisor is primitive at once: most
are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.geometry.lattice import determinant, inverse, reciprocal
from facetry.geometry.ragged import ranges
from facetry.geometry.reduction import minkowski_reduce, working_copy

_PROBE_ATOMS = 8  # a candidate of a large crystal is tried on so many atoms before on all
_MANY_PAIRS = 20_000


@dataclass(frozen=True)
class PrimitiveCells:
    """Primitive cells, packed, and how the atoms of the input map on them.

    ``atom_map`` gives for each input atom the row of the atom it is a copy of; ``multiplicity`` counts the
    primitive cells in each input cell. Crystals that were primitive are unchanged to the last bit.
    """

    lattice: Float[Tensor, "crystals 3 3"]
    frac_coords: Float[Tensor, "primitive_atoms 3"]
    atomic_numbers: Int[Tensor, " primitive_atoms"]
    num_atoms: Int[Tensor, " crystals"]
    atom_map: Int[Tensor, " atoms"]
    multiplicity: Int[Tensor, " crystals"]


def primitive_cell(
    lattice: Float[Tensor, "crystals 3 3"],
    frac_coords: Float[Tensor, "atoms 3"],
    atomic_numbers: Int[Tensor, " atoms"],
    num_atoms: Int[Tensor, " crystals"],
    tolerance: float = 1e-3,
) -> PrimitiveCells:
    """Smallest cells that describe the same crystals, without turning, mirroring or idealising them.

    A translation counts when it carries every atom to within ``tolerance`` (Å) of one of its species.
    ``atomic_numbers`` may be any integers that tell species apart, also mixed sites. A cell that shrinks is
    Minkowski-reduced with the handedness of the input, its atoms are wrapped, and each lies at the average of
    its copies; lattice and coordinates stay differentiable in the input.
    """
    maps = _find_maps(working_copy(lattice), frac_coords, atomic_numbers, num_atoms, tolerance)
    if maps is None:
        every = torch.arange(len(frac_coords), device=frac_coords.device)
        return PrimitiveCells(
            lattice, frac_coords, atomic_numbers, num_atoms, every, torch.ones_like(num_atoms)
        )
    transform, copy_of = maps
    multiplicity = determinant(transform).abs().round().to(num_atoms)
    divide = transform.to(lattice)
    copy_of = copy_of.to(frac_coords.device)
    changed = multiplicity > 1
    crystal = torch.arange(len(lattice), device=lattice.device).repeat_interleave(num_atoms)

    new_lattice = torch.where(changed[:, None, None], inverse(transform).to(lattice) @ lattice, lattice)
    kept, atom_map = torch.unique(copy_of, return_inverse=True)
    moved = _average(frac_coords, copy_of, divide[crystal].to(frac_coords.dtype))
    moved = moved - moved.detach().floor()
    moved = torch.where(moved >= 1.0, 0.0, moved)
    frac = torch.where(changed[crystal][:, None], moved, frac_coords)[kept]
    count = torch.bincount(crystal[kept], minlength=len(lattice)).to(num_atoms.dtype)
    return PrimitiveCells(new_lattice, frac, atomic_numbers[kept], count, atom_map, multiplicity)


def _average(
    frac_coords: Float[Tensor, "atoms 3"],
    copy_of: Int[Tensor, " atoms"],
    transform: Float[Tensor, "atoms 3 3"],
) -> Float[Tensor, "atoms 3"]:
    """Mean of all copies in the coordinates of the smaller cell; meaningful at the atoms that are kept."""
    inside = (frac_coords[:, None] @ transform).squeeze(1)
    apart = inside - inside[copy_of]
    apart = apart - apart.detach().round()
    total = torch.zeros_like(apart).index_add_(0, copy_of, apart)
    copies = torch.bincount(copy_of, minlength=len(copy_of)).clamp_min(1).to(apart.dtype)
    return inside + total / copies[:, None]


@dataclass(frozen=True)
class _Cells:
    """Crystals still looked at. Atoms are rows of this set; ``origin`` are their rows in the input."""

    crystal: Int[Tensor, " crystals"]  # in the input
    lattice: Float[Tensor, "crystals 3 3"]
    transform: Float[Tensor, "crystals 3 3"]  # integers: input lattice = transform @ lattice
    frac: Float[Tensor, "atoms 3"]
    species: Int[Tensor, " atoms"]
    origin: Int[Tensor, " atoms"]
    num_atoms: Int[Tensor, " crystals"]

    @property
    def owner(self) -> Int[Tensor, " atoms"]:
        return torch.arange(len(self.num_atoms), device=self.species.device).repeat_interleave(self.num_atoms)

    def select(self, crystals: Int[Tensor, " selected"]) -> _Cells:
        first = self.num_atoms.cumsum(0) - self.num_atoms
        count = self.num_atoms[crystals]
        atoms = ranges(first[crystals], count)
        return _Cells(
            self.crystal[crystals], self.lattice[crystals], self.transform[crystals],
            self.frac[atoms], self.species[atoms], self.origin[atoms], count,
        )  # fmt: skip

    def reduced(self) -> _Cells:
        """The same crystals in Minkowski-reduced cells."""
        lattice, change = minkowski_reduce(self.lattice)
        back = inverse(change.to(lattice.dtype)).round()
        frac = (self.frac[:, None] @ back[self.owner]).squeeze(1)
        transform = self.transform @ back
        return _Cells(self.crystal, lattice, transform, frac, self.species, self.origin, self.num_atoms)


def _find_maps(
    lattice: Tensor, frac_coords: Tensor, species: Tensor, num_atoms: Tensor, tolerance: float
) -> tuple[Tensor, Tensor] | None:
    """Integers expressing each lattice in its primitive one, and the atom each atom is a copy of; or None."""
    device = lattice.device
    _, dense = torch.unique(species.to(device), return_inverse=True)
    num_atoms = num_atoms.to(device, torch.int64)
    cells = _Cells(
        torch.arange(len(lattice), device=device),
        lattice,
        torch.eye(3, dtype=lattice.dtype, device=device).expand_as(lattice),
        frac_coords.detach().to(device, lattice.dtype),
        dense,
        torch.arange(len(dense), device=device),
        num_atoms,
    )
    cells, divisor, rarest = _repeating(cells)
    if len(cells.crystal) == 0:
        return None
    cells = cells.reduced()
    transform = cells.transform.new_zeros(lattice.shape) + torch.eye(3, dtype=lattice.dtype, device=device)
    copy_of = torch.arange(len(dense), device=device)
    while len(cells.crystal):
        translations = _translations(cells, divisor, rarest, tolerance)
        if translations is None:
            break
        cells, atoms, same = _divide(cells, translations)
        copy_of[atoms] = same
        transform[cells.crystal] = cells.transform
        cells, divisor, rarest = _repeating(cells)
        cells = cells.reduced()
    changed = (determinant(transform).abs() > 1.5).nonzero().squeeze(1)
    if len(changed) == 0:
        return None
    # a copy of a copy: follow to the end; each round of the search adds one step
    while not torch.equal(copy_of, copy_of[copy_of]):
        copy_of = copy_of[copy_of]
    basis = inverse(transform[changed]) @ lattice[changed]
    _, change = minkowski_reduce(basis)
    transform[changed] = (transform[changed] @ inverse(change.to(lattice.dtype)).round()).round()
    return transform, copy_of


def _repeating(cells: _Cells) -> tuple[_Cells, Tensor, Tensor]:
    """Crystals whose species counts have a common divisor, that divisor, and their rarest species."""
    kinds = int(cells.species.max()) + 1 if len(cells.species) else 1
    counts = torch.bincount(cells.owner * kinds + cells.species, minlength=len(cells.num_atoms) * kinds)
    counts = counts.reshape(-1, kinds)
    divisor = counts
    while divisor.shape[1] > 1:
        half = (divisor.shape[1] + 1) // 2
        rest = divisor[:, half:]
        divisor = torch.cat(
            (torch.gcd(divisor[:, : rest.shape[1]], rest), divisor[:, rest.shape[1] : half]), 1
        )
    divisor = divisor[:, 0]
    chosen = (divisor > 1).nonzero().squeeze(1)
    counts = counts[chosen]
    rarest = counts.masked_fill(counts == 0, torch.iinfo(counts.dtype).max).argmin(1)
    return cells.select(chosen), divisor[chosen], rarest


@dataclass(frozen=True)
class _Translations:
    """Translations ``steps / prime`` of some crystals and the atom each carries every atom to."""

    crystal: Int[Tensor, " translations"]
    prime: Int[Tensor, " translations"]
    steps: Int[Tensor, "translations 3"]
    image: Int[Tensor, " pairs"]  # for each translation the images of all atoms of its crystal, in order


def _translations(cells: _Cells, divisor: Tensor, rarest: Tensor, tolerance: float) -> _Translations | None:
    """A closed set of translations of one prime order for every crystal that has some."""
    crystal, prime, steps = _candidates(cells, divisor, rarest, tolerance)
    if len(crystal) and int(cells.num_atoms[crystal].sum()) > _MANY_PAIRS:
        first = cells.num_atoms.cumsum(0) - cells.num_atoms
        order = torch.argsort(
            (cells.species != rarest[cells.owner]).to(torch.int8) + 2 * cells.owner, stable=True
        )
        probes = cells.num_atoms.clamp_max(_PROBE_ATOMS)  # the rarest species first
        count = probes[crystal]
        image = _images(cells, crystal, prime, steps, order[ranges(first[crystal], count)], count, tolerance)
        good = _all_found(image, count)
        crystal, prime, steps = crystal[good], prime[good], steps[good]
    if len(crystal) == 0:
        return None
    first, count = (cells.num_atoms.cumsum(0) - cells.num_atoms)[crystal], cells.num_atoms[crystal]
    image = _images(cells, crystal, prime, steps, ranges(first, count), count, tolerance)
    good = _all_found(image, count)
    if not bool(good.any()):
        return None
    image = image[good.repeat_interleave(count)]
    crystal, prime, steps = crystal[good], prime[good], steps[good]

    closed = _stabiliser(crystal, prime, steps)
    smallest = torch.full_like(divisor, torch.iinfo(divisor.dtype).max)  # one prime at a time
    smallest.scatter_reduce_(0, crystal[closed], prime[closed], "amin")
    keep = closed & (prime == smallest[crystal])
    if not bool(keep.any()):
        return None
    image = image[keep.repeat_interleave(cells.num_atoms[crystal])]
    return _Translations(crystal[keep], prime[keep], steps[keep], image)


def _candidates(
    cells: _Cells, divisor: Tensor, rarest: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiples of 1/p that carry one atom of the rarest species on another, for each prime p of the
    divisor."""
    rare = (cells.species == rarest[cells.owner]).nonzero().squeeze(1)
    owner = cells.owner[rare]
    change = torch.ones_like(owner, dtype=torch.bool)
    change[1:] = owner[1:] != owner[:-1]
    reference = rare[change][owner]  # every crystal has its rarest species
    tau = (cells.frac[rare] - cells.frac[reference])[~change]
    owner = owner[~change]

    different, which = torch.unique(divisor, return_inverse=True)
    table = _primes(different)
    prime = table[which][owner]  # (candidates, slots), 0 where there are fewer primes
    row, slot = prime.nonzero().unbind(1)
    owner, tau, prime = owner[row], tau[row], prime[row, slot]
    steps = (tau * prime[:, None]).round()
    off = ((tau - steps / prime[:, None])[:, None] @ cells.lattice[owner]).squeeze(1)
    steps = torch.remainder(steps.to(torch.int64), prime[:, None])
    good = (torch.linalg.vector_norm(off, dim=-1) <= tolerance) & (steps != 0).any(-1)
    rows = torch.cat((owner[good, None], prime[good, None], steps[good]), 1)
    if len(rows) > 1:
        rows = torch.unique(rows, dim=0)  # two atoms closer than the tolerance
    return rows[:, 0], rows[:, 1], rows[:, 2:]


def _primes(numbers: Int[Tensor, " numbers"]) -> Int[Tensor, "numbers slots"]:
    """Prime divisors of each number, padded with zeros."""
    rows = []
    for number in numbers.tolist():
        found, p = [], 2
        while number > 1:
            if number % p == 0:
                found.append(p)
                while number % p == 0:
                    number //= p
            p += 1 if p * p <= number else max(number - p, 1)
        rows.append(found)
    slots = max(map(len, rows))
    return torch.tensor([row + [0] * (slots - len(row)) for row in rows], device=numbers.device)


def _images(
    cells: _Cells,
    crystal: Tensor,
    prime: Tensor,
    steps: Tensor,
    atoms: Int[Tensor, " pairs"],
    count: Int[Tensor, " translations"],
    tolerance: float,
) -> Int[Tensor, " pairs"]:
    """The atom of the same species that each atom is carried to, -1 where there is none.

    One tree holds all crystals: its first three axes are periodic fractional coordinates, the fourth keeps
    crystals and species apart. What it finds nearest is checked in Å.
    """
    from scipy.spatial import cKDTree

    if len(crystal) == 0:
        return atoms
    tau = (steps / prime[:, None]).to(cells.frac.dtype).repeat_interleave(count, 0)
    moved = cells.frac[atoms] + tau
    present = torch.unique(crystal)
    used = torch.zeros(len(cells.num_atoms), dtype=torch.bool, device=crystal.device)
    used[present] = True
    sites = used[cells.owner].nonzero().squeeze(1)
    apart = cells.owner * (int(cells.species.max()) + 1) + cells.species

    def points(frac: Tensor, group: Tensor) -> Tensor:
        inside = frac - frac.floor()
        inside = torch.where(inside >= 1.0, 0.0, inside)
        return torch.cat((inside, 2.0 * group[:, None].to(frac.dtype)), 1).cpu()

    reach = tolerance * float(torch.linalg.vector_norm(reciprocal(cells.lattice[present]), dim=-1).max())
    tree = cKDTree(points(cells.frac[sites], apart[sites]).numpy(), boxsize=(1.0, 1.0, 1.0, 0.0))
    query = points(moved, apart[atoms]).numpy()
    _, nearest = tree.query(query, p=float("inf"), distance_upper_bound=min(1.01 * reach + 1e-12, 0.9))
    nearest = torch.from_numpy(nearest).to(atoms.device)
    missing = nearest >= len(sites)
    image = sites[nearest.masked_fill(missing, 0)]
    off = cells.frac[image] - moved
    off = ((off - off.round())[:, None] @ cells.lattice[cells.owner[atoms]]).squeeze(1)
    missing |= torch.linalg.vector_norm(off, dim=-1) > tolerance
    return image.masked_fill(missing, -1)


def _all_found(image: Tensor, count: Tensor) -> Tensor:
    """Translations that carry all atoms tried to an atom."""
    index = torch.arange(len(count), device=count.device).repeat_interleave(count)
    lost = torch.zeros_like(count).index_add_(0, index, (image < 0).to(count.dtype))
    return lost == 0


def _stabiliser(crystal: Tensor, prime: Tensor, steps: Tensor) -> Tensor:
    """Which translations keep the set of all of their crystal and prime, zero included, when added to it.

    They form a group, and are the whole set when that is one. The two differ only where noise of about the
    size of the tolerance lets a translation pass and not its multiples; then the smaller, sure group is
    taken.
    """
    _, index, size = torch.unique(
        torch.stack((crystal, prime), 1), dim=0, return_inverse=True, return_counts=True
    )
    order = index.argsort(stable=True)
    first = size.cumsum(0) - size
    left = torch.arange(len(index), device=index.device).repeat_interleave(size[index])
    right = order[ranges(first[index], size[index])]
    total = torch.remainder(steps[left] + steps[right], prime[left, None])
    base = int(prime.max())

    def key(group: Tensor, n: Tensor) -> Tensor:
        return ((group * base + n[:, 0]) * base + n[:, 1]) * base + n[:, 2]

    inside = torch.isin(key(index[left], total), key(index, steps)) | (total == 0).all(-1)
    outside = torch.zeros_like(index).index_add_(0, left, (~inside).to(index.dtype))
    return outside == 0


def _divide(cells: _Cells, found: _Translations) -> tuple[_Cells, Tensor, Tensor]:
    """Smaller cells of the crystals with translations; the input atoms of these, and what each is a copy
    of."""
    crystals = len(cells.num_atoms)
    size = torch.bincount(found.crystal, minlength=crystals) + 1  # of the group, with the identity
    owner = cells.owner
    first = cells.num_atoms.cumsum(0) - cells.num_atoms
    every = torch.arange(len(owner), device=owner.device)

    count = cells.num_atoms[found.crystal]
    copy_of = every.scatter_reduce(0, ranges(first[found.crystal], count), found.image, "amin")
    # Sites of one species closer than the tolerance can be carried to one place; such crystals stay as they
    # are.
    copies = torch.bincount(copy_of, minlength=len(owner))
    kept = copy_of == every
    bad = (copies[copy_of] != size[owner]) | ~kept[copy_of]
    spoilt = torch.zeros(crystals, dtype=torch.int64, device=owner.device)
    spoilt.index_add_(0, owner, bad.to(torch.int64))
    chosen = ((size > 1) & (spoilt == 0)).nonzero().squeeze(1)

    divide = inverse(_finer_basis(found, crystals, cells.lattice.dtype))
    divide = torch.where(
        (size > 1)[:, None, None], divide, torch.eye(3, dtype=divide.dtype, device=divide.device)
    ).round()
    frac = _average(cells.frac, copy_of, divide[owner])
    atoms = ranges(first[chosen], cells.num_atoms[chosen])
    stay = atoms[kept[atoms]]
    smaller = _Cells(
        cells.crystal[chosen],
        inverse(divide[chosen]) @ cells.lattice[chosen],
        (cells.transform @ divide)[chosen],
        frac[stay],
        cells.species[stay],
        cells.origin[stay],
        cells.num_atoms[chosen] // size[chosen],
    )
    return smaller, cells.origin[atoms], cells.origin[copy_of[atoms]]


def _finer_basis(found: _Translations, crystals: int, dtype: torch.dtype) -> Float[Tensor, "crystals 3 3"]:
    """Basis of the lattice that the translations add, in units of the old vectors.

    The translations and whole vectors are all points of that lattice in the cell, so its Hermite normal form
    is read off: row m is the point with m zeros in front, then the smallest positive entry.
    """
    p, n = found.prime, found.steps
    order = torch.ones(crystals, dtype=p.dtype, device=p.device).scatter_(0, found.crystal, p)
    key = (n[:, 0] * p + n[:, 1]) * p + n[:, 2]
    absent = torch.iinfo(key.dtype).max
    rows = []
    for m in range(3):
        fits = (n[:, m] > 0) & (n[:, :m] == 0).all(-1)
        least = torch.full_like(order, absent)
        least.scatter_reduce_(0, found.crystal, key.masked_fill(~fits, absent), "amin")
        point = torch.stack((least // (order * order), least // order % order, least % order), -1)
        whole = torch.nn.functional.one_hot(torch.tensor(m, device=p.device), 3) * order[:, None]
        rows.append(torch.where((least == absent)[:, None], whole, point))
    return torch.stack(rows, 1).to(dtype) / order[:, None, None]
