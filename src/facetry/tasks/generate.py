"""Generate: a formula in, structures for it out, lowest energy first.

Where they come from is a method: a name in `METHODS`, or a model whose name stands there. A method offers

    candidates(formula, count, seed, atoms)   an iterator of `Candidate`, best first where it knows, endless
                                              or as many as there are
    nothing(formula, atoms)                   a sentence: why there are none
    energy_unit                               of the energies that it gives, "" where it gives none

and its options are the arguments of its constructor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from itertools import islice
from os import PathLike
from typing import Any, Protocol, runtime_checkable

from facetry.chemistry import Formula, parse
from facetry.crystal import Crystal
from facetry.geometry.space_group import space_group

__all__ = [
    "COLUMNS",
    "METHODS",
    "Candidate",
    "Generated",
    "Method",
    "NothingFound",
    "generate",
    "make_method",
    "structures",
]

METHODS: dict[str, str] = {
    "rs": "facetry.tasks.random_search:RandomSearch",
    "template": "facetry.tasks.templates:Templates",
}
"""Methods, and models that generate, by name -> where the class of the method is. The class of a model's
method takes the model as its first argument."""

COLUMNS: dict[str, str] = {
    "formula": "text", "rank": "int", "file": "text", "status": "text", "energy": "float", "unit": "text",
    "atoms": "int", "volume": "float", "density": "float", "space_group": "int", "min_distance": "float",
    "duplicates": "int", "origin": "text", "message": "text",
}  # fmt: skip
_ENERGY_DRAWS = 5  # candidates looked at for every one wanted, where an energy tells which are good
_IN_VAIN = 20  # duplicates for every candidate wanted after which a method has no more to say


class NothingFound(ValueError):
    """A method has no candidates for a formula; the text says why."""


@dataclass(frozen=True)
class Candidate:
    """What a method yields: a crystal, its energy where the method has one, its origin in words."""

    crystal: Crystal
    energy: float | int | None = None
    origin: str = ""


@runtime_checkable
class Method(Protocol):
    """See the head of this module."""

    energy_unit: str

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]: ...

    def nothing(self, formula: Formula, atoms: int | None) -> str: ...


@dataclass(frozen=True)
class Generated:
    """One structure: `energy` in `unit` (None without one), its `origin` in words, and how many `duplicates`
    of it were drawn besides."""

    crystal: Crystal
    energy: float | int | None
    unit: str = ""
    origin: str = ""
    duplicates: int = 0

    @cached_property
    def space_group(self) -> int | None:
        """Number of the space group within 0.01 Å; None where none was found."""
        return space_group(self.crystal)

    @cached_property
    def min_distance(self) -> float:
        """Distance of the two nearest atoms in Å."""
        from facetry.evaluation.validity import minimum_distances

        return float(minimum_distances([self.crystal])[0])

    def row(self) -> dict[str, Any]:
        """Columns of candidates.csv."""
        c = self.crystal
        return {
            "status": "ok", "energy": self.energy, "unit": self.unit, "atoms": len(c), "volume": c.volume,
            "density": c.density, "space_group": self.space_group, "min_distance": self.min_distance,
            "duplicates": self.duplicates, "origin": self.origin,
        }  # fmt: skip


def generate(
    model: Any,
    formula: str | Formula,
    count: int = 20,
    seed: int = 0,
    atoms: int | None = None,
    energy: Any = None,
    draws: int | None = None,
    **options: Any,
) -> list[Generated]:
    """Structures for a formula, no two the same; lowest energy first, or in the order of the method.

    Args:
        model: a model that generates, the folder or name of one, or the name of a method: "template" or "rs".
        formula: such as "SrTiO3"; see `facetry.chemistry.parse`.
        count: how many; there may be fewer.
        seed: of whatever is drawn.
        atoms: in the cell; None leaves it to the method (templates: any, else as the formula is written).
        energy: what ranks the candidates: a property model, the folder or name of one (its value), or an ASE
            calculator (eV per atom). None: what the method itself says.
        draws: distinct candidates made before the lowest `count` are kept; None is `count`, five times that
            with an energy.
        options: of the method, such as data="perov5" for "template".

    Raises FormulaError for what is no formula, NothingFound where the method has no candidate, and ValueError
    naming the nearest for a method or an option that does not exist.
    """
    return structures(make_method(model, **options), parse(formula), count, seed, atoms, energy, draws)


def make_method(model: Any, **options: Any) -> Method:
    """The method by name, or that of a model. Raises ValueError for unknown names and options."""
    if isinstance(model, str) and model in METHODS and not _needs_model(model):
        return _construct(model, [], options)
    if isinstance(model, str | PathLike):
        from facetry.training import ModelError, load

        try:
            model = load(model)
        except ModelError as error:
            near = get_close_matches(str(model), METHODS, n=1, cutoff=0.6)
            hint = f"; did you mean the method {near[0]!r}?" if near else ""
            raise ValueError(f"{error}{hint} (methods without a model: rs, template)") from None
    name = getattr(model, "name", type(model).__name__)
    if name not in METHODS:
        raise ValueError(
            f"{name}: expected a model that generates crystals, or the name of a method "
            f"({', '.join(METHODS)})"
        )
    return _construct(name, [model], options)


def _class(name: str) -> Callable[..., Method]:
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def _needs_model(name: str) -> bool:
    return next(iter(inspect.signature(_class(name)).parameters), "") == "model"


def _construct(name: str, first: list[Any], options: dict[str, Any]) -> Method:
    make = _class(name)
    known = [p for p in inspect.signature(make).parameters if p != "model"]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{name}: no option {option!r}{hint}; there are {', '.join(known) or 'none'}")
    needed = [
        p.name
        for p in inspect.signature(make).parameters.values()
        if p.default is p.empty and p.name != "model" and p.name not in options
    ]
    if needed:
        raise ValueError(f"{name}: the option {needed[0]!r} is needed, such as {needed[0]}='perov5'")
    return make(*first, **options)


def structures(
    method: Method,
    formula: Formula,
    count: int = 20,
    seed: int = 0,
    atoms: int | None = None,
    energy: Any = None,
    draws: int | None = None,
) -> list[Generated]:
    """`generate` with a method that is made already."""
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if atoms is not None:
        formula = formula.with_atoms(atoms)  # says which numbers there can be
    if draws is None:
        draws = count * (_ENERGY_DRAWS if energy is not None else 1)
    if draws < count:
        raise ValueError(f"draws: expected at least count ({count}), got {draws}")
    found = _distinct(method.candidates(formula, draws, seed, atoms), draws)
    if not found:
        raise NothingFound(f"{formula.reduced}: {method.nothing(formula, atoms)}")
    unit = method.energy_unit
    if energy is not None:
        values, unit = energies([g.crystal for g in found], energy)
        found = [replace(g, energy=value) for g, value in zip(found, values, strict=True)]
    found = [replace(g, unit=unit if g.energy is not None else "") for g in found]
    found.sort(key=lambda g: math.inf if g.energy is None or math.isnan(g.energy) else g.energy)
    return found[:count]


def _distinct(candidates: Iterator[Candidate], count: int) -> list[Generated]:
    """The first so many candidates that differ; of equal ones that of the lowest energy."""
    from facetry.evaluation.duplicates import distinct

    kept: list[Generated] = []
    looked = 0
    while len(kept) < count and looked < count * _IN_VAIN:
        group = list(islice(candidates, count))
        if not group:
            break
        looked += len(group)
        before = len(kept)
        same = distinct([c.crystal for c in group], known=[g.crystal for g in kept])
        places: dict[int, int] = {i: i for i in range(before)}
        for number, (candidate, first) in enumerate(zip(group, same, strict=True), start=before):
            if first not in places:
                places[number] = len(kept)
                kept.append(Generated(candidate.crystal, candidate.energy, origin=candidate.origin))
                continue
            twin = kept[places[first]]
            if candidate.energy is not None and candidate.energy < (
                math.inf if twin.energy is None else twin.energy
            ):
                twin = replace(
                    twin, crystal=candidate.crystal, energy=candidate.energy, origin=candidate.origin
                )
            kept[places[first]] = replace(twin, duplicates=twin.duplicates + 1)
    return kept[:count]


def energies(crystals: Sequence[Crystal], energy: Any) -> tuple[list[float | None], str]:
    """Energies of crystals by a property model (its value, its unit) or an ASE calculator (eV per atom); None
    where it has none."""
    if hasattr(energy, "get_property") or hasattr(energy, "get_potential_energy"):
        return [_calculated(crystal, energy) for crystal in crystals], "eV/atom"
    from facetry.tasks.predict import as_model, predict, targets_of

    network = as_model(energy)
    targets = targets_of(network)
    if len(targets) != 1 or targets[0].task != "regression":
        raise ValueError(f"{network.name}: expected a model of one number as the energy")
    values = [p.value if isinstance(p.value, float) else None for p in predict(network, list(crystals))]
    return values, targets[0].unit


def _calculated(crystal: Crystal, calculator: Any) -> float | None:
    atoms = crystal.to_ase()
    atoms.calc = calculator
    try:
        return float(atoms.get_potential_energy()) / len(atoms)
    except Exception:  # of other people's code: an element it does not know, no convergence
        return None
