"""Embed: a row per input in order, atoms in the order of the sites, files that are whole or not there."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from facetry.crystal import Crystal
from facetry.models import MODELS
from facetry.tasks.embed import EmbeddingWriter, embed, embeddings
from facetry.tasks.inputs import items_of

from .doubles import Double

SITES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def crystal(*numbers, name=""):
    sites = np.linspace(0, 0.9, len(numbers))[:, None] * np.ones(3)
    return Crystal(4 * np.eye(3), sites, list(numbers), name=name)


def test_vectors_in_order_with_gaps_for_bad_inputs():
    mixed = Crystal(4 * np.eye(3), [[0, 0, 0]], [29], [0.5])
    found = embed(Double(), [crystal(1, 8, name="a"), mixed, crystal(26, name="b")])
    np.testing.assert_allclose(found.vectors[[0, 2]], [[4.5, 2], [26, 1]])
    assert np.isnan(found.vectors[1]).all()
    assert found.status == ["ok", "skipped", "ok"]
    assert found.names == ["a", "", "b"]
    assert found.atoms is None
    assert len(found) == 3
    assert np.asarray(found).shape == (3, 2)
    assert found[0].tolist() == [4.5, 2]


def test_atoms_follow_the_sites_of_the_input_not_of_the_primitive_cell():
    torch.manual_seed(0)
    model = MODELS["icomformer"](layers=1, channels=8, k=6).double()
    cell = Crystal(3.905 * np.eye(3), SITES, [38, 22, 8, 8, 8])
    large = cell.supercell([2, 1, 1])
    one, two = embed(model, [cell, large], atoms=True).atoms
    assert one.shape == (5, 8)
    assert two.shape == (10, 8)
    np.testing.assert_allclose(two, np.tile(one, (2, 1)), atol=1e-10)
    vectors = embed(model, [cell, large]).vectors
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-10)
    np.testing.assert_allclose(vectors[0], one.mean(axis=0), atol=1e-10)


def test_nothing_to_embed():
    assert embed(Double(), []).vectors.shape == (0, 0)


@pytest.mark.parametrize("per_atom", [False, True])
def test_file(tmp_path, per_atom):
    mixed = Crystal(4 * np.eye(3), [[0, 0, 0]], [29], [0.5])
    outcomes = list(embeddings(Double(), items_of([crystal(1, 8), mixed, crystal(26)]), per_atom))
    with EmbeddingWriter(tmp_path / "v.parquet", per_atom) as writer:
        writer.write(outcomes[:1])
        assert not (tmp_path / "v.parquet").exists()
        writer.write(outcomes[1:])
    table = pq.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["vector"] == [[4.5, 2.0], None, [26.0, 1.0]]
    assert table["atoms"] == [2, 1, 1]
    if per_atom:
        assert table["atom_vectors"] == [[[1.0, 1.0], [8.0, 1.0]], None, [[26.0, 1.0]]]
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]


def test_a_file_that_fails_leaves_nothing(tmp_path):
    (outcome,) = embeddings(Double(), items_of(crystal(1)))

    def fail():
        with EmbeddingWriter(tmp_path / "v.parquet", False) as writer:
            writer.write([outcome])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
