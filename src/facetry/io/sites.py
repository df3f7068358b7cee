"""From listed sites to a Crystal: copies on one position merged, mixed sites joined, clashes refused.

A reader hands over every position a file describes, symmetry copies included. Three things may then lie on
one spot: copies of one atom (a special position), several species that share a site (mixed occupancy), or
a mistake. They are told apart here, the same way for all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from facetry.crystal import LONGEST, Crystal, CrystalError, check_lattice
from facetry.elements import SYMBOLS
from facetry.io.errors import FormatError

__all__ = ["SiteList", "build_crystal", "close_pairs", "fractional"]

CLASH = 0.5  # Å; no two full atoms come this close (H-H in hydrogen is 0.74)
SAME_SITE = 0.05  # Å; species of one mixed site are listed with equal coordinates, give or take rounding
SPLIT = 0.1  # Å; partly filled copies further apart than this are a split position, not a special one
SLACK = 0.05  # occupancies that add up to 1.05 are rounded numbers
SMALLEST_VOLUME = 0.5  # Å^3 per atom; metallic hydrogen at 500 GPa has 1.3
MAX_SITES = 100_000
MAX_PAIRS = 10_000_000  # that may be within reach of each other; 100 for each of so many sites


@dataclass
class SiteList:
    """Every position of a cell, before merging.

    `origin` is the index of the listed atom a position is a copy of, `listed` marks the positions that
    stand in the file itself, `label` names a listed atom in messages.
    """

    lattice: Float[np.ndarray, "3 3"]
    frac_coords: Float[np.ndarray, "sites 3"]
    atomic_numbers: Int[np.ndarray, "sites"]
    occupancy: Float[np.ndarray, "sites"]
    origin: Int[np.ndarray, "sites"]
    listed: Bool[np.ndarray, "sites"]
    label: Callable[[int], str]

    def keep(self, chosen: Bool[np.ndarray, " sites"]) -> None:
        """Only the chosen positions from now on."""
        for field in ("frac_coords", "atomic_numbers", "occupancy", "origin", "listed"):
            setattr(self, field, getattr(self, field)[chosen])


def build_crystal(
    lattice: Shaped[np.ndarray, "3 3"],
    frac_coords: Shaped[np.ndarray, "sites 3"],
    atomic_numbers: Shaped[np.ndarray, " sites"],
    name: str,
    *,
    occupancy: Float[np.ndarray, " sites"] | None = None,
    origin: Int[np.ndarray, " sites"] | None = None,
    listed: Bool[np.ndarray, " sites"] | None = None,
    label: Callable[[int], str] | None = None,
    notes: Sequence[str] = (),
    merge_within: float | int | None = None,
) -> Crystal:
    """The crystal a file describes.

    `merge_within` (Å) joins atoms of one element that are this close, instead of refusing them.
    Raises FormatError for two atoms on one site and for cells no matter could fill.
    """
    try:
        ordered = Crystal(lattice, frac_coords, atomic_numbers, name=name, notes=notes)
    except CrystalError as error:
        raise FormatError(str(error).removeprefix(f"{name}: ")) from None
    count = len(ordered)
    if count > MAX_SITES:
        raise FormatError(f"{count} sites in the cell, more than the {MAX_SITES} this reader takes")
    reach = max(CLASH, merge_within or 0.0)
    first, second, distance = close_pairs(ordered.lattice, ordered.frac_coords, reach)
    if len(first) == 0 and (occupancy is None or bool((occupancy == 1.0).all())):
        return _of_possible_density(ordered)
    notes = list(notes)
    sites = SiteList(
        ordered.lattice,
        ordered.frac_coords,
        ordered.atomic_numbers,
        np.ones(count) if occupancy is None else np.asarray(occupancy, dtype=float),
        np.arange(count) if origin is None else origin,
        np.ones(count, dtype=bool) if listed is None else listed,
        label or (lambda index: f"{index} ({SYMBOLS[int(ordered.atomic_numbers[index])]})"),
    )
    if len(first):
        if _merge_copies(sites, first, second, distance, notes):
            first, second, distance = close_pairs(sites.lattice, sites.frac_coords, reach)
        if merge_within and _merge_atoms(sites, first, second, distance, merge_within, notes):
            first, second, distance = close_pairs(sites.lattice, sites.frac_coords, reach)
    shared, species = _join_species(sites, first, second, distance, notes)
    _refuse_clashes(sites, first, second, distance, notes)
    keep = np.flatnonzero(shared == np.arange(len(shared)))
    try:
        crystal = Crystal(
            sites.lattice,
            sites.frac_coords[keep],
            np.array([max(species[i], key=species[i].__getitem__) for i in keep.tolist()]),
            [species[i] for i in keep.tolist()],
            name,
            notes=notes,
        )
    except CrystalError as error:
        raise FormatError(str(error).removeprefix(f"{name}: ")) from None
    return _of_possible_density(crystal)


def fractional(
    lattice: Float[np.ndarray, "3 3"], cart_coords: Float[np.ndarray, "sites 3"]
) -> Float[np.ndarray, "sites 3"]:
    """Coordinates in the lattice (rows in Å) of positions in Å.

    Raises FormatError where there is no such cell, or a position is out of its reach.
    """
    try:
        check_lattice(lattice)
    except CrystalError as error:
        raise FormatError(str(error)) from None
    if not np.abs(cart_coords).max() <= LONGEST:
        bad = int(np.argmax(np.abs(cart_coords).max(axis=1)))
        raise FormatError(f"position {bad + 1} is {cart_coords[bad].tolist()} Å, beyond any cell")
    return np.linalg.solve(lattice.T, cart_coords.T).T


def _of_possible_density(crystal: Crystal) -> Crystal:
    count = len(crystal) if crystal.is_ordered else sum(crystal.composition.values())
    if not crystal.volume >= SMALLEST_VOLUME * count:
        raise FormatError(
            f"{crystal.volume:.3g} Å^3 for {count:.4g} atoms is too dense for matter; "
            "check the cell lengths, angles and scale"
        )
    return crystal


# --- merging -----------------------------------------------------------------------------------


def _merge_copies(
    sites: SiteList, first: np.ndarray, second: np.ndarray, distance: np.ndarray, notes: list[str]
) -> bool:
    """Copies of one atom on a special position become one site. True where anything changed."""
    own = sites.origin[first] == sites.origin[second]
    if not own.any():
        return False
    first, second, distance = first[own], second[own], distance[own]
    # Two copies of a full atom within CLASH are one atom on a special position, roughly written down.
    # Partly filled copies may be a real split position, unless they would fill it more than once.
    cluster = _components(len(sites.origin), first, second)
    size = np.bincount(cluster, minlength=len(cluster))[cluster]
    crowded = sites.occupancy * size > 1 + SLACK
    join = (distance <= SPLIT) | crowded[first]
    cluster = _components(len(sites.origin), first[join], second[join])
    keep = cluster == np.arange(len(cluster))
    if keep.all():
        return False
    loose = join & (distance > SAME_SITE)
    if loose.any():
        sites.frac_coords = _averaged(sites, cluster, np.unique(cluster[first[loose]]))
        labels = _labels(sites, first[loose])
        notes.append(f"put on the special position nearby: {labels}")
    sites.keep(keep)
    return True


def _merge_atoms(
    sites: SiteList,
    first: np.ndarray,
    second: np.ndarray,
    distance: np.ndarray,
    merge_within: float,
    notes: list[str],
) -> bool:
    """Full atoms of one element closer than `merge_within` become one, on the user's wish."""
    full = sites.occupancy >= 1 - SLACK
    join = (
        (distance <= merge_within)
        & (sites.atomic_numbers[first] == sites.atomic_numbers[second])
        & full[first]
        & full[second]
    )
    if not join.any():
        return False
    cluster = _components(len(full), first[join], second[join])
    sites.frac_coords = _averaged(sites, cluster, np.unique(cluster[first[join]]))
    keep = cluster == np.arange(len(cluster))
    notes.append(f"{int((~keep).sum())} atoms joined with a neighbour within {merge_within:g} Å")
    sites.keep(keep)
    return True


def _join_species(
    sites: SiteList, first: np.ndarray, second: np.ndarray, distance: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, list[dict[int, float]]]:
    """Species of one position, and for every position the one that stands for it."""
    together = distance <= SAME_SITE
    cluster = _components(len(sites.origin), first[together], second[together])
    numbers, shares = sites.atomic_numbers.tolist(), sites.occupancy.tolist()
    species: list[dict[int, float]] = [{} for _ in numbers]
    members: dict[int, list[int]] = {}
    for index, root in enumerate(cluster.tolist()):
        members.setdefault(root, []).append(index)
    repeated, rescaled = [], []
    for root, group in members.items():
        entries = [(numbers[i], shares[i]) for i in group]
        total = sum(share for _, share in entries)
        if total > 1 + SLACK and len(group) > 1:
            entries = _without_repeats(sites, group, entries, total)
            total = sum(share for _, share in entries)
            repeated.append(group[0])
        scale = 1.0
        if total > 1 + 1e-9:
            if total > 1 + SLACK or len(group) == 1:
                rescaled.append(f"{sites.label(int(sites.origin[root]))} ({total:.4g})")
            scale = 1.0 / total
        for number, share in entries:
            species[root][number] = species[root].get(number, 0.0) + share * scale
    if repeated:
        notes.append(f"symmetry-equivalent atoms are listed more than once: {_labels(sites, repeated)}")
    if rescaled:
        named = list(dict.fromkeys(rescaled))
        notes.append(f"occupancy above 1 taken as 1: {', '.join(named[:5])}{' ...' * (len(named) > 5)}")
    return cluster, species


def _without_repeats(
    sites: SiteList, group: list[int], entries: list[tuple[int, float]], total: float
) -> list[tuple[int, float]]:
    """The entries of an overfull site once each, where the excess comes from listing equivalents."""
    unique = list(dict.fromkeys((number, round(share, 3)) for number, share in entries))
    on_spot = [i for i in group if sites.listed[i]]
    if len(on_spot) < 2 and sum(share for _, share in unique) <= 1 + SLACK:
        return unique
    a, b = [sites.label(int(sites.origin[i])) for i in group[:2]]
    raise FormatError(
        f"sites {a} and {b} lie on one position and hold {total:.3g} atoms together; "
        "remove one, give occupancies that add up to 1, or pass merge_within=0.05 to join equal atoms"
    )


def _refuse_clashes(
    sites: SiteList, first: np.ndarray, second: np.ndarray, distance: np.ndarray, notes: list[str]
) -> None:
    apart = (distance > SAME_SITE) & (distance < CLASH)
    if not apart.any():
        return
    first, second, distance = first[apart], second[apart], distance[apart]
    low = np.minimum(sites.occupancy[first], sites.occupancy[second])
    full = low >= 1 - SLACK
    if full.any():
        worst = np.flatnonzero(full)[np.argmin(distance[full])]
        a, b = int(sites.origin[first[worst]]), int(sites.origin[second[worst]])
        wish = np.ceil(distance[worst] * 20 + 1e-9) / 20
        pair = f"sites {sites.label(a)} and {sites.label(b)} are"
        if a == b:
            pair = f"two symmetry copies of site {sites.label(a)} are"
        raise FormatError(
            f"{pair} {distance[worst]:.2f} Å apart; pass merge_within={wish:g} to join equal atoms, "
            "or correct the file"
        )
    sums = sites.occupancy[first] + sites.occupancy[second]
    if (sums > 1 + SLACK).any():
        worst = int(np.argmax(sums))
        a, b = sites.label(int(sites.origin[first[worst]])), sites.label(int(sites.origin[second[worst]]))
        notes.append(
            f"partly filled sites {a} and {b} are {distance[worst]:.2f} Å apart with {sums[worst]:.3g} atoms"
        )


def _labels(sites: SiteList, indices: Sequence[int] | np.ndarray) -> str:
    names = list(dict.fromkeys(sites.label(int(sites.origin[i])) for i in indices))
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _averaged(sites: SiteList, cluster: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Positions with the given clusters moved to their mean."""
    frac = sites.frac_coords.copy()
    for root in roots.tolist():
        members = np.flatnonzero(cluster == root)
        shift = sites.frac_coords[members] - sites.frac_coords[root]
        frac[members] = sites.frac_coords[root] + (shift - np.rint(shift)).mean(axis=0)
    return frac


def _components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The lowest index of the connected component of every node."""
    label = np.arange(count)
    while len(first):
        low = np.minimum(label[first], label[second])
        if (label[first] == low).all() and (label[second] == low).all():
            break
        np.minimum.at(label, first, low)
        np.minimum.at(label, second, low)
        label = label[label]
    return label


# --- who is close to whom ----------------------------------------------------------------------


def close_pairs(
    lattice: Float[np.ndarray, "3 3"], frac_coords: Float[np.ndarray, "sites 3"], reach: float
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Float[np.ndarray, "pairs"]]:
    """Pairs of sites (i < j) nearer than `reach` Å, periodic images included, with their distance.

    Raises FormatError where a lattice vector itself is shorter than CLASH: every atom meets its own image.
    """
    heights = _heights(lattice)
    if min(heights) < 2 * max(reach, CLASH):
        lattice, frac_coords = _reduced(lattice, frac_coords)
        shortest = float(np.sqrt((lattice**2).sum(axis=1)).min())
        if shortest < CLASH:
            raise FormatError(
                f"a lattice translation is only {shortest:.2g} Å long, so every atom meets its own image; "
                "check the cell lengths, angles and scale"
            )
        heights = _heights(lattice)
    # With all heights above twice the reach, the rounded difference is the only image that can be close.
    images = _NO_SHIFT
    if min(heights) < 2 * reach:
        spans = [np.arange(-m, m + 1.0) for m in (int(reach / h + 0.5) for h in heights)]
        images = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    count = len(frac_coords)
    if count <= 160 and len(images) == 1:
        return _few_pairs(lattice, frac_coords, reach)
    if len(images) > 1:
        blocks = max(1, count * count * len(images) // 2_000_000)
        found = [
            _all_pairs(lattice, frac_coords, rows, images, reach)
            for rows in np.array_split(np.arange(count), min(blocks, count))
        ]
        first, second, distance = (np.concatenate(part) for part in zip(*found, strict=True))
        return first, second, distance
    return _binned_pairs(lattice, frac_coords, heights, reach)


def _few_pairs(
    lattice: np.ndarray, frac: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = len(frac)
    delta = (frac[:, None, :] - frac).reshape(-1, 3)
    delta -= np.rint(delta)
    vectors = delta @ lattice
    square = np.einsum("ij,ij->i", vectors, vectors)
    close = square < reach * reach
    if np.count_nonzero(close) == count:  # each site with itself
        return _NONE, _NONE, _NO_DISTANCE
    first, second = np.nonzero(np.triu(close.reshape(count, count), 1))
    return first, second, np.sqrt(square[first * count + second])


_NO_DISTANCE = np.empty(0)
_NO_SHIFT = np.zeros((1, 3))
_NONE = np.empty(0, dtype=np.int64)


def _all_pairs(
    lattice: np.ndarray, frac: np.ndarray, rows: np.ndarray, images: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    delta = frac - frac[rows, None, :]
    delta -= np.rint(delta)
    vectors = (delta[:, :, None, :] + images) @ lattice
    square = np.einsum("ijsk,ijsk->ijs", vectors, vectors).min(axis=2)
    first, second = np.nonzero(square < reach * reach)
    upper = rows[first] < second
    first, second = first[upper], second[upper]
    return rows[first], second, np.sqrt(square[first, second])


def _binned_pairs(
    lattice: np.ndarray, frac: np.ndarray, heights: list[float], reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for many sites: bins no thinner than the reach, each site against 14 neighbouring bins."""
    bins = np.array([max(1, min(512, int(height / reach))) for height in heights])
    wrapped = frac - np.floor(frac)
    cell = np.minimum((wrapped * bins).astype(np.int64), bins - 1)
    key = (cell[:, 0] * bins[1] + cell[:, 1]) * bins[2] + cell[:, 2]
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    firsts, seconds, looked_at = [], [], 0
    for offset in offsets:
        target = (cell + offset) % bins
        target_key = (target[:, 0] * bins[1] + target[:, 1]) * bins[2] + target[:, 2]
        start = np.searchsorted(sorted_key, target_key, side="left")
        stop = np.searchsorted(sorted_key, target_key, side="right")
        lengths = stop - start
        total = int(lengths.sum())
        if total == 0:
            continue
        looked_at += total
        if looked_at > MAX_PAIRS:
            raise FormatError(
                f"{len(frac)} sites in the cell, more than {MAX_PAIRS:,} pairs of them within {reach:g} Å; "
                "the same sites are listed over and over: remove the copies"
            )
        first = np.repeat(np.arange(len(frac)), lengths)
        within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        second = order[np.repeat(start, lengths) + within]
        upper = first < second
        firsts.append(first[upper])
        seconds.append(second[upper])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    delta = frac[second] - frac[first]
    vectors = (delta - np.rint(delta)) @ lattice
    square = np.einsum("ij,ij->i", vectors, vectors)
    close = square < reach * reach
    first, second, distance = first[close], second[close], np.sqrt(square[close])
    # fewer than three bins along an axis make two offsets name one bin
    _, unique = np.unique(first * len(frac) + second, return_index=True)
    return first[unique], second[unique], distance[unique]


def _heights(lattice: np.ndarray) -> list[float]:
    """Distances between opposite faces of the cell; no lattice vector is shorter than the least of them."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = lattice.tolist()
    normals = (
        (by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx),
        (cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax),
        (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx),
    )
    volume = abs(ax * normals[0][0] + ay * normals[0][1] + az * normals[0][2])
    return [volume / (x * x + y * y + z * z) ** 0.5 for x, y, z in normals]


def _reduced(lattice: np.ndarray, frac: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A short basis of the same lattice (pairwise reduction) and the coordinates in it."""
    change = np.eye(3, dtype=np.int64)
    short = lattice.copy()
    for _ in range(200):
        square = np.einsum("ij,ij->i", short, short)
        gram = short @ short.T
        steps = np.rint(gram / square[None, :])  # how many of j to take off i
        np.fill_diagonal(steps, 0)
        gain = np.where(
            steps != 0,
            square[:, None] - (square[:, None] - 2 * steps * gram + steps**2 * square[None, :]),
            0.0,
        )
        i, j = np.unravel_index(int(np.argmax(gain)), (3, 3))
        if gain[i, j] <= 1e-12 * square[i]:
            break
        change[i] -= steps[i, j].astype(np.int64) * change[j]
        short[i] = change[i] @ lattice
    return short, frac @ np.linalg.inv(change)
