"""Draws crystals from exp(-E / T) for any energy that gives its slopes."""

from facetry.samplers.chains import Annealing, Chains, Tempering, random_cells, random_start
from facetry.samplers.moves import Mover, State, evaluated, reduced_state

__all__ = [
    "Annealing",
    "Chains",
    "Mover",
    "State",
    "Tempering",
    "evaluated",
    "random_cells",
    "random_start",
    "reduced_state",
]
