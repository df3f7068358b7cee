"""On the page of certificates all hold, and a cheap one measured anew agrees."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def certificates() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_certificates", ROOT / "docs" / "certificates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_hold(certificates: ModuleType) -> None:
    from facetry.models import MODELS

    ours = {name for name, model in MODELS.items() if model.__module__.startswith("facetry.")}
    assert {name for name, _ in certificates.RANDOM.values()} == ours
    assert {e["verdict"] for e in certificates.stored().values()} == {"holds"}


@pytest.mark.parametrize("entry", ["lattice_ff"])
def test_measured_again(certificates: ModuleType, entry: str) -> None:
    """The same verdicts; broken symmetries are broken by as much, the others by rounding only."""
    before, threads = certificates.stored()[entry], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        now = certificates.measured(entry)
    finally:
        torch.set_num_threads(threads)
    for key in ("model", "options", "declared", "verdict", "used", "left"):
        assert now[key] == before[key], key
    assert now["spread"] == pytest.approx(before["spread"], rel=1e-4)
    for series, checks in before["checks"].items():
        for check, old in checks.items():
            new = now["checks"][series][check]
            assert (new["verdict"], new["count"]) == (old["verdict"], old["count"]), (series, check)
            if old["verdict"] == "differs":
                assert new["change"] == pytest.approx(old["change"], rel=1e-3)
            else:
                assert new["roundings"] <= new["allowed"]
    for old, new in zip(before["continuity"], now["continuity"], strict=True):
        assert (new["kind"], new["name"], new["problem"]) == (old["kind"], old["name"], old["problem"])
        assert new["jump"] == pytest.approx(old["jump"], rel=0.05, abs=1e-6 * before["spread"])
