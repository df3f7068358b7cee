"""Your own files: what works, and what every mistake says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from facetry.crystal import Crystal
from facetry.data import CrystalTable, dataset
from facetry.data.crystals import TableError
from facetry.data.tables import own_splits

METALS = ("Cu", "Ag", "Au", "Al", "Ni", "Pd", "Pt", "Fe", "W", "Mo")


def rocksalt(edge: float) -> Crystal:
    fcc = 0.5 * edge * (np.ones((3, 3)) - np.eye(3))
    return Crystal(fcc, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17], name="NaCl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten rocksalt cells as POSCAR files and a CSV with a target for each."""
    place = tmp_path / "mine"
    place.mkdir()
    lines = ["file,energy [eV/atom],stable"]
    for i in range(10):
        rocksalt(5 + 0.1 * i).write(place / f"s{i}.vasp")
        lines.append(f"s{i}.vasp,{0.5 * i},{'yes' if i % 2 else 'no'}")
    (place / "targets.csv").write_text("\n".join(lines) + "\n")
    return place


def rewrite(folder: Path, text: str) -> Path:
    (folder / "targets.csv").write_text(text)
    return folder


def test_a_folder_with_a_csv(folder):
    splits = dataset(folder)
    assert splits.counts == {"train": 8, "val": 1, "test": 1}
    assert [(t.name, t.unit, t.task) for t in splits.target_info] == [
        ("energy", "eV/atom", "regression"),
        ("stable", "", "binary"),
    ]
    everything = {
        n: t for p in splits.parts.values() for n, t in zip(p.names, p.targets.tolist(), strict=True)
    }
    assert everything["s3.vasp"] == [1.5, 1.0]
    assert everything["s4.vasp"] == [2.0, 0.0]
    crystal, targets = next(iter(splits.train))
    assert crystal.formula == "NaCl"
    assert targets.shape == (2,)
    assert not splits.official
    assert "seed 0" in splits.notes[0]
    assert dataset(folder, "energy").train.target_info[0].name == "energy"
    assert dataset(str(folder)).hash == splits.hash
    assert repr(splits.train) == "Dataset(8 crystals; targets: energy [eV/atom], stable)"
    assert repr(splits.train.crystals) == "<CrystalTable of 8 crystals, 16 sites>"
    assert dataset(folder, seed=1).hash != splits.hash


def test_units_missing_labels_and_unlabelled_rows(folder):
    text = "file;a;b [GPa];note\n" + "".join(f"s{i}.vasp;{i};;text {i}\n" for i in range(4))
    text += "s4.vasp;;nan;\ns5.vasp;;7;\n\n"
    splits = own_splits(rewrite(folder, text))
    assert [(t.name, t.unit) for t in splits.target_info] == [("a", ""), ("b", "GPa")]  # note is no number
    assert splits.unlabelled.names.tolist() == ["s4.vasp"]
    rows = np.concatenate([p.targets for p in splits.parts.values()])
    assert np.isnan(rows).sum() == 5
    assert sum(splits.counts.values()) == 5


def test_split_column_and_groups(folder):
    text = "file,y,split,family\n" + "".join(
        f"s{i}.vasp,{i},{['train', 'Validation', 'test'][i % 3]},{i // 2}\n" for i in range(10)
    )
    splits = own_splits(rewrite(folder, text), "y")
    assert splits.counts == {"train": 4, "val": 3, "test": 3}
    assert splits.test.targets[:, 0].tolist() == [2, 5, 8]
    text = text.replace("split,", "part,")
    grouped = own_splits(rewrite(folder, text), "y", group="family", fractions=(0.5, 0.25, 0.25))
    families = [{int(y) // 2 for y in p.targets[:, 0]} for p in grouped.parts.values()]
    assert sum(map(len, families)) == len(set().union(*families)) == 5
    with pytest.raises(TableError, match="no labelled row is left to train on"):
        own_splits(rewrite(folder, text.replace("y,part", "y,split").replace("train", "test")), "y")
    with pytest.raises(
        TableError, match=r"row 1 \(line 2\), column split: expected train, val or test, got 'x'"
    ):
        own_splits(rewrite(folder, "file,y,split\ns0.vasp,1,x\n"))
    # one formula only: everything that is kept together stays in train, as far as it goes
    assert own_splits(rewrite(folder, text), "y", group="formula").counts == {
        "train": 10,
        "val": 0,
        "test": 0,
    }


def test_classes(folder):
    text = "file,phase,known\n" + "".join(f"s{i}.vasp,{'abc'[i % 3]},{i % 2}\n" for i in range(10))
    splits = own_splits(rewrite(folder, text), ["phase", "known"], tasks={"phase": "multiclass"})
    phase, known = splits.target_info
    assert (phase.task, phase.classes, known.task) == ("multiclass", ["a", "b", "c"], "binary")
    row = dict(zip(splits.train.names, splits.train.targets.tolist(), strict=True))
    name = next(iter(row))
    assert row[name] == [int(name[1]) % 3, int(name[1]) % 2]
    with pytest.raises(
        TableError,
        match=r"row 1 .*column phase: expected a number .*got .a.; 9 more.*data.tasks.phase=multiclass",
    ):
        own_splits(folder, "phase")
    assert own_splits(folder, "known", tasks={"known": "regression"}).target_info[0].task == "regression"


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        ("yes no", ["no", "yes"]),
        ("True False", ["False", "True"]),
        ("YES no yes yes", ["no", "yes"]),
        ("TRUE", ["FALSE", "TRUE"]),
        ("1 0", ["0", "1"]),
        ("1.0 0.0", ["0", "1"]),
    ],
)
def test_truth_keeps_the_words_of_the_table(folder, cells, classes):
    words = cells.split()
    rows = [f"s{i}.vasp,{words[i % len(words)]}" for i in range(10)]
    (target,) = dataset(rewrite(folder, "\n".join(["file,stable", *rows]))).target_info
    assert (target.task, target.classes) == ("binary", classes)


def test_names_and_order_of_classes(folder):
    words = ["metal", "insulator"]
    rows = [f"s{i}.vasp,{words[i % 2]}" for i in range(10)]
    rewrite(folder, "\n".join(["file,kind", *rows]))

    def labels(**how):
        splits = dataset(folder, fractions=(1.0, 0.0, 0.0), **how)
        return splits.target_info[0], splits.train.targets[:2, 0].tolist()

    target, first = labels(tasks={"kind": "binary"})
    assert (target.task, target.classes, first) == ("binary", ["insulator", "metal"], [1.0, 0.0])
    target, first = labels(classes={"kind": ["metal", "half-metal", "insulator"]})
    assert (target.task, len(target.classes), first) == ("multiclass", 3, [0.0, 2.0])
    with pytest.raises(TableError, match=r"row 1 .*expected one of insulator, semi, got 'metal'; 4 more"):
        labels(classes={"kind": ["insulator", "semi"]})
    rewrite(folder, "\n".join(["file,kind", *(f"s{i}.vasp,{'abc'[: 1 + i % 3]}" for i in range(10))]))
    with pytest.raises(TableError, match="expected two classes, got 3: a, ab, abc"):
        labels(tasks={"kind": "binary"})
    rewrite(folder, "\n".join(["file,kind", *(f"s{i}.vasp,one" for i in range(10))]))
    with pytest.raises(TableError, match="every label is 'one'"):
        labels(tasks={"kind": "multiclass"})


def test_text_of_cif_in_a_table(tmp_path):
    import csv

    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "cif", "gap"])
        for i in range(6):
            writer.writerow([f"x{i}", rocksalt(5 + 0.1 * i).to_text("cif") if i != 2 else "data_broken", i])
        writer.writerow(["two", rocksalt(5).to_text("cif") + rocksalt(6).to_text("cif"), 1])
    splits = own_splits(tmp_path / "t.csv")
    assert {s.source for s in splits.skipped} == {"x2", "two"}
    assert "needs exactly one" in splits.skipped[1].reason
    assert [s.row for s in splits.skipped] == [3, 7]
    assert not splits.complete
    assert sum(splits.counts.values()) == 5
    everything = {n: t for p in splits.parts.values() for n, t in zip(p.names, p.targets[:, 0], strict=True)}
    assert everything["x5"] == 5


def test_parquet(tmp_path):
    table = CrystalTable.from_crystals([rocksalt(5 + 0.1 * i) for i in range(9)])
    table.names[:] = [f"n{i}" for i in range(9)]
    table.frac_coords[7] = table.frac_coords[6]  # n3: two atoms on one site
    arrow = table.to_arrow().append_column("y", [[1.0, None, *map(float, range(7))]])
    pq.write_table(arrow, tmp_path / "own.parquet")
    splits = own_splits(tmp_path / "own.parquet")
    assert [(s.source, s.row) for s in splits.skipped] == [("n3", 4)]
    assert splits.unlabelled.names.tolist() == ["n1"]
    assert sum(splits.counts.values()) == 7
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(TableError, match=r"broken.parquet: not readable as Parquet"):
        own_splits(tmp_path / "broken.parquet")


def test_a_bad_structure_costs_its_row_only(folder):
    (folder / "s2.vasp").write_text("nonsense\n")
    (folder / "s5.txt").write_text("nothing")
    text = (folder / "targets.csv").read_text().replace("s5.vasp", "s5.txt")
    splits = own_splits(rewrite(folder, text))
    assert [s.source for s in splits.skipped] == ["s2.vasp", "s5.txt"]
    assert all(s.reason for s in splits.skipped)
    assert sum(splits.counts.values()) == 8
    for path in folder.glob("s*"):
        path.write_text("nonsense\n")
    with pytest.raises(TableError, match=r"none of the 10 structures could be read: s0.vasp: "):
        own_splits(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "s0.vasp,1.0\ns1.vasp,2.0\n",
            r"no header: .*columns, one of them file or cif .*it is 's0.vasp,1.0'",
        ),
        ("name,y\ns0.vasp,1.0\n", r"no header: .*it is 'name,y'"),
        ("", "the table is empty"),
        ("file,y\n", "a header but no rows"),
        (
            "file,y\ns0.vasp,1\nlost.vasp,2\n,3\n",
            r"2 of 3 files are not in .*: row 2 \(line 3\): lost.vasp; row 3 .*empty",
        ),
        (
            "file,y\ns0.vasp,1\n\ns1.vasp,much\n",
            r"row 2 \(line 4\), column y: expected a number .*got 'much'",
        ),
        ("file,y\ns0.vasp,1\ns1.vasp,inf\n", r"row 2 \(line 3\), column y: expected a number .*got 'inf'"),
        ("file,y\ns0.vasp,1\ns0.vasp,2\n", r"row 2 \(line 3\): s0.vasp is already in row 1"),
        ("file,y\ns0.vasp,1,2\n", "line 2 has 3 cells, the header names 2 columns"),
        ("file,y,Y\ns0.vasp,1,2\n", "column needs a name of its own; 'y' is there twice"),
        ("file,\ns0.vasp,1\n", "column 2 has no name"),
        (
            "file,y\ns0.vasp,much\n",
            r"no column of numbers to learn; .*row 1, column y: 'much' is not a number",
        ),
        ("file\ns0.vasp\n", "no column of numbers to learn"),
        ("file,y\ns0.vasp,\n", "no column of numbers to learn"),
    ],
)
def test_mistakes_are_named(folder, text, message):
    with pytest.raises(TableError, match=rf"targets.csv: .*{message}|targets.csv: {message}"):
        own_splits(rewrite(folder, text))


def test_mistakes_around_the_table(folder, tmp_path):
    with pytest.raises(TableError, match="no column 'gap'; targets there: energy, stable"):
        dataset(folder, "gap")
    with pytest.raises(ValueError, match="no data set and no file or folder 'perov55' "):
        dataset("perov55")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TableError, match="empty: the folder is empty"):
        dataset(empty)
    rocksalt(5).write(empty / "a.cif")
    with pytest.raises(TableError, match="no CSV that says the targets"):
        dataset(empty)
    (folder / "more.csv").write_text("file,y\n")
    with pytest.raises(TableError, match="2 CSV files"):
        dataset(folder)
    with pytest.raises(TableError, match=r"a.cif: expected a folder with a CSV"):
        dataset(empty / "a.cif")
    (folder / "more.csv").write_bytes("file,größe\n".encode("latin-1"))
    with pytest.raises(TableError, match=r"not UTF-8 text"):
        dataset(folder / "more.csv")
    with pytest.raises(ValueError, match="have no folds"):
        dataset(folder / "targets.csv", fold=0)
    with pytest.raises(ValueError, match="fractions: expected three shares"):
        dataset(folder / "targets.csv", fractions=(0.0, 0.5, 0.5))


def test_excel_habits(folder):
    (folder / "targets.csv").write_bytes("﻿File,y\r\ns0.vasp,1\r\ns1.vasp,2\r\ns2.vasp,3\r\n".encode())
    assert own_splits(folder).counts == {"train": 1, "val": 1, "test": 1}
