"""Generate: a formula in, structures for it out, lowest energy first.

Where they come from is a method: a name in `METHODS`, or a model whose name stands there. A method offers

    candidates(formula, count, seed, atoms)   an iterator of `Candidate`, best first where it knows, endless
                                              or as many as there are
    nothing(formula, atoms)                   a sentence: why there are none
    energy_unit                               of the energies that it gives, "" where it gives none

and its options are the arguments of its constructor. Where it has them, these are used too:

    together(formulas, count, seed, store, progress)   the candidates of all formulas, a list for each
    refusal(formula, count)                            why a formula is not even tried, "" where it is
    energies(crystals)                                 energies of crystals that were relaxed
    settings()                                         all that its candidates follow from
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from itertools import islice
from os import PathLike
from typing import Any, Protocol, runtime_checkable

from facetry.chemistry import Formula, parse, read_formulas
from facetry.crystal import Crystal
from facetry.geometry.space_group import space_group
from facetry.tasks.energies import Energies
from facetry.tasks.predict import as_model, targets_of
from facetry.tasks.predict import predict as predict_all
from facetry.tasks.relax import Relaxer

__all__ = [
    "COLUMNS",
    "METHODS",
    "Candidate",
    "Generated",
    "Maker",
    "Method",
    "NothingFound",
    "generate",
    "make_method",
    "make_method_with_energy",
]

METHODS: dict[str, str] = {
    "rs": "facetry.tasks.random_search:RandomSearch",
    "template": "facetry.tasks.templates:Templates",
    "pso": "facetry.tasks.swarm:ParticleSwarm",
    "bo": "facetry.tasks.bayesian:BayesianSearch",
    "continuousp": "facetry.tasks.energy_chains:EnergyChains",
    "continuousp_angular": "facetry.tasks.energy_chains:EnergyChains",
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
    """What a method yields: a crystal, its energy where the method has one, its origin in words; `way` is how
    it came about as (step, crystal, energy), `message` what speaks against it."""

    crystal: Crystal
    energy: float | int | None = None
    origin: str = ""
    way: tuple[tuple[int, Crystal, float], ...] = ()
    message: str = ""


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
    of it were drawn besides; the `way` there as (step, crystal, energy) where it was kept, `properties` that
    were predicted, and a `message` where there is something to say."""

    crystal: Crystal
    energy: float | int | None
    unit: str = ""
    origin: str = ""
    duplicates: int = 0
    way: tuple[tuple[int, Crystal, float], ...] = ()
    properties: dict[str, Any] = field(default_factory=dict)
    message: str = ""

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
        from facetry.evaluation.validity import SHORTEST

        c, said = self.crystal, self.message
        if self.min_distance < SHORTEST:
            said = "; ".join(x for x in (said, f"two atoms are {self.min_distance:.2f} Å apart") if x)
        return {
            "status": "ok", "energy": self.energy, "unit": self.unit, "atoms": len(c), "volume": c.volume,
            "density": c.density, "space_group": self.space_group, "min_distance": self.min_distance,
            "duplicates": self.duplicates, "origin": self.origin, "message": said,
        } | self.properties  # fmt: skip


def generate(
    model: Any,
    formula: Any,
    count: int = 20,
    seed: int = 0,
    atoms: int | None = None,
    energy: Any = None,
    draws: int | None = None,
    relax: Any = None,
    predict: Any = None,
    **options: Any,
) -> list[Generated] | list[list[Generated]]:
    """Structures for a formula, no two the same; lowest energy first, or in the order of the method.

    Args:
        model: a model that generates, the folder or name of one, or the name of a method: "template", "rs",
            "pso" or "bo".
        formula: such as "SrTiO3"; see `facetry.chemistry.parse`. Or several: a list, or a .csv or .txt file
            (`facetry.chemistry.read_formulas`).
        count: how many; there may be fewer.
        seed: of whatever is drawn.
        atoms: in the cell; None leaves it to the method (templates: any, else as the formula is written).
        energy: what ranks the candidates: a property model or an energy model, the folder or name of one, or
            an ASE calculator (eV per atom). None: what the method itself says.
        draws: candidates made before the lowest `count` are kept; None is `count`, five times that with an
            energy. Chains of a model end as often as that, whether two of them meet or not; other methods
            make so many different ones.
        relax: a model that relaxes candidates before they are ranked, or the folder or name of one.
        predict: a property model whose values are put into `properties`, or the folder or name of one.
        options: of the method, such as data="perov5" for "template", steps=300 for a model.

    Returns a list for one formula; for several a list of such lists, empty for a formula without candidates.
    Raises FormulaError for what is no formula, NothingFound where one formula has no candidate, and
    ValueError naming the nearest for a method or an option that does not exist.
    """
    method, energy = make_method_with_energy(model, energy, **options)
    maker = Maker(method, count, seed, atoms, energy, draws, relax, predict)
    if isinstance(formula, Formula) or (
        isinstance(formula, str) and not formula.lower().endswith((".csv", ".txt"))
    ):
        (found,) = maker.over([parse(formula)])
        if isinstance(found, NothingFound):
            raise found
        return found
    return [[] if isinstance(f, NothingFound) else f for f in maker.over(read_formulas(formula))]


def make_method_with_energy(model: Any, energy: Any, **options: Any) -> tuple[Method, Any]:
    """The method, and the energy that is left to rank its candidates: None where the method uses it."""
    named = isinstance(model, str) and model in METHODS
    if energy is not None and named and "energy" in inspect.signature(_class(model)).parameters:
        return make_method(model, energy=energy, **options), None
    return make_method(model, **options), energy


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
            free = ", ".join(name for name in METHODS if not _needs_model(name))
            raise ValueError(f"{error}{hint} (methods without a model: {free})") from None
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
        such = {"data": "'perov5'", "energy": "'runs/formation-energy'"}.get(needed[0], "...")
        raise ValueError(f"{name}: the option {needed[0]!r} is needed, such as {needed[0]}={such}")
    return make(*first, **options)


class Maker:
    """Candidates of a method as they are handed out: relaxed, ranked, no two the same, with properties.

    See `generate` for the arguments.
    """

    def __init__(
        self,
        method: Method,
        count: int = 20,
        seed: int = 0,
        atoms: int | None = None,
        energy: Any = None,
        draws: int | None = None,
        relax: Any = None,
        predict: Any = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        if draws is None:
            draws = count * (_ENERGY_DRAWS if energy is not None else 1)
        if draws < count:
            raise ValueError(f"draws: expected at least count ({count}), got {draws}")
        self.method, self.count, self.seed, self.atoms, self.draws = method, count, seed, atoms, draws
        self.energies = None if energy is None else Energies(energy)
        self.relaxer = None if relax is None else Relaxer(relax)
        self.predict = None if predict is None else as_model(predict)

    @property
    def columns(self) -> dict[str, str]:
        """Of the table: those of all candidates, and two for every property."""
        more: dict[str, str] = {}
        for target in () if self.predict is None else targets_of(self.predict):
            more |= {target.name: "float" if target.task == "regression" else "text"}
            more |= {f"{target.name}_unit": "text"} if target.unit else {}
        if taken := [name for name in more if name in COLUMNS]:
            raise ValueError(f"predict: the target {taken[0]!r} has the name of a column of the table")
        return COLUMNS | more

    def over(
        self,
        formulas: Sequence[Formula],
        store: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[list[Generated] | NothingFound]:
        """What there is for every formula, in order; why, where there is nothing. `store` keeps what is under
        way (`facetry.tasks.sampling_store`), `progress` is called with what is done and all there is."""
        if self.atoms is not None:  # says which numbers there can be
            formulas = [formula.with_atoms(self.atoms) for formula in formulas]
        refusals = [self.refusal(formula) for formula in formulas]
        together = getattr(self.method, "together", None)
        sound = [f for f, refusal in zip(formulas, refusals, strict=True) if not refusal]
        lists = iter(()) if together is None else together(sound, self.draws, self.seed, store, progress)
        for number, (formula, refusal) in enumerate(zip(formulas, refusals, strict=True), start=1):
            if refusal:
                yield NothingFound(refusal)
                continue
            if together is None:
                candidates = self.method.candidates(formula, self.draws, self.seed, self.atoms)
            else:
                candidates = iter(next(lists))
            found = self._finished(_distinct(candidates, self.draws))
            if together is None and progress is not None:
                progress(number, len(formulas))
            yield found or NothingFound(f"{formula.reduced}: {self.method.nothing(formula, self.atoms)}")

    def refusal(self, formula: Formula) -> str:
        """Why a formula is not tried; empty where it is."""
        return refuse(formula, self.draws) if (refuse := getattr(self.method, "refusal", None)) else ""

    def _finished(self, found: list[Generated]) -> list[Generated]:
        unit = self.method.energy_unit
        if self.relaxer is not None and found:
            found = self._relaxed(found)
        if self.energies is not None:
            values = self.energies([g.crystal for g in found])
            found = [replace(g, energy=value) for g, value in zip(found, values, strict=True)]
            unit = self.energies.unit
        found = [replace(g, unit=unit if g.energy is not None else "") for g in found]
        found.sort(key=lambda g: math.inf if g.energy is None or math.isnan(g.energy) else g.energy)
        return self._predicted(found[: self.count])

    def _relaxed(self, found: list[Generated]) -> list[Generated]:
        """What the relaxing model makes of them; two may become one."""
        assert self.relaxer is not None
        results = list(self.relaxer.results([g.crystal for g in found]))
        own = getattr(self.method, "energies", None)
        crystals = [r.crystal or g.crystal for g, r in zip(found, results, strict=True)]
        values = own(crystals) if own is not None else [None] * len(found)
        moved = []
        for g, result, crystal, value in zip(found, results, crystals, values, strict=True):
            reason = "" if result.status == "ok" else f"not relaxed: {result.message}"
            said = "; ".join(x for x in (g.message, reason or result.message) if x)
            moved.append(replace(g, crystal=crystal, energy=value, message=said))
        return _merged([], moved)

    def _predicted(self, found: list[Generated]) -> list[Generated]:
        if self.predict is None or not found:
            return found
        results = predict_all(self.predict, [g.crystal for g in found])
        each = len(results) // len(found)
        made = []
        for number, g in enumerate(found):
            values: dict[str, Any] = {}
            said = [g.message] if g.message else []
            targets = targets_of(self.predict)
            for p, target in zip(results[number * each : (number + 1) * each], targets, strict=True):
                values[target.name] = p.value
                values |= {f"{target.name}_unit": p.unit} if target.unit else {}
                said += [p.message] if p.message and p.message not in said else []
            made.append(replace(g, properties=values, message="; ".join(said)))
        return made


def _distinct(candidates: Iterator[Candidate], count: int) -> list[Generated]:
    """The first so many candidates that differ; of equal ones that of the lowest energy."""
    kept: list[Generated] = []
    looked = 0
    while len(kept) < count and looked < count * _IN_VAIN:
        group = [
            Generated(c.crystal, c.energy, origin=c.origin, way=c.way, message=c.message)
            for c in islice(candidates, count)
        ]
        if not group:
            break
        looked += len(group)
        kept = _merged(kept, group)
    return kept[:count]


def _merged(kept: list[Generated], group: list[Generated]) -> list[Generated]:
    """Those that differ of both; of equal ones that of the lowest energy, with the others counted."""
    from facetry.evaluation.duplicates import distinct

    kept, before = list(kept), len(kept)
    same = distinct([g.crystal for g in group], known=[g.crystal for g in kept])
    places: dict[int, int] = {i: i for i in range(before)}
    for number, (made, first) in enumerate(zip(group, same, strict=True), start=before):
        if first not in places:
            places[number] = len(kept)
            kept.append(made)
            continue
        twin = kept[places[first]]
        total = twin.duplicates + made.duplicates + 1
        if made.energy is not None and made.energy < (math.inf if twin.energy is None else twin.energy):
            twin = made
        kept[places[first]] = replace(twin, duplicates=total)
    return kept
