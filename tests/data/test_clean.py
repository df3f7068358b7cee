"""Cleaning: every stage on crystals made for it, the report, the table, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from facetry import dataset
from facetry.card import Target
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.data.clean import clean
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset
from facetry.graph.bonds import Bonds
from facetry.graph.cells import Voronoi
from tests import crystals as zoo


def named(crystal: Crystal, name: str) -> Crystal:
    return Crystal(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, name=name)


ROWS = [  # crystal, energy, gap, the stage that takes it out
    (named(zoo.nacl(), "salt"), -2.0, 5.0, ""),
    (named(zoo.nacl_conventional(), "salt, larger cell"), -1.9, 5.1, "b"),
    (named(zoo.si(), "silicon, higher"), 0.1, 0.6, "b"),
    (named(zoo.rotated(zoo.si().supercell(np.diag([1, 1, 2])), zoo.rotation(1)), "silicon"), 0.0, 0.6, ""),
    (named(zoo.cu(), "copper"), 0.0, 0.0, ""),
    (named(zoo.cu(), "copper without energy"), np.nan, 0.0, "b"),
    (named(zoo.layered(), "layers"), -1.0, 1.2, "d"),
    (named(zoo.zno(), "oxide"), -1.5, 1e-6, ""),
    (named(zoo.random_crystal(6, atoms=7), "seven"), 0.3, np.nan, "c"),
]


@pytest.fixture
def data() -> Dataset:
    targets = np.array([[e, g] for _, e, g, _ in ROWS])
    info = [Target(name="formation_energy_per_atom", unit="eV/atom"), Target(name="band_gap", unit="eV")]
    return Dataset(CrystalTable.from_crystals([c for c, *_ in ROWS]), targets, info)


def test_every_stage(data):
    cleaned = clean(data, most_atoms=6)
    assert {r.name: r.stage for r in cleaned.rejected} == {c.name: s for c, _, _, s in ROWS if s}
    assert cleaned.data.names.tolist() == ["salt", "silicon", "copper", "oxide"]
    assert [(s.key, s.count, s.removed) for s in cleaned.stages] == [
        ("a", 9, 0), ("b", 6, 3), ("c", 5, 1), ("d", 4, 1), ("e", 4, 0), ("f", 2, 2),
    ]  # fmt: skip
    reasons = {r.name: r.reason for r in cleaned.rejected}
    assert reasons["silicon, higher"].endswith("227 of silicon, which is lower in energy")
    assert reasons["layers"] == "2-dimensional: layers"
    assert reasons["seven"] == "7 atoms, at most 6 are wanted"
    assert cleaned.data.targets[:, 2].tolist() == [1, 1, 0, 0]
    only = clean(data, most_atoms=6, insulators=True)
    assert only.data.names.tolist() == ["salt", "silicon"]
    assert {r.name: r.reason for r in only.rejected if r.stage == "f"} == {
        "copper": "metal",
        "oxide": "metal",
    }


def test_graphs_that_are_not_valid(data):
    """Any builder may say what a valid graph is; its errors are the reasons."""
    strict = clean(data, most_atoms=6, graph=Bonds(-0.2))
    reasons = {r.name: r.reason for r in strict.rejected if r.stage == "e"}
    assert reasons["salt"] == "an atom without neighbours"
    salt = data.select([0])
    assert all(clean(salt, graph=g).data.names.tolist() == ["salt"] for g in (Bonds(0.5), Voronoi(), None))
    heavy = Crystal(np.eye(3) * 3.0, [[0, 0, 0]], [97], name="heavy")
    one = Dataset(CrystalTable.from_crystals([heavy]), np.zeros((1, 2)), data.target_info)
    (rejected,) = clean(one).rejected
    assert rejected.stage == "d"
    assert "no covalent radius of Bk" in rejected.reason


def test_missing_columns(data):
    bare = Dataset(data.crystals, data.targets[:, :1], data.target_info[:1])
    assert [s.key for s in clean(bare, most_atoms=6).stages] == list("abcde")
    with pytest.raises(ValueError, match="no column of band gaps"):
        clean(bare, insulators=True)
    with pytest.raises(ValueError, match=r"expected the column 'E', came formation_energy_per_atom"):
        clean(bare, energy="E")


def test_in_a_shell(data, tmp_path, capsys):
    """A table in, the cleaned one out; it trains as it is, classes included."""
    path = clean(data, most_atoms=100).write(tmp_path / "all.parquet")
    assert run(["dataset", "clean", str(path), "-o", str(tmp_path / "out.parquet"), "--most-atoms", "6"]) == 0
    text = capsys.readouterr().out
    assert "three-dimensional" in text
    report = json.loads((tmp_path / "out.json").read_text())
    assert [s["key"] for s in report["stages"]] == list("abcdef")
    splits = dataset(tmp_path / "out.parquet", "insulator", fractions=(1.0, 0.0, 0.0))
    assert splits.train.names.tolist() == ["salt", "silicon", "copper", "oxide"]
    assert splits.target_info[0].task == "binary"
    assert splits.train.targets[:, 0].tolist() == [1, 1, 0, 0]
    energies = dataset(tmp_path / "out.parquet", "formation_energy_per_atom").target_info[0]
    assert energies.unit == "eV/atom"
    assert run(["dataset", "clean", str(path), "-o", str(tmp_path / "out.csv")]) == 2
    assert "ends in .parquet" in capsys.readouterr().err
    call = ["dataset", "clean", str(path), "-o", str(tmp_path / "out.parquet"), "--graph", "rings"]
    assert run(call) == 2
    assert "voronoi or bonds" in capsys.readouterr().err


def test_a_named_set(data_folder):
    """Metals and insulators of MP-20 by its gaps."""
    part = dataset("mp20", ["insulator", "band_gap"]).val
    assert part.target_info[0].classes == ["metal", "insulator"]
    assert (part.targets[:, 0] == (part.targets[:, 1] > 1e-5)).all()
    assert 0.3 < part.targets[:, 0].mean() < 0.7
