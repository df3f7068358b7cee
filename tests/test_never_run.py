"""The tool that lists public functions which no test runs finds them, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "never_run.py"
SOURCE = '''def run():
    """Its docstring is no line that was run."""
    return 1


def silent():
    """This one."""
    return 2


class Thing:
    @property
    def size(self):
        return 3

    def abstract(self):
        raise NotImplementedError

    def _own(self):
        return 4
'''


def test_silent_functions_are_found(tmp_path):
    if not TOOL.is_file():
        pytest.skip("needs the folder tools/ of a clone")
    spec = importlib.util.spec_from_file_location("never_run", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    defined = [1, 3, 6, 7, 11, 12, 13, 16, 19]  # lines that importing runs, and the body of `run`
    report = {"files": {str(path): {"executed_lines": defined}}}
    assert tool.never_run(report) == [f"{path}:6 silent", f"{path}:13 Thing.size"]
    report["files"][str(path)]["executed_lines"] += [8, 14]
    assert tool.never_run(report) == []
