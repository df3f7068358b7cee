"""Run a model over a stream of crystals: bounded memory, one outcome for each input, in order.

    inputs -> chunks -> graphs (a thread, one chunk ahead) -> parts of bounded size -> model -> outcomes

The thread is used where a core is left for it.

A chunk that fails is halved until the crystal that causes it stands alone; that one gets a message, the rest
get their values. Memory is bounded by the number of atoms and edges that are worked on at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from facetry.crystal import Crystal
from facetry.graph.attempts import attempts
from facetry.graph.batch import Batch
from facetry.models.disorder import accepts_disorder, disorder, needs_order

Status = Literal["ok", "skipped", "failed"]
T = TypeVar("T")

PER_ATOM = frozenset({"atom_embeddings", "atom_positions"})
_TENSORS = 3  # rows of edges x channels that any network holds at once, at least
TOO_CLOSE = 0.1  # Å; no two atoms of a real crystal are nearer, the shortest bond (H2) is 0.74
_NEARLY_FULL = 0.95  # share of a site; beyond it numbers were rounded
_AVERAGED = "averaged over species by occupancy"
_CPU_LIMITS = (64, 2_000, 100_000)
_GPU_LIMITS = (512, 20_000, 1_000_000)


@dataclass(frozen=True)
class Item:
    """One input: a crystal, or the reason why there is none. `label` names it where the crystal does not."""

    source: str
    crystal: Crystal | None
    error: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """What the crystal is called, else the label."""
        return (self.crystal.name if self.crystal is not None else "") or self.label


@dataclass(frozen=True)
class Outcome:
    """What became of one input. `values` holds what was computed for it, in float64; empty unless ok."""

    item: Item
    status: Status
    message: str = ""
    values: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How much is worked on at once; a single crystal may exceed them, two together do not."""

    crystals: int
    atoms: int
    edges: int

    @staticmethod
    def for_device(device: torch.device, batch_size: int | None = None) -> Limits:
        """Defaults that keep a 256-channel network below about 2 GB (CPU) or 16 GB."""
        crystals, atoms, edges = _CPU_LIMITS if device.type == "cpu" else _GPU_LIMITS
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return Limits(batch_size or crystals, atoms, edges)

    def exceeded(self, crystals: int, atoms: int, size: int) -> bool:
        """Whether a chunk of so many crystals and atoms has no room for one of `size` atoms more."""
        return crystals > 0 and (crystals >= self.crystals or atoms + size > self.atoms)


def run(
    model: nn.Module,
    items: Iterable[Item],
    compute: Callable[[Batch], dict[str, Tensor]],
    limits: Limits,
    device: torch.device,
) -> Iterator[Outcome]:
    """One outcome for each item, in order. `compute` maps a batch to named tensors with a row per crystal;
    those named in `PER_ATOM` have a row per atom of the batch and come out with a row per site of the input.

    The model must be in evaluation mode (`evaluating`); gradients are off inside.
    """
    runner = _Runner(model, compute, limits, device)
    chunks = _chunks(items, limits)
    prepared = _ahead(runner.prepare, chunks) if spare_core(device) else map(runner.prepare, chunks)
    for graphs in prepared:
        yield from runner.finish(graphs)


def spare_core(device: torch.device) -> bool:
    """Whether graphs can be built beside the model: two pools of threads on the same cores wait for each
    other and are slower than one after the other."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return device.type != "cpu" or torch.get_num_threads() < cores


def _chunks(items: Iterable[Item], limits: Limits) -> Iterator[list[Item]]:
    """Consecutive items, closed before they exceed the limits."""
    chunk: list[Item] = []
    atoms = 0
    for item in items:
        size = 0 if item.crystal is None else len(item.crystal)
        if limits.exceeded(len(chunk), atoms, size):
            yield chunk
            chunk, atoms = [], 0
        chunk.append(item)
        atoms += size
    if chunk:
        yield chunk


def whole_chunks(sizes: Iterable[int], limits: Limits) -> int:
    """How many of the first inputs make whole chunks, by their numbers of atoms (0 for one that failed).

    Work that goes on from there puts the same crystals together, and so gives the same bits.
    """
    start = count = atoms = 0
    for number, size in enumerate(sizes):
        if limits.exceeded(count, atoms, size):
            start, count, atoms = number, 0, 0
        count, atoms = count + 1, atoms + size
    return start


def _ahead(function: Callable[[Any], T], arguments: Iterable[Any]) -> Iterator[T]:
    """map(function, arguments) with the next result computed in a thread while this one is used."""
    pending: deque = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            for argument in arguments:
                pending.append(pool.submit(function, argument))
                if len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@dataclass
class _Prepared:
    """Outcomes that are known already, and graphs of the crystals that still need the model."""

    outcomes: list[Outcome | None]
    items: list[Item]
    graphs: list[tuple[list[int], Batch]]


class _Runner:
    def __init__(
        self,
        model: nn.Module,
        compute: Callable[[Batch], dict[str, Tensor]],
        limits: Limits,
        device: torch.device,
    ) -> None:
        self.model, self.compute, self.limits, self.device = model, compute, limits, device

    # --- graphs, in the thread ------------------------------------------------------------------

    def prepare(self, items: list[Item]) -> _Prepared:
        prepared = _Prepared([None] * len(items), items, [])
        usable = []
        for position, item in enumerate(items):
            if item.crystal is None:
                prepared.outcomes[position] = Outcome(item, "failed", item.error)
            elif not (item.crystal.is_ordered or accepts_disorder(self.model)):
                prepared.outcomes[position] = Outcome(item, "skipped", needs_order(item.crystal))
            else:
                usable.append(position)
        with torch.no_grad():
            self._build(prepared, usable)
        return prepared

    def _build(self, prepared: _Prepared, usable: list[int]) -> None:
        def build(positions: np.ndarray) -> tuple[Batch, Any]:
            batch = self.model.graph([prepared.items[p].crystal for p in positions])
            return batch, _closest(batch)

        def refuse(position: int, error: Exception) -> None:
            item = prepared.items[position]
            prepared.outcomes[position] = Outcome(item, "failed", _why(error, item, None))

        if not usable:
            return
        for positions, (batch, close) in attempts(build, np.array(usable), refuse, Exception):
            good = []
            for index, position in enumerate(positions.tolist()):
                if close[index] < TOO_CLOSE:
                    item = prepared.items[position]
                    prepared.outcomes[position] = Outcome(item, "failed", _too_close(item.crystal))
                else:
                    good.append(index)
            if good:
                chosen = batch if len(good) == len(positions) else batch.select(good)
                prepared.graphs.append((positions[good].tolist(), chosen))

    # --- the model ------------------------------------------------------------------------------

    def finish(self, prepared: _Prepared) -> list[Outcome]:
        for positions, batch in prepared.graphs:
            for part in self._parts(batch):
                chosen = batch if len(part) == len(batch) else batch.select(part)
                self._evaluate(prepared, [positions[i] for i in part], chosen)
        missing = [i for i, outcome in enumerate(prepared.outcomes) if outcome is None]
        assert not missing, f"inputs without an outcome: {missing}"
        return prepared.outcomes  # type: ignore[return-value]

    def _parts(self, batch: Batch) -> list[list[int]]:
        """Consecutive crystals whose edges stay below the limit together."""
        if batch.graph is None or len(batch.graph) <= self.limits.edges:
            return [list(range(len(batch)))]
        parts: list[list[int]] = [[]]
        edges = 0
        for index, count in enumerate(batch.graph.num_edges.tolist()):
            if parts[-1] and edges + count > self.limits.edges:
                parts.append([])
                edges = 0
            parts[-1].append(index)
            edges += count
        return parts

    def _evaluate(self, prepared: _Prepared, positions: list[int], batch: Batch) -> None:
        try:
            self._check_memory(batch)
            with torch.no_grad():
                tensors = {
                    name: tensor.double().cpu() if tensor.device.type != "mps" else tensor.cpu().double()
                    for name, tensor in self.compute(batch.to(self.device)).items()
                }
        except Exception as error:
            if _out_of_memory(error):
                self.limits = replace(self.limits, edges=max(1, self.limits.edges // 2))
            if len(positions) == 1:
                item = prepared.items[positions[0]]
                prepared.outcomes[positions[0]] = Outcome(item, "failed", _why(error, item, batch))
                return
            for half in _halves(list(range(len(positions)))):
                self._evaluate(prepared, [positions[i] for i in half], batch.select(half))
            return
        rows = {
            name: _split_atoms(tensor, batch) if name in PER_ATOM else list(tensor.numpy())
            for name, tensor in tensors.items()
        }
        for index, position in enumerate(positions):
            item = prepared.items[position]
            values = {name: row[index] for name, row in rows.items()}
            if all(np.isfinite(value).all() for value in values.values()):
                averaged = [] if item.crystal.is_ordered else [f"{disorder(item.crystal)}: {_AVERAGED}"]
                outcome = Outcome(item, "ok", "; ".join([*averaged, *item.crystal.notes]), values)
            else:
                outcome = Outcome(item, "failed", "the model gave a value that is not finite")
            prepared.outcomes[position] = outcome

    def _check_memory(self, batch: Batch) -> None:
        """Refuse a crystal beyond the limits that certainly does not fit: Linux would kill the process."""
        if batch.graph is None or len(batch.graph) <= self.limits.edges or self.device.type != "cpu":
            return
        free = free_memory()
        channels = int(getattr(self.model, "channels", 0))
        width = next((p.element_size() for p in self.model.parameters()), 4)
        if free is not None and _TENSORS * len(batch.graph) * channels * width > free:
            raise MemoryError


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping, by Linux and its control group; else None."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        if (limit := (group / "memory.max").read_text().strip()) != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)


def _split_atoms(rows: Float[Tensor, "atoms channels"], batch: Batch) -> list[np.ndarray]:
    """Rows per atom of the batch as one array per crystal, in the order of the input's sites."""
    if batch.atom_map is not None and batch.num_input_atoms is not None:
        rows, counts = rows[batch.atom_map.long()], batch.num_input_atoms
    else:
        counts = batch.num_atoms
    return [part.numpy() for part in rows.split(counts.tolist())]


def _halves(values: list[int]) -> Sequence[list[int]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def _closest(batch: Batch) -> Float[np.ndarray, "crystals"]:
    """Shortest edge between two different atoms of each crystal, in Å; infinite where there is none."""
    closest = torch.full((len(batch),), torch.inf, dtype=batch.lattice.dtype)
    if batch.graph is not None and len(batch.graph):
        center, neighbor = batch.graph.center, batch.graph.neighbor
        distance = batch.edge_vectors().norm(dim=1)
        distance = distance.masked_fill(center == neighbor, torch.inf)
        if batch.composition is not None:  # two half atoms may be near each other, never at a time
            vacant = batch.composition.occupancy() < _NEARLY_FULL
            distance = distance.masked_fill(vacant[center] | vacant[neighbor], torch.inf)
        closest = closest.scatter_reduce(0, batch.edge_crystal, distance, "amin")
    return closest.numpy()


def _too_close(crystal: Crystal) -> str:
    """Names the closest pair, counted from 0 in the order of the file."""
    lattice = crystal.lattice
    best = (np.inf, 0, 0)
    shares = [1.0] * len(crystal)
    if crystal.occupancies is not None:
        shares = [sum(site.values()) for site in crystal.occupancies]
    vacant = np.array(shares) < _NEARLY_FULL
    for first in range(len(crystal) - 1):
        shift = crystal.frac_coords[first + 1 :] - crystal.frac_coords[first]
        distance = np.linalg.norm((shift - np.round(shift)) @ lattice, axis=1)
        distance[vacant[first + 1 :] | vacant[first]] = np.inf
        second = int(distance.argmin())
        best = min(best, (float(distance[second]), first, first + 1 + second))
    return f"sites {best[1]} and {best[2]} are {best[0]:.2f} Å apart; remove one of them or merge them"


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)


def _why(error: Exception, item: Item, batch: Batch | None) -> str:
    """One line on what went wrong with one crystal."""
    if _out_of_memory(error):
        edges = "" if batch is None or batch.graph is None else f", {len(batch.graph)} edges"
        return (
            f"not enough memory for {len(item.crystal or ())} atoms{edges}; free memory or use a smaller cell"
        )
    first = next(iter(str(error).splitlines()), "")
    first = first.removeprefix(f"{item.name}: ")
    return first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}"
