"""Finding the files of a named set, checking them, fetching them; and keeping derived arrays.

Looked up in this order: the folders of FACETRY_DATA, the user's cache, the addresses listed in the manifest
(before them the base addresses of FACETRY_MIRROR, for a copy of one's own). Whatever is read has the hash
or the fingerprint that the manifest states, or it is refused by name.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

from facetry._version import __version__
from facetry.data.manifest import File, Manifest, Original

__all__ = [
    "DataCorrupt",
    "DataNotFound",
    "VaultError",
    "atomic_write",
    "cache_folder",
    "cached",
    "find",
    "locate",
]

log = logging.getLogger("facetry.data")

MAX_BYTES = 2 << 30  # a download larger than this is not one of ours
CONNECT_SECONDS = 20.0  # without an answer for this long the address counts as out of reach
TOTAL_SECONDS = 1800.0


class VaultError(OSError):
    """A file of a data set could not be found, read or written."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class DataNotFound(VaultError):
    """A file is in none of the places; the text lists them and says how to import it by hand."""


class DataCorrupt(VaultError):
    """A file is there but is not what the manifest says."""


def data_folders() -> list[Path]:
    """The folders of FACETRY_DATA, separated as in PATH."""
    return [Path(p).expanduser() for p in os.environ.get("FACETRY_DATA", "").split(os.pathsep) if p]


def cache_folder() -> Path:
    """Where downloads and derived arrays are kept: FACETRY_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("FACETRY_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "facetry"


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete.

    Raises VaultError naming the file when the disk is full or not writable; nothing half written stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        if isinstance(error, VaultError):
            raise
        raise VaultError(error.errno, _write_problem(path, error)) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _write_problem(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{path}: no space left while writing; free some, or set FACETRY_CACHE to another disk"
    reason = error.strerror or error
    return f"{path}: could not be written ({reason}); set FACETRY_CACHE to a folder you may write to"


def locate(manifest: Manifest, key: str) -> Path | None:
    """The checked file if it is in FACETRY_DATA or in the cache; None if it is in neither.

    Raises DataCorrupt if a file of that name is there with other content.
    """
    entry = manifest.files[key]
    for folder in [*data_folders(), cache_folder() / "data"]:
        path = folder / entry.path
        if path.is_file():
            check(manifest, key, path)
            return path
    return None


def find(manifest: Manifest, key: str) -> Path:
    """The checked file, downloaded if need be. Raises DataNotFound with every place that was tried."""
    path = locate(manifest, key)
    if path is not None:
        return path
    entry = manifest.files[key]
    tried = [f"{folder / entry.path}: no such file" for folder in data_folders()]
    if not tried:
        tried.append("FACETRY_DATA is not set")
    tried.append(f"{cache_folder() / 'data' / entry.path}: no such file")
    for url, original in _addresses(entry):
        try:
            return _fetch(manifest, key, url, original)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            tried.append(f"{url}: {error}")
    raise DataNotFound(_not_found(manifest, key, tried))


def _addresses(entry: File) -> Iterator[tuple[str, Original | None]]:
    for base in os.environ.get("FACETRY_MIRROR", "").split():
        yield f"{base.rstrip('/')}/{entry.path}", None
    for url in entry.mirrors:
        yield url, None
    for original in entry.originals:
        yield original.url, original


def _not_found(manifest: Manifest, key: str, tried: list[str]) -> str:
    entry = manifest.files[key]
    expected = f"sha256 {entry.sha256}" if entry.sha256 else "content checked after conversion"
    lines = [f"{entry.path} ({manifest.title}, {entry.rows} crystals, {expected}) was not found. Tried:"]
    lines += [f"  {line}" for line in tried]
    if entry.originals:
        lines.append(
            "Download one of these by hand, then run `facetry dataset import " + manifest.name + " FILE`:"
        )
        lines += [f"  {o.url}{f' ({o.note})' if o.note else ''}" for o in entry.originals]
    else:
        lines.append(
            f"No address for it is known. Put a copy into a folder of FACETRY_DATA as {entry.path}, or run "
            f"`facetry dataset import {manifest.name} FILE`; where the data came from: "
            f"`facetry dataset info {manifest.name}`."
        )
    return "\n".join(lines)


def check(manifest: Manifest, key: str, path: Path) -> None:
    """Raise DataCorrupt unless the file is the one of the manifest, by hash or by its crystals."""
    entry = manifest.files[key]
    stat = path.stat()
    known = (str(path), stat.st_mtime_ns, stat.st_size, entry.sha256, entry.fingerprint)
    if known in _CHECKED:
        return
    found = sha256_of(path)
    if found != entry.sha256:
        from facetry.data.originals import content_problem

        problem = content_problem(manifest, key, path)
        if problem:
            expected = (
                f"sha256 {entry.sha256}" if entry.sha256 else f"{entry.rows} crystals of {manifest.title}"
            )
            raise DataCorrupt(
                f"{path}: expected {expected}, found sha256 {found} ({problem}); delete the file and get it "
                f"again with `facetry dataset get {manifest.name}`"
            )
    _CHECKED.add(known)


_CHECKED: set[tuple[Any, ...]] = set()


def import_files(manifest: Manifest, path: str | Path) -> list[Path]:
    """Put a file that was got by hand (or every file of a folder that belongs to the set) into the cache.

    Ours are known by their sha256; a published CSV or Feather file with a `cif` column is converted and known
    by its crystals. Returns the new files. Raises DataCorrupt saying why nothing fitted.
    """
    from facetry.data.crystals import TableError

    path = Path(path).expanduser()
    if not path.exists():
        raise DataNotFound(f"{path}: no such file or folder")
    kinds = (".parquet", ".csv", ".csv.gz", ".feather")
    candidates = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith(kinds))
    done, reasons = [], []
    for candidate in candidates:
        try:
            done.append(_import_file(manifest, candidate))
        except (TableError, DataCorrupt, UnicodeDecodeError) as error:
            reasons.append(str(error))
    if not done:
        reasons = reasons or [f"{path} holds no {', '.join(kinds)} file"]
        raise DataCorrupt(f"nothing of {manifest.title} could be imported: " + "; ".join(reasons))
    return done


def _import_file(manifest: Manifest, path: Path) -> Path:
    from facetry.data.originals import content_problem, convert

    if path.suffix != ".parquet":
        return convert(manifest, path)
    digest, reasons = sha256_of(path), []
    for key, entry in manifest.files.items():
        problem = None if digest == entry.sha256 else content_problem(manifest, key, path)
        if problem is None:
            target = cache_folder() / "data" / entry.path
            with atomic_write(target) as stream, path.open("rb") as source:
                shutil.copyfileobj(source, stream)
            return target
        reasons.append(f"not {entry.path}: {problem}")
    raise DataCorrupt(f"{path} (sha256 {digest}): {'; '.join(reasons)}")


def _fetch(manifest: Manifest, key: str, url: str, original: Original | None) -> Path:
    """Download to a temporary file, check, move into the cache."""
    from facetry.data.originals import convert

    entry = manifest.files[key]
    target = cache_folder() / "data" / entry.path
    log.warning("downloading %s for %s", url, manifest.name)
    if original is None:
        with atomic_write(target) as stream:
            digest = _stream(url, stream)
            if digest != entry.sha256:
                raise DataCorrupt(f"expected sha256 {entry.sha256}, the download has {digest}")
        return target
    with tempfile.TemporaryDirectory(prefix="facetry-") as folder:
        raw = Path(folder) / Path(urlsplit(url).path).name
        with atomic_write(raw) as stream:
            _stream(url, stream)
        convert(manifest, raw, only=key)
    return target


def _stream(url: str, stream: BinaryIO) -> str:
    """Copy what the address holds; returns its sha256."""
    digest = hashlib.sha256()
    for block in _blocks(url):
        digest.update(block)
        stream.write(block)
    return digest.hexdigest()


def _blocks(url: str) -> Iterator[bytes]:
    """What the address holds, bounded in size and in time. Raises VaultError with the reason in words."""
    started, size = time.monotonic(), 0
    request = urllib.request.Request(url, headers={"User-Agent": f"facetry/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as answer:
            while block := answer.read(1 << 18):
                size += len(block)
                if size > MAX_BYTES:
                    raise VaultError(f"stopped after {MAX_BYTES >> 20} MiB: larger than any file of ours")
                if time.monotonic() - started > TOTAL_SECONDS:
                    raise VaultError(f"stopped after {TOTAL_SECONDS:.0f} s")
                yield block
    except urllib.error.HTTPError as error:
        raise VaultError(f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise VaultError(f"not reachable ({error.reason})") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise VaultError(f"the connection broke ({error or type(error).__name__})") from None


# ---------------------------------------------------------------------------------------------------------
# Derived arrays


def code_hash(*modules: Any) -> str:
    """Hash of the source text of modules, so that a cache entry does not outlive a change of the code."""
    digest = hashlib.sha256(__version__.encode())
    for module in modules:
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()


def cache_path(key: dict[str, Any]) -> Path:
    """Where the arrays of this key are kept. The key must be JSON: no object's repr may decide."""
    text = json.dumps({"version": __version__, **key}, sort_keys=True, allow_nan=False)
    return cache_folder() / "derived" / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def cached(key: dict[str, Any], build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, or built and put there.

    `key` names everything the arrays depend on: data hash, split, target, graph settings, and
    `code_hash(modules)` of the code that builds them. The file is safetensors: nothing in it is executed.
    A damaged file is built again; a disk that is full or read-only costs the copy, not the result.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save

    path = cache_path(key)
    if path.is_file():
        try:
            with safe_open(path, framework="np") as stream:
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
                intact = (stream.metadata() or {}).get("crc32") == _checksum(arrays)
        except (SafetensorError, OSError) as error:
            log.warning("%s: unreadable (%s); building it again", path, error)
        else:
            if intact:
                return arrays
            log.warning("%s: damaged (checksum differs); building it again", path)
    arrays = {name: np.ascontiguousarray(value) for name, value in build().items()}
    try:
        with atomic_write(path) as stream:
            stream.write(
                save(arrays, metadata={"crc32": _checksum(arrays), "key": json.dumps(key, sort_keys=True)})
            )
    except VaultError as error:
        log.warning("not cached: %s", error.strerror)
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name}{value.dtype.str}{value.shape}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"
