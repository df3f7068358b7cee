"""Templates: known structures with other elements on their sites.

For a formula every crystal of a training set with the same anonymous formula (ABC3 for SrTiO3) is a template.
Its elements are replaced such that they change least, the cell is scaled to the room that the new atoms need,
and the most alike come first. No learning, and hard to beat where a structure type is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, permutations, product
from os import PathLike
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from facetry.chemistry import Formula, element_distances, expected_volume
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.tasks.generate import Candidate

__all__ = ["Templates", "substituted"]

Part = Literal["train", "val", "test"]


class Templates:
    """The method `template`.

    Args:
        data: a named set, of which `part` is used; or files of your own, as `facetry.read` takes them (what
            cannot be read is left out); or crystals.
        part: of a named set; the crystals that are looked for must not be in it.
        farthest: up to which root mean square distance of the elements of its atoms a template is taken
            (`facetry.chemistry.element_distances`: 0 the same, 1 close relatives); None for all.

    Disordered crystals are no templates. The seed does not matter.
    """

    energy_unit = ""

    def __init__(
        self,
        data: str | PathLike[str] | Sequence[Crystal],
        part: Part = "train",
        farthest: float | int | None = None,
    ) -> None:
        if isinstance(data, str | PathLike):
            crystals = _read(str(data), part)
        else:
            crystals = data if isinstance(data, CrystalTable) else CrystalTable.from_crystals(data)
        if farthest is not None and farthest < 0:
            raise ValueError(f"farthest: expected a distance of 0 or more, got {farthest}")
        self.crystals, self.farthest = crystals, farthest
        self._compositions = _Compositions(crystals)

    def ranked(
        self, formula: Formula, atoms: int | None = None
    ) -> tuple[
        Int[np.ndarray, " templates"], Float[np.ndarray, " templates"], Int[np.ndarray, "templates kinds"]
    ]:
        """Rows of the templates, the most alike first; how far their elements are from those wanted; and the
        element of the template for which each element of the formula stands (elements in ascending order of
        their amount, then of their number)."""
        wanted = sorted((n, z) for z, n in formula.reduced_counts.items())
        rows, elements = self._compositions.with_amounts([n for n, _ in wanted])
        if atoms is not None:
            chosen = self.crystals.num_atoms[rows] == atoms
            rows, elements = rows[chosen], elements[chosen]
        weight = np.array([n for n, _ in wanted], dtype=float)
        weight /= weight.sum()
        squared = element_distances() ** 2
        target = [z for _, z in wanted]
        orders = _orders([n for n, _ in wanted])
        # templates x orders: mean square distance when the elements of a template are taken in this order
        cost = np.stack([squared[elements[:, order], target] @ weight for order in orders], axis=1)
        best = cost.argmin(1)
        distance = np.sqrt(cost[np.arange(len(rows)), best])
        replaced = np.take_along_axis(elements, orders[best], axis=1)
        order = np.argsort(distance.round(9), kind="stable")
        if self.farthest is not None:
            order = order[distance[order] <= self.farthest]
        return rows[order], distance[order], replaced[order]

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]:
        """Candidates, the most alike template first; `count` and `seed` do not matter."""
        target = [z for _, z in sorted((n, z) for z, n in formula.reduced_counts.items())]
        rows, distances, replaced = self.ranked(formula, atoms)
        for row, distance, old in zip(rows.tolist(), distances.tolist(), replaced.tolist(), strict=True):
            template = self.crystals[row]
            crystal = substituted(template, dict(zip(old, target, strict=True)))
            yield Candidate(
                crystal, None, f"{template.name or row} ({template.formula}), distance {distance:.2f}"
            )

    def nothing(self, formula: Formula, atoms: int | None) -> str:
        """Why there are no candidates for a formula."""
        where = "" if atoms is None else f" and {atoms} atoms in the cell"
        return f"no template with the anonymous formula {formula.anonymous}{where} among {len(self.crystals)}"


def _read(data: str, part: Part) -> CrystalTable:
    from facetry.data import dataset, is_named
    from facetry.io import read

    if is_named(data):
        return getattr(dataset(data, target=[]), part).crystals
    return CrystalTable.from_crystals(read(data, errors="skip"))


def substituted(template: Crystal, elements: dict[int, int]) -> Crystal:
    """The template with its elements replaced (old atomic number -> new), scaled by the ratio of the
    expected volumes: what is special about the room in this structure stays."""
    numbers = np.array([elements.get(z, z) for z in template.atomic_numbers.tolist()])
    ratio = expected_volume(numbers) / expected_volume(template.atomic_numbers)
    return template.replace(lattice=template.lattice * ratio ** (1 / 3), atomic_numbers=numbers)


def _orders(amounts: Sequence[int]) -> Int[np.ndarray, "orders kinds"]:
    """All orders of places in which equal amounts change places with each other only."""
    places = list(enumerate(amounts))
    blocks = [[place for place, _ in group] for _, group in groupby(places, key=lambda entry: entry[1])]
    return np.array(
        [sum(choice, ()) for choice in product(*(permutations(b) for b in blocks))], dtype=np.int64
    )


class _Compositions:
    """Reduced compositions of many crystals in flat arrays, elements sorted by amount, then by number."""

    def __init__(self, crystals: CrystalTable) -> None:
        count = len(crystals)
        owner = np.repeat(np.arange(count), crystals.num_atoms)
        kinds, amounts = np.unique(owner * 128 + crystals.atomic_numbers, return_counts=True)
        owner, number = kinds // 128, kinds % 128
        self.kinds = np.bincount(owner, minlength=count)
        self.start = np.concatenate([[0], np.cumsum(self.kinds)])
        if count:
            amounts = amounts // np.repeat(np.gcd.reduceat(amounts, self.start[:-1]), self.kinds)
        order = np.lexsort((number, amounts, owner))
        self.number, self.amount = number[order], amounts[order]
        self.ordered = np.ones(count, dtype=bool)
        self.ordered[list(crystals.occupancies or {})] = False

    def with_amounts(
        self, amounts: Sequence[int]
    ) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rows kinds"]]:
        """The crystals with these amounts (ascending), and their elements in that order."""
        rows = np.flatnonzero((self.kinds == len(amounts)) & self.ordered)
        at = self.start[rows][:, None] + np.arange(len(amounts))
        chosen = (self.amount[at] == np.asarray(amounts)).all(1)
        return rows[chosen], self.number[at[chosen]]
