"""A small model and structures for it."""

from __future__ import annotations

import pytest

from tests.cli.calls import perovskite, save_tiny


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def structures(tmp_path):
    folder = tmp_path / "structures"
    folder.mkdir()
    perovskite().write(folder / "a.cif")
    perovskite(4.0).write(folder / "b.vasp")
    return folder
