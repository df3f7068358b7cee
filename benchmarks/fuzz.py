"""Broken files against the readers: each ends as read or as a named error, in bounded time and memory.

python -m benchmarks.fuzz --count 1000000 --seed 1
python -m benchmarks.fuzz structures --seed 1 --replay 8949

Kinds: `structures` are CIF, POSCAR, extxyz and JSON, parsed in workers as users meet them (the files of
data/cif-zoo too, where FACETRY_DATA has them); `containers` are archives and tables of them; `models` are
model.json, model.safetensors and recipe.toml. A mutant is made anew from its seed and number.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import selectors
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.mutants import mutant

KINDS = ("structures", "containers", "models")
SHARES = {"structures": 0.75, "containers": 0.1, "models": 0.15}
COMMAND = [sys.executable, "-m", "benchmarks.fuzz"]
SECONDS = 30  # for one mutant; a busy machine takes its time
MEMORY = 4 * 1024**3
READ, NAMED, FAULT = "read", "named", "fault"
FAULTS = (
    "could not be read (",  # an exception nobody expected
    "the parser crashed",
    "not read within",
    "needs more memory",
)


class End(NamedTuple):
    """What became of one mutant."""

    number: int
    file: str
    outcome: str
    message: str


# --- seeds -------------------------------------------------------------------------------------


def zoo() -> dict[str, bytes]:
    """The odd structure files of the collection, where it is at hand."""
    for folder in os.environ.get("FACETRY_DATA", "").split(os.pathsep):
        files = sorted((Path(folder) / "cif-zoo").glob("*")) if folder else []
        if files:
            return {path.name: path.read_bytes() for path in files if path.suffix != ".md"}
    return {}


def structure_seeds() -> dict[str, bytes]:
    """One of each format, beside the zoo."""
    import ase.io

    from facetry.crystal import Crystal

    lattice, sites = [[4.1, 0, 0], [0.3, 4.2, 0], [0, 0, 5.0]], [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.1, 0.7]]
    crystal = Crystal(lattice, sites, [55, 17, 8], name="x")
    mixed = crystal.replace(occupancies=[{55: 0.5, 37: 0.25}, 1.0, 0.5])
    text = {f"plain.{suffix}": crystal.to_text(f) for suffix, f in (("cif", "cif"), ("vasp", "poscar"))}
    text |= {"plain.json": crystal.to_text("json"), "plain.extxyz": crystal.to_text("extxyz")}
    text |= {"mixed.json": mixed.to_text("json"), "mixed.cif": mixed.to_text("cif")}
    text["two.json"] = f"[{crystal.to_text('json')}, {mixed.to_text('json')}]"
    text["two.extxyz"] = crystal.to_text("extxyz") * 2
    text["two.cif"] = crystal.to_text("cif") + mixed.to_text("cif")
    text["symmetry.cif"] = (
        "data_salt\n_symmetry_space_group_name_H-M 'F m -3 m'\n_cell_length_a 5.64(1)\n_cell_length_b 5.64\n"
        "_cell_length_c 5.64\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 4\nloop_\n_atom_site_label\n"
        "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
        "Na1 0 0 0 1\nCl1 1/2 0.5 0.5 1\n"
    )
    text["operators.cif"] = text["symmetry.cif"].replace(
        "_symmetry_space_group_name_H-M 'F m -3 m'\n",
        "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n'-x,-y,z'\n'x+1/2,y+1/2,z'\n'-x+1/2,-y+1/2,z'\n",
    )
    text["POSCAR"] = (
        "salt\n1.0\n2.8 2.8 0\n0 2.8 2.8\n2.8 0 2.8\n1 1\nSelective\nCartesian\n0 0 0 T T F\n2.8 2.8 2.8\n"
    )
    for name, kind in (("ase.json", "json"), ("ase.extxyz", "extxyz")):
        stream = io.StringIO()
        ase.io.write(stream, crystal.to_ase(), format=kind)
        text[name] = stream.getvalue()
    seeds = {name: content.encode() for name, content in text.items()}
    seeds["packed.cif.gz"] = gzip.compress(text["plain.cif"].encode(), mtime=0)
    return seeds | zoo()


def container_seeds() -> dict[str, bytes]:
    """Archives and tables of a few structures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    inner = {name: text for name, text in structure_seeds().items() if len(text) < 2000}
    few = dict(list(inner.items())[:6])
    zipped, packed, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in few.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in few.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    columns = {
        "id": ["a", "b", None],
        "atomic_numbers": [[55, 17], [11], [8, 8]],
        "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5], [0.0, 0, 0], [0.0, 0, 0, 0.5, 0.5, 0.5]],
        "lattice": [np.diag([4.0, 4, 4]).ravel().tolist()] * 3,
    }
    pq.write_table(pa.table(columns), table)
    cell = few["plain.cif"].decode().replace('"', '""')
    seeds = {
        "some.zip": zipped.getvalue(),
        "some.tar": packed.getvalue(),
        "some.tar.gz": gzip.compress(packed.getvalue(), mtime=0),
        "some.parquet": table.getvalue(),
        "texts.csv": f'id,cif\na,"{cell}"\nb,"{cell}"\n'.encode(),
        "files.csv": b"file,energy\nnone.cif,1\nsome.zip,2\n",
        "texts.csv.gz": gzip.compress(f'cif\n"{cell}"\n'.encode(), mtime=0),
    }
    return seeds


def model_seeds() -> dict[str, bytes]:
    """Card, weights and recipe of small models, by `model/file`."""
    import torch

    from facetry.card import ModelCard, Target
    from facetry.models import MODELS
    from facetry.training import save_model
    from facetry.training.recipe import load_recipe

    small = {
        "cgcnn": {"channels": 4, "layers": 1},
        "icomformer": {"channels": 4, "layers": 1, "k": 4},
        "crystalformer": {},
        "empnn": {},
    }
    seeds = {}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        for name, options in small.items():
            torch.manual_seed(0)
            model = MODELS[name](**options)
            target = Target(name="energy", unit="eV", mean=-1.5, std=0.5, quantile=0.2)
            targets = [target] if model.job == "predict" else []
            model.card = ModelCard(
                model=name,
                options=model.options,
                graph=model.graph.describe(),
                targets=targets,
                elements=[8, 55],
                domain_threshold=1.0,
                data={"name": "emt-alloys"},
            )
            written = save_model(model, Path(folder) / name)
            for file in ("model.json", "model.safetensors"):
                if (content := (written / file).read_bytes()) and len(content) < 300_000:
                    seeds[f"{name}/{file}"] = content
    for recipe in ("demo", "empnn-perov5"):
        try:
            seeds[f"{recipe}/recipe.toml"] = load_recipe(recipe).to_toml().encode()
        except ValueError:
            continue
    return seeds


SEEDS = {"structures": structure_seeds, "containers": container_seeds, "models": model_seeds}


# --- structures: in the workers of the package ---------------------------------------------------


def structures(seed: int, numbers: Sequence[int]) -> Iterator[End]:
    """Each mutant through `parse_in_workers`; a fault of the parser is an End like any other."""
    from facetry.io import ReadError
    from facetry.io.formats import format_of
    from facetry.io.pool import parse_in_workers
    from facetry.io.sources import Task

    seeds = structure_seeds()
    names, contents = list(seeds), list(seeds.values())

    def tasks() -> Iterator[Task]:
        for number in numbers:
            chosen, content = mutant(contents, seed, number)
            yield Task(f"{number}/{names[chosen]}", format_of(names[chosen]), data=content)

    following, last = iter(numbers), None
    for source, _, result in parse_in_workers(tasks(), 1, SECONDS, MEMORY, None):
        number, file = source.split("/", 1)
        bad = isinstance(result, ReadError)
        reason = result.reason if bad else ""
        outcome = READ if not bad else FAULT if any(text in reason for text in FAULTS) else NAMED
        if int(number) == last and outcome != FAULT:
            continue  # another structure of the same file
        if int(number) != last:
            for before in following:
                if before == int(number):
                    break
                yield End(before, "?", FAULT, "no result at all")
        last = int(number)
        yield End(last, file, outcome, reason)


# --- containers and models: in a process of their own ---------------------------------------------


def attempt(kind: str, file: str, content: bytes, folder: Path, seeds: dict[str, bytes]) -> tuple[str, str]:
    """Outcome and message of reading one mutant in this process."""
    try:
        if kind == "containers":
            path = folder / file
            path.write_bytes(content)
            return _read_container(path)
        return _load(file, content, folder, seeds)
    except MemoryError:
        return FAULT, "MemoryError"
    except Exception as error:
        return FAULT, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _read_container(path: Path) -> tuple[str, str]:
    from facetry.io import ReadError, read_many

    results = [reading.result for reading in read_many(path, workers=0)]
    reasons = [result.reason for result in results if isinstance(result, ReadError)]
    if not results:
        return FAULT, "no result at all"
    unexpected = [reason for reason in reasons if any(text in reason for text in FAULTS)]
    return (FAULT, unexpected[0]) if unexpected else (NAMED, reasons[0]) if reasons else (READ, "")


def _load(file: str, content: bytes, folder: Path, seeds: dict[str, bytes]) -> tuple[str, str]:
    from facetry.training import load
    from facetry.training.checkpoint import ModelError
    from facetry.training.recipe import RecipeError, load_recipe

    model, name = file.split("/")
    place = folder / model
    place.mkdir(exist_ok=True)
    for other in ("model.json", "model.safetensors"):
        if f"{model}/{other}" in seeds:
            (place / other).write_bytes(seeds[f"{model}/{other}"])
    (place / name).write_bytes(content)
    try:
        load_recipe(place / name) if name == "recipe.toml" else load(place)
    except (ModelError, RecipeError) as error:
        return (NAMED, str(error)) if len(str(error).splitlines()) == 1 else (FAULT, f"lines: {error!r}")
    return READ, ""


def child(kind: str, seed: int, numbers: Sequence[int]) -> None:
    """Answer a line for each mutant on stdout."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seeds = SEEDS[kind]()
    names, contents = list(seeds), list(seeds.values())
    _limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        print("ready", file=answers, flush=True)
        for number in numbers:
            chosen, content = mutant(contents, seed, number)
            print(f"{number}\t{names[chosen]}", end="\t", file=answers, flush=True)
            outcome, message = attempt(kind, names[chosen], content, Path(folder), seeds)
            print(f"{outcome}\t{' '.join(message.split())}", file=answers, flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def apart(kind: str, seed: int, numbers: Sequence[int]) -> Iterator[End]:
    """Each mutant in a child; one that kills it or takes too long is named, and the rest goes on."""
    left = list(numbers)
    while left:
        command = [*COMMAND, kind, "--seed", str(seed), "--child"]
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, sys.path)])
        process = subprocess.Popen(
            [*command, f"{left[0]}:{left[-1] + 1}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        try:
            for line in _lines(process):
                number, file, *rest = line.split("\t")
                end = End(int(number), file, *(rest or (FAULT, "it ended the process or took too long")))
                left = [n for n in left if n > end.number]
                yield end
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _lines(process: subprocess.Popen) -> Iterator[str]:
    """Whole lines, then what is left of the last; ends where nothing comes in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        text, started, allowed = "", False, 120.0
        while selector.select(allowed):
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                break
            text += data.decode()
            *lines, text = text.split("\n")
            if not started and lines:
                if lines.pop(0) != "ready":
                    raise RuntimeError("the child did not start")
                started, allowed = True, float(SECONDS)
            yield from lines
        if not started:
            raise RuntimeError("the child did not start")
        if text:
            yield text.rstrip("\t")


def ends(kind: str, seed: int, numbers: Sequence[int]) -> Iterator[End]:
    """What became of these mutants, in order."""
    return structures(seed, numbers) if kind == "structures" else apart(kind, seed, numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=KINDS, help="all three where it is left out")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=int, help="number of one mutant, whose bytes go to stdout")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.kind, given.seed, range(*map(int, given.child.split(":"))))
        return 0
    if given.replay is not None:
        kind = given.kind or "structures"
        _, content = mutant(list(SEEDS[kind]().values()), given.seed, given.replay)
        sys.stdout.buffer.write(content)
        print(*next(iter(ends(kind, given.seed, [given.replay]))), file=sys.stderr)
        return 0
    bad = 0
    for kind in [given.kind] if given.kind else KINDS:
        count = given.count if given.kind else round(SHARES[kind] * given.count)
        found: Counter[str] = Counter()
        started = time.monotonic()
        for end in ends(kind, given.seed, range(count)):
            found[end.outcome] += 1
            if end.outcome == FAULT:
                print(
                    f"{kind} --seed {given.seed} --replay {end.number}: {end.file}: {end.message}", flush=True
                )
        bad += found[FAULT]
        parts = ", ".join(f"{found[name]} {name}" for name in (READ, NAMED, FAULT))
        print(f"{kind}: {count} mutants: {parts}; {time.monotonic() - started:.0f} s", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
