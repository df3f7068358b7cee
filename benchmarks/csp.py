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
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Samples, matches, scores; the receipt is written and returned."""
    options = _options(arguments)
    import torch

    import facetry
    from benchmarks.csp_limits import limits
    from facetry.tasks.rediscover import finished, rediscover

    if options.threads:
        torch.set_num_threads(options.threads)
    splits = facetry.dataset(options.data, target=[])
    method, told = make_method(options)
    found = rediscover(
        method,
        getattr(splits, options.split).crystals,
        options.out,
        told=told,
        data={"name": options.data, "split": options.split, "hash": splits.hash},
        limit=options.limit,
        count=options.samples,
        seed=options.seed,
        workers=options.workers,
        time_limit=options.time_limit,
        progress=_progress(),
    )
    more: dict[str, Any] = {}
    if hasattr(method, "model"):
        energies = [[s.energy for s in few] for few in found.samples]
        matched = np.isfinite(found.matches.best(max(found.matches.ks)))
        more["limits"] = limits(method, found.crystals, energies, matched)
        found.clock.note("limits")
    device = method.model.device if hasattr(method, "model") else None
    command = shlex.join(["python", "-m", "benchmarks.csp", *(arguments or sys.argv[1:])])
    receipt = finished(found, options.out, device, command=command, **more)
    print(found.matches, file=sys.stderr)
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


def make_method(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The method, and what a receipt says of it."""
    import facetry
    from facetry.cli.generate import options_of as parsed
    from facetry.tasks.rediscover import method_and_card

    own = parsed(options.set)
    if options.method == "template":
        own |= {"data": options.data_train, "part": options.train_part}
    if options.method is not None:
        method, _, told = method_and_card(options.method, **own)
        return method, told
    own |= {"batch_size": options.batch_size, "device": options.device}
    method, _, told = method_and_card("model", facetry.load(options.model), **own)
    return method, told | {"model": Path(options.model).name}


def _progress() -> Any:
    from facetry.cli.common import Progress

    lines: dict[str, Progress] = {}

    def show(what: str, done: int, total: int) -> None:
        line = lines.setdefault(what, Progress(what))
        line.total = total
        line.step(done - line.done)
        if done >= total:
            line.close()

    return show


if __name__ == "__main__":
    main()
