"""Wrong calls of `facetry train`: each ends in a line that says what was expected, what came, what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from facetry.cli import run

RECIPE = """
[model]
name = "cgcnn"
channels = 4
layers = 1

[data]
name = "emt-alloys"
limit = { train = 40, val = 10, test = 10 }

[training]
epochs = 1
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe that holds, and things that are in the way."""
    monkeypatch.chdir(tmp_path)
    Path("ok.toml").write_text(RECIPE)
    Path("file").write_text("x")
    Path("folder").mkdir()
    Path("broken.toml").write_text(RECIPE + "seed = = 3\n")
    Path("number.toml").write_text("model = 3\n[data]\nname = 'emt-alloys'\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "train needs a RECIPE, or --model and --data, or --resume FOLDER"),
        ("--model cgcnn", "--data is missing"),
        ("--data emt-alloys", "--model is missing"),
        ("recipes/cgcnn-perov.toml", "nor a recipe that ships; did you mean 'cgcnn-perov5'?"),
        ("zzz.toml", "named MODEL-DATA, such as"),
        ("folder", "expected a recipe, which is a .toml file; this is a folder"),
        ("broken.toml", "broken.toml: not valid TOML: Invalid value (at line 13, column 8): seed = = 3"),
        ("number.toml", "model: expected a table, [model] with its keys below it, got 3"),
        ("ok.toml --set training.epochs=2 --set training.steps=3", "epochs or training.steps, not both"),
        ("ok.toml --set training.lr=1", "unknown key 'training.lr'; did you mean 'learning_rate'?"),
        ("ok.toml --set training.epochs=some", "training.epochs: expected a whole number, got 'some'"),
        ("ok.toml --set model.channels=-4", "model.channels: expected a number above 0, got -4"),
        ("ok.toml --set model.channels=0", "model.channels: expected a number above 0, got 0"),
        ("ok.toml --set data.limit=0", "one number for each of train, val, test; above 0, got 0"),
        ("ok.toml --set data.limit.tarin=4", "one number for each of train, val, test; above 0, got {"),
        ("ok.toml --device gpu", "--device gpu: expected auto, cpu, cuda or mps"),
        ("ok.toml --set training.devices=99", "training.devices: expected at most "),
        ("ok.toml -o file", "expected a folder for the run, file is a file; choose another with -o"),
        ("ok.toml -o file/run", "file/run: expected a folder for the run, file is a file"),
        ("--resume none", "expected a run folder with recipe.toml, there is no such folder"),
        ("--resume folder", "expected a run folder with recipe.toml, found none; start the run again"),
        ("--resume ok.toml", "this is a file; to begin a run: facetry train ok.toml"),
    ],
)  # fmt: skip
def test_each_says_what_to_do(words, said, place, capsys):
    before = sorted(place.rglob("*"))
    assert run(["train", *words.split()]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert len(line) < 400
    assert sorted(place.rglob("*")) == before  # nothing was written


def test_no_accelerator(place, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run(["train", "ok.toml", "--device", "cuda"]) == 2
    assert "expected a device that torch can use, 'cuda' is none here; take" in capsys.readouterr().err


def test_a_folder_where_nobody_may_write(place, capsys, monkeypatch):
    """The system's answer is put in its mouth: root may write everywhere."""

    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        assert run(["train", "ok.toml", "-o", "folder/run"]) == 2
    said = capsys.readouterr().err
    assert "folder/run: the folder of the run could not be made (Permission denied); choose another" in said


def test_folds_are_chosen(place, data_folder, monkeypatch, capsys):
    monkeypatch.setenv("FACETRY_DATA", str(data_folder))
    assert run(["train", "--model", "cgcnn", "--data", "jdft2d"]) == 2
    assert "divided into 5 folds; choose one: data.fold = 0 to 4 in the recipe" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_begun_ended_and_begun_again(place, monkeypatch, capsys):
    """SIGTERM is Ctrl-C; the receipt names the command that began the run; what is there is not lost."""
    from facetry.training import run as runs

    original = runs.Training._epoch_ended

    def stop(self, fitting, chosen):
        original(self, fitting, chosen)
        os.kill(os.getpid(), signal.SIGTERM)

    call = ["train", "ok.toml", "-o", "runs/a", "--set", "training.epochs=3", "--quiet"]
    monkeypatch.setattr("sys.argv", ["facetry", *call])
    with monkeypatch.context() as patch:
        patch.setattr(runs.Training, "_epoch_ended", stop)
        assert run(call) == 130
    assert "stopped; go on with: facetry train --resume runs/a" in capsys.readouterr().err
    assert run(call) == 2
    assert "has not ended; go on with: facetry train --resume runs/a" in capsys.readouterr().err
    assert run(["train", "runs/a"]) == 2
    assert "this is the folder of a run; go on with it by --resume runs/a" in capsys.readouterr().err
    assert run(["train", "--resume", "a"]) == 2
    assert "did you mean runs/a?" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["facetry", "train", "--resume", "runs/a"])
    assert run(["train", "--resume", "runs/a", "--quiet"]) == 0
    assert "next    facetry predict runs/a FILES -o predictions.csv" in capsys.readouterr().out
    receipt = Path("runs/a/receipt.json").read_text()
    assert json.loads(receipt)["command"] == " ".join(["facetry", *call])
    assert json.loads(receipt)["starts"] == 2
    assert run(call) == 2
    assert "has ended; use it (facetry evaluate runs/a)" in capsys.readouterr().err
    assert run(["train", "--resume", "runs/a"]) == 0
    assert Path("runs/a/receipt.json").read_text() == receipt
    shutil.rmtree("runs/a/resume")
    assert run(["train", "--resume", "runs/a"]) == 2
    assert "this run has ended, and what it could go on from (resume/) is gone" in capsys.readouterr().err
    assert Path("runs/a/receipt.json").read_text() == receipt
