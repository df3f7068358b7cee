"""What a model must beat: predictions from composition alone, in seconds.

mean       the mean of the training labels, or the shares of the classes
nearest    the labels of the nearest composition of the training part (mean over its crystals)
boosting   gradient boosting on composition features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from facetry.card import Target
from facetry.evaluation.boosting import BoostedTrees
from facetry.evaluation.metrics import TargetScores, classification_scores, regression_scores

__all__ = ["METHODS", "Baseline", "composition_baselines"]

METHODS = ("mean", "nearest", "boosting")
_AXES = 24  # directions in which compositions are compared
_MOST_CLASSES = 12

Fold = tuple[np.ndarray, np.ndarray]  # rows to learn from, rows to predict


@dataclass(frozen=True)
class Baseline:
    """Scores of one method on one target."""

    method: str
    scores: TargetScores


def composition_baselines(
    features: Float[np.ndarray, "crystals features"],
    labels: Float[np.ndarray, "crystals targets"],
    targets: Sequence[Target],
    folds: Sequence[Fold],
    resamples: int = 1000,
) -> list[Baseline]:
    """Every method on every target, learned on the first rows of each fold and scored on all second ones
    together. A target without labels on either side has none; one of more than 12 classes has no boosting."""
    found = []
    for column, target in enumerate(targets):
        values = labels[:, column]
        usable = []
        for fit, held in folds:
            fit, held = (rows[~np.isnan(values[rows])] for rows in (fit, held))
            if len(fit) >= 2 and len(held):
                usable.append((fit, held))
        if not usable:
            continue
        held = np.concatenate([h for _, h in usable])
        classes = _classes(target, values)
        for method in METHODS:
            if method == "boosting" and len(classes) > _MOST_CLASSES:
                continue
            wanted = (
                values if target.task == "regression" else (values[:, None] == classes).astype(np.float64)
            )
            wanted = wanted.reshape(len(values), -1)
            said = [_predict(method, features[f], wanted[f], features[h], target.task) for f, h in usable]
            predicted = np.concatenate(said)
            if target.task == "regression":
                scores = regression_scores(
                    predicted[:, 0], values[held], target=target.name, unit=target.unit, resamples=resamples
                )
            else:
                # classes that occur, in the order of the target's names
                names = [str((target.classes or [])[int(c)]) if target.classes else f"{c:g}" for c in classes]
                true = np.searchsorted(classes, values[held])
                draws = resamples if len(classes) <= _MOST_CLASSES else 1  # too many metrics for many draws
                scores = classification_scores(
                    predicted, true, classes=names, target=target.name, resamples=draws
                )
            found.append(Baseline(method, scores))
    return found


def _classes(target: Target, values: np.ndarray) -> np.ndarray:
    if target.task == "regression":
        return np.zeros(0)
    occurring = np.unique(values[~np.isnan(values)])
    return np.array([0.0, 1.0]) if target.task == "binary" else occurring


def _predict(
    method: str, fit: np.ndarray, labels: np.ndarray, held: np.ndarray, task: str
) -> Float[np.ndarray, "crystals outputs"]:
    if method == "mean":
        return np.tile(labels.mean(0), (len(held), 1))
    if method == "nearest":
        return _nearest(fit, labels, held)
    if task == "regression":
        return BoostedTrees().fit(fit, labels).predict(held)
    probability = BoostedTrees(loss="logistic").fit(fit, labels).predict(held)
    return probability / np.maximum(probability.sum(1, keepdims=True), 1e-12)


def _nearest(fit: np.ndarray, labels: np.ndarray, held: np.ndarray) -> Float[np.ndarray, "crystals outputs"]:
    """The mean label of the nearest composition, in the directions in which the training part varies most."""
    middle, spread = fit.mean(0), fit.std(0)
    used = spread > 1e-9
    if not used.any():
        return np.tile(labels.mean(0), (len(held), 1))
    scaled = (fit[:, used] - middle[used]) / spread[used]
    asked = (held[:, used] - middle[used]) / spread[used]
    _, axes = np.linalg.eigh(scaled.T @ scaled)
    axes = axes[:, -_AXES:]
    compositions, inverse = np.unique(np.round(scaled @ axes, 6), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse)
    means = np.stack([np.bincount(inverse, column) / counts for column in labels.T], axis=1)
    return means[cKDTree(compositions).query(asked @ axes)[1]]
