"""Data: named sets and your own files, as crystals with targets, divided for training.

dataset("perov5", target="heat_all")     a named set
dataset("my/folder")                     structures and a CSV
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facetry.data.dataset import Splits

__all__ = ["SETS", "dataset", "get", "import_set", "info", "list_sets", "resolve"]

SETS: dict[str, str] = {
    "perov5": "perov5",
}
"""Names and aliases of the sets -> file in `manifests/` (without .toml)."""


def resolve(name: str) -> str:
    """The set that a name or an alias means, in any case, with - or _. Raises KeyError naming the nearest."""
    key = name.lower().replace("-", "_")
    for known, manifest in SETS.items():
        if known.replace("-", "_") == key:
            return manifest
    near = get_close_matches(key, SETS, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise KeyError(f"there is no data set {name!r}{hint}; known: {', '.join(list_sets())}")


def list_sets() -> list[str]:
    """The named sets, without their aliases."""
    return sorted(set(SETS.values()))


def info(name: str) -> Any:
    """The manifest of a named set; `.describe()` is its card in words, `.to_dict()` is JSON-able."""
    from facetry.data.manifest import load_manifest

    return load_manifest(resolve(name))


def dataset(
    name: str | Path,
    target: str | Sequence[str] | None = None,
    limit: int | Mapping[str, int] | None = None,
    seed: int = 0,
    fold: int | None = None,
) -> Splits:
    """Crystals and targets of a named set or of your own files, divided into train, val and test.

    `target`: one or several column names; None is the default target of a named set, or every column of
    numbers of your own. `limit` keeps a random part, see `limit_splits`. `fold` chooses one fold of a set
    that is evaluated by cross-validation.
    """
    from facetry.data.dataset import limit_splits, named_splits

    splits = named_splits(info(str(name)), target, fold)
    return limit_splits(splits, limit, seed)
