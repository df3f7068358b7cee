"""Every listed model of every job keeps what it declares, by the measurement that users have."""

from __future__ import annotations

import pytest

from facetry.evaluation.certificate_suite import suite
from facetry.models import MODELS
from facetry.tasks.certify import certify, random_model
from tests.contract.test_symmetry import SMALL

OTHER_JOBS = {"channels": 16, "layers": 1}
NAMES = ("NaCl, conventional cell", "ZnS, wurtzite", "WC, c < a", "SiO2, quartz, left", "GaAs, skewed cell")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_certificate(name):
    options = SMALL.get(name, {}) if MODELS[name].job == "predict" else OTHER_JOBS
    found = certify(random_model(name, options), [c for c in suite() if c.name in NAMES], deformed=2)
    assert found.ok, found
    assert all(row.status == "ok" for row in found.rows)
    assert all(f.count for f in found.series["float64"].values())
