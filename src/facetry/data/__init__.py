"""Data: named sets and your own files, as crystals with targets, divided for training.

dataset("perov5", target="heat_all")     a named set
dataset("my/folder")                     structures and a CSV
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from facetry.data.crystals import CrystalTable

# Before the function `dataset` is defined: a first import of the module later would take its name over.
from facetry.data.dataset import Dataset, Extra, Splits, exchange_parts, limit_splits, match_names

__all__ = [
    "SETS",
    "CrystalTable",
    "Dataset",
    "Extra",
    "Splits",
    "dataset",
    "get",
    "import_set",
    "info",
    "is_named",
    "list_sets",
    "resolve",
]

SETS: dict[str, str] = {
    "aflow_agl": "aflow_agl",
    "carbon24": "carbon24",
    "curated_cofs": "curated_cofs",
    "emt-alloys": "emt-alloys",
    "jarvis_dft3d_subset": "jarvis_dft3d_subset",
    "jarvis_vacancy": "jarvis_vacancy",
    "jdft2d": "mb_jdft2d",
    "matbench_jdft2d": "mb_jdft2d",
    "mb_jdft2d": "mb_jdft2d",
    "mlearn_ff": "mlearn_ff",
    "mp20": "mp20",
    "mp40_sample": "mp40_sample",
    "mp_dielectric": "mp_dielectric",
    "mp_elastic": "mp_elastic",
    "mp_piezo": "mp_piezo",
    "mpts52": "mpts52",
    "perov5": "perov5",
    "wbm_sample": "wbm_sample",
}
"""Names and aliases of the sets -> file in `manifests/` (without .toml)."""


def resolve(name: str) -> str:
    """The set that a name or an alias means; case, - and _ do not matter.

    Raises ValueError naming the nearest ones."""
    found = _known(name)
    if found is not None:
        return found
    near = get_close_matches(name.lower(), SETS, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"there is no data set and no file or folder {name!r}{hint}; data sets: {', '.join(list_sets())}"
    )


def _known(name: str) -> str | None:
    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    return {plain(known): file for known, file in SETS.items()}.get(plain(name))


def is_named(name: str | PathLike[str]) -> bool:
    """Whether `dataset` takes a name for a named set, and not for the path of your own files."""
    return (isinstance(name, str) and _known(name) is not None) or not Path(name).expanduser().exists()


def list_sets() -> list[str]:
    """The named sets, without their aliases."""
    return sorted(set(SETS.values()))


def info(name: str) -> Any:
    """The manifest of a named set; `.describe()` is its card in words, `.to_dict()` is JSON-able."""
    from facetry.data.manifest import load_manifest

    return load_manifest(resolve(name))


def get(name: str) -> dict[str, Path]:
    """Make the files of a named set present, checked: where each one is.

    Downloads or makes what is missing. A part that is only on offer elsewhere (the official train of mp20) is
    tried too, but only a file that `dataset` cannot do without is an error.
    """
    from facetry.data import vault
    from facetry.data.named import generate

    manifest = info(name)
    paths = {}
    for key in manifest.files:
        try:
            paths[key] = generate(manifest, key) if manifest.generated else vault.find(manifest, key)
        except vault.DataNotFound as error:
            if manifest.is_default(key):
                raise
            vault.log.warning("%s", error)
    return paths


def import_set(name: str, path: str | Path) -> list[Path]:
    """Put hand-downloaded files of a named set into the cache, checked; see `vault.import_files`."""
    from facetry.data.vault import import_files

    return import_files(info(name), path)


def dataset(
    name: str | Path,
    target: str | Sequence[str] | None = None,
    limit: int | Mapping[str, int] | None = None,
    seed: int = 0,
    fold: int | None = None,
    parts: Mapping[str, str] | None = None,
    match: str | None = None,
    split: str | Path | None = None,
    **own: Any,
) -> Splits:
    """Crystals and targets of a named set or of your own files, divided into train, val and test.

    `name` is a named set, or the path of a folder with a CSV, of a .csv or of a .parquet. `target`: one or
    several column names; None is the default target of a named set, or every column of numbers of your own;
    an empty list is none. `split` is a CSV with the columns id and split (train, val, test) that divides
    the crystals instead, such as `facetry audit --split-by` writes. `limit` keeps a random part, see
    `limit_splits`. `fold` chooses one fold of a set that is evaluated by cross-validation. `parts` lets
    parts change places, such as {"train": "val", "val": "train"}; `match` is a pattern with * and ? for the
    names of the crystals to take. For your own files `fractions`, `group`, `tasks` and `classes` may
    follow, see `tables.own_splits`.

    Raises ValueError naming the nearest set for a name that is neither a set nor a path; DataNotFound with
    every place tried when the files of a set are missing; TableError for a mistake in a table.
    """
    if is_named(name):
        if own:
            raise ValueError(f"{', '.join(own)}: only for your own files, {name} is a named set")
        from facetry.data.named import named_splits

        splits = named_splits(info(str(name)), target, fold)
    else:
        if fold is not None:
            raise ValueError(f"{name}: your own files have no folds; leave fold out")
        from facetry.data.tables import own_splits

        splits = own_splits(Path(name), target, seed, **own)
    if split is not None:
        from facetry.data.division import divide_by

        if fold is not None:
            raise ValueError(f"{name}: split divides the whole set; leave fold out")
        splits = divide_by(splits, split)
    splits = limit_splits(match_names(exchange_parts(splits, parts), match), limit, seed)
    origin = {"name": str(name), "target": target, "limit": limit, "seed": seed, "fold": fold, **own}
    chosen = {"parts": parts, "match": match, "split": None if split is None else str(split)}
    origin |= {key: value for key, value in chosen.items() if value is not None}
    folds = [replace(f, origin=origin | {"fold": i}) for i, f in enumerate(splits.folds)]
    return replace(splits, origin=origin, folds=folds)
