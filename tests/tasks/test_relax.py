"""Structures in, relaxed structures out: the guard, bad inputs, tables, and a step before predictions."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

import facetry
from facetry.card import ModelCard, Target
from facetry.cli import run
from facetry.geometry.space_group import space_group
from facetry.graph.batch import Batch
from facetry.models import EMPNN, IComFormer, Relaxation
from facetry.models.base import LatticeModel
from facetry.tasks.relax import COLUMNS, Guard, shortest_distances
from facetry.training import save_model
from tests import crystals as zoo

CRYSTALS = [zoo.po(), zoo.nacl(), zoo.zno(), zoo.mg(), zoo.si()]


class Stretch(LatticeModel):
    """Multiplies every lattice by a factor in two steps; breaks for chosen elements."""

    name = "stretch"

    def __init__(self, factor: float = 1.1, nan_for: int = 0) -> None:
        super().__init__()
        self.factor, self.nan_for = factor, nan_for
        self.shift = 0.0  # of the first atom of each crystal, along a
        self.graph = EMPNN(layers=0, blocks=1, channels=1).graph
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Relaxation:
        half, whole = (batch.lattice * self.factor**p for p in (0.5, 1.0))
        bad = torch.zeros(len(batch), dtype=torch.bool)
        bad[batch.crystal_index[batch.atomic_numbers == self.nan_for]] = True
        whole = torch.where(bad[:, None, None], torch.nan, whole)
        moved = batch.frac_coords.clone()
        moved[batch.num_atoms.cumsum(0) - batch.num_atoms, 0] += self.shift
        return Relaxation((batch.lattice, half, whole), (batch.frac_coords,) * 2 + (moved,))


def test_answers_keep_basis_atoms_and_names() -> None:
    for before, found in zip(CRYSTALS, facetry.relax(Stretch(1.1), CRYSTALS, batch_size=2), strict=True):
        assert found.status == "ok"
        assert found.before == before
        assert found.name == before.name
        assert np.allclose(found.crystal.lattice, 1.1 * before.lattice)
        assert np.array_equal(found.crystal.frac_coords, before.frac_coords)
        assert len(found.trajectory) == 3
        assert found.trajectory[0] == before
        assert found.trajectory[-1] == found.crystal
        assert found.min_distances[1] == pytest.approx(1.1 * found.min_distances[0])
        row = found.row()
        assert set(row) <= set(COLUMNS)
        assert row["volume_after"] == pytest.approx(1.331 * row["volume_before"])
        assert row["space_group_before"] == row["space_group_after"] == space_group(before)


def test_shortest_distances() -> None:
    flat = replace(Batch.from_crystals([zoo.po()]), lattice=torch.zeros(1, 3, 3, dtype=torch.float64))
    assert shortest_distances(flat).tolist() == [0.0]
    found = shortest_distances(Batch.from_crystals(CRYSTALS))
    for crystal, distance in zip(CRYSTALS, found.tolist(), strict=True):
        images = np.array(list(np.ndindex(5, 5, 5))) - 2
        apart = crystal.frac_coords[None, :] - crystal.frac_coords[:, None]
        every = np.linalg.norm((apart[:, :, None] + images) @ crystal.lattice, axis=-1)
        assert distance == pytest.approx(every[every > 1e-9].min(), rel=1e-12)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Stretch(2.0), "volume would change by a factor of 8"),
        (Stretch(0.2), "volume would change"),
        (Stretch(nan_for=30), "not finite"),
    ],
)
def test_the_guard_keeps_what_was_there(model: LatticeModel, why: str) -> None:
    found = facetry.relax(model, [zoo.zno()])[0]
    assert found.status == "kept"
    assert why in found.message
    assert found.crystal == found.before == zoo.zno()
    assert found.row()["volume_after"] == found.row()["volume_before"]


def test_the_guard_looks_at_lengths_and_distances() -> None:
    guard, cell = Guard(), np.eye(3) * 4
    assert guard.objection(cell, cell) == ""
    assert "factor of 3.2" in guard.objection(cell, np.diag([12.8, 2.2, 2.2]))
    assert "as near as 0.30 Å" in guard.objection(cell, cell, (1.0, 0.3))
    assert guard.objection(cell, cell, (0.3, 0.3)) == ""  # it was as near before
    assert Guard(distance=0.2).objection(cell, cell, (1.0, 0.3)) == ""
    assert guard.objection(cell, -cell) == ""  # the other hand of the same cell
    with pytest.raises(ValueError, match="volume and stretch above 1"):
        Guard(volume=0.5)


def test_what_is_done_to_crystals_at_rest_is_not_done() -> None:
    """Lengths and positions both: a displaced atom in a right cell is no crystal at rest."""
    model = Stretch(1.02)
    limits = {"rest": {"stretch": 0.03, "displacement": 0.1}}
    model.card = ModelCard(model="empnn", options={}, graph={}, targets=[], metrics=limits)
    (found,) = facetry.relax(model, zoo.zno())
    assert found.status == "ok"
    assert found.crystal == found.before
    assert "would change lengths by 2.0%" in found.message
    assert len(found.trajectory) == 3
    assert found.row()["min_distance_after"] == found.row()["min_distance_before"]
    (moved,) = facetry.relax(model, zoo.zno(), guard=Guard(rest=False))
    assert np.allclose(moved.crystal.lattice, 1.02 * zoo.zno().lattice)
    assert not moved.message
    model.factor = 1.04
    assert facetry.relax(model, zoo.zno())[0].crystal != zoo.zno()
    model.factor, model.shift = 1.02, 0.2
    displaced = facetry.relax(model, zoo.zno())[0]
    assert displaced.crystal != zoo.zno()
    assert not displaced.message


def test_one_bad_crystal_does_not_touch_the_others() -> None:
    mixed = zoo.po().replace(occupancies=[{84: 0.5}])
    found = facetry.relax(Stretch(nan_for=30), [*CRYSTALS, mixed, "missing.cif"])
    assert [r.status for r in found] == ["ok", "ok", "kept", "ok", "ok", "skipped", "failed"]


def test_relaxed_crystals_are_predicted() -> None:
    torch.manual_seed(0)
    model = IComFormer(layers=1, k=4, channels=16)
    before = facetry.predict(model, [r.crystal for r in facetry.relax(Stretch(1.2), CRYSTALS)])
    after = facetry.predict(model, CRYSTALS, relax=Stretch(1.2))
    assert [p.value for p in after] == pytest.approx([p.value for p in before])
    assert facetry.Relaxer(Stretch(1.2))(CRYSTALS)[0].volume == pytest.approx(1.2**3 * CRYSTALS[0].volume)
    kept = facetry.predict(model, [zoo.po()], relax=Stretch(9.0))[0]
    assert kept.crystal == zoo.po()
    assert "not relaxed: its volume" in kept.message


def test_models_of_other_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a model that relaxes crystals"):
        facetry.relax(IComFormer(layers=1, channels=16), CRYSTALS)
    cubes = Stretch()
    cubes.card = ModelCard(model="empnn", options={}, graph={}, targets=[], relax={"task": "reconstruct"})
    with pytest.raises(ValueError, match="makes cells from cubes"):
        facetry.relax(cubes, CRYSTALS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder and structures, one of them bad."""
    place = tmp_path_factory.mktemp("relax")
    torch.manual_seed(0)
    model = EMPNN(fields="ket_bra_1", layers=1, blocks=2, channels=8, k=4, weight_clamp=0.01)
    model.card = ModelCard(
        model="empnn",
        options=model.options,
        graph=model.graph.describe(),
        targets=[],
        elements=[84, 11, 17],
        relax={"task": "denoise", "noise": 0.1},
    )
    save_model(model, place / "model")
    (place / "in").mkdir()
    zoo.po().write(place / "in" / "po.cif")
    zoo.si().write(place / "in" / "po.vasp")
    (place / "in" / "bad.cif").write_text("nothing")
    return place


def test_in_a_shell(folder, capsys) -> None:
    assert run(["relax", str(folder / "model"), str(folder / "in"), "-o", str(folder / "out"), "--json"]) == 3
    printed = capsys.readouterr()
    assert "2 ok, 1 failed" in printed.err
    assert printed.out.count('"status": "ok"') == 2
    with open(folder / "out" / "relaxed.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["status"] for row in rows] == ["failed", "ok", "ok"]
    assert "not in the training data: Si" in rows[2]["message"]
    files = sorted(p.name for p in (folder / "out").iterdir())
    assert (
        sum(name.endswith(".cif") for name in files) == sum(name.endswith(".extxyz") for name in files) == 2
    )
    way = next(folder.joinpath("out").glob("*.extxyz"))
    assert len(list(facetry.read(way))) == 3
    good = facetry.read(next(folder.joinpath("out").glob("*.cif")))
    assert len(list(good)) == 1
    assert run(["relax", str(folder / "model"), str(folder / "in"), "-o", str(folder / "out")]) == 2
    assert "holds relaxed.csv already" in capsys.readouterr().err


def test_mistakes_in_a_shell(folder, tmp_path, capsys) -> None:
    torch.manual_seed(0)
    model = IComFormer(layers=1, channels=16)
    model.card = ModelCard(
        model="icomformer", options=model.options, graph={}, targets=[Target(name="y", unit="eV")]
    )
    save_model(model, tmp_path / "property")
    files = str(folder / "in" / "po.cif")
    assert run(["relax", str(tmp_path / "property"), files, "-o", str(tmp_path / "out")]) == 2
    assert "relaxes crystals" in capsys.readouterr().err
    assert run(["predict", str(folder / "model"), files]) == 2
    assert "facetry relax" in capsys.readouterr().err
    assert run(["relax", str(folder / "model"), files, "-o", str(tmp_path / "x"), "--max-volume", "0.5"]) == 2
    assert run(["relax", str(folder / "model"), "nowhere", "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
