"""Energies of crystals by whatever gives them: models that predict, energy models, ASE calculators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from facetry.crystal import Crystal
from facetry.models.base import EnergyModel, evaluating
from facetry.tasks.inference import Limits, run
from facetry.tasks.inputs import items_of

__all__ = ["Energies"]


class Energies:
    """Crystals in, numbers out: `unit` says of what, "" for energies without one.

    Args:
        source: a property model of one number (its value), a model with an energy, the folder or name of one,
            or an ASE calculator (eV per atom).
        batch_size: crystals worked on at once by a model.
        device: where a model computes.

    Raises ValueError for models of several numbers, of classes or of other jobs.
    """

    def __init__(self, source: Any, batch_size: int | None = None, device: Any = None) -> None:
        self.batch_size, self.device = batch_size, device
        self.calculator: Any = None
        self.model: Any = None
        if hasattr(source, "get_property") or hasattr(source, "get_potential_energy"):
            self.calculator, self.unit = source, "eV/atom"
            return
        self.model = _loaded(source)
        if isinstance(self.model, EnergyModel):
            self.unit = ""
            return
        from facetry.tasks.predict import as_model, targets_of

        as_model(self.model)  # says what is wrong with models of other jobs
        targets = targets_of(self.model)
        if len(targets) != 1 or targets[0].task != "regression":
            raise ValueError(f"{self.model.name}: expected a model of one number as the energy")
        self.unit = targets[0].unit

    def __call__(self, crystals: Sequence[Crystal]) -> list[float | None]:
        """One number a crystal, None where there is none."""
        if self.calculator is not None:
            return [_calculated(crystal, self.calculator) for crystal in crystals]
        if isinstance(self.model, EnergyModel):
            return self._modelled(crystals)
        from facetry.tasks.predict import predict

        found = predict(self.model, list(crystals), self.batch_size, self.device)
        return [p.value if isinstance(p.value, float) else None for p in found]

    def _modelled(self, crystals: Sequence[Crystal]) -> list[float | None]:
        values: list[float | None] = []
        with evaluating(self.model, self.device) as place:
            limits = Limits.for_device(place, self.batch_size)
            outcomes = run(
                self.model, items_of(crystals), lambda b: {"energy": self.model(b)[:, None]}, limits, place
            )
            for outcome in outcomes:
                value = float(outcome.values["energy"][0]) if outcome.status == "ok" else math.nan
                values.append(value if math.isfinite(value) else None)
        return values


def _loaded(source: Any) -> Any:
    if isinstance(source, str | PathLike):
        from facetry.training import load

        return load(source)
    return source


def _calculated(crystal: Crystal, calculator: Any) -> float | None:
    atoms = crystal.to_ase()
    atoms.calc = calculator
    try:
        value = float(atoms.get_potential_energy()) / len(atoms)
    except Exception:  # of other people's code: an element it does not know, no convergence
        return None
    return value if math.isfinite(value) else None
