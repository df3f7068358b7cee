"""Tables of results that grow row by row on disk: what is finished stays, whatever happens next."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SUFFIXES = (".csv", ".jsonl", ".parquet")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TableWriteError(OSError):
    """The table could not be written further; the text says how many rows it holds."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


def check_suffix(path: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The path, if it can be written: a known suffix in a folder that is there. Raises ValueError."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{path}: expected a name ending in {', '.join(suffixes)}, got {path.suffix or 'none'!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file in it")
    return path


class TableWriter:
    """Writes rows to a .csv, .jsonl or .parquet file; every call of `write` reaches the file at once.

    A write that fails (full disk) leaves exactly the whole rows of before and raises TableWriteError. A
    Parquet file has its index at the end, so its rows are collected in `NAME.rows.csv` and converted on
    `close`; after a kill they are found there.

    Args:
        path: the file; one that exists is replaced when the first row is written.
        columns: name to type, one of "text", "int", "float", "bool".

    `rows` counts what is written, `growing` is the file that holds it until `close`.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str]) -> None:
        self.path = check_suffix(path)
        self.columns = dict(columns)
        self.rows = 0
        self._format = self.path.suffix.lower()
        self.growing = (
            self.path.with_name(self.path.name + ".rows.csv") if self._format == ".parquet" else self.path
        )
        self._stream: io.FileIO | None = None
        self._good = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._stream is not None:
            self._stream.close()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; missing columns are left empty."""
        if self._stream is None:
            self._open()
        if rows:
            text = (
                json_lines(rows, self.columns) if self._format == ".jsonl" else csv_text(rows, self.columns)
            )
            self._append(text)
            self.rows += len(rows)

    def close(self) -> None:
        """Finish the file; without any row it has its header only."""
        if self._stream is None:
            self._open()
        assert self._stream is not None
        self._stream.close()
        if self._format == ".parquet":
            try:
                _to_parquet(self.growing, self.path, self.columns)
            except OSError as error:
                raise TableWriteError(
                    error.errno, f"{self._explain(self.path, error)} in {self.growing}"
                ) from error
            self.growing.unlink()

    def _open(self) -> None:
        try:
            self._stream = open(self.growing, "wb", buffering=0)  # noqa: SIM115 closed in close and __exit__
        except OSError as error:
            raise TableWriteError(error.errno, self._explain(self.growing, error)) from error
        if self._format != ".jsonl":
            self._append(csv_text([], self.columns, header=True))

    def _append(self, text: str) -> None:
        assert self._stream is not None
        data = memoryview(text.encode())
        try:
            while data:
                data = data[self._stream.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._good)
            self._stream.close()
            raise TableWriteError(error.errno, self._explain(self.growing, error)) from error
        self._good += len(text.encode())

    def _explain(self, path: Path, error: OSError) -> str:
        why = "no space left on the disk" if error.errno in _FULL else error.strerror or str(error)
        kept = f"; the {self.rows} finished rows are kept" if self.rows else ""
        return f"{path}: could not be written ({why}){kept}"


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Iterable[str], header: bool = False) -> str:
    """Rows as CSV text: empty for None, true and false, ten digits."""
    names = list(columns)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def json_lines(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Rows as one JSON object per line."""
    names = list(columns)
    return "".join(json_object(row, names) + "\n" for row in rows)


def json_object(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The given columns of a row as JSON; what is not finite becomes null."""
    return json.dumps({name: _finite(row.get(name)) for name in columns}, ensure_ascii=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_parquet(rows: Path, path: Path, columns: Mapping[str, str]) -> None:
    """Stream a CSV into a Parquet file that appears under its name when it is complete."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    temporary = path.with_name(f".{path.name}.part")
    convert = pyarrow.csv.ConvertOptions(column_types=schema, strings_can_be_null=False)
    try:
        with (
            pyarrow.csv.open_csv(rows, convert_options=convert) as reader,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
