"""Structures of an energy: chains from random starts, annealed, those of many formulas side by side.

Formulas are sorted by the size of their cells and sampled in groups of a bounded number of chains. A chain's
random numbers follow from the seed, its formula, how often that was asked for before, and its number; its
energies do up to round-off, which depends on the group it is in.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.chemistry import Formula
from facetry.crystal import Crystal, CrystalError
from facetry.elements import SYMBOLS
from facetry.geometry.ragged import group_index, items_in, ranges, ranks
from facetry.models.base import EnergyModel, Landscape, evaluating
from facetry.samplers import Annealing, Chains, evaluated, random_start
from facetry.samplers.descent import descended
from facetry.tasks.chain_records import Frames, Lowest, Step, StepCounter
from facetry.tasks.energies import Energies
from facetry.tasks.generate import Candidate
from facetry.tasks.sampling_store import SamplingStore

__all__ = ["EnergyChains", "Job", "Sampled"]

MOST_ATOMS = 200  # of a cell that is sampled without `force`
POINT = 100  # steps between points to go on from; neighbours are searched anew there, whether kept or not
_CHAINS = {"cpu": 512}  # at once; on accelerators
_CHAINS_GPU = 8192
_ATOMS_PER_CHAIN = 20  # groups of larger cells have fewer chains
_TIMED = 60  # atoms of the cells whose steps are timed for an estimate


@dataclass(frozen=True)
class Job:
    """Chains for one formula: how many are wanted; `key` tells this asking from others of the formula."""

    formula: Formula
    count: int
    key: int = 0

    def chains(self, number: int) -> Int[np.ndarray, " chains"]:
        """Numbers of its chains, which its random numbers follow from."""
        text = ",".join(f"{z}:{n}" for z, n in sorted(self.formula.counts.items())) + f"#{self.key}"
        first = int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big") << 20
        return first + np.arange(number)


@dataclass(frozen=True)
class Sampled:
    """Where one chain ended, and the way there as (step, crystal, energy)."""

    crystal: Crystal
    energy: float
    chain: int
    way: tuple[tuple[int, Crystal, float], ...] = ()


@dataclass(frozen=True)
class _Group:
    """Chains that run side by side: of jobs, or of parts of jobs."""

    jobs: tuple[int, ...]
    owner: Int[Tensor, " chains"]  # place in `jobs`
    rank: Int[Tensor, " chains"]  # number within its job
    chain: Int[Tensor, " chains"]
    atoms: tuple[tuple[int, ...], ...]  # atomic numbers of every job
    wanted: tuple[int, ...]  # chains that go on to the end


class EnergyChains:
    """The method of models with an energy.

    Args:
        steps: of the annealing (`facetry.samplers.Annealing`); None: as in training, also in the next three.
        hot: its first temperature.
        cold: its last temperature.
        per_atom: whether temperatures are per atom.
        keep: where a chain is at its "last" step, or where its energy was "lowest" in the last `lowest_of`.
        quench: steps downhill from there to the nearest minimum; 0 for none.
        starts: chains that are begun for each one wanted. Of every formula those with the lowest energies go
            on after `prune_after` steps (None: a fifth of the annealing).
        batch_size: chains at once, fewer of large cells; None: 512 on a CPU, 8192 elsewhere.
        trajectory: steps between two frames that are kept of the way; 0 for none.
        most_atoms: larger cells are refused with an estimate, unless `force` is set.
        device: where to compute; None: where the model is.
    """

    energy_unit = ""

    def __init__(
        self,
        model: EnergyModel,
        steps: int | None = None,
        hot: float | int | None = None,
        cold: float | int | None = None,
        per_atom: bool | None = None,
        keep: str = "last",
        lowest_of: int = 50,
        quench: int = 0,
        starts: int = 1,
        prune_after: int | None = None,
        batch_size: int | None = None,
        trajectory: int = 0,
        most_atoms: int = MOST_ATOMS,
        force: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        if keep not in ("last", "lowest"):
            raise ValueError(f"keep: expected 'last' or 'lowest', got {keep!r}")
        at_least = {"lowest_of": 1, "quench": 0, "starts": 1, "trajectory": 0, "most_atoms": 1}
        given = {"lowest_of": lowest_of, "quench": quench, "starts": starts, "trajectory": trajectory}
        for name, value in (given | {"most_atoms": most_atoms}).items():
            if value < at_least[name]:
                raise ValueError(f"{name}: expected at least {at_least[name]}, got {value}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.model, self.device = model, device
        self.plan = _trained_plan(model)
        own = {"steps": steps, "hot": hot, "cold": cold, "per_atom": per_atom}
        self.plan = replace(self.plan, **{name: value for name, value in own.items() if value is not None})
        self.keep, self.lowest_of, self.quench, self.starts = keep, lowest_of, quench, starts
        self.prune_after = max(self.plan.steps // 5, 1) if prune_after is None else prune_after
        if starts > 1 and not 1 <= self.prune_after < self.plan.steps:
            raise ValueError(
                f"prune_after: expected 1 to {self.plan.steps - 1} of {self.plan.steps} steps,"
                f" got {self.prune_after}"
            )
        self.batch_size, self.trajectory = batch_size, trajectory
        self.most_atoms, self.force = most_atoms, force

    # --- the method -----------------------------------------------------------------------------

    def candidates(
        self, formula: Formula, count: int, seed: int, atoms: int | None = None
    ) -> Iterator[Candidate]:
        """The ends of `count` chains, lowest energy first."""
        formula = formula if atoms is None else formula.with_atoms(atoms)
        if reason := self.refusal(formula, count):
            raise ValueError(reason)
        yield from next(self.together([formula], count, seed))

    def together(
        self,
        formulas: Sequence[Formula],
        count: int,
        seed: int,
        store: SamplingStore | None = None,
        progress: Step | None = None,
    ) -> Iterator[list[Candidate]]:
        """The ends of `count` chains of every formula, in the order of the formulas."""
        seen: Counter[Formula] = Counter()
        jobs = []
        for formula in formulas:
            jobs.append(Job(formula, count, seen[formula]))
            seen[formula] += 1
        for job, samples in zip(jobs, self.sample(jobs, seed, store, progress), strict=True):
            note = self.doubt(job.formula)
            yield [Candidate(s.crystal, s.energy, f"chain {s.chain + 1}", s.way, note) for s in samples]

    def nothing(self, formula: Formula, atoms: int | None) -> str:
        """Why there are no candidates for a formula."""
        return "every chain ended where there is no energy; try other --seed, or fewer atoms"

    def doubt(self, formula: Formula) -> str:
        """What speaks against trusting candidates of this formula; empty where nothing does."""
        known = set(self.model.card.elements) if self.model.card is not None else set()
        unseen = sorted(set(formula.counts) - known) if known else []
        return f"not in the training data: {', '.join(SYMBOLS[z] for z in unseen)}" if unseen else ""

    def refusal(self, formula: Formula, count: int) -> str:
        """Why this formula is not sampled; empty where it is."""
        try:
            self.model.check_elements(torch.tensor(sorted(formula.counts)))
        except ValueError as error:
            names = ", ".join(SYMBOLS[z] for z in sorted(formula.counts) if z > 92) or str(formula)
            return f"{formula}: {names} is unknown to the model ({error})"
        if formula.atoms <= self.most_atoms or self.force:
            return ""
        seconds, memory = self.estimate(formula, count)
        return (
            f"{formula}: {formula.atoms} atoms; {count} chains of {self.plan.steps} steps would take about"
            f" {_duration(seconds)} and {memory / 2**30:.1g} GiB here; fewer atoms (--atoms), fewer steps"
            " (--set steps=...), or --force"
        )

    def estimate(self, formula: Formula, count: int) -> tuple[float, float]:
        """Seconds and bytes that chains of this formula take here, from steps of smaller cells: a part of
        the time grows with the atoms, a part with their pairs."""
        unit = list(Formula(formula.reduced_counts).numbers())
        times = {}
        with evaluating(self.model, self.device) as place, torch.no_grad():
            for target in (_TIMED // 2, _TIMED):
                numbers = unit * max(round(target / len(unit)), 1)
                n = torch.tensor([len(numbers)], device=place)
                land = self.model.landscape(torch.tensor(numbers, device=place), n)
                chain = torch.zeros(1, dtype=torch.int64, device=place)
                start = random_start(0, chain, n, self.model.density)
                land(*start)
                began = time.perf_counter()
                for _ in range(3):
                    land(*start)
                times[len(numbers)] = (time.perf_counter() - began) / 3
        (a, t_a), (b, t_b) = min(times.items()), max(times.items())
        by_pairs = max(t_b / b - t_a / a, 0.0) / (b - a) if b > a else 0.0
        per_step = formula.atoms * (t_b / b) + by_pairs * formula.atoms * max(formula.atoms - b, 0)
        pairs = formula.atoms * (formula.atoms + 1) / 2
        images = 113 * 1.4 / formula.atoms + 4  # of a pair, with skin and gaps
        memory = pairs * (images * 100 + 400)
        return per_step * count * self.starts * self.plan.steps, memory * self._at_once(formula.atoms, count)

    def energies(self, crystals: Sequence[Crystal]) -> list[float | None]:
        """The model's energies of any crystals."""
        return Energies(self.model, device=self.device)(crystals)

    def settings(self) -> dict[str, Any]:
        """All that samples follow from, for receipts and for going on."""
        plan = {name: getattr(self.plan, name) for name in self.plan.__dataclass_fields__}
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        own = {name: getattr(self, name) for name in ("keep", "lowest_of", "quench", "starts", "trajectory")}
        own["prune_after"] = self.prune_after if self.starts > 1 else None
        own["lowest_of"] = self.lowest_of if self.keep == "lowest" else None
        return plan | own | {"batch_size": self._at_once(1), "weights": digest.hexdigest()}

    # --- chains ---------------------------------------------------------------------------------

    def sample(
        self,
        jobs: Sequence[Job],
        seed: int = 0,
        store: SamplingStore | None = None,
        progress: Step | None = None,
    ) -> Iterator[list[Sampled]]:
        """Where the chains of every job end, lowest energy first; jobs in order. Chains that end without an
        energy are left out. `progress` is called with steps of chains done and all there are."""
        with evaluating(self.model, self.device) as place, torch.no_grad():
            groups = self._groups(jobs, place)
            steps = self.plan.steps + self.quench
            counter = StepCounter(steps * sum(job.count for job in jobs), progress)
            missing = Counter(job for group in groups for job in group.jobs)
            done: dict[int, list[Sampled]] = {}
            following = 0
            for number, group in enumerate(groups):
                ended = store.ended(number) if store is not None else None
                if ended is None:
                    ended = self._run(group, number, seed, place, store, counter)
                    if store is not None:
                        store.end(number, ended)
                counter.reach(steps * sum(group.wanted))
                for job, samples in zip(group.jobs, self._read(group, ended), strict=True):
                    done.setdefault(job, []).extend(samples)
                    missing[job] -= 1
                while following in done and not missing[following]:
                    yield sorted(done.pop(following), key=lambda s: (s.energy, s.chain))
                    following += 1

    def _at_once(self, atoms: int, wanted: int | None = None) -> int:
        kind = torch.device(self.device).type if self.device is not None else self.model.device.type
        limit = self.batch_size or _CHAINS.get(kind, _CHAINS_GPU)
        limit = max(min(limit, limit * _ATOMS_PER_CHAIN // atoms), 1)
        return limit if wanted is None else min(limit, wanted * self.starts)

    def _groups(self, jobs: Sequence[Job], place: torch.device) -> list[_Group]:
        """Jobs in order of their cells' sizes, as many at once as there may be chains. One of more chains
        than that is divided; each part of it is pruned by itself."""
        parts = []
        for j in sorted(range(len(jobs)), key=lambda j: (jobs[j].formula.atoms, j)):
            most = max(self._at_once(jobs[j].formula.atoms) // self.starts, 1)
            firsts = range(0, jobs[j].count, most)
            parts += [(j, first, min(most, jobs[j].count - first)) for first in firsts]
        groups: list[list[tuple[int, int, int]]] = []
        chains = 0
        for part in parts:
            more = part[2] * self.starts
            if not groups or chains + more > self._at_once(jobs[part[0]].formula.atoms):
                groups.append([])
                chains = 0
            groups[-1].append(part)
            chains += more
        return [self._group(jobs, chosen, place) for chosen in groups]

    def _group(self, jobs: Sequence[Job], parts: list[tuple[int, int, int]], place: torch.device) -> _Group:
        counts = torch.tensor([wanted * self.starts for _, _, wanted in parts])
        first = torch.tensor([first * self.starts for _, first, _ in parts])
        numbers = [
            jobs[j].chains((first + wanted) * self.starts)[first * self.starts :]
            for j, first, wanted in parts
        ]
        return _Group(
            tuple(j for j, _, _ in parts),
            group_index(counts).to(place),
            ranges(first, counts).to(place),
            torch.from_numpy(np.concatenate(numbers)).to(place),
            tuple(tuple(jobs[j].formula.numbers()) for j, _, _ in parts),
            tuple(wanted for _, _, wanted in parts),
        )

    def _run(
        self,
        group: _Group,
        number: int,
        seed: int,
        place: torch.device,
        store: SamplingStore | None,
        counter: StepCounter,
    ) -> dict[str, Tensor]:
        point = store.point(number) if store is not None else None
        if point is not None:
            point = {name: tensor.to(place) for name, tensor in point.items()}
            rows = point["rows"]
        else:
            rows = torch.arange(len(group.chain), device=place)
        land, chains = self._chains(group, rows, seed, point)
        lowest = Lowest.of(chains.state) if point is None else Lowest.restored(point)
        frames = Frames(self.trajectory, point)
        plan = self.plan
        while chains.step < plan.steps:
            chains.advance(plan.temperature(chains.step))
            if self.keep == "lowest" and chains.step > plan.steps - self.lowest_of:
                lowest = lowest.updated(chains.state, group_index(land.num_atoms))
            frames.see(chains.step, chains.state)
            if self.starts > 1 and chains.step == self.prune_after:
                kept = self._lowest_rows(group, rows, chains.state.at.energy)
                frames.keep(kept, land.num_atoms)
                tensors, atoms = chains.tensors(), items_in(kept, land.num_atoms)
                rows = rows[kept]
                tensors = {
                    name: tensor
                    if not tensor.dim()
                    else tensor[atoms if name in ("frac_coords", "by_position") else kept]
                    for name, tensor in tensors.items()
                }
                land, chains = self._chains(group, rows, seed, tensors)
                lowest = Lowest.of(chains.state)
            counter.reach(chains.step * sum(group.wanted), partly=True)
            if chains.step % POINT == 0 or chains.step == plan.steps:
                tensors = chains.tensors() | {"rows": rows} | lowest.tensors() | frames.tensors()
                if store is not None:
                    store.keep(number, tensors)
        state = chains.state
        if self.keep == "lowest":
            land.forget(torch.ones_like(land.num_atoms, dtype=torch.bool))
            state = evaluated(land, lowest.lattice, lowest.frac_coords, plan.density)
        if self.quench:
            land.forget(torch.ones_like(land.num_atoms, dtype=torch.bool))
            state = descended(land, state, self.quench, plan.density)
        if self.trajectory:
            frames.see(plan.steps + self.quench, state, last=True)
        return {
            "rows": rows,
            "lattice": state.lattice,
            "frac_coords": state.frac_coords,
            "energy": state.at.energy,
        } | frames.tensors()

    def _chains(
        self, group: _Group, rows: Tensor, seed: int, tensors: dict[str, Tensor] | None
    ) -> tuple[Landscape, Chains]:
        """Chains at their start, or where they were."""
        sizes = torch.tensor([len(atoms) for atoms in group.atoms], device=rows.device)
        flat = torch.tensor([z for atoms in group.atoms for z in atoms], device=rows.device)
        owner = group.owner[rows]
        num_atoms, chain = sizes[owner], group.chain[rows]
        numbers = flat[items_in(owner, sizes)]
        land = self.model.landscape(numbers, num_atoms)
        if tensors is None:
            lattice, frac = random_start(seed, chain, num_atoms, self.plan.density)
            return land, Chains(land, lattice, frac, seed=seed, chain=chain, plan=self.plan)
        chains = Chains(
            land, tensors["lattice"], tensors["frac_coords"], seed=seed, chain=chain, plan=self.plan
        )
        chains.restore(tensors)
        return land, chains

    def _lowest_rows(self, group: _Group, rows: Tensor, energy: Tensor) -> Tensor:
        """Of every job as many chains as are wanted, those of the lowest energies, in their order."""
        energy = torch.nan_to_num(energy, nan=torch.inf)
        owner = group.owner[rows]
        order = torch.argsort(energy, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]
        place = ranks(owner.bincount())
        wanted = torch.tensor(group.wanted, device=rows.device)
        return order[place < wanted[owner[order]]].sort().values

    def _read(self, group: _Group, ended: dict[str, Tensor]) -> list[list[Sampled]]:
        """Crystals from tensors, job by job."""
        ended = {name: tensor.cpu() for name, tensor in ended.items()}
        rows = ended["rows"].tolist()
        owner, rank = group.owner.cpu().tolist(), group.rank.cpu().tolist()
        sizes = [len(group.atoms[owner[row]]) for row in rows]
        coords = ended["frac_coords"].numpy()
        found: list[list[Sampled]] = [[] for _ in group.jobs]
        steps, frames = Frames.read(ended)
        start = 0
        for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            atoms = slice(start, start + size)
            start += size
            energy = float(ended["energy"][i])
            numbers = np.array(group.atoms[owner[row]])
            crystal = crystal_if_valid(ended["lattice"][i].numpy(), coords[atoms], numbers)
            if crystal is None or not math.isfinite(energy):
                continue
            way = []
            for step, (lattice, frac, at) in zip(steps, frames, strict=True):
                frame = crystal_if_valid(lattice[i].numpy(), frac[atoms].numpy(), numbers)
                if frame is not None:
                    way.append((step, frame, float(at[i])))
            found[owner[row]].append(Sampled(crystal, energy, rank[row], tuple(way)))
        return found


def _trained_plan(model: EnergyModel) -> Annealing:
    """The annealing that a model was trained with; the published one for others."""
    from facetry.training.contrast import plan
    from facetry.training.recipe import GenerateOptions

    told = model.card.generate if model.card is not None else {}
    known = {name: value for name, value in told.items() if name in GenerateOptions.model_fields}
    return plan(GenerateOptions(**known), model.density)


def crystal_if_valid(
    lattice: Float[np.ndarray, "3 3"],
    frac_coords: Float[np.ndarray, "atoms 3"],
    atomic_numbers: Int[np.ndarray, " atoms"],
) -> Crystal | None:
    """The crystal, or None for numbers that are none: not finite, flat, too dense."""
    try:
        return Crystal(lattice, frac_coords, atomic_numbers)
    except CrystalError:
        return None


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(seconds, 1):.0f} s"
