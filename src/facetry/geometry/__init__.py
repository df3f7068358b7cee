"""Tensors in, tensors out: lattices, reduced and primitive cells, and the frames of a crystal."""

from facetry.geometry.frames import FrameSet, continuous_frames, published_frame, tied_frames
from facetry.geometry.lattice import (
    apply_strain,
    cart_to_frac,
    cell_parameters,
    determinant,
    frac_to_cart,
    inverse,
    lattice_from_parameters,
    metric,
    plane_spacings,
    reciprocal,
    volume,
)
from facetry.geometry.reduction import minkowski_reduce, niggli_reduce

__all__ = [
    "FrameSet",
    "apply_strain",
    "cart_to_frac",
    "cell_parameters",
    "continuous_frames",
    "determinant",
    "frac_to_cart",
    "inverse",
    "lattice_from_parameters",
    "metric",
    "minkowski_reduce",
    "niggli_reduce",
    "plane_spacings",
    "published_frame",
    "reciprocal",
    "tied_frames",
    "volume",
]
