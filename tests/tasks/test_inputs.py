"""Everything people hand over becomes inputs in order."""

from __future__ import annotations

import numpy as np
import pytest

from facetry.card import Target
from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable
from facetry.data.dataset import Dataset
from facetry.tasks.inputs import check_places, items_of


def salt(name=""):
    return Crystal(5.64 * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17], name=name)


def test_objects_of_all_kinds(tmp_path):
    pytest.importorskip("pymatgen.core")
    salt().write(tmp_path / "b.cif")
    salt().write(tmp_path / "a.vasp")
    given = [salt("x"), salt().to_pymatgen(), tmp_path / "b.cif", str(tmp_path), salt().to_ase()]
    items = list(items_of(given))
    assert [len(i.crystal) for i in items] == [2] * 6
    assert [i.source for i in items[:2]] == ["x", "input 1"]
    assert [i.source.rsplit("/", 1)[-1] for i in items[2:5]] == ["b.cif", "a.vasp", "b.cif"]
    for one in given:
        assert items_of(one) is not None
        assert next(items_of(one)).crystal is not None


def test_sets_tables_and_generators():
    table = CrystalTable.from_crystals([salt("a"), salt("b")])
    data = Dataset(table, np.zeros((2, 1)), [Target(name="t")])
    for given in (table, data, (c for c in table), tuple(table)):
        assert [i.name for i in items_of(given)] == ["a", "b"]


def test_bad_entries_keep_their_place(tmp_path):
    (tmp_path / "bad.cif").write_text("no cif")
    items = list(items_of([salt("a"), tmp_path / "bad.cif", 7, salt("b")]))
    assert [i.crystal is None for i in items] == [False, True, True, False]
    assert items[1].name == "bad"
    assert items[1].error
    assert "got int" in items[2].error


def test_places_without_anything_are_mistakes(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.csv").write_text("1,2\n")
    salt().write(tmp_path / "good.cif")
    check_places([tmp_path / "good.cif", str(tmp_path)])
    for bad in ("empty", "missing.cif", "*.vasp", "bare.csv"):
        with pytest.raises(FileNotFoundError, match=bad.strip("*.")):
            check_places([tmp_path / "good.cif", tmp_path / bad])
