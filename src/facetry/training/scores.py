"""How good a network is on a split, in physical units, and one number to choose the best epoch by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit, log_softmax, softmax

from facetry.card import Target
from facetry.evaluation.metrics import TargetScores, classification_scores, regression_scores
from facetry.models.base import evaluating
from facetry.training.batches import Source
from facetry.training.losses import output_columns

if TYPE_CHECKING:
    from facetry.models.base import PropertyModel

T = TypeVar("T")


@torch.no_grad()
def network_outputs(
    model: PropertyModel,
    source: Source,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    quick: bool = False,
) -> Float[np.ndarray, "crystals outputs"]:
    """Raw outputs in evaluation mode, in the order of the split; several processes share the work.

    `quick` lets the model make the random choices of a training step (one lattice frame a crystal, always
    the same one) instead of averaging over all: an estimate at a fraction of the cost.
    """
    pieces = source.pieces(batch_size, device)
    parts = {}
    with evaluating(model):
        for number in range(rank, len(pieces), world):
            batch = source.batch(pieces[number], device)
            if quick:
                batch = model.training_batch(batch, torch.Generator().manual_seed(number))
            parts[number] = model(batch).double().cpu().numpy()
    return np.concatenate(gathered(parts, world))


def gathered(parts: dict[int, T], world: int) -> list[T]:
    """The numbered parts that each of several processes has made, in order; every process gets all."""
    if world > 1:
        shares: list = [None] * world
        torch.distributed.all_gather_object(shares, parts)
        parts = {number: part for share in shares for number, part in share.items()}
    return [parts[number] for number in sorted(parts)]


@torch.no_grad()
def network_embeddings(
    model: PropertyModel,
    source: Source,
    batch_size: int,
    device: torch.device,
    rows: np.ndarray | None = None,
) -> Float[torch.Tensor, "crystals channels"]:
    """Pooled vectors of all crystals or of the chosen (in increasing order), on the CPU."""
    model.eval()
    pieces = source.pieces(batch_size, device)
    if rows is not None:
        chosen = (piece[np.isin(piece, rows)] for piece in pieces)
        pieces = [piece for piece in chosen if len(piece)]
    return torch.cat([model.embed(source.batch(piece, device)).cpu() for piece in pieces])


def absolute_errors(
    target: Target, output: Float[np.ndarray, "crystals columns"], label: Float[np.ndarray, " crystals"]
) -> Float[np.ndarray, " crystals"]:
    """Of a regression target, in its unit; NaN where the label is missing."""
    return np.abs(output[:, 0] * target.std + target.mean - label)


def score_targets(
    targets: Sequence[Target],
    outputs: Float[np.ndarray, "crystals outputs"],
    labels: Float[np.ndarray, "crystals targets"],
    resamples: int = 1,
    intervals: bool = False,
    seed: int = 0,
) -> list[TargetScores]:
    """Metrics of every target; `labels` are physical values and class numbers, NaN where missing.

    `intervals` adds their coverage, which says nothing on the crystals that they were calibrated on. `seed`
    is that of the bootstrap.
    """
    drawn = {"resamples": resamples, "seed": seed}
    scores = []
    for index, (target, columns) in enumerate(zip(targets, output_columns(targets), strict=True)):
        output, label = outputs[:, columns], labels[:, index]
        if target.task == "regression":
            value = output[:, 0] * target.std + target.mean
            half = target.quantile if intervals else None
            lower, upper = (None, None) if half is None else (value - half, value + half)
            scores.append(
                regression_scores(value, label, lower, upper, target=target.name, unit=target.unit, **drawn)
            )
            continue
        if target.task == "binary":
            positive = expit(output[:, 0])
            probability = np.stack([1 - positive, positive], axis=1)
        else:
            probability = softmax(output, axis=1)
        true = np.where(np.isnan(label), -1, label).astype(np.int64)
        scores.append(
            classification_scores(probability, true, classes=target.classes, target=target.name, **drawn)
        )
    return scores


def flat_metrics(scores: Sequence[TargetScores]) -> dict[str, float]:
    """`mae`, `rmse`, ...; with several targets `mae[name]`."""
    several = len(scores) > 1
    return {
        f"{metric}[{s.target}]" if several else metric: estimate.value
        for s in scores
        for metric, estimate in s.metrics.items()
    }


def selection_score(
    targets: Sequence[Target],
    scores: Sequence[TargetScores],
    outputs: Float[np.ndarray, "crystals outputs"],
    labels: Float[np.ndarray, "crystals targets"],
) -> float:
    """Lower is better: MAE in training std, 1 - ROC-AUC (binary), 1 - accuracy (multiclass), averaged.

    Where only one class occurs ROC-AUC is undefined; the mean log loss stands in. Targets without any label
    do not count.
    """
    parts = []
    for index, (target, score, columns) in enumerate(
        zip(targets, scores, output_columns(targets), strict=True)
    ):
        if not score.count:
            continue
        if target.task == "regression":
            parts.append(score["mae"].value / target.std)
        elif target.task == "multiclass":
            parts.append(1 - score["accuracy"].value)
        else:
            area = score["roc_auc"].value
            if np.isfinite(area):
                parts.append(1 - area)
            else:
                label = labels[:, index]
                logits = np.stack([np.zeros(len(label)), outputs[:, columns.start]], axis=1)[~np.isnan(label)]
                chosen = label[~np.isnan(label)].astype(int)
                parts.append(-float(log_softmax(logits, axis=1)[np.arange(len(chosen)), chosen].mean()))
    return float(np.mean(parts)) if parts else float("nan")
