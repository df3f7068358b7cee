"""The demo in small: every file it promises, every kind of row."""

from __future__ import annotations

import csv

from facetry.tasks.demo import run_demo

SMALL = [
    "training.epochs=1",
    "training.batch_size=8",
    "training.averaging=none",
    "data.limit=24",
    "model.channels=8",
    "model.layers=1",
    "model.k=4",
]


def test_demo(tmp_path):
    heard = []
    result = run_demo(tmp_path / "demo", SMALL, tell=heard.append, verbose=False)
    assert any("emt-alloys" in line for line in heard)
    assert result.scores.count == len(result.scores.predictions)
    assert result.report.read_text(encoding="utf-8").count("data:image/png;base64") == 2
    with open(result.table, encoding="utf-8", newline="") as stream:
        rows = {row["source"].rsplit("/", 1)[-1]: row for row in csv.DictReader(stream)}
    status = {name: row["status"] for name, row in rows.items()}
    assert status == {
        "Cu3Au.cif": "ok",
        "alloy_1.cif": "ok",
        "alloy_2.vasp": "ok",
        "alloy_3.extxyz": "ok",
        "broken.cif": "failed",
        "disordered_CuAu.cif": "skipped",
        "foreign_Si.cif": "ok",
    }
    assert rows["foreign_Si.cif"]["in_domain"] == "false"
    assert rows["Cu3Au.cif"]["unit"] == "eV/atom"
    assert (tmp_path / "demo" / "run" / "model.safetensors").is_file()
