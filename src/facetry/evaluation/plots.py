"""Plots as PNG bytes; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from facetry.evaluation.metrics import CALIBRATION_BINS, Scores
from facetry.evaluation.relaxation import RelaxScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREEN = "#7b818c", "#3f7fd6", "#d9822b", "#3a9a6b"  # readable on white and on black
_DENSE = 3000


def target_plot(scores: Scores, number: int = 0, transparent: bool = False) -> bytes:
    """Predicted against true values of one target, or the confusion matrix of a classifier."""
    if scores.targets[number].task == "regression":
        return parity_plot(scores, number, transparent)
    return confusion_plot(scores, number, transparent)


def parity_plot(scores: Scores, number: int = 0, transparent: bool = False) -> bytes:
    """Predicted against true values of a regression target, with the 90 % interval as a band."""
    target = scores.targets[number]
    count = len(scores.targets)
    chosen = scores.predictions[number::count]
    true = np.asarray(scores.truth)[:, number]
    value = np.array([np.nan if p.value is None else p.value for p in chosen], dtype=np.float64)
    keep = ~(np.isnan(true) | np.isnan(value))
    half = next((p.upper - p.value for p in chosen if p.upper is not None and p.value is not None), None)
    figure, axes = _figure(4.6, 4.4)
    unit = f" ({target.unit})" if target.unit else ""
    draw_parity(axes, true[keep], value[keep], half)
    axes.set_xlabel(f"true {target.target}{unit}")
    axes.set_ylabel(f"predicted {target.target}{unit}")
    return _png(figure, transparent)


def draw_parity(
    axes: Axes,
    true: Float[np.ndarray, " crystals"],
    value: Float[np.ndarray, " crystals"],
    half: float | None = None,
) -> None:
    """Points (or their density where they are many), the diagonal and the interval's band."""
    both = np.concatenate([true, value]) if len(true) else np.array([0.0, 1.0])
    low, high = float(both.min()), float(both.max())
    margin = 0.04 * (high - low) or 0.5
    ends = np.array([low - margin, high + margin])
    if half is not None:
        axes.fill_between(ends, ends - half, ends + half, color=INK, alpha=0.15, lw=0, label="90 % interval")
    axes.plot(ends, ends, color=INK, lw=1)
    if len(true) > _DENSE:
        axes.hexbin(
            true,
            value,
            gridsize=70,
            extent=(*ends, *ends),
            bins="log",
            cmap="viridis",
            mincnt=1,
            linewidths=0.1,
        )
    else:
        axes.plot(true, value, "o", ms=3.5, mew=0, alpha=0.5, color=BLUE)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    if half is not None:
        axes.legend(frameon=False, labelcolor=INK, loc="upper left")


def confusion_plot(scores: Scores, number: int = 0, transparent: bool = False) -> bytes:
    """How often each true class (rows) was given each label (columns)."""
    target = scores.targets[number]
    count, names = len(scores.targets), list(target.classes)
    true = np.asarray(scores.truth)[:, number]
    given = [p.value for p in scores.predictions[number::count]]
    pairs = [
        (int(t), names.index(str(v))) for t, v in zip(true, given, strict=True) if v is not None and t == t
    ]
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, tuple(np.array(pairs, dtype=np.int64).reshape(-1, 2).T), 1)
    figure, axes = _figure(4.6, 4.4)
    _draw_confusion(axes, matrix, names)
    axes.set_title(target.target, color=INK)
    return _png(figure, transparent)


def _draw_confusion(axes: Axes, matrix: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 12:
        for (row, column), cell in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.55 else "black"
            axes.text(column, row, str(cell), ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")


def reliability(
    confidence: Float[np.ndarray, " crystals"], right: Float[np.ndarray, " crystals"]
) -> list[tuple[float, float, int]]:
    """Mean probability of the predicted class, share of right answers and number of crystals, for each of
    the bins of the calibration error that is not empty."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return [
        (float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins)
    ]


def reliability_plot(scores: Scores, number: int = 0, transparent: bool = False) -> bytes | None:
    """How often a classifier is right against how sure it was; None where it gave no answer. Points below the
    diagonal are overconfident; their area grows with the number of crystals."""
    target, count = scores.targets[number], len(scores.targets)
    true = np.asarray(scores.truth)[:, number]
    given = [
        (p.probability, str(p.value) == target.classes[int(t)])
        for t, p in zip(true, scores.predictions[number::count], strict=True)
        if p.probability is not None and t == t
    ]
    if not given:
        return None
    points = np.array(reliability(*np.array(given, dtype=np.float64).T))
    figure, axes = _figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color=INK, lw=1)
    axes.plot(points[:, 0], points[:, 1], color=BLUE, lw=1.2)
    axes.scatter(points[:, 0], points[:, 1], s=12 + 300 * points[:, 2] / points[:, 2].sum(), color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("share of right answers")
    axes.set_title(target.target, color=INK)
    return _png(figure, transparent)


def cell_plot(scores: RelaxScores, transparent: bool = False) -> bytes:
    """Density maps of lengths, angles and distances (Klipfel et al. 2023, Fig. 5): those the model got above,
    those of its answer below, against the true ones. Distances of neighbouring atoms are ratios to the true
    distance, against that."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = scores.cells
    assert cells is not None
    good = cells.finite
    true = cells.true[good]
    rows = [("input", cells.noisy[good], cells.noisy_ratio), ("answer", cells.answer[good], cells.ratio)]
    rows = rows[1:] if scores.task == "reconstruct" else rows
    wide = cells.distance is not None and len(cells.distance) > 0
    figure = Figure(figsize=(10.2 if wide else 7.0, 3.2 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 3 if wide else 2, squeeze=False)
    for (name, values, ratio), line in zip(rows, grid, strict=True):
        for axes, first, what in ((line[0], 0, "length, Å"), (line[1], 3, "angle, °")):
            right, shown = (table[:, first : first + 3].ravel() for table in (true, values))
            _density(axes, right, shown, _range(right))
            axes.set(xlabel=f"true {what}", ylabel=f"{name}: {what}")
        if wide:
            assert cells.distance is not None
            assert ratio is not None
            _density(line[2], cells.distance, ratio, _range(cells.distance), (0.5, 1.5))
            line[2].set(xlabel="true distance, Å", ylabel=f"{name}: ratio of distances")
        for axes in line:
            _plain_ink(axes)
    return _png(figure, transparent)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [0.5, 99.5])
    margin = 0.15 * (high - low) + 0.05 * abs(high)
    return float(low - margin), float(high + margin)


def _density(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    span: tuple[float, float],
    other: tuple[float, float] | None = None,
) -> None:
    """How often values fall together, on a logarithmic scale, with the line where they are right."""
    from matplotlib.colors import LogNorm

    high = other or span
    counts, first, second = np.histogram2d(x, y, bins=80, range=(span, high))
    shown = np.ma.masked_equal(counts.T, 0)
    axes.pcolormesh(first, second, shown, cmap="viridis", norm=LogNorm(1, max(2.0, counts.max())))
    axes.plot(span, span if other is None else (1.0, 1.0), color=INK, lw=0.8)
    axes.set(xlim=span, ylim=high)


def _plain_ink(axes: Axes) -> None:
    axes.tick_params(colors=INK, which="both")
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)


def changes_plot(
    rows: Mapping[str, Mapping[str, Sequence[float]]], label: str, transparent: bool = False
) -> bytes:
    """Numbers on a logarithmic axis, a line of points for each row and a colour for each of its groups; zeros
    stand at the left edge."""
    figure, axes = _figure(8.2, 0.8 + 0.34 * len(rows))
    groups = list(dict.fromkeys(group for row in rows.values() for group in row))
    found = [v for row in rows.values() for values in row.values() for v in values if 0 < v < np.inf]
    low, high = (min(found) / 10, max(found) * 3) if found else (1e-17, 1.0)
    for place, row in enumerate(rows.values()):
        for number, group in enumerate(groups):
            values = np.asarray(row.get(group, ()), dtype=np.float64)
            height = np.full(len(values), place + 0.22 * (number - (len(groups) - 1) / 2))
            color = (BLUE, ORANGE, GREEN)[number % 3]
            shown = np.clip(values, low, high)
            axes.plot(shown, height, "|", ms=7, alpha=0.6, color=color, label=None if place else group)
    axes.set_xscale("log")
    axes.set_xlim(low, high * 1.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if rows:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(groups)}  # clear of the points
        axes.legend(frameon=False, labelcolor=INK, borderaxespad=0.2, **place)
    return _png(figure, transparent)


def response_plot(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    jump: tuple[float, float] | None = None,
    logarithmic: bool = True,
    transparent: bool = False,
) -> bytes:
    """How far answers go (y) with the size of a deformation (x), a line for each crystal; a cross where the
    largest jump is."""
    figure, axes = _figure(4.4, 3.4)
    for x, y in lines:
        axes.plot(x, y, color=BLUE, lw=0.8, alpha=0.6)
    if jump is not None:
        axes.plot([jump[0]], [jump[1]], "x", color=ORANGE, ms=8, mew=2)
    if logarithmic and any(v > 0 for _, y in lines for v in y):
        axes.set(xscale="log", yscale="log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return _png(figure, transparent)


def learning_plot(history: Sequence[Mapping[str, Any]], transparent: bool = False) -> bytes | None:
    """Training loss and validation metric over the epochs; None where there is nothing to draw."""
    columns = {key for row in history for key in row}
    known = ("val_mae", "val_roc_auc", "val_accuracy", "val_length_mae")
    metric = next((c for c in known if c in columns), None)
    metric = metric or next(
        (c for c in sorted(columns) if c.startswith(("val_mae", "val_roc", "val_acc"))), None
    )
    drawn = [c for c in ("train_loss", metric, "val_angle_mae") if c in columns]
    if not drawn or not history:
        return None
    figure, axes = _figure(6.2, 3.2)
    for column, color in zip(drawn, (ORANGE, BLUE, GREEN), strict=False):
        epochs, values = _series(history, str(column))
        axes.plot(
            epochs, values, color=color, lw=1.6, marker="o" if len(epochs) < 25 else None, ms=3, label=column
        )
    axes.set_xlabel("epoch")
    values = np.concatenate([_series(history, str(c))[1] for c in drawn])
    if len(values) and values.min() > 0:
        axes.set_yscale("log")
    axes.legend(frameon=False, labelcolor=INK)
    return _png(figure, transparent)


def distribution_plot(groups: Mapping[str, np.ndarray], label: str, transparent: bool = False) -> bytes:
    """How often numbers take their values, a line for every group that has some; counts are logarithmic, so
    that single outliers show."""
    figure, axes = _figure(6.2, 3.2)
    filled = {name: values for name, values in groups.items() if len(values)}
    everything = np.concatenate([np.zeros(0), *filled.values()])
    if len(everything):
        edges = np.histogram_bin_edges(everything, 60)
        for (name, values), color in zip(filled.items(), (BLUE, ORANGE, GREEN, INK, INK, INK), strict=False):
            axes.stairs(np.histogram(values, edges)[0], edges, color=color, lw=1.4, label=name)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=INK)
    axes.set_xlabel(label)
    axes.set_ylabel("crystals")
    return _png(figure, transparent)


def _series(history: Sequence[Mapping[str, Any]], column: str) -> tuple[np.ndarray, np.ndarray]:
    points = []
    for row in history:
        try:
            points.append((float(row["epoch"]), float(row[column])))
        except (KeyError, TypeError, ValueError):
            continue
    table = np.array([p for p in points if np.isfinite(p[1])]).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plain_ink(axes)
    return figure, axes


def _png(figure: Figure, transparent: bool) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()
