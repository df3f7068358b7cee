"""A table that a kill left unfinished is completed: no row lost, none doubled, every bit the same."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch

from facetry.card import ModelCard, Target
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.io import ReadError, read_many, write
from facetry.models import MODELS
from facetry.tasks.inference import Limits, whole_chunks
from facetry.tasks.table_writer import TableWriter, mark_of
from facetry.tasks.unfinished import finished_part
from facetry.training import save_model

COLUMNS = {"source": "text", "atoms": "int", "status": "text", "value": "float"}
SMALL = Limits(4, 1000, 1000)


def crystal(size=3.9, copies=1, name=""):
    return Crystal(size * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17], name=name).supercell(
        (1, 1, copies)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of models with one and with two targets."""
    return {count: saved(count, tmp_path_factory.mktemp("model")) for count in (1, 2)}


@pytest.fixture(scope="module")
def model_folder(models):
    return models[1]


def saved(outputs, folder):
    torch.manual_seed(0)
    model = MODELS["cgcnn"](outputs=outputs, channels=8, layers=1)
    names = ("energy_per_atom", "gap")[:outputs]
    model.card = ModelCard(
        model="cgcnn",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name=name, unit="eV", mean=-3.0, std=0.5, quantile=0.2) for name in names],
    )
    return save_model(model, folder)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """330 structures: loose, several in one file, in an archive, in a table; some broken."""
    folder = tmp_path_factory.mktemp("structures")
    (folder / "loose").mkdir()
    for i in range(150):
        path = folder / "loose" / f"{i:03d}.cif"
        crystal(3.8 + 0.002 * i, 1 + i % 5).write(path)
        if i % 20 == 7:
            path.write_bytes(path.read_bytes()[: 20 * (i % 11)])
    write([crystal(4 + 0.001 * i, name=f"frame{i}") for i in range(90)], folder / "loose" / "100-path.extxyz")
    with tarfile.open(folder / "more.tar.gz", "w:gz") as archive:
        for i in range(70):
            archive.add(folder / "loose" / f"{i + 30:03d}.cif", f"{i}.cif")
    (folder / "list.csv").write_text("file\n" + "loose/000.cif\n" * 9 + "loose/007.cif\nmissing.cif\n" * 5)
    return [str(folder), str(folder / "list.csv"), str(folder / "loose" / "1[45]*.cif")]


def killed(model_folder, places, out, rows):
    """Begin or go on with a table and kill the command once it has so many rows."""
    code = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "import facetry.cli\n"
        "def slowly(results):\n"
        "    for number, result in enumerate(results):\n"
        "        yield [result]\n"
        f"        time.sleep(0.05 if number > {rows} else 0)\n"
        "facetry.cli.predict.groups = slowly\n"
        "sys.exit(facetry.cli.run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "predict", str(model_folder), *places, "-o", str(out), "--resume"]
    growing = out.with_name(out.name + ".rows.csv") if out.suffix == ".parquet" else out
    before = len(growing.read_bytes().splitlines()) if growing.exists() else 0
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            if growing.exists() and len(growing.read_bytes().splitlines()) >= before + rows:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, process.stderr.read().decode()
    finally:
        process.stderr.close()
    return growing


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("suffix", "targets", "kills"), [(".csv", 1, [100, 150]), (".jsonl", 1, [200]), (".parquet", 2, [300])]
)
def test_killed_it_ends_as_if_nothing_had_happened(models, places, tmp_path, capsys, suffix, targets, kills):
    model_folder = models[targets]
    whole, torn = tmp_path / f"whole{suffix}", tmp_path / f"torn{suffix}"
    assert run(["predict", str(model_folder), *places, "-o", str(whole)]) == 3
    said = capsys.readouterr().err
    for rows in kills:
        growing = killed(model_folder, places, torn, rows)
        with open(growing, "ab") as stream:
            stream.write(b'half a row,"of')  # what a kill in the middle of a write leaves
        assert mark_of(torn).exists()
    assert run(["predict", str(model_folder), *places, "-o", str(torn), "--resume"]) == 3
    assert capsys.readouterr().err == said.replace("whole", "torn")
    assert torn.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([whole.name, torn.name])
    assert run(["predict", str(model_folder), *places, "-o", str(torn), "--resume"]) == 3
    assert "is complete" in capsys.readouterr().err
    assert torn.read_bytes() == whole.read_bytes()


def listed(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return [row["source"] for row in csv.DictReader(stream)]


def stopped_table(path, rows=10, about=None):
    """A table whose command died after so many rows."""
    table = TableWriter(path, COLUMNS, {"MODEL": "a"} if about is None else about)
    table.write([{"source": f"{i}.cif", "atoms": 2, "status": "ok", "value": i / 7} for i in range(rows)])
    table._stream.close()
    return path


def test_a_table_is_cut_behind_its_last_whole_chunk(tmp_path):
    path = stopped_table(tmp_path / "out.csv")
    done = finished_part(path, COLUMNS, {"MODEL": "a"}, 1, SMALL)
    assert (done.inputs, done.count, done.complete) == (8, {"ok": 8}, False)
    assert list(done.sources()) == [f"{i}.cif" for i in range(8)]
    assert len(path.read_bytes()[: done.size].splitlines()) == 9
    with TableWriter(path, COLUMNS, {"MODEL": "a"}, done.size) as table:
        table.write([{"source": "new.cif", "status": "failed"}])
    assert listed(path) == [*done.sources(), "new.cif"]
    assert not mark_of(path).exists()


@pytest.mark.parametrize("left", ["nothing", "half a header", "half a mark", "a header"])
def test_a_kill_before_the_first_row(tmp_path, left):
    path = tmp_path / "out.csv"
    if left != "nothing":
        stopped_table(path, 0)
    if left == "half a header":
        path.write_text("source,ato")
    if left == "half a mark":
        mark_of(path).write_text('{"MODEL"')
    done = finished_part(path, COLUMNS, {"MODEL": "a"}, 1, SMALL)
    assert (done.inputs, done.size, done.complete) == (0, 0, False)


def test_chunks_are_cut_as_they_were_made():
    from facetry.tasks.inference import Item, _chunks

    rng = np.random.default_rng(0)
    items = [
        Item("x", None if size == 1 else crystal(4, size // 2)) for size in rng.integers(1, 30, 300).tolist()
    ]
    sizes = [0 if i.crystal is None else len(i.crystal) for i in items]
    for limits in (Limits(7, 60, 1), Limits(3, 10, 1), Limits(100, 25, 1)):
        ends = np.cumsum([0, *(len(chunk) for chunk in _chunks(items, limits))]).tolist()
        for number in range(301):
            assert whole_chunks(sizes[:number], limits) == max(e for e in ends if e < max(number, 1))


def test_other_models_and_options_are_refused(tmp_path):
    path = stopped_table(tmp_path / "out.csv", about={"MODEL": "a", "--batch-size": None})
    with pytest.raises(ValueError, match="made with MODEL a, expected the same, came b; give that again"):
        finished_part(path, COLUMNS, {"MODEL": "b", "--batch-size": None}, 1, SMALL)
    with pytest.raises(ValueError, match="made with --batch-size not given, expected the same, came 8"):
        finished_part(path, COLUMNS, {"MODEL": "a", "--batch-size": 8}, 1, SMALL)
    other = {"source": "text", "value": "float"}
    with pytest.raises(ValueError, match="expected a table with the columns source, value, found source, at"):
        finished_part(path, other, {"MODEL": "a", "--batch-size": None}, 1, SMALL)
    for name, text in (("x.csv", "a,b\n1,2\n"), ("x.jsonl", "[1\n"), ("x.parquet", "PAR1")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: (expected a table|no table to go on with)"):
            finished_part(tmp_path / name, COLUMNS, {}, 1, SMALL)


def test_the_shell_says_what_it_needs(model_folder, places, tmp_path, capsys):
    assert run(["predict", str(model_folder), *places, "--resume"]) == 2
    assert "name it with -o" in capsys.readouterr().err


def sources(places, done):
    return [reading.source for reading in read_many(places, done=done, workers=0)]


@pytest.mark.parametrize("count", [0, 1, 57, 100, 101, 130, 190, 191, 240, 310, 329, 330])
def test_what_was_read_is_not_read_again(places, count):
    every = list(read_many(places, workers=0))
    left = list(read_many(places, workers=0, done=[r.source for r in every[:count]]))
    assert [(r.source, r.name) for r in left] == [(r.source, r.name) for r in every[count:]]
    for new, old in zip(left, every[count:], strict=True):
        assert type(new.result) is type(old.result)
        assert isinstance(new.result, ReadError) or new.result == old.result


def test_other_files_than_before_are_refused(tmp_path):
    for name in "abc":
        crystal().write(tmp_path / f"{name}.cif")
    before = sources(tmp_path, [])
    (tmp_path / "b.cif").rename(tmp_path / "d.cif")
    with pytest.raises(ValueError, match=r"input 2 was .*b\.cif before and is .*c\.cif now; to go on, name"):
        sources(tmp_path, before)
    with pytest.raises(ValueError, match=r"a\.cif was input 4 before and is not there now"):
        sources(tmp_path, [*sources(tmp_path, []), before[0]])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_no_text(model_folder, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    content = crystal().to_text("cif")
    for name in (b"a\xff.cif", b"two  spaces\n.cif", "é.cif".encode()):
        with open(bytes(folder) + b"/" + name, "w") as stream:
            stream.write(content)
    for suffix in ("csv", "jsonl", "parquet"):
        assert run(["predict", str(model_folder), str(folder), "-o", str(tmp_path / f"out.{suffix}")]) == 0
    assert run(["predict", str(model_folder), str(folder)]) == 0
    assert run(["predict", str(model_folder), str(folder), "--json"]) == 0
    assert "a\\udcff.cif" in capsys.readouterr().out
    every = sources(folder, [])
    assert sources(folder, listed(tmp_path / "out.csv")[:2]) == every[2:]
