"""Real files, good and bad: every one gets its row."""

from __future__ import annotations

import csv

import torch

from facetry.card import ModelCard, Target
from facetry.cli import run
from facetry.models import MODELS
from facetry.training import save_model


def test_every_file_of_the_zoo_gets_a_row(data_folder, tmp_path, capsys):
    torch.manual_seed(0)
    model = MODELS["icomformer"](layers=1, channels=8, k=6)
    model.card = ModelCard(
        model="icomformer",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="heat_all", unit="eV/cell", quantile=0.1)],
    )
    save_model(model, tmp_path / "model")
    out = tmp_path / "out.csv"
    assert run(["predict", str(tmp_path / "model"), str(data_folder / "cif-zoo"), "-o", str(out)]) == 3
    with open(out, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = {p.name for p in (data_folder / "cif-zoo").iterdir() if p.suffix != ".md"}
    assert {row["source"].rsplit("/", 1)[-1] for row in rows} == files
    status = {row["source"].rsplit("/", 1)[-1]: row["status"] for row in rows}
    assert status["cod_2002248.cif"] == status["raspa_FAU_SI.cif"] == status["pmg_FePO4.vasp"] == "ok"
    assert status["cod_2104374.cif"] == "skipped"
    assert status["pmg_bad_superflat_inf_loop.cif.gz"] == "failed"
    for row in rows:
        assert (row["value"] != "") == (row["status"] == "ok")
        assert row["message"] or row["status"] == "ok"
        assert "\n" not in row["message"]
