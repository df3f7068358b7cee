"""Messages between the reader and its workers: a length, a JSON header, raw bytes. No pickle.

8 bytes   length of the header, length of the body (two big-endian unsigned 32-bit numbers)
header    JSON
body      bytes the header describes
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np

from facetry.crystal import Crystal
from facetry.io.errors import ReadError

__all__ = ["receive", "results_from", "results_message", "send"]

_LENGTHS = struct.Struct(">II")


def send(stream: BinaryIO, header: Any, body: bytes = b"") -> None:
    """Write one message and flush it."""
    text = json.dumps(header, separators=(",", ":")).encode()
    stream.write(b"".join((_LENGTHS.pack(len(text), len(body)), text, body)))
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Any, bytes] | None:
    """The next message, None where the other side has gone."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_size, body_size = _LENGTHS.unpack(lengths)
    header, body = stream.read(header_size), stream.read(body_size)
    if len(header) < header_size or len(body) < body_size:
        return None
    return json.loads(header), body


def results_message(
    results: list[tuple[str, Crystal | ReadError]], more: bool = False
) -> tuple[list[Any], bytes]:
    """Header and body for what one file gave; `more` where it is not all yet."""
    header: list[Any] = [more]
    body: list[bytes] = []
    for name, result in results:
        if isinstance(result, ReadError):
            header.append([name, None, result.file, result.reason])
            continue
        shares = result.occupancies and [list(site.items()) for site in result.occupancies]
        header.append([name, len(result), shares, result.notes])
        body += [
            result.lattice.tobytes(),
            result.frac_coords.tobytes(),
            result.atomic_numbers.astype(np.uint8).tobytes(),
        ]
    return header, b"".join(body)


def results_from(header: list[Any], body: bytes) -> tuple[list[tuple[str, Crystal | ReadError]], bool]:
    """The inverse of `results_message`: the results, and whether more of this file will come."""
    results: list[tuple[str, Crystal | ReadError]] = []
    at = 0
    for name, count, first, second in header[1:]:
        if count is None:
            results.append((name, ReadError(first, second)))
            continue
        lattice = np.frombuffer(body, np.float64, 9, at).reshape(3, 3)
        frac = np.frombuffer(body, np.float64, 3 * count, at + 72).reshape(count, 3)
        numbers = np.frombuffer(body, np.uint8, count, at + 72 + 24 * count)
        at += 72 + 25 * count
        shares = first and [dict(map(tuple, site)) for site in first]
        results.append((name, Crystal(lattice, frac, numbers, shares, name, notes=second)))
    return results, header[0]
