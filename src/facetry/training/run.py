"""One training from model and data to a run folder.

runs/a/model.safetensors   weights chosen on the validation split    recipe.toml    all settings
       model.json          what they predict                         metrics.csv    a row an epoch
       receipt.json        how they came about, at the end           resume/        to go on after a kill
       report.html         for people, written by `facetry train`
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from facetry._version import __version__
from facetry.card import ModelCard, Target
from facetry.evaluation.intervals import REFERENCE_SIZE, conformal_quantile, domain_statistics
from facetry.evaluation.metrics import TargetScores, nan_to_null
from facetry.graph.batch import Batch
from facetry.kernels.allocator import keep_freed_memory
from facetry.models import MODELS
from facetry.models.base import EnergyModel, LatticeModel, Model, PropertyModel
from facetry.training import receipt
from facetry.training.batches import Source, disordered_rows, stream
from facetry.training.checkpoint import fill_weights, save_model
from facetry.training.checks import (
    check_arguments,
    check_divided,
    check_folder,
    check_machine,
    check_outputs,
    check_same_model,
    describe_data,
    labelled_parts,
    model_table,
    open_folder,
    stored_recipe,
    whole_parts,
    without_targets,
)
from facetry.training.console import epoch_line, is_main_process, say, summary, wants_lines
from facetry.training.files import write_file
from facetry.training.losses import fit_scaling, output_columns
from facetry.training.recipe import (
    GenerateOptions,
    Recipe,
    RecipeError,
    RelaxOptions,
    TrainingError,
    TrainingOptions,
    for_its_job,
    load_recipe,
    make_generate_options,
    make_options,
    make_relax_options,
)
from facetry.training.scores import (
    absolute_errors,
    flat_metrics,
    network_embeddings,
    network_outputs,
    score_targets,
)
from facetry.training.state import Keeper, Progress, ResumePoint, Setup, section

if TYPE_CHECKING:
    from facetry.data.dataset import Dataset, Splits
    from facetry.training.loop import Fitting

_DOMAIN = 3  # stream of random numbers that draws the reference crystals


@dataclass(frozen=True)
class Run:
    """A finished training.

    `metrics` maps "val" and "test" to metric -> value (MAE and RMSE in the target's unit; `mae[name]` with
    several targets), "epoch" to the epoch the weights come from. `history` has one row an epoch, or one a
    validation where a recipe says how many steps lie between two.
    """

    model: PropertyModel | LatticeModel | EnergyModel
    folder: Path | None
    metrics: dict[str, Any]
    history: list[dict]


def train(
    model: PropertyModel | LatticeModel | EnergyModel,
    data: Splits,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    recipe: Recipe | None = None,
    verbose: bool | None = None,
    **options: Any,
) -> Run:
    """Fit a model to `data.train`, choose by `data.val`, measure on `data.test`.

    `out` is the run folder (none is written without it). `resume` is the folder of a run that was killed: it
    goes on with the settings stored there. `options` are those of `TrainingOptions` (epochs, batch_size,
    learning_rate, loss, ...), for a model that relaxes crystals those of `RelaxOptions` besides (task, noise,
    its own loss, ...), for an energy those of `GenerateOptions`: they need no targets. The model is trained
    in place and returned in `Run.model`, with its card.
    `verbose` prints a line an epoch on stderr (None: where that is a terminal).

    Raises RecipeError for wrong options, TrainingError for data or a model that do not fit, WriteError for a
    full disk; what was written before stays.
    """
    check_arguments(model, data)
    check_divided(data)
    if not isinstance(model, PropertyModel):
        data = without_targets(data)
    folder = Path(resume if resume is not None else out) if (resume or out) is not None else None
    if resume is not None:
        if out is not None and Path(out) != folder:
            raise TrainingError(f"resume={resume} goes on in that folder; leave out={out} away")
        recipe = stored_recipe(folder, {"seed": seed, **options} if seed else options)
        check_same_model(model, recipe, folder)
    elif recipe is None:
        relax = generate = None
        if isinstance(model, EnergyModel):
            own = {key: options.pop(key) for key in GenerateOptions.model_fields if key in options}
            generate = make_generate_options(own)
        if isinstance(model, LatticeModel):
            own = {key: options.pop(key) for key in RelaxOptions.model_fields if key in options}
            relax = make_relax_options(own)
        recipe = for_its_job(
            Recipe(
                model=model_table(model),
                data=describe_data(data),
                training=make_options({"seed": seed, **options}),
                relax=relax,
                generate=generate,
            )
        )
    else:
        recipe = recipe.model_copy(update={"model": model_table(model)})
    check_machine(recipe.training)
    parts = labelled_parts(data, recipe) if isinstance(model, PropertyModel) else whole_parts(data, recipe)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"hash": data.hash})})
    targets = []
    if isinstance(model, PropertyModel):
        targets = fit_scaling(parts["train"].target_info, parts["train"].targets)
        check_outputs(model, targets)
    if folder is not None and resume is None:
        open_folder(folder, recipe)
    with _torch_settings(recipe.training):
        return _training_of(model)(model, data, parts, targets, recipe, folder, verbose).run()


def train_recipe(
    source: str | Path | Recipe,
    out: str | Path | None = None,
    verbose: bool | None = None,
) -> Run:
    """Train what a recipe describes: a file, the name of one that ships, or a `Recipe`."""
    recipe = source if isinstance(source, Recipe) else load_recipe(source)
    check_machine(recipe.training)
    if out is not None and is_main_process():
        check_folder(Path(out))  # before data that may take minutes to read
    data = load_data(recipe)
    check_divided(data)
    model = build_model(recipe, data.target_info)
    return train(model, data, out=out, recipe=recipe, verbose=verbose)


def resume(folder: str | Path, verbose: bool | None = None, **changes: Any) -> Run:
    """Go on with a killed run from its folder alone. Only how it runs may change (threads, devices...)."""
    folder = Path(folder)
    recipe = stored_recipe(folder, changes)
    data = load_data(recipe)
    model = build_model(recipe, data.target_info)
    return train(model, data, resume=folder, verbose=verbose, **changes)


def load_data(recipe: Recipe) -> Splits:
    """The data of a recipe."""
    from facetry.data import dataset

    data = recipe.data
    own = {"tasks": data.tasks, "classes": data.classes, "group": data.group, "fractions": data.fractions}
    own = {key: value for key, value in own.items() if value is not None}  # a named set takes none of them
    chosen = {"limit": data.limit, "seed": data.seed, "fold": data.fold, "parts": data.parts}
    chosen |= {"split": data.split, "match": data.match}
    target = [] if recipe.relax or recipe.generate else data.target
    return dataset(data.name, target, **chosen, **own)


def build_model(recipe: Recipe, targets: Sequence[Target]) -> PropertyModel | LatticeModel | EnergyModel:
    """An untrained model of a recipe for these targets; its weights follow training.seed."""
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    name = recipe.model["name"]
    job = MODELS[name].job
    if job == "predict":
        options["outputs"] = sum(t.columns for t in targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        try:
            return MODELS[name](**options)
        except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
            raise RecipeError(f"model: {str(error) or type(error).__name__}") from None


def _training_of(model: Model) -> type[Training]:
    if isinstance(model, EnergyModel):
        from facetry.training.generating import GenerateTraining

        return GenerateTraining
    if not isinstance(model, LatticeModel):
        return Training
    from facetry.training.relaxing import RelaxTraining

    return RelaxTraining


class Training:
    """The steps of one run, in order."""

    def __init__(
        self,
        model: PropertyModel | LatticeModel | EnergyModel,
        data: Splits,
        parts: dict[str, Dataset],
        targets: list[Target],
        recipe: Recipe,
        folder: Path | None,
        verbose: bool | None,
    ):
        self.model, self.data, self.parts, self.targets = model, data, parts, targets
        self.recipe, self.folder, self.verbose = recipe, folder, verbose
        self.options = recipe.training

    def run(self) -> Run:
        """Train, choose, measure, write; a folder that holds a resume point goes on from there."""
        from facetry.training.loop import run_fitting

        self.writes = self.folder is not None and is_main_process()
        keeper = Keeper(self.folder) if self.folder is not None else None
        point = keeper.load() if keeper else None
        self.model.to(torch.float64 if self.options.precision == "fp64" else torch.float32)
        if point is not None:
            path = keeper.points()[-1] / "state.safetensors"
            fill_weights(self.model, section(point.tensors, "model"), path)
        self.sources = self._load_sources()
        self._look_at_skipped()
        seen = Batch.from_crystals(self.sources["train"].crystals)
        numbers = seen.atomic_numbers if seen.composition is None else seen.composition.atomic_numbers
        self.elements = torch.unique(numbers).tolist()
        self.model.train()
        fitting = self._fitting(keeper, point)
        ended = fitting.progress.finished
        fitting.progress.command = fitting.progress.command or receipt.command_line()
        if ended and wants_lines(self.verbose):
            say(f"{self.folder}: has ended already; nothing is trained, the weights are judged again")
        try:
            device = run_fitting(fitting)
        except KeyboardInterrupt:
            if not self.writes:
                raise
            raise KeyboardInterrupt(
                f"{self.folder}: stopped; go on with facetry.training.resume({str(self.folder)!r})"
            ) from None
        if fitting.best is not None:
            fill_weights(self.model, fitting.best, Path("best weights"))
        self.model.to(device)
        for source in self.sources.values():
            source.to(device)
        self.model.eval()
        metrics, scores = self._judge(fitting.progress, device)
        self.model.to("cpu")
        self.model.card = self._card(metrics)
        if self.writes:
            save_model(self.model, self.folder)
            if not (ended and (self.folder / "receipt.json").is_file()):  # else it would tell of this start
                self._write_receipt(fitting.progress, scores, device)
            if wants_lines(self.verbose):
                say(f"{self.folder}: {self._summary(metrics)}")
        return Run(self.model, self.folder, metrics, fitting.progress.history)

    def _load_sources(self) -> dict[str, Source]:
        """The splits as the loop reads them."""
        return {
            name: Source(self.model, part.crystals, part.targets, self.options.store_graphs)
            for name, part in self.parts.items()
        }

    def _fitting(self, keeper: Keeper | None, point: ResumePoint | None) -> Fitting:
        from facetry.training.loop import PropertyFitting

        return PropertyFitting(self.model, self._setup(keeper, point), self.targets)

    def _setup(self, keeper: Keeper | None, point: ResumePoint | None) -> Setup:
        train, val = self.sources["train"], self.sources.get("val")
        return Setup(self.options, train, val, keeper, point, self._epoch_ended)

    def _judge(self, progress: Progress, device: torch.device) -> tuple[dict, dict[str, list]]:
        """Calibration and metrics of the final weights."""
        outputs = {
            name: network_outputs(self.model, source, self.options.batch_size, device)
            for name, source in self.sources.items()
            if name != "train"
        }
        self._calibrate(outputs, device)
        return self._measure(progress, outputs)

    def _epoch_line(self, fitting: Fitting) -> str:
        return epoch_line(fitting)  # type: ignore[arg-type]

    def _summary(self, metrics: Mapping[str, Any]) -> str:
        return summary(self.targets, metrics)

    def _look_at_skipped(self) -> None:
        """Crystals that have no graph, or that the model does not take, are left out and listed; a split of
        nothing else stops the run."""
        for name, source in self.sources.items():
            if source.skipped:
                reason = source.skipped[0][1]
                text = f"{len(source.skipped)} of {len(self.parts[name])} crystals of {name} cannot be used"
                if not len(source):
                    raise TrainingError(f"{self.data.name}: {text}; {reason}")
                if wants_lines(self.verbose):
                    say(f"{text} and are left out; the first: {reason}")

    def _epoch_ended(self, fitting: Fitting, chosen: bool) -> None:
        """Table and, where they are the best so far, weights on the disk; one line for the reader."""
        if self.writes:
            write_file(self.folder / "metrics.csv", table_text(fitting.progress.history))
            if chosen:
                card = self._card({"epoch": fitting.progress.epoch, "val": _val_row(fitting.progress)})
                self.model.card, before = card, self.model.card
                save_model(self.model, self.folder)
                self.model.card = before
        if wants_lines(self.verbose):
            say(self._epoch_line(fitting))

    def _calibrate(self, outputs: Mapping[str, np.ndarray], device: torch.device) -> None:
        """Interval widths from the validation errors; which crystals count as familiar."""
        self.model.domain_reference = None
        self.threshold = None
        val = self.sources.get("val")
        if val is None:
            return
        labels = val.labels.cpu().numpy()
        for index, (target, columns) in enumerate(
            zip(self.targets, output_columns(self.targets), strict=True)
        ):
            if target.task == "regression":
                errors = absolute_errors(target, outputs["val"][:, columns], labels[:, index])
                width = conformal_quantile(errors)
                target.quantile = width if math.isfinite(width) else None
        size, train = self.options.batch_size, self.sources["train"]
        drawn = np.sort(stream(self.options.seed, _DOMAIN).permutation(len(train))[:REFERENCE_SIZE])
        reference, self.threshold = domain_statistics(
            network_embeddings(self.model, train, size, device, drawn),
            network_embeddings(self.model, val, size, device),
            self.options.seed,
        )
        self.model.domain_reference = reference.contiguous()

    def _measure(
        self, progress: Progress, outputs: Mapping[str, np.ndarray]
    ) -> tuple[dict, dict[str, list[TargetScores]]]:
        """Metrics of the final weights; bootstrap intervals and coverage on the test split."""
        scores = {
            name: score_targets(
                self.targets,
                outputs[name],
                self.sources[name].labels.cpu().numpy(),
                resamples=1000 if name == "test" else 1,
                intervals=name == "test",
            )
            for name in outputs
        }
        epoch = progress.best_epoch if self.options.keep == "best" and progress.best_epoch else progress.epoch
        found = {name: nan_to_null(flat_metrics(part)) for name, part in scores.items()}
        return {"epoch": epoch} | found, scores

    def _card(self, metrics: dict) -> ModelCard:
        graph = self.model.graph
        return ModelCard(
            model=self.recipe.model["name"],
            options=self.model.options,
            graph=graph.describe() if hasattr(graph, "describe") else {},
            targets=self.targets,
            elements=self.elements,
            domain_threshold=getattr(self, "threshold", None),
            data={"name": self.recipe.data.name, "fold": self.recipe.data.fold, "hash": self.data.hash}
            | {k: v for k in ("parts", "split") if (v := getattr(self.recipe.data, k)) is not None}
            | {name: len(source) for name, source in self.sources.items()}
            | {"disordered": len(disordered_rows(self.sources["train"].crystals))},
            relax={} if self.recipe.relax is None else self.recipe.relax.model_dump(),
            generate={} if self.recipe.generate is None else self.recipe.generate.model_dump(),
            metrics=metrics,
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _write_receipt(self, progress: Progress, scores: Mapping[str, Any], device: torch.device) -> None:
        complete = bool(getattr(self.data, "complete", True))
        short = receipt.shortened(self.recipe, complete, progress.epoch, progress.step)
        content = {
            "command": progress.command,
            "data": self.model.card.data | {"notes": list(getattr(self.data, "notes", ()))},
            "skipped": {name: s.skipped for name, s in self.sources.items() if s.skipped},
            "seed": self.options.seed,
            "epochs": progress.epoch,
            "steps": progress.step,
            "chosen_epoch": self.model.card.metrics["epoch"],
            "shortened": short,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seconds": round(progress.seconds, 1),
            "starts": progress.starts,
            "hardware": receipt.hardware(device, self.options.devices, self.options.nodes),
            "software": receipt.software(),
            "source": receipt.commit(),
            "created": self.model.card.created,
            "metrics": {name: self._score_rows(name, part) for name, part in scores.items()},
        }
        write_file(self.folder / "receipt.json", json.dumps(nan_to_null(content), indent=2) + "\n")

    def _score_rows(self, split: str, scores: list[TargetScores]) -> Any:
        """What the receipt says of a split: with intervals, but for val."""
        return [
            {"target": s.target, "unit": s.unit, "count": s.count}
            | {
                metric: e.value if split == "val" else [e.value, e.lower, e.upper]
                for metric, e in s.metrics.items()
            }
            for s in scores
        ]


@contextmanager
def _torch_settings(options: TrainingOptions) -> Iterator[None]:
    """Threads and random streams as the recipe wants them; the caller's come back afterwards."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def table_text(history: Sequence[Mapping[str, float | int]]) -> str:
    """The history as CSV."""
    buffer = io.StringIO()
    columns = list(dict.fromkeys(key for row in history for key in row))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()


def _val_row(progress: Progress) -> dict[str, float]:
    row = nan_to_null(progress.history[-1])
    return {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
