"""The checks of an audit: each takes what is audited and gives findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from facetry.elements import SYMBOLS
from facetry.evaluation.findings import Case, Finding, Level, Subject
from facetry.evaluation.plausibility import Plausibility

__all__ = ["duplicates", "elements", "names", "physics", "shared", "unreadable"]

CONTACT = 0.6  # of the sum of covalent radii; the nearest of 19093 crystals of MP-20 is 0.71
DENSE, EMPTY = 0.4, 4.0  # volume over that of other crystals with the same atoms
_UNITS = (
    (0.529177**3, "Bohr where Å is meant"),
    (0.001, "nm where Å is meant"),
    (1000.0, "pm/10 where Å is meant"),
)


def unreadable(skipped: Sequence[tuple[str, str]]) -> list[Finding]:
    """Inputs that gave no crystal, with the reasons."""
    if not skipped:
        return []
    cases = [Case(source, detail=reason) for source, reason in skipped]
    return [Finding("unreadable", "error", f"{len(cases)} inputs gave no crystal", len(cases), cases)]


def names(subject: Subject) -> list[Finding]:
    """Identifiers that stand on several rows."""
    all_names = subject.data.names.astype(str)
    unique, first, inverse, counts = np.unique(
        all_names, return_index=True, return_inverse=True, return_counts=True
    )
    rows = [r for r in np.nonzero((counts > 1)[inverse])[0].tolist() if first[inverse[r]] != r]
    if not rows or (len(unique) == 1 and not unique[0]):
        return []
    cases = [subject.case(r, int(first[inverse[r]])) for r in rows]
    return [
        Finding(
            "repeated names", "warning", f"{len(rows)} rows have a name that came before", len(rows), cases
        )
    ]


def duplicates(subject: Subject) -> list[Finding]:
    """The same crystal twice, whatever part it is in; nearly the same; one formula in one space group."""
    like, found = subject.likeness, []
    same_rows, same_first = _repeats(like.same)
    if len(same_rows):
        groups = len(np.unique(like.same[same_rows]))
        largest = int(np.bincount(like.same).max())
        cases = [subject.case(r, f) for r, f in zip(same_rows.tolist(), same_first.tolist(), strict=True)]
        found.append(
            Finding(
                "duplicates",
                "warning",
                f"{len(same_rows)} crystals repeat an earlier one (confirmed; {groups} structures are"
                " there more than"
                f" once, the commonest {largest} times): {len(np.unique(like.same))} different"
                " crystals are left",
                len(same_rows),
                cases,
                {"structures": groups, "largest": largest, "distinct": len(np.unique(like.same))},
            )
        )
        found += _labels_of_duplicates(subject, like.same)
    near_rows, near_first = _repeats(like.near)
    only_near = ~np.isin(near_rows, same_rows)
    if only_near.any():
        rows, firsts = near_rows[only_near], near_first[only_near]
        volumes = np.abs(np.linalg.det(subject.data.crystals.lattice)) / subject.data.crystals.num_atoms
        cases = [
            subject.case(r, f, float(volumes[r] / volumes[f]), "ratio of volumes per atom")
            for r, f in zip(rows.tolist(), firsts.tolist(), strict=True)
        ]
        text = (
            f"{len(rows)} more are nearly the same as an earlier one: up to the volume and small"
            " displacements"
        )
        found.append(Finding("near duplicates", "note", text, len(rows), cases))
    keys = np.array(
        [
            f"{f} {g}" if g else f"{f} row {i}"
            for i, (f, g) in enumerate(zip(subject.identity.formulas, subject.identity.groups, strict=True))
        ]
    )
    rows, firsts = _repeats(np.unique(keys, return_inverse=True)[1])
    others = ~np.isin(rows, near_rows)
    if len(rows):
        cases = [
            subject.case(r, f, detail=f"space group {subject.identity.groups[r]}")
            for r, f in zip(rows[others].tolist(), firsts[others].tolist(), strict=True)
        ]
        found.append(
            Finding(
                "formula and space group",
                "note",
                f"{len(rows)} crystals share formula and space group with an earlier one;"
                f" {int(others.sum())} of them"
                " are another structure",
                len(rows),
                cases,
                {"other structures": int(others.sum())},
            )
        )
    return found


def _repeats(
    group: Int[np.ndarray, " crystals"],
) -> tuple[Int[np.ndarray, " repeats"], Int[np.ndarray, " repeats"]]:
    """Rows whose group came before, and the first row of each."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    rows = np.nonzero(first[inverse] != np.arange(len(group)))[0]
    return rows, first[inverse[rows]]


def _labels_of_duplicates(subject: Subject, group: Int[np.ndarray, " crystals"]) -> list[Finding]:
    """How far the labels of one and the same crystal are apart: no model can be better than half of it."""
    found = []
    for column, target in enumerate(subject.data.target_info):
        values = subject.data.targets[:, column]
        known = np.nonzero(~np.isnan(values))[0]
        rows, firsts = _repeats(group[known])
        rows, firsts = known[rows], known[firsts]
        off = np.abs(values[rows] - values[firsts])
        spread = float(np.subtract(*np.percentile(values[known], [84, 16]))) / 2 if len(known) else 0.0
        bad = off > (0.05 * spread if target.task == "regression" else 0)
        if not len(rows) or not bad.any():
            continue
        order = np.argsort(-off, kind="stable")[: int(bad.sum())]
        cases = []
        for row, first, by in zip(*(x[order].tolist() for x in (rows, firsts, off)), strict=True):
            words = f"{target.name} {values[row]:.6g} and {values[first]:.6g}"
            cases.append(subject.case(row, first, by, words))
        unit = f" {target.unit}" if target.unit else ""
        middle = f"; the median difference of all is {np.median(off):.3g}{unit}" if not target.classes else ""
        text = (
            f"{target.name}: {len(cases)} of {len(rows)} repeated crystals have another label than"
            f" the first{middle}"
        )
        found.append(Finding("contradicting labels", "warning", text, len(cases), cases))
    return found


def shared(subject: Subject) -> list[Finding]:
    """What two parts have in common: crystals, near crystals, formulas, prototypes."""
    found: list[Finding] = []
    formula = np.unique(np.array(subject.identity.formulas), return_inverse=True)[1]
    prototypes = np.array(subject.identity.prototypes)
    prototype = np.unique(prototypes, return_inverse=True)[1]
    known = prototypes != ""
    every = np.ones(len(formula), dtype=bool)
    pairs = [(None, None)] if subject.folds else subject.pairs_of_parts()
    for test, train in pairs:
        where = "in two folds" if test is None else f"of {subject.parts[test]} are in {subject.parts[train]}"
        size = len(formula) if test is None else int((subject.part == test).sum())
        own = "" if test is None else f" of {subject.parts[test]}"
        label = "" if test is None else f" ({subject.parts[train]}, {subject.parts[test]})"
        same, partner = _in_both(subject, subject.likeness.same, every, test, train)
        near, near_partner = _in_both(subject, subject.likeness.near, every, test, train)
        forms, form_partner = _in_both(subject, formula, every, test, train)
        protos, _ = _in_both(subject, prototype, known, test, train)
        if len(same):
            cases = [subject.case(r, p) for r, p in zip(same.tolist(), partner.tolist(), strict=True)]
            text = f"{_share(len(same), size)} crystals {where}: the same structure"
            level: Level = "error" if not train else "warning"
            found.append(Finding(f"leak{label}", level, text, len(same), cases, {"share": len(same) / size}))
        only_near = ~np.isin(near, same)
        if only_near.any():
            cases = [
                subject.case(r, p)
                for r, p in zip(near[only_near].tolist(), near_partner[only_near].tolist(), strict=True)
            ]
            text = f"{_share(len(cases), size)} more crystals {where} but for volume and small displacements"
            found.append(Finding(f"near leak{label}", "warning", text, len(cases), cases))
        other = ~np.isin(forms, near)
        if other.any():
            rows, partners = forms[other].tolist(), form_partner[other].tolist()
            cases = [subject.case(r, p) for r, p in zip(rows, partners, strict=True)]
            of = "two folds" if test is None else subject.parts[train]
            text = f"{_share(len(forms), size)} crystals{own} have a formula that is in {of};"
            text += f" {len(cases)} of them as another structure (polymorphs)"
            numbers = {"formulas": len(forms), "polymorphs": len(cases), "share": len(forms) / size}
            found.append(Finding(f"polymorphs{label}", "warning", text, len(cases), cases, numbers))
        if len(protos):
            of = "another fold" if test is None else subject.parts[train]
            text = f"{_share(len(protos), size)} crystals{own} have a prototype that is in {of}"
            found.append(
                Finding(
                    f"prototypes{label}", "note", text, len(protos), numbers={"share": len(protos) / size}
                )
            )
    return found


def _share(count: int, size: int) -> str:
    return f"{count} of {size} ({100 * count / max(size, 1):.1f} %)"


def _in_both(
    subject: Subject, group: np.ndarray, usable: np.ndarray, test: int | None, train: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `test` whose group has members in `train`, and the first of these; without parts, rows whose
    group has members in an earlier part."""
    if test is not None:
        there = np.nonzero((subject.part == train) & usable)[0]
        unique, first = np.unique(group[there], return_index=True)
        rows = np.nonzero((subject.part == test) & usable)[0]
        at = np.searchsorted(unique, group[rows]).clip(max=max(len(unique) - 1, 0))
        hit = unique[at] == group[rows] if len(unique) else np.zeros(len(rows), dtype=bool)
        return rows[hit], there[first[at[hit]]]
    rows = np.nonzero(usable)[0]
    order = rows[np.lexsort((subject.part[rows], group[rows]))]
    _, first, inverse = np.unique(group[order], return_index=True, return_inverse=True)
    lowest = order[first[inverse]]
    hit = subject.part[order] != subject.part[lowest]
    return order[hit], lowest[hit]


def elements(subject: Subject) -> list[Finding]:
    """Elements that are in no crystal of the first part but in those of others."""
    if subject.folds or len(subject.parts) < 2:
        return []
    crystals = subject.data.crystals
    owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
    seen = np.unique(crystals.atomic_numbers[subject.part[owner] == 0])
    found = []
    for part in range(1, len(subject.parts)):
        atoms = (subject.part[owner] == part) & ~np.isin(crystals.atomic_numbers, seen)
        if not atoms.any():
            continue
        rows = np.unique(owner[atoms])
        counts = Counter(SYMBOLS[z] for z in np.unique(
            owner[atoms] * 200 + crystals.atomic_numbers[atoms]
        ) % 200)  # fmt: skip
        words = ", ".join(f"{e} ({n})" for e, n in counts.most_common())
        text = (
            f"{len(rows)} crystals of {subject.parts[part]} hold elements that {subject.parts[0]}"
            f" has not: {words}"
        )
        cases = [subject.case(r) for r in rows.tolist()]
        found.append(Finding(f"unseen elements ({subject.parts[part]})", "warning", text, len(rows), cases))
    return found


def physics(subject: Subject, physical: Plausibility) -> list[Finding]:
    """Atoms too near, cells too full or too empty, a lattice in another unit."""
    found = []
    rows = np.nonzero(physical.contact < CONTACT)[0]
    rows = rows[np.argsort(physical.contact[rows], kind="stable")]
    if len(rows):
        cases = []
        for r in rows.tolist():
            pair = "-".join(SYMBOLS[z] for z in physical.elements[r].tolist())
            cases.append(subject.case(r, value=float(physical.distance[r]), detail=f"{pair} distance, Å"))
        text = f"{len(rows)} crystals have atoms nearer than {CONTACT} of the sum of their covalent radii"
        found.append(Finding("impossible distances", "error", text, len(rows), cases))
    ratio = physical.volume_ratio
    middle = float(np.median(ratio)) if len(ratio) else 1.0
    for factor, what in _UNITS:
        if 0.7 < middle / factor < 1.5 and len(ratio) >= 10:
            text = (
                f"half of all volumes are below {middle:.3g} of what such atoms take: the lattices"
                f" look like {what}"
            )
            found.append(Finding("unit of lattices", "error", text, len(ratio)))
    rows = np.nonzero(ratio < DENSE)[0]
    if len(rows):
        cases = [
            subject.case(
                r, value=float(physical.density[r]), detail=f"g/cm³; {ratio[r]:.2f} of the usual volume"
            )
            for r in rows[np.argsort(ratio[rows])].tolist()
        ]
        text = f"{len(rows)} crystals are denser than atoms allow: below {DENSE} of the usual volume"
        found.append(Finding("impossible densities", "error", text, len(rows), cases))
    rows = np.nonzero(ratio > EMPTY)[0]
    if len(rows):
        cases = [
            subject.case(
                r, value=float(physical.density[r]), detail=f"g/cm³; {ratio[r]:.1f} times the usual volume"
            )
            for r in rows[np.argsort(-ratio[rows])].tolist()
        ]
        text = (
            f"{len(rows)} crystals are mostly empty (above {EMPTY:g} times the usual volume):"
            " slabs, molecules, pores"
        )
        found.append(Finding("empty cells", "note", text, len(rows), cases))
    return found
