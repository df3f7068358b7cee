"""The certificate finds what is broken, says so, and passes what holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import facetry
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.evaluation import changes
from facetry.evaluation.certificate_suite import suite
from facetry.evaluation.continuity import SMOOTH, Path, follow, largest, paths
from facetry.evaluation.symmetry import CHECKS, Answer, Measured, due, findings, rounding_unit
from facetry.geometry.space_group import space_group
from facetry.graph.builders import KNearest
from facetry.models import SchNet, Symmetry
from facetry.tasks.certify import certify, random_model
from tests import crystals as zoo

SMALL = {"channels": 16, "layers": 2}
FEW = [zoo.nacl_conventional(), zoo.tellurium(), zoo.orthorhombic_motif()]


# ------------------------------------------------------------------ the suite


def test_suite_is_what_it_says():
    crystals = suite()
    assert 40 <= len(crystals) <= 60
    assert len({c.name for c in crystals}) == len(crystals)
    groups = {c.name: space_group(c) for c in crystals}
    for name, number in {
        "NaCl": 225, "NaCl, conventional cell": 225, "Si": 227, "FeS2, pyrite": 205, "ZnS, wurtzite": 186,
        "Bi2Te3, layers": 166, "CaCO3, calcite": 167, "TiO2, rutile": 136, "TiO2, anatase": 141,
        "CaTiO3, orthorhombic": 62, "ZrO2, monoclinic": 14, "triclinic with inversion": 2,
        "SiO2, quartz, right": 152, "SiO2, quartz, left": 154, "FeSi, left": 198, "fcc lattice, P1 motif": 1,
        "GaAs, skewed cell": 216,
    }.items():  # fmt: skip
        assert groups[name] == number, name
    for c in crystals:
        shift = (
            c.frac_coords[:, None] - c.frac_coords + (np.array(list(np.ndindex(5, 5, 5))) - 2)[:, None, None]
        )
        distance = np.linalg.norm(shift @ c.lattice, axis=-1)
        assert distance[distance > 1e-9].min() > 0.85, c.name
    chiral = {c.name for c in crystals if changes.is_chiral(c)}
    assert {"SiO2, quartz, right", "SiO2, quartz, left", "Te, left", "FeSi, right"} < chiral
    assert len(chiral) == 12
    assert not any(changes.is_chiral(c) is None for c in crystals)


def test_hands_are_mirror_images():
    """Left and right are one crystal and its mirror image: the distances of all atoms agree."""
    named = {c.name: c for c in suite()}
    for name in ("SiO2, quartz", "Te", "FeSi"):
        left, right = named[f"{name}, left"], named[f"{name}, right"]
        spectra = []
        for c in (left, right):
            shift = c.frac_coords[:, None] - c.frac_coords
            images = (np.array(list(np.ndindex(5, 5, 5))) - 2)[:, None, None]
            spectra.append(np.sort(np.linalg.norm((shift + images) @ c.lattice, axis=-1).ravel())[:300])
        np.testing.assert_allclose(*spectra, atol=1e-9)


def test_nearly_achiral_is_neither():
    assert changes.is_chiral(zoo.nacl()) is False
    three = zoo.srtio3()
    rattled = three.replace(
        frac_coords=three.frac_coords + np.random.default_rng(0).normal(size=(5, 3)) * 1e-4
    )
    assert changes.is_chiral(rattled) is None


# ------------------------------------------------------------------ changes


@pytest.mark.parametrize(
    "draw",
    [
        changes.rotation, changes.translation, changes.permutation, changes.lattice_vectors,
        changes.cell_choice, changes.diagonal_supercell, changes.slanted_supercell, changes.mirror,
    ],
)  # fmt: skip
def test_changes_describe_the_same_crystal(draw):
    """Distances from one kind of atom to another stay, atom by atom."""
    crystal = zoo.random_crystal(3, atoms=4)
    for seed in range(5):
        change = draw(crystal, np.random.default_rng(seed))
        other = change(crystal)
        assert other.volume / len(other) == pytest.approx(crystal.volume / len(crystal))
        near, far = (_nearest(c, 12) for c in (crystal, other))
        np.testing.assert_allclose(far, near[change.source], atol=1e-8)


def test_answers_come_back():
    """What goes with the crystal and is brought back is what it was, however long the rows of the other cell;
    a deformation that turns with the crystal is no change, one that does not is."""
    crystal = zoo.random_crystal(3, atoms=4)
    stretch = np.diag([1.02, 0.97, 1.0]) + 0.01
    for draw in (changes.rotation, changes.cell_choice, changes.slanted_supercell, changes.mirror):
        change = draw(crystal, np.random.default_rng(2))
        other = change(crystal)
        before = Answer(np.zeros(0), crystal.lattice @ stretch, crystal.frac_coords)
        turned = change.turn @ stretch @ change.turn.T
        after = Answer(np.zeros(0), other.lattice @ turned, other.frac_coords)
        assert before.distance(after, change) < 1e-12
        wrong = Answer(np.zeros(0), other.lattice @ turned * (1 + 1e-6), other.frac_coords)
        size = np.abs(before.lattice).max()
        assert before.distance(wrong, change) == pytest.approx(1e-6 * size, rel=1e-3)
        moved = Answer(np.zeros(0), after.lattice, after.frac_coords + 1e-3)
        assert before.distance(moved, change) > 1e-4


def _nearest(crystal: Crystal, count: int) -> np.ndarray:
    batch = KNearest(count)([crystal])
    d = batch.edge_vectors().norm(dim=1).numpy()
    return np.stack([np.sort(d[batch.graph.center.numpy() == i])[:count] for i in range(len(crystal))])


def test_primitive_and_back():
    given = zoo.rebased(zoo.nacl_conventional(), zoo.unimodular(3))
    small, change = changes.primitive(given)
    assert len(small) == 2
    again = change(small)
    np.testing.assert_allclose(again.lattice, given.lattice, atol=1e-9)
    np.testing.assert_allclose(again.frac_coords, given.frac_coords, atol=1e-9)
    assert changes.primitive(zoo.nacl()) is None


def test_unimodular_matrices():
    found = [changes.random_unimodular(np.random.default_rng(i)) for i in range(50)]
    assert {round(abs(np.linalg.det(m))) for m in found} == {1}
    assert max(np.abs(m).max() for m in found) == 5


# ------------------------------------------------------------------ findings


def test_what_is_due():
    everything, published = Symmetry(), Symmetry(False, False, True, False, False, False)
    assert all(due(check, everything, True) for check in CHECKS)
    assert {c for c in CHECKS if due(c, published, True)} == {"permutation", "batch", "repeat"}
    handed = Symmetry(reflection=False)
    assert due("mirror_achiral", handed, invariant=True)
    assert not due("mirror_achiral", handed, invariant=False)
    assert not due("mirror_chiral", handed, True)


def test_verdicts():
    crystal = zoo.nacl()
    unit = rounding_unit(crystal, torch.float64)
    measured = Measured(crystal, False, Answer(np.array([2.0])))
    for check, roundings in (("rotation", 150), ("permutation", 50), ("cell_choice", 150), ("supercell", 1)):
        measured.change[check] = 2.0 * roundings * unit
        measured.units[check] = 2.0 * roundings
    found = findings([measured], Symmetry(lattice_basis=False), 2.0, True)
    assert found["rotation"].verdict == "fails"
    assert found["permutation"].verdict == "holds"
    assert found["cell_choice"].verdict == "differs"
    assert found["mirror_chiral"].verdict == "not measured"


class Wrong(SchNet):
    """SchNet with one thing broken."""

    def __init__(self, fault: str = "", channels: int = 16) -> None:
        super().__init__(layers=2, channels=channels)
        self.fault, self.calls = fault, 0

    def forward(self, batch):
        y = super().forward(batch)
        self.calls += 1
        first = batch.lattice[:, 0]
        small = {
            "turned": first[:, :1].abs() * 1e-9,
            "long cell": torch.log(batch.num_atoms.double())[:, None] * 1e-3,
            "batched": torch.full_like(first[:, :1], len(batch) * 1e-6),
            "not the same": torch.full_like(first[:, :1], self.calls * 1e-12),
            "": first[:, :1] * 0,
        }
        return y + small[self.fault].to(y.dtype)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [("", set()), ("turned", {"rotation"}), ("batched", {"batch"}), ("not the same", {"repeat"})],
)
def test_finds_what_is_broken(fault, failing):
    torch.manual_seed(0)
    found = certify(Wrong(fault), FEW, deformed=0)
    fails = {f.check for f in found.series["float64"].values() if f.verdict == "fails"}
    assert failing <= fails
    assert found.ok == (not failing)
    assert bool(found.failures) == bool(failing)
    assert ("FAILS" in str(found)) == bool(failing)


# ------------------------------------------------------------------ continuity


def stepped(at: float, height: float):
    """An answer of the cell's volume and first distance, with a step."""

    def answers(crystals):
        found = []
        for c in crystals:
            strain = float(np.log(c.volume / 100))
            found.append(
                Answer(np.array([strain + (height if strain > at else 0.0)]), edges=int(strain > at))
            )
        return found

    return answers


def test_jumps_are_found_where_they_are():
    crystal = Crystal(np.eye(3) * 100 ** (1 / 3), [[0, 0, 0]], [84], name="cube")
    steps = np.concatenate([[0.0], np.logspace(-8, -2, 13)])
    way = Path("strain", "cube", lambda t: crystal.replace(lattice=crystal.lattice * np.exp(t / 3)), steps)
    for at, height in ((1e-3, 1e-2), (2.3e-7, 1e-5), (6e-3, 1e-6)):
        (found,) = follow(stepped(at, height), [way])
        assert found.jump == pytest.approx(height, rel=1e-3)
        assert found.place == pytest.approx(at, rel=1e-5)
    (smooth,) = follow(stepped(1.0, 1.0), [way])
    assert smooth.jump < 1e-10
    assert largest([smooth, found], "strain") is found
    assert largest([smooth], "jitter") is None


def test_schnet_is_smooth_and_its_first_form_is_not():
    for smooth in (True, False):
        torch.manual_seed(0)
        found = certify(SchNet(channels=16, layers=2, smooth=smooth), FEW)
        assert found.continuous == smooth
        assert found.ok
        worst = largest(found.followed, "crossing")
        assert (worst.jump <= SMOOTH * found.spread) == smooth
        assert worst.bonds == 2


def test_paths_start_in_the_primitive_cell():
    ways = paths(zoo.nacl_conventional(), 0)
    assert {w.kind for w in ways} == {"jitter", "strain", "crossing"}
    assert all(len(w.at(0.0)) == 2 for w in ways)
    assert [w.kind for w in paths(zoo.po(), 0)] == ["strain"]


class Crowded(SchNet):
    """Answers by how many crystals are in the batch."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__(layers=2, channels=channels)

    def forward(self, batch):
        return super().forward(batch) + 1e-3 * (len(batch) > 1)


class Undeclared(SchNet):
    """Promises nothing."""

    @property
    def symmetry(self):
        return Symmetry(False, False, False, False, False, False)

    @property
    def continuous(self):
        return False


def test_a_model_that_declares_nothing_cannot_fail():
    found = certify(Undeclared(channels=8, layers=1), FEW[:2], deformed=0)
    assert found.ok
    assert found.verdict("rotation") == "same"
    assert "declares no symmetry" in str(found)


def test_one_crystal_gets_company():
    found = certify(Crowded(), FEW[:1], deformed=0)
    assert found.series["float64"]["batch"].verdict == "fails"


def shaken(crystal, seed=0, size=0.05):
    away = np.random.default_rng(seed).normal(size=(len(crystal), 3)) * size
    return crystal.replace(frac_coords=crystal.frac_coords + away @ np.linalg.inv(crystal.lattice))


def test_large_crystals_are_not_deformed():
    model = SchNet(channels=8, layers=1, cutoff=3.7)
    large = shaken(zoo.cscl().supercell(np.diag([3, 4, 2])))
    alone = certify(model, [large], deformed=5)
    assert alone.ok
    assert not alone.followed
    assert str(alone).count("no crystal of 2 to 40 atoms was deformed") == 3
    assert {f.name for f in certify(model, [large, zoo.nacl()]).followed} == {"NaCl"}


def test_jumps_are_printed_with_a_verdict(tmp_path):
    """The gap between shells decides whether a perovskite jumps when its atoms jitter."""
    for gap, verdict in ((1e-3, "jumps"), (0.05, "smooth")):
        options = {"channels": 8, "layers": 1, "k": 12, "gap": gap, "construction": "canonical"}
        found = certify(random_model("icomformer", options), [zoo.srtio3()])
        assert found.jump_verdict("jitter") == verdict
        assert found.to_dict()["jumps"]["jitter"] == verdict
        line = next(x for x in str(found).splitlines() if x.startswith("jitter"))
        assert verdict in line
        assert ("SrTiO3, 4 edges" in line) == (verdict == "jumps")
        assert all(f.rounding is not None and f.rounding < 1e-3 for f in found.followed)
    double = certify(random_model("schnet", SMALL).double(), [zoo.po()])
    assert [f.rounding for f in double.followed] == [None]
    assert "not measured" in str(double)
    for certificate in (found, double):
        assert "NaN" not in certificate.write(tmp_path / "c")[0].read_text()


# ------------------------------------------------------------------ the verb


def test_every_job(tmp_path):
    relaxing = certify(random_model("empnn", {**SMALL, "blocks": 2}), FEW, deformed=1)
    assert relaxing.ok
    assert relaxing.unit == "Å"
    assert relaxing.verdict("lattice_basis") == relaxing.verdict("reflection") == "holds"
    baseline = certify(random_model("lattice_ff", SMALL), FEW, deformed=0)
    assert baseline.ok
    assert baseline.verdict("supercell") == "differs"
    energy = certify(random_model("continuousp", {"channels": 16}), FEW)
    assert energy.ok, energy.failures
    titles = {e.title: e for e in energy.extras}
    assert titles["slopes against differences"].value < 1e-6
    assert max(e.value for t, e in titles.items() if t.startswith("balance, moves")) < 1e-9
    assert titles["balance, published sign"].verdict == "differs"
    assert titles["jump of slopes at the cutoff"].due
    for found in (relaxing, baseline, energy):
        data, page = found.write(tmp_path / found.title)
        content = json.loads(data.read_text())
        assert content["verdict"] == "holds"
        assert content["crystals"][0]["change"]["float64"]["rotation"] >= 0
        assert "http" not in page.read_text().replace("http-equiv", "")


def test_published_frames_fail_where_ours_hold():
    """The published construction declares no invariance; measured, it has none. One frame is as invariant."""
    crystals = [c for c in suite() if c.name in ("NaCl", "ZnS, wurtzite", "fcc lattice, P1 motif")]
    options = {**SMALL, "k": 12}
    ours = certify(random_model("icomformer", options), crystals, deformed=0)
    assert ours.ok
    assert list(ours.series) == ["float64", "float32", "float64, one frame"]
    published = certify(
        random_model("icomformer", {**options, "construction": "published"}), crystals, deformed=0
    )
    assert published.ok  # nothing else is declared
    assert published.verdict("rotation") == published.verdict("lattice_basis") == "differs"


def test_model_is_left_as_it_was():
    model = SchNet(channels=16, layers=2).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    certify(model, FEW[:1], deformed=0)
    assert model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_an_uncalibrated_model_is_calibrated_on_a_copy():
    model = random_model("crystalformer", {"channels": 16, "blocks": 1})
    assert certify(model, FEW[:2], deformed=0).ok
    assert not model.calibrated


def test_bad_inputs_get_rows(tmp_path, capsys):
    (tmp_path / "good.cif").write_text(zoo.nacl().to_text("cif"))
    (tmp_path / "bad.cif").write_text("data_x\n_cell_length_a 3\n")
    half = zoo.nacl().replace(occupancies=[0.5, 1.0], name="half")
    (tmp_path / "half.cif").write_text(half.to_text("cif"))
    out = tmp_path / "out"
    options = ["--random", "--set", "model.channels=16", "--set", "model.layers=2"]
    assert run(["certify", "schnet", str(tmp_path / "*.cif"), *options, "-o", str(out)]) == 3
    shown = capsys.readouterr().out
    assert "all that is declared holds" in shown
    assert "bad.cif: failed: " in shown
    assert "half.cif: skipped: " in shown
    rows = json.loads((out / "certificate.json").read_text())["crystals"]
    assert [r["status"] for r in rows] == ["failed", "ok", "skipped"]
    assert all(r["message"] for r in rows if r["status"] != "ok")


def test_nothing_measured(tmp_path, capsys, recwarn):
    (tmp_path / "bad.cif").write_text("data_x\n_cell_length_a 3\n")
    assert run(["certify", "icomformer-perov5", str(tmp_path / "bad.cif"), "-o", str(tmp_path / "o")]) == 3
    assert capsys.readouterr().out.endswith("no crystal got an answer: nothing was measured\n")
    assert json.loads((tmp_path / "o" / "certificate.json").read_text())["verdict"] == "not measured"
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_exit_code_of_a_broken_symmetry(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(facetry.models.MODELS, "schnet", Wrong)
    options = ["--random", "--set", "model.fault=turned", "-o", str(tmp_path / "c"), "--json"]
    crystal = tmp_path / "te.cif"
    crystal.write_text(zoo.tellurium().to_text("cif"))
    assert run(["certify", "schnet", str(crystal), *options]) == 4
    assert json.loads(capsys.readouterr().out)["verdict"] == "fails"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["icomformer"], "add --random"),
        (["nosuchmodel", "--random"], "unknown model"),
        (["icomformer", "--random", "--set", "model.layer=2"], "did you mean 'layers'"),
        (["icomformer", "--random", "--set", "data.target=x"], "expected keys of the table model"),
        (["icomformer-perov5", "--set", "model.layers=2"], "add --random"),
        (["icomformer-perov5", "nowhere.cif"], "nowhere.cif"),
        (["icomformer-perov5", "-o", "/dev/null/certificate"], "expected a folder to write into"),
    ],
)
def test_mistakes(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["certify", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
