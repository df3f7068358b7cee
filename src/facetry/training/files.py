"""Files and folders that are either whole or not there, whatever kills the process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

_TEMPORARY = ".writing-"


class WriteError(OSError):
    """A file that could not be written; what was there before is untouched."""


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors of the tensors; equal tensors give equal bytes."""
    from safetensors.torch import save

    return save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})


def _write_through(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut (no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def explain(error: OSError, path: Path, kept: str) -> WriteError:
    """The same fault in words: which file, why, what is kept."""
    why = error.strerror or str(error)
    advice = (
        "free some space and go on with --resume"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else "make the folder writable and go on with --resume"
    )
    return WriteError(error.errno or 0, f"{path}: could not be written ({why}); {kept}; {advice}")


def write_file(path: Path, content: bytes | str) -> None:
    """Replace a file in one step."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        _write_through(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise explain(error, path, "the file of before, if any, is kept") from error
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None], kept: str) -> None:
    """Make a folder whose files `fill` writes; it gets its name once all are on the disk."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        sync_folder(temporary)
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise explain(error, path, kept) from error
    sync_folder(path.parent)


def share_file(source: Path, target: Path) -> None:
    """A second name for a file that never changes, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def fill_file(path: Path, content: bytes | str) -> None:
    """Write one file inside `write_folder`."""
    _write_through(path, content.encode() if isinstance(content, str) else content)
