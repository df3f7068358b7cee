from __future__ import annotations

from dataclasses import dataclass

import moyopy
import numpy as np
import pytest
import torch

from facetry.geometry import (
    Edges,
    FrameSet,
    canonical_frames,
    continuous_frames,
    determinant,
    inverse,
    tie_classes,
    tied_frames,
)

from .cells import bcc, fcc, from_parameters, neighbors, rotations, unimodular


@dataclass
class Sites:
    lattice: torch.Tensor
    frac: torch.Tensor
    numbers: torch.Tensor

    def in_cell(self, change: torch.Tensor, rng: np.random.Generator) -> Sites:
        """The same crystal: other cell vectors, other origin, other order of atoms, turned."""
        lattice = change @ self.lattice @ rotations(rng, 1)[0]
        frac = self.frac @ inverse(change) + torch.from_numpy(rng.normal(size=3))
        order = torch.from_numpy(rng.permutation(len(frac)))
        return Sites(lattice, (frac - frac.floor())[order], self.numbers[order])

    def mirrored(self) -> Sites:
        return Sites(-self.lattice, self.frac, self.numbers)


def crystal(lattice: torch.Tensor, sites: list[tuple[int, tuple[float, float, float]]]) -> Sites:
    frac = torch.tensor([position for _, position in sites], dtype=torch.float64)
    return Sites(lattice, frac, torch.tensor([number for number, _ in sites]))


THIRD = 1 / 3
ROCK_SALT = crystal(fcc(5.64), [(11, (0, 0, 0)), (17, (0.5, 0.5, 0.5))])
DIAMOND = crystal(fcc(3.57), [(6, (0, 0, 0)), (6, (0.25, 0.25, 0.25))])
ZINC_BLENDE = crystal(fcc(5.43), [(30, (0, 0, 0)), (16, (0.25, 0.25, 0.25))])
CAESIUM_CHLORIDE = crystal(from_parameters(4.12, 4.12, 4.12, 90, 90, 90), [(55, (0, 0, 0)), (17, (0.5,) * 3)])
IRON = crystal(bcc(2.87), [(26, (0, 0, 0))])
WURTZITE = crystal(
    from_parameters(3.82, 3.82, 6.26, 90, 90, 120),
    [
        (30, (THIRD, 2 * THIRD, 0)),
        (30, (2 * THIRD, THIRD, 0.5)),
        (16, (THIRD, 2 * THIRD, 0.375)),
        (16, (2 * THIRD, THIRD, 0.875)),
    ],
)
# no symmetry but translations, in a lattice that has much
LONELY = [(8, (0.02, 0.11, 0.05)), (8, (0.41, 0.57, 0.33)), (22, (0.73, 0.25, 0.64))]
ORTHORHOMBIC = crystal(from_parameters(4, 5, 6, 90, 90, 90), LONELY)
CUBIC = crystal(from_parameters(4.5, 4.5, 4.5, 90, 90, 90), LONELY)
# One element, point group m (normal along a): every bond is there from both ends, so the list of edges looks
# centrosymmetric, and with the mirror plane like one of point group 2/m. The crystal is not.
POLAR = crystal(
    from_parameters(4, 5, 6, 90, 90, 90),
    [(6, (0, 0, 0)), (6, (0.5, 0.31, 0.13)), (6, (0, 0.42, 0.37)), (6, (0.5, 0.8, 0.71))],
)
PROPER_OPERATIONS = [
    (ROCK_SALT, 24), (DIAMOND, 24), (ZINC_BLENDE, 12), (CAESIUM_CHLORIDE, 24), (IRON, 24), (WURTZITE, 6),
    (ORTHORHOMBIC, 1), (CUBIC, 1), (POLAR, 1),
]  # fmt: skip


def classes(sites: list[Sites], choose=tie_classes, frames=tied_frames, cutoff: float = 6.05, **options):
    """Tied frames, and those that ``choose`` leaves of them, with the graph in flat form."""
    lattice = torch.stack([s.lattice for s in sites])
    parts, first = [], 0
    for index, s in enumerate(sites):
        center, neighbor, vector = neighbors(s.lattice, s.frac, cutoff)
        owner = torch.full_like(center, index)
        parts.append(
            (owner, s.numbers[center], s.numbers[neighbor], vector, center + first, neighbor + first)
        )
        first += len(s.frac)
    owner, z_center, z_neighbor, vector, center, neighbor = (torch.cat(x) for x in zip(*parts, strict=True))
    tied = frames(lattice)
    edges = Edges(owner, center, neighbor, z_center, z_neighbor, vector)
    found = choose(tied, edges, lattice, **options)
    return tied, found, (lattice, owner, z_center, z_neighbor, vector, center)


def seen(frames: FrameSet, frame: int, graph) -> torch.Tensor:
    """The oracle: sorted rows of species, distance and cosines, grouped by atom, and the Gram matrix."""
    lattice, owner, z_center, z_neighbor, vector, center = graph
    index = int(frames.crystal[frame])
    axes = frames.integer[frame].double() @ lattice[index]
    unit = axes / axes.norm(dim=1, keepdim=True)
    mine = owner == index
    length = vector[mine].norm(dim=1)
    cosine = vector[mine] @ unit.T / length[:, None]
    rows = torch.cat((z_center[mine, None], z_neighbor[mine, None], length[:, None], cosine), 1).numpy()
    atoms = []
    for atom in torch.unique(center[mine]).tolist():
        own = np.round(rows[center[mine].numpy() == atom], 5) + 0.0
        atoms.append(own[np.lexsort(own.T)].ravel())
    width = max(map(len, atoms))
    table = np.array([np.pad(atom, (0, width - len(atom))) for atom in atoms])
    gram = np.round((unit @ unit.T).numpy(), 5).ravel() + 0.0
    return torch.from_numpy(np.concatenate((table[np.lexsort(table.T)].ravel(), gram)))


def test_classes_are_frames_over_proper_operations():
    tied, found, _ = classes([s for s, _ in PROPER_OPERATIONS])
    expected = tied.num_frames // torch.tensor([order for _, order in PROPER_OPERATIONS])
    assert found.num_frames.tolist() == expected.tolist()
    assert int(found.num_frames[0]) == 6  # rock salt gave six different predictions
    weight = 1 / found.num_frames.double()[found.crystal]
    assert torch.allclose(found.weight, weight)


def test_classes_equal_those_of_the_sorted_graphs():
    """Frames whose lists of edges, atom by atom, are equal share a class, and no others do."""
    sites = [s for s, _ in PROPER_OPERATIONS]
    tied, found, graph = classes(sites, cutoff=4.57)
    for index in range(len(sites)):
        members = (tied.crystal == index).nonzero().squeeze(1).tolist()[:36]
        tables = {seen(tied, f, graph).numpy().tobytes() for f in members}
        left = (found.crystal == index).nonzero().squeeze(1).tolist()
        kept = {seen(found, f, graph).numpy().tobytes() for f in left}
        assert len(kept) == int(found.num_frames[index])
        assert tables <= kept


@pytest.mark.parametrize("choose", [tie_classes, canonical_frames])
def test_any_cell_gives_the_same_graphs(choose, rng: np.random.Generator):
    """Also where symmetry is broken by less than the tolerance: the choice is its own."""
    sites = [ROCK_SALT, WURTZITE, ORTHORHOMBIC, CAESIUM_CHLORIDE, POLAR]
    for noise in (0.0, 2e-6, 1e-3):
        noisy = [
            Sites(s.lattice, s.frac + noise / 5 * torch.from_numpy(rng.normal(size=s.frac.shape)), s.numbers)
            for s in sites
        ]
        other = [
            s.in_cell(change, rng)
            for s, change in zip(noisy, unimodular(rng, 5, factors=2, largest=2), strict=True)
        ]
        results = []
        for crystals in (noisy, other):
            _, found, (lattice, owner, _, _, vector, _) = classes(crystals, choose, cutoff=4.57)
            axes = found.vectors(lattice)
            axes = axes / axes.norm(dim=-1, keepdim=True)
            rows = []
            for frame, index in enumerate(found.crystal.tolist()):
                mine = vector[owner == index]
                cosine = mine @ axes[frame].T / mine.norm(dim=1, keepdim=True)
                power = torch.tensor([1.0, 1.4, 1.9], dtype=torch.float64)
                rows.append((index, float((cosine @ power).exp().sum()), float(found.weight[frame])))
            results.append(torch.tensor(sorted(rows), dtype=torch.float64))
        assert results[0].shape == results[1].shape
        assert torch.allclose(results[0], results[1], atol=1e-9, rtol=0)


def test_mirror_images():
    """Achiral crystals and their mirror images see the same graphs, chiral ones do not."""
    for sites, chiral in ((WURTZITE, False), (ROCK_SALT, False), (ORTHORHOMBIC, True)):
        tables = []
        for s in (sites, sites.mirrored()):
            _, found, graph = classes([s], cutoff=4.57)
            assert bool((determinant(found.vectors(graph[0])) > 0).all())
            tables.append({seen(found, f, graph).numpy().tobytes() for f in range(len(found.crystal))})
        assert (tables[0] == tables[1]) is not chiral


def test_noise_in_the_seventh_digit_keeps_the_classes(rng: np.random.Generator):
    sites = [s for s, _ in PROPER_OPERATIONS]
    exact = classes(sites)[1].num_frames
    for noise, alike in ((1e-7, True), (1e-6, True), (1e-2, False)):
        noisy = [
            Sites(s.lattice, s.frac + noise / 5 * torch.from_numpy(rng.normal(size=s.frac.shape)), s.numbers)
            for s in sites
        ]
        assert torch.equal(classes(noisy)[1].num_frames, exact) is alike


def test_canonical_frame_is_one_of_the_classes():
    sites = [s for s, _ in PROPER_OPERATIONS]
    _, merged, _ = classes(sites)
    _, one, _ = classes(sites, canonical_frames)
    assert one.num_frames.tolist() == [1] * len(sites)
    assert one.weight.tolist() == [1.0] * len(sites)
    for index in range(len(sites)):
        members = merged.integer[merged.crystal == index]
        assert bool((members == one.integer[index]).all((1, 2)).any())


def test_continuous_weights_are_summed():
    tied, found, _ = classes([CAESIUM_CHLORIDE, ROCK_SALT], frames=continuous_frames)
    assert found.num_frames.tolist() == [1, 6]
    assert len(torch.unique(tied.weight.round(decimals=6))) > len(torch.unique(found.num_frames))
    assert torch.allclose(found.weight[found.crystal == 1].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_small_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch):
    sites = [s for s, _ in PROPER_OPERATIONS]
    _, whole, _ = classes(sites)
    monkeypatch.setattr("facetry.geometry.ties._PAIRS_AT_ONCE", 16)
    _, pieces, _ = classes(sites)
    assert torch.equal(whole.integer, pieces.integer)
    assert torch.allclose(whole.weight, pieces.weight)


def test_crystals_with_one_frame_and_without_edges():
    triclinic = crystal(from_parameters(4, 5, 6.3, 80, 85, 77), LONELY)
    tied, found, _ = classes([triclinic])
    assert torch.equal(tied.integer, found.integer)
    tied, found, _ = classes([CUBIC, triclinic], cutoff=0.5)
    assert found.num_frames.tolist() == [1, 1]  # nothing to tell the frames of a cube apart


def test_classes_of_real_crystals(data_folder, rng: np.random.Generator):
    """mp20: |F| over the number of proper rotations that moyopy finds, on crystals clear of the tolerance."""
    table = (
        pytest.importorskip("pyarrow.parquet").read_table(data_folder / "mp20" / "test.parquet").slice(0, 400)
    )
    sites, expected = [], []
    columns = (table[name].to_pylist() for name in ("lattice", "frac_coords", "atomic_numbers"))
    for lattice, frac, numbers in zip(*columns, strict=True):
        cell = moyopy.Cell(np.reshape(lattice, (3, 3)).tolist(), np.reshape(frac, (-1, 3)).tolist(), numbers)
        found = [moyopy.MoyoDataset(cell, symprec=precision) for precision in (1e-5, 1e-3)]
        if len(numbers) > 8 or found[0].number != found[1].number:
            continue
        if found[0].prim_std_cell.num_atoms != len(numbers):
            continue
        operations = np.unique(np.reshape(found[0].operations.rotations, (-1, 9)), axis=0).reshape(-1, 3, 3)
        expected.append(int((np.linalg.det(operations) > 0).sum()))
        sites.append(
            Sites(
                torch.tensor(lattice, dtype=torch.float64).reshape(3, 3),
                torch.tensor(frac, dtype=torch.float64).reshape(-1, 3),
                torch.tensor(numbers),
            )
        )
    assert len(sites) > 60
    tied, merged, _ = classes(sites, cutoff=5.0321)
    assert (merged.num_frames * torch.tensor(expected)).tolist() == tied.num_frames.tolist()


def test_most_edges_keeps_the_classes_of_smallest_signature_whatever_the_cell() -> None:
    """A bound on classes times edges chooses by the crystal, not by its description."""
    from facetry.graph import complete
    from tests import crystals as zoo

    crystal = zoo.low_motif(zoo.fcc(6.8), "fcc lattice, motif without symmetry")
    model_input = complete.LatticeKNearest(k=12)
    whole = model_input([crystal])
    assert len(whole.frames.crystal) == 144
    bound = 7 * len(whole.graph)
    chosen = []
    for other in (crystal, zoo.rebased(zoo.rotated(crystal, zoo.rotation(2)), zoo.unimodular(9))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(complete, "MOST_EDGES", bound)
            batch = model_input([other])
        assert len(batch.frames.crystal) == 7
        assert float(batch.frames.weight.sum()) == pytest.approx(1.0, abs=1e-12)
        axes = batch.frame_vectors()
        cosines = torch.einsum("ea,fma->fem", batch.edge_vectors(), axes)
        chosen.append(cosines.square().sum(1).sort(0).values)
    torch.testing.assert_close(chosen[0], chosen[1], rtol=1e-9, atol=1e-9)
