"""Predict: one bad structure never stops a batch, results do not depend on company, units are physical."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from facetry.card import ModelCard, Target
from facetry.crystal import Crystal
from facetry.tasks.inference import Limits, Outcome, _chunks
from facetry.tasks.inputs import Item, items_of
from facetry.tasks.predict import COLUMNS, predict, predictions, table_columns, targets_of

from .doubles import Double


def crystal(*numbers, name="", **other):
    sites = np.linspace(0, 0.9, len(numbers))[:, None] * np.ones(3)
    return Crystal(4 * np.eye(3), sites, list(numbers), name=name, **other)


def card(*targets, **other):
    return ModelCard(model="double", options={}, graph={}, targets=list(targets), **other)


def expected(*numbers):
    return np.mean(numbers) + 0.1 * len(numbers)


def test_untrained_model_answers_in_standardised_units():
    (result,) = predict(Double(), crystal(38, 22, 8, 8, 8, name="STO"))
    assert result.value == pytest.approx(expected(38, 22, 8, 8, 8))
    assert (result.status, result.unit, result.name, result.source) == ("ok", "standardised", "STO", "STO")
    assert result.lower is None
    assert result.upper is None
    assert result.in_domain is None


def test_trained_model_answers_in_its_unit_with_interval():
    model = Double()
    model.card = card(Target(name="gap", unit="eV", mean=5.0, std=2.0, quantile=0.25))
    (result,) = predict(model, [crystal(1, 8)])
    value = 2 * expected(1, 8) + 5
    assert (result.value, result.lower, result.upper) == pytest.approx((value, value - 0.25, value + 0.25))
    assert (result.unit, result.target) == ("eV", "gap")


def test_mode_gradients_and_device_are_restored():
    model = Double()
    model.dropout.eval()  # a mixed state, as with frozen layers
    predict(model, [crystal(1)])
    assert model.training
    assert not model.dropout.training
    assert torch.is_grad_enabled()
    stream = predictions(model, items_of([crystal(1), crystal(2)]))
    next(stream)
    assert torch.is_grad_enabled()
    stream.close()
    assert model.training


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("kind", ["poison", "poison_graph"])
def test_the_culprit_is_found_and_the_rest_get_values(kind, ahead, monkeypatch):
    monkeypatch.setattr("facetry.tasks.inference.spare_core", lambda device: ahead)
    model = Double(**{kind: 13})
    crystals = [crystal(1, 8, name=f"c{i}") for i in range(20)]
    crystals[7] = crystal(13, 8, name="culprit")
    crystals[12] = crystal(8, 13, 13, name="another")
    results = predict(model, crystals)
    assert [r.name for r in results] == [c.name for c in crystals]
    assert [i for i, r in enumerate(results) if r.status == "failed"] == [7, 12]
    wanted = "no graph for this one" if kind == "poison_graph" else "RuntimeError: poisoned"
    assert results[7].message == wanted
    assert results[7].value is None
    assert all(r.value == pytest.approx(expected(1, 8)) for r in results if r.status == "ok")


def test_results_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    crystals = [crystal(*rng.integers(1, 90, rng.integers(1, 9))) for _ in range(50)]
    one = [r.value for r in predict(Double(), crystals, batch_size=1)]
    many = [r.value for r in predict(Double(), crystals, batch_size=17)]
    back = [r.value for r in predict(Double(), crystals[::-1])][::-1]
    np.testing.assert_allclose(one, many, rtol=1e-6)
    np.testing.assert_allclose(one, back, rtol=1e-6)


def test_out_of_memory_halves_the_batch_and_names_what_does_not_fit():
    model = Double(max_atoms=12)
    crystals = [crystal(*[8] * n) for n in (5, 5, 5, 5, 20, 5)]
    results = predict(model, crystals)
    assert [r.status for r in results] == ["ok"] * 4 + ["failed", "ok"]
    assert "not enough memory for 20 atoms" in results[4].message
    assert max(model.batches) <= 2


def test_chunks_are_bounded_by_crystals_and_atoms():
    items = [Item(str(i), crystal(*[8] * n)) for i, n in enumerate([3, 3, 3, 9, 1, 1, 1, 1, 1])]
    items.insert(2, Item("bad", None, "unreadable"))
    chunks = [[len(i.crystal or ()) for i in c] for c in _chunks(items, Limits(4, 6, 100))]
    assert chunks == [[3, 3, 0], [3], [9], [1, 1, 1, 1], [1]]


@pytest.mark.parametrize("ahead", [False, True])
def test_only_a_few_inputs_are_read_ahead(ahead, monkeypatch):
    monkeypatch.setattr("facetry.tasks.inference.spare_core", lambda device: ahead)
    drawn = []

    def endless():
        for i in range(10_000):
            drawn.append(i)
            yield crystal(8)

    stream = predictions(Double(), items_of(endless()), batch_size=8)
    next(stream)
    assert len(drawn) <= 8 * 3 + 1
    stream.close()


def test_what_is_no_crystal_gets_a_row(tmp_path):
    flat = pytest.importorskip("ase").Atoms("Cu", cell=[0, 0, 0], pbc=True)
    results = predict(Double(), [crystal(8), flat, "text.cif.missing", crystal(1)])
    assert [r.status for r in results] == ["ok", "failed", "failed", "ok"]
    assert "cell" in results[1].message
    assert "\n" not in results[2].message
    with pytest.raises(TypeError, match="expected a Crystal"):
        predict(Double(), 7)


def test_disordered_crystals_are_skipped_with_the_reason():
    alloy = crystal(29, 8, occupancies=[{29: 0.5, 79: 0.5}, 0.9], name="alloy")
    (result,) = predict(Double(), alloy)
    assert result.status == "skipped"
    assert "1 of 2 sites partly occupied" in result.message
    assert "1 of 2 sites shared by several elements" in result.message


def test_values_that_are_not_finite_are_failures():
    results = predict(Double(nan_for=13.0), [crystal(8), crystal(13)])
    assert [r.status for r in results] == ["ok", "failed"]
    assert "not finite" in results[1].message


def test_in_domain_follows_elements_and_distance():
    model = Double()
    model.card = card(Target(name="gap"), elements=[1, 8], domain_threshold=0.5)
    model.domain_reference = torch.tensor([[8.0, 1.0], [4.5, 2.0]])
    same, near, far, foreign = predict(model, [crystal(8), crystal(1, 8), crystal(8, 8, 8, 8), crystal(26)])
    assert same.in_domain
    assert near.in_domain
    assert far.in_domain is False
    assert "unlike the training data (distance 3" in far.message
    assert foreign.in_domain is False
    assert "not in the training data: Fe" in foreign.message
    assert [r.status for r in (same, near, far, foreign)] == ["ok"] * 4


def test_classifier_gives_label_and_probabilities():
    model = Double(outputs=4)
    model.card = card(
        Target(name="metal", task="binary", classes=["insulator", "metal"]),
        Target(name="system", task="multiclass", classes=["cubic", "other", "none"]),
    )
    binary, multi = predict(model, [crystal(1)])
    assert binary.value == "metal"
    assert binary.probability == pytest.approx(1 / (1 + np.exp(-1.1)))
    assert sum(multi.probabilities.values()) == pytest.approx(1)
    assert multi.value == "none"
    columns = list(table_columns(targets_of(model)))
    assert columns[5:8] == ["target", "value", "probability"]


def test_several_targets_give_a_row_each():
    model = Double(outputs=2)
    model.card = card(Target(name="a", unit="eV"), Target(name="b", unit="GPa", std=10.0))
    rows = [p.row() for p in predict(model, [crystal(1), crystal(8)])]
    assert [(r["target"], r["unit"]) for r in rows] == [("a", "eV"), ("b", "GPa")] * 2
    assert rows[3]["value"] == pytest.approx(10 * (expected(8) + 1))
    failed = predict(Double(outputs=3, poison=1), [crystal(1)])
    assert [p.status for p in failed] == ["failed"] * 3


def test_the_table_has_the_promised_columns():
    assert ",".join(COLUMNS) == "source,name,formula,atoms,status,value,unit,lower,upper,in_domain,message"
    model = Double()
    assert tuple(table_columns(targets_of(model))) == COLUMNS
    row = predict(model, [crystal(38, 22, 8, 8, 8, name="x")])[0].row()
    assert set(COLUMNS) <= set(row)
    assert (row["formula"], row["atoms"]) == ("SrTiO3", 5)


def test_an_outcome_keeps_its_input():
    item = Item("a", None, "reason")
    assert Outcome(item, "failed", "reason").values == {}
    (result,) = predictions(Double(), [item])
    assert (result.source, result.message, result.crystal) == ("a", "reason", None)


@pytest.fixture
def large():
    """SrTiO3, 800 formula units with every atom off its site: 4000 atoms, no smaller cell."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    cell = Crystal(3.905 * np.eye(3), sites, [38, 22, 8, 8, 8]).supercell([10, 10, 8])
    shift = np.random.default_rng(0).normal(scale=1e-3, size=(len(cell), 3))
    return cell.replace(frac_coords=cell.frac_coords + shift, name="large")


def test_a_crystal_that_cannot_fit_is_not_tried(large, monkeypatch):
    from facetry.models import MODELS

    model = MODELS["icomformer"](layers=1, channels=16, k=6)
    small = crystal(38, 22, 8, name="small")
    monkeypatch.setattr("facetry.tasks.inference.free_memory", lambda: 1_000_000)
    monkeypatch.setattr("facetry.tasks.inference._CPU_LIMITS", (64, 2_000, 10_000))
    results = predict(model, [small, large, small])
    assert [r.status for r in results] == ["ok", "failed", "ok"]
    assert results[1].message.startswith("not enough memory for 4000 atoms, ")
    monkeypatch.setattr("facetry.tasks.inference.free_memory", lambda: None)
    assert predict(model, large)[0].status == "ok"


LITTLE_MEMORY = """
import resource, sys
import numpy as np
import torch
torch.set_num_threads(1)
import facetry
from facetry.models import MODELS
sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
small = facetry.Crystal(3.905 * np.eye(3), sites, [38, 22, 8, 8, 8], name="small")
large = small.supercell([10, 10, 8])
shift = np.random.default_rng(0).normal(scale=1e-3, size=(4000, 3))
large = large.replace(frac_coords=large.frac_coords + shift)
model = MODELS["icomformer"](layers=1, channels=256)
facetry.predict(model, small)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
for result in facetry.predict(model, [small, large, small]):
    print(result.status, result.message)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs resource limits")
@pytest.mark.parametrize("megabytes", [150, 400])
def test_4000_atoms_and_little_memory_give_a_row(megabytes):
    command = [sys.executable, "-c", LITTLE_MEMORY, str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["ok", "failed", "ok"]
    assert "not enough memory for 4000 atoms" in rows[1]


def test_one_frame_is_as_invariant_as_the_average() -> None:
    from facetry.models import EComFormer, IComFormer
    from tests import crystals as zoo

    torch.manual_seed(0)
    model = IComFormer(channels=16, layers=2, k=8).double()
    crystals = [zoo.nacl(), zoo.zno(), zoo.orthorhombic_motif()]
    turned = [zoo.rebased(zoo.rotated(c, zoo.rotation(1)), zoo.unimodular(4)) for c in crystals]
    one = [p.value for p in predict(model, crystals, one_frame=True)]
    again = [p.value for p in predict(model, turned, one_frame=True)]
    np.testing.assert_allclose(one, again, rtol=0, atol=1e-12)
    assert model.graph.frames == "average"
    average = [p.value for p in predict(model, crystals)]
    assert np.abs(np.subtract(one, average)).max() > 1e-12
    with pytest.raises(ValueError, match="ecomformer does not average over lattice frames"):
        predict(EComFormer(channels=16, layers=1, scalars=4, k=8), crystals, one_frame=True)
