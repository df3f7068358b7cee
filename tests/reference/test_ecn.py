"""ECN against the dense formula on eight slots, equivariance of its layers, and what its paper states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry import Crystal
from facetry.geometry.groups import automorphisms, bravais_colours, own_colours, point_groups
from facetry.graph.cells import CellRadius, Voronoi
from facetry.graph.description import cell_index
from facetry.models import ECN, EquivariantECN
from facetry.models.ecn import GROUPS, _builder, _checked, group_and_period, hubbard
from facetry.nn.lattice_messages import Colours, LatticeMessages
from tests import crystals as zoo
from tests.reference import plain_ecn as plain

SMALL = {"channels": 6, "layers": 2, "graph": "radius", "cutoff": 3.2}
CRYSTALS = [zoo.nacl(), zoo.random_crystal(2), zoo.zno()]


def make(dtype=torch.float64, **options):
    torch.manual_seed(5)
    model = ECN(**{**SMALL, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model.to(dtype).eval()


def outputs(model, crystals):
    with torch.no_grad():
        return model(model.graph(crystals)).double()[:, 0].numpy()


@pytest.mark.parametrize("group", ["s8", "p1", "bravais"])
@pytest.mark.parametrize("breaking", [True, False])
def test_against_the_dense_formula(group, breaking):
    """Values, and gradients of all parameters, of a batch with several groups."""
    model = make(group=group, break_symmetry=breaking, cutoff=2.9, layers=1)
    crystals = [zoo.nacl(), zoo.random_crystal(3, atoms=2)]
    fast = model(model.graph(crystals))
    slow = torch.stack([plain.forward(model, c) for c in crystals])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(fast.square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(slow.square().sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("per_colour", [False, True])
@pytest.mark.parametrize("group", ["s8", "p1", "bravais"])
def test_sums_are_sums_of_rows(group, per_colour):
    """The fused sum against single messages, values and gradients, through both edge functions."""
    model = make(group=group, edge_fn="per_colour" if per_colour else "code")
    batch = model.graph(CRYSTALS)
    model(batch).sum().backward()
    fused = [p.grad.clone() for p in model.parameters()]
    value = model(batch)
    for layer in model.layers:
        for module in filter(None, (layer.every, layer.same)):

            def forward(h, e, edges, colours, module=module):
                m, s = module.rows(h, e, edges, colours)
                weighted = m * s * edges.weight[:, None].to(m)
                return torch.zeros_like(h).index_add(0, edges.center, weighted)

            module.forward = forward
    model.zero_grad()
    single = model(batch)
    torch.testing.assert_close(value, single, rtol=0, atol=1e-12)
    single.sum().backward()
    for p, g in zip(model.parameters(), fused, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def moved(batch, element, order):
    """The batch of one crystal with its cells turned by a group element and its atoms in another order."""
    matrix = torch.from_numpy(automorphisms()[0][element])
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order))
    graph = batch.graph
    center, neighbor = where[graph.center], where[graph.neighbor]
    rows = torch.argsort(center, stable=True)
    image = graph.image @ matrix
    back = torch.linalg.inv(matrix.double()).round()
    new = replace(graph, center=center[rows], neighbor=neighbor[rows], image=image[rows])
    return replace(
        batch,
        lattice=back @ batch.lattice,
        frac_coords=(batch.frac_coords @ matrix.double())[order],
        atomic_numbers=batch.atomic_numbers[order],
        graph=new,
    )


def turned_features(model, actions):
    """The cell block of the features carried along with the cells."""
    with torch.no_grad():
        block = model.nodes.linear.weight[:, -8:].clone()
        model.nodes.linear.weight[:, -8:][:, actions] = block


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("group", ["s8", "p1", "bravais"])
def test_equivariance_of_the_layers(group, dtype, bound):
    """Cells by a group element, atoms by a permutation: node vectors permute, the readout stays."""
    model = make(dtype, group=group)
    if dtype == torch.float32:
        with torch.no_grad():
            for p in model.parameters():
                p.div_(2)
    batch = model.graph([zoo.srtio3()])
    found = torch.nonzero(point_groups(batch.lattice)[0])[:, 0].tolist()
    # all of GL(3, 2) permutes the seven δ of S_8; P-1 allows what leaves every δ alone
    element = {"s8": 1234, "p1": next(e for e in found[1:] if trivial(e)), "bravais": found[-3]}[group]
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        before, value = model.cell_vectors(batch), model(batch)
        if group == "bravais":  # the same group in both: its lattice has this element
            assert not trivial(element)
        turned_features(model, actions(element))
        other = moved(batch, element, order)
        after, again = model.cell_vectors(other), model(other)
    expected = torch.empty_like(before)
    expected[:, actions(element)] = before
    torch.testing.assert_close(after, expected[order], rtol=0, atol=bound)
    torch.testing.assert_close(again, value, rtol=0, atol=bound)


def actions(element):
    cells = torch.tensor(list(np.ndindex(2, 2, 2)))
    return cell_index(cells @ torch.from_numpy(automorphisms()[0][element]))


def trivial(element):
    return bool((actions(element) == torch.arange(8)).all())


def test_elements_outside_of_the_group_change_the_output():
    """P-1 with two cells exchanged, and a group that is not the crystal's."""
    model = make(group="p1")
    batch = model.graph([zoo.random_crystal(2)])
    element = next(e for e in range(100) if not trivial(e))
    with torch.no_grad():
        value = model(batch)
        turned_features(model, actions(element))
        other = model(moved(batch, element, torch.arange(len(batch.frac_coords))))
    assert float((value - other).abs().max()) > 1e-3


@pytest.mark.parametrize("symbol", ["cF", "hP", "tI", "mS"])
def test_averaged_weights_commute_with_the_group(symbol):
    """P-1's weights averaged over the orbits of a group: messages do not change under its elements, those of
    P-1 do. Weights that are equal on the orbits already stay as they are."""
    from facetry.geometry.groups import bravais_gram, cell_actions

    lattice = torch.from_numpy(np.linalg.cholesky(bravais_gram(symbol)))[None]
    table = own_colours(lattice)[0]
    colours = Colours.of(table, torch.tensor(GROUPS["p1"]))
    torch.manual_seed(0)
    weight = torch.randn(8, 4, dtype=torch.float64)
    mixed = colours.mix @ weight
    full = mixed[torch.unique(table, return_inverse=True)[1]]
    for g in cell_actions()[point_groups(lattice)[0].numpy()]:
        torch.testing.assert_close(full[torch.from_numpy(g)], full, rtol=0, atol=0)
    torch.testing.assert_close(colours.mix @ full, mixed, rtol=0, atol=1e-15)
    assert len(mixed) == bravais_colours(symbol).max() + 1


def test_closed_forms():
    """S_8 with 1, 6 and 7 cells; P-1 as a convolution with exclusive or."""
    for group, cases in (("s8", [(0, [[1, 0], [0, 7]]), (1, [[0, 1], [1, 6]])]), ("p1", None)):
        table = torch.tensor(GROUPS[group])
        numbers = Colours.of(table, table).numbers
        if cases:
            for kappa, expected in cases:
                assert numbers[kappa].tolist() == expected
        else:
            d = torch.arange(8)
            for delta in range(8):
                assert (numbers[delta].argmax(1) == (d ^ delta)).all()
                assert numbers[delta].sum() == 8


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 994_833),
        ({"features": "hubbard"}, 994_933),
        ({"features": "group_period"}, 988_433),
        ({"group": "p1"}, 3_298_833),
        ({"group": "p1", "features": "hubbard"}, 3_298_933),
        ({"group": "p1", "features": "group_period"}, 3_292_433),
        ({"group": "bravais"}, 3_298_833),
    ],
)
def test_parameter_counts(options, count):
    model = ECN(**options)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.layers[0].every.parameters()) == (
        64_301 if options.get("group", "s8") == "s8" else 256_301
    )


def test_initial_weights():
    torch.manual_seed(0)
    layer = LatticeMessages(8, 100, 20).requires_grad_(False)
    for tensor, inputs in (
        (layer.inner, 220),
        (layer.inner_bias, 220),
        (layer.outer, 100),
        (layer.outer_bias, 100),
    ):
        assert float(tensor.abs().max()) <= inputs**-0.5
        assert float(tensor.abs().max()) >= 0.95 * inputs**-0.5
    assert float(layer.inner.std()) == pytest.approx((3 * 220) ** -0.5, rel=0.01)


def test_features():
    z = torch.tensor([1, 2, 21, 57, 70, 71, 26, 103, 89])
    column, period = group_and_period(z)
    assert column.tolist() == [1, 32, 17, 3, 16, 17, 22, 17, 3]
    assert period.tolist() == [1, 1, 4, 6, 6, 6, 4, 7, 7]
    oxide = Crystal(np.eye(3) * 4.3, [[0, 0, 0], [0.5, 0.5, 0.5]], [26, 8], name="FeO")
    batch = CellRadius()([oxide, zoo.fe(), zoo.srtio3(), zoo.nacl()])
    assert hubbard(batch).tolist() == [1, 0, 0, 0]
    basis = ECN().edges.basis(torch.tensor([0.0, 6.0, 0.6], dtype=torch.float64))
    assert basis.shape == (3, 20)
    assert float(basis[0, 0]) == 1
    assert float(basis[1, 19]) == 1
    assert float(basis[2, 0]) == pytest.approx(np.exp(-1), abs=1e-15)
    heavy = Crystal(np.eye(3) * 4, [[0, 0, 0]], [104], name="Rf")
    with pytest.raises(ValueError, match="Lr"):
        outputs(make(), [heavy])


@pytest.mark.parametrize("options", [{"edge_fn": "per_colour"}, {"hierarchical": True}, {"group": "bravais"}])
def test_copies_stay_equal_without_symmetry_breaking(options):
    """Eight nodes an atom with equal features give what one node gives."""
    model = make(break_symmetry=True, **options)
    with torch.no_grad():
        model.nodes.linear.weight[:, 103:] = 0
        batch = model.graph(CRYSTALS)
        vectors = model.cell_vectors(batch)
        torch.testing.assert_close(vectors, vectors[:, :1].expand_as(vectors), rtol=0, atol=1e-12)
        one = make(break_symmetry=False, **options)
        weights = model.state_dict()
        weights["nodes.linear.weight"] = weights["nodes.linear.weight"][:, :103]
        one.load_state_dict(weights)
        torch.testing.assert_close(one(batch), model(batch), rtol=0, atol=1e-12)


def relabelled(batch, seed):
    """Another basis, and every atom in another cell: the same crystal, as a file could give it."""
    matrix = torch.from_numpy(zoo.unimodular(seed, 2))
    back = torch.linalg.inv(matrix.double()).round()
    graph = batch.graph
    image = (graph.image.double() @ back).round().long()
    return replace(batch, lattice=matrix.double() @ batch.lattice, frac_coords=batch.frac_coords @ back,
                   graph=replace(graph, image=image))  # fmt: skip


def test_what_the_choice_of_the_description_is_for():
    """Without it S_8 with equal copies does not see the basis; all else does, and the cells of the atoms."""
    crystals = [zoo.random_crystal(2), zoo.zno()]
    blind, seeing = make(break_symmetry=False), make()
    with torch.no_grad():
        for model, same in ((blind, True), (seeing, False), (make(group="p1", break_symmetry=False), False)):
            batch = model.graph(crystals)
            change = float((model(batch) - model(relabelled(batch, 3))).abs().max())
            assert (change <= 1e-10) == same, change
        batch = blind.graph(crystals[:1])
        cells = torch.zeros_like(batch.frac_coords).long()
        cells[0, 0] = 1
        graph = batch.graph
        image = graph.image + cells[graph.center] - cells[graph.neighbor]
        other = replace(batch, frac_coords=batch.frac_coords + cells, graph=replace(graph, image=image))
        assert float((blind(batch) - blind(other)).abs().max()) > 1e-6


@pytest.mark.parametrize("group", ["s8", "p1", "bravais"])
def test_invariance_with_voronoi_bonds(group):
    """Rotation, reflection, origin, order, basis and supercell at once; high symmetry too."""
    model = make(group=group)
    model.graph = Voronoi(valid=False)
    crystals = [zoo.random_crystal(s) for s in (2, 3)] + [zoo.zno(), zoo.srtio3(), zoo.si(), zoo.tellurium()]
    value = outputs(model, crystals)
    assert value.std() > 1e-3
    for seed, sign in ((1, 1), (2, -1)):
        other = [
            zoo.permuted(zoo.shifted(zoo.rotated(c, sign * zoo.rotation(seed)), seed), seed) for c in crystals
        ]
        other = [zoo.rebased(zoo.unwrapped(c, seed), zoo.unimodular(seed)) for c in other]
        np.testing.assert_allclose(outputs(model, other), value, rtol=0, atol=1e-10)
    other = [c.supercell(np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 1]])) for c in crystals]
    np.testing.assert_allclose(outputs(model, other), value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("group", ["s8", "p1", "bravais"])
@pytest.mark.parametrize("breaking", [True, False])
def test_vectors_turn_with_the_crystal(group, breaking):
    """Rotation, reflection, translation and order of atoms; a lone atom and a symmetric pair do not move."""
    torch.manual_seed(1)
    model = EquivariantECN(
        group=group, layers=2, channels=8, break_symmetry=breaking, graph="radius"
    ).double()
    crystals = [zoo.random_crystal(2), zoo.random_crystal(4), zoo.nacl()]

    def displacements(given):
        batch = model.graph(given)
        with torch.no_grad():
            return model(batch)[batch.atom_map]

    u = displacements(crystals)
    assert float(u[: len(crystals[0])].norm(dim=1).max()) > 1e-3
    for sign in (1, -1):
        turn = sign * zoo.rotation(3)
        turned = displacements([zoo.shifted(zoo.rotated(c, turn), 1) for c in crystals])
        torch.testing.assert_close(turned[:-2], (u @ torch.from_numpy(turn.T))[:-2], rtol=0, atol=1e-12)
    order = np.random.default_rng(0).permutation(len(crystals[1]))
    c = crystals[1]
    other = Crystal(c.lattice, c.frac_coords[order], c.atomic_numbers[order])
    alone = displacements([c])
    torch.testing.assert_close(displacements([other]), alone[torch.from_numpy(order)], rtol=0, atol=1e-12)


def test_vectors_have_gradients():
    torch.manual_seed(1)
    model = EquivariantECN(layers=2, channels=8, graph="radius", cutoff=3.0)
    model(model.graph([zoo.random_crystal(2)])).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model(model.graph([zoo.po()])).dtype == torch.float32


def test_wrong_options():
    """Words are also refused by their types where these are checked, as in these tests."""
    with pytest.raises(ValueError, match="expected group of s8, p1, bravais, came 'cubic'"):
        _checked("group", "cubic", GROUPS)
    with pytest.raises(ValueError, match="expected graph of voronoi, radius"):
        _builder("bonds", 5.0)
    with pytest.raises(ValueError, match="at least one layer"):
        ECN(layers=0)
    with pytest.raises(ValueError, match="cutoff above 0"):
        ECN(graph="radius", cutoff=-1)


def test_overfit(data_folder):
    """64 crystals of Perov-5 are learned to 0.005 eV within 300 epochs, by a smaller network."""
    from facetry import dataset

    part = dataset("perov5", "heat_all").train.select(slice(64))
    y = torch.from_numpy(part.targets[:, 0]).float()
    torch.manual_seed(0)
    model = ECN(channels=32, layers=3, graph="radius", break_symmetry=False).train()
    batch = model.graph(part.crystals)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=300)
    for _ in range(300):
        optimiser.zero_grad()
        error = (model(batch)[:, 0] - (y - y.mean()) / y.std()).abs().mean()
        error.backward()
        optimiser.step()
        schedule.step()
    assert float(error.detach() * y.std()) < 0.005
