"""Metrics against plain formulas and worked numbers; intervals against theory."""

import json

import numpy as np
import pytest

from facetry.evaluation.metrics import Scores, bootstrap, classification_scores, regression_scores


def test_regression_worked_numbers():
    true = np.array([1.0, 2.0, 3.0, 4.0])
    predicted = np.array([1.0, 2.5, 2.0, 4.0])
    scores = regression_scores(predicted, true, predicted - 0.6, predicted + 0.6, target="gap", unit="eV")
    assert scores["mae"].value == pytest.approx(0.375)
    assert scores["rmse"].value == pytest.approx(np.sqrt(1.25 / 4))
    assert scores["r2"].value == pytest.approx(1 - 1.25 / 5)
    assert scores["coverage"].value == pytest.approx(0.75)
    assert scores.count == 4
    assert "0.375 eV" in str(scores)


def test_missing_labels_and_failed_predictions_are_left_out():
    scores = regression_scores(np.array([1.0, np.nan, 3.0]), np.array([2.0, 1.0, np.nan]))
    assert scores.count == 1
    assert scores["mae"].value == 1.0
    assert np.isnan(scores["r2"].value)


def test_no_crystals_gives_undefined_metrics_that_json_can_hold():
    scores = Scores((regression_scores(np.zeros(0), np.zeros(0), target="gap"),))
    assert scores.count == 0
    assert json.loads(json.dumps(scores.to_dict()))["targets"][0]["metrics"]["mae"]["value"] is None


def test_r2_survives_a_large_offset():
    rng = np.random.default_rng(0)
    true = rng.normal(size=500)
    predicted = true + 0.1 * rng.normal(size=500)
    shifted = regression_scores(predicted + 1e6, true + 1e6)["r2"].value
    assert shifted == pytest.approx(regression_scores(predicted, true)["r2"].value, abs=1e-6)


def test_bootstrap_is_seeded_and_agrees_with_theory():
    values = np.random.default_rng(5).normal(size=2000)

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    one, two = (bootstrap({"mean": mean}, len(values), seed=7)["mean"] for _ in range(2))
    assert one == two
    assert bootstrap({"mean": mean}, len(values), seed=8)["mean"] != one
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert one.upper - one.value == pytest.approx(half, rel=0.15)
    assert one.value - one.lower == pytest.approx(half, rel=0.15)


def test_bootstrap_does_not_depend_on_the_chunk(monkeypatch):
    values = np.arange(50.0)

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    whole = bootstrap({"mean": mean}, 50, seed=1)
    monkeypatch.setattr("facetry.evaluation.metrics._CHUNK_ELEMENTS", 350)
    assert bootstrap({"mean": mean}, 50, seed=1) == whole


def brute_auc(score, positive):
    above = score[positive][:, None] - score[~positive][None]
    return np.mean((above > 0) + 0.5 * (above == 0))


def test_classification_against_plain_formulas():
    rng = np.random.default_rng(2)
    true = rng.integers(0, 2, 300)
    p = np.round(np.clip(0.3 + 0.4 * true + 0.3 * rng.normal(size=300), 0, 1), 1)  # many ties
    scores = classification_scores(np.stack([1 - p, p], axis=1), true, classes=["insulator", "metal"])
    predicted = (p > 0.5).astype(int)
    hit = np.sum((predicted == 1) & (true == 1))
    precision, recall = hit / np.sum(predicted == 1), hit / np.sum(true == 1)
    assert scores.task == "binary"
    assert scores["accuracy"].value == pytest.approx(np.mean(predicted == true))
    assert scores["precision[metal]"].value == pytest.approx(precision)
    assert scores["recall[metal]"].value == pytest.approx(recall)
    assert scores["f1[metal]"].value == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores["roc_auc"].value == pytest.approx(brute_auc(p, true == 1))
    assert scores["roc_auc"].lower < scores["roc_auc"].value < scores["roc_auc"].upper


def test_three_classes_and_unlabelled_rows():
    true = np.array([0, 1, 2, 2, -1])
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]
    )
    scores = classification_scores(probabilities, true)
    assert scores.count == 4
    assert scores["accuracy"].value == 0.75
    assert scores["balanced_accuracy"].value == pytest.approx((1 + 1 + 0.5) / 3)
    expected = np.mean([brute_auc(probabilities[:4, c], true[:4] == c) for c in range(3)])
    assert scores["roc_auc"].value == pytest.approx(expected)


def test_calibration_error_is_small_when_probabilities_are_honest():
    rng = np.random.default_rng(3)
    p = rng.uniform(size=20000)
    true = (rng.uniform(size=20000) < p).astype(int)
    honest = classification_scores(np.stack([1 - p, p], axis=1), true, resamples=50)
    assert honest["calibration_error"].value < 0.02
    sure = (p > 0.5).astype(float)
    overconfident = classification_scores(np.stack([1 - sure, sure], axis=1), true, resamples=50)
    assert overconfident["calibration_error"].value == pytest.approx(0.25, abs=0.02)


def test_one_class_only_and_labels_out_of_range():
    scores = classification_scores(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 1]))
    assert np.isnan(scores["roc_auc"].value)
    lines = {line.split()[0]: line.split()[1:] for line in str(scores).splitlines()[1:]}
    assert lines["roc_auc"] == ["-"]
    assert lines["accuracy"][0] == "0.5"
    with pytest.raises(ValueError, match="class 5"):
        classification_scores(np.array([[0.9, 0.1]]), np.array([5]))


def test_scores_read_like_attributes_for_one_target_and_by_name_for_several():
    one = regression_scores(np.array([1.0, 2.0]), np.array([1.5, 2.0]), target="a", unit="eV")
    scores = Scores((one,))
    assert (scores.mae, scores.unit, scores.count) == (0.25, "eV", 2)
    with pytest.raises(AttributeError, match="mae"):
        _ = scores.accuracy
    two = Scores((one, regression_scores(np.array([1.0]), np.array([1.0]), target="b")), failed=3)
    assert two["b"]["mae"].value == 0
    with pytest.raises(AttributeError, match="several targets"):
        _ = two.mae
    with pytest.raises(KeyError, match="a, b"):
        _ = two["c"]
    assert "3 crystals gave no value" in str(two)
