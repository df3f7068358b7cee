from __future__ import annotations

import itertools
import time

import moyopy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facetry.geometry import (
    PrimitiveCells,
    determinant,
    inverse,
    metric,
    minkowski_reduce,
    primitive_cell,
    volume,
)

from .cells import fcc, from_parameters, rotations, unimodular
from .test_reduction import random_lattices

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # lattice, frac, numbers


def supercell(cell: Arrays, matrix: torch.Tensor) -> Arrays:
    """All atoms of the cell with rows ``matrix @ lattice``; any integer matrix with non-zero determinant."""
    lattice, frac, numbers = cell
    reach = matrix.abs().sum(0).int().tolist()
    images = torch.tensor(list(itertools.product(*(range(-m, m + 1) for m in reach))), dtype=torch.float64)
    inside = (frac[:, None] + images) @ inverse(matrix.double())
    center = inside + 1e-7  # away from the faces
    keep = ((center >= 0) & (center < 1)).all(-1)
    atom, image = keep.nonzero().unbind(1)
    return matrix.double() @ lattice, inside[atom, image], numbers[atom]


def pack(cells: list[Arrays]) -> tuple[torch.Tensor, ...]:
    lattice, frac, numbers = zip(*cells, strict=True)
    return torch.stack(lattice), torch.cat(frac), torch.cat(numbers), torch.tensor([len(x) for x in numbers])


def random_crystal(rng: np.random.Generator, atoms: int, kinds: int = 2) -> Arrays:
    """Atoms of a few kinds anywhere: primitive."""
    numbers = torch.from_numpy(rng.integers(1, kinds + 1, atoms))
    return random_lattices(rng, 1)[0], torch.from_numpy(rng.random((atoms, 3))), numbers


def random_matrix(rng: np.random.Generator, largest: int) -> torch.Tensor:
    """Hermite normal form of small determinant times a unimodular matrix."""
    diagonal = rng.integers(1, largest + 1, 3)
    matrix = np.diag(diagonal).astype(float)
    matrix[1, 0], matrix[2, 0], matrix[2, 1] = rng.integers(0, 3, 3)
    return (unimodular(rng, 1, factors=2, largest=1)[0] @ torch.from_numpy(matrix)).round()


def one(cells: PrimitiveCells, index: int) -> Arrays:
    first = int(cells.num_atoms[:index].sum())
    rows = slice(first, first + int(cells.num_atoms[index]))
    return cells.lattice[index], cells.frac_coords[rows], cells.atomic_numbers[rows]


def assert_same_crystal(found: Arrays, expected: Arrays, tolerance: float = 1e-6) -> None:
    """Same lattice of translations, same atoms up to one shift and their order."""
    lattice, frac, numbers = found
    change = lattice @ inverse(expected[0])
    assert torch.allclose(change, change.round(), atol=1e-6)
    assert abs(float(determinant(change.round()))) == 1.0
    assert sorted(numbers.tolist()) == sorted(expected[2].tolist())
    there = frac @ change.round()
    rare = torch.bincount(numbers).masked_fill(torch.bincount(numbers) == 0, 10**6).argmin()
    start = there[numbers == rare][0]
    for origin in expected[1][expected[2] == rare]:
        apart = (there - start + origin)[:, None] - expected[1][None]
        distance = ((apart - apart.round()) @ expected[0]).norm(dim=-1)
        distance = distance.masked_fill(numbers[:, None] != expected[2][None], torch.inf)
        if bool((distance.amin(1) < tolerance).all()) and bool((distance.amin(0) < tolerance).all()):
            return
    raise AssertionError("no shift maps the primitive cell on the original")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_supercells_go_back(seed: int):
    """Any shape of supercell, turned, shifted, atoms in any order and any image, several in one batch."""
    rng = np.random.default_rng(seed)
    original = [random_crystal(rng, int(rng.integers(1, 5))) for _ in range(4)]
    matrices = [random_matrix(rng, 3) for _ in original]
    larger = []
    turns = rotations(rng, 4)
    for cell, matrix, turn in zip(original, matrices, turns, strict=True):
        lattice, frac, numbers = supercell(cell, matrix)
        assert len(numbers) == round(abs(float(determinant(matrix)))) * len(cell[2])
        order = torch.from_numpy(rng.permutation(len(numbers)))
        frac = frac + torch.from_numpy(rng.random(3) + rng.integers(-2, 3, (len(frac), 3)))
        larger.append((lattice @ turn, frac[order], numbers[order]))
    original = [(x @ turn, f, z) for (x, f, z), turn in zip(original, turns, strict=True)]
    arrays = pack(larger)
    cells = primitive_cell(*arrays)
    assert cells.multiplicity.tolist() == [round(abs(float(determinant(m)))) for m in matrices]
    assert torch.equal(cells.num_atoms * cells.multiplicity, arrays[3])
    for index, cell in enumerate(original):
        assert_same_crystal(one(cells, index), cell)
    # volume and handedness, the map of atoms
    assert torch.allclose(volume(cells.lattice) * cells.multiplicity, volume(arrays[0]))
    assert torch.equal(cells.atomic_numbers[cells.atom_map], arrays[2])
    owner = torch.arange(4).repeat_interleave(arrays[3])
    here = (arrays[1][:, None] @ arrays[0][owner]).squeeze(1)
    there = (
        cells.frac_coords[:, None] @ cells.lattice[torch.arange(4).repeat_interleave(cells.num_atoms)]
    ).squeeze(1)
    apart = ((here - there[cells.atom_map])[:, None] @ inverse(cells.lattice)[owner]).squeeze(1)
    assert torch.allclose(apart, apart.round(), atol=1e-7)
    # nothing is left to find, and what is primitive comes back as it is
    again = primitive_cell(cells.lattice, cells.frac_coords, cells.atomic_numbers, cells.num_atoms)
    assert again.frac_coords is cells.frac_coords
    assert again.lattice is cells.lattice


ROCK_SALT_CUBE = (
    5.64 * torch.eye(3, dtype=torch.float64),
    torch.tensor(
        [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]],
        dtype=torch.float64,
    )
    / 2,
    torch.tensor([11] * 4 + [17] * 4),
)


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_conventional_cells_and_their_supercells(repeat: int):
    iron = (
        2.87 * torch.eye(3, dtype=torch.float64),
        torch.tensor([[0.0] * 3, [0.5] * 3]).double(),
        torch.tensor([26, 26]),
    )
    copper = (3.61 * torch.eye(3, dtype=torch.float64), ROCK_SALT_CUBE[1][:4], torch.tensor([29] * 4))
    matrix = repeat * torch.eye(3)
    cells = primitive_cell(*pack([supercell(c, matrix) for c in (ROCK_SALT_CUBE, iron, copper)]))
    assert cells.multiplicity.tolist() == [4 * repeat**3, 2 * repeat**3, 4 * repeat**3]
    assert cells.num_atoms.tolist() == [2, 1, 1]
    expected = torch.stack([minkowski_reduce(fcc(a)[None])[0][0] for a in (5.64, 3.61)])
    assert torch.allclose(
        metric(cells.lattice[[0, 2]]).diagonal(dim1=1, dim2=2), metric(expected).diagonal(dim1=1, dim2=2)
    )


def test_primitive_crystals_are_unchanged_to_the_last_bit(rng: np.random.Generator):
    crystals = [random_crystal(rng, 4) for _ in range(5)]
    crystals[2] = supercell(crystals[2], torch.diag(torch.tensor([2.0, 1, 3])))
    arrays = pack(crystals)
    cells = primitive_cell(*arrays)
    assert cells.multiplicity.tolist() == [1, 1, 6, 1, 1]
    for index in (0, 1, 3, 4):
        for ours, given_ in zip(one(cells, index), crystals[index], strict=True):
            assert torch.equal(ours, given_)


def test_wrong_atoms_and_species_are_not_overlooked():
    """One atom of another species, missing, or moved: no translation is left."""
    lattice, frac, numbers = supercell(ROCK_SALT_CUBE, 2 * torch.eye(3))
    other = numbers.clone()
    other[5] = 19
    moved = frac.clone()
    moved[9, 0] += 0.01
    cells = primitive_cell(
        *pack([(lattice, frac, other), (lattice, frac[1:], numbers[1:]), (lattice, moved, numbers)])
    )
    assert cells.multiplicity.tolist() == [1, 1, 1]
    # magnetic order along z: chlorine all alike, sodium of two kinds in turn
    layers = torch.where((numbers == 11) & ((frac[:, 2] * 4).round() % 2 == 1), 111, numbers)
    cells = primitive_cell(*pack([(lattice, frac, layers)]))
    assert cells.multiplicity.tolist() == [16]
    assert sorted(cells.atomic_numbers.tolist()) == [11, 17, 17, 111]


def test_noise_below_the_tolerance_is_averaged_and_above_it_kept(rng: np.random.Generator):
    cell = random_crystal(rng, 3)
    lattice, frac, numbers = supercell(cell, torch.tensor([[2.0, 1, 0], [0, 3, 1], [0, 0, 2]]))
    direction = torch.from_numpy(rng.uniform(-1, 1, frac.shape))
    for size, count in ((3e-4, 12), (2e-2, 1)):
        noisy = frac + size * direction @ inverse(lattice)
        cells = primitive_cell(*pack([(lattice, noisy, numbers)]), tolerance=2e-3)
        assert cells.multiplicity.tolist() == [count]
        if count > 1:
            assert_same_crystal(one(cells, 0), cell, tolerance=3e-4 * 3**0.5)
            back = (noisy @ lattice - (cells.frac_coords @ cells.lattice[0])[cells.atom_map]) @ inverse(
                cells.lattice[0]
            )
            residue = (back - back.round()) @ cells.lattice[0]
            for atom in range(3):
                mean = residue[cells.atom_map == atom].mean(0)
                assert torch.allclose(mean, torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_translations_that_are_no_group_are_left_out():
    """A chain that drifts: each step is within the tolerance, several steps are not."""
    count = 9
    drift = torch.linspace(0, 1, count, dtype=torch.float64)
    frac = torch.zeros(count, 3, dtype=torch.float64)
    frac[:, 0] = torch.arange(count) / count
    lattice = torch.diag(torch.tensor([27.0, 4, 4.5], dtype=torch.float64))
    for size in (0.0, 1e-3, 0.05):
        bent = frac.clone()
        bent[:, 1] = size * drift / 4
        cells = primitive_cell(*pack([(lattice, bent, torch.full((count,), 6))]), tolerance=5e-3)
        assert int(cells.multiplicity) in ((9,) if size < 5e-3 else (1,))
        assert int(cells.num_atoms * cells.multiplicity) == count


def test_sites_on_top_of_one_another_do_not_break_anything():
    lattice, frac, numbers = supercell(ROCK_SALT_CUBE, torch.eye(3))
    twice = torch.cat((frac, frac + 1e-5))
    cells = primitive_cell(*pack([(lattice, twice, torch.cat((numbers, numbers)))]))
    assert int(cells.num_atoms * cells.multiplicity) == 16


def test_primitive_cell_is_differentiable(rng: np.random.Generator):
    lattice, frac, numbers = supercell(random_crystal(rng, 2), torch.diag(torch.tensor([2.0, 1, 1])))
    lattice, frac = lattice.clone().requires_grad_(), frac.clone().requires_grad_()

    def cart(lattice: torch.Tensor, frac: torch.Tensor) -> torch.Tensor:
        cells = primitive_cell(lattice[None], frac, numbers, torch.tensor([len(numbers)]))
        between = cells.frac_coords[0] - cells.frac_coords[1]
        return torch.cat((between @ cells.lattice[0], volume(cells.lattice)))

    assert torch.autograd.gradcheck(cart, (lattice, frac), eps=1e-6)


def test_single_precision_and_empty_batches():
    lattice, frac, numbers = supercell(ROCK_SALT_CUBE, 2 * torch.eye(3))
    cells = primitive_cell(lattice[None].float(), frac.float(), numbers, torch.tensor([64]))
    assert cells.multiplicity.tolist() == [32]
    assert cells.lattice.dtype == cells.frac_coords.dtype == torch.float32
    none = torch.zeros(0, dtype=torch.int64)
    cells = primitive_cell(torch.zeros(0, 3, 3), torch.zeros(0, 3), none, none)
    assert len(cells.num_atoms) == len(cells.atom_map) == 0


def test_skewed_and_left_handed_cells(rng: np.random.Generator):
    lattice, frac, numbers = supercell(ROCK_SALT_CUBE, torch.diag(torch.tensor([1.0, 2, 1])))
    change = unimodular(rng, 10, factors=4)
    cells = [(m @ lattice, frac @ inverse(m), numbers) for m in change]
    cells += [(-m @ lattice, frac @ inverse(m), numbers) for m in change]
    found = primitive_cell(*pack(cells))
    assert found.multiplicity.tolist() == [8] * 20
    assert bool((volume(found.lattice[:10]) > 0).all())
    assert bool((volume(found.lattice[10:]) < 0).all())


@pytest.mark.parametrize("alloy", [False, True])
def test_four_thousand_atoms(alloy: bool, rng: np.random.Generator):
    """10 x 10 x 10 cubes of copper; or the same with half of the atoms nickel at random."""
    copper = (3.61 * torch.eye(3, dtype=torch.float64), ROCK_SALT_CUBE[1][:4], torch.tensor([29] * 4))
    grid = torch.cartesian_prod(*[torch.arange(10.0, dtype=torch.float64)] * 3)
    frac = ((grid[:, None] + copper[1]) / 10).reshape(-1, 3)
    numbers = torch.full((4000,), 29)
    if alloy:
        numbers[torch.from_numpy(rng.permutation(4000)[:2000])] = 28
    start = time.perf_counter()
    cells = primitive_cell(10 * copper[0][None], frac, numbers, torch.tensor([4000]))
    assert time.perf_counter() - start < 30
    assert int(cells.multiplicity) == (1 if alloy else 4000)


def read(path, count: int) -> list[Arrays]:
    table = pytest.importorskip("pyarrow.parquet").read_table(path).slice(0, count)
    columns = (table[name].to_pylist() for name in ("lattice", "frac_coords", "atomic_numbers"))
    return [
        (
            torch.tensor(lattice, dtype=torch.float64).reshape(3, 3),
            torch.tensor(frac, dtype=torch.float64).reshape(-1, 3),
            torch.tensor(numbers),
        )
        for lattice, frac, numbers in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("name", ["mp20/test", "wbm_sample/all", "jarvis_vacancy/all", "aflow_agl/test"])
def test_multiplicity_of_real_crystals_agrees_with_moyopy(data_folder, name: str):
    crystals = read(data_folder / f"{name}.parquet", 300)
    found = primitive_cell(*pack(crystals)).multiplicity.tolist()
    for index, (lattice, frac, numbers) in enumerate(crystals):
        if len(numbers) == 1:
            continue
        cell = moyopy.Cell(lattice.tolist(), frac.tolist(), numbers.tolist())
        try:
            theirs = len(numbers) // moyopy.MoyoDataset(cell, symprec=1e-3).prim_std_cell.num_atoms
        except ValueError:  # moyopy gives up on some noisy cells
            continue
        if theirs != found[index]:
            # near the tolerance the two may differ; then a change of it changes the answer
            one_cell = pack([crystals[index]])
            around = {int(primitive_cell(*one_cell, tolerance=t).multiplicity) for t in (2e-4, 1e-3, 5e-3)}
            assert theirs in around, f"{name} {index}: moyopy {theirs}, here {found[index]}"


def test_supercells_of_real_crystals_go_back(data_folder, rng: np.random.Generator):
    crystals = [c for c in read(data_folder / "mp20" / "test.parquet", 200) if len(c[2]) < 12]
    small = primitive_cell(*pack(crystals))
    matrices = [random_matrix(rng, 2) for _ in crystals]
    cells = primitive_cell(*pack([supercell(c, m) for c, m in zip(crystals, matrices, strict=True)]))
    sizes = torch.tensor([round(abs(float(determinant(m)))) for m in matrices])
    assert torch.equal(cells.multiplicity, sizes * small.multiplicity)
    lengths = [
        torch.linalg.vector_norm(minkowski_reduce(x)[0], dim=-1) for x in (cells.lattice, small.lattice)
    ]
    assert torch.allclose(*lengths, atol=1e-6)


def test_large_frameworks(data_folder):
    crystals = sorted(read(data_folder / "curated_cofs" / "all.parquet", 2000), key=lambda c: -len(c[2]))[:20]
    assert len(crystals[0][2]) == 3992
    start = time.perf_counter()
    cells = primitive_cell(*pack(crystals))
    assert time.perf_counter() - start < 10
    assert torch.equal(cells.num_atoms * cells.multiplicity, torch.tensor([len(c[2]) for c in crystals]))


def test_long_cell_of_layers():
    """A 277 Å stack of equal layers, 2.56 Å apart in the plane."""
    cell = (
        from_parameters(2.56, 2.56, 3.3, 90, 90, 120),
        torch.zeros(1, 3, dtype=torch.float64),
        torch.tensor([29]),
    )
    cells = primitive_cell(*pack([supercell(cell, torch.diag(torch.tensor([1.0, 1, 84])))]))
    assert int(cells.multiplicity) == 84
    assert torch.allclose(
        torch.linalg.vector_norm(cells.lattice[0], dim=-1), torch.tensor([2.56, 2.56, 3.3]).double()
    )
