"""Training of models that relax: a new disturbance at every step, one that stays the same for validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.data.crystals import CrystalTable
from facetry.evaluation.relaxation import UNITS, Cells, RelaxScores, largest_stretch, means, relax_scores
from facetry.geometry.lattice import cell_parameters
from facetry.geometry.ragged import items_in
from facetry.graph.batch import Batch
from facetry.graph.neighbors import bare
from facetry.models.base import LatticeModel, Relaxation, evaluating
from facetry.nn.lattice_losses import LOSSES, Normalisation
from facetry.training.batches import Order, Source
from facetry.training.console import duration
from facetry.training.loop import Fitting
from facetry.training.noise import (
    Noise,
    displacement_from,
    disturb,
    draw_noise,
    in_cubes,
    niggli_cells,
    varied,
)
from facetry.training.recipe import RelaxOptions
from facetry.training.run import Training
from facetry.training.scores import gathered
from facetry.training.state import Keeper, Progress, ResumePoint, Setup

_HEADLINES = ("length_gain", "angle_gain", "length_mae", "angle_mae", "position_rmsd")


class Disturbed(Source):
    """Crystals of a split, handed out as the model gets them, with what is right beside.

    A set of crystals is checked once: those without a graph are left out. Graphs of disturbed crystals are
    built for each batch, those of cubes once.
    """

    def __init__(self, model: LatticeModel, crystals: Sequence, options: RelaxOptions):
        table = crystals if isinstance(crystals, CrystalTable) else CrystalTable.from_crystals(crystals)
        self.options, self.builder = options, model.graph
        if options.task == "reconstruct":
            table, lattice = _cubes(table)
        else:
            lattice = table.lattice
        super().__init__(model, table, lattice.reshape(-1, 9).copy())
        if options.task != "reconstruct" and self.packed is not None:
            self.packed = bare(self.packed)
        self.names = [str(name) for name in self.crystals.names]
        self.lattice = self.labels.reshape(-1, 3, 3)

    def noise(self, seed: int) -> Noise:
        """The noise of the whole split that belongs to a seed; crystals have theirs by their place in it."""
        generator = torch.Generator().manual_seed(seed)
        return draw_noise(self.options, len(self), len(self.crystals.atomic_numbers), generator)

    def atoms(self, rows: Int[np.ndarray, " chosen"]) -> Int[Tensor, " atoms"]:
        """The places of the atoms of the chosen crystals among all atoms of the split."""
        assert self.packed is not None
        chosen = torch.from_numpy(rows).to(self.packed.device)
        return items_in(chosen, self.packed.num_atoms).cpu()

    def task(
        self, rows: Int[np.ndarray, " chosen"], device: torch.device, noise: Noise | torch.Generator
    ) -> tuple[Batch, Batch]:
        """The chosen crystals disturbed, with their graph, and as they should be. `noise` is that of these
        crystals, or what draws it."""
        given = self.batch(rows, device)
        lattice = self.lattice[torch.from_numpy(rows)].to(given.lattice)
        true = replace(given, lattice=lattice, graph=None)
        if self.options.task == "reconstruct":
            return given, true
        if isinstance(noise, torch.Generator):
            generator = noise
            noise = draw_noise(self.options, len(true), len(true.frac_coords), generator)
            if self.options.vary_noise:
                noise = varied(noise, true.num_atoms, generator)
        names = [self.names[row] for row in rows.tolist()]
        return self.builder.build(disturb(true, noise), names), true


def _cubes(table: CrystalTable) -> tuple[CrystalTable, np.ndarray]:
    """The crystals in cubes of 1 Å, and the Niggli cells that belong there."""
    right = niggli_cells(Batch.from_crystals(table))
    cubes = in_cubes(right)
    arrays = cubes.lattice.numpy(), cubes.frac_coords.numpy()
    moved = replace(table, lattice=arrays[0], frac_coords=arrays[1])
    return moved, right.lattice.numpy()


def relaxation_loss(
    found: Relaxation, true: Batch, options: RelaxOptions, scale: Normalisation
) -> Float[Tensor, ""]:
    """Mean over crystals of the loss of the lattice, and of the positions where the task moves atoms."""
    if found.parameters is not None and options.loss.startswith("parameters"):
        apart = scale(found.parameters) - scale(cell_parameters(true.lattice))
        loss = (apart.abs() if options.loss == "parameters_mae" else apart.square()).mean()
    else:
        loss = LOSSES[options.loss](found.lattices[-1], true.lattice, scale)
    if options.task != "relax" or not options.position_weight:
        return loss
    apart = displacement_from(found.frac_coords[-1], true.frac_coords, true.lattice, true.crystal_index)
    distance = (apart.square().sum(1) + 1e-12).sqrt()  # the root has no slope at zero
    mean = torch.zeros_like(true.lattice[:, 0, 0]).index_add(0, true.crystal_index, distance)
    return loss + options.position_weight * (mean / true.num_atoms).mean()


def relaxed_pieces(
    model: LatticeModel,
    source: Disturbed,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[int, Batch, Batch, Relaxation]]:
    """Number of a piece of the split, its crystals under their fixed noise, as they should be, and what the
    model makes of them in evaluation mode; several processes share the pieces."""
    noise = source.noise(source.options.noise_seed)
    with evaluating(model):
        for number, rows in enumerate(source.pieces(batch_size, device)):
            if number % world == rank:
                own = noise.select(torch.from_numpy(rows), source.atoms(rows))
                given, true = source.task(rows, device, own)
                with torch.no_grad():
                    found = model(given)
                yield number, given, true, found


def relaxed_cells(
    model: LatticeModel,
    source: Disturbed,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Cells:
    """Cell parameters of every crystal of a split: true, under its fixed noise, and relaxed."""
    parts = {}
    for number, given, true, found in relaxed_pieces(model, source, batch_size, device, rank, world):
        parts[number] = piece_of_cells(given, true, found, source.options.task)
    return Cells.concatenate(gathered(parts, world))


def rest_limits(
    model: LatticeModel, source: Disturbed, batch_size: int, device: torch.device
) -> dict[str, float]:
    """How far the model moves 95 % of these crystals when they are at rest: the largest relative change of a
    length (`stretch`), and of a model that moves atoms their root mean square distance in Å
    (`displacement`). Both together hold for 95 %, with the quantile of a conformal interval.

    A model cannot know that it has nothing to do; a change within these limits is what it does to crystals at
    rest, so `facetry relax` leaves such crystals alone."""
    still = copy(source)
    still.options = source.options.model_copy(update={"noise": 0.0, "displacement": 0.0})
    stretch, moved = [], []
    for _, given, _, found in relaxed_pieces(model, still, batch_size, device):
        ends = (found.lattices[i].detach().double().cpu().numpy() for i in (0, -1))
        stretch.append(largest_stretch(*ends) - 1.0)
        moved.append(_rmsd(found.frac_coords[-1], given).double().cpu().numpy())
    columns = {"stretch": np.concatenate(stretch)}
    if source.options.task == "relax":
        columns["displacement"] = np.concatenate(moved)
    share = 1.0 - 0.05 / len(columns)
    count = len(columns["stretch"])
    place = min(count, math.ceil(share * (count + 1))) - 1
    return {name: float(np.sort(values)[place]) for name, values in columns.items()}


def piece_of_cells(given: Batch, true: Batch, found: Relaxation, task: str) -> Cells:
    """Cell parameters of one batch, and how far its atoms are from their places where the task moves them."""
    answer = found.parameters if found.parameters is not None else cell_parameters(found.lattices[-1])
    columns = [cell_parameters(true.lattice), cell_parameters(given.lattice), answer]
    moved = [None, None]
    if task == "relax":
        moved = [_rmsd(x, true) for x in (given.frac_coords, found.frac_coords[-1])]
    columns += [*moved, *_distances(given, true, found)]
    return Cells(*(None if c is None else c.detach().double().cpu().numpy() for c in columns))


def _distances(given: Batch, true: Batch, found: Relaxation) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the edges of the graph in the true crystals, and what they are multiplied by before and
    after."""
    graph = given.require_graph()

    def lengths(lattice: Tensor, frac: Tensor) -> Tensor:
        edge = replace(given, lattice=lattice, frac_coords=frac, graph=graph).edge_vectors()
        return edge.norm(dim=1)

    right = lengths(true.lattice, true.frac_coords)
    before = lengths(given.lattice, given.frac_coords)
    return right, before / right, lengths(found.lattices[-1], found.frac_coords[-1]) / right


def _rmsd(frac_coords: Float[Tensor, "atoms 3"], true: Batch) -> Float[Tensor, " crystals"]:
    """Root mean square distance in Å of the atoms of each crystal from their places."""
    apart = displacement_from(frac_coords, true.frac_coords, true.lattice, true.crystal_index)
    total = torch.zeros_like(true.lattice[:, 0, 0]).index_add(0, true.crystal_index, apart.square().sum(1))
    return (total / true.num_atoms).sqrt()


class RelaxFitting(Fitting):
    """Training on disturbed crystals."""

    network: LatticeModel

    def __init__(self, network: LatticeModel, setup: Setup, relax: RelaxOptions):
        super().__init__(network, setup, relax.validate_every)
        self.relax = relax
        assert isinstance(setup.train, Disturbed)
        self._scale = Normalisation.of(cell_parameters(setup.train.lattice))

    def part_loss(self, mine: np.ndarray, chosen: np.ndarray, seed: int) -> tuple[Tensor, Tensor, int]:
        """The mean loss of the crystals, times their number; the noise follows from the seed of the step."""
        source = self._sources[0]
        assert isinstance(source, Disturbed)
        given, true = source.task(mine, self.device, torch.Generator().manual_seed(seed))
        loss = relaxation_loss(self.network(given), true, self.relax, self._scale)
        count = torch.tensor(len(mine), device=loss.device)
        return loss * len(mine), count, len(chosen)

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Errors of lengths (Å) and angles (degrees) under the fixed noise; their sum chooses the weights
        (Klipfel 2023), with the distance of atoms (Å) where these are moved."""
        passes = {} if isinstance(self.order, Order) else {"epoch": self._passes()}
        val = self._sources[1]
        if val is None:
            return passes, None
        assert isinstance(val, Disturbed)
        where = self.device, self.global_rank, self.trainer.world_size
        found = means(relaxed_cells(self.network, val, self.options.batch_size, *where), self.relax.task)
        score = found["length_mae"] + found["angle_mae"] + found.get("position_rmsd", 0.0)
        return passes | {f"val_{name}": value for name, value in found.items()}, score

    def _passes(self) -> float:
        return round(self.progress.step / self.order.steps_per_pass, 3)


class RelaxTraining(Training):
    """The steps of a run of a model that relaxes crystals."""

    model: LatticeModel

    def _load_sources(self) -> dict[str, Disturbed]:
        relax = self.recipe.relax
        assert relax is not None
        sources = {name: Disturbed(self.model, part.crystals, relax) for name, part in self.parts.items()}
        if hasattr(self.model, "set_targets") and len(sources["train"]):
            self.model.set_targets(cell_parameters(sources["train"].lattice))
        return sources

    def _fitting(self, keeper: Keeper | None, point: ResumePoint | None) -> Fitting:
        assert self.recipe.relax is not None
        return RelaxFitting(self.model, self._setup(keeper, point), self.recipe.relax)

    def _judge(self, progress: Progress, device: torch.device) -> tuple[dict, dict[str, RelaxScores]]:
        assert self.recipe.relax is not None
        self.model.domain_reference = self.threshold = None
        task, scores = self.recipe.relax.task, {}
        for name, source in self.sources.items():
            if name == "train":
                continue
            cells = relaxed_cells(self.model, source, self.options.batch_size, device)
            scores[name] = relax_scores(cells, task, resamples=1000 if name == "test" else 1)
        best = progress.best_epoch if self.options.keep == "best" else None
        values = {
            name: {metric: e.value for metric, e in part.metrics.items()} for name, part in scores.items()
        }
        if task != "reconstruct" and (source := self.sources.get("val", self.sources.get("test"))):
            values["rest"] = rest_limits(self.model, source, self.options.batch_size, device)
        return {"epoch": progress.history[(best or progress.epoch) - 1]["epoch"]} | values, scores

    def _score_rows(self, split: str, scores: RelaxScores) -> Any:
        rows = {
            name: e.value if split == "val" else [e.value, e.lower, e.upper]
            for name, e in scores.metrics.items()
        }
        return {"count": scores.count, "failed": scores.failed} | rows

    def _epoch_line(self, fitting: Fitting) -> str:
        """`step 256/4096  loss 0.31  val length_gain 0.21 Å  ...  best step 256  8.1 s  left 6 min`."""
        row, progress = fitting.progress.history[-1], fitting.progress
        shown = [f"step {row['step']}/{fitting.total_steps}", f"loss {row['train_loss']:.4g}"]
        shown += [f"val {n} {row[f'val_{n}']:.4g} {UNITS[n]}" for n in _HEADLINES if f"val_{n}" in row]
        if progress.best_epoch is not None:
            shown.append(f"best step {progress.history[progress.best_epoch - 1]['step']}")
        recent = progress.history[-5:]
        left = (fitting.epochs - progress.epoch) * sum(r["seconds"] for r in recent) / len(recent)
        return "  ".join([*shown, f"{row['seconds']:.1f} s", f"left {duration(left)}"])

    def _summary(self, metrics: Mapping[str, Any]) -> str:
        part = "test" if "test" in metrics else "val"
        found = metrics.get(part, {})
        shown = ", ".join(f"{n} {found[n]:.4g} {UNITS[n]}" for n in _HEADLINES if n in found)
        return f"{part} {shown}" if shown else "done"
