"""Runs what a page of the documentation shows, in the order of the page.

Blocks ```python share one namespace, lines of ```shell blocks are commands in the page's folder, and a
```text block that follows one of them is what it prints (Python: on stdout): `...` stands for anything,
spaces and line breaks count as one space. HTML comments, which the reader does not see, say the rest:

    <!-- not run: why -->            the next block is only read
    <!-- setup: python code -->      run before what follows; `patch` is a pytest.MonkeyPatch
    <!-- file: NAME -->              the next block is written to that file
    <!-- needs: SET -->              the next block reads a named set; skipped where it is not at hand
    <!-- exit code: N -->            of the last command of the next block
    <!-- numbers within: P % -->     how far the numbers of the next ```text block may be off
    <!-- continues: PAGE -->         starts in the folder that the other page left behind
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_DIRECTIVES = ("not run", "setup", "file", "needs", "exit code", "numbers within", "continues")
_COMMENT = re.compile(r"<!--\s*(" + "|".join(_DIRECTIVES) + r"):\s*(.*?)\s*-->", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass
class Block:
    """A fenced block, or a setup comment, with what the comments before it say."""

    kind: str
    text: str
    line: int
    notes: dict[str, str] = field(default_factory=dict)
    expected: Block | None = None


def blocks(page: Path) -> list[Block]:
    """What a page asks to be done, in order; ```text blocks hang on the block that prints them."""
    source = page.read_text(encoding="utf-8")
    found: list[Block] = []
    notes: dict[str, str] = {}
    printer: Block | None = None
    pattern = re.compile(f"{_FENCE.pattern}|{_COMMENT.pattern}", re.DOTALL | re.MULTILINE)
    for match in pattern.finditer(source):
        language, text, directive, value = match.groups()
        line = source.count("\n", 0, match.start()) + 1
        if directive == "setup":
            found.append(Block("python", textwrap.dedent(value), line))
            printer = None
        elif directive:
            notes[directive] = value
        else:
            block = Block(language, text, line + 1, notes)
            notes = {}
            if language == "text" and printer is not None and "not run" not in block.notes:
                printer.expected = block
            else:
                found.append(block)
            printer = block if language in ("python", "shell") else None
    return found


def continued(page: Path) -> Path | None:
    """The page whose folder this one starts in."""
    match = re.search(r"<!--\s*continues:\s*(\S+)\s*-->", page.read_text(encoding="utf-8"))
    return (page.parent / match[1]).resolve() if match else None


class PageError(AssertionError):
    """A block that does not do what the page says."""


class Runner:
    """One page in one folder. `at_hand(name)` says whether a named set can be read; `patch` is for setups."""

    def __init__(self, page: Path, folder: Path, at_hand: Callable[[str], bool], patch: Any = None) -> None:
        self.page, self.folder, self.at_hand = page, folder, at_hand
        self.namespace: dict = {"__name__": page.stem, "patch": patch}
        self.ran = 0
        self.skipped: list[str] = []

    def run(self) -> None:
        """All blocks in order. Raises PageError naming page and line."""
        for block in blocks(self.page):
            if "file" in block.notes:
                path = self.folder / block.notes["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
                continue
            if block.kind not in ("python", "shell") or "not run" in block.notes:
                continue
            if (name := block.notes.get("needs")) and not self.at_hand(name):
                self.skipped.append(f"line {block.line}: {name}")
                continue
            printed = self._python(block) if block.kind == "python" else self._shell(block)
            self.ran += 1
            if block.expected is not None:
                problem = difference(block.expected, printed)
                if problem:
                    raise PageError(f"{self._place(block.expected)}: {problem}\n--- printed ---\n{printed}")

    def _place(self, block: Block) -> str:
        return f"{self.page.relative_to(ROOT)}:{block.line}"

    def _python(self, block: Block) -> str:
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec")
        with _captured(errors=False) as out:
            exec(code, self.namespace)
        return out.getvalue()

    def _shell(self, block: Block) -> str:
        printed, code = "", 0
        lines = [c for c in commands(block.text) if not c.startswith("#")]
        for number, command in enumerate(lines):
            code, text = self._command(command, code)
            printed += text
            wanted = int(block.notes.get("exit code", "0")) if number == len(lines) - 1 else code
            if code != wanted:
                raise PageError(
                    f"{self._place(block)}: {command}: expected exit code {wanted}, got {code}\n{printed}"
                )
        return printed

    def _command(self, command: str, last: int) -> tuple[int, str]:
        """facetry in this process, which has imported all it needs; anything else by the shell."""
        words = shlex.split(command, comments=True)
        plain = not any(w in ("|", ">", "&&", ";") for w in words)
        if words[0] == "facetry" and plain:
            from facetry.cli import run

            with _captured() as out:
                code = run(words[1:])
            return code, out.getvalue()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"status": str(last)},
        )
        return done.returncode, done.stdout + done.stderr


def commands(text: str) -> Iterator[str]:
    """One command after the other; a backslash joins lines."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            yield line.strip()


@contextlib.contextmanager
def _captured(errors: bool = True) -> Iterator[io.StringIO]:
    """What is printed meanwhile; with `errors` also what goes to stderr, as on a terminal."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out if errors else io.StringIO()):
        yield out


def difference(expected: Block, printed: str) -> str | None:
    """What is wrong with a print, in words; None where it is what the page shows."""
    percent = expected.notes.get("numbers within")
    share = float(percent.rstrip(" %")) / 100 if percent else None
    shown = " ".join(expected.text.split())
    pattern = "".join(_parts(shown, share is not None))
    match = re.fullmatch(rf"\s*{pattern}\s*", printed)
    if match is None:
        return f"expected\n{expected.text}"
    if share is None:
        return None
    wanted = [float(n) for n in _NUMBER.findall(shown.replace("...", " "))]
    for want, came in zip(wanted, map(float, match.groups()), strict=True):
        if abs(want - came) > share * max(abs(want), abs(came)):
            return f"expected {want:g} within {percent}, printed {came:g}"
    return None


def _parts(shown: str, numbers: bool) -> Iterator[str]:
    """The regular expression of a print; with `numbers` each number is a group."""
    for piece in re.split(r"(\.\.\.| )", shown):
        if piece == "...":
            yield r"[\s\S]*?"
        elif piece == " ":
            yield r"\s+"
        elif not numbers:
            yield re.escape(piece)
        else:
            place = 0
            for match in _NUMBER.finditer(piece):
                yield re.escape(piece[place : match.start()]) + f"({_NUMBER.pattern})"
                place = match.end()
            yield re.escape(piece[place:])


def copy_folder(source: Path, target: Path) -> None:
    """What another page left behind, as a start."""
    shutil.copytree(source, target, dirs_exist_ok=True)
