from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from facetry.training.recipe import TrainingOptions
from facetry.training.schedule import averaging_start, learning_rate, rate_of_run


@pytest.mark.parametrize("total", [10, 37, 1000])
def test_onecycle_equals_torch(total: int) -> None:
    options = TrainingOptions(learning_rate=3e-3)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=3e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scheduler stepped without an optimiser step
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
        for step in range(total):
            group = optimizer.param_groups[0]
            rate, beta = learning_rate(options, step, total)
            assert rate == pytest.approx(group["lr"], rel=1e-9, abs=1e-18)
            assert beta == pytest.approx(group["betas"][0], rel=1e-9)
            if step + 1 < total:
                scheduler.step()


def test_onecycle_ends() -> None:
    options = TrainingOptions(learning_rate=1e-3)
    assert learning_rate(options, 0, 100) == pytest.approx((4e-5, 0.95))
    assert learning_rate(options, 29, 100) == pytest.approx((1e-3, 0.85))
    assert learning_rate(options, 99, 100) == pytest.approx((4e-9, 0.95))
    for total in (1, 2, 3, 4):
        assert all(0 < learning_rate(options, step, total)[0] <= 1e-3 for step in range(total))


def test_polynomial_is_a_straight_line() -> None:
    options = TrainingOptions(schedule="polynomial", learning_rate=5e-4)
    total = 51
    for step in range(total):
        expected = 5e-4 + (1e-5 - 5e-4) * step / 50
        assert learning_rate(options, step, total) == pytest.approx((expected, 0.9))
    assert learning_rate(options, 0, 1) == (5e-4, 0.9)


def test_constant() -> None:
    options = TrainingOptions(schedule="constant", learning_rate=2e-4)
    assert {learning_rate(options, step, 9) for step in range(9)} == {(2e-4, 0.9)}


def test_inverse_square_root() -> None:
    """5e-4 √(4000 / (4000 + t)), and held during the last epochs where the weights are averaged."""
    options = TrainingOptions(schedule="inverse_sqrt", learning_rate=5e-4)
    for step, expected in ((0, 5e-4), (4000, 5e-4 / 2**0.5), (12000, 2.5e-4)):
        assert learning_rate(options, step, 20000) == (pytest.approx(expected, rel=1e-15), 0.9)
        assert rate_of_run(options, step, 20000, 10) == learning_rate(options, step, 20000)
    held = options.model_copy(update={"averaging": "mean", "averaging_epochs": 3})
    assert averaging_start(held, 100, 10) == 70
    rates = [rate_of_run(held, step, 100, 10) for step in range(100)]
    assert rates[:70] == [learning_rate(options, step, 100) for step in range(70)]
    assert set(rates[70:]) == {rates[69]}
    assert averaging_start(held, 20, 10) == 0
    assert rate_of_run(held, 15, 20, 10)[0] == 5e-4
