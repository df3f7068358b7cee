"""Shared fixtures; the import hook checks every jaxtyping shape of facetry while the tests run."""

from __future__ import annotations

import os
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("facetry", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; tests that need it skip where it is missing."""
    for folder in os.environ.get("FACETRY_DATA", "").split(os.pathsep):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("real data not found: set FACETRY_DATA to a folder that holds perov5, mp20, cif-zoo, ...")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240917)
