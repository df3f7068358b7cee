"""Batches of a split: which crystals come when, and their graphs.

Every order and every draw follows from (seed, epoch, step), so that a run can start again anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.data.crystals import CrystalTable
from facetry.graph.attempts import attempts
from facetry.graph.batch import Batch
from facetry.models.base import Model
from facetry.models.disorder import accepts_disorder, needs_order

_CHUNK = 512
_CPU_ATOMS, _GPU_ATOMS, _GPU_CRYSTALS = 4_000, 20_000, 512  # at once in evaluation
_ORDER, _DRAWS = 1, 2  # separate streams of random numbers


def stream(seed: int, *keys: int) -> np.random.Generator:
    """A generator of its own for every combination of keys."""
    return np.random.default_rng(np.random.SeedSequence([seed, *keys]))


def draw_seed(seed: int, step: int, part: int, rank: int) -> int:
    """What torch is seeded with before one part of one step (dropout, drawn frames)."""
    return int(stream(seed, _DRAWS, step, part, rank).integers(2**62))


class Order:
    """The batches of every epoch: a permutation cut into pieces of `batch_size`.

    A last piece that is incomplete is left out or kept; one of a single crystal joins its predecessor,
    because batch normalisation needs two rows.
    """

    def __init__(self, count: int, batch_size: int, drop_last: bool, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        whole, rest = divmod(count, batch_size)
        self.ends = [batch_size * (i + 1) for i in range(whole)]
        if rest and not (drop_last and whole):
            if rest == 1 and whole:
                self.ends[-1] = count
            else:
                self.ends.append(count)
        self._epoch, self._order = -1, np.arange(count)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps between two rows of the table of epochs."""
        return len(self.ends)

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every crystal is seen once."""
        return len(self.ends)

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " batch"]:
        """The crystals of one step of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stream(self.seed, _ORDER, epoch).permutation(self.count)
        start = self.ends[step - 1] if step else 0
        return self._order[start : self.ends[step]]


class Rounds:
    """The batches of an order in rounds of a fixed number of steps, whatever the size of the set: what lies
    between two validations."""

    def __init__(self, order: Order, steps: int):
        self.order, self.steps_per_epoch = order, steps

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every crystal is seen once."""
        return self.order.steps_per_epoch

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " batch"]:
        """The crystals of one step of a round."""
        return self.order.batch(*divmod(epoch * self.steps_per_epoch + step, self.steps_per_pass))


class Source:
    """Crystals with labels; hands out batches with their graphs.

    Stored: every graph is built once and a batch is cut out of one flat table on the model's device. A
    crystal without a graph is left out; `skipped` has its name and the reason.
    Rebuilt: graphs are made per batch, so that memory grows with the batch and not with the set.
    Disordered crystals are left out either way where the model does not take them.
    """

    def __init__(
        self,
        model: Model,
        crystals: Sequence,
        labels: Float[np.ndarray, "crystals targets"],
        stored: bool = True,
    ):
        self.build, self.crystals = model.graph, crystals
        self.skipped: list[tuple[str, str]] = []
        self.packed = None
        if not accepts_disorder(model) and (disordered := disordered_rows(crystals)):
            self.skipped = [(crystals[i].name, needs_order(crystals[i])) for i in disordered]
            ordered = np.setdiff1d(np.arange(len(crystals)), disordered)
            self.crystals, labels = self._take(ordered), labels[ordered]
            crystals = self.crystals
        if stored and len(crystals):
            parts, kept = [], []
            for rows in np.array_split(np.arange(len(crystals)), -(-len(crystals) // _CHUNK)):
                for good, batch in attempts(lambda rows: self.build(self._take(rows)), rows, self._refuse):
                    parts.append(batch.compact())
                    kept.append(good)
            if parts:
                self.packed = Batch.collate(parts)
            if self.skipped:
                rows = np.concatenate(kept) if kept else np.arange(0)
                self.crystals, labels = self._take(rows), labels[rows]
        self.labels = torch.from_numpy(np.ascontiguousarray(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def _take(self, rows: Int[np.ndarray, " chosen"]) -> Sequence:
        select = getattr(self.crystals, "select", None)
        return select(rows) if select is not None else [self.crystals[int(i)] for i in rows]

    def _refuse(self, row: int, error: Exception) -> None:
        self.skipped.append((self.crystals[row].name, str(error)))

    def to(self, device: torch.device) -> Source:
        """Keep graphs and labels on a device from now on, where they fit in half of its free memory."""
        if self.packed is not None and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if _bytes(self.packed) > free / 2:
                return self
        if self.packed is not None:
            self.packed = self.packed.to(device)
        return self

    def batch(self, indices: Int[np.ndarray, " chosen"], device: torch.device) -> Batch:
        """The chosen crystals with their graphs, on a device."""
        if self.packed is None:
            return self.build(self._take(indices)).to(device)
        return self.packed.select(torch.from_numpy(np.asarray(indices))).to(device)

    def pieces(self, batch_size: int, device: torch.device) -> list[Int[np.ndarray, " chosen"]]:
        """All crystals in order, in pieces for evaluation: of so many crystals, and of not too many atoms."""
        on_gpu = device.type == "cuda"
        most = max(batch_size, _GPU_CRYSTALS) if on_gpu else batch_size
        atoms = _GPU_ATOMS if on_gpu else _CPU_ATOMS
        if self.packed is not None:
            sizes = self.packed.num_atoms.tolist()
        else:
            sizes = [len(crystal) for crystal in self.crystals]
        starts, held = [0], 0
        for row, size in enumerate(sizes):
            if row > starts[-1] and (row - starts[-1] >= most or held + size > atoms):
                starts.append(row)
                held = 0
            held += size
        return np.split(np.arange(len(sizes)), starts[1:])


def disordered_rows(crystals: Sequence) -> list[int]:
    """Which crystals have mixed or partly vacant sites; a table knows without making crystals."""
    if isinstance(crystals, CrystalTable):
        return sorted(crystals.occupancies or ())
    return [i for i, crystal in enumerate(crystals) if not crystal.is_ordered]


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if hasattr(value, "__dataclass_fields__"):
        return sum(_bytes(getattr(value, name)) for name in value.__dataclass_fields__)
    return 0
