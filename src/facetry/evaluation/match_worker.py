"""The process that matches, spoken to over stdin and stdout; see `facetry.evaluation.match_pool`."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from typing import Any

from facetry.crystal import Crystal
from facetry.evaluation.matching import Matcher, Reduced
from facetry.io.protocol import receive, results_from, send

_KEPT = 4096  # reduced crystals; a reference and its candidates come together

Answer = list[Any]
"""[distance or None, reason or ""]"""


class Pairs:
    """Answers pairs of crystals that are known by a number; each is reduced once."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.matcher = Matcher(**options)
        self.reduced: OrderedDict[int, Reduced | str] = OrderedDict()

    def reduce(self, key: int, crystal: Crystal) -> Reduced | str:
        """The reduced crystal, or why there is none."""
        if key not in self.reduced:
            try:
                self.reduced[key] = self.matcher.reduce(crystal)
            except Exception as error:  # pymatgen raises many things for cells it cannot reduce
                self.reduced[key] = f"pymatgen could not reduce its cell ({_said(error)})"
            if len(self.reduced) > _KEPT:
                self.reduced.popitem(last=False)
        return self.reduced[key]

    def answer(self, first: tuple[int, Crystal], second: tuple[int, Crystal]) -> Answer:
        """Distance of a pair; a reason where it could not be found out."""
        pair = [self.reduce(*first), self.reduce(*second)]
        for reduced, (_, crystal) in zip(pair, (first, second), strict=True):
            if isinstance(reduced, str):
                return [None, f"{crystal.name}: {reduced}"]
        try:
            return [self.matcher.distance(*pair), ""]
        except Exception as error:
            return [None, f"pymatgen could not compare them ({_said(error)})"]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def main() -> None:
    """Answer questions about pairs of structures, one after the other, until the input ends."""
    # The protocol owns the real stdout; whatever a library prints must not get into it.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    requests = os.fdopen(os.dup(0), "rb")
    warnings.simplefilter("ignore")
    message = receive(requests)
    if message is None:
        return
    try:
        pairs = Pairs(message[0])
    except ImportError as error:
        send(answers, str(error))
        return
    send(answers, "ready")
    while (message := receive(requests)) is not None:
        header, body = message
        found, _ = results_from(header["crystals"], body)
        crystals = dict(zip(header["keys"], (crystal for _, crystal in found), strict=True))
        for first, second in header["pairs"]:
            send(answers, pairs.answer((first, crystals[first]), (second, crystals[second])))
