"""Evaluate: a model and labelled crystals in, scores with intervals out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from facetry.card import Target
from facetry.crystal import Crystal, CrystalError
from facetry.evaluation.energy import energy_gains
from facetry.evaluation.landscape import EnergyScores, energy_scores
from facetry.evaluation.metrics import RESAMPLES, Scores
from facetry.evaluation.relaxation import Cells, RelaxScores, changes_at_rest, relax_scores
from facetry.graph.batch import Batch
from facetry.models.base import EnergyModel, LatticeModel, Relaxation, evaluating
from facetry.tasks.inference import Limits, run
from facetry.tasks.inputs import items_of
from facetry.tasks.predict import Translator, as_model, outputs_and_distance
from facetry.training.recipe import RelaxOptions, make_relax_options
from facetry.training.relaxing import Disturbed, piece_of_cells, relaxed_pieces
from facetry.training.scores import score_targets

if TYPE_CHECKING:
    from facetry.data.dataset import Dataset, Splits
    from facetry.models.base import PropertyModel

SPLITS = ("train", "val", "test", "all")
MOST_ENERGIES = 512  # crystals whose surroundings are looked at
MOST_ELEMENTS = 100  # atomic number


def evaluate(
    model: PropertyModel | LatticeModel | EnergyModel | str | PathLike[str],
    data: Dataset | Splits | str | PathLike[str],
    split: str = "test",
    target: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    fold: int | None = None,
    noise: float | int | None = None,
    calculator: Any = None,
) -> Scores | RelaxScores | EnergyScores:
    """Scores of a trained model on labelled crystals, each with a 95 % bootstrap interval.

    Args:
        model: a trained model, or the folder or name of one.
        data: a split such as `facetry.dataset("perov5").test`; or a data set, its name or the path of your
            own, of which `split` ("train", "val", "test" or "all") is taken.
        target: the column of the labels where it is not called like the model's (only) target.
        seed: of the bootstrap.
        fold: of a set that is evaluated by cross-validation.
        noise: for a model that relaxes crystals: another σ than that of its training, atoms moved in
            proportion; 0 tells how far it moves crystals that are at rest.
        calculator: for a model that relaxes crystals: an ASE calculator, for energies before and after.

    Regression: mae, rmse (in the target's unit), r2, coverage of the 90 % interval. Classification: accuracy,
    balanced accuracy, precision, recall and F1 per class, ROC-AUC, calibration error. A model that relaxes
    crystals needs no labels: the crystals are disturbed as in its training, with noise of a fixed seed, and
    the gain in lengths and angles is measured (`facetry.evaluation.relaxation`). Of a model with an energy it
    is measured whether crystals are where it is low (`facetry.evaluation.landscape`), on at most 512 of them,
    drawn at random; whether its chains find them is another question (`facetry.match`). Crystals for which
    the model gives no value are counted in `failed` and are not part of the metrics. Raises ValueError where
    the labels are not what the model predicts: another target, unit or other classes.
    """
    network = as_model(model, ("predict", "relax", "generate"))
    if isinstance(network, EnergyModel):
        if any(given is not None for given in (target, noise, calculator)):
            raise ValueError(f"{network.name} has an energy: target, noise and calculator have no meaning")
        part = labelled_part(data, split, [], fold, {})
        return evaluate_energy(network, part.crystals, device, seed, resamples)
    if isinstance(network, LatticeModel):
        if target is not None:
            raise ValueError(f"target: {network.name} relaxes crystals and has no target; leave it out")
        part = labelled_part(data, split, [], fold, {})
        options = (batch_size, device, seed, resamples, noise, calculator)
        return evaluate_relaxing(network, part.crystals, *options)
    if noise is not None or calculator is not None:
        raise ValueError("noise and calculator: for models that relax crystals only; leave them out")
    if network.card is None:
        raise ValueError("evaluate needs a trained model, this one has no targets; train it first")
    targets = network.card.targets
    columns = _columns(targets, target)
    labelled = labelled_part(data, split, columns, fold, dict(zip(columns, targets, strict=True)))
    truth = _labels(targets, columns, labelled)

    translate = Translator(network)
    outputs = np.full((len(labelled), sum(t.columns for t in targets)), np.nan)
    predictions = []
    with evaluating(network, device) as place:
        limits = Limits.for_device(place, batch_size)
        outcomes = run(network, items_of(labelled), outputs_and_distance(network), limits, place)
        for row, outcome in enumerate(outcomes):
            if outcome.status == "ok":
                outputs[row] = outcome.values["output"]
            predictions.extend(translate(outcome))
    failed = int(np.isnan(outputs).any(axis=1).sum())
    scores = score_targets(targets, outputs, truth, resamples=resamples, intervals=True, seed=seed)
    return Scores(tuple(scores), failed, predictions, truth)


def evaluate_energy(
    model: EnergyModel,
    crystals: Sequence,
    device: str | torch.device | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> EnergyScores:
    """How the energy behaves around these crystals; more than 512 are drawn from by `seed`."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(crystals))[:MOST_ENERGIES])
    chosen = [crystals[int(row)] for row in rows]
    usable = [c for c in chosen if c.is_ordered and max(c.composition) <= MOST_ELEMENTS]
    if not usable:
        raise ValueError(
            f"none of the {len(crystals)} crystals can be used: mixed sites, or unknown elements"
        )
    with evaluating(model, device):
        scores = energy_scores(model, usable, seed, resamples)
    return replace(scores, failed=len(chosen) - len(usable))


def evaluate_relaxing(
    model: LatticeModel,
    crystals: Sequence,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    noise: float | int | None = None,
    calculator: Any = None,
) -> RelaxScores:
    """How much of the disturbance of its training a model undoes on these crystals."""
    options = learned_task(model, noise)
    if calculator is not None and options.task == "reconstruct":
        raise ValueError("calculator: a cube of 1 Å has no energy to compare with; leave it out")
    source = Disturbed(model, crystals, options)
    cells, structures = [], []
    for given, true, found in _disturbed_pieces(model, source, len(crystals), batch_size, device):
        cells.append(piece_of_cells(given, true, found, options.task))
        if calculator is not None:
            structures.append(_as_crystals(given, true, found))
    extra = {}
    if calculator is not None:
        before, after, right = ([c for piece in structures for c in piece[i]] for i in range(3))
        extra = energy_gains(before, after, right, calculator)
    every = Cells.concatenate(cells)
    still = options.noise == 0 and (options.task == "denoise" or options.displacement == 0)
    if still and options.task != "reconstruct":
        extra = changes_at_rest(every) | extra
    scores = relax_scores(every, options.task, seed, resamples, extra, source.names)
    return replace(scores, failed=scores.failed + len(source.skipped))


def disturbed_crystals(
    model: LatticeModel,
    crystals: Sequence,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    noise: float | int | None = None,
) -> tuple[list[Crystal], list[Crystal], list[Crystal]]:
    """Crystals with the noise that `evaluate` puts on them, what the model makes of these, the true ones."""
    options = learned_task(model, noise)
    lists: tuple[list[Crystal], list[Crystal], list[Crystal]] = ([], [], [])
    source, first = Disturbed(model, crystals, options), 0
    for piece in _disturbed_pieces(model, source, len(crystals), batch_size, device):
        for into, found in zip(lists, _as_crystals(*piece), strict=True):
            names = source.names[first : first + len(found)]
            into.extend(c.replace(name=name) for c, name in zip(found, names, strict=True))
        first += len(piece[0])
    return lists


def _disturbed_pieces(
    model: LatticeModel,
    source: Disturbed,
    count: int,
    batch_size: int | None,
    device: str | torch.device | None,
) -> Iterator[tuple[Batch, Batch, Relaxation]]:
    if not len(source):
        raise ValueError(f"none of the {count} crystals can be used: {source.skipped[0][1]}")
    with evaluating(model, device) as place:
        size = Limits.for_device(place, batch_size).crystals
        for _, given, true, found in relaxed_pieces(model, source.to(place), size, place):
            yield given, true, found


def _as_crystals(given: Batch, true: Batch, found: Relaxation) -> tuple[list[Crystal], ...]:
    """Crystals of one batch before, after and as they are; those without an answer stay as before."""
    counts = given.num_atoms.tolist()
    numbers = given.atomic_numbers.cpu().split(counts)
    ends = (
        (given.lattice, given.frac_coords),
        (found.lattices[-1], found.frac_coords[-1]),
        (true.lattice, true.frac_coords),
    )
    lists: list[list[Crystal]] = []
    for lattice, frac in ends:
        parts = zip(lattice.double().cpu(), frac.double().cpu().split(counts), numbers, strict=True)
        crystals = []
        for row, (cell, coords, elements) in enumerate(parts):
            try:
                crystals.append(Crystal(cell.numpy(), coords.numpy(), elements.numpy()))
            except CrystalError:  # not finite, or flat
                crystals.append(lists[0][row])
        lists.append(crystals)
    return tuple(lists)


def learned_task(model: LatticeModel, noise: float | int | None = None) -> RelaxOptions:
    """What a trained model learned to undo; with another noise if one is given, on cells and atoms alike."""
    if model.card is None or not model.card.relax:
        raise ValueError("evaluate needs a trained model, this one has learned no task; train it first")
    options = make_relax_options(model.card.relax)
    if noise is None:
        return options
    share = float(noise) / options.noise if options.noise else float(noise > 0)
    return options.model_copy(update={"noise": float(noise), "displacement": share * options.displacement})


def labelled_part(
    data: Dataset | Splits | str | PathLike[str],
    split: str,
    columns: list[str],
    fold: int | None,
    meaning: dict[str, Target],
) -> Dataset:
    """The crystals of `data` to evaluate on; columns of your own table are read as the targets they mean."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if isinstance(data, str | PathLike):
        from facetry.data import dataset, is_named

        own = {}
        if not is_named(data):
            own["tasks"] = {column: target.task for column, target in meaning.items()}
            own["classes"] = {column: target.classes for column, target in meaning.items() if target.classes}
        data = dataset(data if isinstance(data, str) else Path(data), target=columns, fold=fold, **own)
    if hasattr(data, "targets"):
        return data  # type: ignore[return-value]
    if data.folds:
        if fold is None:
            raise ValueError(f"{data.name} is divided into {len(data.folds)} folds; choose one (fold=0)")
        data = data.folds[fold]
    if split != "all":
        return getattr(data, split)
    from facetry.data.dataset import Dataset

    return Dataset.concatenate([data.train, data.val, data.test])


def _columns(targets: list[Target], column: str | None) -> list[str]:
    if column is None:
        return [t.name for t in targets]
    names = [t.name for t in targets]
    if len(targets) > 1 and column not in names:
        raise ValueError(f"target: the model predicts {', '.join(names)}, not {column!r}")
    return [column] if len(targets) == 1 else names


def _labels(
    targets: list[Target], columns: list[str], data: Dataset
) -> Float[np.ndarray, "crystals targets"]:
    """The columns of the data that belong to the model's targets, after checking that they mean the same."""
    known = {info.name: i for i, info in enumerate(data.target_info)}
    truth = np.full((len(data), len(targets)), np.nan)
    for i, (target, column) in enumerate(zip(targets, columns, strict=True)):
        if column not in known:
            raise ValueError(
                f"the model predicts {target.name!r}, but the data has {', '.join(known) or 'no labels'}; "
                f"name the column that holds it (target=)"
            )
        info = data.target_info[known[column]]
        if info.task != target.task:
            raise ValueError(f"{column}: the model was trained for {target.task}, the labels are {info.task}")
        if info.unit and target.unit and info.unit != target.unit:
            raise ValueError(f"{column}: the model predicts {target.unit}, the labels are in {info.unit}")
        truth[:, i] = _as_the_model_counts(column, data.targets[:, known[column]], info, target)
    return truth


def _as_the_model_counts(
    column: str, labels: Float[np.ndarray, " crystals"], info: Target, target: Target
) -> Float[np.ndarray, " crystals"]:
    """Class numbers of the data as those of the model, which may know the classes in another order."""
    if not (info.classes and target.classes) or info.classes == target.classes:
        return labels
    if foreign := [c for c in info.classes if c not in target.classes]:
        raise ValueError(
            f"{column}: the model knows the classes {', '.join(target.classes)}, not {', '.join(foreign)}"
        )
    number = np.array([target.classes.index(c) for c in info.classes], dtype=np.float64)
    missing = np.isnan(labels)
    return np.where(missing, np.nan, number[np.where(missing, 0, labels).astype(np.int64)])
