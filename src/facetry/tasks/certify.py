"""Certify: does a model keep the symmetry that it declares? Measured on crystals, in two precisions."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facetry._version import __version__
from facetry.crystal import Crystal
from facetry.evaluation import changes
from facetry.evaluation.certificate import Certificate, Extra, rows_of
from facetry.evaluation.certificate_suite import suite
from facetry.evaluation.continuity import MOST_PATH_ATOMS, edge_counts, follow, paths
from facetry.evaluation.symmetry import (
    Answer,
    Answers,
    Measured,
    findings,
    measure,
    scale_and_spread,
)
from facetry.graph.batch import Batch
from facetry.graph.builders import NoGraph
from facetry.models import MODELS
from facetry.models.base import EnergyModel, Model, PropertyModel, evaluating
from facetry.tasks.inference import Item, Limits, accepts_disorder, needs_order, run
from facetry.tasks.inputs import items_of

AMPLIFY = 1.5  # random weights, larger than usual, so that what depends on weak paths shows
_CHUNK = 16  # so many inputs between two reports of progress
_WITHOUT_GRAPH = 8  # crystals at once where no count of edges bounds the memory
_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_PATH_NAMES = (
    "CsCl", "NaCl", "Si", "CaF2", "Cu2O", "SrTiO3", "ZnS, wurtzite", "WC, c < a", "C, graphite", "As",
    "TiO2, rutile", "PbTiO3, tetragonal", "SiO2, quartz, right", "Te, left", "orthorhombic lattice, P1 motif",
    "triclinic lattice, P1 motif",
)  # fmt: skip


def certify(
    model: Model | str | PathLike[str],
    crystals: Any = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    deformed: int = 16,
    title: str = "",
    step: Callable[[int, str], None] | None = None,
) -> Certificate:
    """How much a model's answers change when a crystal is described in another way, against what the model
    declares (`model.symmetry`, `model.continuous`).

    Args:
        model: a model of any job, trained or not (`random_model`), or the folder or name of one.
        crystals: what to measure on, as for `facetry.predict`; None: about fifty built-in crystals of high
            and low symmetry (`facetry.evaluation.certificate_suite`).
        seed: of rotations, shifts, orders, cells and deformations.
        batch_size: crystals worked on at once.
        device: where to compute; None: where the model is.
        deformed: on so many crystals jitter, strain and bonds that come and go are followed for jumps; these
            are the first of at most 40 atoms.
        title: how the model is called in the certificate.
        step: is called now and then with the number of inputs done since, and a note on what else is.

    Everything is measured in float64 and in the model's own precision; models that average over tied lattice
    frames with one frame, too. An input that cannot be read or used has a row with the reason, and stops
    nothing. The model that is given stays as it is. Raises TypeError for what is no crystal at all.
    """
    network = _loaded(model)
    title = title or (str(model) if isinstance(model, str | PathLike) else network.name)
    begun = time.perf_counter()
    built_in = crystals is None
    own = network.dtype
    machine = _Machine(network, batch_size, device)
    variants = machine.variants()
    inputs: list[tuple[str, str, Any, str, str]] = []
    measured: dict[str, list[Measured]] = {name: [] for name in variants}
    items = iter([Item("built in", c) for c in suite()] if built_in else items_of(crystals))
    while chunk := list(islice(items, _CHUNK)):
        inputs += [(i.source, i.name, i.crystal, *_usable(network, i)) for i in chunk]
        usable = [c for _, _, c, status, _ in inputs[-len(chunk) :] if status == "ok"]
        for name, (variant, dtype) in variants.items():
            first = len(measured[name])
            measured[name] += measure(machine.answers(variant), usable, dtype, seed, first)
        if step is not None:
            step(len(chunk), "")
    exact = measured["float64"]
    everyday = exact if built_in else exact + machine.plain(suite())
    scale, spread = scale_and_spread(everyday)
    scale = max(scale, machine.least_scale)
    chosen = _deformed(exact, deformed, built_in)
    answers = machine.answers(variants["float64"][0])
    followed = follow(
        answers,
        [p for c in chosen for p in paths(c, seed)],
        None if own == torch.float64 else machine.answers(machine.own),
        None if step is None else lambda done, of: step(0, f", deformations {done}/{of}"),
    )
    extras: list[Extra] = []
    if isinstance(network, EnergyModel):
        from facetry.tasks.certify_energy import energy_checks

        extras = energy_checks(machine.precise, network, chosen, seed)
    single = machine.place.type == "cpu"
    return Certificate(
        title=title,
        model=type(network).__name__,
        options=dict(network.options),
        job=network.job,
        parameters=sum(p.numel() for p in network.parameters()),
        symmetry=network.symmetry,
        continuous=network.continuous,
        unit=machine.unit,
        scale=scale,
        spread=spread,
        series={n: findings(found, network.symmetry, scale, single) for n, found in measured.items()},
        followed=followed,
        extras=extras,
        rows=rows_of(inputs, measured),
        facts={
            "crystals": "built in" if built_in else f"{len(inputs)} inputs",
            "deformed crystals": len(chosen),
            "seed": seed,
            "precision": _NAMES.get(own, str(own)),
            "device": str(machine.place),
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - begun, 1),
            "facetry": __version__,
            "torch": torch.__version__,
        },
    )


def random_model(name: str, options: dict[str, Any] | None = None, seed: int = 0) -> Model:
    """A model of `facetry.models.MODELS` with random weights, 1.5 times as large as a training starts with:
    what is broken on a path that hardly counts in the beginning is seen, too. Raises RecipeError for an
    unknown name or option."""
    from facetry.training.recipe import check_model_options

    check_model_options({**(options or {}), "name": name})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](**(options or {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(AMPLIFY)
    return model.eval()


def _loaded(model: Model | str | PathLike[str]) -> Model:
    if isinstance(model, str | PathLike):
        from facetry.training import load

        return load(model)
    return model


def _usable(model: Model, item: Item) -> tuple[str, str]:
    """Status and message of an input before anything is measured."""
    if item.crystal is None:
        return "failed", item.error
    if not (item.crystal.is_ordered or accepts_disorder(model)):
        return "skipped", needs_order(item.crystal)
    return "ok", ""


def _deformed(measured: Sequence[Measured], count: int, built_in: bool) -> list[Crystal]:
    """Crystals to deform: small ones that have an answer, the built-in ones by name. Of a larger one the
    atoms that jitter make a hundred classes of lattice frames, and a quarter of an hour."""
    good = [m.crystal for m in measured if isinstance(m.answer, Answer)]
    if built_in:
        return [c for c in good if c.name in _PATH_NAMES][:count]
    chosen: list[Crystal] = []
    for crystal in good:
        if len(chosen) == count:
            break
        smaller = changes.primitive(crystal) if len(crystal) > MOST_PATH_ATOMS else None
        if len(crystal if smaller is None else smaller[0]) <= MOST_PATH_ATOMS:
            chosen.append(crystal)
    return chosen


class _Machine:
    """Copies of a model in the precisions to measure, and how they answer."""

    def __init__(self, model: Model, batch_size: int | None, device: str | torch.device | None) -> None:
        self.model, self.batch_size = model, batch_size
        self.place = torch.device(device) if device is not None else model.device
        self.own = _copy(model)
        if hasattr(self.own, "calibrated") and not self.own.calibrated:
            self.own.calibrate(suite()[:16])
        self.precise = _copy(self.own).double()
        self.factor, self.unit, self.least_scale = 1.0, "", 0.0
        card = model.card
        if model.job == "predict":
            self.unit = "standardised" if card is None else ""
            if card is not None and len(card.targets) == 1 and card.targets[0].task == "regression":
                self.factor, self.unit = card.targets[0].std, card.targets[0].unit
                self.least_scale = self.factor
        elif model.job == "relax":
            self.unit = "Å"

    def variants(self) -> dict[str, tuple[Model, torch.dtype]]:
        """Model and precision of every series of measurements."""
        found = {"float64": (self.precise, torch.float64)}
        if self.own.dtype != torch.float64:
            found[_NAMES.get(self.own.dtype, str(self.own.dtype))] = (self.own, self.own.dtype)
        if isinstance(self.precise, PropertyModel):
            try:
                graph = self.precise.one_frame_graph()
            except ValueError:
                return found
            if graph != self.precise.graph:
                single = copy.copy(self.precise)
                single.graph = graph
                found["float64, one frame"] = (single, torch.float64)
        return found

    def answers(self, model: Model) -> Answers:
        """Crystals to answers by the way of `facetry.predict`; a text where there is none."""

        def compute(batch: Batch) -> dict[str, Tensor]:
            found = model(batch)
            edges = edge_counts(batch).double()[:, None]
            if model.job == "relax":
                return {
                    "lattice": found.lattices[-1],
                    "atom_positions": found.frac_coords[-1],
                    "edges": edges,
                }
            numbers = found if found.ndim == 2 else found[:, None]
            return {"numbers": numbers.double() * self.factor, "edges": edges}

        def answers(crystals: Sequence[Crystal]) -> list[Answer | str]:
            place = self.place
            if place.type == "mps" and model.dtype == torch.float64:
                place = torch.device("cpu")
            items = (Item("", c) for c in crystals)
            with evaluating(model, place) as there:
                size = self.batch_size or (_WITHOUT_GRAPH if isinstance(model.graph, NoGraph) else None)
                limits = Limits.for_device(there, size)
                with closing(run(model, items, compute, limits, there)) as outcomes:
                    return [_answer(o.status, o.message, o.values) for o in outcomes]

        return answers

    def plain(self, crystals: Sequence[Crystal]) -> list[Measured]:
        """Answers to crystals as they are, in float64."""
        found = self.answers(self.precise)(crystals)
        return [Measured(c, None, a) for c, a in zip(crystals, found, strict=True)]


def _copy(model: Model) -> Model:
    """The same network and card; what a graph or generator holds is not copied."""
    made = copy.deepcopy(model)
    made.eval()
    return made


def _answer(status: str, message: str, values: dict[str, np.ndarray]) -> Answer | str:
    if status != "ok":
        return message
    return Answer(
        values.get("numbers", np.zeros(0)),
        values.get("lattice"),
        values.get("atom_positions"),
        int(values["edges"][0]),
    )
