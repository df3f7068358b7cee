"""The page of a relaxing model: scores, maps, and crystals to turn."""

from __future__ import annotations

import json
import re

import numpy as np

from facetry.evaluation.crystal_view import crystal_view, turned_onto
from facetry.evaluation.plots import cell_plot, learning_plot
from facetry.evaluation.relaxation import Cells, relax_scores
from facetry.evaluation.report import write_report
from tests import crystals as zoo


def scores(task: str = "denoise"):
    rng = np.random.default_rng(0)
    true = np.concatenate([rng.uniform(3, 6, (40, 3)), rng.uniform(70, 110, (40, 3))], axis=1)
    pairs = rng.uniform(2, 4, 200), rng.normal(1, 0.1, 200), rng.normal(1, 0.02, 200)
    cells = Cells(true, true + rng.normal(0, 0.3, (40, 6)), true + 0.01, None, None, *pairs)
    return relax_scores(cells, task, names=[f"c{i}" for i in range(40)])


def test_page(tmp_path) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    true = zoo.nacl().replace(name='</script><b>"')
    far = true.replace(lattice=1.1 * true.lattice @ turn)
    page = write_report(tmp_path, scores(), examples=[(true, far, true)]).read_text(encoding="utf-8")
    assert "gain in lengths" in page
    assert page.count("data:image/png") == 1
    data = re.search(r'id="crystal-data">(.*?)</script>', page, re.DOTALL)[1]
    example = json.loads(data)[0]
    assert example["name"] == '</script><b>"'
    first, second = (np.array([a[1:] for a in example["views"][i]["atoms"]]) for i in (0, 1))
    assert np.allclose(second, 1.1 * first, atol=2e-3)  # turned back, so only larger
    assert len(example["views"][0]["edges"]) == 12
    assert sum(a[0] == "Na" for a in example["views"][0]["atoms"]) == 8  # on all corners
    assert "Content-Security-Policy" in page


def test_moved_atoms_are_drawn_where_the_true_ones_are() -> None:
    """Atoms that left a corner, over the face or with a common shift, keep their eight images."""
    true = zoo.nacl()
    rng = np.random.default_rng(3)
    shift = 0.02 * rng.normal(size=true.frac_coords.shape)
    moved = true.replace(frac_coords=true.frac_coords + shift + [0.3, 0.9, -2.0])
    text = "".join(crystal_view([(true, moved, true)]))
    views = json.loads(re.search(r'id="crystal-data">(.*?)</script>', text, re.DOTALL)[1])[0]["views"]
    assert [a[0] for a in views[0]["atoms"]] == [a[0] for a in views[1]["atoms"]]
    first, second = (np.array([a[1:] for a in v["atoms"]]) for v in views[:2])
    apart = (shift - shift.mean(0)) @ true.lattice
    assert np.abs(second - first).max() < np.abs(apart).max() + 2e-3
    assert np.abs(second - first).max() > 0.01


def test_no_crystals_no_script(tmp_path) -> None:
    assert crystal_view([]) == []
    assert "<script" not in write_report(tmp_path, scores("reconstruct")).read_text(encoding="utf-8")


def test_turning() -> None:
    rng = np.random.default_rng(2)
    cell, turn = rng.normal(size=(3, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert np.allclose(cell @ turn @ turned_onto(cell @ turn, cell), cell)


def test_plots_are_pictures() -> None:
    for task in ("denoise", "reconstruct"):
        assert cell_plot(scores(task))[:4] == b"\x89PNG"
    rows = [
        {"epoch": 0.5 * i, "train_loss": 1 / (i + 1), "val_length_mae": 0.2, "val_angle_mae": 3.0}
        for i in (1, 2)
    ]
    assert learning_plot(rows)[:4] == b"\x89PNG"
