"""How far a predicted lattice is from the right one (Klipfel 2023, Sec. 4).

    parameters_mae, parameters_mse   mean over a, b, c, α, β, γ of |Δ| and Δ², each standardised
    metric_mae, metric_mse           sum over the nine scalar products of the lattice vectors, Å² and Å⁴
    riemann                          Σ log² λ, λ the eigenvalues of F⁻¹ F' (squares of the principal strains)

All are means over crystals and do not change when a lattice turns; only `riemann` stays when both lattices
change their basis together. Lattices are rows in Å.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from facetry.geometry.lattice import cell_parameters, metric

_SPREAD = 1e-3  # Å or degrees; a component that varies less has no scale of its own


@dataclass(frozen=True)
class Normalisation:
    """Mean and spread of a, b, c (Å), α, β, γ (degrees) over the lattices that a model learns from."""

    mean: Float[Tensor, "6"]
    std: Float[Tensor, "6"]

    @staticmethod
    def of(parameters: Float[Tensor, "crystals 6"]) -> Normalisation:
        """Of training lattices. A component that (nearly) never varies, such as the angles of Perov-5, is
        only shifted: divided by its spread, rounding errors would outweigh all else."""
        std = parameters.std(0) if len(parameters) > 1 else torch.zeros_like(parameters[0])
        return Normalisation(parameters.mean(0), torch.where(std < _SPREAD, torch.ones_like(std), std))

    def __call__(self, parameters: Float[Tensor, "crystals 6"]) -> Float[Tensor, "crystals 6"]:
        """Standardised parameters."""
        return (parameters - self.mean.to(parameters)) / (self.std.to(parameters) + 1e-6)


def parameters_mae(
    predicted: Float[Tensor, "crystals 3 3"],
    target: Float[Tensor, "crystals 3 3"],
    normalisation: Normalisation,
) -> Float[Tensor, ""]:
    """Mean distance of standardised cell parameters."""
    return _parameter_errors(predicted, target, normalisation).abs().mean()


def parameters_mse(
    predicted: Float[Tensor, "crystals 3 3"],
    target: Float[Tensor, "crystals 3 3"],
    normalisation: Normalisation,
) -> Float[Tensor, ""]:
    """Mean squared distance of standardised cell parameters."""
    return _parameter_errors(predicted, target, normalisation).square().mean()


def _parameter_errors(predicted: Tensor, target: Tensor, normalisation: Normalisation) -> Tensor:
    return normalisation(cell_parameters(predicted)) - normalisation(cell_parameters(target))


def metric_mae(
    predicted: Float[Tensor, "crystals 3 3"],
    target: Float[Tensor, "crystals 3 3"],
    normalisation: Normalisation | None = None,
) -> Float[Tensor, ""]:
    """Distance of metric tensors in Å²; takes a normalisation as the others do, and needs none."""
    return (metric(predicted) - metric(target)).abs().sum((1, 2)).mean()


def metric_mse(
    predicted: Float[Tensor, "crystals 3 3"],
    target: Float[Tensor, "crystals 3 3"],
    normalisation: Normalisation | None = None,
) -> Float[Tensor, ""]:
    """Squared distance of metric tensors in Å⁴."""
    return (metric(predicted) - metric(target)).square().sum((1, 2)).mean()


def riemann_distance(
    predicted: Float[Tensor, "crystals 3 3"], target: Float[Tensor, "crystals 3 3"]
) -> Float[Tensor, " crystals"]:
    """Squared affine-invariant distance of the metric tensors, Σ log² λ of F^(-1/2) F' F^(-1/2).

    The trace of F' F that the paper prints has no minimum at F' = F: it falls until the cell has collapsed.
    The target must be a cell; a predicted lattice without volume is far, with a finite slope.
    """
    # F' in the frame in which F is 1: rows of the predicted lattice by the inverse of the target's
    strain = torch.linalg.solve(target, predicted)
    squares = torch.linalg.eigvalsh(strain @ strain.transpose(1, 2))
    return squares.clamp(min=1e-12).log().square().sum(1)


def riemann(
    predicted: Float[Tensor, "crystals 3 3"],
    target: Float[Tensor, "crystals 3 3"],
    normalisation: Normalisation | None = None,
) -> Float[Tensor, ""]:
    """Mean of `riemann_distance`."""
    return riemann_distance(predicted, target).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "parameters_mae": parameters_mae,
    "parameters_mse": parameters_mse,
    "metric_mae": metric_mae,
    "metric_mse": metric_mse,
    "riemann": riemann,
}
