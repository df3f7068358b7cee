"""The checks of an audit that look at labels: missing ones, impossible ones, outliers, slips of units,
tensors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from facetry.card import Target
from facetry.evaluation.boosting import BoostedTrees
from facetry.evaluation.findings import Finding, Subject
from facetry.evaluation.quantities import (
    find_slips,
    impossible,
    outlying,
    quantity_of,
    unstable_tensors,
    whole_column,
)

__all__ = ["expected_values", "labels", "tensors"]

OUTLIER = 10.0  # robust deviations from what composition says
_FOLDS = 3


def labels(
    subject: Subject, features: Float[np.ndarray, "crystals features"], descriptions: dict[str, str]
) -> list[Finding]:
    """Findings of every target. `descriptions` may say what a column is where its name does not."""
    found = []
    for column, target in enumerate(subject.data.target_info):
        values = subject.data.targets[:, column]
        found += _missing(subject, target, values)
        if target.task == "regression":
            found += _numbers(subject, target, values, features, descriptions.get(target.name, ""))
    return found


def _missing(subject: Subject, target: Target, values: np.ndarray) -> list[Finding]:
    missing = np.isnan(values)
    if not missing.any() or missing.all():
        return []
    count = np.bincount(subject.part[missing], minlength=len(subject.parts))
    size = np.bincount(subject.part, minlength=len(subject.parts))
    where = [f"{n} of {s} in {p}" for n, s, p in zip(count, size, subject.parts, strict=True) if n]
    empty = any(n == s and n for n, s in zip(count.tolist(), size.tolist(), strict=True))
    text = f"{target.name}: labels are missing: {', '.join(where)}"
    return [
        Finding(f"missing labels ({target.name})", "error" if empty else "note", text, int(missing.sum()))
    ]


def _numbers(
    subject: Subject, target: Target, values: np.ndarray, features: np.ndarray, description: str
) -> list[Finding]:
    found = []
    unit = f" {target.unit}" if target.unit else ""
    quantity = quantity_of(target.name, description)
    num_atoms = subject.data.crystals.num_atoms
    for said in whole_column(quantity, values, target.unit, num_atoms):
        found.append(
            Finding(
                f"odd column ({target.name})",
                "warning",
                f"{target.name}{unit}: {said}",
                int((~np.isnan(values)).sum()),
            )
        )
    wrong = impossible(quantity, values)
    if wrong:
        cases = [subject.case(row, value=float(values[row]), detail=why) for row, why in wrong.items()]
        text = f"{target.name}: {len(cases)} values that a {quantity.name} cannot have"
        found.append(Finding(f"impossible values ({target.name})", "error", text, len(cases), cases))
    known = ~np.isnan(values)
    if known.sum() < 30:
        return found
    expected = expected_values(features, values)
    deviation, scale = outlying(values, expected)
    slips = find_slips(values, expected, deviation, scale, target.unit, num_atoms)
    if slips:
        cases = [
            subject.case(s.row, value=float(values[s.row]), detail=f"{s.what}: {s.factor:.4g} times what such"
                         f" crystals have ({expected[s.row]:.4g}{unit})")
            for s in slips
        ]  # fmt: skip
        text = f"{target.name}: {len(cases)} values look like another unit"
        found.append(Finding(f"unit slips ({target.name})", "warning", text, len(cases), cases))
    rows = np.nonzero(np.abs(np.nan_to_num(deviation)) > OUTLIER)[0]
    rows = rows[~np.isin(rows, [s.row for s in slips])]
    rows = rows[np.argsort(-np.abs(deviation[rows]), kind="stable")]
    if len(rows):
        cases = []
        for r in rows.tolist():
            words = (
                f"{abs(deviation[r]):.0f} deviations from {expected[r]:.4g}{unit}, as such compositions have"
            )
            cases.append(subject.case(r, value=float(values[r]), detail=words))
        worst = cases[0]
        text = (
            f"{target.name}: {len(cases)} values are more than {OUTLIER:g} robust deviations"
            f" ({scale:.3g}{unit}) from what their composition says; the farthest is {worst.value:.4g}{unit}"
            f" ({worst.crystal}, {worst.formula})"
        )
        found.append(Finding(f"outliers ({target.name})", "warning", text, len(cases), cases))
    return found


def expected_values(
    features: Float[np.ndarray, "crystals features"], values: Float[np.ndarray, " crystals"]
) -> Float[np.ndarray, " crystals"]:
    """What other crystals say of each value: boosted trees on composition, fitted to the other thirds.

    They are fitted to asinh of the distance from the median in units of the interquartile range, so that a
    value wrong by a factor of a thousand does not pull its neighbours along. NaN where a label is missing.
    """
    known = np.nonzero(~np.isnan(values))[0]
    low, middle, high = np.percentile(values[known], [25, 50, 75])
    scale = max(float(high - low), 1e-9 * max(1.0, abs(float(middle))))
    bent = np.arcsinh((values[known] - middle) / scale)
    fold = np.random.default_rng(0).permutation(len(known)) % _FOLDS
    expected = np.full(len(values), np.nan)
    for number in range(_FOLDS):
        fit, held = known[fold != number], known[fold == number]
        forest = BoostedTrees(trees=100, rate=0.15, seed=number)
        forest.fit(features[fit], bent[fold != number][:, None])
        expected[held] = middle + scale * np.sinh(forest.predict(features[held])[:, 0])
    return expected


def tensors(subject: Subject) -> list[Finding]:
    """Elastic tensors that no stable crystal has, and tensors that are not symmetric."""
    found = []
    for name, extra in subject.data.extras.items():
        values = extra.values
        square = (
            extra.per == "crystal" and getattr(values, "ndim", 0) == 3 and values.shape[1] == values.shape[2]
        )
        if not square:
            continue
        least, skew = unstable_tensors(values)
        size = np.abs(values).max((1, 2))
        rows = np.nonzero(skew > 0.01 * size)[0]
        if len(rows):
            cases = [
                subject.case(r, value=float(skew[r]), detail="largest difference of mirrored entries")
                for r in rows.tolist()
            ]
            text = f"{name}: {len(rows)} tensors are not symmetric"
            found.append(Finding(f"tensors not symmetric ({name})", "error", text, len(rows), cases))
        if values.shape[1] != 6:  # only stiffness must be positive
            continue
        rows = np.nonzero(least <= 0)[0]
        if len(rows):
            diagonal = np.diagonal(values, axis1=1, axis2=2).min(1)
            spoilt = int((diagonal[rows] <= 0).sum())
            cases = [
                subject.case(
                    r,
                    value=float(least[r]),
                    detail=f"least eigenvalue; least diagonal entry {diagonal[r]:.4g}",
                )
                for r in rows[np.argsort(least[rows])].tolist()
            ]
            text = (
                f"{name}: {len(rows)} tensors are not positive definite ({spoilt} with a diagonal"
                " entry of 0 or below):"
                " unstable crystals or failed calculations"
            )
            found.append(
                Finding(f"unstable tensors ({name})", "error", text, len(rows), cases, {"diagonal": spoilt})
            )
    return found
