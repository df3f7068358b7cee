"""The command line: fast help, one-line errors, exit codes, tables that fit the promise."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import facetry
from facetry.card import ModelCard, Target
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.models import MODELS
from facetry.tasks.predict import COLUMNS
from facetry.training import save_model

VERBS = (
    "demo",
    "train",
    "evaluate",
    "predict",
    "relax",
    "embed",
    "explain",
    "generate",
    "match",
    "dataset",
    "doctor",
)
HEAVY = ("torch", "lightning", "ase", "pymatgen", "matplotlib", "numpy", "scipy", "pyarrow")
SITES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def perovskite(a=3.905, numbers=(38, 22, 8, 8, 8), name="STO"):
    return Crystal(a * np.eye(3), SITES, list(numbers), name=name)


def save_tiny(folder, **other):
    torch.manual_seed(0)
    model = MODELS["icomformer"](layers=1, channels=8, k=4)
    model.card = ModelCard(
        model="icomformer",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="energy_per_atom", unit="eV/atom", mean=-3.0, std=0.5, quantile=0.2)],
        elements=[8, 22, 38],
        data={"name": "emt-alloys"},
        **other,
    )
    return save_model(model, folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def structures(tmp_path):
    folder = tmp_path / "structures"
    folder.mkdir()
    perovskite().write(folder / "a.cif")
    perovskite(4.0).write(folder / "b.vasp")
    return folder


def python(*arguments, **other):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, **other)


def one_line(text):
    """The text is one line of complaint, without a traceback."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("facetry: ")
    assert "Traceback" not in text
    return lines[0]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --- help and imports ---------------------------------------------------------------------------------------


def test_help_is_fast_and_light():
    code = f"import sys, facetry.cli as c; c.run(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code).stdout.strip().endswith("[]")
    best = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("-m", "facetry", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU time is the wall time of an idle machine, and does not suffer from the neighbours
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.returncode == 0
    assert best <= 0.4
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_importing_the_package_is_light():
    code = f"import sys, facetry; dir(facetry); print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_the_names_that_stay_fixed_exist():
    for name in facetry.__all__:
        assert getattr(facetry, name) is not None
    assert facetry.models.MODELS is MODELS
    assert callable(facetry.graph.radius)
    assert callable(facetry.graph.k_nearest)
    with pytest.raises(AttributeError, match="predict"):
        _ = facetry.prediction


@pytest.mark.parametrize("verb", [*VERBS, "dataset list", "dataset info", "dataset get", "dataset import"])
def test_every_verb_has_help(verb, capsys):
    assert run([*verb.split(), "--help"]) == 0
    assert "Usage: facetry " + verb in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"facetry {facetry.__version__}"


# --- mistakes in the call -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prediction"], "prediction"),
        (["predict", "--colour"], "--colour"),
        (["predict"], "MODEL"),
        (["predict", "no-such-model", "STRUCTURES"], "no-such-model"),
        (["predict", "MODEL", "STRUCTURES", "x.cif"], "x.cif: no such file"),
        (["predict", "MODEL", "STRUCTURES", "-o", "out.xlsx"], ".csv, .jsonl, .parquet"),
        (["predict", "MODEL", "STRUCTURES", "-o", "missing/out.csv"], "missing"),
        (["predict", "MODEL", "STRUCTURES", "--device", "tpu9"], "--device"),
        (["predict", "MODEL", "STRUCTURES", "--batch-size", "0"], "batch-size"),
        (["predict", "MODEL", "EMPTY"], "empty"),
        (["embed", "MODEL", "STRUCTURES", "-o", "out.csv"], ".parquet"),
        (["embed", "MODEL", "EMPTY", "-o", "out.parquet"], "empty"),
        (["train"], "RECIPE"),
        (["train", "no-recipe"], "no-recipe"),
        (["train", "--model", "icomfomer", "--data", "emt-alloys"], "icomformer"),
        (["train", "demo", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["train", "demo", "--set", "training"], "training"),
        (["train", "--resume", "no-run"], "no-run"),
        (["train", "demo", "--resume", "no-run"], "RECIPE"),
        (["evaluate", "MODEL", "--data", "perov6"], "perov5"),
        (["evaluate", "MODEL", "--split", "exam"], "exam"),
        (["dataset", "info", "perov6"], "perov5"),
        (["dataset", "import", "perov5", "no-file.csv"], "no-file.csv"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments, words, model_folder, structures, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"MODEL": str(model_folder), "STRUCTURES": str(structures), "EMPTY": "empty"}
    assert run([places.get(a, a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert words in one_line(captured.err)
    assert captured.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "structures"]  # nothing was written


def test_debug_shows_the_traceback(capsys):
    assert run(["predict", "no-such-model", "x.cif", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_exit_1(capsys, monkeypatch):
    def broken(name):
        raise RuntimeError("something\nodd")

    monkeypatch.setattr("facetry.data.info", broken)
    assert run(["dataset", "info", "perov5"]) == 1
    assert one_line(capsys.readouterr().err) == "facetry: RuntimeError: something odd; --debug shows where"


def test_interruption(capsys, monkeypatch):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("facetry.data.info", stop)
    assert run(["dataset", "info", "perov5"]) == 130


def test_an_interrupted_training_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*arguments, out, **options):
        out.mkdir()
        (out / "recipe.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("facetry.training.train_recipe", stop)
    assert run(["train", "demo", "-o", str(tmp_path / "a")]) == 130
    assert one_line(capsys.readouterr().err).endswith(f"go on with: facetry train --resume {tmp_path / 'a'}")


# --- predict ------------------------------------------------------------------------------------------------


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
import resource, sys
import torch
torch.set_num_threads(1)
import facetry.cli, facetry.tasks.predict, facetry.training, facetry.io
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
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


# --- bad models ---------------------------------------------------------------------------------------------


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


# --- bad crystals through the whole way ---------------------------------------------------------------------


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


def test_own_data_with_mistakes(model_folder, structures, tmp_path, capsys):
    """A CSV without header, with a missing file, with a word for a number: one line that says where."""
    cases = {
        "a.cif,1.5\nb.vasp,2.5\n": "header",
        "file,energy_per_atom\na.cif,1.5\nlost.cif,2.0\n": "lost.cif",
        "file,energy_per_atom\na.cif,1.5\nb.vasp,high\n": "high",
    }
    for text, word in cases.items():
        (structures / "targets.csv").write_text(text)
        assert run(["evaluate", str(model_folder), "--data", str(structures), "--split", "all"]) == 2
        assert word in one_line(capsys.readouterr().err)


# --- embed, evaluate, dataset, doctor -----------------------------------------------------------------------


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


def test_evaluate_own_folder(model_folder, structures, tmp_path, capsys):
    values = [r.value for r in facetry.predict(str(model_folder), str(structures))]
    lines = [f"{name},{value + 0.5}" for name, value in zip(("a.cif", "b.vasp"), values, strict=True)]
    (structures / "targets.csv").write_text("\n".join(["file,energy_per_atom", *lines]))
    out = tmp_path / "results"
    arguments = ["--data", str(structures), "--split", "all", "-o", str(out), "--json"]
    assert run(["evaluate", str(model_folder), *arguments]) == 0
    (found,) = json.loads(capsys.readouterr().out)["targets"]
    assert found["count"] == 2
    assert found["metrics"]["mae"]["value"] == pytest.approx(0.5, abs=1e-5)
    assert found["metrics"]["coverage"]["value"] == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "parity.png",
        "predictions.csv",
        "report.html",
        "scores.json",
    ]
    row = rows_of(out / "predictions.csv")[0]
    assert float(row["true"]) - float(row["value"]) == pytest.approx(0.5, abs=1e-5)


def test_dataset_commands(capsys):
    assert run(["dataset", "list", "--json"]) == 0
    sets = {s["name"]: s for s in json.loads(capsys.readouterr().out)}
    assert sets["perov5"]["crystals"] == 18928
    assert sets["emt-alloys"]["here"]
    assert run(["dataset", "info", "perov5"]) == 0
    assert "heat_all" in capsys.readouterr().out
    assert run(["dataset", "list"]) == 0
    assert "emt-alloys" in capsys.readouterr().out


def test_doctor(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert all(check["ok"] for check in found["checks"])
    assert run(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_doctor_tells_what_is_wrong(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    monkeypatch.setattr("facetry.doctor._check_symmetry", broken)
    assert run(["doctor"]) == 1
    assert "FAIL rotation, cell choice" in capsys.readouterr().out


def test_train_evaluate_predict_in_a_shell(tmp_path, capsys, monkeypatch, structures):
    """The whole way with the smallest model: run folder, report, no second run over the first."""
    monkeypatch.chdir(tmp_path)
    small = "training.epochs=1 training.batch_size=8 data.limit=16 model.channels=8 model.layers=1 model.k=4"
    overrides = [part for pair in small.split() for part in ("--set", pair)]
    options = ["--model", "icomformer", "--data", "emt-alloys", "--target", "energy_per_atom", "--seed", "3"]
    assert run(["train", *options, *overrides, "-o", "runs/a", "--threads", "1", "--quiet", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["metrics"]["test"]["mae"] > 0
    names = {p.name for p in (tmp_path / "runs" / "a").iterdir()}
    assert {
        "model.json",
        "model.safetensors",
        "recipe.toml",
        "metrics.csv",
        "report.html",
        "receipt.json",
    } <= names
    assert "seed = 3" in (tmp_path / "runs" / "a" / "recipe.toml").read_text()
    assert run(["train", *options, *overrides, "-o", "runs/a", "--quiet"]) == 2
    assert "already holds a run" in one_line(capsys.readouterr().err)
    assert run(["train", "--resume", "runs/a"]) == 0
    shown = capsys.readouterr()
    first = [line.split()[0] for line in shown.out.splitlines()]
    assert first == ["energy_per_atom:", "mae", "rmse", "r2", "coverage", "model", "report"]
    assert shown.err == ""
    assert run(["evaluate", "runs/a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets"][0]["metrics"]["mae"]["value"] == pytest.approx(answer["metrics"]["test"]["mae"])
    assert run(["predict", "a", str(structures), "--json"]) == 0  # runs/a by its name
    assert {row["unit"] for row in json.loads(capsys.readouterr().out)} == {"eV/atom"}
