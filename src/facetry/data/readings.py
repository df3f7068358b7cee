"""Structures named by the rows of a table, one crystal a row, each read apart from the others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from facetry.crystal import Crystal

__all__ = ["read_structures", "read_texts"]


def read_structures(paths: Sequence[Path]) -> list[Crystal | str]:
    """For every file its crystal, or why there is none, in order.

    Files are parsed by worker processes under a time limit (`facetry.io.read_many`), so that one that hangs
    or crashes the parser costs its own row only. A file with several structures is refused: the row does not
    say which is meant.
    """
    from facetry.io import ReadError, read_many

    found: list[list[Crystal | str]] = [[] for _ in paths]
    texts = [str(p) for p in paths]
    current = 0
    for source, result in read_many(texts):
        # Results come in the order of the files; a source is the file, with the block behind it if any.
        while not str(source).startswith(texts[current]):
            current += 1
        found[current].append(result.reason if isinstance(result, ReadError) else result)
    return [_only(entries) for entries in found]


def read_texts(texts: Sequence[str], suffix: str) -> list[Crystal | str]:
    """The same for texts: they pass through files, so that a worker process parses them."""
    with tempfile.TemporaryDirectory(prefix="facetry-") as folder:
        paths = [Path(folder) / f"{i:08d}{suffix}" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        return read_structures(paths)


def _only(entries: list[Crystal | str]) -> Crystal | str:
    crystals = [e for e in entries if not isinstance(e, str)]
    if len(crystals) > 1:
        return f"holds {len(crystals)} structures; a row of the table needs exactly one"
    if crystals and len(entries) == 1:
        return crystals[0]
    reasons = [e for e in entries if isinstance(e, str)]
    return reasons[0] if reasons else "holds no structure"
