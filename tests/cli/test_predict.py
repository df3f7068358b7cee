"""`facetry predict` and `facetry embed`: tables that fit the promise, bad inputs, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import facetry
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.tasks.predict import COLUMNS
from tests.cli.calls import one_line, perovskite, python, rows_of, save_tiny


def test_predict_a_good_folder(model_folder, structures, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert run(["predict", str(model_folder), str(structures), "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 rows: 2 ok" in captured.err
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    assert [r["status"] for r in rows] == ["ok", "ok"]
    expected = facetry.predict(str(model_folder), perovskite())[0]
    first = next(r for r in rows if r["source"].endswith("a.cif"))
    assert float(first["value"]) == pytest.approx(expected.value, abs=1e-6)
    assert float(first["upper"]) - float(first["value"]) == pytest.approx(0.2, abs=1e-9)
    assert (first["formula"], first["atoms"], first["unit"]) == ("SrTiO3", "5", "eV/atom")
    assert first["in_domain"] == "true"


def test_predict_a_folder_with_bad_files(model_folder, structures, tmp_path, capsys):
    (structures / "broken.cif").write_text("data_x\n_cell_length_a 5\n")
    (structures / "noise.cif").write_bytes(bytes(range(256)) * 10)
    perovskite(numbers=(56, 22, 8, 8, 8)).write(structures / "foreign.cif")
    mixed = Crystal(4 * np.eye(3), [[0, 0, 0]], [29], [{29: 0.5, 79: 0.5}])
    mixed.write(structures / "mixed.cif")
    out = tmp_path / "out.csv"
    assert run(["predict", str(model_folder), str(structures), "-o", str(out)]) == 3
    rows = {os.path.basename(r["source"]): r for r in rows_of(out)}
    status = {name: r["status"] for name, r in rows.items()}
    assert status == {
        "a.cif": "ok",
        "b.vasp": "ok",
        "broken.cif": "failed",
        "noise.cif": "failed",
        "foreign.cif": "ok",
        "mixed.cif": "skipped",
    }
    assert rows["foreign.cif"]["in_domain"] == "false"
    assert "Ba" in rows["foreign.cif"]["message"]
    assert "partly occupied" in rows["mixed.cif"]["message"] or "shared" in rows["mixed.cif"]["message"]
    assert all(r["message"] for r in rows.values() if r["status"] != "ok")
    assert "3 ok, 1 skipped, 2 failed" in capsys.readouterr().err


def test_predict_prints_json_or_csv(model_folder, structures, capsys):
    assert run(["predict", str(model_folder), str(structures), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [tuple(r) for r in rows] == [COLUMNS] * 2
    assert isinstance(rows[0]["value"], float)
    assert rows[0]["in_domain"] is True
    assert run(["predict", str(model_folder), str(structures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 3


def test_predict_does_not_touch_an_old_table_before_it_has_a_row(model_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.csv").write_text("precious")
    assert run(["predict", str(model_folder), str(tmp_path / "empty"), "-o", str(tmp_path / "out.csv")]) == 2
    assert (tmp_path / "out.csv").read_text() == "precious"


FULL = """
import atexit, resource, sys
import torch
torch.set_num_threads(1)
import facetry.cli, facetry.tasks.predict, facetry.training, facetry.io
before = resource.getrlimit(resource.RLIMIT_FSIZE)
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, before)  # coverage is written then
resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
sys.exit(facetry.cli.run(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_keeps_the_finished_rows(model_folder, tmp_path):
    """The disk ends after 700 bytes; batches of one row, so that some are written before."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12):
        perovskite(3.8 + 0.02 * i).write(folder / f"{i:02d}.vasp")
    code = FULL.replace(
        "sys.exit", "facetry.cli.predict.groups = lambda items: ([i] for i in items)\nsys.exit"
    )
    done = python("-c", code, "predict", model_folder, folder, "-o", "out.csv", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "no space left" in one_line(done.stderr)
    rows = rows_of(tmp_path / "out.csv")
    assert 1 <= len(rows) < 12
    assert all(r["status"] == "ok" and r["value"] for r in rows)
    assert f"the {len(rows)} finished rows are kept" in done.stderr


SLOW = """
import signal, sys, time
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for jobs in the background
torch.set_num_threads(1)
import facetry.cli
def slowly(items):
    for item in items:
        yield [item]
        time.sleep(0.3)
facetry.cli.predict.groups = slowly
sys.exit(facetry.cli.run(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("name", "stop"), [("out.csv", "SIGKILL"), ("out.parquet", "SIGKILL"), ("out.csv", "SIGINT")]
)
def test_finished_rows_survive_a_kill(model_folder, tmp_path, name, stop):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(200):
        perovskite(3.8 + 0.001 * i).write(folder / f"{i:03d}.vasp")
    command = [sys.executable, "-c", SLOW, "predict", str(model_folder), str(folder), "-o", name]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / (f"{name}.rows.csv" if name.endswith(".parquet") else name)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and (not rows.exists() or len(rows.read_text().splitlines()) < 4):
        time.sleep(0.05)
    process.send_signal(getattr(signal, stop))
    _, said = process.communicate(timeout=60)
    finished = rows_of(rows)
    assert 3 <= len(finished) < 200
    assert all(r["status"] == "ok" and r["value"] for r in finished)
    if stop == "SIGINT":
        assert process.returncode == 130
        assert f"{len(finished)} finished rows are in {name}" in one_line(said)


@pytest.mark.parametrize("damage", ["truncated", "reshaped", "missing weights", "card cut"])
def test_damaged_models(damage, tmp_path, structures, capsys):
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "model")
    weights, described = folder / "model.safetensors", folder / "model.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing weights":
        weights.unlink()
    elif damage == "card cut":
        described.write_text(described.read_text()[:50])
    else:
        tensors = load_file(weights)
        name = max(tensors, key=lambda n: tensors[n].numel())
        tensors[name] = tensors[name][:-1].clone()
        save_file(tensors, weights)
    assert run(["predict", str(folder), str(structures)]) == 2
    line = one_line(capsys.readouterr().err)
    assert "model." in line
    if damage == "reshaped":
        assert "shape" in line
        assert name in line


def test_bad_crystals_get_a_reason(model_folder, tmp_path):
    good = perovskite().to_text("cif")
    texts = {
        "good.cif": good,
        "flat.vasp": "flat\n1.0\n4 0 0\n0 4 0\n4 4 0\nSr\n1\nDirect\n0 0 0\n",
        "left.vasp": "left\n1.0\n4 0 0\n0 4 0\n0 0 -4\nSr O\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n",
        "nan.vasp": "nan\n1.0\n4 0 0\n0 4 0\n0 0 4\nSr\n1\nDirect\nnan 0 0\n",
        "element.vasp": "element\n1.0\n4 0 0\n0 4 0\n0 0 4\nQq\n1\nDirect\n0 0 0\n",
        "twice.vasp": "twice\n1.0\n4 0 0\n0 4 0\n0 0 4\nSr O\n1 1\nDirect\n0 0 0\n0 0 0.0001\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    results = {os.path.basename(r.source): r for r in facetry.predict(str(model_folder), str(tmp_path))}
    assert {name: r.status for name, r in results.items()} == {
        "good.cif": "ok",
        "left.vasp": "ok",
        "flat.vasp": "failed",
        "nan.vasp": "failed",
        "element.vasp": "failed",
        "twice.vasp": "failed",
    }
    assert "flat" in results["flat.vasp"].message
    assert "Qq" in results["element.vasp"].message
    assert "sites 0 (Sr) and 1 (O)" in results["twice.vasp"].message
    for result in results.values():
        assert "\n" not in result.message


def test_embed(model_folder, structures, tmp_path, capsys):
    import pyarrow.parquet as pq

    (structures / "broken.cif").write_text("data_x\n")
    out = tmp_path / "v.parquet"
    assert run(["embed", str(model_folder), str(structures), "-o", str(out), "--atoms"]) == 3
    table = pq.read_table(out).to_pydict()
    assert sorted(table["status"]) == ["failed", "ok", "ok"]
    for status, atoms, vector, rows in zip(
        table["status"], table["atoms"], table["vector"], table["atom_vectors"], strict=True
    ):
        if status == "ok":
            assert len(vector) == 8
            assert len(rows) == atoms
        else:
            assert vector is None
            assert rows is None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
