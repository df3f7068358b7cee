"""The command line: fast help, one-line errors, exit codes, the whole way from a table to values."""

from __future__ import annotations

import json
import resource

import pytest

import facetry
from facetry.cli import run
from facetry.models import MODELS
from tests.cli.calls import one_line, python, rows_of
from tests.tasks.test_demo import SMALL

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
    "certify",
    "audit",
    "dataset",
    "reproduce",
    "doctor",
)
HEAVY = ("torch", "lightning", "ase", "pymatgen", "matplotlib", "numpy", "scipy", "pyarrow")


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


# --- evaluate, dataset, doctor ------------------------------------------------------------------------------


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
    assert first == ["energy_per_atom:", "mae", "rmse", "r2", "coverage", "model", "report", "next"]
    assert shown.err == ""
    assert run(["evaluate", "runs/a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets"][0]["metrics"]["mae"]["value"] == pytest.approx(answer["metrics"]["test"]["mae"])
    assert run(["predict", "a", str(structures), "--json"]) == 0  # runs/a by its name
    assert {row["unit"] for row in json.loads(capsys.readouterr().out)} == {"eV/atom"}


def test_demo_in_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["demo", *(word for change in SMALL for word in ("--set", change))]) == 0
    said = capsys.readouterr().out
    for words in ("mae", "Cu3Au.cif", "facetry-demo/run", "report.html", "done in"):
        assert words in said
    assert (tmp_path / "facetry-demo" / "predictions.csv").is_file()
