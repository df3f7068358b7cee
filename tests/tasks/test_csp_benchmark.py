"""The benchmark of structures found again: the same crystals for all methods, receipts, going on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks import csp, csp_limits

import facetry
from facetry.crystal import Crystal
from facetry.tasks.energy_chains import EnergyChains
from facetry.tasks.rediscover import chosen_rows, intervals
from facetry.tasks.sampling_store import SamplingStore
from facetry.training import save_model
from tests import crystals as known
from tests.tasks.test_energy_chains import small

pytest.importorskip("pymatgen.core")


class Killed(Exception):
    pass


def test_the_choice_of_crystals_is_fixed():
    assert chosen_rows(5, None).tolist() == chosen_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    rows = chosen_rows(3785, 500)
    assert len(set(rows.tolist())) == 500
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == chosen_rows(3785, 500).tolist()


def test_receipts_of_a_model_and_of_templates(data_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(small(), tmp_path / "energy")
    common = ["--data", "perov5", "--limit", "3", "--samples", "2", "--workers", "1", "--threads", "1"]
    call = ["energy", *common, "-o", "found", "--set", "steps=12", "--batch-size", "2"]
    original, calls = SamplingStore.end, []

    def end(self, group, tensors):
        original(self, group, tensors)
        calls.append(group)
        if len(calls) == 2:
            raise Killed

    monkeypatch.setattr(SamplingStore, "end", end)
    with pytest.raises(Killed):
        csp.main(call)
    receipt = csp.main(call)
    assert calls == [0, 1, 2]
    assert receipt["starts"] == 2
    assert json.loads((tmp_path / "found" / "receipt.json").read_text()) == receipt
    assert receipt["counts"]["samples"] == 6
    assert receipt["method"]["sampler"]["steps"] == 12
    assert [s["k"] for s in receipt["scores"]] == [1, 1, 2, 2]
    assert (
        receipt["limits"]["missed_lower"] + receipt["limits"]["missed_higher"] == receipt["limits"]["missed"]
    )
    assert not (tmp_path / "found" / "resume").exists()
    samples = facetry.read("found/samples.parquet", errors="return")
    assert len(samples) == 6

    again = csp.main(["--method", "template", "--data-train", "perov5", *common, "-o", "templates"])
    assert again["data"]["part"] == receipt["data"]["part"]
    assert again["method"]["options"] == {"data": "perov5", "part": "train"}
    assert "limits" not in again
    assert "first 2" in capsys.readouterr().err


def test_what_limits_a_model():
    """The minimum that belongs to a crystal is not above it; candidates below that tell of a wrong energy."""
    method = EnergyChains(small(), steps=5)
    crystals = [known.srtio3(), known.zno().replace(atomic_numbers=[22, 22, 8, 8])]
    relaxed, energy = csp_limits.minima(method, crystals, csp_limits._DESCENT)
    before = method.energies(crystals)
    assert all(e < b for e, b in zip(energy, before, strict=True))
    assert energy == pytest.approx(method.energies(relaxed), abs=1e-4)
    found = csp_limits.limits(method, crystals, [[energy[0] - 1], [energy[1] + 1]], np.array([False, False]))
    assert (found["missed"], found["missed_lower"], found["missed_higher"]) == (2, 1, 1)
    assert found["mean_energy_above"] == pytest.approx(0.0, abs=1e-9)
    assert isinstance(relaxed[0], Crystal)


def test_intervals_and_mistakes(capsys):
    class Found:
        ks = (1,)

        def best(self, k):
            return np.array([0.1, 0.3, np.nan, np.nan] * 25)

    (row,) = intervals(Found())
    assert row["match_rate"][0] < 0.5 < row["match_rate"][1]
    assert row["rmse"][0] < 0.2 < row["rmse"][1]
    for call in (["--data", "perov5", "-o", "x"], ["m", "--method", "rs", "--data", "perov5", "-o", "x"],
                 ["--method", "template", "--data", "perov5", "-o", "x"],
                 ["m", "--data", "perov5", "--samples", "0", "-o", "x"]):  # fmt: skip
        with pytest.raises(SystemExit):
            csp.main(call)
    assert "expected" in capsys.readouterr().err


def test_the_table_of_the_readme(tmp_path, monkeypatch):
    from benchmarks import tables

    score = {"match_rate": 0.5, "rmse": 0.1, "metre": 0.6, "crmse": 0.3}
    receipt = {
        "seconds": 600.0,
        "hardware": {"threads": 1, "cpu": "a CPU"},
        "scores": [{"k": k, "valid_only": v} | score for k in (1, 20) for v in (False, True)],
        "intervals": [{"k": 20, "match_rate": [0.4, 0.6]}],
    }
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "a.json").write_text(json.dumps(receipt))
    (tmp_path / "accuracy" / "a.toml").write_text(
        'task = "generation"\ndata = "set"\nmodel = "method"\nrun = "1 seed"\nreceipt = "a.json"\n'
        "published = { Other = [99.16, 0.0893] }\n"
    )
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    line = tables.generation().splitlines()[2]
    assert line.startswith(
        "| set | method | 50.0 %, 50.0 % (40.0 to 60.0) | 50.0 %, 50.0 % | 0.1000 | 60.0 %, 0.3000"
    )
    assert "Other 99.16 %, 0.0893" in line
