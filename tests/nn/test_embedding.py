"""The element table against its stated layout; the embeddings against the plain formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facetry.elements import SYMBOLS, atomic_number
from facetry.nn.element_table import (
    ELEMENT_FEATURES,
    ELEMENT_ROWS,
    element_features,
    element_properties,
)
from facetry.nn.embedding import ElementTable, LearnedElements

BLOCKS = {
    "group": (0, 19),
    "period": (19, 26),
    "electronegativity": (26, 36),
    "covalent_radius": (36, 46),
    "valence": (46, 58),
    "ionization_energy": (58, 68),
    "electron_affinity": (68, 78),
    "block": (78, 82),
    "molar_volume": (82, 92),
}


def slot(symbol: str, block: str) -> int | None:
    """Which slot of a block an element fills, counted from the block's start; None where it is empty."""
    low, high = BLOCKS[block]
    filled = np.flatnonzero(element_features()[atomic_number(symbol), low:high])
    assert len(filled) <= 1
    return int(filled[0]) if len(filled) else None


def slots(symbols: str, block: str) -> list[int | None]:
    return [slot(s, block) for s in symbols.split()]


def test_shape_and_row_sums():
    table = element_features()
    assert table.shape == (ELEMENT_ROWS, ELEMENT_FEATURES) == (119, 92)
    assert set(np.unique(table)) == {0.0, 1.0}
    assert table[0].sum() == 0
    sums = table[1:104].sum(axis=1)
    assert sums.min() == 6
    assert sums.max() == 9
    for name in ("group", "period", "valence", "block", "covalent_radius"):
        low, high = BLOCKS[name]
        assert (table[1:, low:high].sum(axis=1) == 1).all(), name


def test_group_period_block():
    lanthanides, actinides = SYMBOLS[57:71], SYMBOLS[89:103]
    assert (lanthanides[0], lanthanides[-1], actinides[0], actinides[-1]) == ("La", "Yb", "Ac", "No")
    for symbol in (*lanthanides, *actinides):
        assert (slot(symbol, "group"), slot(symbol, "block"), slot(symbol, "valence")) == (0, 3, 1)
    assert slots("H He Lu Lr Sc Fe Zn B Cl Xe Og", "group") == [1, 18, 3, 3, 3, 8, 12, 13, 17, 18, 18]
    assert slots("H He Li Ne Na K Rb Cs La Lu Fr Og", "period") == [0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6]
    assert slots("He Be B Sc Zn Ga Lu Lr", "block") == [0, 0, 1, 2, 2, 1, 2, 2]


def test_valence_electrons():
    assert slots("H He C N O F Ne Ba Tl Rn", "valence") == [0, 1, 3, 4, 5, 6, 7, 1, 2, 7]
    assert slots("Sc Fe Ni Cu Zn Pd Pt Lu", "valence") == [2, 7, 9, 10, 11, 11, 9, 2]


def test_known_bins():
    # 1.55 to 1.90 is bin 3, 1.90 to 2.25 bin 4; a value on a border counts to the lower bin
    assert slots("W Hg Pb Bi Si Cu Re", "electronegativity") == [3] * 7
    assert slots("Pt H F Cs Au O", "electronegativity") == [4, 4, 9, 0, 5, 8]
    assert slots("He Ne Ar Kr Rn Pm Eu Tb Yb Am Cm Es Fm", "electronegativity") == [None] * 13
    assert slots("H C Si Cs Fr", "covalent_radius") == [0, 2, 4, 9, 8]
    assert slots("Cs Li H He F", "ionization_energy") == [0, 1, 6, 9, 7]
    assert slots("He Ne Ar Kr Rn Mg Mn Zn Cd Hg Pm Sm Gd Ho Er", "electron_affinity") == [None] * 15
    assert slots("Cl H Be Yb", "electron_affinity") == [9, 5, 0, 4]
    assert slots("B C Cs Xe Fe", "molar_volume") == [0, 0, 9, 8, 1]
    assert slots("At Fr Es Fm", "molar_volume") == [None] * 4


def test_properties_are_physical():
    radius = element_properties("covalent_radius")
    assert (radius[6], radius[79]) == (75, 124)
    assert element_properties("ionization_energy")[1] == pytest.approx(13.5984)
    assert np.isnan(element_properties("electronegativity")[2])
    # liquids and solids: between boron or graphite and caesium
    volume = element_properties("molar_volume")
    assert np.nanmin(volume) > 4
    assert np.nanmax(volume) < 75
    with pytest.raises(ValueError, match="known are electronegativity"):
        element_properties("colour")


@pytest.mark.parametrize("atoms", [0, 7, 500])
def test_element_table_is_the_plain_formula(atoms):
    torch.manual_seed(3)
    layer = ElementTable(16).double()
    numbers = torch.randint(1, 119, (atoms,))
    plain = torch.tensor(element_features())[numbers] @ layer.linear.weight.T + layer.linear.bias
    found = layer(numbers)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)
    if atoms:
        gradient = torch.autograd.grad(found.square().sum(), layer.linear.weight)[0]
        expected = torch.autograd.grad(plain.square().sum(), layer.linear.weight)[0]
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_sizes_and_saved_tensors():
    layer = ElementTable(256)
    assert sum(p.numel() for p in layer.parameters()) == 92 * 256 + 256
    assert set(layer.state_dict()) == {"linear.weight", "linear.bias"}
    learned = LearnedElements(256)
    assert sum(p.numel() for p in learned.parameters()) == 119 * 256
    numbers = torch.tensor([1, 118, 8, 1])
    assert learned(numbers).shape == (4, 256)
    assert torch.equal(learned(numbers)[0], learned(numbers)[3])


@pytest.mark.parametrize("layer", [ElementTable, LearnedElements])
@pytest.mark.parametrize("wrong", [0, -1, 119, 200])
def test_unknown_element(layer, wrong):
    with pytest.raises(ValueError, match=rf"\[{wrong}\] are not in the element table"):
        layer(4)(torch.tensor([6, wrong]))


def test_layers_compile_to_one_graph():
    layer = ElementTable(4)
    exported = torch.export.export(layer, (torch.tensor([1, 6, 8]),))
    torch.testing.assert_close(exported.module()(torch.tensor([1, 6, 8])), layer(torch.tensor([1, 6, 8])))
