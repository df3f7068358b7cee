"""What the tests of the command line share: calls, their answers, a small model."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import torch

from facetry.card import ModelCard, Target
from facetry.crystal import Crystal
from facetry.models import MODELS
from facetry.training import save_model

SITES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def perovskite(a=3.905, numbers=(38, 22, 8, 8, 8), name="STO"):
    return Crystal(a * np.eye(3), SITES, list(numbers), name=name)


def save_tiny(folder, **other):
    torch.manual_seed(0)
    model = MODELS["icomformer"](layers=1, channels=8, k=4)
    model.card = ModelCard(
        model="icomformer",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="energy_per_atom", unit="eV/atom", mean=-3.0, std=0.5, quantile=0.2)],
        elements=[8, 22, 38],
        data={"name": "emt-alloys"},
        **other,
    )
    return save_model(model, folder)


def python(*arguments, **other):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, **other)


def one_line(text):
    """The text is one line of complaint, without a traceback."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("facetry: ")
    assert "Traceback" not in text
    return lines[0]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
