"""Measures whether a model keeps the symmetry it declares: its answer to a crystal against its answers to
other descriptions of that crystal.

Whoever asks gives a function from crystals to answers, so that nothing here knows how a model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from facetry.crystal import Crystal, CrystalError
from facetry.evaluation import changes
from facetry.evaluation.certificate_suite import suite
from facetry.evaluation.changes import Change
from facetry.models.base import Symmetry

_ATTEMPTS = 50
ROUNDINGS = 100.0  # a network's forward pass shows one to five where nothing else differs
_DOUBLE = 2.0**-52
_STEEPEST = 10.0  # times itself: what an answer changes by in an Å, at most


@dataclass(frozen=True)
class Answer:
    """What a model made of one crystal: numbers, or a lattice and positions that go with the crystal."""

    numbers: Float[np.ndarray, " numbers"]
    lattice: Float[np.ndarray, "3 3"] | None = None
    frac_coords: Float[np.ndarray, "atoms 3"] | None = None
    edges: int = 0  # of the graph that was read

    def vector(self) -> Float[np.ndarray, " components"]:
        """All components of the answer; lattice rows and positions in Å."""
        if self.lattice is None or self.frac_coords is None:
            return self.numbers
        return np.concatenate([self.lattice.ravel(), (self.frac_coords @ self.lattice).ravel()])

    def distance(self, other: Answer, change: Change | None = None) -> float:
        """The largest difference of a number; of a component of lattice rows and of displacements in Å, where
        an answer to a changed crystal is brought back to this description first: a cell skewed by entries of
        ±5 has rows, and roundings, that are many times as long."""
        if self.lattice is None or self.frac_coords is None:
            return float(np.abs(self.numbers - other.numbers).max())
        lattice, frac_coords, mine = other.lattice, other.frac_coords, self.frac_coords
        if lattice is None or frac_coords is None:
            return float("inf")
        if change is not None:
            lattice, frac_coords = change.lattice_back(lattice), change.frac_coords_back(frac_coords)
            mine = mine[change.source]
        moved = (frac_coords - mine) @ self.lattice
        return float(max(np.abs(lattice - self.lattice).max(), np.abs(moved).max()))


Answers = Callable[[Sequence[Crystal]], list["Answer | str"]]  # a text says why there is no answer


@dataclass(frozen=True)
class Check:
    """One way to describe a crystal anew. All fields of `Symmetry` in `needs` must be declared for it to be
    due. `draws` different changes are tried on each crystal."""

    title: str
    needs: tuple[str, ...]
    draw: changes.Draw | None = None
    draws: int = 1


CHECKS: dict[str, Check] = {
    "rotation": Check("rotation", ("rotation",), changes.rotation, 2),
    "translation": Check("origin", ("translation",), changes.translation, 2),
    "permutation": Check("order of atoms", ("permutation",), changes.permutation, 2),
    "lattice_vectors": Check(
        "atoms moved by lattice vectors", ("lattice_basis",), changes.lattice_vectors, 2
    ),
    "cell_choice": Check("cell, entries up to ±5", ("lattice_basis",), changes.cell_choice, 3),
    "diagonal_supercell": Check("supercell along the axes", ("supercell",), changes.diagonal_supercell),
    "slanted_supercell": Check("slanted supercell", ("supercell",), changes.slanted_supercell),
    "primitive": Check("primitive cell", ("supercell", "lattice_basis")),
    "mirror_achiral": Check("mirror image, achiral", ()),
    "mirror_chiral": Check("mirror image, chiral", ("reflection",)),
    "batch": Check("in a batch, alone", ()),
    "repeat": Check("once more", ()),
}
_PROPER = ("rotation", "translation", "permutation", "lattice_basis")


def due(check: str, symmetry: Symmetry, invariant: bool) -> bool:
    """Whether a model that declares this symmetry must pass a check. An achiral crystal is its mirror image
    turned: all invariant models must agree there; what goes with the crystal only if mirrors are declared."""
    if check == "mirror_achiral":
        return symmetry.reflection or (invariant and all(getattr(symmetry, n) for n in _PROPER))
    return all(getattr(symmetry, name) for name in CHECKS[check].needs)


def rounding_unit(crystal: Crystal, dtype: torch.dtype) -> float:
    """What rounding does to an answer of size one: the rounding unit of the network, and that of float64 for
    each Å of the largest number that a position of this description is computed from. Positions are x @ C,
    and the reduced cell is a combination of C's rows, with an error of cond(C) times its size. In a compact
    cell the second is ten times float64's unit; in one skewed by entries of ±5 a hundred thousand times."""
    lattice = crystal.lattice
    reach = max(
        float((np.abs(crystal.frac_coords) @ np.abs(lattice)).max()),
        float(np.linalg.cond(lattice)) * crystal.volume ** (1 / 3),
    )
    return torch.finfo(dtype).eps + _DOUBLE * reach


Verdict = Literal["holds", "fails", "same", "differs", "not measured"]


@dataclass(frozen=True)
class Finding:
    """One check over all crystals in one series of measurements. `change` is the largest, at crystal `where`;
    `roundings` says how many times what rounding does to the answer it is (`rounding_unit`), at most, and
    `differing` of `count` crystals exceed `allowed` of them."""

    check: str
    due: bool
    change: float
    where: str
    count: int
    differing: int
    roundings: float
    allowed: float

    @property
    def verdict(self) -> Verdict:
        """What was declared holds or fails; what was not is the same or differs."""
        if not self.count:
            return "not measured"
        if self.due:
            return "fails" if self.differing else "holds"
        return "differs" if self.differing else "same"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        finite = {
            k: v if np.isfinite(v) else None
            for k, v in (("change", self.change), ("roundings", self.roundings))
        }
        return {**self.__dict__, **finite, "verdict": self.verdict}


@dataclass
class Measured:
    """One crystal in one series: the answer, and its largest change by each check, also in units of what
    rounding does to an answer of size one. An infinite change means that the other description got no answer;
    `reason` says why."""

    crystal: Crystal
    chiral: bool | None
    answer: Answer | str = ""
    change: dict[str, float] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def note(
        self, check: str, before: Answer | str, after: Answer | str, change: Change | None, unit: float
    ) -> None:
        """Keeps the largest change of a check."""
        if isinstance(before, str) or isinstance(after, str):
            self.reason = after if isinstance(after, str) else str(before)
            value = np.inf
        else:
            value = before.distance(after, change)
            value = value if np.isfinite(value) else np.inf
        self.change[check] = max(self.change.get(check, 0.0), value)
        self.units[check] = max(self.units.get(check, 0.0), value / unit)


def measure(
    answers: Answers, crystals: Sequence[Crystal], dtype: torch.dtype, seed: int = 0, first: int = 0
) -> list[Measured]:
    """All checks on some crystals, with a network of precision `dtype`. `first` numbers them, so that what is
    drawn for a crystal does not depend on the others in the call."""
    found = [Measured(c, changes.is_chiral(c)) for c in crystals]
    company = suite()[5:8] if len(crystals) == 1 else []  # a crystal is not compared with itself
    base, again = answers(crystals), answers(crystals)
    tries: list[tuple[int, str, Crystal, Crystal | None, Change]] = []
    for index, (entry, answer, second) in enumerate(zip(found, base, again, strict=True)):
        entry.answer = answer
        if isinstance(answer, str):
            continue
        unit = rounding_unit(entry.crystal, dtype)
        entry.note("repeat", answer, second, None, unit)
        alone = answers([entry.crystal])[0]
        together = answers([*company, entry.crystal])[-1] if company else answer
        entry.note("batch", together, alone, None, unit)
        tries += [(index, *attempt) for attempt in _tries(entry, seed, first + index)]
    others = [other for _, _, other, _, _ in tries]
    starts = [start for _, _, _, start, _ in tries if start is not None]
    answered = answers([*others, *starts]) if tries else []
    of_start = iter(answered[len(others) :])
    for (index, check, other, start, change), after in zip(tries, answered[: len(others)], strict=True):
        before = found[index].answer if start is None else next(of_start)
        unit = max(rounding_unit(c, dtype) for c in (other, found[index].crystal))
        if check == "mirror_achiral":  # the crystal is its mirror image within EXACT only
            unit += _STEEPEST * changes.EXACT / ROUNDINGS
        found[index].note(check, before, after, change, unit)
    return found


def _tries(entry: Measured, seed: int, number: int) -> list[tuple[str, Crystal, Crystal | None, Change]]:
    """Check, other description, the description it is compared with (None: the one given), change."""
    found: list[tuple[str, Crystal, Crystal | None, Change]] = []
    crystal = entry.crystal
    for place, (name, check) in enumerate(CHECKS.items()):
        rng = np.random.default_rng([seed, number, place])
        if name == "primitive":
            smaller = changes.primitive(crystal)
            if smaller is not None:
                small, change = smaller
                found.append((name, change(small), small, change))
        elif name.startswith("mirror"):
            if entry.chiral is (name == "mirror_chiral"):
                change = changes.mirror(crystal, rng)
                found.append((name, change(crystal), None, change))
        elif check.draw is not None:
            for _ in range(check.draws):
                drawn = _drawn(crystal, check.draw, rng)
                if drawn is not None:
                    found.append((name, drawn[0], None, drawn[1]))
    return found


def _drawn(crystal: Crystal, draw: changes.Draw, rng: np.random.Generator) -> tuple[Crystal, Change] | None:
    """A change and what it makes of the crystal; drawn again where a long cell would become too flat."""
    for _ in range(_ATTEMPTS):
        change = draw(crystal, rng)
        if change is None:
            return None
        try:
            return change(crystal), change
        except CrystalError:
            continue
    return None


def findings(
    measured: Sequence[Measured], symmetry: Symmetry, scale: float, exact_repeats: bool
) -> dict[str, Finding]:
    """The checks over all crystals that have an answer, where `scale` is the size of the network's numbers.
    Runs must repeat to the last bit where they can (`exact_repeats`: on a CPU)."""
    answered = [m for m in measured if isinstance(m.answer, Answer)]
    invariant = all(m.answer.lattice is None for m in answered if isinstance(m.answer, Answer))
    found = {}
    for check in CHECKS:
        rows = [
            (m.change[check], m.units[check] / scale if scale else np.inf, m.crystal.name)
            for m in answered
            if check in m.change
        ]
        rows = [(value, 0.0 if value == 0 else units, name) for value, units, name in rows]
        allowed = 0.0 if check == "repeat" and exact_repeats else ROUNDINGS
        change, _, where = max(rows, default=(0.0, 0.0, ""))
        found[check] = Finding(
            check=check,
            due=due(check, symmetry, invariant),
            change=change,
            where=where if change > 0 else "",
            count=len(rows),
            differing=sum(units > allowed for _, units, _ in rows),
            roundings=max((units for _, units, _ in rows), default=0.0),
            allowed=allowed,
        )
    return found


def scale_and_spread(measured: Sequence[Measured]) -> tuple[float, float]:
    """The size of what the network gives, and how much it differs between crystals: the largest number and
    the standard deviation; for lattices the largest component of a change of the cell and its root mean
    square."""
    answers = [(m.answer, m.crystal) for m in measured if isinstance(m.answer, Answer)]
    if not answers:
        return 0.0, 0.0
    if answers[0][0].lattice is None:
        numbers = np.stack([a.numbers for a, _ in answers])
        return float(np.abs(numbers).max()), float(numbers.std(0).max())
    moved = np.stack([a.lattice - c.lattice for a, c in answers])
    return float(np.abs(moved).max()), float(np.sqrt((moved**2).mean()))
