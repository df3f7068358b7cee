"""What an interrupted sampling goes on from, in the folder of its candidates.

    made/resume/sampling.json            what was asked for, of which model
    made/resume/group-0003.safetensors   chains that have ended
    made/resume/point-0004.safetensors   chains under way, the last of their points

Each file is whole or not there. The folder is removed when all candidates are written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from facetry.training.checkpoint import read_tensors
from facetry.training.files import remove_leftovers, tensor_bytes, write_file

FOLDER = "resume"
_SETTINGS = "sampling.json"


class SamplingError(ValueError):
    """A sampling that cannot go on; one line with what to do."""


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What the sampling of this folder was asked for."""
    path = Path(folder) / FOLDER / _SETTINGS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SamplingError(
            f"{folder}: no interrupted sampling to go on with ({path} is not there); leave --resume away"
        ) from None
    except ValueError as error:
        raise SamplingError(f"{path}: expected JSON ({error}); sample again into another folder") from None


class SamplingStore:
    """States of chains of one call of `facetry generate`.

    `settings` is what the samples follow from; with `resume` it must equal what is in the folder.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], resume: bool = False) -> None:
        self.folder = Path(folder) / FOLDER
        asked = json.loads(json.dumps(settings))
        if resume:
            before, now = (_flat(read_settings(folder)), _flat(asked))
            for name in sorted(set(before) | set(now)):
                if name.endswith("force"):
                    continue
                if before.get(name) != now.get(name):
                    raise SamplingError(
                        f"{folder}: was begun with {name} {_short(before.get(name))}, came"
                        f" {_short(now.get(name))}; go on with the same, or choose another folder"
                    )
            remove_leftovers(self.folder)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_file(self.folder / _SETTINGS, json.dumps(asked, indent=2) + "\n")

    def _read(self, kind: str, group: int) -> dict[str, Tensor] | None:
        path = self._path(kind, group)
        return read_tensors(path) if path.is_file() else None

    def _path(self, kind: str, group: int) -> Path:
        return self.folder / f"{kind}-{group:04d}.safetensors"

    def ended(self, group: int) -> dict[str, Tensor] | None:
        """The chains of a group, where they have ended."""
        return self._read("group", group)

    def point(self, group: int) -> dict[str, Tensor] | None:
        """Where the chains of a group were, None where they have not begun."""
        return self._read("point", group)

    def keep(self, group: int, tensors: Mapping[str, Tensor]) -> None:
        """A point of chains under way."""
        write_file(self._path("point", group), tensor_bytes(tensors))

    def end(self, group: int, tensors: Mapping[str, Tensor]) -> None:
        """These chains have ended."""
        write_file(self._path("group", group), tensor_bytes(tensors))
        with contextlib.suppress(OSError):
            self._path("point", group).unlink()

    def remove(self, record: Path | None = None, **more: Any) -> None:
        """All is done; what was asked for is kept in the file `record`, with what else there is to say."""
        if record is not None:
            told = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8")) | more
            write_file(record, json.dumps(told, indent=2) + "\n")
        shutil.rmtree(self.folder, ignore_errors=True)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
