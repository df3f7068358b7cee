"""Energies around crystals: numbers behind the figure for an energy that is known, tables, the page."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from facetry.cli import run
from facetry.evaluation.landscape import FACTORS, displacements, energy_scores, lowest_factor, scaled_energies
from facetry.evaluation.landscape_plot import landscape_plot
from facetry.models.base import EnergyModel, Evaluation, Landscape
from facetry.training import save_model
from tests import crystals as known
from tests.tasks.test_energy_chains import small

CRYSTALS = [known.srtio3(), known.nacl(), known.zno(), known.si(), known.po()]


class Known(EnergyModel):
    """E = Σ |x - x0|² / 2 from the sites of `CRYSTALS`, and ln²(1.1³ V / V0) / 9: cells shrink by 1.1."""

    name = "known"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def landscape(self, atomic_numbers, num_atoms):
        parts = atomic_numbers.split(num_atoms.tolist())
        return _Known([next(c for c in CRYSTALS if p.tolist() == c.atomic_numbers.tolist()) for p in parts])


class _Known(Landscape):
    def __init__(self, crystals):
        self.num_atoms = torch.tensor([len(c) for c in crystals])
        self.sites = torch.cat([torch.tensor(c.frac_coords) for c in crystals])
        self.volume = torch.tensor([c.volume for c in crystals], dtype=torch.float64)

    def __call__(self, lattice, frac_coords, use=None):
        owner = torch.repeat_interleave(self.num_atoms)
        apart = torch.einsum("na,nab->nb", frac_coords - self.sites, lattice[owner])
        energy = torch.zeros(len(lattice), dtype=lattice.dtype).index_add(0, owner, apart.square().sum(1) / 2)
        stretched = torch.log(torch.linalg.det(lattice).abs() / self.volume * 1.1**3)
        return Evaluation(energy + stretched.square() / 9, apart, torch.zeros_like(lattice))


@pytest.mark.parametrize("atoms", ["one", "all"])
def test_displacements_of_wells(atoms):
    found = displacements(Known(), CRYSTALS, atoms, count=400, sigma=0.1, seed=2)
    assert found.names == [c.name or c.formula for c in CRYSTALS]
    assert found.rise == pytest.approx(found.distance**2 / 2, abs=1e-9)
    moved = np.array([1 if atoms == "one" else len(c) for c in CRYSTALS])
    assert (found.distance**2).mean(1) == pytest.approx(3 * moved * 0.01, rel=0.15)
    again = displacements(Known(), CRYSTALS, atoms, count=400, sigma=0.1, seed=2)
    assert (again.rise == found.rise).all()
    with pytest.raises(ValueError, match="expected 'one' or 'all'"):
        displacements(Known(), CRYSTALS, "some")


def test_scaled_cells():
    energy = scaled_energies(Known(), CRYSTALS)
    expected = np.log(FACTORS * 1.1) ** 2
    assert energy == pytest.approx(np.tile(expected, (len(CRYSTALS), 1)), abs=1e-9)
    assert lowest_factor(energy) == pytest.approx([1 / 1.1] * len(CRYSTALS))
    assert FACTORS[[0, 20, 40]] == pytest.approx([10**-0.5, 1, 10**0.5])


def test_scores_of_wells():
    scores = energy_scores(Known(), CRYSTALS)
    assert scores.count == 5
    assert scores["noise_raised"].value == 100
    assert scores["rise"].value > 0.8
    assert scores["scale"].value == pytest.approx(1 / 1.1)
    assert scores["scale_error"].value == pytest.approx(100 * (1 - 1 / 1.1))
    assert scores["energy"].value == pytest.approx(np.log(1.1) ** 2)
    sites = np.mean([len(c) for c in CRYSTALS])
    assert scores["noise_gap"].value == pytest.approx(1.5 * sites * 0.3**2, rel=0.5)
    assert "noise_raised  100 %" in str(scores)
    assert json.loads(json.dumps(scores.to_dict()))["metrics"]["rise"]["unit"] == ""
    assert landscape_plot(scores).startswith(b"\x89PNG")


def test_a_network_is_lowest_nowhere_in_particular():
    """Energies of the figure are those of the model: of crystals themselves, and in any batch."""
    model = small()
    scaled = scaled_energies(model, CRYSTALS)
    with torch.no_grad():
        plain = model(model.graph(CRYSTALS)).numpy()
    assert scaled[:, 20] == pytest.approx(plain, abs=1e-5)
    alone = scaled_energies(model, CRYSTALS[2:3])
    assert scaled[2] == pytest.approx(alone[0], abs=1e-4)


def test_in_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(small(), tmp_path / "energy")
    (tmp_path / "known").mkdir()
    rows = ["file"]
    for number, crystal in enumerate(CRYSTALS * 6):
        crystal.write(tmp_path / "known" / f"c{number}.cif")
        rows.append(f"c{number}.cif")
    (tmp_path / "known" / "table.csv").write_text("\n".join(rows) + "\n")
    call = ["evaluate", "energy", "--data", "known", "--split", "all"]
    assert run([*call, "-o", "out", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert "energy: 30 crystals" in captured.out
    assert captured.err.strip() == "out/: report.html, scores.json, landscape.csv, landscape.png"
    with open("out/landscape.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 5 * (2 * 1000 + len(FACTORS))
    one = [row for row in table if row["change"] == "scaled" and float(row["size"]) == 1.0]
    assert [float(row["rise"]) for row in one] == [0.0] * 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Around crystals" in page
    assert page.count("data:image/png") == 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["count"] == 30
    assert run([*call, "--noise", "0.2"]) == 2
    assert "noise and calculator have no meaning" in capsys.readouterr().err


def test_crystals_that_are_of_no_use():
    mixed = known.po().replace(occupancies=[{84: 0.5, 83: 0.5}])
    from facetry.tasks.evaluate import evaluate_energy

    scores = evaluate_energy(small(), [mixed, known.nacl()])
    assert (scores.count, scores.failed) == (1, 1)
    with pytest.raises(ValueError, match="none of the 1 crystals can be used"):
        evaluate_energy(small(), [mixed])
