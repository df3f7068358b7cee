"""The whole audit: planted defects are found, known ones of real sets too; splits train."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import facetry
from facetry import dataset
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.data.crystals import TableError
from tests import crystals as zoo

ELEMENTS = [3, 11, 19, 37, 12, 20, 38, 56, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 13]
ANIONS = [8, 9, 16, 17, 34, 35]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def salts() -> list[tuple[Crystal, float]]:
    """120 crystals of the rock salt type with a smooth label."""
    found = []
    for z in ELEMENTS:
        for anion in ANIONS:
            a = 4.0 + 0.02 * z + 0.03 * anion
            crystal = Crystal(zoo.fcc(a), [[0, 0, 0], [0.5, 0.5, 0.5]], [z, anion], name=f"{z}-{anion}")
            found.append((crystal, -4.0 + 0.02 * z + 0.05 * anion))
    return found


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CSV and one defect of every kind."""
    folder = tmp_path_factory.mktemp("spoilt")
    rows = []
    for number, (crystal, label) in enumerate(salts()):
        rows.append((crystal, label, "train" if number % 5 else "test"))
    base = dict(enumerate(rows))
    copy, label, part = base[1]  # train
    rows.append((zoo.rotated(copy.supercell(2), zoo.rotation(3)), label + 0.8, "test"))  # leak, other label
    parent = base[2][0]
    rows.append(
        (Crystal(parent.lattice * 1.03, parent.frac_coords, parent.atomic_numbers), base[2][1], "test")
    )
    other = Crystal(np.eye(3) * 3.6, [[0, 0, 0], [0.5, 0.5, 0.5]], base[3][0].atomic_numbers)  # polymorph
    rows.append((other, base[3][1], "test"))
    rows.append((Crystal(zoo.fcc(5.6), [[0, 0, 0], [0.5, 0.5, 0.5]], [92, 8]), -2.8, "test"))  # unseen U
    near = Crystal(np.eye(3) * 5, [[0, 0, 0], [0.12, 0, 0]], [13, 8])
    rows.append((near, -3.4, "train"))
    dense = Crystal(zoo.fcc(2.9), [[0, 0, 0], [0.5, 0.5, 0.5]], [56, 35])
    rows.append((dense, -1.2, "train"))
    lines = ["file,formation_energy [eV/atom],split"]
    for number, (crystal, label, part) in enumerate(rows):
        crystal.write(folder / f"{number}.cif")
        value = 1000 * label if number == 31 else label
        lines.append(f"{number}.cif,{value},{part}")
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 4.0\n")
    lines.append("broken.cif,-1,train")
    (folder / "targets.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def found(spoilt: Path) -> facetry.Audit:
    return facetry.audit(spoilt)


def test_every_planted_defect(found):
    cases = {f.key: {(c.crystal, c.other) for c in f.cases} for f in found.findings}
    assert cases["unreadable"] == {("broken.cif", "")}
    assert cases["duplicates"] == {("120.cif", "1.cif")} or cases["duplicates"] == {("1.cif", "120.cif")}
    assert cases["leak (train, test)"] == {("120.cif", "1.cif")}
    assert cases["near leak (train, test)"] == {("121.cif", "2.cif")}
    assert ("122.cif", "3.cif") in cases["polymorphs (train, test)"]
    assert cases["unseen elements (test)"] == {("123.cif", "")}
    assert {c for c, _ in cases["impossible distances"]} == {"124.cif", "125.cif"}
    assert cases["impossible densities"] == {("125.cif", "")}
    assert cases["unit slips (formation_energy)"] == {("31.cif", "")}
    assert found["unit slips (formation_energy)"].cases[0].detail.startswith("meV and eV: 1000 times")
    assert cases["contradicting labels"] in ({("120.cif", "1.cif")}, {("1.cif", "120.cif")})
    assert found.counts == {"train": 98, "test": 28}
    assert found.unreadable == 1
    assert cases["impossible values (formation_energy)"] == {("31.cif", "")}
    assert found.errors == 5  # unreadable, leak, distances, densities, values


def test_baselines_are_honest(found):
    assert found.setting == "fitted to train, tested on test"
    error = {b.method: b.scores["mae"].value for b in found.baselines}
    assert set(error) == {"mean", "nearest", "boosting"}
    assert all(b.scores.count == 28 for b in found.baselines)


def test_written_files(found, tmp_path):
    paths = found.write(tmp_path / "report")
    assert [p.name for p in paths] == ["audit.html", "findings.csv", "audit.json"]
    page = paths[0].read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "leak (train, test)" in page
    rows = rows_of(paths[1])
    assert len(rows) == sum(len(f.cases) for f in found.findings)
    leak = next(r for r in rows if r["finding"] == "leak (train, test)")
    assert (leak["crystal"], leak["part"], leak["other"], leak["other_part"]) == (
        "120.cif",
        "test",
        "1.cif",
        "train",
    )
    assert json.loads(paths[2].read_text())["counts"] == found.counts


def test_names_cannot_break_the_page(tmp_path):
    evil = Crystal(zoo.nacl().lattice, zoo.nacl().frac_coords, [11, 17], name="<script>alert(1)</script>")
    page = facetry.audit([evil, evil]).write(tmp_path)[0].read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("by", ["formula", "prototype"])
def test_split_keeps_together(found, by, tmp_path):
    split = found.split(by)
    identity = found.subject.identity
    part = dict(zip(split.names, split.part.tolist(), strict=True))
    assert sum(split.counts.values()) == 126
    for same in (("120.cif", "1.cif"), ("121.cif", "2.cif")):
        assert part[same[0]] == part[same[1]]
    keys = identity.formulas if by == "formula" else identity.prototypes
    for key in set(keys):
        assert len({p for p, k in zip(split.part.tolist(), keys, strict=True) if k == key}) == 1
    if by == "prototype":  # all but two of the crystals are of the rock salt type
        assert split.largest > 100
    again = found.split(by)
    np.testing.assert_array_equal(split.part, again.part)
    rows = rows_of(split.write(tmp_path / "split.csv"))
    assert list(rows[0]) == ["id", "split", "group"]
    assert {r["id"]: r["split"] for r in rows}["1.cif"] == ("train", "val", "test")[part["1.cif"]]


def test_command_writes_a_split_that_trains(spoilt, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["audit", str(spoilt), "--split-by", "formula", "-o", "split.csv", "--no-baselines"]) == 3
    assert "split by formula: train" in capsys.readouterr().out
    divided = dataset(spoilt, split="split.csv")
    assert divided.notes[-1] == "divided by split.csv"
    train = set(divided.train.crystals.formulas)
    assert train.isdisjoint(divided.test.crystals.formulas)
    again = facetry.audit(divided, baselines=False)
    assert not [f for f in again.findings if f.key.startswith(("leak", "near leak", "polymorphs"))]
    options = ["--set", "data.split=split.csv", "--set", "training.epochs=1", "--set", "model.channels=8"]
    assert run(["train", "--model", "cgcnn", "--data", str(spoilt), *options, "-o", "runs/a", "-q"]) == 0
    receipt = json.loads(Path("runs/a/receipt.json").read_text())
    assert receipt["data"]["train"] == len(divided.train)
    assert receipt["data"]["split"] == "split.csv"
    assert "divided by split.csv" in receipt["data"]["notes"]


def test_json_and_report_of_the_command(spoilt, tmp_path, capsys):
    assert run(["audit", str(spoilt), "--json", "-o", str(tmp_path / "a"), "--split-by", "prototype"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["split"]["by"] == "prototype"
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "audit.html",
        "findings.csv",
        "audit.json",
        "split.csv",
    }


@pytest.mark.parametrize(("arguments", "message"), [
    (["--split-by", "colour", "-o", "s.csv"], "expected formula or prototype"),
    (["--split-by", "formula"], "say where"),
    (["-o", "s.csv"], "add --split-by"),
    (["--split-by", "formula", "-o", "s.csv", "--fractions", "0", "1", "1"], "the first above 0"),
    (["--target", "colour"], "no column 'colour'"),
])  # fmt: skip
def test_mistakes(arguments, message, spoilt, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["audit", str(spoilt), "--no-baselines", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_structures_without_a_table(tmp_path):
    zoo.nacl().write(tmp_path / "a.cif")
    zoo.nacl_conventional().write(tmp_path / "b.cif")
    (tmp_path / "c.cif").write_text("nothing")
    found = facetry.audit(tmp_path)
    assert found.counts == {"all": 2}
    assert found.unreadable == 1
    assert found["duplicates"].count == 1
    assert not found.baselines


def test_a_table_without_a_split_is_cross_validated(tmp_path):
    lines = ["file,energy [eV]"]
    for number, (crystal, label) in enumerate(salts()):
        crystal.write(tmp_path / f"{number}.cif")
        lines.append(f"{number}.cif,{label}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = facetry.audit(tmp_path)
    assert found.counts == {"all": 120}
    assert found.setting == "5-fold cross-validation, formulas kept together"
    error = {b.method: b.scores["mae"].value for b in found.baselines}
    assert error["boosting"] < 0.35 * error["mean"]
    assert all(b.scores.count == 120 for b in found.baselines)
    assert not found.errors


def test_wrong_unit_of_lattices():
    crystals = [Crystal(c.lattice * 1.8897, c.frac_coords, c.atomic_numbers) for c, _ in salts()]
    good = facetry.audit([c for c, _ in salts()])
    assert not [f for f in good.findings if f.key == "unit of lattices"]
    small = [Crystal(c.lattice * 0.5292, c.frac_coords, c.atomic_numbers) for c in crystals]
    tiny = facetry.audit([Crystal(c.lattice * 0.5292, c.frac_coords, c.atomic_numbers) for c, _ in salts()])
    assert "Bohr" in tiny["unit of lattices"].text
    assert not [f for f in facetry.audit(small).findings if f.key == "unit of lattices"]


def test_divisions_by_a_table(tmp_path, spoilt):
    file = tmp_path / "s.csv"
    file.write_text("id,part\n1.cif,train\n")
    with pytest.raises(TableError, match="expected the columns id and split, has id, part"):
        dataset(spoilt, split=file)
    file.write_text("id,split\n1.cif,train\n2.cif,holdout\n")
    with pytest.raises(TableError, match="line 3: expected train, val or test in split, got 'holdout'"):
        dataset(spoilt, split=file)
    file.write_text("id,split\n1.cif,train\n")
    with pytest.raises(TableError, match="125 of 126 have none: 2"):
        dataset(spoilt, split=file)
    file.write_text("id,split\n1.cif,train\n1.cif,test\n")
    with pytest.raises(TableError, match=r"1\.cif is in train already"):
        dataset(spoilt, split=file)
    with pytest.raises(TableError, match="cannot be read"):
        dataset(spoilt, split=tmp_path / "none.csv")


def test_known_defects_of_real_sets(data_folder, monkeypatch):
    monkeypatch.setenv("FACETRY_DATA", str(data_folder))
    elastic = facetry.audit("mp_elastic", baselines=False)
    tensors = elastic["unstable tensors (elastic_tensor)"]
    assert (tensors.count, tensors.numbers["diagonal"]) == (81, 20)
    assert elastic["impossible values (G_Voigt)"].count == 7
    assert elastic["impossible values (poisson_ratio)"].count == 26
    slabs = facetry.audit("mb_jdft2d", baselines=False)
    assert slabs["duplicates"].count == 8
    assert slabs["leak"].count == 7
    assert slabs["empty cells"].count == 529
    piezo = facetry.audit("mp_piezo", baselines=False)
    assert piezo["duplicates"].count == 5
