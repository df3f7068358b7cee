from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import facetry
from facetry.card import Target
from facetry.data.dataset import Splits
from facetry.graph.batch import Batch
from facetry.graph.builders import NoGraph
from facetry.training import RecipeError, Run, TrainingError, load_recipe, resume, train
from facetry.training.batches import Order, Source
from facetry.training.loop import parameter_groups
from facetry.training.run import load_data
from tests.training.tiny import tiny_data, tiny_model


def weights(run: Run) -> bytes:
    return b"".join(t.numpy().tobytes() for t in run.model.state_dict().values())


def quick(**options: object) -> Run:
    given = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2} | options
    data = given.pop("data", None) or tiny_data()
    model = given.pop("model", None) or tiny_model()
    return train(model, data, **given)  # type: ignore[arg-type]


def test_learns_and_leaves_a_whole_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = quick(out=tmp_path / "a", epochs=40, learning_rate=3e-2, model=tiny_model(dropout=0.0))
    assert (
        run.metrics["test"]["mae"]
        < 0.5 * np.abs(tiny_data().test.targets - tiny_data().train.targets.mean()).mean()
    )
    assert run.metrics["test"]["r2"] > 0.5
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [
        "metrics.csv",
        "model.json",
        "model.safetensors",
        "receipt.json",
        "recipe.toml",
        "resume",
    ]
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {"epoch", "step", "train_loss", "val_mae", "learning_rate", "seconds"} <= set(rows[0])
    receipt = json.loads((tmp_path / "a" / "receipt.json").read_text())
    assert receipt["data"]["hash"] == tiny_data().hash
    assert receipt["hardware"]["threads"] == torch.get_num_threads()
    assert receipt["metrics"]["test"][0]["mae"][0] == run.metrics["test"]["mae"]
    assert receipt["shortened"] == []
    model = facetry.load(tmp_path / "a")
    target = model.card.targets[0]
    assert target.quantile is not None
    assert target.quantile > 0
    assert model.card.domain_threshold is not None
    assert model.domain_reference.shape == (54, 9)
    assert model.card.elements == sorted(
        {int(z) for c in tiny_data().train.crystals for z in c.atomic_numbers}
    )
    train_targets = tiny_data().train.targets[:, 0]
    assert (target.mean, target.std) == (train_targets.mean(), train_targets.std())
    model.card.metrics["test"]["mae"] = None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""  # quiet where stderr is no terminal


def test_one_line_an_epoch(capsys: pytest.CaptureFixture) -> None:
    quick(verbose=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert "eV" in lines[0]
    assert "left" in lines[0]


def test_same_seed_same_bits_and_the_callers_random_stream_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = quick(model=(model := tiny_model()), seed=4)
    torch.set_rng_state(before)
    assert first.model is model
    assert weights(first) == weights(quick(seed=4))
    assert weights(first) != weights(quick(seed=5))
    assert [r["train_loss"] for r in first.history] == [r["train_loss"] for r in quick(seed=4).history]


def test_parts_of_a_batch_give_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BatchNorm and dropout the split into parts changes nothing but round-off."""
    data = tiny_data(missing=0.3, targets=[Target(name="a"), Target(name="b")])

    def model() -> torch.nn.Module:
        net = tiny_model(dropout=0.0, outputs=2)
        net.normal = torch.nn.Identity()
        return net

    whole = quick(data=data, model=model(), precision="fp64", drop_last=False)
    parts = quick(data=data, model=model(), precision="fp64", drop_last=False, accumulate=3)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert whole.history[-1]["train_loss"] == pytest.approx(parts.history[-1]["train_loss"], rel=1e-9)


def test_rebuilt_graphs_give_the_same_bits() -> None:
    assert weights(quick()) == weights(quick(store_graphs=False))


def test_crystals_without_a_graph_are_left_out_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    class Picky(NoGraph):
        def build(self, batch: Batch, names: Sequence[str]) -> Batch:
            if bad := [n for n in names if n in ("box-7", "box-50", "box-60")]:
                raise ValueError(f"{bad[0]}: no neighbours")
            return batch

    model = tiny_model()
    model.graph = Picky()
    run = quick(model=model, out=tmp_path / "a", verbose=True)
    receipt = json.loads((tmp_path / "a" / "receipt.json").read_text())
    assert receipt["skipped"] == {
        "train": [["box-7", "box-7: no neighbours"], ["box-50", "box-50: no neighbours"]],
        "val": [["box-60", "box-60: no neighbours"]],
    }
    data = run.model.card.data
    assert (data["train"], data["val"], data["test"]) == (52, 17, 18)
    assert "2 of 54 crystals of train cannot be used and are left out" in capsys.readouterr().err
    lone = Splits("one", {"train": tiny_data().train.select([7])})
    with pytest.raises(TrainingError, match="1 of 1 crystals of train cannot be used; box-7: no neighbours"):
        quick(model=model, data=lone)


def test_pieces_for_evaluation_hold_few_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetry.training.batches._CPU_ATOMS", 7)
    data = tiny_data()
    for stored in (True, False):
        source = Source(tiny_model(), data.train.crystals, data.train.targets, stored)
        pieces = source.pieces(4, torch.device("cpu"))
        assert np.array_equal(np.concatenate(pieces), np.arange(54))
        assert all(0 < len(p) <= 4 for p in pieces)
        assert all(len(p) == 1 or sum(len(data.train.crystals[int(i)]) for i in p) <= 7 for p in pieces)


def test_no_decay_on_biases_and_norms() -> None:
    model = tiny_model()
    model.normal_gain = torch.nn.Parameter(torch.ones(2))  # by name
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert sorted(names[id(p)] for p in decayed["params"]) == [
        "element.weight",
        "first.weight",
        "head.weight",
    ]
    assert sorted(names[id(p)] for p in free["params"]) == [
        "first.bias",
        "head.bias",
        "normal.bias",
        "normal.weight",
        "normal_gain",
    ]


def test_order_covers_the_split_and_joins_a_lone_crystal() -> None:
    for count, size, drop, lengths in [
        (10, 4, True, [4, 4]),
        (10, 4, False, [4, 4, 2]),
        (9, 4, False, [4, 5]),
        (3, 4, True, [3]),
        (1, 4, True, [1]),
    ]:
        order = Order(count, size, drop, seed=0)
        batches = [order.batch(2, step) for step in range(order.steps_per_epoch)]
        assert [len(b) for b in batches] == lengths
        seen = np.concatenate(batches)
        assert len(set(seen.tolist())) == len(seen)
    assert not np.array_equal(order.batch(0, 0), Order(10, 4, True, 0).batch(1, 0))


def test_early_stopping_keeps_the_best() -> None:
    run = quick(epochs=200, patience=3, learning_rate=0.05, schedule="constant")
    scores = [row["val_mae"] for row in run.history]
    assert len(scores) < 200
    best = int(np.argmin(scores))
    assert len(scores) == best + 1 + 3
    assert run.metrics["epoch"] == best + 1
    assert run.metrics["val"]["mae"] == pytest.approx(scores[best], rel=1e-6)


def test_keep_last() -> None:
    run = quick(keep="last", epochs=6)
    assert run.metrics["epoch"] == 6
    assert run.metrics["val"]["mae"] == pytest.approx(run.history[-1]["val_mae"], rel=1e-6)


def test_steps_cut_the_last_epoch() -> None:
    run = quick(epochs=None, steps=8)  # six steps an epoch
    assert [row["step"] for row in run.history] == [6, 8]
    assert run.history[-1]["learning_rate"] == pytest.approx(1e-2 / 25 / 1e4)


@pytest.mark.parametrize("kind", ["ema", "mean"])
def test_averaged_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept weights are the average of the weights after each step, written down here step by step."""
    from facetry.training.loop import Fitting

    trail: list[torch.Tensor] = []
    original = Fitting._average

    def watch(self: Fitting) -> None:
        trail.append(self.network.first.weight.detach().clone())
        original(self)

    monkeypatch.setattr(Fitting, "_average", watch)
    run = quick(averaging=kind, averaging_epochs=2, averaging_decay=0.9, keep="last", epochs=3)
    if kind == "mean":
        expected = torch.stack(trail[6:]).mean(dim=0)
    else:
        expected = trail[0]
        for count, now in enumerate(trail[1:], start=1):
            keep = min(0.9, (1 + count) / (10 + count))
            expected = keep * expected + (1 - keep) * now
    torch.testing.assert_close(run.model.first.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(run.model.first.weight.detach(), trail[-1])


def test_gradient_clipping_shortens_the_first_step() -> None:
    free, clipped = quick(steps=1, epochs=None), quick(steps=1, epochs=None, gradient_clip=1e-9)
    start = tiny_model().head.weight
    assert (free.model.head.weight - start).abs().max() > 10 * (clipped.model.head.weight - start).abs().max()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.float32), ("fp64", torch.float64)])
def test_precision(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    run = quick(precision=precision, epochs=10, out=tmp_path / "a")
    assert run.model.dtype == dtype
    assert np.isfinite(run.metrics["test"]["mae"])
    assert facetry.load(tmp_path / "a").dtype == dtype
    assert weights(run) != weights(quick(epochs=10))


def test_several_targets_with_missing_labels() -> None:
    targets = [Target(name="gap", unit="eV"), Target(name="bulk", unit="GPa")]
    data = tiny_data(150, targets=targets, missing=0.4)
    assert np.isnan(data.train.targets).all(axis=1).any()
    run = quick(data=data, model=tiny_model(outputs=2, dropout=0.0), epochs=20, learning_rate=5e-2)
    assert run.metrics["test"]["r2[gap]"] > 0.5
    assert run.metrics["test"]["r2[bulk]"] > 0.5
    assert run.model.card.data["train"] == int(data.train.labelled.sum())
    assert all(t.quantile is not None for t in run.model.card.targets)


@pytest.mark.parametrize(
    ("target", "outputs"),
    [
        (Target(name="metal", task="binary", classes=["no", "yes"]), 1),
        (Target(name="system", task="multiclass", classes=["a", "b", "c"]), 3),
    ],
)
def test_classification(target: Target, outputs: int, tmp_path: Path) -> None:
    data = tiny_data(150, targets=[target], missing=0.1)
    model = tiny_model(outputs=outputs, dropout=0.0)
    run = quick(data=data, model=model, epochs=15, learning_rate=5e-2, out=tmp_path / "a")
    assert run.metrics["test"]["accuracy"] > 0.7
    assert run.metrics["test"]["roc_auc"] > 0.8
    scores = [row["val_roc_auc" if target.task == "binary" else "val_accuracy"] for row in run.history]
    assert run.metrics["epoch"] == int(np.argmax(scores)) + 1
    assert run.model.card.targets[0].quantile is None
    assert facetry.load(tmp_path / "a").card.targets[0].classes == target.classes


def test_without_validation_the_last_weights_are_kept() -> None:
    data = tiny_data()
    run = quick(data=Splits("boxes", {"train": data.train}))
    assert run.metrics == {"epoch": 3}
    assert run.model.card.targets[0].quantile is None
    assert run.model.card.domain_threshold is None


def test_models_may_draw_their_training_batches() -> None:
    seen = []

    class Drawing(type(tiny_model())):
        def training_batch(self, batch, generator):
            if self.training:
                seen.append(torch.rand(1, generator=generator).item())
            return batch

    from facetry.models import MODELS

    MODELS["drawing"] = Drawing
    try:
        torch.manual_seed(0)
        quick(model=Drawing(), epochs=1)
        first = seen.copy()
        seen.clear()
        quick(model=Drawing(), epochs=1)
    finally:
        del MODELS["drawing"]
    assert len(set(first)) == 6
    assert first == seen


def test_a_shortened_run_says_so(tmp_path: Path) -> None:
    quick(out=tmp_path / "a", published_epochs=500)
    receipt = json.loads((tmp_path / "a" / "receipt.json").read_text())
    assert receipt["shortened"] == ["3 of 500 published epochs"]


def with_targets(values: np.ndarray, **info: object) -> Splits:
    from facetry.data.dataset import Dataset

    data = tiny_data()
    part = Dataset(data.train.crystals, values, [Target(name="gap", **info)])
    return Splits("boxes", {"train": part})


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'training.epoch'; did you mean 'epochs'\?"):
        quick(epoch=3)
    with pytest.raises(TrainingError, match=r"the model has 2 outputs, the targets \(energy\) need 1"):
        quick(model=tiny_model(outputs=2))
    with pytest.raises(TrainingError, match="no crystal of the training split has a label"):
        quick(data=with_targets(np.full((54, 1), np.nan)))
    with pytest.raises(TrainingError, match="target gap has infinite values"):
        quick(data=with_targets(np.full((54, 1), np.inf)))
    with pytest.raises(TrainingError, match="gap: expected classes 0 to 1, got 3"):
        quick(data=with_targets(np.full((54, 1), 3.0), task="binary"))
    quick(out=tmp_path / "a", epochs=1)
    kept = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run"):
        quick(out=tmp_path / "a", epochs=1)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == kept


def test_a_diverging_run_stops_with_advice() -> None:
    with pytest.raises(TrainingError, match=r"the loss became .* lower training.learning_rate"):
        quick(learning_rate=1e30, schedule="constant", loss="mse", epochs=20)


def test_training_does_not_leave_lightning_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick(out="a", epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert "lightning" in sys.modules


def test_the_recipe_of_a_python_run_loads_its_data_again(tmp_path: Path) -> None:
    """Own files with a column of names, a group and shares; a run of them goes on from its folder alone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = ["file,phase,family"]
    for index, crystal in enumerate(c for c in tiny_data(60).train.crystals if len(c) == 1):
        crystal.write(folder / f"{index}.vasp")
        rows.append(f"{index}.vasp,{'solid' if crystal.volume > 64 else 'soft'},{index % 6}")
    (folder / "table.csv").write_text("\n".join(rows))
    own = facetry.dataset(folder, tasks={"phase": "multiclass"}, group="family", fractions=(0.6, 0.2, 0.2))
    model = tiny_model(outputs=2)
    train(model, own, out=tmp_path / "run", epochs=1, batch_size=4)
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert recipe.data.name == str(folder)
    assert load_data(recipe).hash == own.hash == recipe.data.hash
    assert resume(tmp_path / "run").model.card.data["name"] == str(folder)


def test_a_fold_names_itself_in_recipe_and_card(tmp_path: Path) -> None:
    data = tiny_data()
    fold = dataclasses.replace(data, origin={"name": "jdft2d", "fold": 2, "limit": None, "seed": 0})
    run = train(tiny_model(), fold, out=tmp_path / "run", epochs=1)
    assert load_recipe(tmp_path / "run" / "recipe.toml").data.fold == 2
    assert run.model.card.data["name"] == "jdft2d"
    assert run.model.card.data["fold"] == 2
