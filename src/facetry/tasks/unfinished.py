"""Go on with a table that a kill left unfinished: no row lost, none doubled, the same bits at the end.

    out.csv             whole rows, perhaps half of one behind them
    out.csv.unfinished  what they depend on: model and options (JSON); there until the table is complete

The table is cut behind its last whole chunk, the crystals that were worked on together, so that the rest
is put together as in a run that nothing stopped.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from facetry.tasks.inference import Limits, whole_chunks
from facetry.tasks.table_writer import growing_file, mark_of


@dataclass(frozen=True)
class Finished:
    """What an earlier call did: `count` rows by status, of `inputs` inputs, in the first `size` bytes.

    `complete` says that nothing is left to do; `size` is 0 where there is nothing to go on with.
    """

    path: Path
    per_input: int = 1
    inputs: int = 0
    size: int = 0
    complete: bool = False
    count: dict[str, int] = field(default_factory=dict)

    def sources(self) -> Iterator[str]:
        """The source of each input, in order."""
        if self.inputs:
            with open(growing_file(self.path), "rb") as stream:
                rows = _rows(stream, self.path)
                for row, _ in islice(rows, 0, self.inputs * self.per_input, self.per_input):
                    yield row["source"]


def finished_part(
    path: Path, columns: Mapping[str, str], about: Mapping[str, Any], per_input: int, limits: Limits
) -> Finished:
    """The rows to keep of a table that is to have these columns, with `per_input` rows for every input.

    Raises ValueError where the table was begun with something else than `about` says.
    """
    mark, growing = mark_of(path), growing_file(path)
    if path.suffix.lower() == ".parquet" and path.exists() and not growing.exists():
        mark.unlink(missing_ok=True)  # the kill came between the last two steps
    if not mark.exists():
        if not path.exists() or not path.stat().st_size:
            return Finished(path)
        _check_columns(path, columns)
        return Finished(path, complete=True, count=_count_all(path))
    before = _read_mark(mark)
    if before is None or not growing.exists():
        return Finished(path)
    for key in dict.fromkeys([*before, *about]):
        if before.get(key) != about.get(key):
            raise ValueError(
                f"{path}: its rows were made with {key} {_shown(before.get(key))}, expected the same, came "
                f"{_shown(about.get(key))}; give that again, or begin anew without --resume"
            )
    _check_columns(growing, columns)
    with open(growing, "rb") as stream:
        last_of_each = islice(_rows(stream, path), per_input - 1, None, per_input)
        inputs = whole_chunks((int(row["atoms"] or 0) for row, _ in last_of_each), limits)
    count: Counter[str] = Counter()
    size = 0
    with open(growing, "rb") as stream:
        for row, end in islice(_rows(stream, path), inputs * per_input):
            count[row["status"]] += 1
            size = end
    return Finished(path, per_input, inputs, size, count=dict(count))


def fingerprint(folder: Path) -> str:
    """What changes with the card or the weights of the model in a folder."""
    digest = hashlib.sha256()
    for name in ("model.json", "model.safetensors"):
        with open(folder / name, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _check_columns(path: Path, columns: Mapping[str, str]) -> None:
    """Raises ValueError for a table with other columns than these, or that is no such table."""
    wanted = list(columns)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            found = pq.read_schema(path).names
        else:
            with open(path, "rb") as stream:
                line = stream.readline()
            if not line.endswith(b"\n"):  # the kill came in the middle of it
                return
            found = list(json.loads(line)) if path.suffix.lower() == ".jsonl" else _cells(line)
    except (ValueError, TypeError, OSError, csv.Error) as error:
        raise ValueError(f"{path}: no table to go on with ({error}); choose another name with -o") from None
    if found != wanted:
        raise ValueError(
            f"{path}: expected a table with the columns {', '.join(wanted)}, found {', '.join(found)[:200]}; "
            "it is of another model or command: choose another name with -o"
        )


def _read_mark(mark: Path) -> dict[str, Any] | None:
    """None where the kill came while it was written: then there is no row yet."""
    try:
        before = json.loads(mark.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return before if isinstance(before, dict) else None


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def _rows(stream: BinaryIO, path: Path) -> Iterator[tuple[dict[str, str], int]]:
    """The whole rows of a growing table and where each ends, in bytes; half a line is no row."""
    as_json = path.suffix.lower() == ".jsonl"
    end, names = 0, None
    for line in stream:
        if not line.endswith(b"\n"):
            return
        end += len(line)
        if as_json:
            yield json.loads(line), end
        elif names is None:
            names = _cells(line)
        else:
            yield dict(zip(names, _cells(line), strict=True)), end


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]))


def _count_all(path: Path) -> dict[str, int]:
    """Rows of a complete table by status."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return dict(Counter(pq.read_table(path, columns=["status"]).column("status").to_pylist()))
    with open(path, "rb") as stream:
        return dict(Counter(row["status"] for row, _ in _rows(stream, path)))
