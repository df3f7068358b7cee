"""How an answer changes when a crystal is deformed little by little: how fast, and whether it jumps.

Three ways out of a crystal, each in its primitive cell, because no model that divides out translations can be
continuous where these arise:

    jitter      all atoms, in random directions         1e-8 to 1e-2 Å
    strain      the cell, symmetric, of norm            1e-8 to 1e-2
    crossing    one atom on a straight line             0 to 0.4 Å, where a bond enters or leaves the graph

On each the step that its neighbours explain least is halved again and again. What remains of a smooth change
is its slope times 1e-8 of the step; what remains of a jump is the jump. Jumps are looked for in float64,
where nothing hides them; the same steps in the model's own precision tell what rounding adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.crystal import Crystal
from facetry.evaluation import changes
from facetry.evaluation.symmetry import Answer, Answers
from facetry.graph.batch import Batch

Kind = Literal["jitter", "strain", "crossing"]
WAYS: dict[Kind, tuple[str, str]] = {  # in words, and the unit of its size
    "jitter": ("jitter of all atoms, 1e-8 to 1e-2 Å", "Å"),
    "strain": ("strain of the cell, 1e-8 to 1e-2", ""),
    "crossing": ("one atom past the cutoff", "Å"),
}
MOST_PATH_ATOMS = 40  # of crystals that are deformed little by little
_SMALL = np.concatenate([[0.0], np.logspace(-8, -2, 13)])
_LINE = np.linspace(0.0, 0.4, 25)
_HALVINGS = 22
SMOOTH = 1e-6  # of the spread between crystals: jumps below count as none


@dataclass(frozen=True)
class Path:
    """A crystal deformed by t."""

    kind: Kind
    name: str
    at: Callable[[float], Crystal]
    steps: Float[np.ndarray, " steps"]


@dataclass(frozen=True)
class Followed:
    """What happened on a path: how far the answer went from where it started at each of `steps` (in Å, or
    strain), its largest jump and where, and how many bonds came or went there. `rounding`: by how much that
    differs, at most, in the model's own precision (None: that is float64). `problem`: why it was left."""

    kind: Kind
    name: str
    steps: tuple[float, ...]
    response: tuple[float, ...]
    jump: float
    place: float
    bonds: int
    problem: str = ""
    rounding: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(self.__dict__)


def paths(crystal: Crystal, seed: int) -> list[Path]:
    """The three ways out of a crystal; those of its sites only where it has several."""
    smaller = changes.primitive(crystal)
    start = crystal if smaller is None else smaller[0]
    rng = np.random.default_rng([seed, len(start)])
    inverse = np.linalg.inv(start.lattice)
    away = rng.normal(size=(len(start), 3))
    away -= away.mean(0)
    away /= np.sqrt((away**2).sum(1).mean()) or 1.0
    tensor = rng.normal(size=(3, 3))
    tensor = (tensor + tensor.T) / np.linalg.norm(tensor + tensor.T)
    direction = rng.normal(size=3)
    moved = np.zeros((len(start), 3))
    moved[rng.integers(len(start))] = direction / np.linalg.norm(direction)

    def displaced(by: Float[np.ndarray, "atoms 3"]) -> Callable[[float], Crystal]:
        return lambda t: start.replace(frac_coords=start.frac_coords + t * by @ inverse)

    def strained(t: float) -> Crystal:
        return start.replace(lattice=start.lattice @ (np.eye(3) + t * tensor))

    found = [Path("strain", crystal.name, strained, _SMALL)]
    if len(start) > 1:
        found.append(Path("jitter", crystal.name, displaced(away), _SMALL))
        found.append(Path("crossing", crystal.name, displaced(moved), _LINE))
    return found


def follow(
    answers: Answers,
    ways: Sequence[Path],
    own: Answers | None = None,
    step: Callable[[int, int], None] | None = None,
) -> list[Followed]:
    """Walks all paths side by side. A path on which some crystal gets no answer is left, with the reason.
    `own` answers in the model's own precision; `step` is called with the rounds that are done, and all."""
    everything = [way.at(float(t)) for way in ways for t in way.steps]
    asked = answers(everything)
    rounded = own(everything) if own is not None else []
    walks: list[_Walk] = []
    found: list[Followed | _Walk] = []
    for way in ways:
        mine, asked = asked[: len(way.steps)], asked[len(way.steps) :]
        theirs, rounded = rounded[: len(way.steps)], rounded[len(way.steps) :]
        problem = next((a for a in mine if isinstance(a, str)), "")
        if problem:
            found.append(Followed(way.kind, way.name, (), (), 0.0, 0.0, 0, problem))
            continue
        walk = _Walk(way, [a for a in mine if isinstance(a, Answer)])
        walk.compare([a for a in theirs if isinstance(a, Answer)])
        walks.append(walk)
        found.append(walk)
    for done in range(_HALVINGS):
        middles = answers([w.way.at((w.low + w.high) / 2) for w in walks]) if walks else []
        for walk, middle in zip(walks, middles, strict=True):
            walk.halve(middle)
        if step is not None:
            step(done + 1, _HALVINGS)
    return [f.finish() if isinstance(f, _Walk) else f for f in found]


class _Walk:
    """One path and the part of it that is looked at more and more closely.

    It begins at the step that is least like its neighbours; on a crossing among those with another number of
    bonds at their ends, where there are some. A network that finds its neighbours without a graph is followed
    like the others.
    """

    def __init__(self, way: Path, answers: list[Answer]) -> None:
        self.way = way
        values = np.stack([a.vector() for a in answers])
        self.away = values - values[0]
        width = np.diff(way.steps)[:, None]
        slopes = np.diff(values, axis=0) / width
        beside = [[i for i in (n - 1, n + 1) if 0 <= i < len(slopes)] for n in range(len(slopes))]
        odd = [
            min((float(np.abs((slopes[n] - slopes[i]) * width[n]).max()), i) for i in near)
            for n, near in enumerate(beside)
        ]
        bonds = np.flatnonzero(np.diff([a.edges for a in answers]))
        allowed = bonds.tolist() if way.kind == "crossing" and len(bonds) else range(len(odd))
        chosen = max(allowed, key=lambda n: odd[n][0])
        self.slope = slopes[odd[chosen][1]]
        self.low, self.high = (float(t) for t in way.steps[chosen : chosen + 2])
        self.before, self.after = answers[chosen], answers[chosen + 1]
        self.problem = ""
        self.rounding: float | None = None

    def compare(self, answers: list[Answer]) -> None:
        """The same steps in another precision; where some have no answer there, nothing is said."""
        if len(answers) == len(self.away):
            values = np.stack([a.vector() for a in answers])
            self.rounding = float(np.abs(values - values[0] - self.away).max())

    def halve(self, middle: Answer | str) -> None:
        """Keeps the half that is less like the slope beside, or the one in which a bond comes or goes."""
        if self.problem or isinstance(middle, str):
            self.problem = self.problem or str(middle)
            return
        half = (self.high - self.low) / 2
        first, second = (
            float(np.abs(b.vector() - a.vector() - self.slope * half).max())
            for a, b in ((self.before, middle), (middle, self.after))
        )
        left = first >= second
        if self.way.kind == "crossing":
            came, went = middle.edges != self.before.edges, self.after.edges != middle.edges
            left = left if came == went else came
        if left:
            self.high, self.after = self.low + half, middle
        else:
            self.low, self.before = self.low + half, middle

    def finish(self) -> Followed:
        rest = self.after.vector() - self.before.vector() - self.slope * (self.high - self.low)
        return Followed(
            self.way.kind,
            self.way.name,
            tuple(float(t) for t in self.way.steps),
            tuple(float(np.abs(a).max()) for a in self.away),
            float(np.abs(rest).max()),
            (self.low + self.high) / 2,
            abs(self.after.edges - self.before.edges),
            self.problem,
            self.rounding,
        )


def edge_counts(batch: Batch) -> Int[Tensor, " crystals"]:
    """Edges of the graph that was read; zeros where a network needs none."""
    return torch.zeros_like(batch.num_atoms) if batch.graph is None else batch.graph.num_edges


def largest(followed: Sequence[Followed], kind: Kind) -> Followed | None:
    """The path of a kind with the largest jump; None where none was walked to its end."""
    walked = [f for f in followed if f.kind == kind and not f.problem]
    return max(walked, key=lambda f: f.jump, default=None)
