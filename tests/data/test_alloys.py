"""The set that ships: right by ASE's EMT, the same everywhere, divided without leaks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from facetry.crystal import Crystal
from facetry.data import alloys, dataset, info
from facetry.data.crystals import CrystalTable
from facetry.data.emt import ELEMENTS, label, lattice_constant
from facetry.elements import atomic_number

# sha256 of lattices and coordinates: to the last bit the same on every machine
BYTES = "7ec4f3e0525a91a3ccf5e4c727f61fc87084a953696edb0cc78fdcc67fac56a5"


def by_ase(crystal: Crystal) -> tuple[float, np.ndarray, np.ndarray]:
    atoms = Atoms(
        numbers=crystal.atomic_numbers, scaled_positions=crystal.frac_coords, cell=crystal.lattice, pbc=True
    )
    atoms.calc = EMT()
    return atoms.get_potential_energy() / len(atoms), atoms.get_forces(), atoms.get_stress()


@pytest.fixture(scope="module")
def made() -> CrystalTable:
    return alloys.crystals()[0]


def test_labels_equal_ase_on_the_set(made):
    chosen = made.select(np.arange(0, len(made), 9))  # every prototype and variant, 329 crystals
    ours = label(chosen)
    for i, crystal in enumerate(chosen):
        energy, forces, stress = by_ase(crystal)
        atoms = slice(chosen.offsets[i], chosen.offsets[i + 1])
        assert ours.energy_per_atom[i] == pytest.approx(energy, abs=1e-8)
        np.testing.assert_allclose(ours.forces[atoms], forces, atol=1e-8)
        np.testing.assert_allclose(ours.stress[i], stress, atol=1e-8)


def test_labels_equal_ase_on_skewed_cells_and_an_isolated_atom(rng):
    numbers = [atomic_number(symbol) for symbol in ELEMENTS]
    crystals = [Crystal(30 * np.eye(3), [[0.3, 0, 0]], [78], name="alone")]
    for i in range(40):
        count = int(rng.integers(1, 9))
        edge = (14 * count) ** (1 / 3)
        lattice = edge * (np.eye(3) + rng.normal(0, 0.12, (3, 3)) + np.triu(rng.integers(-2, 3, (3, 3)), 1))
        crystals.append(
            Crystal(lattice, rng.uniform(-2, 2, (count, 3)), rng.choice(numbers, count), name=str(i))
        )
    table = CrystalTable.from_crystals(crystals)
    ours = label(table)
    for i, crystal in enumerate(crystals):
        energy, forces, stress = by_ase(crystal)
        atoms = slice(table.offsets[i], table.offsets[i + 1])
        assert ours.energy_per_atom[i] == pytest.approx(energy, rel=1e-10, abs=1e-10)
        np.testing.assert_allclose(ours.forces[atoms], forces, atol=1e-10 * max(1, abs(forces).max()))
        np.testing.assert_allclose(ours.stress[i], stress, atol=1e-10 * max(1, abs(stress).max()))


def test_forces_and_stress_are_derivatives_of_the_energy(made):
    crystal = made[int(np.nonzero(made.num_atoms == 8)[0][3])]
    step = 1e-5

    def energy(lattice: np.ndarray, frac: np.ndarray) -> float:
        moved = CrystalTable.from_crystals([Crystal(lattice, frac, crystal.atomic_numbers)])
        return float(label(moved).energy_per_atom[0]) * len(crystal)

    ours = label(CrystalTable.from_crystals([crystal]))
    shift = np.zeros_like(crystal.frac_coords)
    shift[2] = np.linalg.inv(crystal.lattice)[1]  # atom 2 along y by one Å
    slope = energy(crystal.lattice, crystal.frac_coords + step * shift)
    slope -= energy(crystal.lattice, crystal.frac_coords - step * shift)
    assert -slope / (2 * step) == pytest.approx(ours.forces[2, 1], abs=1e-6)
    for column, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * step
        strain[b, a] += 0.5 * step
        up = energy(crystal.lattice @ (np.eye(3) + strain), crystal.frac_coords)
        down = energy(crystal.lattice @ (np.eye(3) - strain), crystal.frac_coords)
        assert (up - down) / (2 * step) / crystal.volume == pytest.approx(ours.stress[0, column], abs=1e-7)


def test_pure_metals_rest_at_their_lattice_constant():
    fcc = 0.5 * (np.ones((3, 3)) - np.eye(3))
    for symbol in ELEMENTS:
        sizes = lattice_constant(symbol) * np.array([0.95, 1.0, 1.05])
        cells = CrystalTable.from_crystals(
            [Crystal(a * fcc, [[0, 0, 0]], [atomic_number(symbol)]) for a in sizes]
        )
        energy = label(cells).energy_per_atom
        assert energy[1] == energy.min()
        assert abs(energy[1]) < 0.01  # the zero of energy is the pure metal


def test_another_element_is_named():
    iron = CrystalTable.from_crystals([Crystal(2.8 * np.eye(3), [[0, 0, 0]], [26], name="iron")])
    with pytest.raises(ValueError, match="iron: no EMT parameters for Fe; it knows Al, Cu"):
        label(iron)


def test_the_set_is_the_one_of_the_manifest(made):
    manifest = info("emt-alloys")
    assert len(made) == manifest.rows
    assert made.fingerprint() == manifest.files["all"].fingerprint
    assert len(set(made.names.tolist())) == len(made)
    assert made.num_atoms.max() == 8
    assert set(made.composition()) == set(ELEMENTS)


def test_another_process_makes_the_same_bytes(made):
    code = "from facetry.data import alloys; t, _ = alloys.crystals(); import hashlib; "
    code += "print(hashlib.sha256(t.lattice.tobytes() + t.frac_coords.tobytes()).hexdigest())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(made.lattice.tobytes() + made.frac_coords.tobytes()).hexdigest()
    assert run.stdout.strip() == here == BYTES


def test_it_takes_seconds_and_is_physical(made):
    start = time.process_time()  # a busy machine takes longer by the clock
    table = alloys.table()
    assert time.process_time() - start < 20
    energy = table["energy_per_atom"].to_numpy()
    assert np.isfinite(energy).all()
    assert -0.2 < energy.min() < np.median(energy) < 0.3
    assert energy.max() < 2
    rest = np.array([n.endswith("-0") for n in made.names])
    assert energy[rest].max() < 0.6
    ordered = dict(zip(made.names.tolist(), energy, strict=True))
    found = {
        n: e for n, e in ordered.items() if n.startswith(("Cu3Au-L12", "AuCu3-L12")) and n.endswith("-0")
    }
    assert len(found) == 1
    assert min(found.values()) < 0  # Cu3Au orders


def test_named_set_with_forces_and_stress(tmp_path, monkeypatch):
    monkeypatch.setenv("FACETRY_CACHE", str(tmp_path))
    monkeypatch.delenv("FACETRY_DATA", raising=False)
    splits = dataset("emt-alloys")
    assert (tmp_path / "data" / "emt-alloys" / "all.parquet").is_file()
    assert splits.official
    assert splits.complete
    assert [t.name for t in splits.target_info] == ["energy_per_atom"]
    part = splits.test.select([4, 2])
    assert part.extras["forces"].values.shape == (part.crystals.num_atoms.sum(), 3)
    assert part.extras["stress"].values.shape == (2, 6)
    energy, forces, stress = by_ase(part.crystals[0])
    assert part.targets[0, 0] == pytest.approx(energy, abs=2e-8)
    np.testing.assert_allclose(part.extras["forces"].values[: len(forces)], forces, atol=2e-8)
    np.testing.assert_allclose(part.extras["stress"].values[0], stress, atol=2e-8)
    assert dataset("emt-alloys").hash == splits.hash  # from the cache now
    with pytest.raises(ValueError, match="forces is not one number a crystal; read it from Dataset"):
        dataset("emt-alloys", target="forces")


def test_no_composition_is_in_two_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("FACETRY_CACHE", str(tmp_path))
    splits = dataset("emt-alloys")
    formulas = [set(p.crystals.formulas) for p in (splits.train, splits.val, splits.test)]
    assert not formulas[0] & formulas[1]
    assert not formulas[0] & formulas[2]
    assert not formulas[1] & formulas[2]
    assert {f"{s}1" for s in ELEMENTS} <= formulas[0]
    total = len(splits.train) + len(splits.val) + len(splits.test)
    assert 0.07 < len(splits.val) / total < 0.13
    assert 0.07 < len(splits.test) / total < 0.13


def test_a_read_only_cache_costs_the_copy_only(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("FACETRY_CACHE", str(blocked))
    assert len(dataset("emt-alloys").train) > 2000
    assert "not kept" in caplog.text
