"""Broken copies of files: mutant `number` of `seed` is the same bytes on every machine."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence

import numpy as np

_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?:\(\d+\))?")
_TOKEN = re.compile(rb"[^\s,]+")
NUMBERS = (
    *(
        b"nan",
        b"inf",
        b"-inf",
        b"1e308",
        b"-1e308",
        b"1e-320",
        b"0",
        b"-0",
        b"-1",
        b"1e9",
        b"0.001",
        b"1e-12",
    ),
    *(b"9" * 40, b"2147483648", b"18446744073709551616", b"1.5", b"7(3)", b"(5)", b".", b"?", b"1/3", b"1/0"),
    *(b"--1", b"1e", b"0x10", b"1_000", b"90", b"180", b"179.999999", b"1e-7"),
)
PIECES = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\x1a",
        b"\xe2\x80\xa8",
        "Å".encode(),
        "é".encode("latin-1"),
    ),
    *(b"'", b'"', b"\n;", b"#", b"loop_\n", b"data_\n", b"data_x ", b"save_x\n", b"global_\n", b"stop_"),
    *(
        b"\n;\ntext\n;\n",
        b"\n\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b"[[[[",
        b",",
        b":",
        b"null",
        b"true",
        b"NaN",
        b"-",
        b"=",
    ),
    *(b"\\u0000", b"\\ud800", b"_cell_length_a ", b"_atom_site_label\n", b"x,y,z", b"-y,x,z+1/2", b"'P 1'"),
    *(b"'F d -3 m'", b"'I a -3 d'", b"1e5\n", b"%s%n", b"../../etc/passwd", b'Lattice="', b"direct\n"),
    *(b"Properties=species:S:1:pos:R:3", b"Selective\n", b"[model]\n"),
)


def mutant(seeds: Sequence[bytes], seed: int, number: int) -> tuple[int, bytes]:
    """Which of the seeds it comes from, and what became of it. Short seeds are drawn more often."""
    rng = np.random.default_rng((seed, number))
    weights = 1 / np.maximum([len(s) for s in seeds], 4000)
    chosen = int(rng.choice(len(seeds), p=weights / weights.sum()))
    content = seeds[chosen]
    packed = content[:3] == b"\x1f\x8b\x08" and rng.random() < 0.7
    if packed:
        content = gzip.decompress(content)
    for _ in range(rng.geometric(0.6)):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        content = operation(content, rng, seeds)[: 1 << 21]
    return chosen, gzip.compress(content, 1, mtime=0) if packed else content


def _place(content: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(len(content) + 1))


def _span(content: bytes, rng: np.random.Generator, most: int = 400) -> tuple[int, int]:
    start = _place(content, rng)
    return start, min(len(content), start + int(rng.integers(1, most)))


def _flip(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 8)) if changed else 0):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _noise(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.bytes(int(rng.integers(1, 30))) + content[at:]


def _cut(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + content[stop:]


def _end(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    return content[: _place(content, rng)]


def _repeat(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    start, stop = _span(content, rng)
    times = int(rng.choice([1, 2, 10, 300]))
    return content[:stop] + content[start:stop] * times + content[stop:]


def _move(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    start, stop = _span(content, rng)
    rest = content[:start] + content[stop:]
    at = _place(rest, rng)
    return rest[:at] + content[start:stop] + rest[at:]


def _piece(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    at = _place(content, rng)
    return content[:at] + PIECES[rng.integers(len(PIECES))] + content[at:]


def _line(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """A line goes, comes twice, or changes its place with another."""
    lines = content.split(b"\n")
    first, second = rng.integers(len(lines), size=2)
    kind = rng.integers(3)
    if kind == 0:
        del lines[first]
    elif kind == 1:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def _swap(pattern: re.Pattern[bytes], new: Callable[[bytes, np.random.Generator], bytes]):
    def change(content: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
        found = [m.span() for m in pattern.finditer(content[: 1 << 17])]
        if not found:
            return content
        start, stop = found[rng.integers(len(found))]
        return content[:start] + new(content, rng) + content[stop:]

    return change


def _other_token(content: bytes, rng: np.random.Generator) -> bytes:
    tokens = _TOKEN.findall(content[: 1 << 17])
    return tokens[rng.integers(len(tokens))] if tokens else b""


def _splice(content: bytes, rng: np.random.Generator, seeds: Sequence[bytes]) -> bytes:
    other = seeds[rng.integers(len(seeds))]
    return content[: _place(content, rng)] + other[_place(other, rng) :]


_number = _swap(_NUMBER, lambda content, rng: NUMBERS[rng.integers(len(NUMBERS))])
_token = _swap(_TOKEN, _other_token)
_OPERATIONS = (
    *(_flip, _noise, _cut, _end, _repeat, _move, _splice),
    *(_piece, _line, _token) * 2,
    *(_number,) * 3,
)
