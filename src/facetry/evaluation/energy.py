"""What relaxing is worth in energy, by any ASE calculator: eV per atom, and steps that an optimiser saves."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from facetry.crystal import Crystal


def load_calculator(name: str) -> Any:
    """An ASE calculator from "module:Class", such as "ase.calculators.emt:EMT", made without arguments."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"calculator {name!r}: expected MODULE:CLASS, such as ase.calculators.emt:EMT ({error})"
        ) from None


def energies_per_atom(crystals: Iterable[Crystal], calculator: Any) -> Float[np.ndarray, " crystals"]:
    """Potential energies in eV/atom, NaN where the calculator fails. Raises ValueError with the first reason
    where it fails for every crystal."""
    energies, reasons = [], []
    for crystal in crystals:
        atoms = crystal.to_ase()
        atoms.calc = calculator
        try:
            energies.append(float(atoms.get_potential_energy()) / len(crystal))
        except Exception as error:  # a calculator may raise anything; the others still have their energies
            energies.append(np.nan)
            reasons.append(f"{crystal.name or crystal.formula}: {type(error).__name__}: {error}")
    if energies and len(reasons) == len(energies):
        raise ValueError(f"the calculator gives no energy; the first reason: {reasons[0]}")
    return np.array(energies)


def energy_gains(
    before: Sequence[Crystal], after: Sequence[Crystal], true: Sequence[Crystal], calculator: Any
) -> dict[str, Float[np.ndarray, " crystals"]]:
    """The chemical metric of Klipfel et al. 2023: `energy_change` E' - Ẽ in eV/atom, and `energy_improved`,
    100 where it is negative; besides, how far the energy is above that of the true crystal before and
    after."""
    noisy, relaxed, right = (energies_per_atom(c, calculator) for c in (before, after, true))
    change = relaxed - noisy
    return {
        "energy_change": change,
        "energy_improved": np.where(np.isnan(change), np.nan, 100.0 * (change < 0)),
        "energy_excess": relaxed - right,
        "noisy_energy_excess": noisy - right,
    }


def optimiser_steps(
    crystal: Crystal, calculator: Any, fmax: float = 0.05, most: int = 500
) -> tuple[int, Crystal]:
    """Steps that ASE's BFGS takes to relax cell and atoms until no force, on atoms or on the cell as ASE's
    FrechetCellFilter counts it, is above `fmax` eV/Å; at most `most`. And the crystal it ends with."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    atoms = crystal.to_ase()
    atoms.calc = calculator
    optimiser = BFGS(FrechetCellFilter(atoms), logfile=None)
    optimiser.run(fmax=fmax, steps=most)
    return int(optimiser.nsteps), Crystal.from_ase(atoms, crystal.name)
