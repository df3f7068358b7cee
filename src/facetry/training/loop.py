"""The loop: Lightning drives it, this module says what a step is.

One batch is one optimiser step. It is worked off in `accumulate` parts on each of the devices, each part
divided by the number of labels of the whole batch, so that the gradient does not depend on how a batch is
split. (Batch normalisation does: its statistics are those of a part.)

Lightning sees one long stream of parts; epochs, validation and resume points are kept here, so that a run
can go on from any step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from facetry.card import Target
from facetry.models.base import Model, PropertyModel
from facetry.training.batches import Order, Rounds, draw_seed
from facetry.training.losses import balanced_weights, loss_sum, standardise
from facetry.training.recipe import TrainingError, TrainingOptions
from facetry.training.schedule import averaging_start, rate_of_run
from facetry.training.scores import flat_metrics, network_outputs, score_targets, selection_score
from facetry.training.state import Progress, Setup, pack_state, restore_optimizer, section

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_SHORT_EPOCH = 2.0  # seconds; resume points are not written more often than this


class Part(NamedTuple):
    """One forward and backward pass."""

    epoch: int
    position: int
    part: int


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weight decay, and none for biases and normalisation layers (by type or by name)."""
    in_norms = {
        id(p) for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)
    }
    decayed, free = [], []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = id(parameter) in in_norms or any(word in name for word in ("bias", "bn", "norm"))
        (free if spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Fitting(pl.LightningModule):
    """One run of training; `progress`, `best` and the network's weights are its result.

    Subclasses say what the loss of a part is (`part_loss`) and how good the network is (`validate`).
    """

    def __init__(self, network: Model, setup: Setup, validate_every: int | None = None):
        super().__init__()
        self.network, self.options = network, setup.options
        self._sources = (setup.train, setup.val)
        self._keeper, self._point, self._on_epoch = setup.keeper, setup.point, setup.on_epoch
        options, point = setup.options, setup.point
        order = Order(len(setup.train), options.batch_size, options.drop_last, options.seed)
        self.order = order if validate_every is None else Rounds(order, validate_every)
        self.total_steps = total_steps(options, self.order)
        self.epochs = -(-self.total_steps // self.order.steps_per_epoch)
        self.progress = point.progress if point else Progress()
        self.best = point.best if point else None
        self._best_changed = False
        self._averaged = section(point.tensors, "averaged") if point else {}
        self._loss = torch.zeros(2, dtype=torch.float64)
        self._clock = self._epoch_clock = self._last_save = time.monotonic()

    def part_loss(self, mine: np.ndarray, chosen: np.ndarray, seed: int) -> tuple[Tensor, Tensor, int]:
        """Sum of the loss over the crystals `mine`, the number of labels behind it, and that of the whole
        batch `chosen`."""
        raise NotImplementedError

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Columns of the table of epochs and a score, lower is better; None where there is none."""
        raise NotImplementedError

    def more_state(self) -> dict[str, Tensor]:
        """What a resume point holds besides weights and moments."""
        return {}

    # -- what Lightning asks for ------------------------------------------------------------------------

    def train_dataloader(self) -> Stream:
        return Stream(self)

    def transfer_batch_to_device(self, batch: Part, device: torch.device, dataloader_idx: int) -> Part:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.network, self.options.weight_decay)
        return torch.optim.AdamW(groups, lr=self.options.learning_rate, betas=(0.9, self.options.beta2))

    def on_train_start(self) -> None:
        if self._point is not None:
            restore_optimizer(self.network, self.optimizers(use_pl_optimizer=False), self._point.tensors)
        for source in self._sources:
            if source is not None:
                source.to(self.device)
        self._averaged = {name: t.to(self.device) for name, t in self._averaged.items()}
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        restored = [self.progress.loss_sum, self.progress.label_count]
        self._loss = torch.tensor(
            restored if self.global_rank == 0 else [0.0, 0.0], dtype=dtype, device=self.device
        )
        self._point = None
        self.progress.starts += 1
        self._clock = self._last_save = time.monotonic()
        self._epoch_clock = self._clock - self.progress.epoch_seconds
        if self._keeper is not None and self.progress.step == 0:
            self._save()

    def on_train_batch_start(self, batch: Part, batch_idx: int) -> None:
        if batch.part == 0:
            rate, beta = self._rate(self.progress.step)
            for group in self.optimizers(use_pl_optimizer=False).param_groups:
                group["lr"], group["betas"] = rate, (beta, group["betas"][1])

    def training_step(self, batch: Part, batch_idx: int) -> Tensor:
        chosen = self.order.batch(batch.epoch, batch.position)
        number, parts = batch.part * self.trainer.world_size + self.global_rank, self._parts
        mine = np.array_split(chosen, parts)[number]
        weight = 1.0 if len(mine) else 0.0
        if not len(mine):  # fewer crystals than parts: every process must still take part
            mine = chosen[:1]
        seed = draw_seed(self.options.seed, self.progress.step, batch.part, self.global_rank)
        torch.manual_seed(seed)
        total, present, everyone = self.part_loss(mine, chosen, seed)
        total = weight * total
        with torch.no_grad():
            self._loss += torch.stack([total.detach(), weight * present]).to(self._loss)
        return total * (parts / max(everyone, 1))  # Lightning divides by accumulate, DDP by the devices

    def on_train_batch_end(self, outputs: object, batch: Part, batch_idx: int) -> None:
        if batch.part + 1 < self.options.accumulate:
            return
        self.progress.step += 1
        self.progress.position += 1
        self._average()
        ended = self.progress.position == self.order.steps_per_epoch or self.progress.step == self.total_steps
        if ended:
            self._end_epoch()
        waited = time.monotonic() - self._last_save
        limit = (
            min(self.options.checkpoint_seconds, _SHORT_EPOCH) if ended else self.options.checkpoint_seconds
        )
        if self._keeper is not None and (waited >= limit or self.progress.finished):
            self._save()
        if self.progress.finished:
            self.trainer.should_stop = True

    def _rate(self, step: int) -> tuple[float, float]:
        """Learning rate and first beta of a step."""
        return rate_of_run(self.options, step, self.total_steps, self.order.steps_per_pass)

    # -- epochs ------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> int:
        return self.options.accumulate * self.trainer.world_size

    def _end_epoch(self) -> None:
        """Validate, choose, write the row of this epoch."""
        progress = self.progress
        loss = self._mean_loss()
        rate, _ = self._rate(progress.step - 1)
        row: dict[str, float | int] = {"epoch": progress.epoch + 1, "step": progress.step, "train_loss": loss}
        with self._weights_to_keep():
            columns, score = self.validate()
            row |= columns
            improved = score is not None and (progress.best_score is None or score < progress.best_score)
            chosen = improved or score is None or self.options.keep == "last"
            if chosen:
                self.best = {n: t.detach().cpu().clone() for n, t in self.network.state_dict().items()}
                self._best_changed = True
        if improved:
            progress.best_score, progress.best_epoch = score, progress.epoch + 1
        progress.stale_epochs = 0 if improved or score is None else progress.stale_epochs + 1
        now = time.monotonic()
        row |= {"learning_rate": rate, "seconds": round(now - self._epoch_clock, 3)}
        self._epoch_clock = now
        progress.history.append(row)
        progress.epoch, progress.position = progress.epoch + 1, 0
        self._loss.zero_()
        patience = self.options.patience
        bored = patience is not None and progress.stale_epochs >= patience
        progress.finished = bored or progress.step >= self.total_steps
        if self.global_rank == 0:
            self._on_epoch(self, chosen)

    def _mean_loss(self) -> float:
        pair = self._loss.clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(pair)
        total, count = pair.tolist()
        mean = total / count if count else math.nan
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss became {total} in epoch {self.progress.epoch + 1} (step {self.progress.step}); "
                "lower training.learning_rate or set training.gradient_clip; "
                "the last good resume point is kept"
            )
        return mean

    # -- averaged weights ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _average(self) -> None:
        """One step of the running average: exponential with a quick start, or plain over the last epochs."""
        kind = self.options.averaging
        first = averaging_start(self.options, self.total_steps, self.order.steps_per_pass)
        if kind == "none" or (kind == "mean" and self.progress.step <= first):
            return
        count = self.progress.averaged
        self.progress.averaged += 1
        keep = (
            min(self.options.averaging_decay, (1 + count) / (10 + count))
            if kind == "ema"
            else count / (count + 1)
        )
        for name, tensor in self.network.state_dict().items():
            if name not in self._averaged or not tensor.is_floating_point():
                self._averaged[name] = tensor.clone()
            else:
                self._averaged[name].lerp_(tensor, 1 - keep)

    @contextlib.contextmanager
    def _weights_to_keep(self) -> Iterator[None]:
        """Within, the network has its averaged weights, where there are any."""
        if not self._averaged:
            yield
            return
        own = {name: t.clone() for name, t in self.network.state_dict().items()}
        self.network.load_state_dict(self._averaged)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def _save(self) -> None:
        """A resume point, unless the numbers have gone bad since the last."""
        total, count = self._loss.tolist()
        if not math.isfinite(total):
            self._mean_loss()
        now = time.monotonic()
        self.progress.loss_sum, self.progress.label_count = total, count
        self.progress.seconds += now - self._clock
        self.progress.epoch_seconds = now - self._epoch_clock
        self._clock = now
        if self.global_rank == 0:
            optimizer = self.optimizers(use_pl_optimizer=False)
            tensors = pack_state(self.network, optimizer, self._averaged) | self.more_state()
            self._keeper.save(self.progress, tensors, self.best, self._best_changed)
        self._best_changed = False
        self._last_save = time.monotonic()


class PropertyFitting(Fitting):
    """Training on labels: numbers and classes of crystals."""

    network: PropertyModel

    def __init__(self, network: PropertyModel, setup: Setup, targets: list[Target]):
        super().__init__(network, setup)
        self.targets = targets
        labels = setup.train.labels.numpy()
        self._labels = torch.from_numpy(standardise(targets, labels))
        balanced = self.options.class_weights == "balanced"
        self._class_weights = balanced_weights(targets, labels) if balanced else None
        self._forward = (torch.compile(network, dynamic=True) if self.options.compile else network,)

    def part_loss(self, mine: np.ndarray, chosen: np.ndarray, seed: int) -> tuple[Tensor, Tensor, int]:
        """The loss of every label that is there."""
        crystals = self._sources[0].batch(mine, self.device)
        draw = getattr(self.network, "training_batch", None)
        if draw is not None:
            crystals = draw(crystals, torch.Generator().manual_seed(seed))
        outputs = self._forward[0](crystals)
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        labels = self._labels[torch.from_numpy(mine)].to(self.device, outputs.dtype)
        total = loss_sum(
            outputs,
            labels,
            self.targets,
            self.options.loss,
            self.options.huber_delta,
            self._class_weights,
        )
        everyone = int((~torch.isnan(self._labels[torch.from_numpy(chosen)])).sum())
        return total, (~torch.isnan(labels)).sum(), everyone

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Metrics of the validation split in physical units."""
        val = self._sources[1]
        if val is None:
            return {}, None
        outputs = network_outputs(
            self.network,
            val,
            self.options.batch_size,
            self.device,
            self.global_rank,
            self.trainer.world_size,
            quick=True,
        )
        labels = val.labels.numpy()
        scores = score_targets(self.targets, outputs, labels)
        row = {f"val_{name}": value for name, value in flat_metrics(scores).items()}
        return row, selection_score(self.targets, scores, outputs, labels)


def total_steps(options: TrainingOptions, order: Order | Rounds) -> int:
    """Optimiser steps of the whole run."""
    if options.steps is not None:
        return options.steps
    epochs = options.epochs if options.epochs is not None else 100
    return epochs * order.steps_per_pass


class Stream:
    """All parts that are still to be done."""

    def __init__(self, fitting: Fitting):
        self.fitting = fitting

    def __iter__(self) -> Iterator[Part]:
        fitting, per_epoch = self.fitting, self.fitting.order.steps_per_epoch
        start = fitting.progress.epoch, fitting.progress.position
        for epoch in range(start[0], fitting.epochs):
            first = start[1] if epoch == start[0] else 0
            for position in range(first, min(per_epoch, fitting.total_steps - epoch * per_epoch)):
                for part in range(fitting.options.accumulate):
                    yield Part(epoch, position, part)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's banners, tips and hints about loaders."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
        warnings.filterwarnings("ignore", message=r".*(LeafSpec|treespec|isinstance\(treespec).*")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def run_fitting(fitting: Fitting) -> torch.device:
    """Hand the stream to Lightning; returns the device it ran on."""
    options = fitting.options
    slurm = SLURMEnvironment.detect() and options.devices * options.nodes > 1
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if options.accelerator == "cuda" else options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy="auto" if options.devices * options.nodes == 1 else "ddp",
            plugins=[SLURMEnvironment(auto_requeue=False)] if slurm else None,
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            max_epochs=1,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if not fitting.progress.finished:
            with _interrupts():
                trainer.fit(fitting)
        return trainer.strategy.root_device


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C reaches the caller as such; Lightning would exit and leave the signal switched off. SIGTERM,
    with which batch systems end a job, is the same."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (SIGTERMException, SystemExit):
        raise KeyboardInterrupt from None
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
