"""Figure 2 of arXiv 2502.02026 as PNG: energies of displaced and of scaled crystals."""

from __future__ import annotations

import numpy as np

from facetry.evaluation.landscape import FACTORS, Displacements, EnergyScores
from facetry.evaluation.plots import BLUE, GREEN, INK, ORANGE, _plain_ink, _png

__all__ = ["landscape_plot"]

_COLOURS = (BLUE, ORANGE, GREEN, "#b0559e", "#8a7a3a")


def landscape_plot(scores: EnergyScores, transparent: bool = False) -> bytes:
    """Rise of the energy against the displacement of one atom and of all atoms, and against scaling; a colour
    for each crystal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert scores.one is not None
    assert scores.all is not None
    assert scores.scaled is not None
    figure = Figure(figsize=(10.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    one, every, scaled = figure.subplots(1, 3)
    _scatter(one, scores.one, "one atom moved, Å")
    _scatter(every, scores.all, "all atoms moved, Å in all")
    for name, energy, colour in zip(scores.one.names, scores.scaled, _COLOURS, strict=False):
        scaled.plot(FACTORS, energy - np.interp(1.0, FACTORS, energy), color=colour, lw=1.3, label=name)
    low, high = np.nanpercentile(scores.scaled - scores.scaled.min(1, keepdims=True), [0, 90])
    scaled.axvline(1.0, color=INK, lw=0.8)
    scaled.set(
        xscale="log", xlabel="lengths of the cell over the true ones", ylabel="energy above the crystal"
    )
    scaled.set_ylim(-0.2 * (high - low), (high - low) or 1.0)
    scaled.set_xticks([0.4, 0.6, 1.0, 1.6, 2.5], ["0.4", "0.6", "1", "1.6", "2.5"])
    scaled.minorticks_off()
    scaled.legend(frameon=False, fontsize=7, labelcolor=INK)
    for axes in (one, every, scaled):
        _plain_ink(axes)
    return _png(figure, transparent)


def _scatter(axes, found: Displacements, words: str) -> None:
    for distance, rise, colour in zip(found.distance, found.rise, _COLOURS, strict=False):
        axes.plot(distance, rise, ".", color=colour, ms=2, alpha=0.6)
    axes.axhline(0.0, color=INK, lw=0.8)
    axes.set(xlabel=words, ylabel="energy above the crystal")
