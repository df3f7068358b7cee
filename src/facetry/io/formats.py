"""Which format a file has, and from its bytes to crystals."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath

from facetry.crystal import Crystal
from facetry.io.cif import read_cif
from facetry.io.cif_write import write_cif
from facetry.io.errors import FormatError, ReadError
from facetry.io.json_text import read_json, write_json
from facetry.io.poscar import read_poscar, write_poscar
from facetry.io.xyz import read_xyz, write_extxyz

__all__ = ["FORMATS", "format_of", "from_text", "parse", "stem_of", "to_text", "write"]

MAX_BYTES = 256 * 1024 * 1024  # of one structure file, unpacked

_SUFFIXES = {
    ".cif": "cif",
    ".mcif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".contcar": "poscar",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".exyz": "extxyz",
    ".json": "json",
}
KNOWN = ".cif, .mcif, .vasp, POSCAR, CONTCAR, .extxyz, .xyz, .json (each also with .gz)"

_WRITERS: dict[str, Callable[[Crystal], str]] = {
    "cif": write_cif,
    "poscar": write_poscar,
    "extxyz": write_extxyz,
    "json": write_json,
}
FORMATS = tuple(_WRITERS)


def format_of(file: str) -> str:
    """ "cif", "poscar", "extxyz" or "json" from a file's name, "" for a name that says none of them."""
    base = file.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gz")
    known = _SUFFIXES.get(os.path.splitext(base)[1].lower(), "")
    if not known and re.match(r"(POSCAR|CONTCAR)(?![a-z])", base):
        return "poscar"
    return known


def stem_of(file: str) -> str:
    """A short name for the structure in a file: "a/b/slab.cif.gz" is slab, "run1/POSCAR" is run1/POSCAR."""
    path = PurePosixPath(file.replace("\\", "/").removesuffix(".gz"))
    if path.stem.upper() in ("POSCAR", "CONTCAR") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name if path.suffix.lower() not in _SUFFIXES else path.stem


def parse(
    data: bytes, file: str, format: str = "", merge_within: float | int | None = None, name: str = ""
) -> Iterator[tuple[str, Crystal | ReadError]]:
    """Name and crystal, or what is wrong with it, for every structure in a file's bytes.

    `file` is what errors call it; `format` is told from it unless given; `name` replaces the name that is
    made of the file's. Nothing is raised: a file that cannot be read at all gives one ReadError.
    """
    name = name or stem_of(file)
    format = format or format_of(file)
    found = _guarded(_parse(data, format, merge_within))
    ahead = next(found, None)
    index = 0
    while ahead is not None:
        (key, result), ahead = ahead, next(found, None)
        alone = index == 0 and ahead is None
        index += 1
        full = name if alone else f"{name}#{key or index}"
        if isinstance(result, Crystal):
            # a file's own names win where they are meant as names; data blocks and comments are not
            own = result.name if format in ("extxyz", "json") else ""
            crystal = result if result.name == (own or full) else result.replace(name=full)
            yield crystal.name, crystal
        else:
            where = "" if alone else f"structure {key or index}: "
            yield full, ReadError(file, where + str(result))


def _guarded(
    found: Iterator[tuple[str, Crystal | FormatError]],
) -> Iterator[tuple[str, Crystal | FormatError]]:
    """The same, with whatever is raised as a last item."""
    try:
        yield from found
    except FormatError as error:
        yield "", error
    except MemoryError:
        yield "", FormatError("reading it needs more memory than is allowed")
    except Exception as error:  # a fault of ours must not stop the files behind this one
        yield "", FormatError(f"could not be read ({type(error).__name__}: {error})")


def from_text(text: str, format: str, name: str = "", *, merge_within: float | int | None = None) -> Crystal:
    """The one crystal in a text of the given format ("cif", "poscar", "extxyz", "json").

    Without `name` it keeps the name the text has: data block, comment line, `name`. Raises ReadError.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
    label = name or f"{format} text"
    try:
        found = list(_parse(text.encode(), format, merge_within))
    except FormatError as error:
        raise ReadError(label, str(error)) from None
    if len(found) != 1:
        raise ReadError(
            label, f"expected one structure, the text holds {len(found)}; write it to a file and read"
        )
    result = found[0][1]
    if isinstance(result, FormatError):
        raise ReadError(label, str(result))
    return result.replace(name=name) if name else result


def to_text(crystal: Crystal, format: str) -> str:
    """The crystal as text; see `write` for what each format keeps."""
    if format not in _WRITERS:
        raise ValueError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
    return _WRITERS[format](crystal)


def write(crystals: Crystal | Sequence[Crystal], path: str | PathLike[str]) -> None:
    """Write one crystal, or several into one .cif, .extxyz or .json file; .gz compresses.

    | format | keeps |
    |---|---|
    | .json (pymatgen's dictionary) | everything, bit for bit |
    | POSCAR, .vasp | lattice, coordinates, elements, bit for bit; no partial occupancy |
    | .cif | fractional coordinates and occupancies bit for bit; cell lengths and angles, no orientation |
    | .extxyz, .xyz | lattice bit for bit, Cartesian positions; no partial occupancy |

    The file is complete or untouched: a new one is written beside it and moved into place. Raises ValueError
    for an unknown suffix and for what the format cannot hold.
    """
    path = Path(path)
    format = format_of(path.name)
    if not format:
        raise ValueError(f"{path}: the name says no known format; expected {KNOWN}")
    if isinstance(crystals, Crystal):
        text = to_text(crystals, format)
    elif not len(crystals):
        raise ValueError(f"{path}: no crystals to write")
    elif format == "json":
        text = "[" + ",\n".join(write_json(crystal) for crystal in crystals) + "]\n"
    elif format == "poscar" and len(crystals) > 1:
        raise ValueError(f"{path}: a POSCAR holds one structure, got {len(crystals)}; write .extxyz or .cif")
    else:
        text = "".join(to_text(crystal, format) for crystal in crystals)
    data = text.encode()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parse(
    data: bytes, format: str, merge_within: float | int | None
) -> Iterator[tuple[str, Crystal | FormatError]]:
    if not format:
        raise FormatError(f"the name says no known format; expected {KNOWN}")
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data)
    if len(data) > MAX_BYTES:
        raise FormatError(f"{len(data)} bytes, more than the {MAX_BYTES} this reader takes")
    if not data.strip(b"\x00\x1a\xef\xbb\xbf \t\r\n"):
        raise FormatError("the file is empty")
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    if format == "cif":
        yield from read_cif(data, merge_within=merge_within)
        return
    if b"\x00" in data:
        raise FormatError("binary data, not a text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a \t\n") + "\n"
    if format == "poscar":
        yield "", read_poscar(text, merge_within=merge_within)
    elif format == "extxyz":
        yield from read_xyz(text, merge_within=merge_within)
    else:
        yield from read_json(text, merge_within=merge_within)


def _gunzip(data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            plain = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"damaged gzip data: {error}") from None
    if len(plain) > MAX_BYTES:
        raise FormatError(f"more than {MAX_BYTES} bytes once unpacked")
    return plain
