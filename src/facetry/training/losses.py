"""What is minimised: regression and classification over several targets, of which any may be missing.

A network has one output column for each regression or binary target and one for each class of a multiclass
target. Missing labels are NaN; every label that is there counts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from facetry.card import Target


def output_columns(targets: Sequence[Target]) -> list[slice]:
    """The columns of the network's output that belong to each target."""
    ends = np.cumsum([t.columns for t in targets]).tolist()
    return [slice(end - target.columns, end) for end, target in zip(ends, targets, strict=True)]


def fit_scaling(targets: Sequence[Target], values: Float[np.ndarray, "crystals targets"]) -> list[Target]:
    """Targets with mean and population standard deviation of the labels that are there (regression only)."""
    scaled = []
    for target, column in zip(targets, values.T, strict=True):
        mean, std = 0.0, 1.0
        if target.task == "regression":
            there = column[~np.isnan(column)]
            mean, std = float(there.mean()), float(there.std())
            std = std if std > 0 else 1.0  # a constant target is learned by its mean alone
        scaled.append(target.model_copy(update={"mean": mean, "std": std, "quantile": None}))
    return scaled


def standardise(
    targets: Sequence[Target], values: Float[np.ndarray, "crystals targets"]
) -> Float[np.ndarray, "crystals targets"]:
    """Labels as the network sees them: (value - mean) / std for regression, classes as they are."""
    mean = np.array([t.mean for t in targets])
    std = np.array([t.std for t in targets])
    return (values - mean) / std


def balanced_weights(
    targets: Sequence[Target], values: Float[np.ndarray, "crystals targets"]
) -> list[Tensor | None]:
    """Weights of the classes of each target (None for regression): n / (classes · n_class) of the labels that
    are there, so that all classes together count the same and the mean weight of a label is one. A class that
    does not occur has the weight one."""
    weights: list[Tensor | None] = []
    for target, column in zip(targets, values.T, strict=True):
        if target.task == "regression":
            weights.append(None)
            continue
        classes = 2 if target.task == "binary" else target.columns
        there = column[~np.isnan(column)].astype(np.int64)
        count = np.bincount(there, minlength=classes)
        occurring = max(int((count > 0).sum()), 1)
        weight = np.where(count > 0, len(there) / (occurring * np.maximum(count, 1)), 1.0)
        weights.append(torch.from_numpy(weight))
    return weights


def loss_sum(
    outputs: Float[Tensor, "crystals outputs"],
    labels: Float[Tensor, "crystals targets"],
    targets: Sequence[Target],
    loss: Literal["l1", "mse", "huber"] = "l1",
    huber_delta: float = 1.0,
    class_weights: Sequence[Tensor | None] | None = None,
) -> Float[Tensor, ""]:
    """Sum of the loss over all labels that are not NaN; divide by their number for the mean.

    Labels are standardised numbers (regression), 0 or 1 (binary), a class number (multiclass).
    `class_weights` has the weights of the classes of each target (`balanced_weights`).
    """
    present = ~torch.isnan(labels)
    labels = torch.where(present, labels, torch.zeros_like(labels))
    total = outputs.new_zeros(())
    for index, (target, columns) in enumerate(zip(targets, output_columns(targets), strict=True)):
        label, mask = labels[:, index].to(outputs.dtype), present[:, index]
        if target.task == "multiclass":
            each = functional.cross_entropy(outputs[:, columns], label.long(), reduction="none")
        else:
            output = outputs[:, columns.start]
            if target.task == "binary":
                each = functional.binary_cross_entropy_with_logits(output, label, reduction="none")
            elif loss == "l1":
                each = (output - label).abs()
            elif loss == "mse":
                each = (output - label).square()
            else:
                each = functional.huber_loss(output, label, reduction="none", delta=huber_delta)
        weight = None if class_weights is None else class_weights[index]
        if weight is not None:
            each = each * weight.to(each)[label.long()]
        total = total + torch.where(mask, each, torch.zeros_like(each)).sum()
    return total
