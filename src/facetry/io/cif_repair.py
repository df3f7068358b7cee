"""CIF text to gemmi's document; slips that touch nothing structural are mended and noted.

Mended: bytes that are not UTF-8, Ctrl-Z, a missing data_ heading, broken quotes or stray words on a line
that is about something else (a title, a comment), a loop of bonds or reflections with a wrong count.
Anything in the cell, the symmetry or the sites stays an error.
"""

from __future__ import annotations

import re

import gemmi

from facetry.io.errors import FormatError

__all__ = ["read_document"]

_STRUCTURAL = ("_cell", "_atom_site", "_symmetry", "_space_group", "_chemical_formula_sum")
_MAX_REPAIRS = 20


def read_document(text: str | bytes) -> tuple[gemmi.cif.Document, list[str]]:
    """The parsed text and a note on every repair. Raises FormatError where it is no CIF."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:  # gemmi would hand on what is no text
            text = text.decode("latin-1")
    try:
        return gemmi.cif.read_string(text, 0), []
    except (ValueError, RuntimeError, UnicodeError) as error:
        message = str(error)
    if not text.strip("\x00\x1a\ufeff \t\r\n"):
        raise FormatError("the file is empty")
    notes: list[str] = []
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\x1a" in text:
        text = text.replace("\x1a", " ")
        notes.append("Ctrl-Z bytes ignored")
    if "\x00" in text:
        raise FormatError("binary data, not a CIF text")
    # accents and primes are legal only inside quotes; gemmi stops at them elsewhere, as in a label
    text = text.encode("ascii", "replace").decode("ascii")
    for _ in range(_MAX_REPAIRS):
        try:
            return gemmi.cif.read_string(text, 0), notes
        except (ValueError, RuntimeError) as error:
            message = str(error)
        mended = _mend(text, message, notes)
        if mended is None or mended == text:
            break
        text = mended
    raise FormatError(f"no valid CIF: {_plain(message)}")


def _mend(text: str, message: str, notes: list[str]) -> str | None:
    """The text with the first slip mended, None where it must not or cannot be."""
    match = re.search(r":(\d+):(\d+)\(\d+\):?\s*(.*)", message, re.DOTALL)
    if not match:
        return None
    number, what = int(match.group(1)), match.group(3)
    lines = text.split("\n")
    line = lines[number - 1] if number <= len(lines) else ""
    if "data_" in what and "expected" in what:
        if any(re.match(r"\s*data_", other, re.IGNORECASE) for other in lines):
            return None
        notes.append("no data_ heading; one was assumed")
        return "data_\n" + text
    if loop := re.search(r"Wrong number of values in loop (\S+)", what):
        return _without_loop(lines, loop.group(1).rstrip("*"), number, notes)
    item = re.match(r"\s*(_\S+)\s+(.*)$", line)
    if not item:
        return None
    tag, value = item.groups()
    quoted = re.match(r"""(['"])(.*?)\1(?=\s|$)\s*(\S.*)?$""", value)
    if quoted and quoted.group(3):
        notes.append(f"stray text after the value of {tag} ignored: {quoted.group(3).strip()[:40]!r}")
        lines[number - 1] = f"{tag} {value[: quoted.end(2) + 1]}"
        return "\n".join(lines)
    if tag.lower().startswith(_STRUCTURAL) or value[:1] not in "'\"":
        return None
    # an open quote: drop the item with the lines that are left over from it
    end = number
    while end < len(lines) and not re.match(r"\s*(_|loop_|data_|#|;)", lines[end]):
        end += 1
    notes.append(f"item {tag} ignored: its quotes are not closed")
    lines[number - 1 : end] = [""] * (end - number + 1)
    return "\n".join(lines)


def _without_loop(lines: list[str], prefix: str, number: int, notes: list[str]) -> str | None:
    """Drop a loop with a wrong count, where it is none of the structural ones."""
    if prefix.lower().startswith(_STRUCTURAL):
        return None
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*loop_\b", line, re.IGNORECASE)]
    for start in starts:
        tags = start + 1
        while tags < len(lines) and re.match(r"\s*_\S+\s*$", lines[tags]):
            tags += 1
        names = [line.strip().lower() for line in lines[start + 1 : tags]]
        if not names or not all(name.startswith(prefix.lower()) for name in names):
            continue
        end = tags
        while end < len(lines) and not re.match(r"\s*(_|loop_|data_)", lines[end], re.IGNORECASE):
            if lines[end].startswith(";"):
                return None
            end += 1
        if not start <= number <= end + 1:
            continue
        notes.append(f"loop {prefix} ignored: it has a wrong number of values")
        return "\n".join(lines[:start] + [""] * (end - start) + lines[end:])
    return None


def _plain(message: str) -> str:
    """gemmi's message without the place holder it has for a file name."""
    match = re.search(r":(\d+):(\d+)\(\d+\):?\s*(.*)", message, re.DOTALL)
    return f"line {match.group(1)}: {match.group(3)}" if match else message
