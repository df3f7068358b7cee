"""Matching: pymatgen's answers to the last bit, whether filtered or not, whatever a pair does."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from facetry.crystal import Crystal
from facetry.evaluation import match_pool
from facetry.evaluation.match_pool import MatchTask, match_pairs
from facetry.evaluation.matching import Matcher, species_ratio
from facetry.evaluation.validity import minimum_distances, why_invalid
from facetry.io.protocol import receive, results_message, send
from tests import crystals as known

pytest.importorskip("pymatgen.core")


def original(first: Crystal, second: Crystal) -> float | None:
    """What pymatgen says, untouched."""
    from pymatgen.core.structure_matcher import StructureMatcher

    found = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(
        first.to_pymatgen(), second.to_pymatgen()
    )
    return None if found is None else float(found[0])


def varied(crystal: Crystal, rng: np.random.Generator, noise: float, strain: float) -> Crystal:
    """Atoms moved, cell strained, another cell choice, sites in another order."""
    n = len(crystal)
    change = np.eye(3, dtype=int)
    i, j = rng.permutation(3)[:2]
    change[i, j] = rng.integers(-1, 2)
    if rng.random() < 0.2:
        change[rng.integers(3)] *= 2
    lattice = crystal.lattice @ (np.eye(3) + strain * rng.normal(size=(3, 3)))
    moved = crystal.frac_coords + noise * rng.normal(size=(n, 3)) @ np.linalg.inv(lattice)
    order = rng.permutation(n)
    return Crystal(lattice, moved[order], crystal.atomic_numbers[order]).supercell(change)


def real(data_folder, name: str, count: int) -> list[Crystal]:
    from facetry.data.crystals import CrystalTable

    table = CrystalTable.from_parquet(data_folder / name / "test.parquet")
    rows = np.linspace(0, len(table) - 1, count).astype(int)
    return [c for c in table.select(rows) if len(c) <= 12]


def pairs_of(crystals: list[Crystal], rng: np.random.Generator) -> list[tuple[Crystal, Crystal]]:
    """A crystal and a variation of it, of growing size; and pairs of different crystals of one ratio."""
    pairs = []
    for c in crystals:
        for noise, strain in ((0.02, 0.01), (0.2, 0.05), (0.5, 0.15)):
            pairs.append((c, varied(c, rng, noise, strain)))
    for a, b in pairwise(crystals):  # the elements of one in the structure of another
        if sorted(np.unique(a.atomic_numbers, return_counts=True)[1]) == sorted(
            np.unique(b.atomic_numbers, return_counts=True)[1]
        ):
            renamed = dict(zip(_by_count(b), _by_count(a), strict=True))
            pairs.append((a, b.replace(atomic_numbers=[renamed[z] for z in b.atomic_numbers.tolist()])))
        pairs.append((a, b))
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]


def _by_count(crystal: Crystal) -> list[int]:
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    return numbers[np.argsort(counts, kind="stable")].tolist()


@pytest.mark.parametrize(("name", "count"), [("perov5", 9), ("mp20", 16), ("carbon24", 9)])
def test_filtered_and_unfiltered_agree_with_pymatgen(data_folder, rng, name, count):
    matcher, plain = Matcher(), Matcher(filtered=False)
    pairs = pairs_of(real(data_folder, name, count), rng)
    left_out = matched = 0
    for first, second in pairs:
        wanted = original(first, second)
        a, b = matcher.reduce(first), matcher.reduce(second)
        same_ratio = species_ratio(first) == species_ratio(second)
        assert plain.distance(a, b) == wanted  # bit for bit
        assert matcher.distance(a, b) == wanted
        if not same_ratio:
            assert wanted is None
        left_out += not same_ratio or not a.may_match(b, 0.3)
        matched += wanted is not None
    assert matched > len(pairs) / 8
    assert left_out > len(pairs) / 12


def test_the_lattice_filter_bites_where_lattices_differ(rng):
    matcher = Matcher()
    long, cube = (Crystal(np.diag(d), [[0, 0, 0]], [29]) for d in ([2, 2, 9.0], [3, 3, 3.0]))
    a, b = matcher.reduce(long), matcher.reduce(cube)
    assert not b.may_match(a, 0.3) or not a.may_match(b, 0.3)
    assert original(long, cube) is None
    assert original(cube, long) is None


def test_mixed_sites_are_species_of_their_own():
    def alloy(share: float) -> Crystal:
        return Crystal(np.eye(3) * 3.0, [[0, 0, 0]], [29], [{29: share, 28: 1 - share}])

    matcher = Matcher()
    cells = [matcher.reduce(alloy(s)) for s in (0.6, 0.6, 0.7)]
    assert matcher.distance(cells[0], cells[1]) == original(alloy(0.6), alloy(0.6)) == 0.0
    assert matcher.distance(cells[0], cells[2]) is None is original(alloy(0.6), alloy(0.7))
    assert species_ratio(alloy(0.6)) == species_ratio(alloy(0.7))
    assert species_ratio(alloy(0.6)) != species_ratio(known.cu())


def test_a_supercell_a_mirror_and_itself_match():
    matcher = Matcher()
    for crystal in (known.nacl(), known.si(), known.zno()):
        own = matcher.reduce(crystal)
        for other in (
            crystal,
            crystal.supercell([2, 1, 1]),
            crystal.supercell([[1, 1, 0], [0, 1, 0], [0, 0, -1]]),
        ):
            assert matcher.distance(own, matcher.reduce(other)) < 1e-6
    assert matcher.distance(matcher.reduce(known.nacl()), matcher.reduce(known.cscl())) is None


# --- processes ----------------------------------------------------------------------------------------------


def tasks() -> list[MatchTask]:
    cells = [known.nacl(), known.nacl_conventional(), known.zno(), known.zno(5.4), known.si(), known.cu()]
    numbered = list(enumerate(cells))
    return [MatchTask(reference, numbered) for reference in numbered]


def test_processes_give_what_one_gives_in_order():
    here = list(match_pairs(tasks(), workers=0))
    assert list(match_pairs(tasks(), workers=2)) == here
    assert here[0][0] == [0.0, ""]
    assert here[0][1][0] == pytest.approx(0, abs=1e-6)
    assert here[0][2] == [None, ""]
    assert list(match_pairs([], workers=2)) == []


def test_a_worker_leaves_when_its_input_ends(tmp_path):
    cell, request = known.cu(), {"keys": [0, 1], "pairs": [[0, 1]]}
    header, body = results_message([("a", cell), ("b", cell)])
    with open(tmp_path / "asked", "wb") as stream:
        send(stream, {})
        send(stream, request | {"crystals": header}, body)
    command = [sys.executable, "-c", match_pool._CODE]
    with open(tmp_path / "asked", "rb") as asked, open(tmp_path / "said", "wb") as said:
        subprocess.run(command, stdin=asked, stdout=said, timeout=120, check=True)
    with open(tmp_path / "said", "rb") as answers:
        assert receive(answers) == ("ready", b"")
        assert receive(answers) == ([0.0, ""], b"")
        assert receive(answers) is None


_HANGS = """
import facetry.evaluation.match_worker as w
before = w.Pairs.answer
def answer(self, first, second):
    if second[1].name == "hangs":
        import time; time.sleep(600)
    if second[1].name == "crashes":
        import os; os._exit(9)
    return before(self, first, second)
w.Pairs.answer = answer
"""


def test_a_pair_that_hangs_or_crashes_stops_no_other(monkeypatch):
    start = match_pool._CODE.replace("; main()", f"; exec({_HANGS!r}); main()")
    monkeypatch.setattr(match_pool, "_CODE", start)
    names = ["a", "hangs", "b", "crashes", "c"]
    candidates = [(i + 1, known.cu().replace(name=name)) for i, name in enumerate(names)]
    began = time.monotonic()
    (answers,) = match_pairs([MatchTask((0, known.cu()), candidates)], workers=1, time_limit=3)
    assert [a[0] for a in answers] == [0.0, None, 0.0, None, 0.0]
    assert "no answer within 3 s" in answers[1][1]
    assert "crashed (exit code 9)" in answers[3][1]
    assert time.monotonic() - began < 120


def test_what_pymatgen_cannot_reduce_has_a_reason(monkeypatch):
    from facetry.evaluation.match_worker import Pairs

    pairs = Pairs({})
    monkeypatch.setattr(pairs.matcher, "reduce", lambda crystal: 1 / 0)
    distance, reason = pairs.answer((0, known.cu()), (1, known.cu()))
    assert distance is None
    assert reason == "Cu: pymatgen could not reduce its cell (ZeroDivisionError: division by zero)"


# --- validity -----------------------------------------------------------------------------------------------


def test_minimum_distances_are_those_of_a_wide_search(rng):
    from facetry.graph import radius

    crystals = [known.nacl(), known.zno(), known.cu(), known.po()]
    for n in (1, 2, 5, 9):
        lattice = rng.normal(size=(3, 3)) * 4
        crystals.append(Crystal(lattice, rng.random((n, 3)) * 3 - 1, rng.integers(1, 90, n)))
    found = minimum_distances(crystals).tolist()
    for crystal, distance in zip(crystals, found, strict=True):
        vectors = radius([crystal], 9.0)
        frac = (
            crystal.frac_coords[vectors.neighbor]
            + vectors.image.numpy()
            - crystal.frac_coords[vectors.center]
        )
        assert distance == pytest.approx(np.linalg.norm(frac @ crystal.lattice, axis=1).min(), abs=1e-9)
    assert len(minimum_distances([])) == 0


def test_reasons_why_not_valid():
    close = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0.1]], [11, 17])
    same = Crystal(np.eye(3) * 4, [[0, 0, 0], [1, 0, 0]], [11, 17])
    charged = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 0.5], [0.5, 0.5, 0]], [11, 17, 17])
    tiny = Crystal(np.eye(3) * 0.4, [[0, 0, 0]], [11])
    assert why_invalid([known.nacl(), close, same, charged, tiny]) == [
        "",
        "two atoms are 0.40 Å apart",
        "two atoms are 0.00 Å apart",
        "no oxidation states cancel",
        "the cell has 0.064 Å³",
    ]
