"""Energies of relaxed crystals, and optimiser steps that a better start saves."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT

import facetry
from facetry.card import ModelCard
from facetry.evaluation.energy import energies_per_atom, energy_gains, load_calculator, optimiser_steps
from facetry.models import EMPNN
from facetry.tasks.evaluate import disturbed_crystals
from tests import crystals as zoo


def strained(crystal: facetry.Crystal, share: float) -> facetry.Crystal:
    strain = np.eye(3) + share * np.array([[1, 0.5, 0], [0.5, -0.5, 0.3], [0, 0.3, 0.7]])
    return crystal.replace(lattice=crystal.lattice @ strain)


def test_energies_are_those_of_the_calculator() -> None:
    found = energies_per_atom([zoo.cu(), zoo.po()], EMT())
    atoms = zoo.cu().to_ase()
    atoms.calc = EMT()
    assert found[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    assert np.isnan(found[1])  # EMT knows no polonium
    with pytest.raises(ValueError, match="gives no energy; the first reason: Po"):
        energies_per_atom([zoo.po()], EMT())


def test_gains_by_hand() -> None:
    rest, far, near = zoo.cu(), strained(zoo.cu(), 0.08), strained(zoo.cu(), 0.02)
    gains = energy_gains([far, near], [near, far], [rest, rest], EMT())
    assert gains["energy_change"][0] < 0 < gains["energy_change"][1]
    assert gains["energy_change"].sum() == pytest.approx(0, abs=1e-12)
    assert gains["energy_improved"].tolist() == [100.0, 0.0]
    excess = gains["energy_excess"] - gains["noisy_energy_excess"]
    assert excess == pytest.approx(gains["energy_change"])


def test_an_optimiser_needs_fewer_steps_from_a_better_start() -> None:
    table = facetry.dataset("emt-alloys", target=[], match="*-0", limit={"test": 1}).test.crystals
    far, rest = optimiser_steps(strained(table[0], 0.08), EMT())
    near, _ = optimiser_steps(strained(rest, 0.005), EMT())
    assert near < far
    assert optimiser_steps(rest, EMT())[0] == 0


def test_energies_beside_gains() -> None:
    model = EMPNN(fields="ket_bra_1", layers=0, blocks=1, channels=8, k=4, weight_clamp=0.001)
    model.card = ModelCard(
        model="empnn", options=model.options, graph={}, targets=[], relax={"task": "denoise", "noise": 0.05}
    )
    data = facetry.dataset("emt-alloys", target=[], match="*-0", limit={"test": 3})
    scores = facetry.evaluate(model, data, calculator=EMT())
    before, after, true = disturbed_crystals(model, data.test.crystals)
    change = energies_per_atom(after, EMT()) - energies_per_atom(before, EMT())
    assert scores.energy_change == pytest.approx(change.mean(), abs=1e-9)
    assert scores.energy_improved == pytest.approx(100 * (change < 0).mean())
    assert [c.name for c in before] == [c.name for c in true] == data.test.names.tolist()
    assert true[0] == data.test.crystals[0]


def test_calculators_by_name() -> None:
    assert isinstance(load_calculator("ase.calculators.emt:EMT"), EMT)
    for name in ("ase.calculators.emt", "nothing:EMT", "ase.calculators.emt:Nothing"):
        with pytest.raises(ValueError, match="expected MODULE:CLASS"):
            load_calculator(name)
