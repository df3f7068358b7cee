"""Batches: put together, taken apart, kept small, moved; with all that a batch may carry and without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.data.crystals import CrystalTable
from facetry.geometry.ragged import group_index, offsets, ranges
from facetry.graph import Batch, KNearest, LatticeKNearest, Radius
from facetry.graph.connected import disconnected
from facetry.graph.neighbors import bare
from tests import crystals as zoo

# weighted self-edges (wide fcc, small k), several frames, several atoms on one (supercell), one atom
WEIGHTED = zoo.low_motif(zoo.fcc(8.0), "wide fcc")
CRYSTALS = [zoo.po(), WEIGHTED, zoo.zno().supercell(np.diag([1, 2, 1])), zoo.random_crystal(3), zoo.nacl()]
BUILDER = LatticeKNearest(k=6)
FRAMES = ("average", "canonical", "continuous", "published")


def equal(one: Batch, two: Batch) -> None:
    for name in ("lattice", "frac_coords", "atomic_numbers", "num_atoms", "atom_map", "num_input_atoms"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=1e-12)
    for name in ("center", "neighbor", "image", "num_edges"):
        assert torch.equal(getattr(one.graph, name), getattr(two.graph, name)), name
    weights = [
        b.lattice.new_ones(len(b.graph)) if b.graph.weight is None else b.graph.weight for b in (one, two)
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)
    for name in ("crystal", "integer", "num_frames", "weight"):
        torch.testing.assert_close(getattr(one.frames, name), getattr(two.frames, name), rtol=0, atol=1e-12)


def test_flat_groups():
    counts = torch.tensor([2, 0, 3])
    assert offsets(counts).tolist() == [0, 2, 2, 5]
    assert group_index(counts).tolist() == [0, 0, 2, 2, 2]
    assert ranges(torch.tensor([7, 1, 4]), counts).tolist() == [7, 8, 4, 5, 6]
    none = counts[:0]
    assert (offsets(none).tolist(), group_index(none).tolist(), ranges(none, none).tolist()) == ([0], [], [])
    assert group_index(counts.int()).dtype == torch.int64


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_collating_parts_is_building_the_whole(cut, compact):
    """Also where only one part has edge weights: those of the other count one."""
    parts = [BUILDER(CRYSTALS[:cut]), BUILDER(CRYSTALS[cut:])]
    if cut == 1:
        assert parts[0].graph.weight is None
        assert parts[1].graph.weight is not None
    if compact:
        parts = [p.compact() for p in parts]
    whole = BUILDER(CRYSTALS)
    equal(Batch.collate(parts).select(range(len(CRYSTALS))), whole)


@pytest.mark.parametrize("order", [[4, 1, 0], [2], [3, 3], list(range(5)), [-1, 2]])
def test_selecting_is_building_the_chosen(order):
    equal(BUILDER(CRYSTALS).compact().select(order), BUILDER([CRYSTALS[i] for i in order]))


def test_atom_map_leads_every_input_atom_to_its_row():
    batch = BUILDER(CRYSTALS).select([2, 0, 1])
    numbers = np.concatenate([CRYSTALS[i].atomic_numbers for i in (2, 0, 1)])
    assert batch.num_input_atoms.tolist() == [8, 1, 3]
    assert batch.num_atoms.tolist() == [4, 1, 3]
    assert (batch.atomic_numbers[batch.atom_map].numpy() == numbers).all()


def test_selecting_nothing_and_collating_nothing():
    none = BUILDER(CRYSTALS).select([])
    assert (len(none), len(none.frac_coords), len(none.graph), len(none.frames.crystal)) == (0, 0, 0, 0)
    assert none.edge_vectors().shape == (0, 3)
    joined = Batch.collate([none, BUILDER(CRYSTALS)])
    equal(joined, BUILDER(CRYSTALS))
    with pytest.raises(ValueError, match="came none"):
        Batch.collate([])


@pytest.mark.parametrize("first", [0, 1])
def test_batches_that_differ_in_kind_are_not_collated(first):
    parts = [BUILDER(CRYSTALS[:1]), Batch.from_crystals(CRYSTALS[1:])]
    with pytest.raises(ValueError, match=r"came graph, frames, atom_map, num_input_atoms in only some"):
        Batch.collate([parts[first], parts[1 - first]])
    with pytest.raises(ValueError, match=r"came frames"):
        Batch.collate([parts[0], replace(parts[0], frames=None)])


def test_compact_keeps_what_does_not_fit():
    batch = Radius(3.5)([zoo.po(), zoo.po()])
    image = batch.graph.image.clone()
    image[0, 0] = 40_000
    small = replace(batch, graph=replace(batch.graph, image=image)).compact()
    assert small.graph.image.dtype == torch.int64
    assert small.graph.center.dtype == torch.int32
    assert int(small.graph.image[0, 0]) == 40_000


def test_every_tensor_moves():
    """Shapes alone, on a device that holds no values; nothing may stay behind."""
    batch = BUILDER(CRYSTALS).to("meta")
    tensors = [getattr(o, n) for o in (batch, batch.graph, batch.frames) for n in o.__dataclass_fields__]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    assert len(tensors) == 15
    assert {t.device.type for t in tensors} == {"meta"}


@pytest.mark.parametrize(
    "builder",
    [Radius(4.0), KNearest(6), *(LatticeKNearest(k=6, frames=f) for f in FRAMES)],
    ids=lambda b: f"{type(b).__name__} {getattr(b, 'frames', '')}",
)
def test_nothing_is_made_on_another_device(builder):
    """With a default device other than the batch's, a tensor made without saying where fails at once."""
    batch, names = Batch.from_crystals(CRYSTALS), [c.name for c in CRYSTALS]
    expected = builder.build(batch, names)
    with torch.device("meta"):
        built = builder.build(batch, names)
        alone = builder.build(batch.select([0]), names[:1])  # no edge weights, unlike the rest
        again = Batch.collate([alone, built.compact().select([1, 2, 3, 4])])
    assert torch.equal(built.edge_vectors(), expected.edge_vectors())
    assert torch.equal(again.edge_vectors(), built.edge_vectors())
    if built.frames is not None:
        assert torch.equal(again.frame_vectors(), built.frame_vectors())


@pytest.mark.parametrize("builder", [Radius(4.0), KNearest(6), LatticeKNearest(k=6)])
def test_single_precision_lattices(builder):
    """As on Apple's MPS, which has no float64: the same edges."""
    batch = Batch.from_crystals(CRYSTALS)
    single = replace(batch, lattice=batch.lattice.float(), frac_coords=batch.frac_coords.float())
    names = [c.name for c in CRYSTALS]
    assert builder.build(single, names).graph.num_edges.tolist() == builder(CRYSTALS).graph.num_edges.tolist()


def test_disconnected_finds_the_crystals_apart():
    """A chain longer than the quick look, two atoms apart, and one atom alone."""
    chain = zoo.po().supercell(np.diag([12, 1, 1]))
    batch = Batch.from_crystals([chain, zoo.nacl(), zoo.po(), chain])
    links = [(i, i + 1) for i in range(11)]
    links += [(15 + i, 16 + i) for i in range(11) if i != 6]
    center, neighbor = torch.tensor(links + [(j, i) for i, j in links]).T
    assert disconnected(batch, center, neighbor).tolist() == [1, 3]
    keep = (center < 12) & (neighbor < 12)
    whole = batch.select([0, 2])
    assert disconnected(whole, center[keep], neighbor[keep]).tolist() == []


def test_compositions_follow_every_step():
    """From crystals or a table, beside ordered ones, collated, selected, made small, without a graph."""
    mixed = zoo.zno().replace(occupancies=[{30: 0.9, 12: 0.1}, 0.8, 1.0, 1.0], name="mixed")
    crystals = [zoo.nacl(), mixed, zoo.po()]
    batch = Batch.from_crystals(CrystalTable.from_crystals(crystals))
    assert Batch.from_crystals(crystals[:1]).composition is None
    assert Batch.from_crystals(CrystalTable.from_crystals(crystals).select([2, 0])).composition is None
    assert batch.composition.count.tolist() == [1, 1, 2, 1, 1, 1, 1]
    assert batch.composition.atomic_numbers.tolist() == [11, 17, 30, 12, 30, 8, 8, 84]
    assert batch.composition.share.tolist() == [1, 1, 0.9, 0.1, 0.8, 1, 1, 1]
    assert batch.composition.occupancy().tolist() == [1, 1, 1, 0.8, 1, 1, 1]
    builder = KNearest(4)
    parts = [builder(crystals[:1]), builder(crystals[1:])]
    whole = [
        Batch.from_crystals(crystals),
        bare(builder(crystals)),
        Batch.collate(parts),
        Batch.collate([p.compact() for p in parts]).select([0, 1, 2]),
        builder(crystals).to("cpu"),
        Batch.collate([Batch.from_crystals([c]) for c in crystals]),
    ]
    for other in whole:
        for name in ("count", "atomic_numbers", "share"):
            torch.testing.assert_close(
                getattr(other.composition, name), getattr(batch.composition, name), check_dtype=False
            )
    assert batch.select([1, 0]).composition.atomic_numbers.tolist() == [30, 12, 30, 8, 8, 11, 17]
    assert batch.compact().composition.atomic_numbers.dtype == torch.int16
