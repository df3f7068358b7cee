"""Gradient boosting on histograms, small: many shallow trees, each fitted to what the others leave.

The method of Friedman (Ann. Stat. 29 (2001) 1189) with features in bins (LightGBM, NIPS 2017), in numpy. It
is here to say what composition alone predicts; a package of its own would weigh more than all of this.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8

__all__ = ["BoostedTrees"]

_BINS = 48


@dataclass
class BoostedTrees:
    """A sum of regression trees for several outputs, each tree complete to its depth.

    `loss` "squared" fits numbers (outputs are columns), "logistic" the logit of a probability for every
    column. A split must leave `leaf` crystals on both sides and gain something; `columns` is the share of
    features that a tree may use, `rows` that of crystals it sees. Draws follow `seed`.
    """

    trees: int = 200
    depth: int = 6
    rate: float = 0.1
    leaf: int = 8
    columns: float = 0.1
    rows: float = 0.8
    ridge: float = 1.0
    loss: str = "squared"
    seed: int = 0
    borders: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    start: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False, repr=False)
    _forest: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=list, init=False, repr=False
    )

    def fit(
        self, features: Float[np.ndarray, "crystals features"], targets: Float[np.ndarray, "crystals outputs"]
    ) -> BoostedTrees:
        """Grow all trees; features that are constant are left out."""
        rng = np.random.default_rng(self.seed)
        self._forest = []
        self.borders = [_borders(column) for column in features.T]
        useful = np.array([j for j, b in enumerate(self.borders) if len(b)], dtype=np.int64)
        codes = self._codes(features)
        self.start = targets.mean(0)
        if self.loss == "logistic":
            share = np.clip(self.start, 1e-4, 1 - 1e-4)
            self.start = np.log(share / (1 - share))
        output = np.tile(self.start, (len(targets), 1))
        if not len(useful):
            return self
        # a tree of few crystals is a shallow one
        depth = max(1, min(self.depth, int(np.log2(max(len(targets) / self.leaf, 2)))))
        for _ in range(self.trees):
            chosen = rng.permutation(useful)[: max(1, int(np.ceil(self.columns * len(useful))))]
            seen = np.sort(rng.permutation(len(targets))[: max(2, int(self.rows * len(targets)))])
            for k in range(targets.shape[1]):
                slope, curve = self._slope(output[:, k], targets[:, k])
                split, border, leaves = self._grow(codes, chosen, seen, slope, curve, depth)
                output[:, k] += leaves[_walk(codes, split, border, depth)]
                self._forest.append((k, split, border, leaves))
        return self

    def predict(
        self, features: Float[np.ndarray, "crystals features"]
    ) -> Float[np.ndarray, "crystals outputs"]:
        """Numbers, or probabilities with the logistic loss."""
        codes = self._codes(features)
        output = np.tile(self.start, (len(features), 1))
        for k, split, border, leaves in self._forest:
            output[:, k] += leaves[_walk(codes, split, border, int(np.log2(len(leaves))))]
        return 1 / (1 + np.exp(-output)) if self.loss == "logistic" else output

    def _codes(
        self, features: Float[np.ndarray, "crystals features"]
    ) -> UInt8[np.ndarray, "crystals features"]:
        codes = np.zeros(features.shape, dtype=np.uint8)
        for j, borders in enumerate(self.borders):
            if len(borders):
                codes[:, j] = np.searchsorted(borders, features[:, j], side="left")
        return codes

    def _slope(self, output: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a tree is fitted to, and the weight of every crystal."""
        if self.loss == "squared":
            return target - output, np.ones_like(target)
        p = 1 / (1 + np.exp(-output))
        return target - p, np.maximum(p * (1 - p), 1e-6)

    def _grow(
        self,
        codes: np.ndarray,
        chosen: np.ndarray,
        seen: np.ndarray,
        slope: np.ndarray,
        curve: np.ndarray,
        depth: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feature and border of every inner node (breadth first), and the values of the leaves.

        A node that is not worth a split sends everything left: border `_BINS` is above all codes.
        """
        table = codes[np.ix_(seen, chosen)].astype(np.int64) + np.arange(len(chosen)) * _BINS
        width = len(chosen) * _BINS
        slope, curve = slope[seen], curve[seen]
        split = np.zeros(2**depth - 1, dtype=np.int64)
        border = np.full(2**depth - 1, _BINS, dtype=np.int64)
        node = np.zeros(len(seen), dtype=np.int64)
        constant = bool((curve == 1).all())
        for level in range(depth):
            nodes = 2**level
            place = (node[:, None] * width + table).ravel()
            shape = (nodes, len(chosen), _BINS)
            counts = np.bincount(place, minlength=nodes * width).reshape(shape)
            sums = np.bincount(place, np.repeat(slope, len(chosen)), nodes * width).reshape(shape)
            weights = counts
            if not constant:
                weights = np.bincount(place, np.repeat(curve, len(chosen)), nodes * width).reshape(shape)
            best, where = self._best(counts, sums, weights)
            feature, at = where // _BINS, where % _BINS
            worth = best > 1e-12
            first = nodes - 1
            split[first : first + nodes] = chosen[feature]
            border[first : first + nodes] = np.where(worth, at, _BINS)
            right = codes[seen, split[first + node]] > border[first + node]
            node = 2 * node + right
        total = np.bincount(node, slope, 2**depth)
        weight = np.bincount(node, curve, 2**depth)
        return split, border, self.rate * total / (weight + max(self.ridge, 1e-12))

    def _best(
        self, counts: np.ndarray, sums: np.ndarray, weights: np.ndarray
    ) -> tuple[Float[np.ndarray, " nodes"], Int[np.ndarray, " nodes"]]:
        """For every node the gain of its best split, and feature and border in one number."""
        left_n, left_s, left_w = (np.cumsum(x, axis=2) for x in (counts, sums, weights))
        n, s, w = left_n[:, :, -1:], left_s[:, :, -1:], left_w[:, :, -1:]
        more = max(self.ridge, 1e-12)  # empty sides weigh nothing
        gain = left_s**2 / (left_w + more) + (s - left_s) ** 2 / (w - left_w + more) - s**2 / (w + more)
        gain[(left_n < self.leaf) | (n - left_n < self.leaf)] = 0.0
        flat = gain.reshape(len(gain), -1)
        where = flat.argmax(1)
        return flat[np.arange(len(flat)), where], where


def _borders(values: Float[np.ndarray, " crystals"]) -> Float[np.ndarray, " borders"]:
    """Between which values a feature may be split: all, or equal shares of the crystals."""
    unique = np.unique(values)
    if len(unique) > _BINS:
        unique = np.unique(np.quantile(values, np.linspace(0, 1, _BINS), method="nearest"))
    return (unique[1:] + unique[:-1]) / 2


def _walk(
    codes: np.ndarray, split: np.ndarray, border: np.ndarray, depth: int
) -> Int[np.ndarray, " crystals"]:
    """The leaf that every crystal comes to."""
    rows, node = np.arange(len(codes)), np.zeros(len(codes), dtype=np.int64)
    for _ in range(depth):
        node = 2 * node + 1 + (codes[rows, split[node]] > border[node])
    return node - (2**depth - 1)
