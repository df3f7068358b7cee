"""Disordered crystals: sites shared by several elements, partly vacant, split over two positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph import GraphError, KNearest, LatticeKNearest
from facetry.graph.composition import Composition
from facetry.models import Crystalformer, CrystalFramer
from tests import crystals as zoo
from tests.reference import plain_crystalframer as plain
from tests.reference.test_crystalframer import make, outputs

_BASE = zoo.random_crystal(2, atoms=4)
_FIRST, _LAST = int(_BASE.atomic_numbers[0]), int(_BASE.atomic_numbers[3])
RANDOM = _BASE.replace(
    occupancies=[{26: 0.3, 27: 0.6, _FIRST: 0.1}, 0.5, 1.0, {_LAST: 0.25, 8: 0.5}], name="mixed and vacant"
)
ALLOY = Crystal(zoo.fcc(3.8), [[0, 0, 0]], [29], [{29: 0.75, 79: 0.25}], name="Cu3Au, disordered")
SPLIT = Crystal(
    np.diag([4.1, 4.3, 5.0]),
    [[0, 0, 0], [0.5, 0.5, 0.47], [0.5, 0.5, 0.53], [0.2, 0.5, 0.1]],
    [38, 22, 22, 8],
    [1.0, 0.5, 0.5, {8: 0.6, 9: 0.3}],
    name="split, 0.3 Å apart",
)
DISORDERED = [RANDOM, ALLOY, SPLIT]
ORDERED = [zoo.random_crystal(1, atoms=3), zoo.nacl(), zoo.zno()]
BOTH = [(Crystalformer, {}), (CrystalFramer, {})]
FOURIER = (Crystalformer, {"reciprocal": "heads"})
ALL = [*BOTH, FOURIER, (CrystalFramer, {"frames": "static"}), (CrystalFramer, {"frames": "weighted_pca"})]


@pytest.mark.parametrize(("cls", "options"), [*BOTH, FOURIER])
def test_outputs_and_gradients_are_those_of_the_plain_formula(cls, options):
    model = make(cls, reach=2.5, **options)
    fast = model(model.graph(DISORDERED))
    slow = torch.stack([plain.forward(model, c) for c in DISORDERED])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    ours = torch.autograd.grad(fast.sum(), list(model.parameters()))
    theirs = torch.autograd.grad(slow.sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_one_species_a_site_is_the_ordered_model_bit_for_bit(cls, options):
    model = make(cls, **options)
    batch = model.graph(ORDERED)
    assert batch.composition is None
    written_out = replace(batch, composition=Composition.ordered(batch.atomic_numbers, batch.lattice))
    found = []
    for b in (batch, written_out):
        value = model(b)
        found.append([value, *torch.autograd.grad(value.sum(), list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_ordered_crystals_build_the_same_graph_beside_disordered_ones():
    model = make(CrystalFramer)
    alone, beside = model.graph(ORDERED), model.graph([*ORDERED, ALLOY]).select(range(len(ORDERED)))
    for name in ("lattice", "frac_coords", "atomic_numbers", "num_atoms", "atom_map"):
        assert torch.equal(getattr(alone, name), getattr(beside, name)), name
    assert torch.equal(alone.graph.neighbor, beside.graph.neighbor)
    assert torch.equal(beside.composition.share, torch.ones(len(alone.atomic_numbers)).double())


def test_sites_enter_linearly_in_their_shares():
    """Before the first block: a mixture is the mixture of vectors, a vacancy is zero."""
    model = make(Crystalformer)

    def embedded(site):
        crystal = Crystal(zoo.fcc(3.8), [[0, 0, 0]], [next(iter(site))], [site])
        return model._embedded(model.graph([crystal]))[0]

    pure = {z: embedded({z: 1.0}) for z in (26, 27, 79)}
    mixed = 0.2 * pure[26] + 0.5 * pure[27] + 0.1 * pure[79]
    torch.testing.assert_close(embedded({26: 0.2, 27: 0.5, 79: 0.1}), mixed, rtol=0, atol=1e-16)
    torch.testing.assert_close(embedded({26: 0.25}), 0.25 * pure[26], rtol=0, atol=0)
    assert torch.equal(pure[26], model.elements[25])


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_the_way_a_disordered_crystal_is_written_does_not_matter(cls, options):
    model = make(cls, **options)
    turns = {
        "turned": [zoo.rotated(c, zoo.rotation(i)) for i, c in enumerate(DISORDERED)],
        "shifted": [zoo.shifted(c, i) for i, c in enumerate(DISORDERED)],
        "in another order": [zoo.permuted(c, i + 1) for i, c in enumerate(DISORDERED)],
        "in another cell": [
            zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(5 * i)) for i, c in enumerate(DISORDERED)
        ],
        "in a supercell": [c.supercell([[1, 1, 0], [-1, 1, 0], [0, 1, 2]]) for c in DISORDERED],
    }
    expected = outputs(model, DISORDERED)
    assert np.ptp(expected) > 1e-4
    for what, crystals in turns.items():
        assert np.abs(outputs(model, crystals) - expected).max() <= 1e-12, what


def test_primitive_cells_keep_distinct_shares_apart():
    """One lattice, two sites: the cell halves only where both hold the same species in the same shares."""
    lattice, spots = np.diag([3.0, 3.0, 6.0]), [[0, 0, 0], [0, 0, 0.5]]
    graph = Crystalformer().graph
    for second, atoms in (({26: 0.5, 27: 0.5}, 1), ({26: 0.51, 27: 0.49}, 2), ({26: 0.5}, 2)):
        batch = graph([Crystal(lattice, spots, [26, 26], [{26: 0.5, 27: 0.5}, second])])
        assert len(batch.atomic_numbers) == atoms
        assert batch.num_input_atoms.tolist() == [2]
        assert batch.composition.share.tolist() == [0.5, 0.5, *(second.values() if atoms == 2 else ())]


def test_sites_on_one_spot_are_one_site():
    """Halves of one element, and elements on lines of their own: however a spot is written, it is one."""
    model = make(CrystalFramer)
    spots = [[0, 0, 0], [0.5, 0.5, 0.5]]
    whole = Crystal(zoo.fcc(5.6), spots, [11, 17], name="whole")
    halves = Crystal(zoo.fcc(5.6), [*spots, [1, 0, -1]], [11, 17, 11], [0.5, 1, 0.5])
    assert outputs(model, [whole])[0] == pytest.approx(outputs(model, [halves])[0], abs=1e-14)
    assert model.graph([halves]).atom_map.tolist() == [0, 1, 0]
    mixed = Crystal(zoo.fcc(5.6), spots, [19, 17], [{19: 0.6, 11: 0.3}, 1])
    apart = Crystal(zoo.fcc(5.6), [*spots, spots[0]], [11, 17, 19], [0.3, 1, 0.6])
    assert outputs(model, [mixed])[0] == pytest.approx(outputs(model, [apart])[0], abs=1e-14)
    crowded = Crystal(zoo.fcc(5.6), [*spots, spots[0]], [11, 17, 19], [0.7, 1, 0.6], name="crowded")
    with pytest.raises(GraphError, match=r"crowded: 1\.3 atoms on the spot of site 1"):
        model.graph([mixed, crowded])


def test_together_is_one_by_one():
    model = make(CrystalFramer)
    crystals = [ALLOY, ORDERED[0], RANDOM, ORDERED[1], SPLIT]
    together = outputs(model, crystals)
    np.testing.assert_allclose(together, [outputs(model, [c])[0] for c in crystals], rtol=0, atol=1e-14)
    stored = model.graph(crystals).compact().select([4, 0, 3])
    with torch.no_grad():
        np.testing.assert_allclose(model(stored)[:, 0], together[[4, 0, 3]], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("cls", "options"), BOTH)
def test_slope_along_shares_and_positions(cls, options):
    model = make(cls, reach=4.0, **options)
    batch = model.graph([RANDOM])
    share = batch.composition.share.clone().requires_grad_()
    frac = batch.frac_coords.clone().requires_grad_()

    def value(s, f):
        return model(replace(batch, frac_coords=f, composition=replace(batch.composition, share=s))).sum()

    slopes = torch.autograd.grad(value(share, frac), [share, frac])
    inputs = [share.detach(), frac.detach()]
    vacant = batch.composition.occupancy()[batch.composition.site] < 1
    for which, (slope, keep) in enumerate(zip(slopes, (vacant, slice(None)), strict=True)):
        toward = torch.randn(inputs[which].shape, generator=torch.Generator().manual_seed(1)).double()
        if which == 0:
            toward = toward * keep
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(inputs)
            moved[which] = inputs[which] + step * toward
            with torch.no_grad():
                ends.append(float(value(*moved)))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((slope * toward).sum()), rel=1e-5)


def test_vacancies_weigh_attention_and_mean():
    """A site that is nearly never there changes nothing."""
    model = make(CrystalFramer)
    ghost = Crystal(zoo.fcc(5.6), [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1]], [11, 17, 8], [1, 1, 1e-13])
    (with_ghost,), (without,) = (
        outputs(model, [ghost]),
        outputs(model, [zoo.nacl().replace(lattice=zoo.fcc(5.6))]),
    )
    assert with_ghost == pytest.approx(without, abs=1e-11)


def test_other_graphs_keep_or_refuse_disorder():
    assert KNearest(4)([ORDERED[0], RANDOM]).composition is not None
    with pytest.raises(GraphError, match="Cu3Au, disordered: expected an ordered crystal, came shared"):
        LatticeKNearest()([ORDERED[0], ALLOY])


def test_elements_beyond_the_table_name_crystal_and_element():
    heavy = Crystal(zoo.fcc(4.5), [[0, 0, 0]], [96], [{96: 0.6, 100: 0.4}], name="Cm with Fm")
    for cls in (Crystalformer, CrystalFramer):
        with pytest.raises(GraphError, match=r"Cm with Fm: expected elements up to Cf \(98\), came Fm"):
            make(cls).graph([zoo.nacl(), heavy])
        with pytest.raises(GraphError, match=r"crystal 1: expected .* came Es, Fm"):
            make(cls).graph([zoo.nacl(), Crystal(zoo.fcc(4.5), [[0, 0, 0], [0.5, 0.5, 0.5]], [100, 99])])
