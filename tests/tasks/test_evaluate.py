"""Evaluate: labels are matched by name, unit and classes; scores are those of the values."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.card import ModelCard, Target
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset
from facetry.tasks.evaluate import evaluate
from facetry.tasks.predict import predict

from .doubles import Double


def table(rng, count=40):
    return CrystalTable.from_crystals(
        [
            Crystal(4 * np.eye(3), rng.random((n, 3)), rng.integers(1, 50, n).tolist(), name=f"c{i}")
            for i, n in enumerate(rng.integers(1, 6, count))
        ]
    )


def trained(*targets, **other):
    model = Double(outputs=sum(t.columns for t in targets), **other)
    model.card = ModelCard(model="double", options={}, graph={}, targets=list(targets))
    return model


def test_scores_of_known_errors(rng):
    crystals = table(rng)
    model = trained(Target(name="gap", unit="eV", std=2.0, mean=1.0, quantile=0.5))
    values = np.array([p.value for p in predict(model, crystals)])
    shift = np.where(np.arange(40) < 10, 1.0, 0.25)
    truth = values + shift
    truth[-1] = np.nan
    data = Dataset(crystals, truth[:, None], [Target(name="gap", unit="eV")])
    scores = evaluate(model, data, resamples=50)
    assert scores.mae == pytest.approx(shift[:-1].mean())
    assert scores.coverage == pytest.approx(29 / 39)
    assert (scores.count, scores.unit, scores.failed) == (39, "eV", 0)
    assert scores.true_value(0) == pytest.approx(truth[0])
    assert scores.true_value(39) is None
    again = evaluate(model, data, resamples=50)
    assert again["gap"] == scores["gap"]
    assert evaluate(model, data, resamples=50, seed=1)["gap"] != scores["gap"]


def test_other_columns_and_their_order(rng):
    crystals = table(rng)
    model = trained(Target(name="a"), Target(name="b"))
    values = np.array([p.value for p in predict(model, crystals)]).reshape(-1, 2)
    info = [Target(name="b"), Target(name="c"), Target(name="a")]
    data = Dataset(crystals, np.stack([values[:, 1], values[:, 0] * 0, values[:, 0]], axis=1), info)
    scores = evaluate(model, data, resamples=2)
    assert scores["a"]["mae"].value == pytest.approx(0, abs=1e-6)
    assert scores["b"]["mae"].value == pytest.approx(0, abs=1e-6)
    single = trained(Target(name="x"))
    column = np.array([p.value for p in predict(single, crystals)])
    renamed = Dataset(crystals, column[:, None], [Target(name="mine")])
    assert evaluate(single, renamed, target="mine", resamples=2).mae == pytest.approx(0, abs=1e-6)


def test_classes(rng):
    crystals = table(rng)
    classes = ["insulator", "metal"]
    model = trained(Target(name="metal", task="binary", classes=classes))
    truth = np.array([classes.index(p.value) for p in predict(model, crystals)], dtype=float)
    data = Dataset(crystals, truth[:, None], [Target(name="metal", task="binary", classes=classes)])
    scores = evaluate(model, data, resamples=5)
    assert scores.accuracy == 1
    assert scores.true_value(0) == "metal"


def test_own_table_is_read_as_the_model_means_it(tmp_path, rng):
    """A column of names, in an order of classes that is not that of the alphabet, one of them missing; and a
    column of 0 and 1 that is a number."""
    phase = Target(name="phase", task="multiclass", classes=["hcp", "bcc", "fcc"])
    model = trained(phase, Target(name="share"))
    crystals = table(rng, 12)
    results = predict(model, crystals)
    rows = ["file,phase,share"]
    for number, crystal in enumerate(crystals):
        crystal.write(tmp_path / f"{number}.vasp")
        rows.append(f"{number}.vasp,{results[2 * number].value},{number % 2}")
    assert {r.value for r in results[::2]} == {"fcc"}
    (tmp_path / "targets.csv").write_text("\n".join(rows))
    scores = evaluate(model, str(tmp_path), split="all", resamples=5)
    assert scores["phase"]["accuracy"].value == 1
    assert scores["phase"].classes == ("hcp", "bcc", "fcc")
    assert scores["share"].task == "regression"
    renamed = Dataset(
        crystals,
        np.full((12, 2), [[0.0, 1.0]]),
        [Target(name="phase", task="multiclass", classes=["fcc", "hcp"]), Target(name="share")],
    )
    assert evaluate(model, renamed, resamples=5)["phase"]["accuracy"].value == 1
    (tmp_path / "targets.csv").write_text("\n".join(rows).replace("fcc", "sc"))
    with pytest.raises(ValueError, match="expected one of hcp, bcc, fcc, got 'sc'"):
        evaluate(model, tmp_path, split="all")


def test_crystals_without_a_value_are_counted(rng):
    crystals = table(rng)
    bad = int((crystals.atomic_numbers == 13).any())
    numbers = [crystals[i].atomic_numbers for i in range(40)]
    poison = int(numbers[3][0])
    bad = sum(poison in n for n in numbers)
    model = trained(Target(name="gap"), poison=poison)
    scores = evaluate(model, Dataset(crystals, np.zeros((40, 1)), [Target(name="gap")]), resamples=2)
    assert scores.failed == bad
    assert scores.count == 40 - bad
    assert "RuntimeError: poisoned" in str(scores)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (Target(name="other"), "predicts 'gap', but the data has other"),
        (Target(name="gap", unit="meV"), "predicts eV, the labels are in meV"),
        (Target(name="gap", task="binary", classes=["a", "b"]), "regression"),
    ],
)
def test_labels_that_mean_something_else_are_refused(info, words, rng):
    data = Dataset(table(rng, 3), np.zeros((3, 1)), [info])
    with pytest.raises(ValueError, match=words):
        evaluate(trained(Target(name="gap", unit="eV")), data)


def test_untrained_models_and_unknown_splits_are_refused(rng):
    data = Dataset(table(rng, 3), np.zeros((3, 1)), [Target(name="gap")])
    with pytest.raises(ValueError, match="train it first"):
        evaluate(Double(), data)
    with pytest.raises(ValueError, match="train, val, test, all"):
        evaluate(trained(Target(name="gap")), data, split="exam")
