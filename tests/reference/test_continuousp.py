"""ContinuouSP against its plain formula, in every symmetry, and its slopes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.models import MODELS, ContinuouSP
from facetry.models.continuousp import cutoffs
from tests import crystals as zoo
from tests.reference.plain_continuousp import energy

SMALL = {"channels": 16, "layers": 2, "head_layers": 3}
RANDOM = [zoo.random_crystal(seed) for seed in range(5)] + [zoo.tellurium(), zoo.po(), zoo.srtio3()]


def make(amplify: float = 2.0, dtype=torch.float64, **options) -> ContinuouSP:
    """Random weights, larger than usual, so that a broken symmetry shows."""
    torch.manual_seed(5)
    model = ContinuouSP(**{**SMALL, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("hidden"):
                parameter.mul_(amplify)
    return model.to(dtype).eval()


@pytest.fixture(scope="module", params=["broad", "sharp", "narrow"])
def model(request):
    return make(basis=request.param)


def energies(model, crystals):
    with torch.no_grad():
        return model(model.graph(crystals))


def evaluate(model, crystals, dtype=torch.float64):
    batch = Batch.from_crystals(crystals)
    return model.landscape(batch.atomic_numbers, batch.num_atoms)(batch.lattice, batch.frac_coords)


def slopes(model, crystals):
    """By positions and strain through the graph, by autograd."""
    batch = model.graph(crystals)
    strain = torch.zeros(len(batch), 3, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros_like(batch.frac_coords, requires_grad=True)
    lattice = batch.lattice @ torch.matrix_exp(strain)
    moved = batch.frac_coords + torch.einsum(
        "na,nab->nb", shift, torch.linalg.inv(batch.lattice)[batch.crystal_index]
    )
    total = model(replace(batch, lattice=lattice, frac_coords=moved))
    return total.detach(), *torch.autograd.grad(total.sum(), (shift, strain))


def test_parameters():
    sizes = ({}, 23_297), ({"channels": 64, "layers": 6, "head_layers": 4}, 168_705)
    for options, count in sizes:
        assert sum(p.numel() for p in MODELS["continuousp"](**options).parameters()) == count


def test_plain_formula(model):
    expected = [
        energy(model, torch.tensor(c.lattice), torch.tensor(c.frac_coords), torch.tensor(c.atomic_numbers))
        for c in RANDOM
    ]
    assert torch.allclose(energies(model, RANDOM), torch.stack(expected).detach(), rtol=0, atol=1e-12)


def test_landscape_and_graph_are_one_function(model):
    """Tabulated, summed by pairs and differentiated by hand, beside autograd over edges."""
    found = evaluate(model, RANDOM)
    total, by_position, by_strain = slopes(model, RANDOM)
    assert torch.allclose(found.energy, total, rtol=0, atol=1e-12)
    assert torch.allclose(found.by_position, by_position, rtol=0, atol=1e-11)
    assert torch.allclose(found.by_strain, by_strain, rtol=0, atol=1e-10)
    assert by_position.abs().max() > 1e-3


def test_landscape_in_single_precision(model):
    exact = evaluate(model, RANDOM)
    single = evaluate(make(dtype=torch.float32, basis=model.filter.kind), RANDOM)
    assert torch.allclose(single.energy, exact.energy, rtol=0, atol=3e-6)
    scale = exact.by_position.abs().max()
    assert torch.allclose(single.by_position / scale, exact.by_position / scale, rtol=0, atol=2e-5)
    assert torch.allclose(single.by_strain, exact.by_strain, rtol=0, atol=1e-4)


def test_slopes_by_differences(model):
    crystal = zoo.random_crystal(3, atoms=4)
    found = evaluate(model, [crystal])
    step = 1e-5
    moves = np.eye(12).reshape(12, 4, 3) * step

    def at(c):
        return float(evaluate(model, [c]).energy)

    inverse = np.linalg.inv(crystal.lattice)
    measured = [
        at(crystal.replace(frac_coords=crystal.frac_coords + move @ inverse))
        - at(crystal.replace(frac_coords=crystal.frac_coords - move @ inverse))
        for move in moves
    ]
    scale = found.by_position.abs().max()
    difference = np.array(measured).reshape(4, 3) / (2 * step) - found.by_position.numpy()
    assert np.abs(difference).max() < 1e-6 * scale
    strains = np.eye(9).reshape(9, 3, 3) * step
    measured = [
        at(crystal.replace(lattice=crystal.lattice @ (np.eye(3) + strain)))
        - at(crystal.replace(lattice=crystal.lattice @ (np.eye(3) - strain)))
        for strain in strains
    ]
    difference = np.array(measured).reshape(3, 3) / (2 * step) - found.by_strain[0].numpy()
    assert np.abs(difference).max() < 1e-6 * found.by_strain.abs().max()


def test_no_net_force_and_no_torque(model):
    batch = Batch.from_crystals(RANDOM)
    found = evaluate(model, RANDOM)
    net = torch.zeros(len(batch), 3, dtype=torch.float64)
    net.index_add_(0, batch.crystal_index, found.by_position)
    assert net.abs().max() < 1e-9
    assert (found.by_strain - found.by_strain.transpose(1, 2)).abs().max() < 1e-9


OPERATIONS = {
    "rotation": lambda c, i: zoo.rotated(c, zoo.rotation(i)),
    "reflection": lambda c, i: zoo.rotated(c, -zoo.rotation(i)),
    "translation": lambda c, i: zoo.shifted(c, i),
    "permutation": lambda c, i: zoo.permuted(c, i),
    "basis": lambda c, i: zoo.rebased(c, zoo.unimodular(17 * i, bound=1)),
    "wrapping": lambda c, i: zoo.unwrapped(c, i),
    "2 1 1": lambda c, i: c.supercell(np.diag([2, 1, 1])),
    "1 3 1": lambda c, i: c.supercell(np.diag([1, 3, 1])),
    "2 2 2": lambda c, i: c.supercell(np.diag([2, 2, 2])),
    "diagonal": lambda c, i: c.supercell(np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 1]])),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_symmetry(model, name):
    crystals = RANDOM[:4]
    changed = [OPERATIONS[name](c, i) for i, c in enumerate(crystals)]
    assert (energies(model, crystals) - energies(model, changed)).abs().max() < 1e-10
    assert (evaluate(model, crystals).energy - evaluate(model, changed).energy).abs().max() < 1e-10
    single = make(amplify=1.0, dtype=torch.float32, basis=model.filter.kind)
    assert (evaluate(single, crystals).energy - evaluate(single, changed).energy).abs().max() < 1e-5


def test_continuous_where_atoms_cross_the_cutoff():
    """An atom swept by R: the energy goes in even steps, but not without the envelope."""
    model = make()
    crystal = zoo.random_crystal(2, atoms=3)
    lattice, frac = torch.tensor(crystal.lattice), torch.tensor(crystal.frac_coords)
    numbers = torch.tensor(crystal.atomic_numbers)
    inverse = torch.linalg.inv(lattice)
    steps = 120
    path = []
    with torch.no_grad():
        for k in range(steps + 1):
            moved = frac.clone()
            moved[0] += torch.tensor([0.3, 0.1, -0.05], dtype=torch.float64) * (k / steps) @ inverse
            path.append([float(energy(model, lattice, moved, numbers, e)) for e in (True, False)])
    change = np.abs(np.diff(np.array(path), axis=0))
    ratio = change.max(0) / np.median(change, axis=0)
    assert ratio[0] < 3 < 100 < ratio[1]


def test_landscape_has_no_steps():
    """The same atom through the neighbour table: 1500 steps over 0.3 Å."""
    model = make()
    crystal = zoo.random_crystal(2, atoms=3)
    count = 1500
    batch = Batch.from_crystals([crystal] * count)
    along = torch.linspace(0, 1, count, dtype=torch.float64)[:, None] * torch.tensor([[0.3, 0.1, -0.05]])
    frac = batch.frac_coords.view(count, 3, 3).clone()
    frac[:, 0] += along @ torch.linalg.inv(batch.lattice[0])
    land = model.landscape(batch.atomic_numbers, batch.num_atoms)
    change = land(batch.lattice, frac.view(-1, 3)).energy.diff().abs()
    assert change.max() / change.median() < 3


def test_slopes_are_continuous_at_the_cutoff():
    """Two atoms whose distance passes R: dE/dt on both sides of it."""
    model = make()
    lattice = torch.diag(torch.tensor([5.0, 6.0, 30.0], dtype=torch.float64))
    reach = 3 * (900 / 2) ** (1 / 3)
    rows = []
    for shift in (-2e-7, -1e-7, 1e-7, 2e-7):
        crystal = Crystal(lattice.numpy(), [[0, 0, 0], [0, 0, (reach + shift) / 30]], [8, 22])
        rows.append(evaluate(model, [crystal]).by_position[1, 2])
    scale = max(abs(r) for r in rows)
    assert abs(rows[2] - rows[1]) < 1e-6 * scale
    assert reach < 30


def check_kept_neighbours(model):
    """Energies from neighbours that were found for other coordinates are those of a new search. Returns the
    landscape."""
    batch = Batch.from_crystals(RANDOM[:5])
    land = model.landscape(batch.atomic_numbers, batch.num_atoms, skin=0.8)
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
        strain = torch.tensor(rng.normal(size=(5, 3, 3)) * 0.1 * scale)
        lattice = batch.lattice @ torch.matrix_exp(strain)
        frac = batch.frac_coords + torch.tensor(rng.normal(size=batch.frac_coords.shape)) * 0.2 * scale
        kept = land(lattice, frac)
        new = model.landscape(batch.atomic_numbers, batch.num_atoms)(lattice, frac)
        assert torch.allclose(kept.energy, new.energy, rtol=0, atol=1e-12)
        assert torch.allclose(kept.by_position, new.by_position, rtol=0, atol=1e-11)
    return land


def test_neighbour_table_serves_moved_atoms_and_strained_cells():
    assert 5 < check_kept_neighbours(make()).table.builds < 30


def test_blocks_hold_the_images_of_the_table():
    """Every image once, the padding out of reach."""
    model = make()
    batch = Batch.from_crystals(RANDOM)
    land = model.landscape(batch.atomic_numbers, batch.num_atoms)
    land(batch.lattice, batch.frac_coords)
    table = land.table
    blocks = table.blocks(2, 6)
    vector = blocks.vectors(
        batch.lattice[2:6], batch.frac_coords[batch.num_atoms[:2].sum() : batch.num_atoms[:6].sum()]
    )
    length = vector.norm(dim=0)
    assert len(blocks.blocks) > 1
    assert blocks.blocks[-1][-1] == len(length)
    for start, end, images, low, high in blocks.blocks:
        own = length[low:high].view(images, end - start)
        for column in range(start, end):
            pair = int(blocks.columns[column])
            count = int(table.count[pair])
            i, j, c = (int(x[pair]) for x in (table.pairs.first, table.pairs.second, table.pairs.crystal))
            apart = batch.frac_coords[j] + table.image[:count, pair] - batch.frac_coords[i]
            expected = (apart @ batch.lattice[c]).norm(dim=1)
            assert torch.allclose(own[:count, column - start], expected, rtol=0, atol=1e-12)
            assert (own[count:, column - start] > 1e5).all()


def test_gates_beyond_their_table_are_tabulated_anew(model):
    """Vectors of atoms that the first bounds do not cover, and none at all."""
    batch = Batch.from_crystals(RANDOM)
    expected = evaluate(model, RANDOM)
    for tight in (1, 2):
        land = model.landscape(batch.atomic_numbers, batch.num_atoms)
        for bounds in land.bounds[:tight]:
            bounds[1:] = [bound / 20 for bound in bounds[1:]]
        found = land(batch.lattice, batch.frac_coords)
        assert {level for _, level in land.tables} == set(range(tight + 1))
        assert torch.allclose(found.energy, expected.energy, rtol=0, atol=1e-12)
        assert torch.allclose(found.by_position, expected.by_position, rtol=0, atol=1e-11)


def check_left_out(model):
    batch = Batch.from_crystals(RANDOM)
    land = model.landscape(batch.atomic_numbers, batch.num_atoms)
    whole = land(batch.lattice, batch.frac_coords)
    use = torch.arange(len(batch)) % 2 == 0
    part = land(batch.lattice, batch.frac_coords, use)
    assert torch.equal(part.energy.isfinite(), use)
    assert torch.allclose(part.energy[use], whole.energy[use], rtol=0, atol=1e-12)


def test_left_out_crystals_have_infinite_energy():
    check_left_out(make())


def test_density_term():
    model = make(density_weight=1.0)
    cells = torch.eye(3, dtype=torch.float64)[None] * torch.tensor([20.0, 10.0]).double()[:, None, None] ** (
        1 / 3
    )
    value = model.density_term(cells, torch.tensor([1, 1]))[0]
    assert abs(value[0]) < 1e-12
    assert abs(value[1] - math.log(2) ** 2) < 1e-12


def test_neighbours_of_a_gas():
    """4/3 π 27 = 113 neighbours an atom, at any density."""
    rng = np.random.default_rng(1)
    for density in (0.01, 0.08):
        side = (500 / density) ** (1 / 3)
        gas = Crystal(np.eye(3) * side, rng.uniform(size=(500, 3)), np.full(500, 18))
        model = make(amplify=1.0)
        batch = model.graph([gas])
        assert abs(float(cutoffs(batch.lattice, batch.num_atoms)) - 3 * density ** (-1 / 3)) < 1e-9
        assert abs(len(batch.require_graph()) / 500 - 113.1) < 3


def test_second_derivatives():
    """Scores are trained on: slopes of slopes reach the weights."""
    model = make()
    batch = model.graph(RANDOM[:2])
    frac = batch.frac_coords.clone().requires_grad_()
    (force,) = torch.autograd.grad(model(replace(batch, frac_coords=frac)).sum(), frac, create_graph=True)
    force.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.layers[0].edge.weight.grad.abs().max() > 0


def test_wrong_options_and_elements():
    for options, words in (
        ({"layers": 0}, "layers of at least 1"),
        ({"basis_size": 1}, "basis_size of at least 2"),
        ({"density": 0}, "density above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ContinuouSP(**options)
    heavy = Crystal(np.eye(3) * 4, [[0, 0, 0]], [101], name="heavy")
    model = ContinuouSP()
    with pytest.raises(ValueError, match=r"atomic numbers \[101\]"):
        model(model.graph([heavy]))
