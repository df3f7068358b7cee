"""What keeps crystals from being found: the energy, or the chains that draw from it."""

from __future__ import annotations

from typing import Any

import numpy as np

_DESCENT = 60  # steps downhill from a true crystal, to the minimum that belongs to it


def limits(
    method: Any, crystals: list[Any], energies: list[list[float]], matched: np.ndarray
) -> dict[str, Any]:
    """A missed crystal is `missed_lower` where a candidate lies below the minimum that belongs to the true
    crystal: the energy is wrong; and `missed_higher` where none does: the chains did not come so low.

    `true_minimum` says how far that minimum is from the crystal, what no chain can mend.
    """
    import facetry

    relaxed, energy = minima(method, crystals, _DESCENT)
    lowest = np.array([min(few, default=np.inf) for few in energies])
    below = lowest < energy - 1e-6
    own = facetry.match(crystals, [[c] for c in relaxed], everyone=False)
    return {
        "true_minimum": {"match_rate": own.match_rate(1), "rmse": own.rmse(1)},
        "missed": int((~matched).sum()),
        "missed_lower": int((~matched & below).sum()),
        "missed_higher": int((~matched & ~below).sum()),
        "matched_lower": int((matched & below).sum()),
        "mean_energy_above": float(np.mean((lowest - energy)[np.isfinite(lowest)])),
    }


def minima(method: Any, crystals: list[Any], steps: int, at_once: int = 512) -> tuple[list[Any], np.ndarray]:
    """Where a descent from each crystal ends, and the energy there."""
    import torch

    from facetry.graph.batch import Batch
    from facetry.models.base import evaluating
    from facetry.samplers import evaluated
    from facetry.samplers.descent import descended
    from facetry.tasks.energy_chains import crystal_if_valid

    relaxed: list[Any] = []
    energies = []
    with evaluating(method.model, method.device) as place, torch.no_grad():
        for start in range(0, len(crystals), at_once):
            few = crystals[start : start + at_once]
            batch = Batch.from_crystals(few).to(place)
            land = method.model.landscape(batch.atomic_numbers, batch.num_atoms)
            state = evaluated(land, batch.lattice, batch.frac_coords, method.plan.density)
            state = descended(land, state, steps, method.plan.density)
            cells = state.lattice.cpu().numpy()
            coords = state.frac_coords.cpu().split(batch.num_atoms.tolist())
            for cell, frac, crystal in zip(cells, coords, few, strict=True):
                relaxed.append(crystal_if_valid(cell, frac.numpy(), crystal.atomic_numbers) or crystal)
            energies.append(state.at.energy.cpu().numpy())
    return relaxed, np.concatenate(energies)
