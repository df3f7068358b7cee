"""Split-conformal intervals, and whether a crystal is like the ones a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEVEL = 0.9
REFERENCE_SIZE = 1000
DOMAIN_LEVEL = 0.99
_CHUNK = 4096


def conformal_quantile(
    abs_errors: Float[np.ndarray, "errors"] | Sequence[float], level: float = LEVEL
) -> float:
    """Half width q such that value ± q covers an exchangeable new crystal with probability >= level.

    The ceil((n + 1) level)-th smallest of n absolute errors on crystals that the model was not fitted to
    (Vovk 2005; Lei 2018, Theorem 2.2). NaN (no label) is left out. Infinite where n is too small for the
    level (n < 9 at 0.9): no finite width is then honest. Unit: that of the errors.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    errors = np.asarray(abs_errors, dtype=np.float64).ravel()
    errors = errors[~np.isnan(errors)]
    if (errors < 0).any():
        raise ValueError("expected absolute errors, got negative ones; pass numpy.abs(errors)")
    rank = math.ceil((len(errors) + 1) * level - 1e-9)  # 1e-9: 0.9 * 10 must not become 10 by round-off
    if rank > len(errors):
        return math.inf
    return float(np.partition(errors, rank - 1)[rank - 1])


def nearest_distance(
    embeddings: Float[Tensor, "crystals channels"], reference: Float[Tensor, "references channels"]
) -> Float[Tensor, "crystals"]:
    """Euclidean distance of each embedding to the nearest reference embedding."""
    reference = reference.to(embeddings)
    if not len(embeddings):
        return embeddings.new_zeros(0)
    nearest = [
        torch.cdist(chunk, reference, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        for chunk in embeddings.split(_CHUNK)
    ]
    return torch.cat(nearest)


def domain_statistics(
    train_embeddings: Float[Tensor, "train channels"],
    val_embeddings: Float[Tensor, "val channels"],
    seed: int = 0,
) -> tuple[Float[Tensor, "references channels"], float]:
    """Reference embeddings (at most 1000 training crystals, drawn with `seed`) and a distance threshold.

    The threshold is the `DOMAIN_LEVEL` quantile, with the finite-sample correction of `conformal_quantile`,
    of the validation crystals' distance to the nearest reference: a crystal from the same source falls within
    it with that probability. With too few validation crystals for the correction it is their largest
    distance.
    """
    if not len(train_embeddings) or not len(val_embeddings):
        raise ValueError(
            f"the domain needs training and validation crystals, got {len(train_embeddings)} and "
            f"{len(val_embeddings)}"
        )
    keep = np.random.default_rng(seed).permutation(len(train_embeddings))[:REFERENCE_SIZE]
    reference = train_embeddings[torch.from_numpy(np.sort(keep)).to(train_embeddings.device)].detach()
    distances = nearest_distance(val_embeddings.detach(), reference).double().cpu().numpy()
    threshold = conformal_quantile(distances, DOMAIN_LEVEL)
    return reference, threshold if math.isfinite(threshold) else float(distances.max())


def in_domain(
    elements_seen: Bool[np.ndarray, "crystals"],
    embeddings: Float[Tensor, "crystals channels"],
    reference: Float[Tensor, "references channels"],
    threshold: float,
) -> Bool[np.ndarray, "crystals"]:
    """True where every element was seen in training and the nearest reference is within the threshold."""
    near = nearest_distance(embeddings, reference) <= threshold
    return elements_seen & near.cpu().numpy()


def elements_seen(
    atomic_numbers: Int[np.ndarray, "atoms"], num_atoms: Int[np.ndarray, "crystals"], elements: Sequence[int]
) -> Bool[np.ndarray, "crystals"]:
    """True where all atoms of a crystal are of the given elements; atoms are listed crystal after crystal."""
    unseen = np.concatenate([[0], np.cumsum(~np.isin(atomic_numbers, list(elements)))])
    ends = np.cumsum(num_atoms)
    return unseen[ends] == unseen[ends - num_atoms]
