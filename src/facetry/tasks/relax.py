"""Relax: crystals with wrong cells in, crystals as the model thinks they are at rest out.

A structure that collapses, explodes or brings atoms onto each other is not handed on: the input is kept as it
was, its status is "kept", and the message says why. A change no larger than what the model does to crystals
at rest is not made: the input counts as relaxed already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from facetry.crystal import Crystal, CrystalError
from facetry.elements import SYMBOLS
from facetry.evaluation.relaxation import largest_stretch
from facetry.geometry.space_group import space_group
from facetry.graph.batch import Batch
from facetry.graph.neighbors import pairs_within, reduced
from facetry.models.base import LatticeModel, Model, evaluating
from facetry.tasks.inference import Item, Limits, Outcome, run
from facetry.tasks.inputs import items_of
from facetry.tasks.predict import as_model

_CELL = ("a", "b", "c", "alpha", "beta", "gamma", "volume")
COLUMNS: dict[str, str] = {
    "source": "text",
    "name": "text",
    "formula": "text",
    "atoms": "int",
    "status": "text",
    **{f"{name}_before": "float" for name in _CELL},
    **{f"{name}_after": "float" for name in _CELL},
    "space_group_before": "int",
    "space_group_after": "int",
    "min_distance_before": "float",
    "min_distance_after": "float",
    "message": "text",
}


@dataclass(frozen=True)
class Guard:
    """What an answer must hold to be handed on.

    The volume may change by `volume` at most, up or down, any length in the crystal by `stretch`; two atoms
    may not come nearer than `distance` Å, unless they were nearer before. With `rest` a crystal stays as it
    is if the model would change it no more than it does 95 % of crystals at rest (`rest_limits`, kept with a
    trained model).
    """

    volume: float = 4.0
    stretch: float = 3.0
    distance: float = 0.5
    rest: bool = True

    def __post_init__(self) -> None:
        if not (self.volume > 1 and self.stretch > 1 and self.distance >= 0):
            raise ValueError(
                f"guard: expected volume and stretch above 1 and a distance of at least 0 Å, came"
                f" {self.volume:g}, {self.stretch:g} and {self.distance:g}"
            )

    def objection(
        self,
        before: Float[np.ndarray, "3 3"],
        after: Float[np.ndarray, "3 3"],
        distances: tuple[float, float] | None = None,
    ) -> str:
        """Why an answer is refused, empty where it is not; `distances` are the shortest before and after."""
        if not np.isfinite(after).all():
            return "the answer is not finite"
        change = np.linalg.solve(before, after)
        ratio = abs(float(np.linalg.det(change)))
        if not 1 / self.volume <= ratio <= self.volume:
            return f"its volume would change by a factor of {ratio:.3g} (allowed up to {self.volume:g})"
        worst = float(largest_stretch(before, after))
        if worst > self.stretch:
            return f"lengths would change by a factor of {worst:.3g} (allowed up to {self.stretch:g})"
        if distances is not None and distances[1] < min(self.distance, 0.999 * distances[0]):
            return f"atoms would come as near as {distances[1]:.2f} Å (allowed down to {self.distance:g} Å)"
        return ""


@dataclass(frozen=True)
class Relaxed:
    """What became of one input.

    `status` is "ok" (where `crystal` is `before`, it was at rest), "kept" (the guard refused the answer:
    `crystal` is `before`), "skipped" (this model
    cannot use such a crystal) or "failed"; `message` says why. `trajectory` goes from the input to the
    model's answer, block by block, also where that was refused; `min_distances` are the shortest distances of
    two atoms in Å, before and after.
    """

    crystal: Crystal | None
    before: Crystal | None
    status: Literal["ok", "kept", "skipped", "failed"]
    message: str
    trajectory: tuple[Crystal, ...] = ()
    min_distances: tuple[float, float] | None = None
    name: str = ""
    source: str = ""

    def row(self) -> dict[str, Any]:
        """The columns of `relaxed.csv`; space groups are found here."""
        row: dict[str, Any] = {
            "source": self.source,
            "name": self.name,
            "status": self.status,
            "message": self.message,
        }
        if self.before is not None:
            row |= {"formula": self.before.formula, "atoms": len(self.before)}
        for when, crystal in (("before", self.before), ("after", self.crystal)):
            if crystal is None:
                continue
            values = [*crystal.lengths.tolist(), *crystal.angles.tolist(), crystal.volume]
            row |= {f"{name}_{when}": value for name, value in zip(_CELL, values, strict=True)}
            row[f"space_group_{when}"] = space_group(crystal)
        if self.min_distances is not None:
            row |= dict(zip(("min_distance_before", "min_distance_after"), self.min_distances, strict=True))
        return row


def relax(
    model: Model | str | PathLike[str],
    crystals: Any,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    guard: Guard | None = None,
) -> list[Relaxed]:
    """Crystals as the model thinks they are at rest, in the order given.

    Args:
        model: a model for the job relax, or the folder or name of one (see `facetry.load`).
        crystals: a Crystal, pymatgen Structure, ASE Atoms, a path (file, folder, glob, archive, table), a
            split of a data set, or any iterable of these.
        batch_size: crystals worked on at once; large crystals are batched by atoms and edges besides.
        device: where to compute, such as "cuda"; None: where the model is.
        guard: what an answer must hold to be handed on; None: `Guard()`.

    Returns one result per crystal, in the basis, with the atoms and in the orientation of the input. An input
    that cannot be read or used has a result with status and message, and stops nothing. Raises TypeError for
    what is no crystal at all, ValueError for a model of another job.
    """
    network = as_model(model, ("relax",))
    return list(relaxations(network, items_of(crystals), batch_size, device, guard))


def relaxations(
    model: LatticeModel,
    items: Iterable[Item],
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    guard: Guard | None = None,
) -> Iterator[Relaxed]:
    """`relax` over a stream: results come in order while inputs are still being read; memory is bounded."""
    if model.card is not None and model.card.relax.get("task") == "reconstruct":
        raise ValueError(
            f"{model.name}: this model makes cells from cubes (task reconstruct), whatever cell is given;"
            " take one that was trained on the task denoise or relax"
        )
    card, guard = model.card, guard or Guard()
    limits_at_rest = card.metrics.get("rest", {}) if card and guard.rest else {}
    translate = _Translator(guard, frozenset(card.elements if card else ()), limits_at_rest)
    with evaluating(model, device) as place:
        limits = Limits.for_device(place, batch_size)
        with closing(run(model, items, _way(model), limits, place)) as outcomes:
            for outcome in outcomes:
                yield translate(outcome)


class Relaxer:
    """A step before any model of properties: crystals in, relaxed crystals out.

    `Relaxer("runs/relax")(crystals)`; crystals that are not relaxed pass as they came, and what could not be
    read stays out. `items` is the same for a stream of inputs with their names and errors.
    """

    def __init__(
        self,
        model: Model | str | PathLike[str],
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model: LatticeModel = as_model(model, ("relax",))
        self.batch_size, self.device, self.guard = batch_size, device, guard

    def __call__(self, crystals: Any) -> list[Crystal]:
        """The relaxed crystals, one for each crystal that could be read."""
        return [r.crystal for r in self.results(crystals) if r.crystal is not None]

    def results(self, crystals: Any) -> list[Relaxed]:
        """What became of every crystal."""
        return relax(self.model, crystals, self.batch_size, self.device, self.guard)

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Inputs with relaxed crystals in the place of those that were given; bad inputs pass with their
        reason, refused answers with a note."""
        for result in relaxations(self.model, items, self.batch_size, self.device, self.guard):
            crystal = result.crystal
            if crystal is None:
                yield Item(result.source, None, result.message, result.name)
                continue
            if result.status != "ok":
                crystal = crystal.replace(notes=[*crystal.notes, f"not relaxed: {result.message}"])
            yield Item(result.source, crystal, label=result.name)


def _way(model: LatticeModel) -> Callable[[Batch], dict[str, Tensor]]:
    """What `run` computes: lattices and positions of every block as rows, with zeros where they are not
    finite, and whether they are; shortest distances of atoms before and after."""

    def compute(batch: Batch) -> dict[str, Tensor]:
        found = model(batch)
        lattices, coords = torch.stack(found.lattices, 1), torch.stack(found.frac_coords, 1)
        finite = lattices.isfinite().all((1, 2, 3)).to(lattices)
        broken = (~coords.isfinite().all((1, 2))).to(lattices)
        finite = finite * (torch.zeros_like(finite).index_add(0, batch.crystal_index, broken) == 0)
        lattices = torch.nan_to_num(lattices, 0.0, 0.0, 0.0)
        coords = torch.nan_to_num(coords, 0.0, 0.0, 0.0)
        ends = (replace(batch, lattice=lattices[:, i], frac_coords=coords[:, i]) for i in (0, -1))
        distances = [shortest_distances(end) for end in ends]
        return {
            "lattices": lattices,
            "atom_positions": coords.flatten(1),
            "finite": finite,
            "distances": torch.stack(distances, 1),
        }

    return compute


def shortest_distances(batch: Batch) -> Float[Tensor, " crystals"]:
    """Between two atoms or images, in Å; 0 for a cell without volume."""
    volume = torch.linalg.det(batch.lattice).abs() / batch.lattice.norm(dim=2).prod(1)
    solid = torch.nan_to_num(volume) > 1e-6
    shortest = torch.zeros_like(batch.lattice[:, 0, 0])
    if not bool(solid.any()):
        return shortest
    chosen = torch.nonzero(solid)[:, 0]
    small, _, _ = reduced(replace(batch, graph=None).select(chosen))
    # the nearest image of an atom itself is one reduced lattice vector away
    reach = small.lattice.norm(dim=2).amin(1) * (1 + 1e-9)
    pairs = pairs_within(small, reach)
    near = reach.scatter_reduce(0, small.crystal_index[pairs.center], pairs.distance, "amin")
    return shortest.index_copy(0, chosen, near)


class _Translator:
    """Turns outcomes of a model into results."""

    def __init__(self, guard: Guard, elements: frozenset[int], rest: dict[str, float]) -> None:
        self.guard, self.elements, self.rest = guard, elements, rest

    def __call__(self, outcome: Outcome) -> Relaxed:
        item = outcome.item
        before = item.crystal
        known = {"name": item.name, "source": item.source}
        if outcome.status != "ok" or before is None:
            return Relaxed(before, before, outcome.status, outcome.message, **known)
        lattices = outcome.values["lattices"]
        coords = outcome.values["atom_positions"].reshape(len(before), len(lattices), 3)
        if not outcome.values["finite"]:
            return Relaxed(before, before, "kept", "the answer is not finite", (before,), **known)
        distances = tuple(outcome.values["distances"].tolist())
        objection = self.guard.objection(lattices[0], lattices[-1], distances)
        steps = _trajectory(before, lattices, coords)
        if objection:
            return Relaxed(before, before, "kept", objection, steps, distances, **known)
        doubts = []
        if at_rest := self._at_rest(lattices, coords):
            doubts.append(at_rest)
        if self.elements and (unseen := sorted(set(before.composition) - self.elements)):
            doubts.append(f"not in the training data: {', '.join(SYMBOLS[z] for z in unseen)}")
        message = "; ".join([*doubts, *([outcome.message] if outcome.message else [])])
        if at_rest:
            return Relaxed(before, before, "ok", message, steps, distances[:1] * 2, **known)
        return Relaxed(steps[-1], before, "ok", message, steps, distances, **known)

    def _at_rest(
        self, lattices: Float[np.ndarray, "steps 3 3"], coords: Float[np.ndarray, "atoms steps 3"]
    ) -> str:
        """Why a crystal counts as relaxed already; empty where it does not."""
        if not self.rest:
            return ""
        stretch = float(largest_stretch(lattices[0], lattices[-1])) - 1.0
        moved = coords[:, -1] - coords[:, 0]
        distance = float(np.sqrt((((moved - moved.mean(0)) @ lattices[0]) ** 2).sum(1).mean()))
        if stretch > self.rest["stretch"] or distance > self.rest.get("displacement", np.inf):
            return ""
        return (
            f"at rest as far as this model can tell: it would change lengths by {stretch:.1%}, as it does of"
            f" crystals at rest (up to {self.rest['stretch']:.1%})"
        )


def _trajectory(
    before: Crystal,
    lattices: Float[np.ndarray, "steps 3 3"],
    coords: Float[np.ndarray, "atoms steps 3"],
) -> tuple[Crystal, ...]:
    """The input and what each block made of it, up to the first cell that is none."""
    steps = [before]
    for number in range(1, len(lattices)):
        try:
            steps.append(before.replace(lattice=lattices[number], frac_coords=coords[:, number]))
        except CrystalError:
            break
    return tuple(steps)


def trajectory_text(steps: Sequence[Crystal]) -> str:
    """The steps as frames of extended XYZ."""
    return "".join(crystal.to_text("extxyz") for crystal in steps)
