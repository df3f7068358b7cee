"""Are structures of a test set found again from their formulas alone? A receipt.

    python -m benchmarks.csp MODEL --data perov5 --limit 500 --samples 20 -o runs/found
    python -m benchmarks.csp --method template --data-train perov5 --data perov5 --limit 500 -o runs/templates

Every crystal is asked for by the atoms of its cell; the candidates are in the order of their energies, or of
the method. `--limit` crystals are drawn with a seed of its own, so that methods see the same ones. Killed,
the same command goes on. Into the folder go the candidates (samples.parquet, which `facetry match` reads
too), the tables of the matches, and receipt.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DRAW = 0  # seed of the choice of crystals
RESAMPLES = 1000


@dataclass(frozen=True)
class Sample:
    """One candidate of one test crystal."""

    crystal: Any
    energy: float | None


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Samples, matches, scores; the receipt is written and returned."""
    options = _options(arguments)
    import torch

    import facetry
    from benchmarks.csp_limits import limits
    from facetry.tasks.sampling_store import FOLDER

    if options.threads:
        torch.set_num_threads(options.threads)
    splits = facetry.dataset(options.data, target=[])
    part = getattr(splits, options.split).crystals
    rows = chosen_rows(len(part), options.limit)
    crystals = [part[int(row)] for row in rows]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / "times.json")
    method, told = make_method(options)
    samples = list(_sampled(method, crystals, rows, options, out, told, clock))
    clock.note("sampling")
    write_samples(out / "samples.parquet", crystals, samples)
    found = facetry.match(
        crystals,
        [[s.crystal for s in few] for few in samples],
        workers=options.workers,
        time_limit=options.time_limit,
        progress=_progress("pairs matched"),
    )
    found.write(out)
    clock.note("matching")
    receipt = {
        "command": shlex.join(["python", "-m", "benchmarks.csp", *(arguments or sys.argv[1:])]),
        "method": told,
        "data": {
            "name": options.data, "split": options.split, "hash": splits.hash, "of": len(part),
            "crystals": len(crystals), "seed": DRAW, "part": _hash([c.name for c in crystals]),
        },
        "samples": options.samples,
        "seed": options.seed,
        "counts": counts(samples, found, options.samples),
        "scores": found.summary()["scores"],
        "intervals": intervals(found),
    }  # fmt: skip
    if hasattr(method, "model"):
        energies = [[s.energy for s in few] for few in samples]
        receipt["limits"] = limits(method, crystals, energies, np.isfinite(found.best(max(found.ks))))
        clock.note("limits")
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    receipt |= {
        "seconds": round(sum(clock.seconds().values()), 1), "stages": clock.seconds(), "starts": clock.starts
    }  # fmt: skip
    receipt |= _machine(method)
    (out / "receipt.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
    print(found, file=sys.stderr)
    return receipt


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", help="a trained energy; none for --method")
    parser.add_argument("--method", choices=["rs", "template"], help="instead of a model")
    parser.add_argument("--data", required=True, help="named set")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--data-train", help="where templates come from")
    parser.add_argument("--train-part", default="train", help="which part of it")
    parser.add_argument("--limit", type=int, help="so many crystals, chosen at random")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the method"
    )
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default=None)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, help="processes that match")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for a pair")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.method is None):
        parser.error("expected a model, or --method rs or template")
    if options.method == "template" and options.data_train is None:
        parser.error("--method template: expected --data-train")
    if options.samples < 1:
        parser.error("--samples: expected at least 1")
    return options


def chosen_rows(count: int, limit: int | None) -> np.ndarray:
    """Which crystals: a random choice that depends on nothing but these numbers, in ascending order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(DRAW).permutation(count)[:limit])


def make_method(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The method, and what a receipt says of it."""
    from facetry.cli.generate import _options as parsed
    from facetry.tasks.generate import make_method

    own = parsed(options.set)
    if options.method == "template":
        own |= {"data": options.data_train, "part": options.train_part}
    if options.method is not None:
        return make_method(options.method, **own), {"name": options.method, "options": own}
    given = {"batch_size": options.batch_size, "device": options.device}
    own |= {name: value for name, value in given.items() if value is not None}
    method = make_method(options.model, **own)
    card = method.model.card
    trained = {} if card is None else {"data": card.data, "version": card.version, "created": card.created}
    parameters = sum(p.numel() for p in method.model.parameters())
    told = {"name": method.model.name, "model": Path(options.model).name, "parameters": parameters}
    return method, told | {"trained": trained, "options": own, "sampler": method.settings()}


def _sampled(
    method: Any,
    crystals: list[Any],
    rows: np.ndarray,
    options: argparse.Namespace,
    out: Path,
    told: dict[str, Any],
    clock: Clock,
) -> Iterator[list[Sample]]:
    """The candidates of every crystal, lowest energy first."""
    from facetry.chemistry import Formula

    formulas = [Formula.of(c.atomic_numbers) for c in crystals]
    show = _progress("chain steps" if hasattr(method, "sample") else "crystals")
    if hasattr(method, "sample"):
        from facetry.tasks.energy_chains import Job
        from facetry.tasks.sampling_store import FOLDER, SamplingStore

        settings = {
            "sampler": told["sampler"], "seed": options.seed, "samples": options.samples,
            "data": options.data, "split": options.split, "crystals": _hash([c.name for c in crystals]),
        }  # fmt: skip
        store = SamplingStore(out, settings, resume=(out / FOLDER / "sampling.json").exists())
        jobs = [Job(f, options.samples, int(row)) for f, row in zip(formulas, rows, strict=True)]

        def watch(done: int, total: int) -> None:
            clock.note("sampling", every=30)
            show(done, total)

        for samples in method.sample(jobs, options.seed, store, watch):
            yield [Sample(s.crystal, s.energy) for s in samples]
        return
    from facetry.tasks.generate import Maker, NothingFound

    for number, (formula, row) in enumerate(zip(formulas, rows, strict=True), start=1):
        maker = Maker(method, options.samples, options.seed + int(row), formula.atoms)
        (made,) = maker.over([formula])
        show(number, len(formulas))
        yield [] if isinstance(made, NothingFound) else [Sample(g.crystal, g.energy) for g in made]


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


def write_samples(path: Path, crystals: list[Any], samples: list[list[Sample]]) -> None:
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


def _machine(method: Any) -> dict[str, Any]:
    from facetry.training import receipt

    device = method.model.device if hasattr(method, "model") else None
    return {
        "hardware": receipt.hardware(device),
        "software": receipt.software(),
        "source": receipt.commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def _progress(what: str) -> Any:
    from facetry.cli.common import Progress

    line = Progress(what)

    def show(done: int, total: int) -> None:
        line.total = total
        line.step(done - line.done)
        if done >= total:
            line.close()

    return show


if __name__ == "__main__":
    main()
