"""Graphs of many crystals of which some have none."""

from __future__ import annotations

import numpy as np
import pytest

from facetry import Crystal
from facetry.graph import GraphError, KNearest
from facetry.graph.attempts import attempts
from facetry.graph.cells import Voronoi
from tests import crystals as zoo

SLAB = Crystal(np.diag([3.0, 3.0, 20.0]), [[0, 0, 0]], [29], name="slab")
LONELY = Crystal(np.diag([5.5, 5.5, 5.5]), [[0, 0, 0]], [2], name="lonely")
CF = Crystal(np.eye(3) * 3, [[0, 0, 0]], [98], name="Cf")
TWICE = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 1e-5]], [29, 29], name="twice")


def collect(builder, crystals):
    calls, refused = [], {}

    def build(rows):
        calls.append(len(rows))
        return builder([crystals[i] for i in rows])

    found = list(attempts(build, np.arange(len(crystals)), lambda row, e: refused.update({row: str(e)})))
    return found, refused, calls


def test_an_error_that_names_its_crystals_costs_one_more_attempt():
    sound = [zoo.nacl(), zoo.zno(), zoo.si()]
    found, refused, calls = collect(Voronoi(), [sound[0], LONELY, sound[1], LONELY, sound[2], SLAB])
    assert set(refused) == {1, 3, 5}
    assert "lonely: an atom of He has no bond" in refused[1]
    assert "slab" in refused[5]
    ((rows, batch),) = found
    assert rows.tolist() == [0, 2, 4]
    assert batch.num_atoms.tolist() == Voronoi()(sound).num_atoms.tolist()
    assert len(calls) <= 3  # open cells are found before missing bonds


def test_numbers_count_over_pieces_of_a_long_list():
    with pytest.raises(GraphError, match="Cf has no covalent radius") as error:
        Voronoi()([zoo.si()] * 300 + [CF, zoo.si(), CF])
    assert sorted(error.value.reasons) == [300, 302]


def test_other_errors_are_found_by_halves():
    found, refused, _ = collect(KNearest(4), [zoo.nacl(), TWICE, zoo.zno(), zoo.si(), TWICE])
    assert set(refused) == {1, 4}
    assert np.concatenate([rows for rows, _ in found]).tolist() == [0, 2, 3]
