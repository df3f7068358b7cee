"""Errors of a set of predictions, each with a bootstrap interval.

Every metric is written for weighted crystals, with one row of weights per resample. Its value is the metric
at unit weights; its interval is the 2.5 to 97.5 percentile over bootstrap resamples, whose weights are the
number of times each crystal was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000
CALIBRATION_BINS = 10
_CHUNK_ELEMENTS = 4_000_000

Metric = Callable[[Float[np.ndarray, "resamples crystals"]], Float[np.ndarray, "resamples"]]


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % bootstrap interval; NaN where the metric is undefined."""

    value: float
    lower: float
    upper: float

    def text(self, unit: str = "") -> str:
        """`0.031 eV  (95 %: 0.028 to 0.034)`; a dash for what is undefined, such as the precision of a class
        that was never predicted."""
        if not np.isfinite(self.value):
            return "-"
        interval = f"  (95 %: {self.lower:.5g} to {self.upper:.5g})" if np.isfinite(self.lower) else ""
        return f"{self.value:.5g}{unit}{interval}"


@dataclass(frozen=True)
class TargetScores:
    """Metrics of one target on one set of crystals. MAE and RMSE are in `unit`."""

    target: str
    unit: str
    task: str
    count: int
    metrics: dict[str, Estimate]
    classes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> Estimate:
        return self.metrics[metric]

    def __str__(self) -> str:
        lines = [f"{self.target or 'value'}: {self.count} crystals"]
        width = max((len(name) for name in self.metrics), default=0)
        for name, estimate in self.metrics.items():
            unit = f" {self.unit}" if self.unit and name in ("mae", "rmse") else ""
            lines.append(f"  {name:{width}s}  {estimate.text(unit)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Scores:
    """What `evaluate` returns: the scores of each target.

    With one target its metrics are attributes: `scores.mae`, `scores.count`, `scores.unit`. With several,
    `scores["target"]["mae"].value`. `failed` counts the crystals for which the model gave no value; they are
    not part of the metrics. `predictions` and `truth` are the values behind the metrics.
    """

    targets: tuple[TargetScores, ...]
    failed: int = 0
    predictions: list = field(default_factory=list, repr=False, compare=False)
    truth: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, target: str) -> TargetScores:
        for scores in self.targets:
            if scores.target == target:
                return scores
        raise KeyError(f"no target {target!r}; there are {', '.join(s.target for s in self.targets)}")

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "targets":
            raise AttributeError(name)
        if len(self.targets) != 1:
            names = ", ".join(scores.target for scores in self.targets)
            raise AttributeError(f"several targets; use scores[target] with one of {names}")
        only = self.targets[0]
        if name in only.metrics:
            return only.metrics[name].value
        if name in ("count", "unit", "task", "target", "metrics"):
            return getattr(only, name)
        raise AttributeError(f"no metric {name!r}; there are {', '.join(only.metrics)}")

    def __str__(self) -> str:
        lines = [str(scores) for scores in self.targets]
        if self.failed:
            bad = next((p for p in self.predictions if p.status != "ok"), None)
            first = "" if bad is None else f", such as {bad.name or bad.source}: {bad.message}"
            lines.append(f"{self.failed} crystals gave no value{first}")
        return "\n".join(lines)

    def true_value(self, number: int) -> float | str | None:
        """The label behind `predictions[number]`, as the prediction states its value; None if missing."""
        if self.truth is None:
            return None
        value = float(self.truth.reshape(-1)[number])
        if np.isnan(value):
            return None
        classes = self.targets[number % len(self.targets)].classes
        return classes[int(value)] if classes else value

    def to_dict(self) -> dict:
        """Plain numbers for JSON; undefined metrics are None."""
        targets = [asdict(scores) for scores in self.targets]
        for target in targets:
            target["classes"] = list(target["classes"])
            for estimate in target["metrics"].values():
                estimate.update({key: None if not np.isfinite(x) else x for key, x in estimate.items()})
        return {"targets": targets, "failed": self.failed}


def bootstrap(
    metrics: dict[str, Metric], count: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Value and percentile interval of each metric over `count` crystals (Efron 1979).

    All metrics see the same resamples. Resamples on which a metric is undefined (R² of equal values, ROC-AUC
    of one class) are left out of its interval.
    """
    if not count:
        return {name: Estimate(np.nan, np.nan, np.nan) for name in metrics}
    rng = np.random.default_rng(seed)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    step = max(1, _CHUNK_ELEMENTS // count)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: float(metric(np.ones((1, count)))[0]) for name, metric in metrics.items()}
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            picks = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            weights = np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count).astype(float)
            for name, metric in metrics.items():
                draws[name].append(metric(weights))
    estimates = {}
    for name, parts in draws.items():
        sample = np.concatenate(parts)
        sample = sample[np.isfinite(sample)]
        lower, upper = np.percentile(sample, [2.5, 97.5]) if len(sample) else (np.nan, np.nan)
        estimates[name] = Estimate(values[name], float(lower), float(upper))
    return estimates


def regression_scores(
    predicted: Float[np.ndarray, "crystals"],
    true: Float[np.ndarray, "crystals"],
    lower: Float[np.ndarray, "crystals"] | None = None,
    upper: Float[np.ndarray, "crystals"] | None = None,
    *,
    target: str = "",
    unit: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> TargetScores:
    """MAE, RMSE, R² and, where intervals are given, the fraction of them that hold the true value.

    Crystals with a NaN on either side are left out.
    """
    keep = ~(np.isnan(predicted) | np.isnan(true))
    predicted, true = predicted[keep], true[keep]
    error = predicted - true

    def mean(quantity: Float[np.ndarray, "crystals"]) -> Metric:
        return lambda weights: weights @ quantity / weights.sum(axis=1)

    def r2(weights: Float[np.ndarray, "resamples crystals"]) -> Float[np.ndarray, "resamples"]:
        total = weights.sum(axis=1)
        centred = true - true.mean()  # keeps the variance accurate where the mean is large
        variance = weights @ centred**2 / total - (weights @ centred / total) ** 2
        return np.where(variance > 0, 1 - weights @ error**2 / total / variance, np.nan)

    metrics: dict[str, Metric] = {
        "mae": mean(np.abs(error)),
        "rmse": lambda weights: np.sqrt(weights @ error**2 / weights.sum(axis=1)),
        "r2": r2,
    }
    if lower is not None and upper is not None:
        covered = ((lower[keep] <= true) & (true <= upper[keep])).astype(np.float64)
        metrics["coverage"] = mean(covered)
    estimates = bootstrap(metrics, len(true), seed, resamples)
    return TargetScores(target, unit, "regression", len(true), estimates)


def classification_scores(
    probabilities: Float[np.ndarray, "crystals classes"],
    true: Int[np.ndarray, "crystals"],
    *,
    classes: Sequence[str] | None = None,
    target: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> TargetScores:
    """Accuracy, balanced accuracy, precision, recall and F1 per class, ROC-AUC, calibration error.

    `true` holds class numbers; negative numbers and rows with NaN are left out. The predicted class is the
    most likely one. ROC-AUC is that of class 1 for two classes, else the mean of one-against-rest over the
    classes that occur. The calibration error is the expected difference between the probability of the
    predicted class and the accuracy, in ten equal bins (Naeini 2015).
    """
    n_classes = probabilities.shape[1]
    names = [str(c) for c in classes] if classes is not None else [str(c) for c in range(n_classes)]
    keep = (true >= 0) & ~np.isnan(probabilities).any(axis=1)
    probabilities, true = probabilities[keep], true[keep]
    if (true >= n_classes).any():
        raise ValueError(f"class {true.max()} in the labels, but the model knows 0 to {n_classes - 1}")
    predicted = probabilities.argmax(axis=1)
    right = (predicted == true).astype(np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> Metric:
        above, below = above.astype(np.float64), below.astype(np.float64)

        def metric(weights: Float[np.ndarray, "resamples crystals"]) -> Float[np.ndarray, "resamples"]:
            bottom = weights @ below
            return np.where(bottom > 0, weights @ above / bottom, np.nan)

        return metric

    occurring = [c for c in range(n_classes) if (true == c).any()]
    recalls = [ratio(right * (true == c), true == c) for c in occurring]
    metrics: dict[str, Metric] = {
        "accuracy": ratio(right, np.ones_like(right)),
        "balanced_accuracy": _mean_of(recalls),
    }
    for c, name in enumerate(names):
        hits = right * (true == c)
        metrics[f"precision[{name}]"] = ratio(hits, predicted == c)
        metrics[f"recall[{name}]"] = ratio(hits, true == c)
        metrics[f"f1[{name}]"] = ratio(2 * hits, (predicted == c).astype(int) + (true == c))
    positives = [1] if n_classes == 2 else occurring
    metrics["roc_auc"] = _mean_of([_roc_auc(probabilities[:, c], true == c) for c in positives])
    metrics["calibration_error"] = _calibration_error(probabilities.max(axis=1, initial=0.0), right)
    estimates = bootstrap(metrics, len(true), seed, resamples)
    task = "binary" if n_classes == 2 else "multiclass"
    return TargetScores(target, "", task, len(true), estimates, tuple(names))


def _mean_of(metrics: list[Metric]) -> Metric:
    def mean(weights: Float[np.ndarray, "resamples crystals"]) -> Float[np.ndarray, "resamples"]:
        if not metrics:
            return np.full(len(weights), np.nan)
        return np.mean([metric(weights) for metric in metrics], axis=0)

    return mean


def _roc_auc(score: Float[np.ndarray, "crystals"], positive: np.ndarray) -> Metric:
    """Probability that a positive scores above a negative, ties counting one half (Mann-Whitney)."""
    order = np.argsort(score, kind="stable")
    is_positive = positive[order].astype(np.float64)
    first = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # start of each group of equal scores

    def auc(weights: Float[np.ndarray, "resamples crystals"]) -> Float[np.ndarray, "resamples"]:
        weights = weights[:, order]
        up = np.add.reduceat(weights * is_positive, first, axis=1)
        down = np.add.reduceat(weights * (1 - is_positive), first, axis=1)
        below = np.cumsum(down, axis=1) - down
        pairs = up.sum(axis=1) * down.sum(axis=1)
        return np.where(pairs > 0, (up * (below + down / 2)).sum(axis=1) / pairs, np.nan)

    return auc


def _calibration_error(
    confidence: Float[np.ndarray, "crystals"], right: Float[np.ndarray, "crystals"]
) -> Metric:
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros((len(right), CALIBRATION_BINS))
    gaps[np.arange(len(right)), bins] = confidence - right

    def error(weights: Float[np.ndarray, "resamples crystals"]) -> Float[np.ndarray, "resamples"]:
        return np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)

    return error


def nan_to_null(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: None in their place, in dicts and lists too."""
    if isinstance(value, dict):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
