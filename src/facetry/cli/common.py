"""What all commands share: errors in one line, progress on a terminal, arguments and options."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

OK, OUR_FAULT, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
_SAID_BY_US = (ValueError, TypeError, LookupError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder, or name of one.")]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH", help="Files, folders, globs, archives (.zip, .tar.gz), tables (.csv, .parquet)."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that read files.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", metavar="DEVICE")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Crystals worked on at once.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout.")]


class Stopped(Exception):
    """Interrupted from the keyboard; the text says what is left."""


class Mistake(ValueError):
    """A mistake in the call; the text is for the person who made it."""


def report_error(error: BaseException, debug: bool) -> int:
    """One line on stderr and the exit code. With `debug` the traceback before it."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KeyboardInterrupt | Stopped) or type(error).__name__ == "Abort":
        return _say(str(error) or "stopped", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; leave quietly
        return OUR_FAULT
    if hasattr(error, "format_message"):  # of the command line itself: unknown option, missing argument
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "facetry")
        text = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            print(text, file=sys.stderr)
            return MISTAKE
        return _say(f"{text.rstrip('.')} (see {path} --help)", MISTAKE)
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    if _is_mistake(error):
        return _say(text, MISTAKE)
    if isinstance(error, MemoryError):
        return _say("not enough memory; try a smaller --batch-size", OUR_FAULT)
    if isinstance(error, OSError) and text:
        return _say(text, OUR_FAULT)
    hint = "" if debug else "; --debug shows where"
    return _say(f"{type(error).__name__}: {text}{hint}", OUR_FAULT)


def _is_mistake(error: BaseException) -> bool:
    """True for what facetry itself refused, in its own words."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return False
    if type(error).__module__.split(".")[0] == "facetry":
        return not type(error).__name__.endswith("WriteError")
    if not isinstance(error, _SAID_BY_US) or " " not in str(error):
        return False
    innermost = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        innermost = frame
    module = innermost.f_globals.get("__name__", "") if innermost is not None else ""
    return module.split(".")[0] == "facetry"


def _say(text: str, code: int) -> int:
    print(f"facetry: {' '.join(text.split())}", file=sys.stderr)
    return code


def choose_device(name: str) -> str:
    """auto -> the first accelerator there is, else cpu. Raises Mistake for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise Mistake(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise Mistake(f"--device {name}: there is no such device here; try --device auto")
    return name


def free_folder(name: str) -> Path:
    """The name, numbered where it is taken."""
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def set_threads(threads: int | None) -> None:
    """Fix the number of CPU threads if one is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


class Progress:
    """A line on stderr that counts; silent where stderr is no terminal."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = what, total
        self.done = 0
        self.started = self._shown = time.monotonic()
        self.visible = sys.stderr.isatty()

    def step(self, count: int = 1, note: str = "") -> None:
        """Count on; the line is redrawn five times a second at most."""
        self.done += count
        now = time.monotonic()
        if self.visible and now - self._shown >= 0.2:
            self._shown = now
            of = f"/{self.total}" if self.total else ""
            rate = self.done / max(now - self.started, 1e-9)
            print(
                f"\r\x1b[K{self.what} {self.done}{of}, {rate:.0f}/s{note}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Remove the line."""
        if self.visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, counted as they pass."""
        try:
            for item in items:
                yield item
                self.step()
        finally:
            self.close()


def groups(items: Iterable[T], size: int = 64, seconds: float = 1.0) -> Iterator[list[T]]:
    """Consecutive items in lists, closed when full or when `seconds` have passed since the last."""
    group: list[T] = []
    last = time.monotonic()
    for item in items:
        group.append(item)
        if len(group) >= size or time.monotonic() - last > seconds:
            yield group
            group, last = [], time.monotonic()
    if group:
        yield group


def text_table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Aligned columns with a header line, for a terminal."""
    cells = [columns, *([_short(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
