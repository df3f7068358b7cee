"""Boosted trees and the baselines made of them, against plain searches and known limits."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.card import Target
from facetry.evaluation.baselines import composition_baselines
from facetry.evaluation.boosting import BoostedTrees


def test_one_stump_is_the_best_split():
    """A tree of depth 1 against every border of every feature."""
    rng = np.random.default_rng(0)
    features = rng.integers(0, 9, (60, 4)).astype(float)
    target = np.where(features[:, 2] > 4, 3.0, -1.0) + 0.3 * rng.standard_normal(60)
    forest = BoostedTrees(trees=1, depth=1, rate=1.0, leaf=5, columns=1.0, rows=1.0, ridge=0.0)
    predicted = forest.fit(features, target[:, None]).predict(features)[:, 0]
    best, wanted = np.inf, None
    for j in range(4):
        for border in np.unique(features[:, j])[:-1] + 0.5:
            left = features[:, j] < border
            if min(left.sum(), (~left).sum()) < 5:
                continue
            fit = np.where(left, target[left].mean(), target[~left].mean())
            if (error := ((target - fit) ** 2).sum()) < best:
                best, wanted = error, fit
    np.testing.assert_allclose(predicted, wanted, atol=1e-12)


def test_learns_and_repeats_itself():
    rng = np.random.default_rng(1)
    features = rng.uniform(-1, 1, (1500, 6))
    target = (np.sin(3 * features[:, 0]) + features[:, 1] * features[:, 2])[:, None]
    first = BoostedTrees(columns=0.5).fit(features[:1000], target[:1000])
    error = np.abs(first.predict(features[1000:]) - target[1000:]).mean()
    assert error < 0.25 * np.abs(target[1000:] - target[:1000].mean()).mean()
    again = BoostedTrees(columns=0.5).fit(features[:1000], target[:1000])
    np.testing.assert_array_equal(first.predict(features), again.predict(features))


def test_probabilities():
    rng = np.random.default_rng(2)
    features = rng.uniform(-1, 1, (1200, 3))
    chance = 1 / (1 + np.exp(-6 * features[:, 0]))
    label = (rng.uniform(size=1200) < chance).astype(float)[:, None]
    forest = BoostedTrees(trees=60, columns=1.0, loss="logistic", leaf=20).fit(features[:800], label[:800])
    said = forest.predict(features[800:])[:, 0]
    assert (said >= 0).all()
    assert (said <= 1).all()
    assert np.abs(said - chance[800:]).mean() < 0.12


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_nothing_to_learn_from(loss):
    forest = BoostedTrees(trees=5, loss=loss).fit(np.ones((20, 3)), np.full((20, 1), 0.25))
    np.testing.assert_allclose(forest.predict(np.zeros((4, 3))), 0.25)


def test_baselines_of_every_kind_of_target():
    rng = np.random.default_rng(3)
    features = rng.uniform(-1, 1, (300, 5))
    labels = np.stack(
        [features[:, 0], features[:, 0] > 0, np.digitize(features[:, 1], [-0.3, 0.3])], 1
    ).astype(float)
    labels[:5, 0] = np.nan
    targets = [
        Target(name="number", unit="eV"),
        Target(name="yes", task="binary", classes=["no", "yes"]),
        Target(name="kind", task="multiclass", classes=["a", "b", "c"]),
    ]
    folds = [(np.arange(200), np.arange(200, 300))]
    found = {
        (b.scores.target, b.method): b.scores
        for b in composition_baselines(features, labels, targets, folds, 20)
    }
    assert len(found) == 9
    mean = np.abs(labels[200:, 0] - np.nanmean(labels[:200, 0])).mean()
    assert found["number", "mean"]["mae"].value == pytest.approx(mean)
    assert found["number", "boosting"]["mae"].value < 0.3 * mean
    assert found["number", "nearest"]["mae"].value < mean
    assert found["yes", "mean"]["balanced_accuracy"].value == 0.5
    assert found["yes", "boosting"]["accuracy"].value > 0.9
    assert found["kind", "boosting"].classes == ("a", "b", "c")
    assert found["kind", "nearest"].count == 100


def test_equal_compositions_are_averaged_by_the_nearest():
    features = np.array([[0.0], [0.0], [1.0], [0.01], [0.9]])
    labels = np.array([[1.0], [3.0], [10.0], [0.0], [0.0]])
    folds = [(np.arange(3), np.arange(3, 5))]
    nearest = composition_baselines(features, labels, [Target(name="x")], folds, 2)[1]
    assert nearest.method == "nearest"
    assert nearest.scores["mae"].value == pytest.approx((2 + 10) / 2)
