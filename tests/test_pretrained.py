"""The models that ship: they load by name, say what they are, and answer as they did when measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import facetry
from facetry.training.checkpoint import pretrained_names
from tests import crystals as zoo

ROOT = Path(__file__).parent.parent


def test_names():
    assert pretrained_names() == ["icomformer-perov5"]


def test_perovskite():
    model = facetry.load("icomformer-perov5")
    titanate, salt = facetry.predict(model, [zoo.srtio3(), zoo.nacl()])
    assert titanate.status == "ok"
    assert titanate.unit == "eV/cell"
    assert titanate.in_domain
    assert titanate.upper - titanate.lower == pytest.approx(0.151, abs=1e-3)
    turned = zoo.rebased(zoo.rotated(zoo.srtio3(), zoo.rotation(1)), zoo.unimodular(2))
    assert facetry.predict(model, turned)[0].value == pytest.approx(titanate.value, abs=1e-5)
    assert not salt.in_domain


def test_card_is_that_of_the_receipt():
    receipt = json.loads((ROOT / "benchmarks/accuracy/perov5-heat_all-icomformer-cpu.json").read_text())
    card = facetry.load("icomformer-perov5").card
    assert card.metrics["test"]["mae"] == receipt["metrics"]["test"][0]["mae"][0]
    assert card.data["hash"] == receipt["data"]["hash"]


def test_error_on_real_crystals(data_folder):
    """The first 200 test crystals: an error within what the receipt's interval allows for so few."""
    model = facetry.load("icomformer-perov5")
    part = facetry.dataset("perov5", target="heat_all").test.select(slice(0, 200))
    values = np.array([p.value for p in facetry.predict(model, part.crystals)])
    assert np.abs(values - part.targets[:, 0]).mean() < 0.055
