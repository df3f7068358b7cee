"""Rows of a table on a terminal, as CSV or as JSON."""

from __future__ import annotations

import sys
from typing import Any

from facetry.cli.common import text_table


def tally(count: dict[str, int]) -> str:
    """`3 rows: 2 ok, 1 failed`."""
    parts = [f"{count[name]} {name}" for name in ("ok", "kept", "skipped", "failed") if name in count]
    rows = sum(count.values())
    return f"{rows} row{'s' * (rows != 1)}: {', '.join(parts)}"


class Printer:
    """Rows on stdout: a JSON array with a row per line, CSV, or aligned text on a terminal."""

    def __init__(self, columns: list[str], as_json: bool, to_file: bool) -> None:
        self.columns, self.as_json = columns, as_json
        self.silent = to_file and not as_json
        self.aligned = sys.stdout.isatty() and not as_json
        self.first = True

    def write(self, rows: list[dict[str, Any]]) -> None:
        """More rows; the first call writes the header."""
        from facetry.tasks.table_writer import csv_text, json_object

        if self.silent or not rows:
            return
        if self.as_json:
            lines = [json_object(row, self.columns) for row in rows]
            print(("[\n" if self.first else ",\n") + ",\n".join(lines), end="", flush=True)
        elif self.aligned:
            shown = [c for c in self.columns if c not in ("name", "atoms")]
            print(text_table(rows, shown), flush=True)
        else:
            print(csv_text(rows, self.columns, header=self.first), end="", flush=True)
        self.first = False

    def close(self) -> None:
        """End what `write` began."""
        if self.as_json:
            print("[]" if self.first else "\n]")
