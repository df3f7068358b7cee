"""Public functions of the package that no test runs, from a coverage report in JSON.

    python tools/never_run.py coverage.json

A function counts as run when a line of its body was. Ends with 1 where one was not.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions, and the public methods and properties of public classes, below a node."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{inside}{child.name}.")
        else:
            yield f"{inside}{child.name}", child


def body(function: ast.FunctionDef) -> set[int]:
    """Lines of a function's statements, its docstring left out; empty where it only declares."""
    statements = function.body[ast.get_docstring(function) is not None :]
    if all(isinstance(s, ast.Raise | ast.Pass) or ast.unparse(s) == "..." for s in statements):
        return set()  # abstract: nothing to run
    return {line for s in statements for line in range(s.lineno, (s.end_lineno or s.lineno) + 1)}


def never_run(report: dict) -> list[str]:
    """Path and name of each public function without a line that was run."""
    found = []
    for path, lines in sorted(report["files"].items()):
        run = set(lines["executed_lines"])
        for name, function in functions(ast.parse(Path(path).read_text(encoding="utf-8"))):
            if (wanted := body(function)) and not wanted & run:
                found.append(f"{path}:{function.lineno} {name}")
    return found


if __name__ == "__main__":
    silent = never_run(json.loads(Path(sys.argv[1]).read_text()))
    print(f"{len(silent)} public functions that no test runs", *silent, sep="\n  ")
    sys.exit(bool(silent))
