"""Chains of a model: many formulas at once, seeds, pruning, descent, going on after a kill, bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import facetry
from facetry.card import ModelCard, Target
from facetry.chemistry import FormulaError, parse
from facetry.cli import run
from facetry.models import CGCNN, ContinuouSP
from facetry.models.base import EnergyModel, Evaluation, Landscape
from facetry.samplers import evaluated, random_start
from facetry.samplers.descent import descended
from facetry.tasks import energy_chains
from facetry.tasks.energies import Energies
from facetry.tasks.energy_chains import EnergyChains, Job
from facetry.tasks.generate import Maker, NothingFound, generate
from facetry.tasks.sampling_store import SamplingError, SamplingStore
from facetry.training import save_model
from facetry.training.recipe import GenerateOptions
from tests.tasks.test_relax import Stretch

SHORT = {"steps": 30, "hot": 0.5, "cold": 0.01}


def small(**told) -> ContinuouSP:
    torch.manual_seed(1)
    model = ContinuouSP(channels=8, layers=1, head_layers=2).eval()
    model.card = ModelCard(
        model="continuousp", options=model.options, graph=model.graph.describe(), targets=[],
        elements=[8, 22, 38], generate=GenerateOptions(**told).model_dump(),
    )  # fmt: skip
    return model


class Springs(EnergyModel):
    """All atoms at the corner of a cube of 4 Å: E = Σ |x|² / 2n + 3 |C Cᵀ - 16|² / 16²."""

    name = "springs"
    density = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def landscape(self, atomic_numbers, num_atoms):
        return _Springs(num_atoms)


class _Springs(Landscape):
    def __init__(self, num_atoms):
        self.num_atoms = num_atoms
        self.owner = torch.repeat_interleave(num_atoms)

    def __call__(self, lattice, frac_coords, use=None):
        with torch.enable_grad():
            shift = torch.zeros_like(frac_coords, requires_grad=True)
            strain = torch.zeros_like(lattice, requires_grad=True)
            cell = lattice @ torch.matrix_exp(strain)
            metric = cell @ cell.transpose(1, 2) / 16 - torch.eye(3, dtype=cell.dtype)
            apart = frac_coords - frac_coords.round()
            apart = torch.einsum("na,nab->nb", apart, cell[self.owner]) + shift
            energy = torch.zeros(len(lattice), dtype=cell.dtype).index_add(
                0, self.owner, apart.square().sum(1)
            )
            energy = energy / 2 / self.num_atoms + 3 * metric.square().sum((1, 2))
            by_position, by_strain = torch.autograd.grad(energy.sum(), (shift, strain))
        return Evaluation(energy.detach(), by_position, by_strain)


# --- samples -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_samples():
    model = small()
    first, again = (generate(model, "SrTiO3", count=4, seed=3, **SHORT) for _ in range(2))
    assert [g.crystal for g in first] == [g.crystal for g in again]
    assert [g.energy for g in first] == [g.energy for g in again] == sorted(g.energy for g in first)
    other = generate(model, "SrTiO3", count=4, seed=4, **SHORT)
    assert not {g.energy for g in other} & {g.energy for g in first}
    assert {g.crystal.formula for g in first} == {"SrTiO3"}
    again = Energies(model)([g.crystal for g in first])
    assert [g.energy for g in first] == pytest.approx(again, abs=1e-5)
    ten = generate(model, "SrTiO3", count=2, atoms=10, **SHORT)
    assert [len(g.crystal) for g in ten] == [10, 10]


def test_formulas_side_by_side_are_what_they_are_alone():
    """Chains are chaotic, so that round-off shows after long enough; in double precision not here."""
    model = small().double()
    formulas = [parse(f) for f in ("Sr2Ti2O6", "TiO2", "SrTiO3", "TiO2")]
    jobs = [Job(f, 3) for f in formulas[:3]] + [Job(formulas[3], 3, 1)]
    sampler = EnergyChains(model, **SHORT)
    together = list(sampler.sample(jobs, seed=1))
    parts = EnergyChains(model, batch_size=4, **SHORT)
    assert (
        len(parts._groups(jobs, torch.device("cpu"))) > len(sampler._groups(jobs, torch.device("cpu"))) == 1
    )
    for job, found, divided in zip(jobs, together, parts.sample(jobs, seed=1), strict=True):
        (alone,) = sampler.sample([job], seed=1)
        for samples in (found, divided):
            assert [s.chain for s in samples] == [s.chain for s in alone]
            for a, b in zip(alone, samples, strict=True):
                assert a.energy == pytest.approx(b.energy, abs=1e-9)
                assert np.allclose(a.crystal.lattice, b.crystal.lattice, atol=1e-7)
    assert together[1][0].crystal != together[3][0].crystal
    nested = generate(model, ["TiO2", "SrTiO3"], count=2, **SHORT)
    assert [[g.crystal.formula for g in found] for found in nested] == [["TiO2"] * 2, ["SrTiO3"] * 2]


def test_more_chains_than_fit_are_divided():
    sampler = EnergyChains(small(), batch_size=3, starts=2, **SHORT)
    groups = sampler._groups([Job(parse("TiO2"), 4), Job(parse("SrTiO3"), 1)], torch.device("cpu"))
    assert [(g.jobs, g.rank.tolist(), g.wanted) for g in groups] == [
        ((0,), [0, 1], (1,)), ((0,), [2, 3], (1,)), ((0,), [4, 5], (1,)), ((0,), [6, 7], (1,)),
        ((1,), [0, 1], (1,)),
    ]  # fmt: skip
    assert len(torch.cat([g.chain for g in groups]).unique()) == 10
    (found, one) = sampler.sample([Job(parse("TiO2"), 4), Job(parse("SrTiO3"), 1)])
    assert (len(found), len(one)) == (4, 1)
    large = EnergyChains(small(), batch_size=40, most_atoms=500)
    assert large._at_once(5) == 40
    assert large._at_once(100) == 8


def test_the_annealing_is_that_of_the_training():
    model = small(chain_steps=77, hot=0.4, cold=0.02, per_atom=True, volume_power=1.0)
    plan = EnergyChains(model).plan
    assert (plan.steps, plan.hot, plan.cold, plan.per_atom, plan.volume_power) == (77, 0.4, 0.02, True, 1.0)
    assert EnergyChains(model, steps=5, per_atom=False).plan.per_atom is False
    model.card = None
    assert EnergyChains(model).plan.steps == 1000


def test_pruned_chains_go_on_as_they_would_have():
    model = small().double()
    job = Job(parse("TiO2"), 2)
    ways = next(EnergyChains(model, trajectory=10, **SHORT).sample([Job(parse("TiO2"), 6)]))
    at_ten = {s.chain: s.way[0][2] for s in ways}
    best = sorted(at_ten, key=at_ten.__getitem__)[:2]
    pruned = next(EnergyChains(model, starts=3, prune_after=10, **SHORT).sample([job]))
    assert sorted(s.chain for s in pruned) == sorted(best)
    ends = {s.chain: s.energy for s in ways}
    assert [s.energy for s in pruned] == pytest.approx([ends[s.chain] for s in pruned], abs=1e-9)


def test_the_lowest_of_the_last_steps():
    model = small()
    job = [Job(parse("TiO2"), 5)]
    hot = {"steps": 40, "hot": 1.0, "cold": 0.5}
    last = next(EnergyChains(model, trajectory=1, **hot).sample(job))
    lowest = next(EnergyChains(model, keep="lowest", lowest_of=10, **hot).sample(job))
    expected = {s.chain: min(energy for _, _, energy in s.way[-11:-1]) for s in last}
    assert {s.chain: s.energy for s in lowest} == pytest.approx(expected, abs=1e-6)


def test_descent_finds_the_minimum():
    count = 8
    numbers = torch.full((count,), 3)
    lattice = 4.3 * torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    lattice = lattice @ torch.matrix_exp(0.03 * torch.randn(count, 3, 3, dtype=torch.float64))
    frac = 0.05 * torch.randn(24, 3, dtype=torch.float64)
    land = _Springs(numbers)
    start = evaluated(land, lattice, frac)
    energies = [start.at.energy]
    for steps in (5, 20, 60):
        energies.append(descended(land, start, steps).at.energy)
    assert all((b <= a).all() for a, b in pairwise(energies))
    assert float(energies[2].max()) < 1e-2 * float(energies[0].max())
    assert float(energies[3].max()) < 1e-8


def test_descent_from_anywhere_lowers_the_model_energy():
    model = small()
    numbers = torch.full((6,), 5)
    land = model.landscape(torch.tensor([38, 22, 8, 8, 8] * 6), numbers)
    start = evaluated(land, *random_start(0, torch.arange(6), numbers))
    found = descended(land, start, 40)
    assert (found.at.energy < start.at.energy).all()
    again = evaluated(
        model.landscape(torch.tensor([38, 22, 8, 8, 8] * 6), numbers), found.lattice, found.frac_coords
    )
    assert torch.allclose(again.at.energy, found.at.energy, atol=1e-5)
    quenched = generate(model, "SrTiO3", count=3, quench=25, **SHORT)
    bare = generate(model, "SrTiO3", count=3, **SHORT)
    assert quenched[0].energy < bare[0].energy


def test_a_way_is_kept_where_it_is_asked_for():
    found = generate(small(), "TiO2", count=2, trajectory=10, quench=5, **SHORT)
    for made in found:
        assert [step for step, _, _ in made.way] == [10, 20, 30, 35]
        assert made.way[-1][1] == made.crystal
        assert made.way[-1][2] == made.energy
    assert generate(small(), "TiO2", count=1, **SHORT)[0].way == ()


def test_relaxed_and_with_properties():
    """Stretching by a tenth changes every energy; copper is not stretched."""
    model = small()
    bare = generate(model, "SrTiO3", count=3, **SHORT)
    found = generate(model, "SrTiO3", count=3, relax=Stretch(), predict=predicting(), **SHORT)
    assert {round(g.crystal.volume / b.crystal.volume, 6) for g in found for b in bare} >= {1.331}
    assert [g.energy for g in found] == pytest.approx(Energies(model)([g.crystal for g in found]), abs=1e-6)
    assert [g.energy for g in found] == sorted(g.energy for g in found)
    values = [p.value for p in facetry.predict(predicting(), [g.crystal for g in found])]
    assert [g.properties for g in found] == [{"gap": v, "gap_unit": "eV"} for v in values]
    kept = generate(model, "SrTiO3", count=1, relax=Stretch(3.0), **SHORT)
    assert "not relaxed: its volume would change" in kept[0].message


def predicting():
    torch.manual_seed(0)
    model = CGCNN(channels=8, layers=1).eval()
    model.card = ModelCard(
        model="cgcnn",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="gap", unit="eV")],
    )
    return model


# --- going on ------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("options", [{"keep": "lowest", "starts": 2, "quench": 3, "trajectory": 16}, {}])
@pytest.mark.parametrize("fatal", [1, 3, 5])
def test_a_sampling_goes_on_bit_for_bit(tmp_path, monkeypatch, fatal, options):
    """Dies at the writing of any of its files, and goes on after it."""
    monkeypatch.setattr(energy_chains, "POINT", 10)
    jobs = [Job(parse("TiO2"), 3), Job(parse("SrTiO3"), 2)]
    sampler = EnergyChains(small(), steps=24, hot=0.5, cold=0.01, batch_size=3, **options)
    wanted = list(sampler.sample(jobs, seed=5))
    calls = [0]
    original = SamplingStore.keep

    def keep(self, group, tensors):
        original(self, group, tensors)
        calls[0] += 1
        if calls[0] == fatal:
            raise Killed

    monkeypatch.setattr(SamplingStore, "keep", keep)
    store = SamplingStore(tmp_path, sampler.settings())
    with pytest.raises(Killed):
        list(sampler.sample(jobs, seed=5, store=store))
    seen = []
    store = SamplingStore(tmp_path, sampler.settings(), resume=True)
    found = list(sampler.sample(jobs, 5, store, lambda done, total: seen.append((done, total))))
    for a, b in zip(wanted, found, strict=True):
        assert [(s.crystal, s.energy, s.chain) for s in a] == [(s.crystal, s.energy, s.chain) for s in b]
        assert [s.way for s in a] == [s.way for s in b]
    assert seen == sorted(seen)
    assert seen[-1] == ((24 + sampler.quench) * 5,) * 2


def test_going_on_with_something_else_is_refused(tmp_path):
    SamplingStore(tmp_path, {"seed": 0, "sampler": {"steps": 5}})
    with pytest.raises(SamplingError, match=r"begun with sampler.steps 5, came 6"):
        SamplingStore(tmp_path, {"seed": 0, "sampler": {"steps": 6}}, resume=True)
    with pytest.raises(SamplingError, match="no interrupted sampling"):
        SamplingStore(tmp_path / "other", {}, resume=True)


# --- the shell -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(small(chain_steps=30), tmp_path / "energy")
    return tmp_path


def rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_model_in_a_shell(place, capsys):
    (place / "wanted.csv").write_text("formula\nSrTiO3\nBaTiO3\n")
    save_model(predicting(), place / "gaps")
    call = ["generate", "energy", "wanted.csv", "Sr1Ti1O3", "-n", "3", "-o", "made", "--trajectory", "15"]
    assert run([*call, "--predict", "gaps", "--seed", "2", "--threads", "1"]) == 0
    assert capsys.readouterr().err.strip() == "9 structures for 3 formulas; made/candidates.csv"
    table = rows("made/candidates.csv")
    assert [r["file"] for r in table[::3]] == ["SrTiO3_1.cif", "BaTiO3_1.cif", "SrTiO3-2_1.cif"]
    assert [r["message"] for r in table[::3]] == ["", "not in the training data: Ba", ""]
    for row in table:
        if float(row["min_distance"]) < 0.6:  # no reader takes these
            continue
        (crystal,) = facetry.read(place / "made" / row["file"])
        assert crystal.volume == pytest.approx(float(row["volume"]), rel=1e-5)
        text = (place / "made" / row["file"]).with_suffix(".extxyz").read_text()
        names = re.findall(r'name="(.*)"', text)
        assert [name.split()[1] for name in names] == ["15", "30", "30"]
        assert names[-1] == f"step 30 energy {float(row['energy']):.6g}"
        assert row["gap_unit"] == "eV"
        assert math.isfinite(float(row["gap"]))
    assert float(table[0]["energy"]) <= float(table[1]["energy"])
    assert table[0]["energy"] != table[6]["energy"]
    told = json.loads((place / "made" / "sampling.json").read_text())
    assert told["call"]["formulas"] == ["SrTiO3", "BaTiO3", "SrTiO3"]
    assert told["sampler"]["steps"] == 30
    assert not (place / "made" / "resume").exists()


def test_killed_and_resumed_in_a_shell(place, capsys):
    call = ["generate", "energy", "SrTiO3", "TiO2", "-n", "2", "--seed", "7", "--threads", "1"]
    call += ["--set", "steps=110", "--batch-size", "2"]
    assert run([*call, "-o", "whole"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "facetry", *call, "-o", "made"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    second = Path("made/resume/point-0001.safetensors")
    while not second.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert second.exists()
    capsys.readouterr()
    assert run([*call, "-o", "made"]) == 2
    assert "add --resume, or choose another folder" in capsys.readouterr().err
    assert run([*call, "-o", "made", "--seed", "8", "--resume"]) == 2
    assert "begun with call.seed 7, came 8" in capsys.readouterr().err
    assert run(["generate", "--resume", "-o", "made", "--batch-size", "2"]) == 0
    names = sorted(p.name for p in Path("whole").iterdir())
    assert names == sorted(p.name for p in Path("made").iterdir())
    for name in names:
        if name != "sampling.json":
            assert (place / "made" / name).read_bytes() == (place / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["energy", "SrTiX3"], "near: "),
        (["energy", "Sr1.05TiO3"], "no factor up to 12"),
        (["energy", "SrTiO3", "-n", "0"], "--count"),
        (["energy", "LrO2"], "O2Lr: Lr is unknown to the model"),
        (["energy", "SrTiO3", "--atoms", "500"], "500 atoms; 20 chains of 30 steps would take about"),
        (["energy", "SrTiO3", "--set", "stops=3"], "did you mean 'steps'"),
        (["energy", "SrTiO3", "--set", "keep=first"], "keep: expected 'last' or 'lowest'"),
        (["energy", "SrTiO3", "--set", "steps=0"], "steps of at least 1"),
        (["energy", "SrTiO3", "--resume"], "no interrupted sampling"),
        (["SrTiO3", "--method", "rs", "--resume"], "rs is not sampled by chains"),
        (["SrTiO3", "--method", "rs", "--trajectory", "5"], "no option 'trajectory'"),
        (["energy", "SrTiO3", "--predict", "energy"], "expected a model that predicts properties"),
    ],
)
def test_mistakes(place, capsys, arguments, words):
    assert run(["generate", *arguments, "-o", "made"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (place / "made").exists()


def test_one_bad_formula_does_not_stop_the_others(place, capsys):
    assert run(["generate", "energy", "LrO2", "TiO2", "-n", "1", "-o", "made", "--json"]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [(r["status"], r["formula"]) for r in found] == [("failed", "O2Lr"), ("ok", "TiO2")]
    assert "unknown to the model" in found[0]["message"]
    assert run(["generate", "energy", "Ti50O100", "-n", "1", "-o", "large", "--set", "steps=2", "--force",
                "--set", "most_atoms=100"]) == 0  # fmt: skip
    assert [r["atoms"] for r in rows("large/candidates.csv")] == ["150"]


def test_mistakes_in_python():
    model = small()
    with pytest.raises(FormulaError, match="near: "):
        generate(model, "SrTiX3")
    with pytest.raises(NothingFound, match="unknown to the model"):
        generate(model, "LrO2")
    with pytest.raises(NothingFound, match="500 atoms"):
        generate(model, "SrTiO3", atoms=500)
    with pytest.raises(ValueError, match="count: expected at least 1"):
        generate(model, "SrTiO3", count=0)
    for options in (
        {"starts": 0},
        {"quench": -1},
        {"batch_size": 0},
        {"starts": 2, "prune_after": 30, **SHORT},
    ):
        with pytest.raises(ValueError, match=next(iter(options)) if len(options) == 1 else "prune_after"):
            EnergyChains(model, **options)


def test_chains_that_end_nowhere_are_nothing():
    class Nowhere(Springs):
        def landscape(self, atomic_numbers, num_atoms):
            land = _Springs(num_atoms)

            class Infinite(Landscape):
                def __call__(self, lattice, frac_coords, use=None):
                    at = land(lattice, frac_coords)
                    return Evaluation(torch.full_like(at.energy, torch.nan), at.by_position, at.by_strain)

            Infinite.num_atoms = num_atoms
            return Infinite()

        def check_elements(self, atomic_numbers):
            pass

    method = EnergyChains(Nowhere(), **SHORT)
    assert next(method.sample([Job(parse("TiO2"), 2)])) == []
    (nothing,) = Maker(method, count=2).over([parse("TiO2")])
    assert str(nothing).startswith("TiO2: every chain ended where there is no energy")


def test_the_chains_of_one_formula():
    method, formula = EnergyChains(small(), **SHORT), parse("TiO2")
    found = list(method.candidates(formula, 3, seed=1, atoms=6))
    assert [len(c.crystal) for c in found] == [6, 6, 6]
    assert [c.energy for c in found] == sorted(c.energy for c in found)
    (together,) = method.together([formula.with_atoms(6)], 3, seed=1)
    assert [c.crystal for c in together] == [c.crystal for c in found]
    with pytest.raises(ValueError, match="unknown to the model"):
        list(method.candidates(parse("LrO2"), 1, seed=1))
