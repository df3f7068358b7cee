"""One bad file, said in one line."""

from __future__ import annotations

__all__ = ["FormatError", "ReadError", "one_line"]


def one_line(text: str) -> str:
    """The same words in one line, also of a file's name that is no valid text."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


class ReadError(ValueError):
    """A file (or one structure in it) that cannot be read.

    Attributes:
        file: which file, with the member of an archive, the row of a table or the block where there is one.
        reason: what is wrong and what to do.

    `str()` is one line: "file: reason".
    """

    def __init__(self, file: str, reason: str) -> None:
        self.file = one_line(str(file))
        self.reason = one_line(str(reason))
        super().__init__(self.file, self.reason)

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class FormatError(ValueError):
    """What is wrong with a text, before it is known which file it came from (internal to facetry.io)."""
