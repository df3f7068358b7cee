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

from facetry.io.errors import one_line

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


def growing_file(path: Path) -> Path:
    """Where the rows of a table are until it is complete."""
    return path.with_name(path.name + ".rows.csv") if path.suffix.lower() == ".parquet" else path


def mark_of(path: Path) -> Path:
    """The file that is there as long as a table is not complete."""
    return path.with_name(path.name + ".unfinished")


class TableWriter:
    """Writes rows to a .csv, .jsonl or .parquet file; every call of `write` reaches the file at once.

    A write that fails (full disk) leaves exactly the whole rows of before and raises TableWriteError. A
    Parquet file has its index at the end, so its rows are collected in `NAME.rows.csv` and converted on
    `close`; after a kill they are found there.

    Args:
        path: the file; one that exists is replaced when the first row is written.
        columns: name to type, one of "text", "int", "float", "bool".

        about: what the rows depend on besides their inputs; kept in `NAME.unfinished` from the first row
            until `close`, so that who goes on with the table knows.
        kept: bytes of `growing` that stay, of a table to go on with; 0 replaces it.

    `rows` counts what is written, `growing` is the file that holds it until `close`.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, str],
        about: Mapping[str, Any] | None = None,
        kept: int = 0,
    ) -> None:
        self.path = check_suffix(path)
        self.columns = dict(columns)
        self.about = about
        self.rows = 0
        self._format = self.path.suffix.lower()
        self.growing = growing_file(self.path)
        self._stream: io.FileIO | None = None
        self._good = kept

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
        if self.about is not None:
            mark_of(self.path).unlink(missing_ok=True)

    def _open(self) -> None:
        try:
            mode = "r+b" if self._good else "wb"
            self._stream = open(self.growing, mode, buffering=0)  # noqa: SIM115 closed in close and __exit__
            if self._good:
                self._stream.truncate(self._good)
                self._stream.seek(self._good)
            if self.about is not None:  # only now: the rows of an older table are gone
                mark_of(self.path).write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise TableWriteError(error.errno, self._explain(self.growing, error)) from error
        if self._format != ".jsonl" and not self._good:
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
    text = json.dumps({name: _finite(row.get(name)) for name in columns}, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()  # names of files need not be text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return one_line(value) if isinstance(value, str) else str(value)


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
