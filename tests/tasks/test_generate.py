"""Generate: templates, random search, duplicates, energies, the shell."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import facetry
from facetry.chemistry import FormulaError, expected_volume, parse
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.evaluation.duplicates import SAME, distinct, fingerprints
from facetry.evaluation.validity import minimum_distances
from facetry.tasks import generate as module
from facetry.tasks.generate import Candidate, NothingFound, generate, make_method
from facetry.tasks.random_search import RandomSearch
from facetry.tasks.templates import Templates, substituted
from tests import crystals as known


def perovskite(a: float, numbers, shift: float = 0.0, name: str = "") -> Crystal:
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites[1, 2] += shift
    return Crystal(np.eye(3) * a, sites, numbers, name=name)


def train() -> list[Crystal]:
    return [
        perovskite(4.2, [55, 50, 17, 17, 17], name="far"),
        perovskite(4.0, [56, 22, 8, 8, 8], name="near"),
        perovskite(3.9, [22, 56, 8, 8, 8], name="inverse"),  # the small atom where the large one is
        perovskite(4.0, [56, 22, 8, 8, 8], 0.07, name="polar"),
        known.nacl(),
        known.zno().replace(name="wurtzite"),
        perovskite(3.9, [38, 22, 8, 8, 8], name="mixed").replace(
            occupancies=[{38: 0.5, 56: 0.5}, 1, 1, 1, 1]
        ),
    ]


# --- duplicates ----------------------------------------------------------------------------------


def test_fingerprints_do_not_see_how_a_crystal_is_written(rng):
    crystal = known.zno()
    other = crystal.supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    order = rng.permutation(len(other))
    rewritten = Crystal(
        other.lattice * 1.1, other.frac_coords[order] + rng.random(3), other.atomic_numbers[order]
    )
    mirrored = crystal.replace(lattice=crystal.lattice * [1, 1, -1])
    a, b, c = fingerprints([crystal, rewritten, mirrored])
    assert np.abs(a - b).max() < 1e-9
    assert np.abs(a - c).max() < 1e-9
    assert fingerprints([]).shape[0] == 0


def test_distinct_keeps_what_differs(rng):
    rattled = known.nacl().replace(frac_coords=known.nacl().frac_coords + 0.003 * rng.normal(size=(2, 3)))
    cscl = Crystal(np.eye(3) * 3.5, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])
    blende = Crystal(known.fcc(5.6), [[0, 0, 0], [0.25, 0.25, 0.25]], [11, 17])
    crystals = [known.nacl(), cscl, known.nacl_conventional(), rattled, blende, cscl]
    assert distinct(crystals) == [0, 1, 0, 0, 4, 1]
    assert distinct(crystals[2:], known=crystals[:2]) == [0, 0, 4, 1]
    vectors = fingerprints([known.nacl(), cscl, blende, rattled])
    cosine = 1 - vectors @ vectors.T
    assert cosine[0, 3] < SAME / 2
    assert min(cosine[0, 1], cosine[0, 2], cosine[1, 2]) > 5 * SAME


# --- templates -----------------------------------------------------------------------------------


def test_the_most_alike_template_comes_first():
    rows, distance, replaced = Templates(train()).ranked(parse("SrTiO3"))
    assert [train()[r].name for r in rows] == ["near", "inverse", "polar", "far"]
    assert replaced[0].tolist() == [22, 56, 8]  # for Ti, Sr, O: equal amounts find their best partners
    assert distance[0] == distance[1] < 1 < distance[3]
    assert len(Templates(train(), farthest=1).ranked(parse("SrTiO3"))[0]) == 3
    assert len(Templates(train()).ranked(parse("SrTiO3"), atoms=10)[0]) == 0
    assert len(Templates([]).ranked(parse("SrTiO3"))[0]) == 0


def test_substitution_keeps_the_structure_and_scales_the_cell():
    made = generate("template", "SrTiO3", count=5, data=train())
    assert [g.origin.split()[0] for g in made] == ["near", "inverse", "polar"]  # "far" is one of them again
    best = made[0].crystal
    assert best.formula == "SrTiO3"
    assert best.volume == pytest.approx(
        64 * expected_volume([38, 22, 8, 8, 8]) / expected_volume([56, 22, 8, 8, 8])
    )
    assert 3.8 < best.volume ** (1 / 3) < 4.0
    assert best.symbols[:2] == ["Sr", "Ti"]
    assert made[0].duplicates == 1
    assert made[0].energy is None
    assert made[0].space_group == 221
    assert substituted(known.nacl(), {}) == known.nacl()


def test_equal_amounts_are_all_permuted():
    crystal = Crystal(np.eye(3) * 5, np.arange(12).reshape(4, 3) / 13, [3, 17, 26, 56])
    _, distance, replaced = Templates([crystal]).ranked(parse("NaBrCoSr"))
    wanted = [11, 27, 35, 38]
    assert dict(zip(wanted, replaced[0].tolist(), strict=True)) == {11: 3, 35: 17, 27: 26, 38: 56}
    assert distance[0] < 1.5


def test_templates_of_a_real_set_are_near_the_truth(data_folder):
    test = facetry.dataset("perov5", target=[]).test.crystals
    templates = Templates("perov5")
    ratio = []
    for row in range(0, 300, 30):
        crystal = test[row]
        ((made,),) = module.Maker(templates, count=1).over([parse(crystal.formula)])
        assert made.crystal.formula == crystal.formula
        ratio.append(made.crystal.volume / crystal.volume)
    assert np.median(np.abs(np.log(ratio))) < 0.12


# --- random search -------------------------------------------------------------------------------


def test_random_structures_have_room():
    formula = parse("Sr2Ti2O6")
    made = generate("rs", formula, count=30, seed=3)
    crystals = [g.crystal for g in made]
    assert {c.formula for c in crystals} == {"SrTiO3"}
    assert {len(c) for c in crystals} == {10}
    volumes = np.log([c.volume / expected_volume(c.atomic_numbers) for c in crystals])
    assert abs(volumes.mean()) < 0.08
    assert 0.05 < volumes.std() < 0.2
    assert float(minimum_distances(crystals).min()) > 0.6
    again = generate("rs", formula, count=30, seed=3)
    assert [g.crystal for g in again] == crystals
    assert generate("rs", formula, count=1, seed=4)[0].crystal != crystals[0]
    assert len(generate("rs", "Po", count=1)[0].crystal) == 1
    assert len(generate("rs", "SrTiO3", count=1, atoms=15)[0].crystal) == 15


def test_atoms_keep_the_distance_asked_for_where_there_is_room():
    made = RandomSearch(closest=0.6).candidates(parse("NaCl"), 8, 0, atoms=8)
    from facetry.chemistry.volume import covalent_radii

    for _ in range(8):
        crystal = next(made).crystal
        radius = covalent_radii()[crystal.atomic_numbers]
        apart = crystal.frac_coords[:, None] - crystal.frac_coords
        images = np.array(list(np.ndindex(5, 5, 5))) - 2
        vectors = (apart[:, :, None] + images) @ crystal.lattice
        length = np.linalg.norm(vectors, axis=-1)
        length[np.arange(8), np.arange(8)] = np.inf
        assert (length.min(-1) >= 0.6 * (radius[:, None] + radius) - 1e-9).all()


def test_the_lowest_energy_comes_first():
    from ase.calculators.emt import EMT

    made = generate("rs", "CuAu", count=4, seed=0, energy=EMT(), draws=12)
    energies = [g.energy for g in made]
    assert energies == sorted(energies)
    assert made[0].unit == "eV/atom"
    assert made[0].energy == pytest.approx(_emt(made[0].crystal))
    every = generate("rs", "CuAu", count=12, seed=0, energy=EMT())
    assert len(every) == 12
    assert energies[0] == min(
        g.energy for g in generate("rs", "CuAu", count=12, seed=0, energy=EMT(), draws=12)
    )


def _emt(crystal: Crystal) -> float:
    from ase.calculators.emt import EMT

    atoms = crystal.to_ase()
    atoms.calc = EMT()
    return atoms.get_potential_energy() / len(atoms)


def test_an_element_the_calculator_does_not_know_has_no_energy():
    from ase.calculators.emt import EMT

    made = generate("rs", "NaCl", count=2, energy=EMT(), draws=2)
    assert [(g.energy, g.unit) for g in made] == [(None, "")] * 2


# --- methods -------------------------------------------------------------------------------------


class Three:
    """A method with energies, as a model brings one."""

    energy_unit = "eV"

    def __init__(self, model, scale: float | int = 1.0) -> None:
        self.model, self.scale = model, scale

    def candidates(self, formula, count, seed, atoms=None):
        for number, a in enumerate((4.0, 3.9, 4.4)):
            yield Candidate(perovskite(a, [38, 22, 8, 8, 8]), self.scale * (5 - number), f"chain {number}")
        yield Candidate(perovskite(3.9, [38, 22, 8, 8, 8], 0.1), 4.5, "chain 3")

    def nothing(self, formula, atoms):
        return "nothing"


class Stub:
    name = "stub"


def test_a_model_brings_its_own_method(monkeypatch):
    monkeypatch.setitem(module.METHODS, "stub", f"{__name__}:Three")
    made = generate(Stub(), "SrTiO3", scale=2)
    assert [(g.energy, g.origin, g.duplicates, g.unit) for g in made] == [
        (4.5, "chain 3", 0, "eV"), (6.0, "chain 2", 2, "eV"),
    ]  # fmt: skip


def test_mistakes():
    with pytest.raises(ValueError, match=r"no option 'date'.*did you mean 'data'"):
        generate("template", "SrTiO3", date="perov5")
    with pytest.raises(ValueError, match="the option 'data' is needed"):
        generate("template", "SrTiO3")
    with pytest.raises(ValueError, match="did you mean the method 'template'"):
        generate("templates", "SrTiO3")
    with pytest.raises(ValueError, match="stub: expected a model that generates"):
        generate(Stub(), "SrTiO3")
    with pytest.raises(FormulaError, match="near: "):
        generate("rs", "SrTiX3")
    with pytest.raises(FormulaError, match="SrTiO3 has 5 atoms"):
        generate("rs", "SrTiO3", atoms=7)
    with pytest.raises(NothingFound, match="A2B3 among 7"):
        generate("template", "Al2O3", data=train())
    with pytest.raises(ValueError, match="count: expected at least 1"):
        generate("rs", "SrTiO3", count=0)
    with pytest.raises(ValueError, match="draws: expected at least count"):
        generate("rs", "SrTiO3", count=5, draws=3)
    for options in ({"closest": 3}, {"volume_spread": -1}):
        with pytest.raises(ValueError, match="expected a"):
            make_method("rs", **options)


# --- the shell -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for crystal in train()[:5]:
        (tmp_path / "train").mkdir(exist_ok=True)
        crystal.write(tmp_path / "train" / f"{crystal.name}.cif")
    (tmp_path / "wanted.csv").write_text("formula\nSrTiO3\nCaZrO3\n")
    return tmp_path


def test_random_search_in_a_shell(place, capsys):
    assert (
        run(
            [
                "generate",
                "CuAu",
                "Cu3Au",
                "CuAu",
                "--method",
                "rs",
                "-n",
                "2",
                "--energy",
                "emt",
                "-o",
                "made",
            ]
        )
        == 0
    )
    assert capsys.readouterr().err.strip() == "6 structures for 3 formulas; made/candidates.csv"
    with open("made/candidates.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(module.COLUMNS)
    assert [r["file"] for r in rows[::2]] == ["CuAu_1.cif", "Cu3Au_1.cif", "CuAu-2_1.cif"]
    for row in rows:
        crystal = facetry.read(place / "made" / row["file"])[0]
        assert crystal.volume == pytest.approx(float(row["volume"]), rel=1e-5)
        assert crystal.name == row["file"].removesuffix(".cif")
        assert row["unit"] == "eV/atom"
    assert float(rows[0]["energy"]) <= float(rows[1]["energy"])
    assert run(["generate", "CuAu", "--method", "rs", "-o", "made"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_templates_in_a_shell(place, capsys):
    arguments = [
        "generate",
        "wanted.csv",
        "Al2O3",
        "--method",
        "template",
        "--data",
        "train",
        "-n",
        "2",
        "-o",
        "made",
    ]
    code = run([*arguments, "--json", "--set", "farthest=20"])
    captured = capsys.readouterr()
    assert "A2B3" in captured.err
    rows = json.loads(captured.out)
    assert code == 3
    assert rows[-1]["status"] == "failed"
    assert "no template with the anonymous formula A2B3" in rows[-1]["message"]
    assert {r["formula"] for r in rows} == {"SrTiO3", "CaZrO3", "Al2O3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SrTiO3"], "expected MODEL FORMULA"),
        (["SrTiO3", "--method", "annealing"], "annealing"),
        (["SrTiX3", "--method", "rs"], "near: "),
        (["SrTiO3", "--method", "rs", "--atoms", "7"], "SrTiO3 has 5 atoms"),
        (["SrTiO3", "--method", "rs", "-n", "0"], "--count"),
        (["SrTiO3", "--method", "rs", "--set", "closest"], "expected KEY=VALUE"),
        (["SrTiO3", "--method", "rs", "--set", "closer=1"], "did you mean 'closest'"),
        (["SrTiO3", "--method", "template"], "'data' is needed"),
        (["SrTiO3", "--method", "template", "--data", "perov6"], "perov5"),
        (["no-such-model", "SrTiO3"], "no-such-model"),
    ],
)
def test_mistakes_in_a_shell(place, capsys, arguments, words):
    assert run(["generate", *arguments, "-o", "made"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (place / "made").exists()


def test_where_there_is_no_room_the_formula_is_named(monkeypatch):
    monkeypatch.setattr(RandomSearch, "candidates", lambda *given: iter(()))
    with pytest.raises(NothingFound, match="NaCl: no room for the atoms of NaCl"):
        generate("rs", "NaCl", count=2)
