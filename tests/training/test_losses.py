from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from facetry.card import Target
from facetry.training.losses import balanced_weights, fit_scaling, loss_sum, output_columns, standardise

NAN = float("nan")
MIXED = [
    Target(name="gap", unit="eV"),
    Target(name="metal", task="binary"),
    Target(name="system", task="multiclass", classes=["cubic", "hexagonal", "other"]),
    Target(name="bulk"),
]


def test_columns_follow_the_targets() -> None:
    assert output_columns(MIXED) == [slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 6)]


def test_scaling_is_mean_and_population_deviation_of_the_labels_there() -> None:
    values = np.array([[1.0, 1, 2, 5], [3.0, 0, 1, 5], [NAN, NAN, 0, NAN]])
    scaled = fit_scaling(MIXED, values)
    assert [t.mean for t in scaled] == [2.0, 0.0, 0.0, 5.0]
    assert [t.std for t in scaled] == [1.0, 1.0, 1.0, 1.0]  # a constant target keeps std 1
    labels = standardise(scaled, values)
    np.testing.assert_array_equal(labels[:, 0], [-1, 1, NAN])
    np.testing.assert_array_equal(labels[:, 2], [2, 1, 0])
    assert MIXED[0].mean == 0.0  # the data set's own description is untouched


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("l1", 0.5 + 2.0), ("mse", 0.25 + 4.0), ("huber", 0.5 * 0.25 + (2.0 - 0.5))],
)
def test_regression_losses(loss: str, expected: float) -> None:
    outputs = torch.tensor([[0.5], [3.0], [9.0]])
    labels = torch.tensor([[1.0], [1.0], [NAN]])
    assert loss_sum(outputs, labels, MIXED[:1], loss, 1.0).item() == pytest.approx(expected)


def test_mixed_targets_equal_the_plain_formula_and_missing_labels_have_no_gradient() -> None:
    torch.manual_seed(3)
    outputs = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(
        [[0.1, 1, 2, NAN], [NAN, 0, NAN, 1.0], [0.3, NAN, 0, 2.0], [NAN, NAN, 1, NAN], [NAN] * 4],
        dtype=torch.float64,
    )
    total = loss_sum(outputs, labels, MIXED, "l1")
    plain = sum((outputs[i, 0] - labels[i, 0]).abs() for i in (0, 2))
    plain = plain + sum(
        functional.binary_cross_entropy_with_logits(outputs[i, 1], labels[i, 1]) for i in (0, 1)
    )
    plain = plain + sum(functional.cross_entropy(outputs[i, 2:5], labels[i, 2].long()) for i in (0, 2, 3))
    plain = plain + sum((outputs[i, 5] - labels[i, 3]).abs() for i in (1, 2))
    torch.testing.assert_close(total, plain)
    total.backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert (outputs.grad[4] == 0).all()
    assert outputs.grad[1, 0] == 0
    assert (outputs.grad[1, 2:5] == 0).all()


def test_balanced_classes() -> None:
    """Three labels of one class and one of another count the same; the mean weight of a label is one."""
    targets = [Target(name="y"), Target(name="b", task="binary"), MIXED[2]]
    values = np.array([[0.5, 0, 0], [0.1, 0, 0], [NAN, 0, 2], [0.2, 1, NAN]])
    plain, binary, several = balanced_weights(targets, values)
    assert plain is None
    np.testing.assert_allclose(binary, [4 / 6, 4 / 2])
    np.testing.assert_allclose(several, [3 / 4, 1.0, 3 / 2])
    outputs = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.from_numpy(values)
    total = loss_sum(outputs, labels, targets, "l1", 1.0, [plain, binary, several])
    by_hand = sum((outputs[i, 0] - labels[i, 0]).abs() for i in (0, 1, 3))
    for i, weight in enumerate((4 / 6, 4 / 6, 4 / 6, 4 / 2)):
        bce = functional.binary_cross_entropy_with_logits(outputs[i, 1], labels[i, 1])
        by_hand = by_hand + weight * bce
    for i, weight in ((0, 3 / 4), (1, 3 / 4), (2, 3 / 2)):
        by_hand = by_hand + weight * functional.cross_entropy(outputs[i, 2:], labels[i, 2].long())
    torch.testing.assert_close(total, by_hand)
