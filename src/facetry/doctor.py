"""Is this installation sound? Versions, devices, data, and a self-test in seconds."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from facetry._version import __version__

REQUIRED = (
    "torch", "numpy", "scipy", "ase", "gemmi", "vesin", "moyopy", "pyarrow", "pydantic", "safetensors",
    "lightning", "matplotlib", "typer",
)  # fmt: skip
OPTIONAL = ("pymatgen-core", "spglib")
INVARIANCE = 1e-9  # relative, float64


@dataclass(frozen=True)
class Check:
    """One self-test: what was measured, and whether that is right."""

    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """What `facetry doctor` found; `ok` is the verdict."""

    versions: dict[str, str | None]
    machine: dict[str, Any]
    data: list[dict[str, Any]]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok} | asdict(self)

    def __str__(self) -> str:
        lines = ["versions"]
        lines += [f"  {name:14s} {version or 'not installed'}" for name, version in self.versions.items()]
        lines += ["machine", *(f"  {name:14s} {value}" for name, value in self.machine.items()), "data"]
        lines += [f"  {entry['folder']}: {entry['found']}" for entry in self.data]
        lines.append("self-test")
        lines += [
            f"  {'ok  ' if c.ok else 'FAIL'} {c.name:24s} {c.detail} ({c.seconds:.2f} s)" for c in self.checks
        ]
        lines.append("all is well" if self.ok else "something is wrong: see FAIL above")
        return "\n".join(lines)


def examine() -> Diagnosis:
    """Look at versions, machine and data, and run the self-tests. Nothing is written outside a temporary
    folder; no test raises, a failure is its result."""
    tests: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("packages", _check_packages),
        ("files round trip", _check_files),
        ("neighbours", _check_neighbours),
        ("rotation, cell choice", _check_symmetry),
        ("model folder round trip", _check_model_folder),
        *((f"same values on {device}", _check_device(device)) for device in _accelerators()),
    ]
    return Diagnosis(_versions(), _machine(), _data(), [_run(name, test) for name, test in tests])


def _run(name: str, test: Callable[[], tuple[bool, str]]) -> Check:
    start = time.perf_counter()
    try:
        ok, detail = test()
    except Exception as error:
        ok, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Check(name, bool(ok), detail, round(time.perf_counter() - start, 3))


# --- what is there ------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    own = {"facetry": __version__, "python": platform.python_version()}
    return own | {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}


def _accelerators() -> list[str]:
    import torch

    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else [])]


def _machine() -> dict[str, Any]:
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    names = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    devices = ["cpu", *(f"{d} ({names[d]})" if d in names else d for d in _accelerators())]
    return {
        "system": platform.platform(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "devices": ", ".join(devices),
    }


def places() -> list[tuple[str, Path]]:
    """The folders that are searched for data, in order, with where they come from."""
    from facetry.data.vault import cache_folder, data_folders

    return [*(("FACETRY_DATA", f) for f in data_folders()), ("cache", cache_folder() / "data")]


def sets_in(folder: Path) -> list[str]:
    """The named sets whose files are all in the folder; hashes are not checked here."""
    from facetry.data import info, list_sets

    found = []
    for name in list_sets():
        manifest = info(name)
        files = [file for key, file in manifest.files.items() if manifest.is_default(key)]
        if files and all((folder / file.path).is_file() for file in files):
            found.append(name)
    return found


def _data() -> list[dict[str, Any]]:
    found = []
    for origin, folder in places():
        names = sets_in(folder)
        text = ", ".join(names) if names else "no named sets" if folder.is_dir() else "folder does not exist"
        found.append({"origin": origin, "folder": str(folder), "sets": names, "found": text})
    return found


# --- self-tests ---------------------------------------------------------------------------------------------


def _check_packages() -> tuple[bool, str]:
    missing = [name for name in REQUIRED if _version(name) is None]
    return not missing, f"missing: {', '.join(missing)}" if missing else f"{len(REQUIRED)} found"


def _perovskite() -> Any:
    """SrTiO3 in a skewed cell of four formula units with every atom off its site."""
    from facetry.crystal import Crystal

    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    ideal = Crystal(3.905 * np.eye(3), sites, [38, 22, 8, 8, 8], name="SrTiO3")
    large = ideal.supercell([[2, 1, 0], [0, 1, 0], [0, 1, 2]])
    shift = 0.01 * np.random.default_rng(0).normal(size=(len(large), 3))
    return large.replace(frac_coords=large.frac_coords + shift)


def _check_files() -> tuple[bool, str]:
    from facetry.crystal import Crystal

    crystal = _perovskite()
    worst = 0.0
    formats = ("cif", "poscar", "extxyz", "json")
    for kind in formats:
        back = Crystal.from_text(crystal.to_text(kind), kind)
        if back.atomic_numbers.tolist() != crystal.atomic_numbers.tolist():
            return False, f"{kind}: other elements came back"
        # CIF and POSCAR may turn the crystal: compare what does not depend on its orientation
        metric = crystal.lattice @ crystal.lattice.T - back.lattice @ back.lattice.T
        shift = back.frac_coords - crystal.frac_coords
        shift = (shift - np.round(shift)) @ crystal.lattice
        worst = max(worst, float(np.abs(metric).max()), float(np.abs(shift).max()))
    return worst < 1e-5, f"{', '.join(formats)}: largest deviation {worst:.1e} Å"


def _check_neighbours() -> tuple[bool, str]:
    """Rock salt has shells of 6, 12 and 8."""
    from facetry import graph
    from facetry.crystal import Crystal

    fcc = 2.82 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    salt = Crystal(fcc, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17], name="NaCl")
    counts = [len(graph.radius([salt], 2.82 * factor).center) for factor in (1.01, 1.42, 1.74)]
    return counts == [12, 36, 52], f"rock salt: {[c // 2 for c in counts]} neighbours, expected [6, 18, 26]"


def _tiny_model() -> Any:
    import torch

    from facetry.models import MODELS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS["icomformer"](layers=2, channels=16, k=8).double().eval()


def _values(model: Any, crystals: list[Any], device: str | None = None) -> np.ndarray:
    from facetry.tasks.predict import predict

    results = predict(model, crystals, device=device)
    if failed := [r.message for r in results if r.status != "ok"]:
        raise RuntimeError(failed[0])
    return np.array([r.value for r in results])


def _check_symmetry() -> tuple[bool, str]:
    crystal = _perovskite()
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    order = rng.permutation(len(crystal))
    moved = crystal.replace(
        lattice=crystal.lattice @ turn.T,
        frac_coords=crystal.frac_coords[order] + rng.normal(size=3),
        atomic_numbers=crystal.atomic_numbers[order],
    )
    others = [moved, crystal.supercell([[1, 1, 0], [0, 1, 3], [0, 0, 1]]), crystal.supercell(2)]
    values = _values(_tiny_model(), [crystal, *others])
    worst = float(np.abs(values[1:] - values[0]).max() / max(abs(values[0]), 1e-3))
    return worst < INVARIANCE, f"relative change of a value {worst:.1e} (limit {INVARIANCE:.0e}, float64)"


def _check_model_folder() -> tuple[bool, str]:
    from facetry.card import ModelCard, Target
    from facetry.training import load_model, save_model

    model, crystal = _tiny_model(), _perovskite()
    model.card = ModelCard(
        model="icomformer",
        options=model.options,
        graph=model.graph.describe(),
        targets=[Target(name="test", unit="eV", mean=1.0, std=2.0)],
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
        difference = float(np.abs(_values(load_model(folder), [crystal]) - _values(model, [crystal])).max())
    return difference == 0, f"{size / 1e6:.1f} MB, difference {difference:.1e}"


def _check_device(device: str) -> Callable[[], tuple[bool, str]]:
    def check() -> tuple[bool, str]:
        model, crystal = _tiny_model().float(), _perovskite()
        there, here = _values(model, [crystal], device), _values(model, [crystal])
        difference = float(np.abs(there - here).max())
        return difference < 1e-4, f"difference {difference:.1e} (limit 1e-4, float32)"

    return check
