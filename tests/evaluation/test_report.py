"""The page holds what it should, everything inside one file, and escapes what people name things."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from facetry.evaluation.metrics import Scores, classification_scores, regression_scores
from facetry.evaluation.plots import confusion_plot, learning_plot, parity_plot, reliability, reliability_plot
from facetry.evaluation.report import write_report

PNG = b"\x89PNG\r\n"


def prediction(value, name="x", half=0.3, **other):
    fields = {"value": value, "lower": None, "upper": None, "in_domain": True, "status": "ok", "message": ""}
    if isinstance(value, float):
        fields |= {"lower": value - half, "upper": value + half}
    crystal = SimpleNamespace(formula="SrTiO3")
    return SimpleNamespace(crystal=crystal, name=name, source=f"{name}.cif", unit="eV", **(fields | other))


@pytest.fixture
def scores(rng):
    true = rng.normal(size=60)
    value = true + 0.1 * rng.normal(size=60)
    value[7] += 9.0
    found = regression_scores(value, true, value - 0.3, value + 0.3, target="gap", unit="eV", resamples=20)
    rows = [prediction(float(v), f"mp-{i}") for i, v in enumerate(value)]
    rows[3] = prediction(None, "lost", status="failed", in_domain=None)
    return Scores((found,), 1, rows, true[:, None])


@pytest.fixture
def run_folder(tmp_path):
    card = {
        "model": "icomformer",
        "targets": [{"name": "gap", "unit": "eV"}],
        "data": {"name": "perov5", "hash": "abc123", "train": 100},
        "elements": [1, 8],
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "receipt.json").write_text(
        json.dumps({"command": "facetry train <x>", "shortened": ["3 of 500"]})
    )
    (tmp_path / "recipe.toml").write_text('[data]\nname = "perov5"\n')
    (tmp_path / "metrics.csv").write_text("epoch,train_loss,val_mae\n1,0.9,0.5\n2,0.5,0.4\n3,nan,\n")
    return tmp_path


class Checker(HTMLParser):
    """Collects text, and every address a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.stack, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.stack
    assert not checker.fetched
    assert "<script" not in page
    assert not re.search(r"url\(|@import", page)
    return page, " ".join(checker.text)


def test_full_report(run_folder, scores):
    extra = [prediction(None, "<b>broken<b>", status="failed", message="no sites & no cell")]
    path = write_report(run_folder, scores, predictions=extra)
    page, text = check(path)
    assert page.count("data:image/png;base64") == 2
    for word in (
        "gap",
        "perov5",
        "mean absolute error",
        "Worst predictions",
        "Recipe",
        "Receipt",
        "3 of 500",
    ):
        assert word in text
    worst = text[text.index("Worst predictions") :]
    assert re.search(r"mp-\d+", worst).group() == "mp-7"
    assert "<b>broken<b>" in text  # as text, not as markup
    assert "1 crystals gave no value" in text
    assert [p.name for p in run_folder.glob(".report*")] == []


def test_report_of_a_bare_folder(tmp_path):
    page, _ = check(write_report(tmp_path))
    assert "Scores" not in page


def test_parity_plots_of_few_many_and_no_points(scores):
    assert parity_plot(scores).startswith(PNG)
    many = np.linspace(0, 1, 4000)
    dense = Scores(
        (regression_scores(many, many, target="a", resamples=2),),
        0,
        [prediction(float(v)) for v in many],
        many[:, None],
    )
    assert parity_plot(dense, transparent=True).startswith(PNG)
    none = Scores((regression_scores(many[:0], many[:0], target="a"),), 0, [], np.zeros((0, 1)))
    assert parity_plot(none).startswith(PNG)


def test_confusion_plot():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    true = np.array([0, 1, 1])
    found = classification_scores(probabilities, true, classes=["no", "yes"], target="metal", resamples=2)
    rows = [prediction(v) for v in ("no", "yes", "no")]
    assert confusion_plot(Scores((found,), 0, rows, true[:, None].astype(float))).startswith(PNG)


def test_reliability():
    """Bins of the calibration error: what was said, how often it was right, how many crystals."""
    confidence, right = np.array([0.95, 0.91, 0.65, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    sure, surer = reliability(confidence, right)
    assert sure == pytest.approx((0.65, 1.0, 1))
    assert surer == pytest.approx(((0.95 + 0.91 + 1.0) / 3, 2 / 3, 3))
    probability = np.stack([1 - confidence, confidence], axis=1)
    gap = sum(abs(a - b) * n for a, b, n in (sure, surer)) / 4
    true = right.astype(np.int64)
    found = classification_scores(probability, true, classes=["a", "b"], resamples=1)
    assert found["calibration_error"].value == pytest.approx(gap)
    given = [SimpleNamespace(value="b", probability=p) for p in confidence]
    scores = Scores((found,), 0, given, right[:, None])
    assert reliability_plot(scores).startswith(PNG)
    nothing = [SimpleNamespace(value=None, probability=None)] * 4
    assert reliability_plot(Scores(scores.targets, 4, nothing, right[:, None])) is None


def test_learning_curve_needs_something_to_draw():
    assert learning_plot([]) is None
    assert learning_plot([{"epoch": "1", "seconds": "3"}]) is None
    rows = [{"epoch": str(i), "train_loss": str(1 / i), "val_accuracy": "0.5"} for i in range(1, 4)]
    assert learning_plot(rows).startswith(PNG)
