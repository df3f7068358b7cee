"""The process that parses, spoken to over stdin and stdout.

It reads batches of files, answers after every file and ends when its input does. A file that makes it hang
or crash takes nobody with it: the reader kills it, blames that file, and starts another.
"""

from __future__ import annotations

import os
import time

from facetry.crystal import Crystal
from facetry.io.errors import ReadError
from facetry.io.formats import MAX_BYTES, parse, stem_of
from facetry.io.protocol import receive, results_message, send

CHUNK = 256  # structures of one file per answer
PATIENCE = 0.2  # s after which a file with many structures shows that it is getting on


def main(memory_limit: int) -> None:
    """Parse files until the input ends, in at most `memory_limit` bytes (0: no limit)."""
    # The protocol owns the real stdout; whatever a library prints must not get into it.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    requests = os.fdopen(os.dup(0), "rb")
    _limit_memory(memory_limit)
    send(answers, "ready")
    while (message := receive(requests)) is not None:
        tasks, body = message
        at = 0
        for source, format, path, size, name, merge_within in tasks:
            data = None if size is None else body[at : at + size]
            at += size or 0
            results: list[tuple[str, Crystal | ReadError]] = []
            try:
                if data is None:
                    data = _file_bytes(path, source)
                last = time.monotonic()
                for result in parse(data, source, format, merge_within, name):
                    results.append(result)
                    if len(results) >= CHUNK or time.monotonic() - last > PATIENCE:
                        send(answers, *results_message(results, more=True))
                        results, last = [], time.monotonic()
            except ReadError as error:
                results.append((name or stem_of(source), error))
            send(answers, *results_message(results))


def _file_bytes(path: str, source: str) -> bytes:
    try:
        if not os.path.isfile(path):  # a pipe or a device would never end
            raise ReadError(source, "no regular file")
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReadError(source, f"cannot be opened: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ReadError(source, f"more than {MAX_BYTES} bytes, which this reader does not take")
    return data


def _limit_memory(limit: int) -> None:
    if limit <= 0:
        return
    try:
        import resource
    except ImportError:  # Windows has no such limit; the time limit still holds
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (ValueError, OSError):  # macOS refuses it
        return
