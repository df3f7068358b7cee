"""What an audit found: findings with the crystals they are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from facetry.data.dataset import Dataset
from facetry.evaluation.likeness import Likeness
from facetry.evaluation.prototypes import Identity

__all__ = ["COLUMNS", "Case", "Finding", "Level", "Subject"]

UNLABELLED = "unlabelled"
"""The part of rows without a label."""

Level = Literal["error", "warning", "note"]

COLUMNS: dict[str, str] = {
    "finding": "text", "level": "text", "crystal": "text", "part": "text", "formula": "text", "other": "text",
    "other_part": "text", "value": "float", "detail": "text",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One crystal that a finding is about, and the other one where it takes two."""

    crystal: str
    part: str = ""
    formula: str = ""
    other: str = ""
    other_part: str = ""
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of defect: an `error` is wrong, a `warning` makes numbers look better or worse than they
    are, a `note` is good to know. `count` is of crystals."""

    key: str
    level: Level
    text: str
    count: int
    cases: Sequence[Case] = ()
    numbers: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of findings.csv."""
        for case in self.cases:
            own = {name: getattr(case, name) for name in COLUMNS if name not in ("finding", "level")}
            yield {"finding": self.key, "level": self.level} | own

    def to_dict(self, most: int = 20) -> dict[str, Any]:
        """Plain content for JSON, with the first cases."""
        cases = [{k: v for k, v in vars(c).items() if v not in ("", None)} for c in self.cases[:most]]
        own = {"finding": self.key, "level": self.level, "text": self.text, "count": self.count}
        return own | {"numbers": self.numbers, "cases": cases}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited: all crystals of all parts in one data set, with their part, identity and likeness."""

    data: Dataset
    parts: Sequence[str]
    part: Int[np.ndarray, " crystals"]
    identity: Identity
    likeness: Likeness
    folds: bool = False

    def case(self, row: int, other: int | None = None, value: float | None = None, detail: str = "") -> Case:
        """A crystal, or two, by their rows."""
        names, parts = self.data.names, self.parts
        second = ("", "") if other is None else (str(names[other]), parts[self.part[other]])
        formula = self.identity.formulas[row]
        return Case(str(names[row]), parts[self.part[row]], formula, *second, value, detail)

    def pairs_of_parts(self) -> list[tuple[int, int]]:
        """(what is tested, what it was learned from): later parts against earlier ones; rows without labels
        are neither."""
        used = [i for i, name in enumerate(self.parts) if name != UNLABELLED]
        return [(b, a) for a in used for b in used if b > a]
