"""Chains against laws that are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from facetry.geometry.lattice import volume
from facetry.models import ContinuouSP
from facetry.models.base import Evaluation, Landscape
from facetry.samplers import Annealing, Chains, Mover, Tempering, evaluated, random_cells, random_start
from facetry.samplers.chains import MEAN_DETERMINANT
from facetry.samplers.streams import atom_normals, normals, uniforms


class Toy(Landscape):
    """One atom in each cell, an energy of Cartesian position and cell, its slopes by autograd."""

    def __init__(self, function, count):
        self.function = function
        self.num_atoms = torch.ones(count, dtype=torch.int64)

    def __call__(self, lattice, frac_coords, use=None):
        cell, strain = lattice.clone(), torch.zeros_like(lattice, requires_grad=True)
        cart = torch.einsum("na,nab->nb", frac_coords, cell)
        moved = cart.clone().requires_grad_()
        stretched = cell @ torch.matrix_exp(strain)
        energy = self.function(moved, stretched)
        by_position, by_cell = torch.autograd.grad(energy.sum(), (moved, strain), allow_unused=True)
        by_position = torch.zeros_like(moved) if by_position is None else by_position
        by_cell = torch.zeros_like(strain) if by_cell is None else by_cell
        by_cell = by_cell + cart[:, :, None] * by_position[:, None]
        energy = energy.detach()
        return Evaluation(
            energy if use is None else torch.where(use, energy, torch.inf), by_position, by_cell
        )

    def forget(self, crystals):
        pass


def gauss(x, _):
    return x.square().sum(1) / 2


def quartic(x, _):
    return x.pow(4).sum(1) / 4


def banana(x, _):
    return (x[:, 0] ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2 + x[:, 2] ** 2) / 2


CELL = torch.eye(3, dtype=torch.float64) * 20 ** (1 / 3)


def positions_after(function, start, steps, step_size, temperature=1.0, **options):
    """Moves of positions alone, none wrapped."""
    count = len(start)
    land = Toy(function, count)
    lattice = CELL.expand(count, 3, 3).clone()
    state = evaluated(land, lattice, start @ torch.linalg.inv(CELL))
    mover = Mover(land, **options)
    chain, one = torch.arange(count), torch.ones(count, dtype=torch.float64)
    for step in range(steps):
        state, _ = mover(
            state,
            "positions",
            one * step_size,
            one * temperature,
            normals(3, chain, step, 0, 3),
            normals(3, chain, step, 1, 9),
            uniforms(3, chain, step, 2, 1)[:, 0],
        )
    return state.frac_coords @ CELL


def test_random_numbers_follow_from_seed_chain_and_step():
    x = normals(7, torch.arange(20000), 3, 1, 9)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(x.numpy().T) - np.eye(9)).max() < 0.03
    some = torch.tensor([5, 19, 4])
    assert torch.equal(normals(7, some, 3, 1, 9), x[some])
    for other in (normals(8, some, 3, 1, 9), normals(7, some, 4, 1, 9), normals(7, some, 3, 2, 9)):
        assert (other != x[some]).all()
    atoms = atom_normals(7, torch.tensor([4, 5]), torch.tensor([1, 3]), 3, 1)
    assert torch.equal(atoms.flatten(), torch.cat([x[4, :3], x[5]]))


@pytest.mark.parametrize(
    ("function", "second", "fourth"),
    [
        (gauss, 1.0, 3.0),
        (quartic, 2 * math.gamma(0.75) / math.gamma(0.25), 1.0),
    ],
)
def test_moments(function, second, fourth):
    count = 10000
    start = 0.7 * normals(1, torch.arange(count), 0, 9, 3)  # far out in a quartic well every move is rejected
    x = positions_after(function, start, 50, 0.2).numpy()
    for power, expected in ((2, second), (4, fourth)):
        values = (x**power).flatten()
        assert abs(values.mean() - expected) < 3.5 * values.std() / math.sqrt(len(values))


def test_banana():
    count = 10000
    start = normals(1, torch.arange(count), 0, 9, 3)
    start[:, 1] += start[:, 0] ** 2  # exact draws, which must stay such
    x, y, _ = positions_after(banana, start, 30, 0.1).T.numpy()
    for values, expected in ((x**2, 1.0), (y, 1.0), ((y - 1) ** 2, 3.0), (y - x**2, 0.0)):
        assert abs(values.mean() - expected) < 3.5 * values.std() / math.sqrt(count)


def test_published_sign_samples_a_third_of_the_variance():
    x = positions_after(gauss, normals(1, torch.arange(12000), 0, 9, 3), 40, 0.4, reference_sign=True)
    assert abs(float(x.var()) - 1 / 3) < 0.01


def flows(**options):
    """Transitions between bins of one coordinate in equilibrium, there and back."""
    count = 300_000
    start = normals(2, torch.arange(count), 0, 9, 3)
    end = positions_after(gauss, start, 1, 0.8, **options)
    bins = np.linspace(-2.5, 2.5, 19)
    i, j = (np.digitize(x.numpy().flatten(), bins) for x in (start, end))
    flow = np.zeros((20, 20))
    np.add.at(flow, (i, j), 1)
    upper = np.triu_indices(20, 1)
    there, back = flow[upper], flow.T[upper]
    enough = there + back > 20
    return np.abs(there - back)[enough] / np.sqrt(there + back)[enough]


def test_detailed_balance():
    assert flows().max() < 4
    assert flows(reference_sign=True).max() > 10


def test_strain_keeps_the_law_of_the_cell():
    """Cells of independent normal numbers, E = |C|²/2 with a = 0: the mean volume stays; it does not with
    the exponents 0 and 6 in place of 3."""
    count = 20_000
    chain = torch.arange(count)
    lattice = normals(5, chain, 0, 8, 9).view(-1, 3, 3)
    density = 1 / 1.6
    inside = (volume(lattice).abs() * density > 1 / 50) & (volume(lattice).abs() * density < 50)
    lattice = lattice[inside]
    chain, count = chain[: len(lattice)], len(lattice)
    land = Toy(lambda _, c: c.square().sum((1, 2)) / 2, count)
    one = torch.ones(count, dtype=torch.float64)
    shift = {}
    for power in (0.0, -3.0, 3.0):
        mover = Mover(land, volume_power=power, density=density)
        state = evaluated(land, lattice, torch.zeros(count, 3, dtype=torch.float64), density)
        for step in range(6):
            state, chance = mover(
                state,
                "strain",
                0.03 * one,
                one,
                torch.zeros(count, 3, dtype=torch.float64),
                normals(5, chain, step, 1, 9),
                uniforms(5, chain, step, 2, 1)[:, 0],
            )
        change = (volume(state.lattice).abs() - volume(lattice).abs()).numpy()
        shift[power] = change.mean() / change.std() * math.sqrt(count)
        assert 0.2 < float(chance.mean()) < 0.99
    assert abs(volume(lattice).abs().mean() / MEAN_DETERMINANT - 1) < 0.05
    assert abs(shift[0.0]) < 3.5
    assert shift[-3.0] < -8
    assert shift[3.0] > 8


def energy_landscape(numbers, count, seed=0):
    torch.manual_seed(seed)
    model = ContinuouSP(channels=4, layers=1, head_layers=1).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0)
    atoms = torch.tensor(numbers * count)
    return model.landscape(atoms, torch.full((count,), len(numbers)))


def reducing(monkeypatch, every, scheme):
    """Energies and volumes along chains whose cells are reduced so often."""
    monkeypatch.setattr("facetry.samplers.chains._REDUCE", every)
    land = energy_landscape([22, 8, 8], 12)
    chain = torch.arange(12)
    lattice, frac = random_start(1, chain, land.num_atoms)
    chains = Chains(land, lattice, frac, seed=2, plan=Annealing(steps=40, hot=1.0, cold=0.1, scheme=scheme))
    chains.run(30)
    return torch.stack([chains.state.at.energy, volume(chains.state.lattice).abs()]), chains


def test_reduced_and_wrapped_at_any_time(monkeypatch):
    """Moves do not see the description: with the same random numbers the chain is the same crystal by
    crystal, reduced at every step or never."""
    often, first = reducing(monkeypatch, 1, "exact")
    never, second = reducing(monkeypatch, 10**9, "exact")
    assert torch.allclose(often, never, rtol=1e-7, atol=1e-7)
    wrapped = [bool(((c.state.frac_coords >= 0) & (c.state.frac_coords < 1)).all()) for c in (first, second)]
    assert wrapped == [True, False]


def test_published_scheme_runs_and_sees_the_description():
    land = energy_landscape([22, 8, 8], 12)
    lattice, frac = random_start(1, torch.arange(12), land.num_atoms)
    plan = Annealing(steps=20, scheme="published")
    ends = []
    for integer in (torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])):
        chains = Chains(land, lattice, frac, seed=2, plan=plan)
        matrix = integer.double()
        state = chains.state
        chains.state = type(state)(
            matrix @ state.lattice, state.frac_coords @ torch.linalg.inv(matrix), state.at
        )
        land.forget(torch.ones(12, dtype=torch.bool))
        ends.append(chains.run(3).at.energy)
    assert ends[0].isfinite().all()
    assert (ends[0] - ends[1]).abs().max() > 1e-3


def test_energies_of_states_are_energies():
    """What is carried along a chain is what the model says of the structure, and annealing finds less."""
    land = energy_landscape([22, 8, 8], 16)
    lattice, frac = random_start(3, torch.arange(16), land.num_atoms)
    chains = Chains(land, lattice, frac, seed=1, plan=Annealing(steps=120, cold=1e-2, per_atom=True))
    before = chains.state.at.energy.mean()
    chains.run()
    state = chains.state
    again = evaluated(energy_landscape([22, 8, 8], 16), state.lattice, state.frac_coords)
    assert torch.allclose(again.at.energy, state.at.energy, atol=1e-9)
    assert torch.allclose(again.at.by_strain, state.at.by_strain, atol=1e-8)
    assert state.at.energy.mean() < before
    assert (chains.accepted > 0.3).all()


def test_same_seed_same_chain_and_resumed():
    plan = Annealing(steps=40)

    def start(seed=1):
        land = energy_landscape([22, 8], 8)
        lattice, frac = random_start(3, torch.arange(8), land.num_atoms)
        return Chains(land, lattice, frac, seed=seed, plan=plan)

    one, two, other = start(), start(), start(seed=2)
    one.run(20)
    kept = {name: value.clone() for name, value in one.tensors().items()}
    one.run()
    two.run(20)
    two.tensors()
    two.run()
    resumed = start()
    resumed.restore(kept)
    resumed.run()
    other.run()
    assert torch.equal(one.state.lattice, two.state.lattice)
    assert torch.equal(one.state.frac_coords, resumed.state.frac_coords)
    assert torch.equal(one.state.at.energy, resumed.state.at.energy)
    assert not torch.allclose(one.state.lattice, other.state.lattice)


def test_a_chain_does_not_depend_on_its_neighbours():
    plan = Annealing(steps=12)
    ends = []
    for count in (6, 2):
        land = energy_landscape([22, 8], count)
        chain = torch.arange(count)
        lattice, frac = random_start(3, chain, land.num_atoms)
        ends.append(Chains(land, lattice, frac, seed=1, chain=chain, plan=plan).run())
    assert torch.allclose(ends[0].lattice[:2], ends[1].lattice, atol=1e-9)


def test_energies_that_are_no_numbers_are_rejected():
    def broken(x, _):
        return torch.where(x[:, 0] > 0.5, torch.nan, x.square().sum(1) / 2)

    x = positions_after(broken, torch.full((500, 3), -0.5, dtype=torch.float64), 20, 0.3)
    assert x.isfinite().all()
    assert x[:, 0].max() <= 0.5


def test_broken_cells_have_no_energy():
    land = energy_landscape([22, 8], 3)
    lattice, frac = random_start(3, torch.arange(3), land.num_atoms)
    lattice[1] = torch.nan
    lattice[2] *= 10
    assert evaluated(land, lattice, frac).at.energy.isfinite().tolist() == [True, False, False]


def test_tempering_keeps_the_law_of_every_rung():
    ladder = torch.tensor([4.0, 2.0, 1.0])
    groups = 4000
    count = 3 * groups
    land = Toy(gauss, count)
    start = normals(1, torch.arange(count), 0, 9, 3) * ladder.repeat(groups)[:, None].sqrt()
    chains = Chains(
        land,
        CELL.expand(count, 3, 3).clone(),
        torch.zeros(count, 3, dtype=torch.float64),
        plan=Annealing(adapt=False, position_step=0.2, strain_step=1e-12),
    )
    state = evaluated(land, CELL.expand(count, 3, 3).clone(), start @ torch.linalg.inv(CELL))
    chains.state = state
    tempering = Tempering(chains, ladder, every=2)
    for _ in range(4):  # before the cells are reduced, which this toy does not bear
        tempering.run(2)
    x = (chains.state.frac_coords @ CELL).numpy()
    for rung, temperature in enumerate(ladder.tolist()):
        chosen = (tempering.rung == rung).numpy()
        assert chosen.sum() == groups
        values = (x[chosen] ** 2).flatten()
        assert abs(values.mean() - temperature) < 3.5 * values.std() / math.sqrt(len(values))
    assert (tempering.rung.view(-1, 3) != torch.arange(3)).any(1).float().mean() > 0.3
    assert (tempering.swaps > 0.05).all()
    with pytest.raises(ValueError, match="groups of 7"):
        Tempering(chains, torch.ones(7))


def test_starts():
    chain = torch.arange(100_000)
    cells = random_cells(0, chain, torch.full_like(chain, 5))
    assert abs(float(volume(cells).abs().mean()) / 100 - 1) < 0.01
    lattice, frac = random_start(0, chain[:500], torch.full((500,), 4))
    assert float(volume(lattice).abs().mean()) == pytest.approx(80, rel=0.15)
    assert stats.kstest(frac.flatten().numpy(), "uniform").pvalue > 0.01


def test_wrong_plans():
    for options, words in (({"steps": 0}, "steps of at least 1"), ({"cold": 2.0}, "hot >= cold > 0")):
        with pytest.raises(ValueError, match=words):
            Annealing(**options)
