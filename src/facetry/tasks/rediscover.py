"""Rediscover: are the crystals of a test part found again from their formulas alone?

Every crystal is asked for by the atoms of its cell; the candidates are in the order of their energies, or of
the method. Into a folder go

    samples.parquet          the candidates, which `facetry match` reads too
    matches.csv ...          what matched (`facetry match`)
    times.json               the time of each stage over all starts
    resume/                  what has been made so far, until all is done

Killed, the same call goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from facetry.chemistry import Formula
from facetry.crystal import Crystal
from facetry.tasks.generate import Maker, NothingFound, make_method_with_energy
from facetry.tasks.sampling_store import FOLDER, SamplingStore

__all__ = ["Rediscovery", "Sample", "chosen_rows", "intervals", "method_and_card", "rediscover"]

DRAW = 0  # seed of the choice of crystals
RESAMPLES = 1000
_BLOCK = 16  # crystals between two points to go on from, for methods without chains

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """One candidate of one test crystal."""

    crystal: Crystal
    energy: float | None


@dataclass(frozen=True)
class Rediscovery:
    """What `rediscover` returns: the crystals asked for, their candidates, the matches (`facetry.match`),
    and what a receipt says; `clock` goes on for stages that follow."""

    crystals: list[Crystal]
    samples: list[list[Sample]]
    matches: Any
    receipt: dict[str, Any]
    clock: Clock


def chosen_rows(count: int, limit: int | None) -> Int[np.ndarray, " chosen"]:
    """Which crystals: a random choice that depends on nothing but these numbers, in ascending order, so that
    all methods see the same ones."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(DRAW).permutation(count)[:limit])


def method_and_card(name: str, model: Any = None, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A method of `facetry generate`, the energy that ranks its candidates (None: the method knows), and what
    a receipt says of them. `name` is that of a method, whose energy is then the model if there is one, or
    "model": the model itself draws."""
    own = {key: value for key, value in options.items() if value is not None}
    if name == "model":
        method, ranking = make_method_with_energy(model, None, **own)
    else:
        method, ranking = make_method_with_energy(name, model, **own)
    told: dict[str, Any] = {"name": method.model.name if name == "model" else name, "options": _plain(own)}
    if model is not None:
        network = method.model if name == "model" else model
        card = network.card
        told |= {
            "parameters": sum(p.numel() for p in network.parameters()),
            "trained": {}
            if card is None
            else {"model": card.model, "data": card.data, "version": card.version, "created": card.created},
        }
    if hasattr(method, "settings"):
        told["sampler"] = method.settings()
    return method, ranking, told


def rediscover(
    method: Any,
    crystals: Sequence[Crystal],
    out: str | Path,
    *,
    told: dict[str, Any],
    data: dict[str, Any],
    limit: int | None = None,
    count: int = 20,
    seed: int = 0,
    ranking: Any = None,
    draws: int | None = None,
    workers: int | None = None,
    time_limit: float = 60.0,
    progress: Watch | None = None,
) -> Rediscovery:
    """Candidates for crystals, compared with them; see the head of this module.

    Args:
        method: what draws, the first of `method_and_card`.
        told: what a receipt says of it, the third of `method_and_card`.
        ranking: the energy that ranks candidates, the second of `method_and_card`.
        draws: candidates made before the lowest are kept.
        crystals: the test part. `limit` of them are asked for, chosen at random, the same for all methods.
        data: what a receipt says of where they come from.
        count: candidates of each.
        seed: of what is drawn.
        workers: processes of `facetry.match`.
        time_limit: seconds for a pair in `facetry.match`.
        progress: called with what is done, how many and of how many.

    Raises ImportError with the command to type where pymatgen-core is missing, before anything is drawn.
    """
    from facetry.evaluation.matching import Matcher
    from facetry.tasks.match import match

    Matcher()
    show = progress or (lambda what, done, total: None)
    rows = chosen_rows(len(crystals), limit)
    chosen = [crystals[int(row)] for row in rows]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / "times.json")
    settings = {
        "sampler": told.get("sampler", {"name": told["name"], "options": told["options"], "draws": draws}),
        "seed": seed, "samples": count, "data": data.get("name"), "split": data.get("split"),
        "crystals": _hash([c.name for c in chosen]),
    }  # fmt: skip
    store = SamplingStore(out, settings, resume=(out / FOLDER / "sampling.json").exists())

    def watch(done: int, total: int) -> None:
        clock.note("sampling", every=30.0)
        show("steps of chains" if hasattr(method, "sample") else "crystals asked for", done, total)

    formulas = [Formula.of(c.atomic_numbers) for c in chosen]
    if hasattr(method, "sample"):
        from facetry.tasks.energy_chains import Job

        jobs = [Job(f, count, int(row)) for f, row in zip(formulas, rows, strict=True)]
        drawn = method.sample(jobs, seed, store, watch)
        samples = [[Sample(s.crystal, s.energy) for s in few] for few in drawn]
    else:
        asked = list(zip(formulas, rows.tolist(), strict=True))
        samples = list(_made(method, ranking, draws, asked, count, seed, store, watch))
    clock.note("sampling")
    write_samples(out / "samples.parquet", chosen, samples)
    found = match(
        chosen,
        [[s.crystal for s in few] for few in samples],
        workers=workers,
        time_limit=time_limit,
        progress=lambda done, total: show("pairs matched", done, total),
    )
    found.write(out)
    clock.note("matching")
    receipt = {
        "method": told,
        "data": data
        | {"of": len(crystals), "crystals": len(chosen), "seed": DRAW}
        | {"part": settings["crystals"]},
        "samples": count,
        "seed": seed,
        "counts": counts(samples, found, count),
        "scores": found.summary()["scores"],
        "intervals": intervals(found),
    }
    return Rediscovery(chosen, samples, found, receipt, clock)


def finished(found: Rediscovery, out: str | Path, device: Any = None, **more: Any) -> dict[str, Any]:
    """The receipt with times and machine, written into the folder; what is there to go on from is removed."""
    from facetry.training import receipt
    from facetry.training.files import write_file

    clock = found.clock
    content = found.receipt | more
    content |= {
        "seconds": round(sum(clock.seconds().values()), 1), "stages": clock.seconds(), "starts": clock.starts,
        "hardware": receipt.hardware(device), "software": receipt.software(), "source": receipt.commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }  # fmt: skip
    write_file(Path(out) / "receipt.json", json.dumps(content, indent=2) + "\n")
    shutil.rmtree(Path(out) / FOLDER, ignore_errors=True)
    return content


def _made(
    method: Any,
    ranking: Any,
    draws: int | None,
    asked: list[tuple[Formula, int]],
    count: int,
    seed: int,
    store: SamplingStore,
    watch: Callable[[int, int], None],
) -> Iterator[list[Sample]]:
    """The candidates of a method without chains, kept block by block."""
    for block, start in enumerate(range(0, len(asked), _BLOCK)):
        few = asked[start : start + _BLOCK]
        kept = store.ended(block)
        if kept is None:
            made = []
            for number, (formula, row) in enumerate(few, start=1):
                maker = Maker(method, count, seed + row, formula.atoms, ranking, draws)
                (found,) = maker.over([formula])
                made.append(
                    []
                    if isinstance(found, NothingFound)
                    else [Sample(g.crystal, None if g.energy is None else float(g.energy)) for g in found]
                )
                watch(start + number, len(asked))
            kept = _packed(made)
            store.end(block, kept)
        yield from _unpacked(kept)


def _packed(samples: list[list[Sample]]) -> dict[str, Tensor]:
    """Candidates of several crystals as tensors."""
    every = [s for few in samples for s in few]
    energy = [np.nan if s.energy is None else s.energy for s in every]
    crystals = [s.crystal for s in every]
    frac = np.concatenate([np.zeros((0, 3)), *(c.frac_coords for c in crystals)])
    numbers = np.concatenate([np.zeros(0), *(c.atomic_numbers for c in crystals)])
    return {
        "count": torch.tensor([len(few) for few in samples]),
        "atoms": torch.tensor([len(c) for c in crystals], dtype=torch.int64),
        "lattice": torch.tensor(np.array([c.lattice for c in crystals]).reshape(-1, 3, 3)),
        "frac_coords": torch.tensor(frac),
        "atomic_numbers": torch.tensor(numbers.astype(np.int64)),
        "energy": torch.tensor(energy, dtype=torch.float64),
    }


def _unpacked(kept: dict[str, Tensor]) -> list[list[Sample]]:
    sizes = kept["atoms"].tolist()
    parts = zip(
        kept["lattice"].numpy(),
        kept["frac_coords"].split(sizes),
        kept["atomic_numbers"].split(sizes),
        kept["energy"].tolist(),
        strict=True,
    )
    every = iter(
        Sample(Crystal(cell, frac.numpy(), numbers.numpy()), None if np.isnan(energy) else energy)
        for cell, frac, numbers, energy in parts
    )
    return [[next(every) for _ in range(n)] for n in kept["count"].tolist()]


class Clock:
    """Seconds of each stage over all starts of a command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {"starts": 0, "seconds": {}}
        self.starts = known["starts"] + 1
        self.before = dict(known["seconds"])
        self.now: dict[str, float] = {}
        self.began = self.written = time.monotonic()
        self._write()

    def note(self, stage: str, every: float = 0.0) -> None:
        """The time since the last stage ended goes to this one; with `every`, the stage is not over."""
        moment = time.monotonic()
        if every and moment - self.written < every:
            return
        self.now[stage] = moment - self.began
        self.written = moment
        self._write()
        if not every:
            self.before = self.seconds()
            self.now, self.began = {}, moment

    def _write(self) -> None:
        self.path.write_text(json.dumps({"starts": self.starts, "seconds": self.seconds()}))

    def seconds(self) -> dict[str, float]:
        """So far."""
        names = [*self.before, *(n for n in self.now if n not in self.before)]
        return {n: round(self.before.get(n, 0.0) + self.now.get(n, 0.0), 1) for n in names}


def counts(samples: list[list[Sample]], found: Any, wanted: int) -> dict[str, Any]:
    """How many candidates there are, could be compared and are valid."""
    return {
        "samples": sum(map(len, samples)),
        "missing": sum(wanted - len(few) for few in samples),
        "compared": found.compared,
        "failed": found.failed,
        "valid": found.summary()["valid"],
    }


def intervals(found: Any) -> list[dict[str, Any]]:
    """95 % bootstrap intervals of match rate and RMSE over the crystals, all candidates counted."""
    rng = np.random.default_rng(0)
    rows = []
    for k in found.ks:
        best = found.best(k)
        drawn = best[rng.integers(0, len(best), (RESAMPLES, len(best)))]
        matched = np.isfinite(drawn)
        rate = matched.mean(1)
        with np.errstate(invalid="ignore"):
            rmse = np.where(matched, drawn, 0).sum(1) / matched.sum(1)
        bounds = {"match_rate": rate, "rmse": rmse[np.isfinite(rmse)]}
        rows.append(
            {"k": k} | {n: np.quantile(v, [0.025, 0.975]).tolist() for n, v in bounds.items() if len(v)}
        )
    return rows


def write_samples(path: Path, crystals: list[Crystal], samples: list[list[Sample]]) -> None:
    """All candidates with the crystal that they are for; ids are those of the crystals with a number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from facetry.data.crystals import CrystalTable

    named = [
        (c.name, s.energy, s.crystal.replace(name=f"{c.name}_{rank}"))
        for c, few in zip(crystals, samples, strict=True)
        for rank, s in enumerate(few, start=1)
    ]
    table = CrystalTable.from_crystals([crystal for _, _, crystal in named]).to_arrow()
    table = table.append_column("reference", pa.array([name for name, _, _ in named], pa.string()))
    table = table.append_column("energy", pa.array([energy for _, energy, _ in named], pa.float64()))
    pq.write_table(table, path, compression="zstd")


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Those that a receipt can hold: an energy is told of by itself."""
    return {name: v for name, v in options.items() if isinstance(v, str | int | float | bool)}
