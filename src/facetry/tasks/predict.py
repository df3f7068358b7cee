"""Predict: crystals in, values with unit, 90 % interval and a word on trust out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from facetry.card import ModelCard, Target
from facetry.crystal import Crystal
from facetry.elements import SYMBOLS
from facetry.evaluation.intervals import nearest_distance
from facetry.graph.batch import Batch
from facetry.models.base import evaluating
from facetry.tasks.inference import Item, Limits, Outcome, Status, run
from facetry.tasks.inputs import items_of

if TYPE_CHECKING:
    from facetry.graph.builders import Builder
    from facetry.models.base import Model, PropertyModel

COLUMNS = (
    "source",
    "name",
    "formula",
    "atoms",
    "status",
    "value",
    "unit",
    "lower",
    "upper",
    "in_domain",
    "message",
)
_TYPES = {"value": "float", "lower": "float", "upper": "float", "atoms": "int", "in_domain": "bool"}
UNTRAINED_UNIT = "standardised"


@dataclass(frozen=True)
class Prediction:
    """One value of one crystal.

    `value` is in `unit`; for a classifier it is the label of the most likely class and `probabilities` maps
    every label to its probability. `lower` and `upper` hold 90 % of new crystals (split conformal). They,
    and `in_domain`, are None where the model has no statistics for them (an untrained one has none).
    `status` is "ok", "skipped" (this model cannot use such a crystal) or "failed"; `message` says why.
    """

    crystal: Crystal | None
    value: float | str | None
    unit: str
    lower: float | None
    upper: float | None
    in_domain: bool | None
    status: Status
    message: str
    name: str = ""
    source: str = ""
    target: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)

    @property
    def probability(self) -> float | None:
        """Of the predicted class; None for a regression target."""
        return max(self.probabilities.values(), default=None)

    def words(self) -> str:
        """Name, formula, value, unit, interval and doubts in one line."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        known = self.lower is not None and self.upper is not None
        interval = f" ({self.lower:.4g} to {self.upper:.4g})" if known else ""
        what = f"{self.target} " if self.target else ""
        doubts = f"; {self.message}" if self.message else ""
        formula = self.crystal.formula if self.crystal is not None else ""
        return f"{self.name or formula} ({formula}): {what}{value} {self.unit}{interval}{doubts}"

    def row(self) -> dict[str, Any]:
        """The columns of `predictions.csv`, and `target` and `probability` for tables that have them."""
        crystal = self.crystal
        return {
            "source": self.source,
            "name": self.name,
            "formula": "" if crystal is None else crystal.formula,
            "atoms": None if crystal is None else len(crystal),
            "status": self.status,
            "value": self.value,
            "unit": self.unit,
            "lower": self.lower,
            "upper": self.upper,
            "in_domain": self.in_domain,
            "message": self.message,
            "target": self.target,
            "probability": self.probability,
        }


def predict(
    model: PropertyModel | str | PathLike[str],
    crystals: Any,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    one_frame: bool = False,
    relax: Model | str | PathLike[str] | None = None,
) -> list[Prediction]:
    """The model's values for crystals, in the order given.

    Args:
        model: a model, trained or not, or the folder or name of one (see `facetry.load`).
        crystals: a Crystal, pymatgen Structure, ASE Atoms, a path (file, folder, glob, archive, table), a
            split of a data set, or any iterable of these.
        batch_size: crystals worked on at once; large crystals are batched by atoms and edges besides.
        device: where to compute, such as "cuda"; None: where the model is.
        one_frame: evaluate a single lattice frame of each crystal instead of the average over all tied ones:
            several times faster on symmetric crystals and just as invariant, but not what the intervals were
            calibrated on, and two nearly equal crystals may get different frames.
        relax: a model for the job relax, or the folder or name of one: crystals are relaxed by it first
            (`facetry.Relaxer`), and results hold the relaxed crystals.

    Returns one result per crystal; for a model of several targets one per crystal and target, crystal by
    crystal. An input that cannot be read or used has a result with status and message, and stops nothing.
    An untrained model answers in standardised units. Neither the mode of the model nor the result of a
    crystal depends on its companions. Raises TypeError for what is no crystal at all.
    """
    network, items = as_model(model), items_of(crystals)
    if relax is not None:
        from facetry.tasks.relax import Relaxer

        items = Relaxer(relax, batch_size, device).items(items)
    return list(predictions(network, items, batch_size, device, one_frame))


def predictions(
    model: PropertyModel,
    items: Iterable[Item],
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    one_frame: bool = False,
) -> Iterator[Prediction]:
    """`predict` over a stream: results come in order while inputs are still being read; memory is bounded."""
    translate = Translator(model)
    graph = model.one_frame_graph() if one_frame else model.graph
    with _reading(model, graph), evaluating(model, device) as place:
        limits = Limits.for_device(place, batch_size)
        with closing(run(model, items, outputs_and_distance(model), limits, place)) as outcomes:
            for outcome in outcomes:
                yield from translate(outcome)


@contextmanager
def _reading(model: PropertyModel, graph: Builder) -> Iterator[None]:
    """The model reads another graph for a while."""
    before, model.graph = model.graph, graph
    try:
        yield
    finally:
        model.graph = before


def outputs_and_distance(model: PropertyModel) -> Callable[[Batch], dict[str, Tensor]]:
    """What `run` computes for predictions: outputs, and the distance to the training set if it is known.

    A model that offers `forward_with_embedding(batch)` -> (outputs, embeddings) is run once, others twice.
    """
    reference = getattr(model, "domain_reference", None)
    if reference is None or not len(reference):
        return lambda batch: {"output": model(batch)}
    both = getattr(model, "forward_with_embedding", None)

    def compute(batch: Batch) -> dict[str, Tensor]:
        output, embedding = both(batch) if both is not None else (model(batch), model.embed(batch))
        return {"output": output, "distance": nearest_distance(embedding, reference)}

    return compute


def targets_of(model: PropertyModel) -> list[Target]:
    """The targets of a trained model; stand-ins in standardised units for an untrained one."""
    card: ModelCard | None = getattr(model, "card", None)
    if card is not None:
        return card.targets
    count = int(getattr(model, "outputs", 1))
    names = [""] if count == 1 else [f"output {i}" for i in range(count)]
    return [Target(name=name, unit=UNTRAINED_UNIT) for name in names]


def table_columns(targets: list[Target]) -> dict[str, str]:
    """Columns of a table of predictions and their types, for `TableWriter`.

    Those of `COLUMNS`; with several targets `target` comes before the value (a row per crystal and target),
    with a classifier among them the value is a label and its `probability` follows.
    """
    columns = {name: _TYPES.get(name, "text") for name in COLUMNS}
    classes = any(t.task != "regression" for t in targets)
    pairs = []
    for name, kind in columns.items():
        if name == "value":
            pairs += [("target", "text")] if len(targets) > 1 else []
            pairs += [("value", "text"), ("probability", "float")] if classes else [("value", kind)]
        else:
            pairs.append((name, kind))
    return dict(pairs)


class Translator:
    """Turns outcomes of a model into predictions in physical units."""

    def __init__(self, model: PropertyModel) -> None:
        self.targets = targets_of(model)
        card: ModelCard | None = getattr(model, "card", None)
        self.elements = frozenset(card.elements) if card is not None else frozenset()
        self.threshold = card.domain_threshold if card is not None else None
        # cards from before this was counted say nothing
        self.only_ordered = card is not None and card.data.get("disordered") == 0

    def __call__(self, outcome: Outcome) -> Iterator[Prediction]:
        message, in_domain = outcome.message, None
        if outcome.status == "ok":
            in_domain, doubts = self._domain(outcome)
            message = "; ".join([*doubts, *([message] if message else [])])
        crystal, first = outcome.item.crystal, 0
        for target in self.targets:
            value, lower, upper, probabilities = None, None, None, {}
            if outcome.status == "ok":
                columns = outcome.values["output"][first : first + target.columns]
                if target.task == "regression":
                    value, lower, upper = _regression(target, float(columns[0]))
                else:
                    probabilities = dict(
                        zip(
                            labels(target),
                            class_probabilities(target, columns[None])[0].tolist(),
                            strict=True,
                        )
                    )
                    value = max(probabilities, key=probabilities.__getitem__)
            first += target.columns
            yield Prediction(
                crystal=crystal,
                value=value,
                unit=target.unit,
                lower=lower,
                upper=upper,
                in_domain=in_domain,
                status=outcome.status,
                message=message,
                name=outcome.item.name,
                source=outcome.item.source,
                target=target.name,
                probabilities=probabilities,
            )

    def _domain(self, outcome: Outcome) -> tuple[bool | None, list[str]]:
        doubts = []
        if self.elements:
            unseen = sorted(set(outcome.item.crystal.composition) - self.elements)
            if unseen:
                doubts.append(f"not in the training data: {', '.join(SYMBOLS[z] for z in unseen)}")
        if self.only_ordered and not outcome.item.crystal.is_ordered:
            doubts.append("trained on ordered crystals only")
        if self.threshold is not None and "distance" in outcome.values:
            distance = float(outcome.values["distance"])
            if not distance <= self.threshold:
                doubts.append(
                    f"unlike the training data (distance {distance:.3g}, usual up to {self.threshold:.3g})"
                )
        elif not self.elements:
            return None, []
        return not doubts, doubts


def labels(target: Target) -> list[str]:
    """Class labels of a classification target, in the order of the model's probabilities."""
    return target.classes or ["0", "1"]


def class_probabilities(
    target: Target, output: Float[np.ndarray, "crystals columns"]
) -> Float[np.ndarray, "crystals classes"]:
    """Probabilities from logits: sigmoid of the one column of a binary target, else softmax."""
    logits = torch.from_numpy(np.ascontiguousarray(output))
    if target.task == "binary":
        positive = torch.sigmoid(logits[:, 0])
        return torch.stack([1 - positive, positive], dim=1).numpy()
    return torch.softmax(logits, dim=1).numpy()


def _regression(target: Target, output: float) -> tuple[float, float | None, float | None]:
    value = output * target.std + target.mean
    half = target.quantile
    if half is None or not np.isfinite(half):
        return value, None, None
    return value, value - half, value + half


def as_model(model: Model | str | PathLike[str], jobs: tuple[str, ...] = ("predict",)) -> Any:
    """The model itself, or the one loaded from a folder or by name. Raises ValueError for models of other
    jobs."""
    if isinstance(model, str | PathLike):
        from facetry.training import load

        model = load(model)
    job = getattr(model, "job", "predict")
    if job not in jobs:
        words = {"predict": "predicts properties", "relax": "relaxes crystals", "generate": "has an energy"}
        wanted = " or ".join(words[j] for j in jobs)
        raise ValueError(
            f"{model.name}: expected a model that {wanted}, came one that answers to"
            f" `facetry {job}`; use that, or another model"
        )
    return model
