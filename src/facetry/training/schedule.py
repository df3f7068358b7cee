"""Learning rate (and AdamW's first beta) as a pure function of the step.

A schedule has no state, so a resumed run continues it exactly.

    onecycle      lr/25 ──cos──▶ lr (30 %) ──cos──▶ lr/25/1e4        beta1 0.95 ─▶ 0.85 ─▶ 0.95
    polynomial    lr ──straight──▶ final                             beta1 0.9
    inverse_sqrt  lr √(T / (T + step)), held while weights are averaged plainly   beta1 0.9
    constant      lr                                                 beta1 0.9
"""

from __future__ import annotations

import math

from facetry.training.recipe import TrainingOptions

WARMUP = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 1e4
HIGH_BETA, LOW_BETA, PLAIN_BETA = 0.95, 0.85, 0.9


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def learning_rate(options: TrainingOptions, step: int, total: int) -> tuple[float, float]:
    """(learning rate, beta1) of optimiser step `step` in 0 .. total-1.

    `onecycle` equals torch's OneCycleLR with its defaults (Smith 2018), momentum cycled the other way round.
    """
    peak = options.learning_rate
    if options.schedule == "constant":
        return peak, PLAIN_BETA
    if options.schedule == "polynomial":
        fraction = step / max(total - 1, 1)
        return peak + (min(options.final_learning_rate, peak) - peak) * fraction, PLAIN_BETA
    if options.schedule == "inverse_sqrt":
        return peak * math.sqrt(options.decay_steps / (options.decay_steps + step)), PLAIN_BETA
    start, end = peak / START_DIVISOR, peak / START_DIVISOR / END_DIVISOR
    top = WARMUP * total - 1
    if step <= top:
        return _cosine(start, peak, step / top), _cosine(HIGH_BETA, LOW_BETA, step / top)
    top = max(top, 0.0)
    fraction = (step - top) / max(total - 1 - top, 1e-9)
    return _cosine(peak, end, min(fraction, 1.0)), _cosine(LOW_BETA, HIGH_BETA, min(fraction, 1.0))


def averaging_start(options: TrainingOptions, total: int, per_epoch: int) -> int:
    """The optimiser step from which `averaging="mean"` averages."""
    return max(total - options.averaging_epochs * per_epoch, 0)


def rate_of_run(options: TrainingOptions, step: int, total: int, per_epoch: int) -> tuple[float, float]:
    """`learning_rate`, but `inverse_sqrt` stays at its last value while `averaging="mean"` averages
    (stochastic weight averaging as of CrystalFramer)."""
    if options.schedule == "inverse_sqrt" and options.averaging == "mean":
        step = min(step, max(averaging_start(options, total, per_epoch) - 1, 0))
    return learning_rate(options, step, total)
